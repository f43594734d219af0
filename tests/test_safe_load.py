"""Checkpoints are read without running what is pickled in them, and NeMo reads its own again."""

import io
import pickle

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from omegaconf import OmegaConf
from test_bad_input import Evil

from nemo_comat import ComatCTCModelBPE
from nemo_comat.models.resume import random_state
from nemo_comat.models.safe_load import check_checkpoint


@pytest.fixture(scope="module")
def checkpoint(shared_cfg, tmp_path_factory):
    """A `.ckpt` of a model that has not been trained, as Lightning saves it, and the model."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    model = ComatCTCModelBPE(cfg=shared_cfg.copy(), trainer=trainer)
    trainer.strategy.connect(model)
    file = tmp_path_factory.mktemp("checkpoint") / "m.ckpt"
    trainer.save_checkpoint(file)
    return file, model


def changed(checkpoint, file, **items):
    """The checkpoint with further items, in another file."""
    torch.save({**torch.load(checkpoint, weights_only=False), **items}, file)
    return str(file)


def test_pickled_code_of_a_checkpoint_is_not_run(checkpoint, tmp_path):
    bad = changed(checkpoint[0], tmp_path / "bad.ckpt", x=Evil(tmp_path / "ran"))
    for file in (bad, io.BytesIO((tmp_path / "bad.ckpt").read_bytes())):
        with pytest.raises(pickle.UnpicklingError, match="weights and settings alone .it asks for posix.mkdir"):
            ComatCTCModelBPE.load_from_checkpoint(file, map_location="cpu")
    assert not (tmp_path / "ran").exists()
    # of someone who is trusted
    ComatCTCModelBPE.load_from_checkpoint(bad, map_location="cpu", weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("module", ["os", "omegaconf.omegaconf", "nemo.utils.app_state", "builtins"])
def test_only_types_of_settings_are_read(tmp_path, module):
    name = {"os": "getcwd", "builtins": "getattr", "nemo.utils.app_state": "AppState"}.get(module, "OmegaConf")
    (tmp_path / "m.ckpt").write_bytes(f"c{module}\n{name}\n.".encode())
    with pytest.raises(pickle.UnpicklingError, match=f"asks for .*{name}"):
        check_checkpoint(tmp_path / "m.ckpt")


def test_a_whole_checkpoint_loads_as_before(checkpoint, tmp_path):
    file, model = checkpoint
    numbers = dict(a=np.zeros(()), b=np.ones(2), c=np.float32(3), d=np.bool_(True), e=np.array(["x"]), f=random_state())
    more = changed(file, tmp_path / "more.ckpt", numbers=numbers)
    for source in (str(file), more, io.BytesIO(file.read_bytes())):
        loaded = ComatCTCModelBPE.load_from_checkpoint(source, map_location="cpu")
        assert all(value.equal(loaded.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_checkpoint_cut_short_is_named(checkpoint, tmp_path, share):
    content = checkpoint[0].read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(content[: int(share * len(content))])
    with pytest.raises(pickle.UnpicklingError, match="cut.ckpt is no whole checkpoint .*; copy or download it again"):
        ComatCTCModelBPE.load_from_checkpoint(str(tmp_path / "cut.ckpt"), map_location="cpu")
    with pytest.raises(FileNotFoundError):
        ComatCTCModelBPE.load_from_checkpoint(str(tmp_path / "none.ckpt"))


def test_init_from_ptl_ckpt(checkpoint, shared_cfg):
    file, model = checkpoint
    fresh = ComatCTCModelBPE(cfg=shared_cfg.copy())
    assert not fresh.decoder.decoder_layers[0].weight.equal(model.decoder.decoder_layers[0].weight)
    fresh.maybe_init_from_pretrained_checkpoint(OmegaConf.create({"init_from_ptl_ckpt": str(file)}))
    assert all(value.equal(fresh.state_dict()[key]) for key, value in model.state_dict().items())

"""Stopping by SIGTERM or Ctrl-C and going on: each step as if the run had not been stopped."""

import copy
import os
import random
import signal

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from nemo.utils import logging
from nemo.utils.exp_manager import exp_manager
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from nemo_comat import ComatCTCModelBPE
from nemo_comat.models.resume import EpochSampler, Resumable, is_shuffled, random_state, set_random_state


class Stopper(pl.Callback):
    """Keeps each step's loss, and sends a signal to the process in the midst of a step."""

    def __init__(self, stop_at, by):
        self.stop_at, self.by, self.losses, self.validated = stop_at, by, {}, []

    def on_validation_end(self, trainer, model):
        self.validated.append(trainer.global_step)

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        self.losses[trainer.global_step] = float(trainer.callback_metrics["train_loss"])
        if trainer.global_step == self.stop_at:
            os.kill(os.getpid(), self.by)


def fit(cfg, folder, stop_at=None, by=signal.SIGTERM, *, epochs=2, stopper=Stopper, save_last=None, **more):
    """Trains two epochs with exp_manager, or what is left of them; returns the losses of its steps."""
    stopper = stopper(stop_at, by) if isinstance(stopper, type) else stopper
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, logger=False, enable_checkpointing=False, log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, callbacks=[Resumable(), stopper],
    )  # fmt: skip
    options = {
        "explicit_log_dir": str(folder),
        "create_tensorboard_logger": False,
        "checkpoint_callback_params": {"monitor": "val_wer", "mode": "min", "save_top_k": 1},
        "resume_if_exists": True,
        "resume_ignore_no_checkpoint": True,
        **more,
    }
    if save_last is not None:
        options["checkpoint_callback_params"]["save_last"] = save_last
    exp_manager(trainer, OmegaConf.create(options))
    if not list(folder.rglob("*.ckpt")):
        pl.seed_everything(3, verbose=False)
    model = ComatCTCModelBPE(cfg=cfg, trainer=trainer)
    if stop_at is None:
        trainer.fit(model)
    else:
        with pytest.raises(SIGTERMException):
            trainer.fit(model)
    return stopper.losses


@pytest.fixture
def interrupts():
    """Python's own answer to Ctrl-C; a shell lets programs in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def whole(base_cfg, tmp_path_factory):
    """The losses of a run that nothing stops: four steps in each of two epochs."""
    cfg = copy.deepcopy(base_cfg).model
    cfg.train_ds.batch_size = 4
    return fit(cfg, tmp_path_factory.mktemp("whole"))


def test_a_run_that_is_stopped_in_mid_epoch_goes_on_exactly(small_cfg, whole, tmp_path, interrupts):
    small_cfg.train_ds.batch_size = 4
    stops = ((1, signal.SIGTERM), (6, signal.SIGINT), (None, None))
    parts = [fit(small_cfg, tmp_path / "parts", *stop) for stop in stops]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert [list(losses) for losses in parts] == [[1], [2, 3, 4, 5, 6], [7, 8]]
    assert {**parts[0], **parts[1], **parts[2]} == pytest.approx(whole, rel=1e-4)


def test_a_validation_that_is_due_after_the_first_step_is_held(small_cfg, whole, tmp_path):
    small_cfg.train_ds.batch_size = 4
    stopper = Stopper(None, signal.SIGTERM)
    parts = [fit(small_cfg, tmp_path, stop_at=3), fit(small_cfg, tmp_path, stopper=stopper)]
    assert stopper.validated == [4, 8]
    assert {**parts[0], **parts[1]} == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("first", [dict(epochs=1), dict(stop_at=4)])
def test_a_run_that_ended_with_an_epoch_goes_on_with_the_next(small_cfg, whole, tmp_path, first):
    small_cfg.train_ds.batch_size = 4
    parts = [fit(small_cfg, tmp_path / "parts", **first), fit(small_cfg, tmp_path / "parts")]
    assert [list(losses) for losses in parts] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert {**parts[0], **parts[1]} == pytest.approx(whole, rel=1e-4)


def test_what_is_stopped_is_kept_where_ends_are_not(small_cfg, tmp_path):
    small_cfg.train_ds.batch_size = 4
    fit(small_cfg, tmp_path, stop_at=2, save_last=False)
    assert list(fit(small_cfg, tmp_path, stop_at=3, save_last=False)) == [3]


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_without_checkpoints_none_is_promised(small_cfg, tmp_path, monkeypatch, interrupts, by):
    said = []
    for level in ("info", "warning"):
        monkeypatch.setattr(logging, level, lambda message, *args, **options: said.append(str(message)))
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[Resumable(), Stopper(1, by)],
    )  # fmt: skip
    with pytest.raises((SIGTERMException, SystemExit, KeyboardInterrupt)):
        trainer.fit(ComatCTCModelBPE(cfg=small_cfg, trainer=trainer))
    assert not any("with a checkpoint" in line for line in said) and not list(tmp_path.rglob("*.ckpt"))
    assert any("nothing is saved" in line for line in said) is (by == signal.SIGTERM)


class StopperInValidation(Stopper):
    """Keeps the weights that are trained, and sends the signal in the first validation."""

    def on_validation_start(self, trainer, model):
        if self.losses:
            os.kill(os.getpid(), self.by)

    def on_train_batch_end(self, trainer, model, *args):
        super().on_train_batch_end(trainer, model, *args)
        self.losses["weight"] = model.encoder.layers[0].norm_out.weight.detach().clone()


def test_the_weights_that_are_trained_are_saved_in_validation_too(small_cfg, tmp_path):
    # NeMo's EMA puts other weights into the model for as long as it validates
    small_cfg.optim.lr = 0.1
    ema = {"enable": True, "decay": 0.9}
    losses = fit(small_cfg, tmp_path, stop_at=99, stopper=StopperInValidation, ema=ema)
    (file,) = (file for file in tmp_path.rglob("*-last.ckpt") if "EMA" not in file.name)
    saved = torch.load(file, weights_only=False)["state_dict"]["encoder.layers.0.norm_out.weight"]
    assert saved.equal(losses["weight"])


def test_nemos_ema_is_stopped_and_goes_on_more_than_once(small_cfg, tmp_path):
    small_cfg.train_ds.batch_size = 4
    ema = {"enable": True, "decay": 0.9}
    parts = [fit(small_cfg, tmp_path, stop_at, ema=ema) for stop_at in (2, 3, None)]
    assert [list(losses) for losses in parts] == [[1, 2], [3], [4, 5, 6, 7, 8]]


def test_an_epochs_order_needs_no_epoch_before_it():
    sampler = EpochSampler(10, seed=5)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    resumed = EpochSampler(10, seed=5)
    resumed.begin_at(1, 6)
    assert list(resumed) == second[6:] and len(resumed) == 10
    resumed.set_epoch(0)
    assert list(resumed) == first


def test_only_pytorchs_own_shuffling_is_replaced():
    data = list(range(4))
    assert is_shuffled(DataLoader(data, batch_size=2, shuffle=True))
    assert not any(is_shuffled(x) for x in (DataLoader(data, batch_size=2), DataLoader(data, batch_size=None), None))


def test_random_numbers_come_back():
    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()

    state, before = random_state(), draw()
    set_random_state(state)
    assert all(again == first for again, first in zip(draw(), before, strict=True))


def test_what_comat_draws_goes_on_exactly(small_cfg, tmp_path):
    small_cfg.train_ds.batch_size = 4
    small_cfg.comat.context.update(layers=1, mask=0.5)
    small_cfg.comat.transfer.update(loss="classify", negatives=20)
    whole = fit(small_cfg, tmp_path / "whole")
    parts = [fit(small_cfg, tmp_path / "parts", *stop) for stop in ((2, signal.SIGTERM), (None, None))]
    assert {**parts[0], **parts[1]} == pytest.approx(whole, rel=1e-4) and len(whole) == 8

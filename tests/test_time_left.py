"""How long training takes is said after some steps and at each validation, and counted right."""

import re
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Timer
from torch.utils.data import DataLoader

from nemo_comat.models import time_left
from nemo_comat.models.time_left import LEFT_OUT, MEASURED, TimeLeft, in_words


class Line(pl.LightningModule):
    """The least that trains."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch, index):
        return (self.weight * batch).mean()

    def validation_step(self, batch, index):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def said(monkeypatch, folder, batches=10, ckpt_path=None, save=None, **options):
    """Batches left, as TimeLeft says them while a trainer of the options runs."""
    lines = []
    monkeypatch.setattr(time_left.logging, "info", lines.append)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[TimeLeft()], **options,
    )  # fmt: skip
    data = DataLoader(torch.ones(batches))
    trainer.fit(Line(), data, DataLoader(torch.ones(1)), ckpt_path=ckpt_path)
    if save is not None:
        trainer.save_checkpoint(save)
    pattern = (
        r"Training ends in about [\d.]+ (?:seconds|minutes|hours): (\d+) batches are left, [\d.e-]+ seconds each\."
    )
    return [int(re.fullmatch(pattern, line)[1]) for line in lines]


def test_it_is_said_after_some_steps_and_at_each_validation(monkeypatch, tmp_path):
    assert LEFT_OUT + MEASURED == 13
    # 30 batches: after the 13th, and at the ends of the second and the third epoch, where nothing is left
    assert said(monkeypatch, tmp_path, max_epochs=3) == [17, 10]
    assert said(monkeypatch, tmp_path, max_epochs=3, max_steps=16) == [3]
    assert said(monkeypatch, tmp_path, max_epochs=4, accumulate_grad_batches=2, max_steps=10) == [7]
    # nobody knows the end
    assert said(monkeypatch, tmp_path, max_epochs=-1, max_time="00:00:00:01") == []


def test_a_timer_that_ends_training_before_is_said(monkeypatch):
    lines, left = [], TimeLeft()
    monkeypatch.setattr(time_left.logging, "info", lines.append)
    monkeypatch.setattr(time_left, "batches_left", lambda trainer: 100)
    left._begin, left._steps = time_left.time.monotonic() - 10, LEFT_OUT + 1
    for limit in ({"seconds": 60}, {"hours": 1}):
        left._say(SimpleNamespace(is_global_zero=True, callbacks=[left, Timer(limit)]))
    assert [line.partition(" batches")[0] for line in lines] == [
        "Training ends in about 60 seconds, when its time is over: 100",
        "Training ends in about 17 minutes: 100",
    ]


def test_a_resumed_run_counts_what_it_still_has_to_do(monkeypatch, tmp_path):
    said(monkeypatch, tmp_path, max_epochs=1, save=tmp_path / "one.ckpt")
    assert said(monkeypatch, tmp_path, max_epochs=3, ckpt_path=tmp_path / "one.ckpt") == [7]


@pytest.mark.parametrize(
    "seconds, words",
    [(9.6, "10 seconds"), (119, "119 seconds"), (150, "2.5 minutes"), (660, "11 minutes"), (9000, "2.5 hours")],
)
def test_times_are_said_as_one_reads_them(seconds, words):
    assert in_words(seconds) == words

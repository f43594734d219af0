"""How long training will take, said after a few steps and then at the end of each validation."""

import math
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Timer
from nemo.utils import logging

# the first steps compile, load the teacher, and fill caches
LEFT_OUT, MEASURED = 3, 10


class TimeLeft(pl.Callback):
    """Says how many batches there are still, and about how long they take on this machine.

    It is silent where the end is not known: data without a length, or neither epochs nor steps are limited. The time is
    that of all that happened since the first batches, validations and checkpoints as well. Where `trainer.max_time` or
    `exp_manager.max_time_per_run` is over before, that is said.
    """

    def __init__(self) -> None:
        self._begin, self._steps = 0.0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Counts this run's own batches alone, also where it goes on with another's."""
        self._begin, self._steps = 0.0, 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Says it once, when enough steps were seen."""
        self._steps += 1
        if self._steps == LEFT_OUT:
            self._begin = time.monotonic()
        if self._steps == LEFT_OUT + MEASURED:
            self._say(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Says it again, with what validation takes."""
        if not trainer.sanity_checking and self._steps > LEFT_OUT + MEASURED:
            self._say(trainer)

    def _say(self, trainer: pl.Trainer) -> None:
        left = batches_left(trainer)
        if trainer.is_global_zero and left:
            seconds = (time.monotonic() - self._begin) / (self._steps - LEFT_OUT)
            allowed, needed = seconds_allowed(trainer), left * seconds
            early = ", when its time is over" * (allowed < needed)
            logging.info(
                f"Training ends in about {in_words(min(allowed, needed))}{early}: {left} batches are left, "
                f"{seconds:.2g} seconds each."
            )


def seconds_allowed(trainer: Any) -> float:
    """Seconds until a timer ends training; infinite where there is none.

    Args:
        trainer: Lightning's Trainer.
    Examples:
        >>> from types import SimpleNamespace
        >>> seconds_allowed(SimpleNamespace(callbacks=[Timer({"minutes": 1}), Timer({"seconds": 5})]))
        5.0
    """
    timers = [callback.time_remaining() for callback in trainer.callbacks if isinstance(callback, Timer)]
    return min((float(left) for left in timers if left is not None), default=math.inf)


def batches_left(trainer: Any) -> int | None:
    """Batches until max_epochs or max_steps end training; None where nobody knows.

    Args:
        trainer: Lightning's Trainer, while it trains.
    Examples:
        >>> from unittest.mock import Mock
        >>> trainer = Mock(max_epochs=3, max_steps=-1, num_training_batches=10, current_epoch=1)
        >>> trainer.fit_loop.epoch_loop.batch_progress.current.ready = 4
        >>> batches_left(trainer)
        16
    """
    loop = trainer.fit_loop
    done = loop.epoch_loop.batch_progress.current.ready
    ends = []
    if (trainer.max_epochs or -1) > 0 and trainer.num_training_batches != float("inf"):
        ends.append((trainer.max_epochs - trainer.current_epoch) * trainer.num_training_batches - done)
    if trainer.max_steps > 0:
        # of the next step's batches, some are done
        accumulated = trainer.accumulate_grad_batches
        ends.append((trainer.max_steps - trainer.global_step) * accumulated - done % accumulated)
    return max(0, int(min(ends))) if ends else None


def in_words(seconds: float) -> str:
    """A time as one reads it: seconds, minutes, or hours.

    Args:
        seconds: float.
    Examples:
        >>> in_words(9000), in_words(5400), in_words(90)
        ('2.5 hours', '90 minutes', '90 seconds')
    """
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"

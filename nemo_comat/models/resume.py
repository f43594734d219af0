"""Stopping and going on: SIGTERM and Ctrl-C leave a checkpoint, and a resumed run continues as if nothing had been.

NeMo 3.0.0 saves on SIGTERM only where torch.distributed runs on GPUs. Where there is one process Lightning ends the run
after the batch and saves nothing; and a run that it resumes in mid-epoch shuffles the data anew.
"""

import random
import signal
import threading
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from nemo.collections.common.callbacks import EMA
from nemo.collections.common.callbacks.ema import EMAOptimizer
from nemo.utils import logging
from torch.utils.data import BatchSampler, RandomSampler, Sampler

STATE = "nemo_comat_resume"


class EpochSampler(Sampler[int]):
    """Shuffles by seed and epoch alone, so that the order of an epoch is known without those before it.

    Args:
        size: number of items. seed: int.
    Examples:
        >>> sampler = EpochSampler(5, seed=1)
        >>> whole = list(sampler)
        >>> sampler.begin_at(epoch=0, item=2)
        >>> list(sampler) == whole[2:]
        True
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.epoch, self.begin = size, seed, 0, (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls it before each epoch."""
        self.epoch = epoch

    def begin_at(self, epoch: int, item: int) -> None:
        """Leaves out the first items of one epoch, which were seen before the run was stopped."""
        self.epoch, self.begin = epoch, (epoch, item)

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self.seed + self.epoch) % 2**63)
        order = torch.randperm(self.size, generator=generator).tolist()
        yield from order[self.begin[1] if self.epoch == self.begin[0] else 0 :]


class Resumable(pl.Callback):
    """Saves a checkpoint on SIGTERM and Ctrl-C, and brings data order and random numbers back when a run is resumed.

    It acts where one process trains; several, it leaves to NeMo's own PreemptionCallback. The data order is brought
    back for shuffled map-style data (no Lhotse, tarred or bucketed data). Ctrl-C ends the run after the batch, as
    SIGTERM does; a second one ends it at once, as Lightning would have it.
    """

    def __init__(self) -> None:
        self._stopped: Mapping[str, Any] | None = None
        self._sampler: EpochSampler | None = None
        self._on_interrupt: Any = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds where the epoch stands, and the state of the random numbers."""
        epochs, batches = trainer.fit_loop.epoch_progress.current, trainer.fit_loop.epoch_loop.batch_progress.current
        # between two epochs the number of the epoch is the next one's, and the batches are those of the last one
        between = epochs.completed == epochs.ready
        checkpoint[STATE] = {
            "epoch": trainer.current_epoch,
            "batches": 0 if between else batches.completed,
            "seed": self._sampler and self._sampler.seed,
            "random": random_state(),
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keeps them until the data is there."""
        self._stopped = checkpoint.get(STATE)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Puts the order of the data under control, before Lightning asks for the first batches."""
        loader, stopped = pl_module.train_dataloader(), self._stopped or {}
        if trainer.world_size > 1 or not is_shuffled(loader):
            return
        seed = stopped.get("seed")
        self._sampler = EpochSampler(len(loader.dataset), torch.initial_seed() if seed is None else seed)
        self._sampler.begin_at(stopped.get("epoch", 0), stopped.get("batches", 0) * loader.batch_size)
        loader.batch_sampler.sampler = self._sampler

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hears Ctrl-C where checkpoints are kept, Lightning hears SIGTERM, and nobody ignores it, as `nohup` does."""
        for optimizer in trainer.optimizers:
            if isinstance(optimizer, EMAOptimizer):
                # those that NeMo has loaded want gradients, and cannot change places with the weights that are trained
                optimizer.ema_params = tuple(parameter.detach() for parameter in optimizer.ema_params)
        in_main = threading.current_thread() is threading.main_thread()
        heard = callable(signal.getsignal(signal.SIGINT)) and callable(signal.getsignal(signal.SIGTERM))
        if trainer.world_size == 1 and in_main and heard and trainer.checkpoint_callback is not None:
            self._on_interrupt = signal.signal(signal.SIGINT, self._interrupt)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Brings the random numbers of a resumed run back, once."""
        if self._stopped and trainer.world_size == 1:
            set_random_state(self._stopped["random"])
        self._stopped = None

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Lets a validation that is due after the first batch of a resumed run be held; NeMo's loop would skip it."""
        trainer.fit_loop.epoch_loop.restarting = False

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-C is SIGTERM, once: in the middle of a step there is nothing whole to save."""
        self._give_interrupt_back()
        logging.info("Stopping after this batch, with a checkpoint; Ctrl-C again stops at once, without one.")
        signal.raise_signal(signal.SIGTERM)

    def _give_interrupt_back(self) -> None:
        if self._on_interrupt is not None:
            signal.signal(signal.SIGINT, self._on_interrupt)
            self._on_interrupt = None

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leaves Ctrl-C to whom it belongs."""
        self._give_interrupt_back()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Saves the checkpoint, where the exception is Lightning's answer to SIGTERM."""
        self._give_interrupt_back()
        saver: Any = trainer.checkpoint_callback
        if trainer.world_size > 1 or not isinstance(exception, SIGTERMException):
            return
        if saver is None:
            logging.warning(
                "Stopped, and nothing is saved: exp_manager.create_checkpoint_callback=true saves a checkpoint."
            )
            return
        give_weights_back(trainer)
        # as NeMo's PreemptionCallback does it, so that exp_manager finds it; save_last=false is for runs to their end
        save_last, saver.save_last = saver.save_last, True
        saver._save_last_checkpoint(trainer, saver._monitor_candidates(trainer))
        saver.save_last = save_last
        logging.info(
            f"Stopped at step {trainer.global_step}; saved {saver.last_model_path}. The same command with "
            "exp_manager.resume_if_exists=true and the same folder goes on from there."
        )


def give_weights_back(trainer: pl.Trainer) -> None:
    """Undoes the exchange of weights that NeMo's EMA makes for as long as a validation lasts.

    Examples:
        >>> give_weights_back(pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False))
    """
    if trainer.validating or trainer.sanity_checking:
        for callback in cast(Any, trainer).callbacks:
            if isinstance(callback, EMA):
                callback.on_validation_end(trainer, trainer.lightning_module)


def is_shuffled(loader: Any) -> bool:
    """True for PyTorch's own shuffled batches of map-style data.

    Examples:
        >>> from torch.utils.data import DataLoader
        >>> is_shuffled(DataLoader([1, 2], shuffle=True)), is_shuffled(DataLoader([1, 2]))
        (True, False)
    """
    return type(getattr(loader, "batch_sampler", None)) is BatchSampler and type(loader.sampler) is RandomSampler


def random_state() -> dict[str, Any]:
    """States of the random numbers of Python, NumPy, PyTorch and its GPUs.

    Examples:
        >>> sorted(random_state())
        ['cuda', 'numpy', 'python', 'torch']
    """
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Sets what `random_state` gave; on another number of GPUs, theirs stay as they are.

    Examples:
        >>> state, drawn = random_state(), torch.rand(3)
        >>> set_random_state(state)
        >>> torch.rand(3).equal(drawn)
        True
    """
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"].cpu())
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])

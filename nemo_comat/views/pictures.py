"""Alignments of a few validation utterances, drawn at each validation for the loggers that take pictures."""

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from nemo_comat.views.plot import alignment_image

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class AlignmentPictures(pl.Callback):
    """Draws the alignments of the first utterances of the first validation set, at each validation while training.

    They go to TensorBoard (`add_image`) and Weights & Biases (`log_image`), from the first process alone. Where no
    logger takes pictures, in a sanity check, and where one process alone cannot run the model, nothing is drawn: where
    the weights are spread over processes, or where the encoder, as Citrinet's, always asks the others for the length of
    their audio. What goes wrong is said once, and ends the pictures, not the training.

    Args:
        pictures: number of utterances, at most the first batch's; 0 = none.
        warn: called with the sentence that says what went wrong.
    """

    def __init__(self, pictures: int = 2, warn: Callable[[str], object] = warnings.warn) -> None:
        self.pictures, self._warn = pictures, warn
        self._batch: list[Tensor] | None = None

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        model: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the utterances at the first time, so that they are the same ones at each validation."""
        if self._batch is None and batch_idx == dataloader_idx == 0 and self._guarded(self._wanted, trainer, model):
            self._batch = self._guarded(first_rows, model, batch, self.pictures)
            if self._batch is None and self.pictures:
                self._warn(
                    "No pictures of alignments: the teacher's cache has no text of the first validation batch; add "
                    "those of validation by examples/cache_teacher.py with model.train_ds.manifest_filepath=dev.json, "
                    "which helps where model.comat.teacher.text is tokens, or set model.comat.pictures=0."
                )
                self.pictures = 0

    def on_validation_epoch_end(self, trainer: pl.Trainer, model: Any) -> None:
        """Draws them."""
        if self._batch is not None and self._guarded(self._wanted, trainer, model):
            self._guarded(self._draw, trainer, model, self._batch)

    def _draw(self, trainer: pl.Trainer, model: Any, batch: list[Tensor]) -> None:
        step = trainer.global_step
        with trainer.precision_plugin.val_step_context():
            alignments = model.alignments(*batch)
        for number, (alignment, text) in enumerate(zip(alignments, model.transcript_texts(*batch[2:]))):
            if alignment is not None:
                image = alignment_image(alignment, title=f"{text} (step {step})")
                for logger in trainer.loggers:
                    send_image(logger, f"alignment/{number}", image, f"{text} (step {step})", step)

    def _wanted(self, trainer: pl.Trainer, model: Any) -> bool:
        whole = isinstance(trainer.strategy, SingleDeviceStrategy) or (
            # encoders of NeMo's that have this switch ask the other processes nothing else
            type(trainer.strategy) is DDPStrategy
            and (trainer.world_size == 1 or hasattr(model.encoder, "sync_max_audio_length"))
        )
        training = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        return (
            self.pictures > 0
            and training
            and whole
            and trainer.is_global_zero
            and any(takes_images(logger) for logger in trainer.loggers)
        )

    def _guarded(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except Exception as error:  # a picture is not worth a run
            self._warn(
                f"No pictures of alignments from here on ({type(error).__name__}: {error}); "
                "model.comat.pictures=0 trains without them."
            )
            self.pictures = 0


def first_rows(model: Any, batch: Sequence[Tensor], count: int) -> list[Tensor] | None:
    """The first rows of a batch that the model's teacher reads without loading weights for them.

    Args:
        model: has `reads_at_once`.
        batch: signal [B, T], signal_len, transcript [B, U], transcript_len, and perhaps more.
        count: most rows.
    Returns:
        list of the four tensors with so many rows, cut to their longest; None where there is no such row.
    Examples:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> model = SimpleNamespace(reads_at_once=lambda transcript, transcript_len: [False, True])
        >>> batch = torch.zeros(2, 9), torch.tensor([9, 5]), torch.zeros(2, 3), torch.tensor([3, 2])
        >>> [tuple(tensor.shape) for tensor in first_rows(model, batch, 2)]
        [(1, 5), (1,), (1, 2), (1,)]
    """
    signal, signal_len, transcript, transcript_len = batch[:4]
    rows = [i for i, read in enumerate(model.reads_at_once(transcript, transcript_len)) if read][:count]
    if not rows:
        return None
    signal_len, transcript_len = signal_len[rows], transcript_len[rows]
    return [signal[rows, : signal_len.max()], signal_len, transcript[rows, : transcript_len.max()], transcript_len]


def takes_images(logger: object) -> bool:
    """Whether `send_image` can use a logger of Lightning's.

    Examples:
        >>> takes_images(object())
        False
    """
    return hasattr(logger, "log_image") or hasattr(getattr(logger, "experiment", None), "add_image")


def send_image(logger: Any, name: str, image: "npt.NDArray[np.uint8]", caption: str, step: int) -> None:
    """Gives a picture to a logger of Lightning's.

    Args:
        logger: one that `takes_images`; others are left alone.
        name: of the series of pictures.
        image: uint8 [height, width, 3].
        caption: str. step: int.
    Examples:
        >>> from types import SimpleNamespace
        >>> logger = SimpleNamespace(log_image=lambda key, images, caption, step: print(key, caption, step))
        >>> send_image(logger, "alignment/0", None, "the dog", 100)
        alignment/0 ['the dog'] 100
    """
    if hasattr(logger, "log_image"):
        logger.log_image(key=name, images=[image], caption=[caption], step=step)
    elif takes_images(logger):
        logger.experiment.add_image(name, image, step, dataformats="HWC")

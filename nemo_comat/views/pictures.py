"""Alignments of a few validation utterances, drawn at each validation for the loggers that take pictures."""

import warnings

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn

from nemo_comat.views.plot import alignment_image


class AlignmentPictures(pl.Callback):
    """Draws the alignments of the first utterances of the first validation set, at each validation while training.

    They go to TensorBoard (`add_image`) and Weights & Biases (`log_image`), from the first process alone. Where no
    logger takes pictures, in a sanity check, and where the weights are spread over processes, nothing is drawn. What
    goes wrong is said once, and ends the pictures, not the training.

    Args:
        pictures: number of utterances, at most the first batch's; 0 = none.
        warn: called with the sentence that says what went wrong.
    """

    def __init__(self, pictures=2, warn=warnings.warn):
        self.pictures, self._warn = pictures, warn
        self._batch = None

    def on_validation_batch_end(self, trainer, model, outputs, batch, batch_idx, dataloader_idx=0):
        """Keeps the utterances at the first time, so that they are the same ones at each validation."""
        if self._batch is None and batch_idx == dataloader_idx == 0 and self._wanted(trainer):
            self._batch = self._guarded(first_rows, model, batch, self.pictures)

    def on_validation_epoch_end(self, trainer, model):
        """Draws them."""
        if self._batch is not None and self._wanted(trainer):
            self._guarded(self._draw, trainer, model)

    def _draw(self, trainer, model):
        step = trainer.global_step
        with trainer.precision_plugin.val_step_context():
            alignments = model.alignments(*self._batch)
        for number, (alignment, text) in enumerate(zip(alignments, model.transcript_texts(*self._batch[2:]))):
            if alignment is not None:
                image = alignment_image(alignment, title=f"{text} (step {step})")
                for logger in trainer.loggers:
                    send_image(logger, f"alignment/{number}", image, f"{text} (step {step})", step)

    def _wanted(self, trainer):
        # with other strategies one process alone cannot run the model
        whole = isinstance(trainer.strategy, SingleDeviceStrategy) or type(trainer.strategy) is DDPStrategy
        training = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        return (
            self.pictures > 0
            and training
            and whole
            and trainer.is_global_zero
            and any(takes_images(logger) for logger in trainer.loggers)
        )

    def _guarded(self, call, *arguments):
        try:
            return call(*arguments)
        except Exception as error:  # a picture is not worth a run
            self._warn(
                f"No pictures of alignments from here on ({type(error).__name__}: {error}); "
                "model.comat.pictures=0 trains without them."
            )
            self.pictures = 0


def first_rows(model, batch, count):
    """The first rows of a batch that the model's teacher reads without loading weights for them.

    Args:
        model: has `reads_at_once`.
        batch: signal [B, T], signal_len, transcript [B, U], transcript_len, and perhaps more.
        count: most rows.
    Returns:
        list of the four tensors with so many rows, cut to their longest; None where there is no such row.
    """
    signal, signal_len, transcript, transcript_len = batch[:4]
    rows = [i for i, read in enumerate(model.reads_at_once(transcript, transcript_len)) if read][:count]
    if not rows:
        return None
    signal_len, transcript_len = signal_len[rows], transcript_len[rows]
    return [signal[rows, : signal_len.max()], signal_len, transcript[rows, : transcript_len.max()], transcript_len]


def takes_images(logger):
    """Whether `send_image` can use a logger of Lightning's."""
    return hasattr(logger, "log_image") or hasattr(getattr(logger, "experiment", None), "add_image")


def send_image(logger, name, image, caption, step):
    """Gives a picture to a logger of Lightning's.

    Args:
        logger: one that `takes_images`; others are left alone.
        name: of the series of pictures.
        image: uint8 [height, width, 3].
        caption: str. step: int.
    """
    if hasattr(logger, "log_image"):
        logger.log_image(key=name, images=[image], caption=[caption], step=step)
    elif takes_images(logger):
        logger.experiment.add_image(name, image, step, dataformats="HWC")

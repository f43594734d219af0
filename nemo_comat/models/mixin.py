"""The training step with COMAT, and how the teacher's answer gets to it: only the wiring.

It is a mixin, so that another CTC model of NeMo's becomes one of ours by inheriting it first.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning.pytorch import Callback, Trainer
from nemo.core.classes import common
from nemo.utils import logging, model_utils
from omegaconf import DictConfig, open_dict
from torch import Tensor, nn

from nemo_comat.comat import ComatOutput, CompressAlignTransfer
from nemo_comat.config import ConfigError, encoder_layers, idle_keys, read_comat_config, teacher_arguments
from nemo_comat.models.alignments import AlignmentMixin
from nemo_comat.models.bad_audio import silence_bad_audio
from nemo_comat.models.captured import InputOf, captured
from nemo_comat.models.checkpoint import ComatSaveRestoreConnector, class_path
from nemo_comat.models.consistency import ConsistencyMixin
from nemo_comat.models.data import DataMixin
from nemo_comat.models.feedback import FeedbackMixin
from nemo_comat.models.frozen import check_freeze_updates
from nemo_comat.models.interctc import check_interctc
from nemo_comat.models.layers import layers_of
from nemo_comat.models.reference import manifest_texts, reader_of, reference_texts
from nemo_comat.models.safe_load import allow_settings
from nemo_comat.models.saving import SavingMixin
from nemo_comat.models.statistics import keep_statistics
from nemo_comat.models.tokenizer_folder import tokenizer_errors
from nemo_comat.models.words import WordFinder
from nemo_comat.teacher import CachedTeacher, Pending, Teacher, TeacherOutput, build_teacher
from nemo_comat.transfer import REDUCTIONS, VOCABULARY_LOSSES, Reduction, reduce_rows
from nemo_comat.views import AlignmentPictures, describe, first_batch_warnings

# NeMo 3.0 restores only classes below prefixes that it knows
if "nemo_comat." not in getattr(common, "ALLOWED_TARGET_PREFIXES", ["nemo_comat."]):
    common.ALLOWED_TARGET_PREFIXES.append("nemo_comat.")


@contextmanager
def _as_config_error() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"model.comat: {error}.") from None


class ComatMixin(AlignmentMixin, DataMixin, FeedbackMixin, SavingMixin, ConsistencyMixin):
    """Adds the COMAT loss to a CTC model of NeMo's whose config has a ``comat`` block; changes nothing without one.

    The model needs an `encoder`, a CTC decoder and a `training_step` that calls both and returns a dict with `loss` and
    `log`, as NeMo's do.
    """

    def __init__(self, cfg: DictConfig, trainer: Trainer | None = None) -> None:
        cfg = model_utils.convert_model_config_to_dict_config(cfg)
        teacher = _complete(cfg, self._ctc_config)
        super().__init__(cfg=cfg, trainer=trainer)
        check_interctc(self._cfg, self.encoder)
        allow_settings()
        self._save_restore_connector = ComatSaveRestoreConnector()
        with open_dict(self._cfg):
            self._cfg.target = class_path(type(self))
        self.comat: CompressAlignTransfer | None = None
        # None where COMAT is off, as comat is
        self._teacher: Any = teacher
        self._is_first_batch = True
        self._started: tuple[Tensor, Pending] | None = None
        if teacher is not None:
            block = self._cfg.comat
            feat_in = self._feat_in()
            # our random numbers are drawn aside: the student's data order and dropout stay those of plain CTC
            with torch.random.fork_rng(devices=[]), _as_config_error():
                self.comat = CompressAlignTransfer(
                    feat_in,
                    self._ctc_decoder().num_classes_with_blank - 1,
                    **{step: block[step] for step in ("compress", "align", "projection", "context", "transfer")},
                    normalize=block.teacher.normalize,
                    layer_weights=encoder_layers(block)[1],
                )
            self._words = WordFinder(teacher)
        self._add_feedback()

    def _setup_tokenizer(self, tokenizer_cfg: DictConfig) -> None:
        with tokenizer_errors():
            super()._setup_tokenizer(tokenizer_cfg)

    def change_vocabulary(self, *args: Any, **kwargs: Any) -> None:
        """As NeMo's; what COMAT has learnt stays, and it follows the new blank."""
        before = self._fed_pieces()
        super().change_vocabulary(*args, **kwargs)
        if self._fed_pieces() != before:
            self._renew_feedback_of_posteriors()
        if self.comat is not None:
            self.comat.set_blank(self._ctc_decoder().num_classes_with_blank - 1)
            self._words = WordFinder(self._teacher)

    def configure_callbacks(self) -> list[Callback]:
        """As Lightning's, and the pictures of alignments."""
        callbacks = [] if self._trainer is None else self._trainer.callbacks
        there = any(isinstance(callback, AlignmentPictures) for callback in callbacks)
        if self.comat is None or there:  # of the user's own, or of the fit before
            return list(super().configure_callbacks())
        return [*super().configure_callbacks(), AlignmentPictures(self._cfg.comat.pictures, warn=logging.warning)]

    def on_train_start(self) -> None:
        """As NeMo's; says in the log what will be learnt from where."""
        if self.comat is None and (self._cfg.get("comat") or {}).get("weight"):
            raise ConfigError(
                "model.comat.weight was 0 when this model was made; make or restore it with the new weight."
            )
        if self.comat is not None and self._cfg.comat.teacher.name != self._teacher.name:
            raise ConfigError(
                f"model.comat.teacher.name was {self._teacher.name} when this model was made; make or restore it with "
                "the new name."
            )
        check_freeze_updates(self)
        logging.info(describe(self))
        self._check_width()
        self._is_first_batch = self._views_are_unseen = True
        if self.comat is not None:
            for sentence in idle_keys(self._cfg.comat):
                logging.warning(sentence)
            self._teacher.check(self.device)
            if self._cfg.comat.transfer.loss in VOCABULARY_LOSSES:
                self._teacher.table(self.device)
            if self.comat.normalize is not None:
                keep_statistics(self)
        super().on_train_start()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """As Lightning's; the teacher is started on a training batch's texts while they are still on the host."""
        started = None
        # where parts are frozen, the model itself may be in evaluation
        training = self.training or (self._trainer is not None and self._trainer.training)
        if self.comat is not None and training and isinstance(batch, (tuple, list)):
            transcript, transcript_len = batch[2:4]
            texts = self._reference_texts(*batch[2:])
            started = self._ask(texts, transcript, transcript_len, torch.device(device))
            batch = batch[:4]
        elif self._reads_manifest and isinstance(batch, (tuple, list)) and not self.trainer.predicting:
            batch = batch[:4]  # NeMo's steps of validation take no more, and the training data may be validated on
        batch = super().transfer_batch_to_device(batch, device, dataloader_idx)
        self._started = None if started is None else (batch[2], started)
        return batch

    def training_step(self, batch: Any, batch_nb: int) -> Any:
        """NeMo's step, plus the weighted transfer loss and what it logs."""
        if self.comat is None and self.nemo_comat_feedback is None and not self.consistency_weight:
            return super().training_step(batch, batch_nb)
        # NeMo's step takes four items; DALI's batches have no more, and must stay what they are
        samples = batch[4:5] if len(batch) > 4 else ()
        batch, bad_audio = silence_bad_audio(batch[:4] if samples else batch)
        with captured(**self._watched()) as seen:
            step = super().training_step(self._as_nemo_reads(batch), batch_nb)
        if self.comat is None:
            self._log(step, dict(train_bad_audio=bad_audio.float().sum()))
            return step
        *_, transcript, transcript_len = batch
        pending = self._pending(transcript, transcript_len, *samples)
        teacher = pending.result()
        teacher = teacher._replace(text_len=torch.where(bad_audio, 0, teacher.text_len))
        views = self._comat_outputs(seen, transcript, transcript_len, teacher, batch_nb)
        # rows are counted once
        counted = views[0]
        if self._is_first_batch:
            self._is_first_batch = False
            for warning in first_batch_warnings(pending.texts, self._teacher, teacher, counted, bad_audio):
                logging.warning(warning)
        reduction = self._ctc_config(self._cfg).get("ctc_reduction", "mean_batch")
        losses, text_lens = (torch.cat(column) for column in zip(*((view.loss, view.text_len) for view in views)))
        transfer = reduce_rows(losses, text_lens, reduction)
        # out of place: NeMo logs the very tensor that step["loss"] holds
        ctc_loss, weight = step["loss"], self.comat_weight
        step["loss"] = ctc_loss + weight * transfer
        # Lightning would copy a number to the device, and wait for it
        logged = dict(train_loss=step["loss"], train_transfer_loss=transfer, comat_weight=torch.tensor(float(weight)))
        if not self.consistency_weight:  # which has logged its own losses
            logged["train_ctc_loss"] = ctc_loss
        self._log(step, {**logged, **self._about(counted, teacher, bad_audio, reduction)})
        return step

    def _about(
        self, output: ComatOutput, teacher: TeacherOutput, bad_audio: Tensor, reduction: Reduction
    ) -> dict[str, Tensor]:
        """What is logged of a step beside its losses: dict from name to a scalar."""
        numbers = dict(
            train_active_fraction=output.active.float().mean(),
            train_alignment_score=output.alignment_score,
            train_text_too_long=teacher.too_long.float().sum(),
            train_bad_audio=bad_audio.float().sum(),
        )
        if output.kept is not None:
            # rows that are aligned, though not word by word
            numbers["train_words_unmatched"] = (output.active & ~output.kept).float().sum()
        if self._cfg.comat.teacher.cache is not None:
            numbers["train_cache_misses"] = torch.tensor(float(teacher.lacking))
        if self._cfg.comat.compress.method == "cif":
            numbers["train_quantity_loss"] = reduce_rows(output.compressed.loss, output.text_len, reduction)
        return numbers

    @property
    def comat_weight(self) -> float:
        """Weight of the transfer loss at this step: linear from 0 to `weight` over `warmup_steps` optimizer steps."""
        weight, warmup = self._cfg.comat.weight, self._cfg.comat.warmup_steps
        return weight * min(1.0, self.trainer.global_step / warmup) if warmup else weight

    def _feat_in(self) -> int:
        depth = len(layers_of(self.encoder, self._cfg.encoder))
        for layer in self._layers:
            if layer is None:
                return self._ctc_config(self._cfg).decoder.feat_in
            if not -depth <= layer < depth:
                raise ConfigError(
                    f"model.comat.encoder_layer is {layer}, but {type(self.encoder).__name__} has {depth} layers to "
                    f"choose from, {f'0 to {depth - 1} or -1 to {-depth}' if depth else 'none'}; null takes the last "
                    "frames."
                )
        return self._layer_width()

    def _layer_width(self) -> int:
        """Features of the frames between the encoder's layers; its last frames may be projected to others."""
        if getattr(self.encoder, "out_proj", None) is not None:
            return self.encoder.d_model
        return self._ctc_config(self._cfg).decoder.feat_in

    @property
    def _layers(self) -> list[int | None]:
        return encoder_layers(self._cfg.comat)[0]

    def _check_width(self) -> None:
        if self.comat is not None and self._cfg.comat.projection.dim != self._teacher.dim:
            raise ConfigError(
                f"model.comat.projection.dim is {self._cfg.comat.projection.dim}, but the vectors of "
                f"{self._teacher.name} have {self._teacher.dim} features; give model.comat.projection.dim=null, which "
                "takes the teacher's."
            )

    def _watched(self) -> dict[str, nn.Module | InputOf]:
        if self.comat is None:
            return {}
        watched: dict[str, nn.Module | InputOf] = dict(encoder=self.encoder, decoder=self._ctc_decoder())
        modules = layers_of(self.encoder, self._cfg.encoder)
        for layer in self._layers:
            if layer is None:
                continue
            following = layer % len(modules) + 1
            if following < len(modules):
                # stochastic depth comes after the layer itself
                watched[f"layer {layer}"] = InputOf(modules[following][0])
            elif getattr(self.encoder, "out_proj", None) is not None:
                watched[f"layer {layer}"] = modules[layer][-1]
        return watched

    def _as_nemo_reads(self, batch: Any) -> Any:
        """A batch of which some rows may have been silenced, for NeMo's own step."""
        return batch

    def _pending(self, transcript: Tensor, transcript_len: Tensor, samples: Any = None) -> Pending:
        """What was started for this batch; where no trainer moved it to the device, it is started now."""
        (of, started), self._started = self._started or (None, None), None
        if started is None or of is not transcript:
            texts = self._reference_texts(transcript, transcript_len, samples)
            started = self._ask(texts, transcript, transcript_len, transcript.device)
        return started

    def _ask(self, texts: Sequence[str], transcript: Tensor, transcript_len: Tensor, device: torch.device) -> Pending:
        """The teacher's answer to a batch's texts, with what this model's loss needs beside it."""

        comat = cast(CompressAlignTransfer, self.comat)

        def with_what_the_loss_needs(output: TeacherOutput) -> TeacherOutput:
            """The TeacherOutput with words and table where they are asked for."""
            if comat.within_words:
                given = (self._text_tokenizer(), texts, transcript, transcript_len)
                output = output._replace(words=self._words.find(*given, output.embeddings.shape[1], device))
            if self._cfg.comat.transfer.loss in VOCABULARY_LOSSES:
                output = output._replace(table=self._teacher.table(device))
            return output

        return Pending(self._teacher, texts, device, add=with_what_the_loss_needs)

    def _comat_outputs(
        self,
        seen: dict[str, Any],
        transcript: Tensor,
        transcript_len: Tensor,
        teacher: TeacherOutput,
        batch_nb: int | None = None,
    ) -> list[ComatOutput]:
        """What COMAT gives for each view of a batch, one of which is a batch of its own to it."""
        encoded, encoded_len = seen["encoder"][:2]
        log_probs = seen["decoder"] if "decoder" in seen else self._ctc_decoder()(encoder_output=encoded)
        # what comes after the last layer is the encoder's own output
        hidden = [seen.get(f"layer {layer}", encoded.transpose(1, 2)) for layer in self._layers]
        for layer, frames in zip(self._layers, hidden):
            if frames.shape[1] != encoded.shape[2]:
                raise ConfigError(
                    f"model.comat.encoder_layer is {layer}, which gives {frames.shape[1]} frames where the decoder "
                    f"gets {encoded.shape[2]}: the encoder shortens them in between; give a later layer, or null."
                )
        # Lhotse's token ids are floats where every transcript of a batch is empty; NeMo's CTC loss casts them too
        comat, transcript = cast(CompressAlignTransfer, self.comat), transcript.long()
        outputs = []
        for view in range(len(encoded) // max(1, len(transcript))):
            rows = slice(view * len(transcript), (view + 1) * len(transcript))
            given = [frames[rows] for frames in hidden], encoded_len[rows], log_probs[rows]
            seed = self._seed_of(batch_nb, view)
            outputs.append(comat(*given, transcript, transcript_len, teacher, seed=seed))
        return outputs

    def _seed_of(self, batch_nb: int | None, view: int) -> int:
        """Another for each process, batch and view, equal at equal steps, whether or not a run was stopped between."""
        if batch_nb is None:
            return 0
        step = 0 if self._trainer is None else self._trainer.global_step
        return seed_of(torch.initial_seed(), self.global_rank, step, batch_nb, *[view] * (view > 0))

    @staticmethod
    def _ctc_config(cfg: DictConfig) -> DictConfig:
        return cfg

    def _ctc_decoder(self) -> Any:
        return self.decoder

    def _log(self, step: dict[str, Any], numbers: dict[str, Any]) -> None:
        step["log"].update(numbers)

    def _text_tokenizer(self) -> Any:
        return self.tokenizer

    @property
    def _reads_manifest(self) -> bool:
        block = self._cfg.get("comat")
        return block is not None and block.weight > 0 and block.teacher.text == "manifest"

    def _reference_texts(self, transcript: Tensor, transcript_len: Tensor, samples: Any = None) -> list[str]:
        if self._reads_manifest:
            return manifest_texts(self._loader_in_use(), samples)
        return self.transcript_texts(transcript, transcript_len)

    def _loader_in_use(self) -> Any:
        """The loader that training batches come from: the trainer's, which may go on with another than the model's."""
        used = None if self._trainer is None else self._trainer.train_dataloader
        return used if hasattr(reader_of(used), "get_manifest_sample") else self._train_dl

    def transcript_texts(self, transcript: Tensor, transcript_len: Tensor) -> list[str]:
        """Texts of a batch's transcripts [B, U] with lengths [B], as the recogniser gives them back: list of str."""
        return reference_texts(self._text_tokenizer(), transcript, transcript_len)


def seed_of(*numbers: int) -> int:
    """A seed that differs where any of some numbers does, the same at each call.

    Args:
        numbers: int.
    Returns:
        int below 2 ** 56.
    Examples:
        >>> seed_of(1, 2) == seed_of(1, 2), seed_of(1, 2) == seed_of(2, 1)
        (True, False)
    """
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=7).digest(), "little")


def _complete(cfg: DictConfig, ctc_config: Callable[[DictConfig], DictConfig]) -> Teacher | CachedTeacher | None:
    """Checks and completes cfg.comat in place; returns the teacher (nothing loaded), or None where COMAT is off."""
    if cfg.get("comat") is None:
        return None
    block = read_comat_config(cfg.comat)
    teacher = build_teacher(**teacher_arguments(block.teacher, block.transfer)) if block.weight > 0 else None
    where = ctc_config(cfg)
    reduction = where.get("ctc_reduction", "mean_batch")
    if (teacher is not None or block.consistency_weight) and reduction not in REDUCTIONS:
        key = "model.ctc_reduction" if where is cfg else "model.aux_ctc.ctc_reduction"
        raise ConfigError(f"{key} must be one of {', '.join(REDUCTIONS)}, got {reduction!r}.")
    # a file's block is complete: opening it needs no teacher
    if teacher is not None and block.projection.dim is None:
        block.projection.dim = teacher.dim
        if block.transfer.loss in VOCABULARY_LOSSES:
            teacher.check_table()
    with open_dict(cfg):
        cfg.comat = block
    return teacher

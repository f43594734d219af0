"""Alignments of a model with COMAT, to look at: of one utterance, or of a batch's."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from nemo_comat.comat import ComatOutput
from nemo_comat.models.audio import read_audio
from nemo_comat.models.captured import captured
from nemo_comat.models.host import Host
from nemo_comat.models.reference import manifest_text
from nemo_comat.output import PathLike
from nemo_comat.teacher import TeacherOutput
from nemo_comat.views import Alignment
from nemo_comat.views.first_batch import reasons_of


class AlignmentMixin(Host):
    """The part of `ComatMixin` that training does without; see there what a model needs."""

    def reads_at_once(self, transcript: Tensor, transcript_len: Tensor) -> list[bool]:
        """Whether the teacher reads each row of a batch without loading weights: list of bool, of transcript [B, U]."""
        return [self._teacher.reads_at_once(text) for text in self.transcript_texts(transcript, transcript_len)]

    def read_audio(self, audio: PathLike) -> Tensor:
        """Reads an audio file as training did: at the model's sample rate, ``train_ds.channel_selector`` heeded.

        Args:
            audio: path.
        Returns:
            float32 [samples], on the CPU; several channels are averaged where the config names none of them.
        Raises:
            ValueError: the file cannot be read as audio, has no samples, or lacks the channel.
        """
        dataset = self._cfg.get("train_ds") or {}
        return read_audio(audio, self.preprocessor._sample_rate, dataset.get("channel_selector"))

    def align_text(self, audio: PathLike, text: str, lang: str | None = None) -> Alignment:
        """Aligns one utterance's segments with the teacher's tokens of its text, to look at.

        Args:
            audio: path of an audio file, read by `read_audio`.
            text: what is said in it.
            lang: its language, where the recogniser's tokenizer is an aggregate of several languages'.
        Returns:
            nemo_comat.views.plot.Alignment.
        Raises:
            ValueError: COMAT is off in this model, the audio cannot be read or has no samples, the language is not
                one of the tokenizer's, or no alignment exists, for what the message says (as more tokens than
                segments, or fewer frames than the text needs).
        """
        if self.comat is None:
            raise ValueError("This model has no active comat block, so there is nothing to align; train it with one.")
        signal = self.read_audio(audio).to(self.device)[None]
        ids = torch.tensor([_token_ids(self._text_tokenizer(), text, lang)], device=self.device, dtype=torch.int64)
        signal_len, ids_len = (torch.tensor([x.shape[1]], device=self.device) for x in (signal, ids))
        read = manifest_text([text]) if self._reads_manifest else self.transcript_texts(ids, ids_len)[0]
        output, features, teacher = self._align(signal, signal_len, ids, ids_len, [read])
        if not output.active[0]:
            reasons = reasons_of([read], self._teacher, teacher, output, ~signal.isfinite().all(1))
            why = next(words for words, holds in reasons.items() if holds[0])
            raise ValueError(
                f"{audio} has no alignment with {text!r}: an utterance {why}. The model makes "
                f"{int(output.compressed.seg_len[0])} segments, the teacher {int(teacher.text_len[0])} tokens."
            )
        return self._read_alignment(output, features, 0, read)

    def alignments(
        self, signal: Tensor, signal_len: Tensor, transcript: Tensor, transcript_len: Tensor
    ) -> list[Alignment | None]:
        """Aligns each row of a batch, to look at.

        Args:
            signal, signal_len: [B, samples] and [B]. transcript, transcript_len: [B, U] and [B].
        Returns:
            list of nemo_comat.views.plot.Alignment, None for a row that has none.
        """
        texts = self.transcript_texts(transcript, transcript_len)
        output, features, _ = self._align(signal, signal_len, transcript, transcript_len, texts)
        active = output.active.tolist()
        return [self._read_alignment(output, features, i, t) if active[i] else None for i, t in enumerate(texts)]

    @torch.no_grad()
    def _align(
        self, signal: Tensor, signal_len: Tensor, transcript: Tensor, transcript_len: Tensor, texts: list[str]
    ) -> tuple[ComatOutput, Any, TeacherOutput]:
        # parts of it may be frozen, in another mode than the rest
        self._check_width()
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            with alone(self.encoder), captured(**self._watched(), features=self.preprocessor) as seen:
                self.forward(input_signal=signal, input_signal_length=signal_len)
            teacher = self._ask(texts, transcript, transcript_len, signal.device).result()
            return self._comat_outputs(seen, transcript, transcript_len, teacher)[0], seen["features"], teacher
        finally:
            for module, mode in modes.items():
                module.training = mode

    def _read_alignment(self, output: ComatOutput, features: Any, row: int, text: str) -> Alignment:
        segs, tokens = int(output.compressed.seg_len[row]), int(output.text_len[row])
        seconds = self.frame_seconds()
        frames = [(output.compressed.seg_of_frame[row] == s).nonzero()[:, 0] for s in range(segs)]
        # the last one is for the label -1, of segments that have none
        tokenizer = self._text_tokenizer()
        pieces = [*tokenizer.ids_to_tokens(list(range(tokenizer.vocab_size))), "blank", ""]
        return Alignment(
            score=output.score[row, :segs, :tokens].cpu(),
            path=output.path[row, :segs].cpu(),
            tokens=self._teacher.tokens(text),
            labels=[pieces[i] for i in output.compressed.seg_label[row, :segs].tolist()],
            spans=[
                (int(f[0]) * seconds, (int(f[-1]) + 1) * seconds) if len(f) else (math.nan, math.nan) for f in frames
            ],
            features=features[0][row, :, : int(features[1][row])].float().cpu(),
            frame_seconds=self._window_stride(),
        )

    def frame_seconds(self) -> float:
        """Seconds of one of the encoder's frames; NaN where the preprocessor does not say those of its own."""
        stride = self._window_stride()
        return math.nan if stride is None else stride * self._subsampling_factor() * self._time_reduction()

    def _subsampling_factor(self) -> int:
        """Frames of features to one of the encoder's, which not every encoder keeps."""
        kept = getattr(self.encoder, "subsampling_factor", None)
        return kept or _setting(self.encoder, self._cfg.encoder, "subsampling_factor") or 1

    def _time_reduction(self) -> int:
        """By how much the encoder shortens its frames once more, beside its subsampling."""
        reduced = getattr(self.encoder, "reduction_subsampling", None) is not None
        return self._cfg.encoder.reduction_factor if reduced else 1

    def _window_stride(self) -> float:
        """Seconds from one frame of features to the next; where the config is silent, the preprocessor's default."""
        return _setting(self.preprocessor, self._cfg.preprocessor, "window_stride")


@contextmanager
def alone(encoder: Any) -> Iterator[None]:
    """Keeps an encoder from asking the other processes of a group how long their audio is, where it has a switch.

    Examples:
        >>> from types import SimpleNamespace
        >>> encoder = SimpleNamespace(sync_max_audio_length=True)
        >>> with alone(encoder):
        ...     encoder.sync_max_audio_length
        False
    """
    switch = "sync_max_audio_length"
    before = getattr(encoder, switch, None)
    if before is None:
        yield
        return
    setattr(encoder, switch, False)
    try:
        yield
    finally:
        setattr(encoder, switch, before)


def _setting(module: Any, cfg: Any, key: str) -> Any:
    """What a module's config says under a key; where it is silent, the default of the module's constructor, or None."""
    default = signature(type(module)).parameters.get(key)
    return cfg.get(key, default and default.default)


def _token_ids(tokenizer: Any, text: str, lang: str | None) -> list[int]:
    languages = getattr(tokenizer, "tokenizers_dict", None)
    if languages is None:
        return list(tokenizer.text_to_ids(text))
    if lang not in languages:
        raise ValueError(
            f"The recogniser has pieces of {', '.join(languages)}, so lang must be one of them; got {lang!r}."
        )
    return list(tokenizer.text_to_ids(text, lang))

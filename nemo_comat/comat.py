"""Compress, align, transfer, in this order: the training loss without the recogniser around it."""

from collections.abc import Mapping, Sequence
from inspect import signature
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nemo_comat.align import (
    MonotonicAligner,
    OneToOneAligner,
    SinkhornAligner,
    plan_average,
    segment_words,
    within_words,
)
from nemo_comat.compress import (
    AttentionCompressor,
    CIFCompressor,
    Compressed,
    CTCCompressor,
    FrameCompressor,
    usable_frames,
)
from nemo_comat.lengths import length_mask
from nemo_comat.transfer import (
    Context,
    Normalize,
    Projection,
    TeacherNormalization,
    TransferLoss,
    cosine_score,
    token_average,
)

if TYPE_CHECKING:
    from nemo_comat.teacher import TeacherOutput

# by `method`; the first is the default
COMPRESSORS: dict[str, type[nn.Module]] = {
    "ctc": CTCCompressor,
    "cif": CIFCompressor,
    "attention": AttentionCompressor,
    "none": FrameCompressor,
}
ALIGNERS: dict[str, type[nn.Module]] = {
    "monotonic": MonotonicAligner,
    "one_to_one": OneToOneAligner,
    "sinkhorn": SinkhornAligner,
}


class ComatOutput(NamedTuple):
    """What one batch gave.

    loss: [B] transfer loss, summed over a row's tokens, plus compressed.loss; 0 for inactive rows. active: [B] bool,
    rows that took part. text_len: [B] tokens of the active rows, 0 for the others. score: [B, S, N]. path: [B, S] int32
    token per segment, the likeliest where the alignment is soft. compressed: the last layer's segments before
    projection, its loss 0 for inactive rows. kept: [B] bool, rows whose alignment keeps to words; None where none need.
    """

    loss: Tensor
    active: Tensor
    text_len: Tensor
    score: Tensor
    path: Tensor
    compressed: Compressed
    kept: Tensor | None = None

    @property
    def alignment_score(self) -> Tensor:
        """Scalar, the mean over active rows' segments of score[b, s, path[b, s]]; 0 where no row is active."""
        score = self.score if self.score.shape[2] else F.pad(self.score, (0, 1))
        along = score.gather(2, self.path.clamp(min=0).long()[..., None])[..., 0]
        aligned = self.path >= 0
        return torch.where(aligned, along, 0).sum() / aligned.sum().clamp(min=1)


class CompressAlignTransfer(nn.Module):
    """The loss by which an encoder's segments learn a language model's tokens.

    A row is inactive, which means loss 0 and no gradient, when it has no tokens, no segments (for want of frames or a
    CTC path), fewer of them than tokens where the alignment is monotonic, a frame that is not finite, or a score that
    is not finite along every path.

    Args:
        feat_in: width of the encoder's frames.
        blank: id of the CTC blank.
        compress, align: a `method` (a key of `COMPRESSORS` or `ALIGNERS`, by default the first) and the options of its
            class, as a mapping. Options of the other methods' classes may be there and are not read.
            ``within_words`` of align: a segment goes to a token of its own word; needs the monotonic method, and the
            words in `forward`.
        projection, transfer: the arguments of `Projection` and `TransferLoss`, as mappings.
        normalize: "none", or what `TeacherNormalization` does to the teacher's vectors; its statistics are given later.
        layer_weights: the weight of each encoder layer's loss. The last layer is the one that is aligned.
        context: the arguments of `Context`, as a mapping; ``layers`` 0 or an empty one leaves it out. It is between the
            last layer's projected segments and their transfer loss: the alignment does not see it.
    Raises:
        ValueError: a method or an option is unknown, or does not fit feat_in.
    Examples:
        >>> step = CompressAlignTransfer(8, 4, compress={}, align={}, projection={"dim": 3}, transfer={})
        >>> type(step.compressor).__name__, type(step.aligner).__name__, step.transfer
        ('CTCCompressor', 'MonotonicAligner', TransferLoss(loss='cosine', temperature=0.1, negatives=None, top_k=32))
    """

    def __init__(
        self,
        feat_in: int,
        blank: int,
        *,
        compress: Mapping[str, Any],
        align: Mapping[str, Any],
        projection: Mapping[str, Any],
        transfer: Mapping[str, Any],
        normalize: Normalize = "none",
        layer_weights: Sequence[float] = (1.0,),
        context: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        align = dict(align)
        self.within_words, self.layer_weights = align.pop("within_words", False), list(layer_weights)
        self.blank = blank
        self.compressor = _chosen("compress", COMPRESSORS, compress, feat_in=feat_in, blank=blank)
        self.aligner = _chosen("align", ALIGNERS, align)
        if self.within_words and not isinstance(self.aligner, MonotonicAligner):
            raise ValueError(f"within_words needs align.method monotonic, got {align['method']}")
        self.projection = Projection(feat_in, **projection)
        if len(self.layer_weights) > 1:
            self.lower_projections = nn.ModuleList(Projection(feat_in, **projection) for _ in self.layer_weights[1:])
        self.normalize = None if normalize == "none" else TeacherNormalization(projection["dim"], normalize)
        self.context = Context(projection["dim"], **context) if context.get("layers") else None
        self.transfer = TransferLoss(**transfer)

    def layer_projections(self) -> list[Projection]:
        """The projection of each layer that is taught, in the order of `layer_weights`: list."""
        return [*getattr(self, "lower_projections", ()), self.projection]

    def set_blank(self, blank: int) -> None:
        """Follows a recogniser whose vocabulary has changed.

        Args:
            blank: the new id of the CTC blank; a compressor that looks at labels has a `set_blank` too.
        """
        self.blank = blank
        follow: Any = getattr(self.compressor, "set_blank", None)
        if follow is not None:
            follow(blank)

    def forward(
        self,
        hidden: Tensor | Sequence[Tensor],
        frame_len: Tensor,
        log_probs: Tensor,
        targets: Tensor,
        target_len: Tensor,
        teacher: "TeacherOutput",
        *,
        seed: int = 0,
    ) -> ComatOutput:
        """One batch's loss.

        Args:
            hidden: [B, T, D] encoder frames, or a list of them, one for each of `layer_weights`; gets gradients.
            frame_len: [B] valid frames.
            log_probs: [B, T, V] CTC log-posteriors.
            targets, target_len: [B, U] and [B] the reference in the recogniser's tokens.
            teacher: `nemo_comat.teacher.TeacherOutput` with embeddings [B, N, Dp] for the same rows; `words` is read
                for ``within_words`` alone, `table` for the losses "classify" and "distribution", `predicted` for the
                latter.
            seed: of what the context's masks and the transfer loss draw at random.
        Returns:
            ComatOutput.
        Raises:
            ValueError: hidden has another number of layers than `layer_weights`.
        """
        *lower, hidden = layers = [hidden] if isinstance(hidden, Tensor) else list(hidden)
        if len(layers) != len(self.layer_weights):
            raise ValueError(
                f"hidden must have a tensor for each of the {len(self.layer_weights)} layer_weights, got {len(layers)}"
            )
        device = hidden.device.type
        # all is float32 but for the products over the teacher's vocabulary, which have the caller's precision
        mixed = torch.autocast(device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        with torch.autocast(device, enabled=False):
            if self.normalize is not None:
                teacher = teacher._replace(embeddings=self.normalize(teacher.embeddings))
            given = (frame_len, log_probs.float(), targets, target_len, teacher)
            compressed, student, finite = self._compress(hidden, self.projection, *given)
            score = cosine_score(student, teacher.embeddings).masked_fill(~finite, float("nan"))
            path, plan, kept = self._align(score, compressed, teacher)
            active = (path >= 0).any(1)
            text_len = torch.where(active, teacher.text_len, 0)
            compressed = compressed._replace(loss=torch.where(active, compressed.loss, 0))
            if self.context is not None:
                student = self.context(student, compressed.seg_len, seed=seed)
            loss = self.layer_weights[-1] * self._transfer(student, path, plan, text_len, teacher, seed, mixed)
            loss = loss + compressed.loss
            for weight, frames, projection in zip(self.layer_weights, lower, self.layer_projections()):
                below, student, finite = self._compress(frames, projection, *given)
                # the alignment is the last layer's; a row whose frames went wrong in this one alone stays out of it
                whole = (finite[..., 0] | (path < 0)).all(1) & (below.seg_len > 0)
                kept_len = torch.where(whole, text_len, 0)
                loss = loss + weight * self._transfer(student, path, plan, kept_len, teacher, seed, mixed)
        return ComatOutput(loss, active, text_len, score, path, compressed, kept)

    def _compress(
        self,
        hidden: Tensor,
        projection: Projection,
        frame_len: Tensor,
        log_probs: Tensor,
        targets: Tensor,
        target_len: Tensor,
        teacher: "TeacherOutput",
    ) -> tuple[Compressed, Tensor, Tensor]:
        """Compressed of one layer's frames, the projected segments [B, S, Dp], and which are finite [B, S, 1]."""
        hidden, _, usable = usable_frames(hidden.float(), frame_len)
        lengths = (teacher.text_len, teacher.embeddings.shape[1])
        compressed = self.compressor(hidden, frame_len, log_probs, targets, target_len, *lengths)
        compressed = compressed._replace(seg_len=torch.where(usable, compressed.seg_len, 0))
        # a sum that overflowed would turn the projection's gradient into NaN
        finite = compressed.segments.isfinite().all(-1, keepdim=True)
        return compressed, projection(torch.where(finite, compressed.segments, 0)), finite

    def _align(
        self, score: Tensor, compressed: Compressed, teacher: "TeacherOutput"
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The aligner's path and plan, and which rows keep to words (None where none need)."""
        kept = None
        if self.within_words:
            if teacher.words is None:
                raise ValueError("align.within_words needs the words of both sides' tokens in teacher.words, got None")
            target_word, token_word = teacher.words
            seg_word = segment_words(compressed.seg_label, target_word, self.blank)
            score, kept = within_words(score, seg_word, token_word, compressed.seg_len, teacher.text_len)
        return *self.aligner(score, compressed.seg_len, teacher.text_len), kept

    def _transfer(
        self,
        student: Tensor,
        path: Tensor,
        plan: Tensor | None,
        text_len: Tensor,
        teacher: "TeacherOutput",
        seed: int,
        mixed: torch.autocast,
    ) -> Tensor:
        """[B] the transfer loss of projected segments that are aligned."""
        n_tokens = teacher.embeddings.shape[1]
        mask = length_mask(text_len, n_tokens)
        student = token_average(student, path, n_tokens) if plan is None else plan_average(student, plan)
        more = {} if teacher.table is None else dict(table=teacher.table, predicted=teacher.predicted, seed=seed)
        with mixed:
            loss: Tensor = self.transfer(student, teacher.embeddings, mask, teacher.token_id, **more)
        return loss


def _chosen(step: str, classes: Mapping[str, type[nn.Module]], options: Mapping[str, Any], **given: Any) -> nn.Module:
    """Builds the class that options["method"] names from those of the options that its constructor takes."""
    options = dict(options)
    method = options.pop("method", next(iter(classes)))
    if method not in classes:
        raise ValueError(f"{step}.method must be one of {', '.join(classes)}; got {method!r}")
    known = {key for cls in classes.values() for key in _options(cls)} - set(given)
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(f"{step} does not know {', '.join(unknown)}; its options are {', '.join(sorted(known))}")
    options.update(given)
    cls = classes[method]
    return cls(**{key: options[key] for key in _options(cls) if key in options})


def _options(cls: type[nn.Module]) -> list[str]:
    """A constructor's arguments by name; a class without one of its own has none."""
    return [p.name for p in signature(cls).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]

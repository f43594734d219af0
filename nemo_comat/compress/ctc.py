"""CTC labels cut an utterance's frames into segments, and each segment's frames are pooled into one vector.

The labels are the model's greedy output or the CTC Viterbi path of the reference (`forced`). Source of CTC compression
and of its three poolings: Gaido et al., arXiv 2102.01578. Using it on the way to a language model is the COMAT paper's
"compress"; forced labels and the handling of impossible rows are ours.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from nemo_comat.compress.segments import Compressed
from nemo_comat.compress.viterbi import ctc_viterbi, state_labels
from nemo_comat.kernels.backends import NEG_INF
from nemo_comat.lengths import check_lengths, length_mask
from nemo_comat.pooling import LOWEST, at_least_float32, bins_of, pool_segments

Labels = Literal["greedy", "forced"]
LABELS: tuple[Labels, ...] = get_args(Labels)
Blanks = Literal["drop", "keep"]
BLANKS: tuple[Blanks, ...] = get_args(Blanks)
Pool = Literal["avg", "weighted", "softmax"]
POOLS: tuple[Pool, ...] = get_args(Pool)


def run_segments(
    labels: Tensor, is_blank: Tensor, frame_len: Tensor, *, blanks: Blanks = "drop"
) -> tuple[Tensor, Tensor]:
    """Numbers the runs of equal labels.

    Args:
        labels: [B, T] integers; a new run starts where they change. Negative labels belong to no run.
        is_blank: [B, T] bool, True where the label is the blank.
        frame_len: [B] valid frames.
        blanks: "drop" leaves blank runs out (they still part equal neighbours), "keep" numbers them too.
    Returns:
        seg_of_frame [B, T] int64, -1 where there is no segment, and seg_len [B] int64.
    Raises:
        ValueError: blanks is unknown.
    Examples:
        >>> labels = torch.tensor([[7, 7, 0, 7, 5]])
        >>> seg_of_frame, seg_len = run_segments(labels, labels == 0, torch.tensor([5]))
        >>> seg_of_frame.tolist(), seg_len.tolist()
        ([[0, 0, -1, 1, 2]], [3])
    """
    if blanks not in BLANKS:
        raise ValueError(f"blanks must be one of {', '.join(BLANKS)}; got {blanks!r}")
    inside = length_mask(frame_len, labels.shape[1], device=labels.device)
    kept = inside & (labels >= 0)
    if blanks == "drop":
        kept = kept & ~is_blank
    starts = kept.clone()
    starts[:, 1:] &= labels[:, 1:] != labels[:, :-1]
    seg_of_frame = torch.where(kept, starts.cumsum(1) - 1, -1)
    return seg_of_frame, starts.sum(1)


def ctc_compress(
    hidden: Tensor,
    frame_len: Tensor,
    log_probs: Tensor,
    *,
    blank: int,
    labels: Labels = "greedy",
    targets: Tensor | None = None,
    target_len: Tensor | None = None,
    blanks: Blanks = "drop",
    pool: Pool = "avg",
) -> Compressed:
    """Turns frames into segments, one for each run of frames that carries one CTC label.

    Choosing the labels has no gradient; the pooling has one towards hidden and, with `weighted` and `softmax`, towards
    log_probs.

    Args:
        hidden: [B, T, D] encoder frames.
        frame_len: [B] valid frames.
        log_probs: [B, T, V] CTC log-posteriors of the same frames.
        blank: id of the blank.
        labels: "greedy" (argmax of log_probs) or "forced" (`ctc_viterbi` of the reference).
        targets, target_len: [B, U] and [B], the reference; needed for "forced" only.
        blanks: "drop" or "keep".
        pool: "avg" (mean), "weighted" (by the posterior of the run's label) or "softmax" (by its softmax over the run).
    Returns:
        Compressed. S is a bound known from shapes alone: T for greedy labels, U for forced ones without blanks and
        min(T, 2U + 1) with them. Rows that no CTC path fits have seg_len 0.
    Raises:
        ValueError: an unknown option, forced labels without a reference, shapes or dtypes that do not fit, or a blank
            or (checked on CPU) a length that is out of range.
    Source: arXiv 2102.01578 for greedy labels and the poolings; forced labels are ours.
    Examples:
        >>> hidden, log_probs = torch.tensor([[[1.0], [3.0], [8.0]]]), torch.eye(3)[None, [1, 1, 0]].log()
        >>> ctc_compress(hidden, torch.tensor([3]), log_probs, blank=0).segments.flatten().tolist()
        [2.0, 0.0, 0.0]
    """
    if labels not in LABELS or pool not in POOLS:
        raise ValueError(
            f"labels must be one of {', '.join(LABELS)} and pool one of {', '.join(POOLS)}; got {labels!r}, {pool!r}"
        )
    _check(hidden, frame_len, log_probs, blank)
    frame_len = frame_len.to(hidden.device, torch.int64)
    if labels == "forced":
        if targets is None or target_len is None:
            raise ValueError("labels='forced' needs targets [B, U] and target_len [B]; give them or use 'greedy'")
        run, frame_label = _forced_labels(log_probs, frame_len, targets, target_len, blank)
        bound = targets.shape[1] if blanks == "drop" else min(hidden.shape[1], 2 * targets.shape[1] + 1)
    else:
        run = frame_label = log_probs.detach().argmax(2)
        bound = hidden.shape[1]
    seg_of_frame, seg_len = run_segments(run, frame_label == blank, frame_len, blanks=blanks)
    log_weight = None
    if pool != "avg":
        log_weight = at_least_float32(log_probs.gather(2, frame_label[..., None])[..., 0])
        # what is no logarithm of a posterior must not reach the gradient: 0 times NaN is NaN
        log_weight = log_weight.nan_to_num(nan=NEG_INF, posinf=0.0, neginf=NEG_INF).clamp(LOWEST, 0.0)
        log_weight = log_weight.exp() if pool == "softmax" else log_weight
    segments = pool_segments(hidden, seg_of_frame, log_weight, bound)
    seg_label = frame_label.new_full((len(hidden), bound + 1), -1)
    seg_label = seg_label.scatter(1, bins_of(seg_of_frame, bound), frame_label)[:, :bound]
    return Compressed(segments, seg_len, seg_of_frame, seg_label, segments.new_zeros(len(hidden)))


def _check(hidden: Tensor, frame_len: Tensor, log_probs: Tensor, blank: int) -> None:
    shapes = hidden.dim() == log_probs.dim() == 3 and hidden.shape[:2] == log_probs.shape[:2]
    if not shapes or not (hidden.is_floating_point() and log_probs.is_floating_point()):
        raise ValueError(
            f"hidden must be floats [B, T, D] and log_probs floats [B, T, V] of the same frames, got {hidden.dtype} "
            f"{tuple(hidden.shape)} and {log_probs.dtype} {tuple(log_probs.shape)}"
        )
    if not 0 <= blank < log_probs.shape[2]:
        raise ValueError(f"blank must lie in 0..{log_probs.shape[2] - 1}, got {blank}")
    check_lengths("frame_len", frame_len, *hidden.shape[:2])


def _forced_labels(
    log_probs: Tensor, frame_len: Tensor, targets: Tensor, target_len: Tensor, blank: int
) -> tuple[Tensor, Tensor]:
    state = ctc_viterbi(log_probs, frame_len, targets, target_len, blank=blank)
    label = state_labels(targets.to(state.device, torch.int64), target_len.to(state.device, torch.int64), blank)
    return state, label.gather(1, state.clamp(min=0))


class CTCCompressor(nn.Module):
    """`ctc_compress` with its options kept; no parameters.

    Args:
        blank: id of the blank.
        labels, blanks, pool: as in `ctc_compress`, but that labels are forced where nothing is said.
    Examples:
        >>> CTCCompressor(blank=0)
        CTCCompressor(blank=0, labels='forced', blanks='drop', pool='avg')
    """

    def __init__(self, blank: int, *, labels: Labels = "forced", blanks: Blanks = "drop", pool: Pool = "avg") -> None:
        super().__init__()
        self.options: dict[str, Any] = dict(blank=blank, labels=labels, blanks=blanks, pool=pool)

    def set_blank(self, blank: int) -> None:
        """Follows a recogniser whose vocabulary has changed: its blank's new id."""
        self.options["blank"] = blank

    def forward(
        self,
        hidden: Tensor,
        frame_len: Tensor,
        log_probs: Tensor,
        targets: Tensor,
        target_len: Tensor,
        text_len: Tensor,
        n_tokens: int,
    ) -> Compressed:
        """Same shapes and returns as `ctc_compress`; text_len [B] and n_tokens, the teacher's tokens, are not read."""
        return ctc_compress(hidden, frame_len, log_probs, targets=targets, target_len=target_len, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in self.options.items())

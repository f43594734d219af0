"""Means of runs of vectors: of the frames of a segment, and of the segments of a token."""

import torch
from torch import Tensor

LOWEST = torch.finfo(torch.float32).min / 4  # in the place of -inf, whose differences are NaN


def pool_segments(hidden: Tensor, seg_of_frame: Tensor, log_weight: Tensor | None, n_segments: int) -> Tensor:
    """Weighted mean of each segment's frames.

    Args:
        hidden: [B, T, D] frames; gets gradients.
        seg_of_frame: [B, T] int64, -1 where a frame belongs to no segment.
        log_weight: [B, T] logarithm of each frame's weight, normalised per segment here, or None for equal weights;
            gets gradients.
        n_segments: S, a number known on the host.
    Returns:
        [B, S, D] in hidden's dtype, summed in float32 at least; 0 where a segment has no frames.
    Examples:
        >>> pool_segments(torch.tensor([[[1.0], [3.0], [8.0]]]), torch.tensor([[0, 0, -1]]), None, 2).tolist()
        [[[2.0], [0.0]]]
    """
    bins, dtype = bins_of(seg_of_frame, n_segments), hidden.dtype
    hidden = at_least_float32(hidden)
    weight = hidden.new_ones(bins.shape) if log_weight is None else _run_softmax(log_weight, bins, n_segments)
    total = weight.new_zeros(bins.shape[0], n_segments + 1).scatter_add(1, bins, weight)
    total = torch.where(total > 0, total, 1)
    if log_weight is not None:
        # the weights' gradient is the frames: one of no segment must not be NaN there, nor a segment's sum overflow
        share = weight / total.gather(1, bins)
        hidden = torch.where(seg_of_frame[..., None] < 0, 0, hidden) * share[..., None].to(hidden.dtype)
    pooled = hidden.new_zeros(hidden.shape[0], n_segments + 1, hidden.shape[2])
    pooled = pooled.scatter_add(1, bins[..., None].expand_as(hidden), hidden)
    if log_weight is None:
        pooled = pooled / total[..., None].to(hidden.dtype)
    return pooled[:, :n_segments].to(dtype)


def at_least_float32(x: Tensor) -> Tensor:
    """The same in float32, or wider: in half precision 2048 and 1 are 2048, and sums of a few overflow.

    Examples:
        >>> at_least_float32(torch.ones(1, dtype=torch.bfloat16)).dtype, at_least_float32(torch.ones(1).double()).dtype
        (torch.float32, torch.float64)
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def bins_of(seg_of_frame: Tensor, n_segments: int) -> Tensor:
    """The bin of each frame: its segment, or a last one more, to be cut off afterwards, for frames of none.

    Args:
        seg_of_frame: integers, negative where a frame belongs to no segment. n_segments: S.
    Examples:
        >>> bins_of(torch.tensor([[0, -1, 1]]), 2).tolist()
        [[0, 2, 1]]
    """
    return torch.where(seg_of_frame < 0, n_segments, seg_of_frame)


def _run_softmax(log_weight: Tensor, bins: Tensor, n_segments: int) -> Tensor:
    # a common factor per segment cancels in the mean; taking out the largest keeps tiny posteriors from vanishing
    log_weight = at_least_float32(log_weight).clamp(min=LOWEST)
    top = log_weight.new_full((bins.shape[0], n_segments + 1), float("-inf"))
    top = top.scatter_reduce(1, bins, log_weight.detach(), "amax")
    return (log_weight - top.gather(1, bins)).exp()

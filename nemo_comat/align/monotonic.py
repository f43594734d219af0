"""Monotonic alignment search between segments and text tokens.

`monotonic_align` is the one entry; its backends are `cuda` (a kernel of our own, see mas_cuda.py), `cpu` (numba,
serial, without the GIL) and `torch` (vectorised over batch and tokens, on any device). All return the same path, but
that CuPy's compiler takes sums below 1.2e-38 for 0, which may break a tie.
`segment_log_softmax` makes of similarities what the search should maximise.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nemo_comat.kernels import backends, mas_cuda, numba_cpu
from nemo_comat.kernels.backends import NEG_INF, Backend
from nemo_comat.lengths import check_both_lengths, length_mask


def monotonic_align(score: Tensor, seg_len: Tensor, text_len: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Best monotonic path: Q[s,n] = score[s,n] + max(Q[s-1,n], Q[s-1,n-1]), from (0,0) to (seg_len-1, text_len-1).

    Every segment gets one token, the tokens ascend without a gap, and every token gets at least one segment.

    Args:
        score: [B, S, N] similarity, any float dtype, any strides; summed in float32, never written. NaN counts as -inf.
        seg_len, text_len: [B] valid segments / tokens, any integer dtype.
        backend: "auto" (cuda for tensors on a CUDA device, cpu for CPU tensors, torch for all others and where CuPy or
            numba is missing, with a warning), "cuda", "cpu" or "torch".
    Returns:
        [B, S] int32 on score's device: token index per segment; -1 on padding and on rows without a finite path (which
        holds all rows where seg_len < text_len or a length is 0). Ties stay on the current token.
    Raises:
        ValueError: score is not a 3-D float tensor, the lengths are not [B], a length is out of range (checked on CPU;
            on a GPU, where checking would wait for the device, such a row is all -1), or the backend is unknown.
        RuntimeError: backend "cuda" for a tensor that is not on a CUDA device, without CuPy, or its kernel does not
            compile or launch.
    Source: Glow-TTS, arXiv 2005.11129; the treatment of NaN, -inf and infeasible rows is ours.
    Examples:
        >>> score = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
        >>> monotonic_align(score, torch.tensor([3]), torch.tensor([2])).tolist()
        [[0, 0, 1]]
    """
    _check(score, seg_len, text_len, backend)
    if score.numel() == 0:
        return torch.full(score.shape[:2], -1, dtype=torch.int32, device=score.device)
    chosen = backends.choose(backend, score.device, function="monotonic_align", tensor="score")
    return COMPUTE[chosen](score.detach(), seg_len, text_len)


def _check(score: Tensor, seg_len: Tensor, text_len: Tensor, backend: str) -> None:
    backends.check(backend)
    if score.dim() != 3 or not score.is_floating_point():
        raise ValueError(f"score must be a float tensor [B, S, N], got {score.dtype} {tuple(score.shape)}")
    check_both_lengths(score.shape, seg_len, text_len)


def _align_torch(score: Tensor, seg_len: Tensor, text_len: Tensor) -> Tensor:
    batch, segs, tokens = score.shape
    score = score.float()
    seg_len, text_len = (x.to(score.device, torch.int64) for x in (seg_len, text_len))
    feasible = (0 < text_len) & (text_len <= seg_len) & (seg_len <= segs) & (text_len <= tokens)
    last = (text_len - 1).clamp(0, tokens - 1)

    value = score.new_full((batch, tokens), NEG_INF)
    value[:, 0] = backends.nan_to_neg_inf(score[:, 0, 0])
    moved = torch.zeros(segs, batch, tokens, dtype=torch.bool, device=score.device)
    for s in range(1, segs):
        previous = torch.nn.functional.pad(value[:, :-1], (1, 0), value=NEG_INF)
        torch.gt(previous, value, out=moved[s])
        new = backends.nan_to_neg_inf(score[:, s] + torch.where(moved[s], previous, value))
        value = torch.where((s < seg_len)[:, None], new, value)
    feasible &= value.gather(1, last[:, None])[:, 0].isfinite()

    path = torch.full((batch, segs), -1, dtype=torch.int32, device=score.device)
    token = last
    for s in range(segs - 1, -1, -1):
        inside = feasible & (s < seg_len)
        path[:, s] = torch.where(inside, token, -1)
        token = torch.where(inside, token - moved[s].gather(1, token[:, None])[:, 0].long(), token)
    return path


def _align_cpu(score: Tensor, seg_len: Tensor, text_len: Tensor) -> Tensor:
    lengths = [numba_cpu.on_cpu(x, torch.int64) for x in (seg_len, text_len)]
    path = np.full(score.shape[:2], -1, dtype=np.int32)
    numba_cpu.jit(_align_batch)(numba_cpu.on_cpu(score, torch.float32), *lengths, path)
    return torch.from_numpy(path).to(score.device)


def _align_batch(
    score: npt.NDArray[np.float32],
    seg_len: npt.NDArray[np.int64],
    text_len: npt.NDArray[np.int64],
    path: npt.NDArray[np.int32],
) -> None:
    batch, most_segs, most_tokens = score.shape
    value = np.empty((2, most_tokens + 1), dtype=np.float32)
    moved = np.empty((most_segs, most_tokens), dtype=np.bool_)
    for b in range(batch):
        segs, tokens = seg_len[b], text_len[b]
        if not 0 < tokens <= segs <= most_segs or tokens > most_tokens:
            continue
        # column 0 stands for the token before the first one, which no path visits
        value[:] = -np.inf
        first = score[b, 0, 0]
        value[0, 1] = first if first == first else -np.inf
        for s in range(1, segs):
            # only tokens that are reached by s from the start, and from which the end can still be reached
            low, high = max(0, tokens - segs + s), min(s + 1, tokens)
            # unsigned, so that no index can count from the end: the compiler then makes vectors of the loop
            row, frame, now, before = np.uint64(b), np.uint64(s), np.uint64(s % 2), np.uint64((s - 1) % 2)
            for n in range(np.uint64(low), np.uint64(high)):
                stay, step = value[before, n + np.uint64(1)], value[before, n]
                take = step > stay
                q = score[row, frame, n] + (step if take else stay)
                value[now, n + np.uint64(1)] = q if q == q else -np.inf
                moved[frame, n] = take
        if not np.isfinite(value[(segs - 1) % 2, tokens]):
            continue
        token = tokens - 1
        for s in range(segs - 1, 0, -1):
            path[b, s] = token
            if moved[s, token]:
                token -= 1
        path[b, 0] = token


COMPUTE = {"cuda": mas_cuda.align, "cpu": _align_cpu, "torch": _align_torch}


def segment_log_softmax(score: Tensor, seg_len: Tensor, *, temperature: float = 0.1) -> Tensor:
    """How well each segment fits a token beside the utterance's other segments: log softmax over s of score[s,n] / T.

    A path adds a token's score once for each of its segments, so a token that is similar to everything, as frequent
    words are, would draw in all segments that the order allows. Here each token's scores sum to one, whatever it is.

    Args:
        score: [B, S, N] similarity, any float dtype; NaN stays NaN and counts in no sum.
        seg_len: [B] valid segments.
        temperature: T, above 0; the lower, the less a token's second-best segments count.
    Returns:
        [B, S, N] float32; -inf on segments beyond seg_len.
    Raises:
        ValueError: temperature is not above 0.
    Source: ours.
    Examples:
        >>> share = segment_log_softmax(torch.tensor([[[0.3], [0.1], [9.0]]]), torch.tensor([2]), temperature=0.1).exp()
        >>> [round(x, 3) for x in share.flatten().tolist()]  # e^3, e^1 and no valid segment
        [0.881, 0.119, 0.0]
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}; None aligns the score itself")
    inside = length_mask(seg_len, score.shape[1], device=score.device)
    score = score.float() / temperature
    counted = score.masked_fill(~inside[..., None] | score.isnan(), NEG_INF)
    share = torch.where(score.isnan(), score, counted.log_softmax(1))
    return share.masked_fill(~inside[..., None], NEG_INF)  # of a row without segments the softmax is not a number


class MonotonicAligner(nn.Module):
    """`monotonic_align` with its options kept; no parameters.

    Args:
        backend: as in `monotonic_align`.
        temperature: of `segment_log_softmax`, which is aligned; None aligns the score itself.
    Examples:
        >>> path, plan = MonotonicAligner()(torch.eye(2)[None, [0, 0, 1]], torch.tensor([3]), torch.tensor([2]))
        >>> path.tolist(), plan
        ([[0, 0, 1]], None)
    """

    def __init__(self, *, backend: Backend = "auto", temperature: float | None = 0.1) -> None:
        super().__init__()
        self.backend, self.temperature = backend, temperature

    def forward(self, score: Tensor, seg_len: Tensor, text_len: Tensor) -> tuple[Tensor, Tensor | None]:
        """Which token each segment belongs to.

        Args:
            score: [B, S, N] similarity.
            seg_len, text_len: [B] valid segments / tokens.
        Returns:
            path [B, S] int32 token per segment, -1 for none; and plan [B, S, N], the weight of each segment in each
            token's mean, or None where the path says it all. A row that cannot be aligned has neither.
        """
        if self.temperature is not None:
            score = segment_log_softmax(score, seg_len, temperature=self.temperature)
        return monotonic_align(score, seg_len, text_len, backend=self.backend), None

    def extra_repr(self) -> str:
        return f"backend={self.backend!r}, temperature={self.temperature!r}"

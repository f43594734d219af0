"""Viterbi: the most probable CTC path of a reference, which `compress` cuts frames by.

`ctc_viterbi` is the one entry; its backends are `cuda` (a kernel of our own, see viterbi_cuda.py), `cpu` (numba,
serial, without the GIL) and `torch` (vectorised over batch and states, on any device). All return the same path, but
that CuPy's compiler takes sums below 1.2e-38 for 0, which may break a tie.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nemo_comat.kernels import backends, numba_cpu, viterbi_cuda
from nemo_comat.kernels.backends import NEG_INF, Backend
from nemo_comat.lengths import check_lengths, is_integer, length_mask


def ctc_viterbi(
    log_probs: Tensor,
    frame_len: Tensor,
    targets: Tensor,
    target_len: Tensor,
    *,
    blank: int,
    backend: Backend = "auto",
) -> Tensor:
    """Most probable CTC path of each reference through its frames, for a whole batch at once.

    The states of a reference of U tokens are blank, token 0, blank, token 1, ..., blank: 2U + 1 of them, state 2u + 1
    being token u. Q[t,s] = log_probs[t,label(s)] + max(Q[t-1,s], Q[t-1,s-1], Q[t-1,s-2]), the last only where it skips
    the blank between two tokens that differ.

    Args:
        log_probs: [B, T, V] log-posteriors, any float dtype, any strides; summed in float32, never written. NaN counts
            as -inf. No gradient.
        frame_len: [B] valid frames.
        targets: [B, U] token ids, padding ignored.
        target_len: [B] valid tokens.
        blank: id of the blank.
        backend: as in `monotonic_align`.
    Returns:
        [B, T] int64 state of each frame; -1 on padding, and on whole rows that no path fits: fewer frames than tokens
        plus equal neighbours (which need a blank between them), or no path that is finite. Ties go to the last blank
        before the last token, to staying before one state, and to one state before two.
    Raises:
        ValueError: log_probs is not a 3-D float tensor, targets not [B, U] or the lengths not [B], the blank is no id,
            or a length or a token is out of range (checked on CPU; on a GPU, where checking would wait for the device,
            such a row is all -1), or the backend is unknown.
        RuntimeError: backend "cuda" as in `monotonic_align`.
    Source: Graves et al., ICML 2006 (CTC); the path with Viterbi's maximum for the sum.
    Examples:
        >>> log_probs = torch.tensor([[[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]]]).log()
        >>> ctc_viterbi(log_probs, torch.tensor([3]), torch.tensor([[1, 1]]), torch.tensor([2]), blank=0).tolist()
        [[1, 2, 3]]
    """
    _check(log_probs, frame_len, targets, target_len, blank, backend)
    if log_probs.numel() == 0:
        return torch.full(log_probs.shape[:2], -1, dtype=torch.int64, device=log_probs.device)
    chosen = backends.choose(backend, log_probs.device, function="ctc_viterbi", tensor="log_probs")
    return COMPUTE[chosen](log_probs.detach(), frame_len, targets, target_len, blank)


def state_labels(targets: Tensor, target_len: Tensor, blank: int) -> Tensor:
    """Label of every state: [B, 2U + 1] for targets [B, U] and target_len [B]; the blank past a row's last token.

    Examples:
        >>> state_labels(torch.tensor([[7, 5, 9]]), torch.tensor([2]), blank=0).tolist()
        [[0, 7, 0, 5, 0, 0, 0]]
    """
    inside = length_mask(target_len, targets.shape[1])
    labels = targets.new_full((targets.shape[0], 2 * targets.shape[1] + 1), blank)
    labels[:, 1::2] = torch.where(inside, targets, blank)
    return labels


def _check(log_probs: Tensor, frame_len: Tensor, targets: Tensor, target_len: Tensor, blank: int, backend: str) -> None:
    backends.check(backend)
    are_floats = log_probs.dim() == 3 and log_probs.is_floating_point()
    if not are_floats or targets.dim() != 2 or not is_integer(targets):
        raise ValueError(
            f"log_probs must be floats [B, T, V] and targets integers [B, U], got {log_probs.dtype} "
            f"{tuple(log_probs.shape)} and {targets.dtype} {tuple(targets.shape)}"
        )
    batch, frames, vocab = log_probs.shape
    if len(targets) != batch:
        raise ValueError(f"targets must have log_probs' {batch} rows, got {len(targets)}")
    if vocab and not 0 <= blank < vocab:
        raise ValueError(f"blank must lie in 0..{vocab - 1}, got {blank}")
    check_lengths("frame_len", frame_len, batch, frames)
    check_lengths("target_len", target_len, batch, targets.shape[1])
    if vocab and targets.device.type == target_len.device.type == "cpu":
        # as int64: a blank of 200 is no int8
        labels = state_labels(targets.long(), target_len.long(), blank)
        if not ((0 <= labels) & (labels < vocab)).all():
            raise ValueError(f"targets must lie in 0..{vocab - 1}, got {int(labels.min())}..{int(labels.max())}")


def _viterbi_torch(log_probs: Tensor, frame_len: Tensor, targets: Tensor, target_len: Tensor, blank: int) -> Tensor:
    _, frames, vocab = log_probs.shape
    frame_len, targets, target_len = (x.to(log_probs.device, torch.int64) for x in (frame_len, targets, target_len))
    possible = (0 < frame_len) & (frame_len <= frames) & (0 <= target_len) & (target_len <= targets.shape[1])
    target_len = target_len.clamp(0, targets.shape[1])
    labels = state_labels(targets, target_len, blank)
    emission = log_probs.gather(2, labels.clamp(0, vocab - 1)[:, None].expand(-1, frames, -1)).float()
    # a label that does not exist has probability 0, so that no path fits
    emission = emission.masked_fill(((labels < 0) | (labels >= vocab))[:, None], NEG_INF)
    best, back = _forward(emission, labels, frame_len, blank)
    return _backward(best, back, frame_len, target_len, possible)


def _forward(emission: Tensor, labels: Tensor, frame_len: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    batch, frames, states = emission.shape
    skippable = torch.zeros_like(labels, dtype=torch.bool)
    skippable[:, 2:] = (labels[:, 2:] != blank) & (labels[:, 2:] != labels[:, :-2])
    back = torch.zeros(frames, batch, states, dtype=torch.int8, device=emission.device)
    best = emission.new_full((batch, states), NEG_INF)
    best[:, :2] = backends.nan_to_neg_inf(emission[:, 0, :2])
    for t in range(1, frames):
        one = nn.functional.pad(best, (1, 0), value=NEG_INF)[:, :states]
        two = nn.functional.pad(best, (2, 0), value=NEG_INF)[:, :states].masked_fill(~skippable, NEG_INF)
        # of equal values, max takes the first
        top, back[t] = torch.stack((best, one, two)).max(0)
        best = torch.where((t < frame_len)[:, None], backends.nan_to_neg_inf(top + emission[:, t]), best)
    return best, back


def _backward(best: Tensor, back: Tensor, frame_len: Tensor, target_len: Tensor, possible: Tensor) -> Tensor:
    last = 2 * target_len
    ends = best.gather(1, torch.stack((last, (last - 1).clamp(min=0)), 1))
    state = last - (ends[:, 1] > ends[:, 0]).long()
    possible = possible & ends.amax(1).isfinite()
    path = torch.full(back.shape[1::-1], -1, dtype=torch.int64, device=back.device)
    for t in range(back.shape[0] - 1, -1, -1):
        inside = possible & (t < frame_len)
        path[:, t] = torch.where(inside, state, -1)
        state = torch.where(inside, state - back[t].gather(1, state[:, None])[:, 0], state)
    return path


def _viterbi_cpu(log_probs: Tensor, frame_len: Tensor, targets: Tensor, target_len: Tensor, blank: int) -> Tensor:
    integers = [numba_cpu.on_cpu(x, torch.int64) for x in (frame_len, targets, target_len)]
    path = np.full(log_probs.shape[:2], -1, dtype=np.int64)
    numba_cpu.jit(_viterbi_batch)(numba_cpu.on_cpu(log_probs, torch.float32), *integers, blank, path)
    return torch.from_numpy(path).to(log_probs.device)


def _viterbi_batch(
    log_probs: npt.NDArray[np.float32],
    frame_len: npt.NDArray[np.int64],
    targets: npt.NDArray[np.int64],
    target_len: npt.NDArray[np.int64],
    blank: int,
    path: npt.NDArray[np.int64],
) -> None:
    batch, most_frames, vocab = log_probs.shape
    most_pairs = targets.shape[1] + 1
    # pair u is the blank before token u and token u; column 0 stands for the token before the first one, which no path
    # visits
    blank_value = np.empty((2, most_pairs), dtype=np.float32)
    token_value = np.empty((2, most_pairs + 1), dtype=np.float32)
    blank_moved = np.empty((most_frames, most_pairs), dtype=np.int8)
    token_moved = np.empty((most_frames, most_pairs), dtype=np.int8)
    emission = np.empty(most_pairs, dtype=np.float32)
    no_skip = np.empty(most_pairs, dtype=np.float32)
    label = np.empty(most_pairs, dtype=np.uint64)
    for b in range(batch):
        frames, tokens = frame_len[b], target_len[b]
        if not 0 < frames <= most_frames or not 0 <= tokens <= min(frames, most_pairs - 1):
            continue
        inside = True
        for u in range(tokens):
            token = targets[b, u]
            inside &= 0 <= token < vocab
            label[u] = token
            no_skip[u] = 0.0 if u > 0 and token != blank and token != targets[b, u - 1] else -np.inf
        if not inside:
            continue
        # the last pair has no token
        label[tokens], no_skip[tokens] = blank, -np.inf
        # before its first frame a path is in a blank of probability 1 at the start, from which it stays or steps
        blank_value[:], token_value[:] = -np.inf, -np.inf
        blank_value[1, 0] = 0.0
        for t in range(frames):
            # only pairs that are reached by t from the start, and from which the end can still be reached
            low, high = max(0, tokens - frames + t), min(t, tokens) + 1
            # unsigned, so that no index can count from the end: the compiler then makes vectors of the loop
            row, frame, now, before = np.uint64(b), np.uint64(t), np.uint64(t % 2), np.uint64((t + 1) % 2)
            for u in range(np.uint64(low), np.uint64(high)):
                emission[u] = log_probs[row, frame, label[u]]
            of_blank = log_probs[row, frame, np.uint64(blank)]
            for u in range(np.uint64(low), np.uint64(high)):
                left, stay, token = (
                    token_value[before, u],
                    blank_value[before, u],
                    token_value[before, u + np.uint64(1)],
                )
                take = left > stay
                q = of_blank + (left if take else stay)
                blank_value[now, u] = q if q == q else -np.inf
                blank_moved[frame, u] = take
                one = stay > token
                best = stay if one else token
                skip = left + no_skip[u]
                two = skip > best
                q = emission[u] + (skip if two else best)
                token_value[now, u + np.uint64(1)] = q if q == q else -np.inf
                token_moved[frame, u] = 2 if two else one
        last = (frames - 1) % 2
        of_blank, of_token = blank_value[last, tokens], token_value[last, tokens]
        if not np.isfinite(max(of_blank, of_token)):
            continue
        state = 2 * tokens - (of_token > of_blank)
        for t in range(frames - 1, -1, -1):
            path[b, t] = state
            state -= token_moved[t, state // 2] if state % 2 else blank_moved[t, state // 2]


COMPUTE = {"cuda": viterbi_cuda.viterbi, "cpu": _viterbi_cpu, "torch": _viterbi_torch}

"""CUDA launcher of `ctc_viterbi`: launches viterbi.cu.

viterbi.cu says how the kernel works, cuda.py how it is compiled and launched.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nemo_comat.kernels import cuda
from nemo_comat.kernels.cuda import ELEMENTS, pointer, readable

MAX_THREADS = 512  # as in viterbi.cu


def threads_of(tokens: int) -> int:
    """Threads of a block: one for each token and one for the last blank, in whole warps; past the most, in strips.

    Examples:
        >>> threads_of(31), threads_of(32), threads_of(10_000)
        (32, 64, 512)
    """
    return min(-(-(tokens + 1) // 32) * 32, MAX_THREADS)


def shared_bytes_of(threads: int) -> int:
    """Shared memory of a block without directions, as the head of viterbi.cu adds it up.

    Examples:
        >>> shared_bytes_of(64)
        528
    """
    return 8 * threads + 16


def direction_words(frames: int, tokens: int) -> int:
    """32-bit words of directions an utterance: two bits a state.

    Examples:
        >>> direction_words(16, 3)
        8
    """
    return -(-frames // 8) * (tokens + 1)


def viterbi(log_probs: Tensor, frame_len: Tensor, targets: Tensor, target_len: Tensor, blank: int) -> Tensor:
    """`ctc_viterbi` for log_probs [B, T, V] on a CUDA device; see there. B and T are at least 1.

    Raises:
        RuntimeError: viterbi.cu does not compile (with the compiler's log).
    Examples:
        >>> args = torch.tensor([2]), torch.tensor([[1]]), torch.tensor([1])
        >>> viterbi(torch.eye(2, device="cuda")[None], *args, 0).tolist()  # doctest: +SKIP
        [[0, 1]]
    """
    device = cuda.device(log_probs.device.index)
    return launch(_run, log_probs, frame_len, targets, target_len, blank, device)


def launch(
    run: Callable[..., None],
    log_probs: Tensor,
    frame_len: Tensor,
    targets: Tensor,
    target_len: Tensor,
    blank: int,
    device: cuda.Device,
) -> Tensor:
    """Prepares the arguments of `viterbi`; calls `run(element, index, blocks, threads, arguments, shared_bytes=…)`.

    Examples:
        >>> h100, one = cuda.Device(132, 232448, 233472, 90), torch.tensor([1])
        >>> show = lambda element, index, blocks, threads, *rest, **options: print(element, blocks, threads)
        >>> _ = launch(show, torch.zeros(1, 8, 5), one, torch.tensor([[3]]), one, 0, h100)
        float 1 32
    """
    # numbers that PyTorch only marks as negated lie in memory without their sign
    log_probs = log_probs.resolve_neg() if log_probs.dtype in ELEMENTS else log_probs.float()
    batch, frames, vocab = log_probs.shape
    tokens = targets.shape[1]
    frame_len, targets, target_len = (readable(x, log_probs.device) for x in (frame_len, targets, target_len))
    threads, words = threads_of(tokens), direction_words(frames, tokens)
    moves_shared = shared_bytes_of(threads) + 4 * words <= device.shared_budget(batch)

    path = log_probs.new_empty((batch, frames), dtype=torch.int64)
    moved = None if moves_shared else log_probs.new_empty(batch * words, dtype=torch.int32)
    saved = log_probs.new_empty(batch * 2 * frames, dtype=torch.float32) if tokens >= threads else None
    arguments = (
        pointer(log_probs),
        *(np.int64(stride) for stride in log_probs.stride()),
        pointer(frame_len),
        np.int32(frame_len.element_size()),
        pointer(targets),
        np.int32(targets.element_size()),
        pointer(target_len),
        np.int32(target_len.element_size()),
        np.int32(frames),
        np.int32(tokens),
        np.int32(vocab),
        np.int32(blank),
        pointer(path),
        pointer(moved),
        pointer(saved),
    )
    shared_bytes = shared_bytes_of(threads) + (4 * words if moves_shared else 0)
    run(ELEMENTS[log_probs.dtype], log_probs.device.index, batch, threads, arguments, shared_bytes=shared_bytes)
    return path


def _run(
    element: str, index: int, blocks: int, threads: int, arguments: tuple[np.generic, ...], *, shared_bytes: int
) -> None:
    macro = f"VITERBI_ELEMENT={element}"
    cuda.run("viterbi", macro, index, blocks, threads, arguments, shared_bytes=shared_bytes)

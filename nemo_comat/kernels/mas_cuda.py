"""CUDA launcher of `monotonic_align`: chooses a plan by shape, and launches mas.cu compiled for it.

mas.cu says how the kernel works, cuda.py how it is compiled and launched.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from nemo_comat.kernels import cuda
from nemo_comat.kernels.cuda import ELEMENTS, pointer, readable

ELEMENT_BYTES = {name: dtype.itemsize for dtype, name in ELEMENTS.items()}


@dataclass(frozen=True)
class Plan:
    """How one block shares out the work: its constants in mas.cu."""

    columns: int  # tokens a lane
    warps: int
    frames: int  # frames a chunk, which is what one barrier and one copy serve
    stages: int  # chunks in the ring

    @property
    def width(self) -> int:
        """Tokens that a block takes at once; longer texts go in strips of it."""
        return 32 * self.columns * self.warps


# by width; the smallest that holds the text is taken, the last one in strips
PLANS = (Plan(2, 1, 16, 4), Plan(2, 2, 16, 4), Plan(2, 4, 16, 4), Plan(4, 4, 16, 3), Plan(8, 4, 8, 3))
Copy = Literal["TEXT16", "TEXT4", "FRAMES4", "ELEMENTS"]
COPIES: tuple[Copy, ...] = get_args(Copy)


@dataclass(frozen=True)
class Instance:
    """One compiled kernel: a plan, the scores' type, how they are copied, and whether the device does so by itself."""

    plan: Plan
    element: str
    copy: Copy
    asynchronous: bool

    @functools.cached_property
    def macro(self) -> str:
        """Value of MAS_PLAN in mas.cu."""
        plan, flag = self.plan, "true" if self.asynchronous else "false"
        return f"{self.element},{plan.columns},{plan.warps},{plan.frames},{plan.stages},{self.copy},{flag}"

    @functools.cached_property
    def shared_bytes(self) -> int:
        """Shared memory of a block without directions, as the head of mas.cu adds it up."""
        plan = self.plan
        paired = self.copy == "FRAMES4" and ELEMENT_BYTES[self.element] == 2
        rows, cell = (plan.frames // 2, 4) if paired else (plan.frames, ELEMENT_BYTES[self.element])
        ring = plan.warps * plan.stages * rows * (32 * plan.columns * cell + 16)
        return ring + 4 * (plan.warps + 1) * 4 * plan.frames + 16

    def direction_words(self, segs: int, tokens: int) -> int:
        """32-bit words of directions an utterance: a bit a cell, tokens rounded up to whole warps."""
        warp = 32 * self.plan.columns
        return -(-segs // 32) * -(-tokens // warp) * warp


def choose(score: Tensor, device: cuda.Device) -> tuple[Instance, bool]:
    """Kernel instance for a score tensor [B, S, N], and whether its directions fit in shared memory.

    Examples:
        >>> h100 = cuda.Device(132, 232448, 233472, 90)
        >>> choose(torch.zeros(8, 500, 100), h100)[0].plan.width
        128
    """
    batch, segs, tokens = score.shape
    element, copy = ELEMENTS[score.dtype], copy_of(score)
    asynchronous = device.capability >= 80 and copy != "ELEMENTS"
    fitting = _fitting(element, copy, asynchronous, device.shared_per_block)
    instance = next((x for x in fitting if x.plan.width >= tokens), fitting[-1])
    together = instance.shared_bytes + 4 * instance.direction_words(segs, tokens)
    return instance, together <= device.shared_budget(batch)


@functools.cache
def _fitting(element: str, copy: Copy, asynchronous: bool, shared_per_block: int) -> tuple[Instance, ...]:
    instances = [Instance(plan, element, copy, asynchronous) for plan in PLANS]
    return tuple(x for x in instances if x.shared_bytes <= shared_per_block)


def strides_of(score: Tensor) -> tuple[int, ...]:
    """A tensor's strides, 0 on an axis of one: where it would go next is never read.

    Examples:
        >>> strides_of(torch.zeros(2, 4, 9)[:, :1])
        (36, 0, 1)
    """
    return tuple(stride if size > 1 else 0 for stride, size in zip(score.stride(), score.shape))


def copy_of(score: Tensor) -> Copy:
    """The widest way to read a score tensor that its strides and its address allow: one of `COPIES`.

    Examples:
        >>> score = torch.zeros(1, 8, 8)
        >>> copy_of(score), copy_of(score.transpose(1, 2)), copy_of(score[..., ::2])
        ('TEXT16', 'FRAMES4', 'ELEMENTS')
    """
    size = score.element_size()
    stride_b, stride_s, stride_n = (x * size for x in strides_of(score))
    if stride_n == size or score.shape[2] == 1:
        aligned = score.data_ptr() | stride_b | stride_s
        if aligned % 16 == 0:
            return "TEXT16"
        if aligned % 4 == 0:
            return "TEXT4"
    elif stride_s == size and all(x % 4 == 0 for x in (score.data_ptr(), stride_b, stride_n)):
        return "FRAMES4"
    return "ELEMENTS"


def align(score: Tensor, seg_len: Tensor, text_len: Tensor) -> Tensor:
    """`monotonic_align` for score [B, S, N] on a CUDA device; see there. B, S and N are at least 1.

    Raises:
        RuntimeError: mas.cu does not compile (with the compiler's log).
    Examples:
        >>> align(torch.eye(2, device="cuda")[None], torch.tensor([2]), torch.tensor([2])).tolist()  # doctest: +SKIP
        [[0, 1]]
    """
    return launch(_run, score, seg_len, text_len, cuda.device(score.device.index))


def launch(run: Callable[..., None], score: Tensor, seg_len: Tensor, text_len: Tensor, device: cuda.Device) -> Tensor:
    """Prepares the arguments of `mas` and calls `run(instance, index, blocks, threads, arguments, shared_bytes=…)`.

    Examples:
        >>> h100, full = cuda.Device(132, 232448, 233472, 90), torch.tensor([8])
        >>> show = lambda kernel, index, blocks, threads, *rest, **options: print(blocks, threads)
        >>> _ = launch(show, torch.zeros(1, 8, 100), full, full, h100)
        1 64
    """
    # numbers that PyTorch only marks as negated lie in memory without their sign
    score = score.resolve_neg() if score.dtype in ELEMENTS else score.float()
    strides = strides_of(score)
    if max(strides[1:]) >= 2**31:
        score = score.contiguous()
        strides = strides_of(score)
    batch, segs, tokens = score.shape
    seg_len, text_len = (readable(x, score.device) for x in (seg_len, text_len))
    instance, moves_shared = choose(score, device)

    path = score.new_empty((batch, segs), dtype=torch.int32)
    words = instance.direction_words(segs, tokens)
    moved = None if moves_shared else score.new_empty(batch * words, dtype=torch.int32)
    saved = score.new_empty(batch * segs, dtype=torch.float32) if tokens > instance.plan.width else None
    stride_b, stride_s, stride_n = strides
    arguments = (
        pointer(score),
        np.int64(stride_b),
        np.int32(stride_s),
        np.int32(stride_n),
        pointer(seg_len),
        np.int32(seg_len.element_size()),
        pointer(text_len),
        np.int32(text_len.element_size()),
        np.int32(segs),
        np.int32(tokens),
        pointer(path),
        pointer(moved),
        pointer(saved),
    )
    shared_bytes = instance.shared_bytes + (4 * words if moves_shared else 0)
    run(instance, score.device.index, batch, 32 * instance.plan.warps, arguments, shared_bytes=shared_bytes)
    return path


def _run(
    instance: Instance, index: int, blocks: int, threads: int, arguments: tuple[np.generic, ...], *, shared_bytes: int
) -> None:
    cuda.run("mas", f"MAS_PLAN={instance.macro}", index, blocks, threads, arguments, shared_bytes=shared_bytes)

"""Backends: which of cuda, cpu and torch computes, and how a CUDA source of ours is compiled and launched.

The functions that search (`monotonic_align`, `ctc_viterbi`) have three backends each, which give the same answer:
`cuda` (a kernel of our own, compiled by CuPy), `cpu` (numba, serial, without the GIL) and `torch` (on any device). What
they have in common is here. A kernel runs on PyTorch's current stream, on PyTorch's memory; nothing here waits for the
device, so that it can be captured in a CUDA graph once a first call has compiled it.
"""

import functools
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nemo_comat.waiting import announce

Backend = Literal["auto", "cuda", "cpu", "torch"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
ELEMENTS = {torch.float32: "float", torch.float16: "Half", torch.bfloat16: "Bfloat"}
HERE = Path(__file__).parent
NEG_INF = float("-inf")


def check(backend: str) -> None:
    """Raises ValueError for a backend that is not in `BACKENDS`.

    Examples:
        >>> check("gpu")
        Traceback (most recent call last):
        ValueError: backend must be one of auto, cuda, cpu, torch; got 'gpu'
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}")


def nan_to_neg_inf(x: Tensor) -> Tensor:
    """-inf in the place of NaN, so that no path goes there.

    Examples:
        >>> nan_to_neg_inf(torch.tensor([float("nan"), 1.0]))
        tensor([-inf, 1.])
    """
    return torch.where(x.isnan(), NEG_INF, x)


def is_integer(tensor: Tensor) -> bool:
    """True for a tensor of integers, signed or not; bool is none.

    Examples:
        >>> is_integer(torch.tensor([1])), is_integer(torch.tensor([True]))
        (True, False)
    """
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def check_lengths(name: str, length: Tensor, batch: int, limit: int) -> None:
    """Checks lengths: integers [batch] in 0..limit; their values on the CPU only, for on a GPU that would wait for it.

    Args:
        name: what messages call them. length: tensor. batch, limit: int.
    Raises:
        ValueError: they are not.
    Examples:
        >>> check_lengths("text_len", torch.tensor([3, 9]), 2, 5)
        Traceback (most recent call last):
        ValueError: text_len must lie in 0..5, got [3, 9]
    """
    if length.shape != (batch,) or not is_integer(length):
        raise ValueError(f"{name} must be integers [{batch}], got {length.dtype} {tuple(length.shape)}")
    # as int64, for PyTorch compares no unsigned integers
    if length.device.type == "cpu" and not ((0 <= length.long()) & (length.long() <= limit)).all():
        raise ValueError(f"{name} must lie in 0..{limit}, got {length.tolist()}")


def check_both_lengths(shape: torch.Size, seg_len: Tensor, text_len: Tensor) -> None:
    """`check_lengths` of the segments and the tokens of a score.

    Args:
        shape: [B, S, N] of the score. seg_len, text_len: of its segments and tokens.
    Raises:
        ValueError: as `check_lengths`.
    Examples:
        >>> check_both_lengths(torch.Size([1, 3, 2]), torch.tensor([3]), torch.tensor([3]))
        Traceback (most recent call last):
        ValueError: text_len must lie in 0..2, got [3]
    """
    for name, length, limit in (("seg_len", seg_len, shape[1]), ("text_len", text_len, shape[2])):
        check_lengths(name, length, shape[0], limit)


def choose(backend: Backend, device: torch.device, *, function: str, tensor: str) -> Literal["cuda", "cpu", "torch"]:
    """The backend that computes.

    Args:
        backend: "auto" (cuda for tensors on a CUDA device, cpu for CPU tensors, torch for all others and where CuPy or
            numba is missing, with one warning), "cuda", "cpu" or "torch".
        device: where the input is.
        function, tensor: names of the caller and its input, for what is said.
    Returns:
        "cuda", "cpu" or "torch".
    Raises:
        RuntimeError: backend "cuda" cannot serve the device.
    Examples:
        >>> choose("torch", torch.device("cpu"), function="monotonic_align", tensor="score")
        'torch'
    """
    if backend == "cuda":
        reason = why_no_cuda(device, tensor)
        if reason:
            raise RuntimeError(f"backend 'cuda' cannot be used: {reason}")
    if backend != "auto":
        return backend
    if device.type == "cuda":
        reason = why_no_cuda(device, tensor)
        if reason is None:
            return "cuda"
        _warn_of_torch(function, reason)
    elif device.type == "cpu":
        if importlib.util.find_spec("numba"):
            return "cpu"
        _warn_of_torch(function, "numba is missing; pip install numba")
    return "torch"


@functools.cache
def _warn_of_torch(function: str, reason: str) -> None:
    warnings.warn(f"{function} uses its slower torch backend: {reason}", stacklevel=4)


def why_no_cuda(device: torch.device, tensor: str = "the tensor") -> str | None:
    """Why a CUDA kernel cannot serve tensors on a device, in one sentence; None where it can.

    Examples:
        >>> why_no_cuda(torch.device("cpu"), "score")
        "score is on cpu, not on a CUDA device; move it there, or use backend='auto'"
    """
    if device.type != "cuda":
        return f"{tensor} is on {device.type}, not on a CUDA device; move it there, or use backend='auto'"
    if torch.version.hip:
        return "this PyTorch is built for ROCm, and the kernel needs CUDA"
    return _why_no_cupy()


@functools.cache
def _why_no_cupy() -> str | None:
    try:
        import cupy  # noqa: F401
    except ImportError as error:
        return f"CuPy cannot be imported ({error}); pip install cupy-cuda12x or cupy-cuda13x, as your CUDA is"
    return None


# --- numba ---


@functools.cache
def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled by numba, without the GIL, kept for other processes where there is a folder for it.

    Examples:
        >>> jit(lambda x: 2 * x)(21)
        42
    """
    # numba takes a second to import; those who only use the torch backend do not pay for it
    from numba import njit
    from numba.core import event

    try:
        compiled = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # there is no folder that numba can write its cache to
        compiled = njit(nogil=True)(function)
    event.register("numba:compile", _announcer(function))
    return compiled


def _announcer(function: Callable[..., Any]) -> Any:
    from numba.core import event

    class Announcer(event.Listener):
        """Says that a function is compiled; numba tells it so only where the function is not on disk already."""

        def on_start(self, event: Any) -> None:
            """Speaks for the one function."""
            if event.data["dispatcher"].py_func is function:
                announce(
                    f"Compiling {function.__module__}.{function.__name__.strip('_')} for this CPU; this takes about 5 "
                    "seconds, and only once where numba can keep it on disk."
                )

        def on_end(self, event: Any) -> None:
            """Nothing: what follows speaks for itself."""

    return Announcer()


def on_cpu(tensor: Tensor, dtype: torch.dtype) -> npt.NDArray[Any]:
    """NumPy array of a tensor in a dtype, rows contiguous; the tensor's own memory where it is so already.

    Examples:
        >>> on_cpu(torch.tensor([[1, 2], [3, 4]]).T, torch.float32).tolist()
        [[1.0, 3.0], [2.0, 4.0]]
    """
    # a conversion makes rows contiguous in the same pass; without one, contiguous() does
    return tensor.to("cpu", dtype, memory_format=torch.contiguous_format).contiguous().numpy()


# --- CUDA ---


@dataclass(frozen=True)
class Device:
    """What of a GPU decides on how a kernel is launched."""

    multiprocessors: int
    shared_per_block: int  # bytes, the most that a kernel can ask for
    shared_per_multiprocessor: int
    capability: int  # 90 for sm_90

    def shared_budget(self, blocks: int) -> int:
        """Bytes a block may use so that as many blocks as a multiprocessor will get, up to 4, live on it together."""
        together = min(-(-blocks // self.multiprocessors), 4)
        # 1 KiB of each block is the system's
        return max(min(self.shared_per_block, self.shared_per_multiprocessor // together - 1024), 0)


@functools.cache
def device(index: int) -> Device:
    """Facts of CUDA device `index`.

    Examples:
        >>> device(0).capability  # doctest: +SKIP
        90
    """
    import cupy

    attributes = cupy.cuda.Device(index).attributes  # all but the compute capability
    major, minor = torch.cuda.get_device_capability(index)
    return Device(
        multiprocessors=attributes["MultiProcessorCount"],
        shared_per_block=attributes["MaxSharedMemoryPerBlockOptin"],
        shared_per_multiprocessor=attributes["MaxSharedMemoryPerMultiprocessor"],
        capability=10 * major + minor,
    )


def source(name: str) -> str:
    """CUDA source of a kernel: elements.cu and its own file in one text: CuPy's cache does not see headers.

    Examples:
        >>> source("mas").count('#line 1 "mas.cu"')
        1
    """
    return f'{(HERE / "elements.cu").read_text()}#line 1 "{name}.cu"\n{(HERE / f"{name}.cu").read_text()}'


def run(
    name: str,
    macro: str,
    index: int,
    blocks: int,
    threads: int,
    arguments: tuple[np.generic, ...],
    *,
    shared_bytes: int,
) -> None:
    """Launches kernel `name` of name.cu, compiled with -Dmacro, on PyTorch's current stream of device `index`.

    Raises:
        RuntimeError: it does not compile (with the compiler's log), or CuPy has nothing to compile it with. CuPy's own
            errors where it does not launch.
    Examples:
        >>> run("mas", "MAS_PLAN=…", 0, blocks, threads, arguments, shared_bytes=0)  # doctest: +SKIP
    """
    import cupy

    with cupy.cuda.Device(index), _current_stream(cupy, index):
        _compiled(name, macro, index)((blocks,), (threads,), arguments, shared_mem=shared_bytes)


def _current_stream(cupy: Any, index: int) -> Any:
    theirs = torch.cuda.current_stream(index)
    # CuPy 14 takes what has the protocol of streams, and warns of the class that it had before
    if hasattr(cupy.cuda.Stream, "from_external") and hasattr(theirs, "__cuda_stream__"):
        return cupy.cuda.Stream.from_external(theirs)
    return cupy.cuda.ExternalStream(theirs.cuda_stream, index)


@functools.cache
def _compiled(name: str, macro: str, index: int) -> Any:
    import cupy

    announce(f"Compiling {name}.cu for this GPU; this takes some seconds, and none where CuPy has kept it on disk.")
    kernel = cupy.RawKernel(source(name), name, ("--std=c++17", f"-D{macro}"))
    try:
        kernel.max_dynamic_shared_size_bytes = device(index).shared_per_block
    except cupy.cuda.compiler.CompileException as error:
        raise RuntimeError(f"{name}.cu does not compile for {macro}:\n{error}") from error
    except Exception as error:  # CUDA's headers or compiler is not there, or CUDA itself fails, each in its own words
        raise RuntimeError(
            f"CuPy cannot compile or load {name}.cu: {error}; if CUDA's compiler or headers are missing, install them "
            "(pip install 'cupy-cuda12x[ctk]' or 'cupy-cuda13x[ctk]', as your CUDA is), or use backend='torch'"
        ) from error
    return kernel


def readable(integers: Tensor, device: torch.device) -> Tensor:
    """Lengths or labels as kernels read them: on the device, contiguous, int32 or int64.

    Examples:
        >>> readable(torch.tensor([3], dtype=torch.uint8), torch.device("cpu")).dtype
        torch.int64
    """
    integers = integers.to(device)
    return (integers if integers.dtype in (torch.int32, torch.int64) else integers.long()).contiguous()


def pointer(tensor: Tensor | None) -> np.uint64:
    """A tensor's address as a kernel argument; 0 for None.

    Examples:
        >>> int(pointer(None))
        0
    """
    return np.uint64(0 if tensor is None else tensor.data_ptr())

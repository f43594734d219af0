"""Backends: which of cuda, cpu and torch computes, and how a CUDA source of ours is compiled and launched.

The functions that search (`monotonic_align`, `ctc_viterbi`) have three backends each, which give the same answer:
`cuda` (a kernel of our own, compiled by CuPy), `cpu` (numba, serial, without the GIL) and `torch` (on any device). What
they have in common is here. A kernel runs on PyTorch's current stream, on PyTorch's memory; nothing here waits for the
device, so that it can be captured in a CUDA graph once a first call has compiled it.
"""

import functools
import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nemo_comat.waiting import announce

BACKENDS = ("auto", "cuda", "cpu", "torch")
ELEMENTS = {torch.float32: "float", torch.float16: "Half", torch.bfloat16: "Bfloat"}
HERE = Path(__file__).parent


def check(backend):
    """Raises ValueError for a backend that is not in `BACKENDS`."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}")


def is_integer(tensor):
    """True for a tensor of integers, signed or not; bool is none."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def check_lengths(name, length, batch, limit):
    """Checks lengths: integers [batch] in 0..limit; their values on the CPU only, for on a GPU that would wait for it.

    Args:
        name: what messages call them. length: tensor. batch, limit: int.
    Raises:
        ValueError: they are not.
    """
    if length.shape != (batch,) or not is_integer(length):
        raise ValueError(f"{name} must be integers [{batch}], got {length.dtype} {tuple(length.shape)}")
    # as int64, for PyTorch compares no unsigned integers
    if length.device.type == "cpu" and not ((0 <= length.long()) & (length.long() <= limit)).all():
        raise ValueError(f"{name} must lie in 0..{limit}, got {length.tolist()}")


def choose(backend, device, *, function, tensor):
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
def _warn_of_torch(function, reason):
    warnings.warn(f"{function} uses its slower torch backend: {reason}", stacklevel=4)


def why_no_cuda(device, tensor="the tensor"):
    """Why a CUDA kernel cannot serve tensors on a device, in one sentence; None where it can."""
    if device.type != "cuda":
        return f"{tensor} is on {device.type}, not on a CUDA device; move it there, or use backend='auto'"
    if torch.version.hip:
        return "this PyTorch is built for ROCm, and the kernel needs CUDA"
    return _why_no_cupy()


@functools.cache
def _why_no_cupy():
    try:
        import cupy  # noqa: F401
    except ImportError as error:
        return f"CuPy cannot be imported ({error}); pip install cupy-cuda12x or cupy-cuda13x, as your CUDA is"
    return None


# --- numba ---


@functools.cache
def jit(function):
    """The function compiled by numba, without the GIL, kept for other processes where there is a folder for it."""
    # numba takes a second to import; those who only use the torch backend do not pay for it
    from numba import njit
    from numba.core import event

    try:
        compiled = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # there is no folder that numba can write its cache to
        compiled = njit(nogil=True)(function)
    event.register("numba:compile", _announcer(function))
    return compiled


def _announcer(function):
    from numba.core import event

    class Announcer(event.Listener):
        """Says that a function is compiled; numba tells it so only where the function is not on disk already."""

        def on_start(self, event):
            """Speaks for the one function."""
            if event.data["dispatcher"].py_func is function:
                announce(
                    f"Compiling {function.__module__}.{function.__name__.strip('_')} for this CPU; this takes about 5 "
                    "seconds, and only once where numba can keep it on disk."
                )

        def on_end(self, event):
            """Nothing: what follows speaks for itself."""

    return Announcer()


def on_cpu(tensor, dtype):
    """NumPy array of a tensor in a dtype, rows contiguous; the tensor's own memory where it is so already."""
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

    def shared_budget(self, blocks):
        """Bytes a block may use so that as many blocks as a multiprocessor will get, up to 4, live on it together."""
        together = min(-(-blocks // self.multiprocessors), 4)
        # 1 KiB of each block is the system's
        return max(min(self.shared_per_block, self.shared_per_multiprocessor // together - 1024), 0)


@functools.cache
def device(index):
    """Facts of CUDA device `index`."""
    import cupy

    attributes = cupy.cuda.Device(index).attributes
    return Device(
        multiprocessors=attributes["MultiProcessorCount"],
        shared_per_block=attributes["MaxSharedMemoryPerBlockOptin"],
        shared_per_multiprocessor=attributes["MaxSharedMemoryPerMultiprocessor"],
        capability=10 * attributes["ComputeCapabilityMajor"] + attributes["ComputeCapabilityMinor"],
    )


def source(name):
    """CUDA source of a kernel: elements.cu and its own file in one text: CuPy's cache does not see headers."""
    return f'{(HERE / "elements.cu").read_text()}#line 1 "{name}.cu"\n{(HERE / f"{name}.cu").read_text()}'


def run(name, macro, index, blocks, threads, arguments, *, shared_bytes):
    """Launches kernel `name` of name.cu, compiled with -Dmacro, on PyTorch's current stream of device `index`.

    Raises:
        RuntimeError: it does not compile (with the compiler's log). CuPy's own errors where it does not launch.
    """
    import cupy

    stream = cupy.cuda.ExternalStream(torch.cuda.current_stream(index).cuda_stream, index)
    with cupy.cuda.Device(index), stream:
        _compiled(name, macro, index)((blocks,), (threads,), arguments, shared_mem=shared_bytes)


@functools.cache
def _compiled(name, macro, index):
    import cupy

    announce(f"Compiling {name}.cu for this GPU; this takes some seconds, and none where CuPy has kept it on disk.")
    kernel = cupy.RawKernel(source(name), name, ("--std=c++17", f"-D{macro}"))
    try:
        kernel.max_dynamic_shared_size_bytes = device(index).shared_per_block
    except cupy.cuda.compiler.CompileException as error:
        raise RuntimeError(f"{name}.cu does not compile for {macro}:\n{error}") from error
    return kernel


def readable(integers, device):
    """Lengths or labels as kernels read them: on the device, contiguous, int32 or int64."""
    integers = integers.to(device)
    return (integers if integers.dtype in (torch.int32, torch.int64) else integers.long()).contiguous()


def pointer(tensor):
    """A tensor's address as a kernel argument; 0 for None."""
    return np.uint64(0 if tensor is None else tensor.data_ptr())

"""How a CUDA source of ours is compiled by CuPy and launched.

A kernel runs on PyTorch's current stream, on PyTorch's memory; nothing here waits for the device, so that it can be
captured in a CUDA graph once a first call has compiled it.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nemo_comat.waiting import announce

ELEMENTS = {torch.float32: "float", torch.float16: "Half", torch.bfloat16: "Bfloat"}
HERE = Path(__file__).parent


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
            "(pip install 'cupy-cuda12x[ctk]' or 'cupy-cuda13x[ctk]', as your CUDA is), or uninstall CuPy: "
            "PyTorch searches then, more slowly"
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

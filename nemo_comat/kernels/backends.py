"""Backends: which of cuda, cpu and torch computes.

The functions that search (`monotonic_align`, `ctc_viterbi`) have three backends each, which give the same answer:
`cuda` (a kernel of our own, compiled by CuPy), `cpu` (numba, serial, without the GIL) and `torch` (on any device).
"""

import functools
import importlib.util
import warnings
from typing import Literal, get_args

import torch
from torch import Tensor

Backend = Literal["auto", "cuda", "cpu", "torch"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
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

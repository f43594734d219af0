"""Functions that numba compiles for the CPU, and the arrays that they read."""

import functools
from collections.abc import Callable
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from nemo_comat.waiting import announce


@functools.cache
def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled by numba, without the GIL, kept for other processes where there is a folder with room.

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

    @functools.wraps(compiled)
    def call(*arguments: Any) -> Any:
        """The compiled function."""
        try:
            return compiled(*arguments)
        except OSError as error:  # compiled, and no room on the disk to keep it
            announce(
                f"numba cannot keep {function.__module__} on disk ({error.strerror}): other processes compile anew."
            )
            return compiled(*arguments)

    return call


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

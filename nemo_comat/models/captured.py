"""What a model's parts give while the model works: NeMo's own steps need not be copied for it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn


class InputOf(NamedTuple):
    """Says of a module that what it gets is wanted, before its other hooks see it, and not what it gives."""

    module: nn.Module


def first_input(args: Any, kwargs: Any) -> Any:
    """The input of a module's call; Conformers of NeMo name their layers'.

    Examples:
        >>> first_input((1, 2), {}), first_input((), {"x": 1, "pad_mask": 2})
        (1, 1)
    """
    return kwargs["x"] if "x" in kwargs else args[0]


@contextmanager
def captured(**modules: nn.Module | InputOf) -> Iterator[dict[str, Any]]:
    """Keeps the first output, or input, of each module called inside the block; InterCTC calls the decoder again.

    Args:
        modules: a module, or an `InputOf` one, for each name.
    Yields:
        dict from name to what was given, filled while the block runs.
    Examples:
        >>> import torch
        >>> layer = nn.Linear(2, 1)
        >>> with captured(layer=layer) as seen:
        ...     first, second = layer(torch.zeros(2)), layer(torch.ones(2))
        >>> seen["layer"] is first
        True
    """
    seen: dict[str, Any] = {}

    def keep_output(name: str) -> Callable[[nn.Module, Any, Any], None]:
        """A hook that keeps the first output under a name."""

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen.setdefault(name, output)

        return hook

    def keep_input(name: str) -> Callable[[nn.Module, Any, Any], None]:
        """A hook that keeps the first input under a name."""

        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            seen.setdefault(name, first_input(args, kwargs))

        return hook

    handles = [
        wanted.module.register_forward_pre_hook(keep_input(name), prepend=True, with_kwargs=True)
        if isinstance(wanted, InputOf)
        else wanted.register_forward_hook(keep_output(name))
        for name, wanted in modules.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()

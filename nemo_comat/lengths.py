"""Lengths of a batch's rows: looked at, and as masks."""

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
    # as int64, for PyTorch compares no other unsigned integers with them
    length = length.to(device or length.device, torch.int64)
    return torch.arange(size, device=length.device) < length[:, None]


def is_integer(tensor: Tensor) -> bool:
    """True for a tensor of integers, signed or not; bool is none.

    Examples:
        >>> is_integer(torch.tensor([1])), is_integer(torch.tensor([True]))
        (True, False)
    """
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def check_lengths(name: str, length: Tensor, batch: int, limit: int) -> None:
    """Checks lengths: integers [batch] in 0..limit; their values on the CPU only, for on a GPU that would wait for it.

    Args:
        name: what messages call them. length: tensor. batch, limit: int.
    Raises:
        ValueError: they are not.
    Examples:
        >>> check_lengths("text_len", torch.tensor([3, 9]), 2, 5)
        Traceback (most recent call last):
        ValueError: text_len must lie in 0..5, got [3, 9]
    """
    if length.shape != (batch,) or not is_integer(length):
        raise ValueError(f"{name} must be integers [{batch}], got {length.dtype} {tuple(length.shape)}")
    # as int64, for PyTorch compares no unsigned integers
    if length.device.type == "cpu" and not ((0 <= length.long()) & (length.long() <= limit)).all():
        raise ValueError(f"{name} must lie in 0..{limit}, got {length.tolist()}")


def check_both_lengths(shape: torch.Size, seg_len: Tensor, text_len: Tensor) -> None:
    """`check_lengths` of the segments and the tokens of a score.

    Args:
        shape: [B, S, N] of the score. seg_len, text_len: of its segments and tokens.
    Raises:
        ValueError: as `check_lengths`.
    Examples:
        >>> check_both_lengths(torch.Size([1, 3, 2]), torch.tensor([3]), torch.tensor([3]))
        Traceback (most recent call last):
        ValueError: text_len must lie in 0..2, got [3]
    """
    for name, length, limit in (("seg_len", seg_len, shape[1]), ("text_len", text_len, shape[2])):
        check_lengths(name, length, shape[0], limit)

"""How tensors get to a device."""

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on a device, without waiting for the device.

    Args:
        tensor: on the CPU. device: torch.device.
    Examples:
        >>> upload(torch.tensor([1, 2]), torch.device("cpu"))
        tensor([1, 2])
    """
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

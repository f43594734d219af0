"""Audio that is no sound: a batch is trained on without it."""

from typing import Any

import torch
from torch import Tensor

# a sample's most, as large as 32-bit integers that were not scaled; the spectrogram of a larger one may overflow
LOUDEST = 2.0**31


def silence_bad_audio(batch: Any) -> tuple[Any, Tensor]:
    """Turns rows of a batch whose audio has NaN, infinite or impossibly loud samples into silence that says nothing.

    One such row makes NeMo's loss NaN, and by it all weights and the statistics of batch norm. Nothing here waits for
    the device.

    Args:
        batch: signal [B, samples, …], signal_len [B], transcript [B, U] and transcript_len [B]; or DALI's, which stays.
    Returns:
        the batch, and [B] bool, True = bad.
    Examples:
        >>> batch = torch.tensor([[0.5], [float("nan")]]), torch.tensor([1, 1]), torch.zeros(2, 1), torch.tensor([1, 1])
        >>> (signal, _, _, transcript_len), bad = silence_bad_audio(batch)
        >>> signal.tolist(), transcript_len.tolist(), bad.tolist()
        ([[0.5], [0.0]], [1, 0], [False, True])
    """
    signal, signal_len, transcript, transcript_len = batch
    if not isinstance(batch, (tuple, list)):  # of DALI, whose class says more than its four tensors
        return batch, torch.zeros_like(transcript_len, dtype=torch.bool)
    bad = ~(signal.float().abs() <= LOUDEST).flatten(1).all(1)
    signal = torch.where(bad.view(-1, *[1] * (signal.dim() - 1)), 0, signal)
    batch = signal, signal_len, transcript, torch.where(bad, 0, transcript_len)
    return batch, bad

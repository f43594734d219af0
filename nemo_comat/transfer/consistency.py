"""Consistency: two views of one utterance are to be heard alike."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nemo_comat.lengths import length_mask


def consistency_loss(log_probs: Tensor, frame_len: Tensor) -> Tensor:
    """Each row's KL divergence from its other view: loss[b] = sum over t of KL(other[b, t] || own[b, t]).

    The other view is a target and gets no gradient; both views are rows, so the mean over rows is the symmetric loss.

    Args:
        log_probs: [2 B, T, V] log-posteriors; rows b and b + B are two views of one utterance.
        frame_len: [2 B] valid frames, the same for both views; what is beyond them counts for nothing.
    Returns:
        [2 B] float32, summed over frames.
    Raises:
        ValueError: the number of rows is odd.
    Source: CR-CTC, arXiv 2410.05101.
    Examples:
        >>> same = torch.tensor([[[0.5, 0.5]], [[0.5, 0.5]]]).log()
        >>> consistency_loss(same, torch.tensor([1, 1])).tolist()
        [0.0, 0.0]
    """
    if len(log_probs) % 2:
        raise ValueError(f"log_probs must be [2 B, T, V], two views of each utterance; got {tuple(log_probs.shape)}")
    valid = length_mask(frame_len, log_probs.shape[1])
    with torch.autocast(log_probs.device.type, enabled=False):
        # a frame of padding need not be finite: what it holds is not even read
        own = torch.where(valid[..., None], log_probs.float(), 0)
        other = own.detach().roll(len(own) // 2, 0)
        return F.kl_div(own, other, reduction="none", log_target=True).sum((1, 2))

"""Frames: which of them can be used, and each of them as a segment of its own."""

import torch
from torch import nn

from nemo_comat.compress.segments import Compressed


def usable_frames(hidden, frame_len):
    """Zeroes padding, and whole rows that are not finite: times 0 they would still be NaN in a layer's gradient.

    Args:
        hidden: [B, T, D]; gets gradients where it is kept.
        frame_len: [B] valid frames.
    Returns:
        hidden [B, T, D]; inside [B, T] bool, True = a frame that is no padding; usable [B] bool, rows that have frames,
        all of them finite.
    """
    inside = torch.arange(hidden.shape[1], device=hidden.device) < frame_len.to(hidden.device)[:, None]
    usable = (hidden.isfinite().all(2) | ~inside).all(1) & inside.any(1)
    return torch.where((inside & usable[:, None])[..., None], hidden, 0), inside, usable


class FrameCompressor(nn.Module):
    """Compresses nothing: each valid frame is a segment of its own; no parameters."""

    def __init__(self):
        super().__init__()

    def forward(self, hidden, frame_len, log_probs, targets, target_len, text_len, n_tokens):
        """Frames as segments.

        Args:
            hidden: [B, T, D] encoder frames; gets gradients.
            frame_len: [B] valid frames.
            log_probs: [B, T, V] CTC log-posteriors; a segment's label is its frame's greedy one.
            targets, target_len, text_len, n_tokens: not read.
        Returns:
            Compressed with S = T.
        """
        frame = torch.arange(hidden.shape[1], device=hidden.device)
        inside = frame < frame_len.to(hidden.device)[:, None]
        return Compressed(
            segments=torch.where(inside[..., None], hidden, 0),
            seg_len=inside.sum(1),
            seg_of_frame=torch.where(inside, frame, -1),
            seg_label=torch.where(inside, log_probs.detach().argmax(2), -1),
            loss=hidden.new_zeros(len(hidden)),
        )

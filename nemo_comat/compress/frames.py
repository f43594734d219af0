"""Frames: which of them can be used, and each of them as a segment of its own."""

import torch
from torch import Tensor, nn

from nemo_comat.compress.segments import Compressed
from nemo_comat.lengths import length_mask


def usable_frames(hidden: Tensor, frame_len: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Zeroes padding, and whole rows that are not finite: times 0 they would still be NaN in a layer's gradient.

    Args:
        hidden: [B, T, D]; gets gradients where it is kept.
        frame_len: [B] valid frames.
    Returns:
        hidden [B, T, D]; inside [B, T] bool, True = a frame that is no padding; usable [B] bool, rows that have frames,
        all of them finite.
    Examples:
        >>> hidden = torch.tensor([[[1.0], [9.0]], [[float("nan")], [2.0]]])
        >>> hidden, inside, usable = usable_frames(hidden, torch.tensor([1, 2]))
        >>> hidden.flatten(1).tolist(), inside.tolist(), usable.tolist()
        ([[1.0, 0.0], [0.0, 0.0]], [[True, False], [True, True]], [True, False])
    """
    inside = length_mask(frame_len, hidden.shape[1], device=hidden.device)
    usable = (hidden.isfinite().all(2) | ~inside).all(1) & inside.any(1)
    return torch.where((inside & usable[:, None])[..., None], hidden, 0), inside, usable


class FrameCompressor(nn.Module):
    """Compresses nothing: each valid frame is a segment of its own; no parameters.

    Examples:
        >>> hidden, log_probs = torch.ones(1, 3, 4), torch.eye(3)[None].log()
        >>> FrameCompressor()(hidden, torch.tensor([2]), log_probs, None, None, None, 0).seg_of_frame.tolist()
        [[0, 1, -1]]
    """

    def forward(
        self,
        hidden: Tensor,
        frame_len: Tensor,
        log_probs: Tensor,
        targets: Tensor,
        target_len: Tensor,
        text_len: Tensor,
        n_tokens: int,
    ) -> Compressed:
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
        inside = length_mask(frame_len, hidden.shape[1], device=hidden.device)
        return Compressed(
            segments=torch.where(inside[..., None], hidden, 0),
            seg_len=inside.sum(1),
            seg_of_frame=torch.where(inside, frame, -1),
            seg_label=torch.where(inside, log_probs.detach().argmax(2), -1),
            loss=hidden.new_zeros(len(hidden)),
        )

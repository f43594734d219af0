"""Compress, align, transfer, in this order: the training loss without the recogniser around it."""

from typing import NamedTuple

import torch
from torch import nn

from nemo_comat.align import monotonic_align
from nemo_comat.compress import Compressed, CTCCompressor
from nemo_comat.transfer import Projection, TransferLoss, cosine_score, token_average


class ComatOutput(NamedTuple):
    """What one batch gave.

    loss: [B] transfer loss, summed over a row's tokens; 0 for inactive rows. active: [B] bool, rows that took part.
    text_len: [B] tokens of the active rows, 0 for the others. score: [B, S, N]. path: [B, S] int32 token per segment.
    compressed: the segments before projection.
    """

    loss: torch.Tensor
    active: torch.Tensor
    text_len: torch.Tensor
    score: torch.Tensor
    path: torch.Tensor
    compressed: Compressed


class CompressAlignTransfer(nn.Module):
    """The loss that pulls an encoder's segments to a language model's token embeddings.

    A row is inactive, which means loss 0 and no gradient, when it has fewer segments than tokens, no tokens, no CTC
    path, or a score that is not finite along every path.

    Args:
        feat_in: width of the encoder's frames.
        blank: id of the CTC blank.
        compress, align, projection, transfer: the arguments of `CTCCompressor`, `monotonic_align`, `Projection` and
            `TransferLoss`, as mappings.
    """

    def __init__(self, feat_in, blank, *, compress, align, projection, transfer):
        super().__init__()
        self.compressor = CTCCompressor(blank, **compress)
        self.align = dict(align)
        self.projection = Projection(feat_in, **projection)
        self.transfer = TransferLoss(**transfer)

    def forward(self, hidden, frame_len, log_probs, targets, target_len, teacher):
        """One batch's loss.

        Args:
            hidden: [B, T, D] encoder frames; gets gradients.
            frame_len: [B] valid frames.
            log_probs: [B, T, V] CTC log-posteriors.
            targets, target_len: [B, U] and [B] the reference in the recogniser's tokens.
            teacher: `nemo_comat.teacher.TeacherOutput` with embeddings [B, N, Dp] for the same rows.
        Returns:
            ComatOutput.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            compressed = self.compressor(hidden.float(), frame_len, log_probs.float(), targets, target_len)
            # one frame that overflowed in half precision would turn the projection's gradient into NaN
            finite = compressed.segments.isfinite().all(-1, keepdim=True)
            student = self.projection(torch.where(finite, compressed.segments, 0))
            score = cosine_score(student, teacher.embeddings).masked_fill(~finite, float("nan"))
            path = monotonic_align(score, compressed.seg_len, teacher.text_len, **self.align)
            active = (path >= 0).any(1)
            text_len = torch.where(active, teacher.text_len, 0)
            mask = torch.arange(score.shape[2], device=score.device) < text_len[:, None]
            student = token_average(student, path, score.shape[2])
            loss = self.transfer(student, teacher.embeddings, mask, teacher.token_id)
        return ComatOutput(loss, active, text_len, score, path, compressed)

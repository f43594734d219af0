"""Compress, align, transfer, in this order: the training loss without the recogniser around it."""

from inspect import signature
from typing import NamedTuple

import torch
from torch import nn

from nemo_comat.align import MonotonicAligner, OneToOneAligner, SinkhornAligner, plan_average
from nemo_comat.compress import (
    AttentionCompressor,
    CIFCompressor,
    Compressed,
    CTCCompressor,
    FrameCompressor,
    usable_frames,
)
from nemo_comat.transfer import Projection, TransferLoss, cosine_score, token_average

# by `method`; the first is the default
COMPRESSORS = {"ctc": CTCCompressor, "cif": CIFCompressor, "attention": AttentionCompressor, "none": FrameCompressor}
ALIGNERS = {"monotonic": MonotonicAligner, "one_to_one": OneToOneAligner, "sinkhorn": SinkhornAligner}


class ComatOutput(NamedTuple):
    """What one batch gave.

    loss: [B] transfer loss, summed over a row's tokens, plus compressed.loss; 0 for inactive rows. active: [B] bool,
    rows that took part. text_len: [B] tokens of the active rows, 0 for the others. score: [B, S, N]. path: [B, S] int32
    token per segment, the likeliest where the alignment is soft. compressed: the segments before projection, its loss 0
    for inactive rows.
    """

    loss: torch.Tensor
    active: torch.Tensor
    text_len: torch.Tensor
    score: torch.Tensor
    path: torch.Tensor
    compressed: Compressed

    @property
    def alignment_score(self):
        """Scalar, the mean over active rows' segments of score[b, s, path[b, s]]; 0 where no row is active."""
        along = self.score.gather(2, self.path.clamp(min=0).long()[..., None])[..., 0]
        aligned = self.path >= 0
        return torch.where(aligned, along, 0).sum() / aligned.sum().clamp(min=1)


class CompressAlignTransfer(nn.Module):
    """The loss that pulls an encoder's segments to a language model's token embeddings.

    A row is inactive, which means loss 0 and no gradient, when it has no tokens, no segments (for want of frames or a
    CTC path), fewer of them than tokens where the alignment is monotonic, a frame that is not finite, or a score that
    is not finite along every path.

    Args:
        feat_in: width of the encoder's frames.
        blank: id of the CTC blank.
        compress, align: a `method` (a key of `COMPRESSORS` or `ALIGNERS`, by default the first) and the options of its
            class, as a mapping. Options of the other methods' classes may be there and are not read.
        projection, transfer: the arguments of `Projection` and `TransferLoss`, as mappings.
    Raises:
        ValueError: a method or an option is unknown, or does not fit feat_in.
    """

    def __init__(self, feat_in, blank, *, compress, align, projection, transfer):
        super().__init__()
        self.compressor = _chosen("compress", COMPRESSORS, compress, feat_in=feat_in, blank=blank)
        self.aligner = _chosen("align", ALIGNERS, align)
        self.projection = Projection(feat_in, **projection)
        self.transfer = TransferLoss(**transfer)

    def set_blank(self, blank):
        """Follows a recogniser whose vocabulary has changed.

        Args:
            blank: the new id of the CTC blank; methods that do not look at labels need none.
        """
        if isinstance(self.compressor, CTCCompressor):
            self.compressor.options["blank"] = blank

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
            hidden, _, usable = usable_frames(hidden.float(), frame_len)
            compressed = self.compressor(
                hidden,
                frame_len,
                log_probs.float(),
                targets,
                target_len,
                teacher.text_len,
                teacher.embeddings.shape[1],
            )
            compressed = compressed._replace(seg_len=torch.where(usable, compressed.seg_len, 0))
            # a sum that overflowed would turn the projection's gradient into NaN
            finite = compressed.segments.isfinite().all(-1, keepdim=True)
            student = self.projection(torch.where(finite, compressed.segments, 0))
            score = cosine_score(student, teacher.embeddings).masked_fill(~finite, float("nan"))
            path, plan = self.aligner(score, compressed.seg_len, teacher.text_len)
            active = (path >= 0).any(1)
            text_len = torch.where(active, teacher.text_len, 0)
            mask = torch.arange(score.shape[2], device=score.device) < text_len[:, None]
            compressed = compressed._replace(loss=torch.where(active, compressed.loss, 0))
            student = token_average(student, path, score.shape[2]) if plan is None else plan_average(student, plan)
            loss = self.transfer(student, teacher.embeddings, mask, teacher.token_id) + compressed.loss
        return ComatOutput(loss, active, text_len, score, path, compressed)


def _chosen(step, classes, options, **given):
    """Builds the class that options["method"] names from those of the options that its constructor takes."""
    options = dict(options)
    method = options.pop("method", next(iter(classes)))
    if method not in classes:
        raise ValueError(f"{step}.method must be one of {', '.join(classes)}; got {method!r}")
    known = {key for cls in classes.values() for key in signature(cls).parameters} - set(given)
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(f"{step} does not know {', '.join(unknown)}; its options are {', '.join(sorted(known))}")
    options.update(given)
    cls = classes[method]
    return cls(**{key: options[key] for key in signature(cls).parameters if key in options})

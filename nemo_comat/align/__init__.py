"""Align: which segment belongs to which token. The aligners all take (score, seg_len, text_len)."""

from nemo_comat.align.monotonic import (
    MonotonicAligner,
    OneToOneAligner,
    monotonic_align,
    one_to_one_align,
    segment_log_softmax,
)
from nemo_comat.align.sinkhorn import SinkhornAligner, plan_average, sinkhorn

__all__ = [
    "MonotonicAligner",
    "OneToOneAligner",
    "SinkhornAligner",
    "monotonic_align",
    "one_to_one_align",
    "plan_average",
    "segment_log_softmax",
    "sinkhorn",
]

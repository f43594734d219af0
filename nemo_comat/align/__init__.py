"""Align: which segment belongs to which token. Every aligner gives a path, or a soft plan."""

from nemo_comat.align.monotonic import (
    MonotonicAligner,
    monotonic_align,
    segment_log_softmax,
)
from nemo_comat.align.one_to_one import OneToOneAligner, one_to_one_align
from nemo_comat.align.sinkhorn import SinkhornAligner, plan_average, sinkhorn
from nemo_comat.align.words import segment_words, within_words

__all__ = [
    "MonotonicAligner",
    "OneToOneAligner",
    "SinkhornAligner",
    "monotonic_align",
    "one_to_one_align",
    "plan_average",
    "segment_log_softmax",
    "segment_words",
    "sinkhorn",
    "within_words",
]

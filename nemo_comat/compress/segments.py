"""Segments: what every way to compress gives."""

from typing import NamedTuple

from torch import Tensor


class Compressed(NamedTuple):
    """Segments of a batch.

    segments: [B, S, D] pooled frames, 0 on padding. seg_len: [B] int64 segments per row.
    seg_of_frame: [B, T] int64 segment of each frame, -1 on padding and dropped frames. seg_label: [B, S] int64 CTC
    label of each segment, -1 on padding and where segments have none. loss: [B] what the compression itself adds to
    the transfer loss, else 0.
    """

    segments: Tensor
    seg_len: Tensor
    seg_of_frame: Tensor
    seg_label: Tensor
    loss: Tensor

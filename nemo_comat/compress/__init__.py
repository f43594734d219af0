"""Compress: an utterance's frames become segments. Every way to do it gives `Compressed`."""

from nemo_comat.compress.attention import AttentionCompressor
from nemo_comat.compress.cif import CIFCompressor, cif_weights, quantity_loss
from nemo_comat.compress.ctc import (
    BLANKS,
    LABELS,
    POOLS,
    Blanks,
    CTCCompressor,
    Labels,
    Pool,
    ctc_compress,
    run_segments,
)
from nemo_comat.compress.frames import FrameCompressor, usable_frames
from nemo_comat.compress.segments import Compressed
from nemo_comat.compress.viterbi import ctc_viterbi
from nemo_comat.pooling import pool_segments

__all__ = [
    "BLANKS",
    "LABELS",
    "POOLS",
    "AttentionCompressor",
    "Blanks",
    "CIFCompressor",
    "CTCCompressor",
    "Compressed",
    "FrameCompressor",
    "Labels",
    "Pool",
    "cif_weights",
    "ctc_compress",
    "ctc_viterbi",
    "pool_segments",
    "quantity_loss",
    "run_segments",
    "usable_frames",
]

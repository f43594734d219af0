"""Transfer: aligned segments are projected to the teacher's space, and learn its tokens or their embeddings."""

from nemo_comat.transfer.classify import classify_tokens
from nemo_comat.transfer.consistency import consistency_loss
from nemo_comat.transfer.context import Context, segment_mask
from nemo_comat.transfer.distribution import token_divergence
from nemo_comat.transfer.feedback import Feedback
from nemo_comat.transfer.losses import (
    LOSSES,
    REDUCTIONS,
    VOCABULARY_LOSSES,
    Loss,
    Reduction,
    TransferLoss,
    cosine_score,
    reduce_rows,
    token_average,
    transfer_loss,
)
from nemo_comat.transfer.normalize import (
    NORMALIZE,
    Normalize,
    TeacherNormalization,
    VectorStatistics,
    normalize_vectors,
    vector_statistics,
)
from nemo_comat.transfer.projection import Projection

__all__ = [
    "LOSSES",
    "NORMALIZE",
    "REDUCTIONS",
    "VOCABULARY_LOSSES",
    "Context",
    "Feedback",
    "Loss",
    "Normalize",
    "Projection",
    "Reduction",
    "TeacherNormalization",
    "TransferLoss",
    "VectorStatistics",
    "classify_tokens",
    "consistency_loss",
    "cosine_score",
    "normalize_vectors",
    "reduce_rows",
    "segment_mask",
    "token_average",
    "token_divergence",
    "transfer_loss",
    "vector_statistics",
]

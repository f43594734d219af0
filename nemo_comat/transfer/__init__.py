"""Transfer: aligned segments are projected to the teacher's space and pulled to its embeddings."""

from nemo_comat.transfer.losses import (
    LOSSES,
    REDUCTIONS,
    TransferLoss,
    cosine_score,
    reduce_rows,
    token_average,
    transfer_loss,
)
from nemo_comat.transfer.projection import Projection

__all__ = [
    "LOSSES",
    "REDUCTIONS",
    "Projection",
    "TransferLoss",
    "cosine_score",
    "reduce_rows",
    "token_average",
    "transfer_loss",
]

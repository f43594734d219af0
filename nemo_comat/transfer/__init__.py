"""Transfer: from aligned segments to the loss that pulls them to the teacher's embeddings."""

from nemo_comat.transfer.losses import (
    LOSSES,
    REDUCTIONS,
    Projection,
    TransferLoss,
    cosine_score,
    reduce_rows,
    token_average,
    transfer_loss,
)

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

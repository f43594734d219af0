"""What a softmax over the teacher's vocabulary needs: which of its tokens take part, and the log of its sum."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# rows of the table whose logits are in memory at a time
TOGETHER = 16384


def candidate_ids(token_id: Tensor, mask: Tensor, size: int, negatives: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ids of the batch's tokens, and ids drawn from the vocabulary; shapes depend on shapes alone.

    Args:
        token_id: [B, N], or any other shape. mask: bool of that shape, True = an id that counts. size: V.
        negatives: ids to draw. seed: of the draw; equal seeds draw equal ids.
    Returns:
        [B * N + negatives] int64, sorted; and bool of the same shape, True = a padding or a repeated id.
    Source: ours; sampled softmax, arXiv 1412.2007, without its correction.
    Examples:
        >>> ids, again = candidate_ids(torch.tensor([[3, 3, 9]]), torch.tensor([[True, True, False]]), 10, 0, 0)
        >>> ids[~again]
        tensor([3])
    """
    device = token_id.device
    drawn = torch.randint(size, (negatives,), generator=torch.Generator(device).manual_seed(seed), device=device)
    ids = torch.cat([torch.where(mask, token_id, -1).flatten(), drawn]).sort().values
    again = F.pad(ids[1:] == ids[:-1], (1, 0)) | (ids < 0)
    return ids.clamp(min=0), again


def candidates(
    token_id: Tensor, mask: Tensor, table: Tensor, negatives: int | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Rows of the table for a softmax, and which of them stay out of it.

    Args:
        token_id, mask, seed: as in `candidate_ids`.
        table: [V, D].
        negatives: as in `candidate_ids`; None takes all rows.
    Returns:
        [C, D] and bool [C]; C depends on shapes alone, and is V where that is less than there are candidates.
    Examples:
        >>> table = torch.tensor([[1.0], [2.0], [3.0]])
        >>> candidates(torch.tensor([2]), torch.tensor([True]), table, negatives=0, seed=0)
        (tensor([[3.]]), tensor([False]))
    """
    if negatives is None:
        return table, torch.zeros(len(table), dtype=torch.bool, device=table.device)
    ids, out = candidate_ids(token_id, mask, len(table), negatives, seed)
    if len(ids) < len(table):
        return table[ids], out
    # what is out goes to a bin of its own, which is cut off
    chosen = torch.zeros(len(table) + 1, dtype=torch.bool, device=table.device)
    return table, ~chosen.index_fill(0, torch.where(out, len(table), ids), True)[:-1]


def log_sum_exp(student: Tensor, table: Tensor, out: Tensor, temperature: float) -> Tensor:
    """Log of the sum of exp(cos(student, row) / temperature) over the rows of a table that are not out.

    A part of the logits is made at a time, and again for the gradient: of 250,000 tokens they would take gigabytes.

    Args:
        student: [B, N, D] float32 of length 1; gets gradients.
        table: [C, D]; gets none.
        out: [C] bool. temperature: above 0.
    Returns:
        [B, N] float32; -inf, without a gradient, where all rows are out.
    Examples:
        >>> student, table = torch.tensor([[[1.0, 0.0]]]), torch.eye(2)
        >>> log_sum_exp(student, table, torch.tensor([False, True]), temperature=0.5)
        tensor([[2.]])
    """

    def of_part(student: Tensor, rows: Tensor, out: Tensor) -> Tensor:
        """The same of some rows of the table."""
        logits = student @ F.normalize(rows.float(), dim=-1).T / temperature
        return logits.masked_fill(out, float("-inf")).logsumexp(-1)

    with torch.autocast(student.device.type, enabled=False):
        parts = [
            checkpoint(of_part, student, *part, use_reentrant=False, preserve_rng_state=False)
            for part in zip(table.detach().split(TOGETHER), out.split(TOGETHER))
        ]
    return torch.stack(parts).logsumexp(0)

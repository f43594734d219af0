"""What a softmax over the teacher's vocabulary needs: which of its tokens take part, and the log of its sum."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

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

    Under autocast the products have its dtype, as a linear layer's do. A part of the logits is made at a time, since of
    250,000 tokens they would take gigabytes, and but once: the gradient is found beside the sum.

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
    dtype = _products(student)
    with torch.autocast(student.device.type, enabled=False):
        return cast(Any, _LogSumExp).apply(student, table.detach(), out, temperature, dtype)  # type: ignore[no-any-return]


def own_logit(student: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """cos(student, row) / temperature, rounded as `log_sum_exp` rounds it, so that the two cancel where it is alone.

    Args:
        student: [B, N, D] float32 of length 1; gets gradients. rows: [B, N, D]; gets none. temperature: above 0.
    Returns:
        [B, N] float32.
    Examples:
        >>> own_logit(torch.tensor([[[0.6, 0.8]]]), torch.tensor([[[0.0, 2.0]]]), 0.5)
        tensor([[1.6000]])
    """
    dtype = _products(student)
    with torch.autocast(student.device.type, enabled=False):
        rows = F.normalize(rows.detach().float(), dim=-1).to(dtype).float()
        cosine = (student * rows).sum(-1)
        if dtype != torch.float32:
            rounded = (student.detach().to(dtype).float() * rows).sum(-1).to(dtype).float()
            cosine = cosine + (rounded - cosine.detach())
        return cosine / temperature


def _products(student: Tensor) -> torch.dtype:
    """What products with a student are made in: autocast's dtype, or float32."""
    device = student.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32


class _LogSumExp(torch.autograd.Function):
    """`log_sum_exp`, with products in a dtype; its gradient is that of the sum's parts, which forward keeps."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, table: Tensor, out: Tensor, temperature: float, dtype: torch.dtype
    ) -> Tensor:
        """[B, N] as `log_sum_exp`; keeps the mean row under the softmax, which is the gradient."""
        flat = student.detach().flatten(0, -2)
        if not len(table):
            ctx.save_for_backward(torch.zeros_like(student))
            return student.new_full(student.shape[:-1], float("-inf"))
        most = flat.new_full((len(flat), 1), float("-inf"))
        total, mean = torch.zeros_like(most), torch.zeros_like(flat)
        for rows, left_out in zip(table.split(TOGETHER), out.split(TOGETHER)):
            rows = F.normalize(rows.float(), dim=-1).to(dtype)
            logits = (flat.to(dtype) @ rows.T).float().div_(temperature).masked_fill_(left_out, float("-inf"))
            before, most = most, torch.maximum(most, logits.amax(-1, keepdim=True))
            # where all rows so far are out, anything finite does
            top = most.masked_fill(most == float("-inf"), 0)
            share, kept = logits.sub_(top).exp_(), (before - top).exp()
            total = total * kept + share.sum(-1, keepdim=True)
            if ctx.needs_input_grad[0]:
                mean = mean * kept + (share.to(dtype) @ rows).float()
        # the largest logit alone adds 1 to the total
        ctx.save_for_backward((mean / total.clamp(min=1) / temperature).view_as(student))
        return (most + total.log()).view(student.shape[:-1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        """The student's gradient; raises RuntimeError where a second one is asked for."""
        if torch.is_grad_enabled():  # by create_graph
            raise RuntimeError("the losses classify and distribution have no second derivative; drop create_graph=True")
        (mean,) = ctx.saved_tensors
        return gradient[..., None] * mean, None, None, None, None

"""Divergence from a language model's own token probabilities, its word embeddings' table for output weights."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nemo_comat.transfer.vocabulary import candidates, log_sum_exp


def token_divergence(
    student: Tensor,
    predicted: tuple[Tensor, Tensor],
    mask: Tensor,
    table: Tensor,
    *,
    temperature: float = 0.1,
    negatives: int | None = None,
    top_k: int = 32,
    seed: int = 0,
) -> Tensor:
    """sum_k p_k (log p_k - log q_k): p of the language model, q the softmax of cos(student, table) / temperature.

    Args:
        student: [B, N, D], finite; gets gradients.
        predicted: ids and probabilities [B, N, K], the largest first, of the tokens that the language model expects in
            each token's place. A token whose probabilities are all 0 has none, and costs nothing.
        mask: [B, N] bool, True = a token that counts.
        table: [V, D] the teacher's word embeddings; gets no gradient.
        temperature: of q alone, above 0.
        negatives: so many ids drawn from the vocabulary stand beside the expected tokens of the whole batch in q, each
            once; None takes the whole vocabulary.
        top_k: so many of the K probabilities are read, made to sum to 1.
        seed: of the draw; equal seeds draw equal ids.
    Returns:
        [B, N] float32, in nats; 0 where the mask is False.
    Source: ours; a language model's few largest probabilities as targets after Futami et al. 2020, arXiv 2008.03822.
    Examples:
        >>> student, table = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> predicted = torch.tensor([[[1, 0]]]), torch.tensor([[[0.5, 0.5]]])
        >>> token_divergence(student, predicted, torch.tensor([[True]]), table, temperature=1.0)
        tensor([[0.1201]])
    """
    token_id, share = (x[..., :top_k] for x in predicted)
    token_id, table = token_id.clamp(0, len(table) - 1), table.detach()
    with torch.autocast(student.device.type, enabled=False):
        student, share = F.normalize(student.float(), dim=-1), share.detach().float()
        share = torch.where(mask[..., None], share, 0)
        total = share.sum(-1, keepdim=True)
        known = total > 0
        share = torch.where(known, share / total, 0)
        # cosines are linear in the table's rows, so the mean of logits under p is the logit of their mean
        expected = (student * _mean_rows(token_id, share, table)).sum(-1) / temperature
        cross = torch.xlogy(share, share).sum(-1) - expected
        rows, out = candidates(token_id, share > 0, table, negatives, seed)
    return torch.where(known[..., 0], cross + log_sum_exp(student, rows, out, temperature), 0)


def _mean_rows(token_id: Tensor, share: Tensor, table: Tensor) -> Tensor:
    """[B, N, D] mean under share [B, N, K] of the table's rows, each of length 1; none of them is copied."""
    length = torch.linalg.vector_norm(table, dim=1, dtype=torch.float32).clamp(min=1e-12)
    # a row of zeros, as for padding, has no direction; a half-precision weight of it would overflow
    share = torch.where(length[token_id] > 1e-12, share, 0)
    weight = (share / length[token_id]).flatten(0, 1).to(table.dtype)
    mean = F.embedding_bag(token_id.flatten(0, 1), table, per_sample_weights=weight, mode="sum")
    return mean.view(*token_id.shape[:2], table.shape[1]).float()

"""Classification over the teacher's vocabulary, with the table of its word embeddings for output weights."""

import torch
from torch import Tensor
from torch.nn import functional as F


def classify_tokens(
    student: Tensor,
    token_id: Tensor,
    mask: Tensor,
    table: Tensor,
    *,
    temperature: float = 0.1,
    negatives: int | None = None,
    seed: int = 0,
) -> Tensor:
    """-log softmax of cos(student, table) / temperature at each token's own row of the table.

    Args:
        student: [B, N, D], finite; gets gradients.
        token_id: [B, N] the tokens' ids.
        mask: [B, N] bool, True = a token that counts.
        table: [V, D] the teacher's word embeddings; gets no gradient.
        temperature: above 0.
        negatives: so many ids drawn from the vocabulary stand beside the batch's own tokens in the softmax, each once;
            None takes the whole vocabulary.
        seed: of the draw; equal seeds draw equal ids.
    Returns:
        [B, N] float32; what the mask hides has a value that means nothing.
    Source: ours; the candidates after sampled softmax, arXiv 1412.2007, without its correction.
    Examples:
        >>> student, table = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> classify_tokens(student, torch.tensor([[0]]), torch.tensor([[True]]), table, temperature=1.0).exp()
        tensor([[1.3679]])
    """
    student, table = F.normalize(student.float(), dim=-1), table.detach()
    token_id = token_id.clamp(0, len(table) - 1)
    if negatives is None:
        logits = student @ F.normalize(table.float(), dim=-1).T / temperature
        own = logits.gather(2, token_id[..., None])[..., 0]
        return logits.logsumexp(2) - own
    own = (student * F.normalize(table[token_id].float(), dim=-1)).sum(-1) / temperature
    candidates, again = candidate_ids(token_id, mask, len(table), negatives, seed)
    logits = student @ F.normalize(table[candidates].float(), dim=-1).T / temperature
    # the own token is counted apart, and an id that was drawn twice once
    out = again | (candidates == token_id[..., None])
    others = logits.masked_fill(out, float("-inf")).logsumexp(2)
    return torch.logaddexp(own, others) - own


def candidate_ids(token_id: Tensor, mask: Tensor, size: int, negatives: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ids of the batch's tokens, and ids drawn from the vocabulary; shapes depend on shapes alone.

    Args:
        token_id: [B, N]. mask: [B, N] bool. size: V. negatives: ids to draw. seed: of the draw.
    Returns:
        [B * N + negatives] int64, sorted; and bool of the same shape, True = a padding or a repeated id.
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

"""Classification over the teacher's vocabulary, with the table of its word embeddings for output weights."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nemo_comat.transfer.vocabulary import candidates, log_sum_exp, own_logit


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
        [B, N] float32; 0 for what the mask hides.
    Source: ours; the candidates after sampled softmax, arXiv 1412.2007, without its correction.
    Examples:
        >>> student, table = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> classify_tokens(student, torch.tensor([[0]]), torch.tensor([[True]]), table, temperature=1.0).exp()
        tensor([[1.3679]])
    """
    student, table = F.normalize(student.float(), dim=-1), table.detach()
    token_id = token_id.clamp(0, len(table) - 1)
    own = own_logit(student, table[token_id], temperature)
    # a token that counts is one of them
    rows, out = candidates(token_id, mask, table, negatives, seed)
    return torch.where(mask, log_sum_exp(student, rows, out, temperature) - own, 0)

"""Losses: each text token's segments are averaged, and the average learns the token or its embedding."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nemo_comat.pooling import pool_segments
from nemo_comat.transfer.classify import classify_tokens
from nemo_comat.transfer.distribution import token_divergence

Loss = Literal["cosine", "mse", "contrastive", "classify", "distribution"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
# those that read the teacher's table of word embeddings, a row for each token of its vocabulary
VOCABULARY_LOSSES: tuple[Loss, ...] = ("classify", "distribution")
Reduction = Literal["mean_batch", "mean", "mean_volume", "sum"]
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)


def cosine_score(student: Tensor, teacher: Tensor) -> Tensor:
    """Cosine of every segment with every token, the score that the alignment maximises.

    Args:
        student: [B, S, D]. teacher: [B, N, D].
    Returns:
        [B, S, N] float32, without gradient.
    Source: ours.
    Examples:
        >>> cosine_score(torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]])).tolist()
        [[[1.0, 0.0, -1.0]]]
    """
    student, teacher = (F.normalize(x.detach().float(), dim=-1) for x in (student, teacher))
    with torch.autocast(student.device.type, enabled=False):
        return student @ teacher.transpose(1, 2)


def token_average(segments: Tensor, path: Tensor, n_tokens: int) -> Tensor:
    """Mean of the segments that a path gives to each token.

    Args:
        segments: [B, S, D]; gets gradients.
        path: [B, S] token per segment, -1 for none.
        n_tokens: N.
    Returns:
        [B, N, D], 0 for a token without segments.
    Examples:
        >>> token_average(torch.tensor([[[1.0], [3.0], [7.0]]]), torch.tensor([[0, 0, 1]]), 3).tolist()
        [[[2.0], [7.0], [0.0]]]
    """
    return pool_segments(segments, path.long(), None, n_tokens)


def transfer_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    *,
    loss: Loss = "cosine",
    temperature: float = 0.1,
    negatives: int | None = None,
    token_id: Tensor | None = None,
    table: Tensor | None = None,
    predicted: tuple[Tensor, Tensor] | None = None,
    top_k: int = 32,
    seed: int = 0,
) -> Tensor:
    """Loss of aligned student vectors against the teacher's tokens or their embeddings, summed over each row's tokens.

    cosine: 1 - cos(student, teacher). mse: mean over features of the squared difference. contrastive: -log of the
    softmax, over all tokens of the batch, of cos(student, .) / temperature at the own token; the same token elsewhere
    in the batch is never a negative. classify: `classify_tokens`, of which token of the vocabulary it is.
    distribution: `token_divergence`, of the language model's own probabilities of it.

    Args:
        student: [B, N, D]; gets gradients.
        teacher: [B, N, D]; gets none.
        mask: [B, N] bool, True = a token that counts.
        loss: "cosine", "mse", "contrastive", "classify" or "distribution".
        temperature: above 0; contrastive, classify and distribution.
        negatives, seed: as in `classify_tokens` and `token_divergence`; classify and distribution.
        token_id: [B, N] the tokens' ids; contrastive, where without it every other token is a negative, and classify.
        table: [V, D] the vocabulary's embeddings; classify and distribution.
        predicted, top_k: as in `token_divergence`; distribution only.
    Returns:
        [B] float32; 0 for a row without tokens.
    Raises:
        ValueError: an unknown loss, shapes that disagree, a mask that is not bool, a temperature that is not above 0,
            classify without token_id and table, or distribution without predicted and table.
    Source: ours; contrastive after HKD, arXiv 2301.13003.
    Examples:
        >>> student, teacher = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[0.0, 2.0], [0.0, 2.0]]])
        >>> transfer_loss(student, teacher, torch.tensor([[True, True]])).tolist()
        [1.0]
    """
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}; got {loss!r}")
    if student.dim() != 3 or student.shape != teacher.shape or student.shape[:2] != mask.shape:
        raise ValueError(
            f"student and teacher must be [B, N, D] and mask [B, N], "
            f"got {tuple(student.shape)}, {tuple(teacher.shape)} and {tuple(mask.shape)}"
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, True = a token that counts, got {mask.dtype}")
    # what the mask hides must not reach the gradient either: 0 times NaN is NaN
    student, teacher = (torch.where(mask[..., None], x.float(), 0) for x in (student, teacher.detach()))
    if loss == "cosine":
        per_token = 1 - F.cosine_similarity(student, teacher, dim=-1)
    elif loss == "mse":
        per_token = (student - teacher).square().mean(-1)
    else:
        _check_tokens(mask, temperature, token_id)
        drawn: dict[str, Any] = dict(temperature=temperature, negatives=negatives, seed=seed)
        if loss == "contrastive":
            per_token = _contrastive(student, teacher, mask, temperature, token_id)
        elif loss == "classify":
            if token_id is None or table is None:
                raise ValueError("loss='classify' needs token_id [B, N] and the teacher's table [V, D]; give both")
            per_token = classify_tokens(student, token_id, mask, table, **drawn)
        else:
            if predicted is None or table is None or any(x.dim() != 3 or x.shape[:2] != mask.shape for x in predicted):
                raise ValueError(
                    "loss='distribution' needs predicted, the ids and the probabilities [B, N, K] of a teacher that "
                    "has top_k, and its table [V, D]; give both"
                )
            per_token = token_divergence(student, predicted, mask, table, top_k=top_k, **drawn)
    return torch.where(mask, per_token, 0).sum(1)


def _check_tokens(mask: Tensor, temperature: float, token_id: Tensor | None) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if token_id is not None and token_id.shape != mask.shape:
        raise ValueError(f"token_id must be [B, N] = {tuple(mask.shape)}, got {tuple(token_id.shape)}")


def _contrastive(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float, token_id: Tensor | None) -> Tensor:
    flat_student, flat_teacher = (F.normalize(x, dim=-1).flatten(0, 1) for x in (student, teacher))
    with torch.autocast(student.device.type, enabled=False):
        logits = flat_student @ flat_teacher.T / temperature
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    out = ~mask.flatten()[None]
    if token_id is not None:
        out = out | (token_id.flatten()[:, None] == token_id.flatten()[None])
    logits = logits.masked_fill(out & ~own, float("-inf"))
    return (logits.logsumexp(1) - logits.diagonal()).view(mask.shape)


def reduce_rows(loss: Tensor, text_len: Tensor, reduction: Reduction = "mean_batch") -> Tensor:
    """Reduces row losses as NeMo's CTC reduces its own, with text tokens in the place of targets.

    Args:
        loss: [B] sums over tokens. text_len: [B] tokens that were summed.
        reduction: "mean_batch" (mean over rows), "mean" (mean over rows of the mean over tokens), "mean_volume" (mean
            over all tokens) or "sum".
    Returns:
        scalar.
    Raises:
        ValueError: the reduction is unknown, or is "none", with which no scalar can be trained.
    Examples:
        >>> loss, text_len = torch.tensor([6.0, 2.0]), torch.tensor([3, 1])
        >>> [reduce_rows(loss, text_len, reduction).item() for reduction in REDUCTIONS]
        [4.0, 2.0, 2.0, 8.0]
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}; got {reduction!r}")
    if reduction == "sum":
        return loss.sum()
    text_len = text_len.long()
    if reduction == "mean_volume":
        return loss.sum() / text_len.sum().clamp(min=1)
    return (loss / text_len.clamp(min=1) if reduction == "mean" else loss).mean()


class TransferLoss(nn.Module):
    """`transfer_loss` with its options kept; no parameters.

    Args:
        loss, temperature, negatives, top_k: as in `transfer_loss`.
    Examples:
        >>> TransferLoss("mse")(torch.ones(1, 1, 4), torch.full((1, 1, 4), 3.0), torch.tensor([[True]])).tolist()
        [4.0]
    """

    def __init__(
        self, loss: Loss = "cosine", *, temperature: float = 0.1, negatives: int | None = None, top_k: int = 32
    ) -> None:
        super().__init__()
        self.options: dict[str, Any] = dict(loss=loss, temperature=temperature, negatives=negatives, top_k=top_k)

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        mask: Tensor,
        token_id: Tensor | None = None,
        table: Tensor | None = None,
        predicted: tuple[Tensor, Tensor] | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Same shapes and returns as `transfer_loss`."""
        given: dict[str, Any] = dict(token_id=token_id, table=table, predicted=predicted, seed=seed)
        return transfer_loss(student, teacher, mask, **given, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in self.options.items())

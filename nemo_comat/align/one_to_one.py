"""One to one: as many segments as tokens need no search."""

import torch
from torch import Tensor, nn

from nemo_comat.lengths import check_both_lengths, length_mask


def one_to_one_align(score: Tensor, seg_len: Tensor, text_len: Tensor) -> Tensor:
    """Segment n belongs to token n.

    Args:
        score: [B, S, N] similarity, read for whether it is finite.
        seg_len, text_len: [B] valid segments / tokens.
    Returns:
        [B, S] int32 on score's device: token index per segment; -1 on padding and on rows that have no tokens, not as
        many segments as tokens, or a score on the way that is not finite.
    Raises:
        ValueError: score is not 3-D, the lengths are not [B], or (checked on a CPU) a length is out of range.
    Source: KT-RL, arXiv 2203.03582; the treatment of impossible rows is ours.
    Examples:
        >>> one_to_one_align(torch.zeros(2, 3, 3), torch.tensor([2, 3]), torch.tensor([2, 1])).tolist()
        [[0, 1, -1], [-1, -1, -1]]
    """
    if score.dim() != 3:
        raise ValueError(f"score must be [B, S, N], got {tuple(score.shape)}")
    check_both_lengths(score.shape, seg_len, text_len)
    seg_len, text_len = (x.to(score.device) for x in (seg_len, text_len))
    token = torch.arange(score.shape[1], device=score.device)
    inside = length_mask(text_len, score.shape[1])
    finite = score.diagonal(dim1=1, dim2=2).isfinite()
    finite = nn.functional.pad(finite, (0, score.shape[1] - finite.shape[1]))
    feasible = (seg_len == text_len) & (finite | ~inside).all(1)
    return torch.where(inside & feasible[:, None], token, -1).int()


class OneToOneAligner(nn.Module):
    """`one_to_one_align`; no parameters.

    Examples:
        >>> OneToOneAligner()(torch.zeros(1, 2, 2), torch.tensor([2]), torch.tensor([2]))
        (tensor([[0, 1]], dtype=torch.int32), None)
    """

    def forward(self, score: Tensor, seg_len: Tensor, text_len: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `MonotonicAligner.forward`."""
        return one_to_one_align(score, seg_len, text_len), None

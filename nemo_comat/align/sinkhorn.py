"""Optimal transport as alignment: a soft plan between segments and tokens instead of a path.

Source: arXiv 2309.13650; the iteration is Sinkhorn's, Cuturi, arXiv 1306.0895.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from nemo_comat.lengths import check_both_lengths, length_mask
from nemo_comat.pooling import LOWEST


@torch.no_grad()
def sinkhorn(cost: Tensor, seg_len: Tensor, text_len: Tensor, *, epsilon: float = 0.05, iterations: int = 50) -> Tensor:
    """Plan P that minimises sum(P * cost) - epsilon * entropy(P), by Sinkhorn's iteration on logarithms.

    Both marginals are uniform: each valid segment gives 1 / seg_len, each valid token receives 1 / text_len. The
    iteration ends on the tokens, so theirs holds exactly and the segments' up to convergence.

    Args:
        cost: [B, S, N], any float dtype; computed in float32. No gradient.
        seg_len, text_len: [B] valid segments / tokens.
        epsilon: above 0, in units of cost; towards 0 the plan becomes a matching, and takes more iterations.
        iterations: fixed number of them, at least 1.
    Returns:
        [B, S, N] float32, of sum 1; 0 on padding and on whole rows that have no segments, no tokens, or a cost that is
        not finite.
    Raises:
        ValueError: cost is not 3-D, the lengths are not [B], epsilon or iterations is out of range, or (checked on a
            CPU) a length is.
    Source: arXiv 1306.0895.
    Examples:
        >>> sinkhorn(torch.zeros(1, 2, 3), torch.tensor([2]), torch.tensor([2])).tolist()
        [[[0.25, 0.25, 0.0], [0.25, 0.25, 0.0]]]
    """
    if cost.dim() != 3:
        raise ValueError(f"cost must be [B, S, N], got {tuple(cost.shape)}")
    check_both_lengths(cost.shape, seg_len, text_len)
    if not epsilon > 0 or not iterations >= 1:
        raise ValueError(f"epsilon must be above 0 and iterations 1 or more, got {epsilon} and {iterations}")
    is_seg = length_mask(seg_len, cost.shape[1], device=cost.device)
    is_token = length_mask(text_len, cost.shape[2], device=cost.device)
    seg_len, text_len = (x.to(cost.device, torch.int64)[:, None] for x in (seg_len, text_len))
    inside = is_seg[:, :, None] & is_token[:, None, :]
    cost = torch.where(inside, cost.float(), 0)
    usable = cost.isfinite().all(2).all(1, keepdim=True) & (seg_len > 0) & (text_len > 0)
    # the kernel's logarithm; padding stays finite, so that no -inf - -inf arises where a whole row is padding
    kernel = (cost / -epsilon).clamp(LOWEST, -LOWEST).masked_fill(~inside, LOWEST)
    to_seg, to_token = (-length.clamp(min=1).float().log() for length in (seg_len, text_len))
    v = kernel.new_zeros(is_token.shape)
    for _ in range(iterations):
        u = torch.where(is_seg, to_seg - (kernel + v[:, None, :]).logsumexp(2), LOWEST)
        v = torch.where(is_token, to_token - (kernel + u[:, :, None]).logsumexp(1), LOWEST)
    # the last step for the tokens as a softmax, whose sums are exact whatever the scores
    plan = (kernel + u[:, :, None]).softmax(1) * to_token.exp()[..., None]
    return torch.where(inside & usable[..., None], plan, 0)


def plan_average(segments: Tensor, plan: Tensor) -> Tensor:
    """Mean of the segments, weighted for each token by its column of a plan.

    Args:
        segments: [B, S, D]; gets gradients.
        plan: [B, S, N] weights, 0 or above; gets none.
    Returns:
        [B, N, D], 0 for a token without weight.
    Source: arXiv 2309.13650.
    Examples:
        >>> plan_average(torch.tensor([[[1.0], [5.0]]]), torch.tensor([[[0.3], [0.1]]])).item()
        2.0
    """
    total = plan.detach().float().sum(1, keepdim=True)
    weight = (plan.detach() / torch.where(total > 0, total, 1)).transpose(1, 2)
    with torch.autocast(segments.device.type, enabled=False):
        return (weight @ segments.float()).to(segments.dtype)


class SinkhornAligner(nn.Module):
    """`sinkhorn` on the cost 1 - score, with its options kept; no parameters.

    Args:
        epsilon, iterations: as in `sinkhorn`.
    Examples:
        >>> SinkhornAligner()(torch.eye(2)[None], torch.tensor([2]), torch.tensor([2]))[0].tolist()
        [[0, 1]]
    """

    def __init__(self, *, epsilon: float = 0.05, iterations: int = 50) -> None:
        super().__init__()
        self.options: dict[str, Any] = dict(epsilon=epsilon, iterations=iterations)

    def forward(self, score: Tensor, seg_len: Tensor, text_len: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `MonotonicAligner.forward`; the plan is soft, and the path its largest token for each segment."""
        plan = sinkhorn(1 - score, seg_len, text_len, **self.options)
        inside = length_mask(seg_len, score.shape[1], device=score.device)
        planned = plan.sum((1, 2)) > 0
        largest = (plan if score.shape[2] else pad(plan, (0, 1))).argmax(2)  # of no tokens there is no largest
        return torch.where(inside & planned[:, None], largest, -1).int(), plan

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in self.options.items())

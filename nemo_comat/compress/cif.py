"""Continuous integrate-and-fire: frames are integrated, by weights that the model predicts, to one segment per token.

Source: CIF, Dong and Xu, arXiv 1905.11235; on the way from a CTC encoder to a language model it is the "CIF" of KT-RL,
arXiv 2203.03582. The dense form, the scaling on logarithms and the treatment of impossible rows are ours.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nemo_comat.compress.frames import usable_frames
from nemo_comat.compress.segments import Compressed
from nemo_comat.lengths import length_mask


def cif_weights(log_weight: Tensor, frame_len: Tensor, text_len: Tensor, n_tokens: int) -> Tensor:
    """Part of each frame's weight that goes to each segment, after the weights are scaled to sum to the tokens.

    With weights w scaled so that sum(w) = text_len, and C_t = w_1 + ... + w_t, segment n takes from frame t the overlap
    of [C_(t-1), C_t] with [n, n+1]. So each segment gets mass 1, and a frame with a large weight feeds several.

    Args:
        log_weight: [B, T] logarithm of the weights before scaling; gets gradients. Logarithms, because w / sum(w) is
            then a softmax, whose value and gradient are finite however near 0 the sum is.
        frame_len: [B] valid frames.
        text_len: [B] tokens, at most n_tokens.
        n_tokens: N, a number known on the host.
    Returns:
        [B, T, N] float32, 0 on padding; all 0 on rows without frames or tokens.
    Raises:
        ValueError: log_weight is not 2-D.
    Source: arXiv 1905.11235, with the scaling strategy that it trains with.
    Examples:
        >>> equal = torch.zeros(1, 4)  # four frames of equal weight for two tokens
        >>> cif_weights(equal, torch.tensor([4]), torch.tensor([2]), 2).tolist()
        [[[0.5, 0.0], [0.5, 0.0], [0.0, 0.5], [0.0, 0.5]]]
    """
    if log_weight.dim() != 2:
        raise ValueError(f"log_weight must be [B, T], got {tuple(log_weight.shape)}")
    inside = length_mask(frame_len, log_weight.shape[1], device=log_weight.device)
    log_weight = log_weight.float().masked_fill(~inside, torch.finfo(torch.float32).min)
    end = torch.where(inside, log_weight.softmax(1), 0).cumsum(1)
    # divided by its own last value, so that the last boundary is text_len and no segment is short of mass
    total = end[:, -1:]
    end = end / torch.where(total > 0, total, 1) * text_len.to(end.device)[:, None]
    start = F.pad(end[:, :-1], (1, 0))
    n = torch.arange(n_tokens, device=end.device)
    overlap = torch.minimum(end[..., None], n + 1) - torch.maximum(start[..., None], n)
    return overlap.clamp(min=0)


def quantity_loss(log_weight: Tensor, frame_len: Tensor, text_len: Tensor) -> Tensor:
    """|sum of the weights before scaling - number of tokens|.

    Args:
        log_weight: [B, T] logarithm of the weights; gets gradients.
        frame_len, text_len: [B] valid frames / tokens.
    Returns:
        [B] float32, in tokens.
    Source: arXiv 1905.11235.
    Examples:
        >>> quantity_loss(torch.tensor([[0.5, 0.5, 0.25]]).log(), torch.tensor([3]), torch.tensor([3])).tolist()
        [1.75]
    """
    inside = length_mask(frame_len, log_weight.shape[1], device=log_weight.device)
    weight = torch.where(inside, log_weight.float().exp(), 0)
    return (weight.sum(1) - text_len.to(weight.device)).abs()


class CIFCompressor(nn.Module):
    """Predicts a weight in 0..1 for each frame and integrates the frames to one segment per token.

    weight = sigmoid(linear(relu(conv1d(frames)))), the convolution three frames wide; the ReLU and the width are ours.

    Args:
        feat_in: width of the encoder's frames.
        quantity_weight: of the quantity loss, relative to the transfer loss; 0 leaves it out.
    Examples:
        >>> hidden, frame_len, text_len = torch.randn(1, 20, 8), torch.tensor([20]), torch.tensor([3])
        >>> CIFCompressor(feat_in=8)(hidden, frame_len, None, None, None, text_len, 5).segments.shape
        torch.Size([1, 5, 8])
    """

    def __init__(self, feat_in: int, *, quantity_weight: float = 1.0) -> None:
        super().__init__()
        self.quantity_weight = quantity_weight
        self.conv = nn.Conv1d(feat_in, feat_in, kernel_size=3, padding=1)
        self.linear = nn.Linear(feat_in, 1)

    def forward(
        self,
        hidden: Tensor,
        frame_len: Tensor,
        log_probs: Tensor,
        targets: Tensor,
        target_len: Tensor,
        text_len: Tensor,
        n_tokens: int,
    ) -> Compressed:
        """One segment per token, from the frames and the number of tokens alone.

        Args:
            hidden: [B, T, D] encoder frames; gets gradients.
            frame_len: [B] valid frames.
            log_probs, targets, target_len: not read.
            text_len: [B] tokens of the language model.
            n_tokens: N, a number known on the host.
        Returns:
            Compressed with S = N and no labels; `seg_of_frame` is the segment that holds most of the frame's weight,
            `loss` the weighted quantity loss. Rows without frames, or with one that is not finite, have seg_len 0.
        """
        hidden, inside, usable = usable_frames(hidden, frame_len)
        log_weight = self.log_weight(hidden)
        weight = cif_weights(log_weight, frame_len, text_len, n_tokens)
        most, seg_of_frame = (weight.detach() if n_tokens else F.pad(weight, (0, 1))).max(2)
        return Compressed(
            segments=weight.transpose(1, 2) @ hidden.to(weight.dtype),
            seg_len=torch.where(usable, text_len, 0),
            seg_of_frame=torch.where(inside & usable[:, None] & (most > 0), seg_of_frame, -1),
            seg_label=seg_of_frame.new_full((len(hidden), n_tokens), -1),
            loss=self.quantity_weight * quantity_loss(log_weight, frame_len, text_len),
        )

    def log_weight(self, hidden: Tensor) -> Tensor:
        """Logarithm of each frame's weight before scaling: [B, T, D] to [B, T] float32."""
        hidden = hidden.to(self.conv.weight.dtype).transpose(1, 2)
        if not hidden.shape[2]:  # a convolution takes no sequence of no frame
            return hidden.new_zeros(len(hidden), 0, dtype=torch.float32)
        logit = self.linear(F.relu(self.conv(hidden)).transpose(1, 2))
        return F.logsigmoid(logit[..., 0].float())

    def extra_repr(self) -> str:
        return f"quantity_weight={self.quantity_weight}"

"""Feedback: what an encoder layer's frames are in another space goes back into the frames."""

from torch import Tensor, nn


class Feedback(nn.Module):
    """frames + a linear layer of a view of them; the layer begins as zero, so that nothing changes at first.

    Args:
        dim: width of the view. feat_in: width of the frames.
    Source: self-conditioned CTC, arXiv 2104.02724, whose view is the softmax of an intermediate CTC head; the
        linguistic space as a view after arXiv 2309.13650. That the layer begins as zero is ours.
    Examples:
        >>> import torch
        >>> Feedback(3, 2)(torch.ones(1, 1, 2), torch.ones(1, 1, 3)).tolist()
        [[[1.0, 1.0]]]
    """

    def __init__(self, dim: int, feat_in: int) -> None:
        super().__init__()
        self.back = nn.Linear(dim, feat_in)
        nn.init.zeros_(self.back.weight)
        nn.init.zeros_(self.back.bias)

    def forward(self, frames: Tensor, view: Tensor) -> Tensor:
        """[B, T, feat_in] and [B, T, dim] to [B, T, feat_in], of the frames' dtype."""
        back: Tensor = self.back(view.to(self.back.weight.dtype))
        return frames + back.to(frames.dtype)

"""Context: projected segments learn of their neighbours, and masked ones are told from them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nemo_comat.lengths import length_mask
from nemo_comat.positions import sinusoids


class Context(nn.Module):
    """segments + a linear layer of a bidirectional transformer over them, a share of the segments masked in training.

    The transformer is PyTorch's, with the layer norm first, GELU, a hidden width of 4 dim and no dropout: nothing is
    drawn but the masks. The linear layer begins as zero, so that what is not masked begins as it came.

    Args:
        dim: width of the segments.
        layers: of the transformer, 1 or more.
        heads: of its attention; must divide dim.
        mask: share of the segments, each drawn by itself, in whose place a learnt vector goes in; 0 or more, below 1.
    Raises:
        ValueError: heads does not divide dim.
    Source: ours; masked prediction after BERT, arXiv 1810.04805, positions after arXiv 1706.03762.
    Examples:
        >>> context = Context(dim=8, layers=1, heads=2, mask=0.0)
        >>> segments = torch.randn(1, 3, 8)
        >>> context(segments, torch.tensor([3])).equal(segments)
        True
    """

    def __init__(self, dim: int, layers: int, *, heads: int = 4, mask: float = 0.15) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"context.heads must divide the projection's width {dim}; got {heads}")
        self.mask = mask
        self.masked = nn.Parameter(torch.empty(dim).normal_(std=0.02))
        self.norm = nn.LayerNorm(dim)
        layer = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(dim), enable_nested_tensor=False)
        self.head = nn.Linear(dim, dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, segments: Tensor, seg_len: Tensor, *, seed: int = 0) -> Tensor:
        """Segments in their context.

        Args:
            segments: [B, S, dim].
            seg_len: [B] valid segments; the others, and what is not finite, are not looked at.
            seed: of what is masked; nothing is drawn from PyTorch's own random numbers.
        Returns:
            [B, S, dim] float32; 0 in the place of padding and of what is not finite.
        """
        given, dtype = segments.shape[1], self.head.weight.dtype
        # attention takes no sequence of no place
        segments = F.pad(segments, (0, 0, 0, max(1 - given, 0)))
        valid = length_mask(seg_len, segments.shape[1])
        # the sum of squares, not the values: a layer norm overflows earlier than they do
        usable = valid & segments.detach().float().square().sum(-1).isfinite()
        drawn = segment_mask(usable, self.mask if self.training else 0.0, seed)
        segments = torch.where(drawn[..., None], self.masked, torch.where(usable[..., None], segments.to(dtype), 0))
        # attention to nothing at all is NaN: a row of nothing usable attends to its first place
        hidden = ~usable
        hidden[:, 0] &= usable.any(1)
        read = self.norm(segments) + sinusoids(*segments.shape[1:], device=segments.device).to(dtype)
        context = self.head(self.encoder(read, src_key_padding_mask=hidden))
        return torch.where(usable[..., None], segments + context, 0).float()[:, :given]


def segment_mask(valid: Tensor, share: float, seed: int) -> Tensor:
    """Which segments are masked, each with probability `share`; equal seeds mask equal places.

    Args:
        valid: [B, S] bool, the segments that may be. share: 0 to 1. seed: of the draw.
    Returns:
        [B, S] bool.
    Examples:
        >>> segment_mask(torch.tensor([[True, True, False]]), share=1.0, seed=0).tolist()
        [[True, True, False]]
    """
    generator = torch.Generator(valid.device).manual_seed(seed)
    # place by place, so that padding draws last
    drawn = torch.rand(valid.shape[::-1], generator=generator, device=valid.device).T
    return valid & (drawn < share)

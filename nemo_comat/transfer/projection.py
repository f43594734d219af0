"""Projection: from the recogniser's space to the teacher's, where the two are compared."""

from torch import Tensor, nn


class Projection(nn.Module):
    """Maps segments into the teacher's space: `depth` linear layers with GELU between them.

    Args:
        feat_in: width of the encoder's frames.
        dim: width of the teacher's embeddings.
        depth: number of linear layers; ours.
    Examples:
        >>> [tuple(weight.shape) for weight in Projection(feat_in=3, dim=2, depth=2).parameters()]
        [(2, 3), (2,), (2, 2), (2,)]
    """

    def __init__(self, feat_in: int, dim: int, *, depth: int = 1) -> None:
        super().__init__()
        widths = [feat_in] + [dim] * depth
        layers = []
        for a, b in zip(widths, widths[1:]):
            layers += [nn.Linear(a, b), nn.GELU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, segments: Tensor) -> Tensor:
        """[B, S, feat_in] to [B, S, dim] float32."""
        projected: Tensor = self.layers(segments.to(next(self.parameters()).dtype))
        return projected.float()

"""Projection: from the recogniser's space to the teacher's, where the two are compared."""

from torch import nn


class Projection(nn.Module):
    """Maps segments into the teacher's space: `depth` linear layers with GELU between them.

    Args:
        feat_in: width of the encoder's frames.
        dim: width of the teacher's embeddings.
        depth: number of linear layers; ours.
    """

    def __init__(self, feat_in, dim, depth=1):
        super().__init__()
        widths = [feat_in] + [dim] * depth
        layers = []
        for a, b in zip(widths, widths[1:]):
            layers += [nn.Linear(a, b), nn.GELU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, segments):
        """[B, S, feat_in] to [B, S, dim] float32."""
        return self.layers(segments.to(self.layers[0].weight.dtype)).float()

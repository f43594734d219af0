"""The projection: its layers, and what it gives back."""

import torch

from nemo_comat.transfer import Projection


def test_projection_depth():
    assert [type(m).__name__ for m in Projection(4, 6, depth=2).layers] == ["Linear", "GELU", "Linear"]
    out = Projection(4, 6).to(torch.bfloat16)(torch.randn(2, 3, 4))
    assert out.shape == (2, 3, 6) and out.dtype == torch.float32

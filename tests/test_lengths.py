"""Lengths may be integers of any kind."""

import pytest
import torch

from nemo_comat import one_to_one_align, sinkhorn
from nemo_comat.lengths import check_lengths, length_mask
from nemo_comat.transfer import reduce_rows

KINDS = [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32]


@pytest.mark.parametrize("dtype", KINDS)
def test_lengths_of_all_integers_are_read_alike(dtype):
    signed, other = torch.tensor([2, 1]), torch.tensor([2, 1]).to(dtype)
    check_lengths("text_len", other, 2, 2)
    assert length_mask(other, 3).equal(length_mask(signed, 3))
    score = torch.arange(12.0).reshape(2, 3, 2)
    for function in (one_to_one_align, sinkhorn):
        assert function(score, other, other).equal(function(score, signed, signed))
    loss = torch.tensor([4.0, 3.0])
    for reduction in ("mean", "mean_volume", "mean_batch"):
        assert reduce_rows(loss, other, reduction) == reduce_rows(loss, signed, reduction)

"""Whether a model reads padding, of functions that stand for one."""

import pytest
import torch

from nemo_comat.teacher.padding import reads_padding

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.mark.parametrize(
    ("read", "wanted"),
    [
        (lambda ids, attention: [ids.float()], False),
        (lambda ids, attention: [(ids * attention).cumsum(1)], False),
        (lambda ids, attention: [ids.float(), ids.flip(1)], True),
        (lambda ids, attention: [ids.float() + (attention == 0).any(1, keepdim=True) * float("nan")], True),
        # rounding alone
        (lambda ids, attention: [ids * (1 + 1e-6 * ids.shape[1])], False),
    ],
)
def test_what_padding_changes_is_noticed(read, wanted):
    assert reads_padding(read, IDS, padding=1) is wanted


def test_half_precision_rounds_more():
    def read(ids, attention):
        return [ids * (1 + 1e-3 * ids.shape[1])]

    assert reads_padding(read, IDS, 1) and not reads_padding(read, IDS, 1, torch.bfloat16)

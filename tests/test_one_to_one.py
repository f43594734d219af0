"""One-to-one alignment: the rows that have one, and those that have none."""

import pytest
import torch

from nemo_comat import one_to_one_align, sinkhorn


def test_one_to_one():
    score = torch.zeros(6, 4, 4)
    score[2, 1, 1] = float("nan")  # on the way of row 2
    score[3, 1, 0], score[3, 3, 3] = float("nan"), float("inf")  # on nobody's
    seg_len, text_len = torch.tensor([4, 2, 3, 3, 3, 0]), torch.tensor([4, 2, 3, 3, 2, 0])
    path = one_to_one_align(score, seg_len, text_len)
    assert path.tolist() == [[0, 1, 2, 3], [0, 1, -1, -1], [-1] * 4, [0, 1, 2, -1], [-1] * 4, [-1] * 4]
    assert path.dtype == torch.int32
    # more segments, or more tokens, than the other has
    assert one_to_one_align(score[:2, :, :2], torch.tensor([2, 4]), torch.tensor([2, 2])).tolist() == [
        [0, 1, -1, -1],
        [-1] * 4,
    ]
    assert one_to_one_align(score[:1, :2], torch.tensor([2]), torch.tensor([4])).tolist() == [[-1, -1]]
    with pytest.raises(ValueError, match=r"score must be \[B, S, N\]"):
        one_to_one_align(score[0], seg_len, text_len)


@pytest.mark.parametrize(
    ("seg_len", "text_len", "message"),
    [
        ([4], [3], r"seg_len must lie in 0..3"),
        ([3], [-1], "text_len must lie in 0..3"),
        ([3, 3], [3], r"must be integers \[1\]"),
    ],
)
@pytest.mark.parametrize("align", [one_to_one_align, sinkhorn])
def test_lengths_that_do_not_fit_are_refused(align, seg_len, text_len, message):
    with pytest.raises(ValueError, match=message):
        align(torch.zeros(1, 3, 3), torch.tensor(seg_len), torch.tensor(text_len))

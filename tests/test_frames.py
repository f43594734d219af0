"""Frames as segments, and which frames can be used."""

import torch
from test_ctc import random_batch

from nemo_comat.compress import FrameCompressor, usable_frames


def test_frames_as_segments():
    hidden, log_probs, _ = random_batch(2, 5, 1)
    hidden[1, 3:] = float("nan")
    out = FrameCompressor()(hidden, torch.tensor([5, 3]), log_probs, None, None, None, None)
    assert out.segments[0].equal(hidden[0]) and out.segments[1, :3].equal(hidden[1, :3])
    assert (out.segments[1, 3:] == 0).all() and out.seg_len.tolist() == [5, 3] and out.loss.tolist() == [0, 0]
    assert out.seg_of_frame.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, -1, -1]]
    assert out.seg_label[0].equal(log_probs[0].argmax(1)) and out.seg_label[1, 3:].tolist() == [-1, -1]


def test_usable_frames():
    hidden = torch.ones(4, 3, 2, requires_grad=True)
    given = hidden.clone()
    with torch.no_grad():
        given[1, 2], given[2, 1, 0] = float("nan"), float("inf")
    kept, inside, usable = usable_frames(given, torch.tensor([2, 2, 2, 0]))
    assert usable.tolist() == [True, True, False, False] and inside[:, :2].sum(1).tolist() == [2, 2, 2, 0]
    assert kept[..., 0].tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]]
    kept.sum().backward()
    assert hidden.grad[..., 0].tolist() == kept[..., 0].tolist()

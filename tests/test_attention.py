"""Positional queries over the frames: against the formula of attention, and what padding and empty rows do."""

import math

import pytest
import torch

from nemo_comat.compress import AttentionCompressor
from nemo_comat.positions import sinusoids

DIM = 6


def run(module, hidden, frame_len, text_len, n_tokens):
    return module(hidden, torch.tensor(frame_len), None, None, None, torch.tensor(text_len), n_tokens)


def test_sinusoids_are_as_exact_where_the_default_is_not():
    torch.set_default_dtype(torch.bfloat16)
    try:
        got = sinusoids(600, 16)
    finally:
        torch.set_default_dtype(torch.float32)
    assert got.dtype == torch.float32 and got.equal(sinusoids(600, 16))


def test_sinusoids_by_hand():
    got = sinusoids(3, 5)
    rates = [1.0, 10000 ** (-2 / 5), 10000 ** (-4 / 5)]
    wanted = [[f(p * rate) for rate in rates for f in (math.sin, math.cos)][:5] for p in range(3)]
    torch.testing.assert_close(got, torch.tensor(wanted))


def test_equal_keys_give_the_mean_of_the_valid_frames():
    module = AttentionCompressor(DIM, heads=1)
    with torch.no_grad():  # keys are 0, values and output are left as they are
        module.attention.in_proj_weight.copy_(torch.cat([torch.eye(DIM), torch.zeros(DIM, DIM), torch.eye(DIM)]))
        module.attention.out_proj.weight.copy_(torch.eye(DIM))
    hidden = torch.randn(1, 4, DIM)
    out = run(module, hidden, [3], [2], 3)
    mean = hidden[0, :3].mean(0)
    torch.testing.assert_close(out.segments[0], torch.stack([mean, mean, torch.zeros(DIM)]))
    assert out.seg_len.tolist() == [2] and out.seg_label.tolist() == [[-1] * 3] and out.loss.tolist() == [0]


@pytest.mark.parametrize("heads", [1, 3])
def test_segments_equal_the_formula(heads):
    torch.manual_seed(0)
    module, hidden = AttentionCompressor(DIM, heads=heads), torch.randn(DIM + 1, DIM)
    out = run(module, hidden[None], [DIM + 1], [4], 4)
    to_query, to_key, to_value = module.attention.in_proj_weight.chunk(3)
    query = (sinusoids(4, DIM) @ module.query.weight.T + module.query.bias) @ to_query.T
    key, value = (hidden + sinusoids(DIM + 1, DIM)) @ to_key.T, hidden @ to_value.T
    weights, parts = 0, []
    for q, k, v in zip(*(x.chunk(heads, 1) for x in (query, key, value))):
        weight = (q @ k.T / math.sqrt(DIM / heads)).softmax(1)
        weights, parts = weights + weight, [*parts, weight @ v]
    torch.testing.assert_close(out.segments[0], torch.cat(parts, 1) @ module.attention.out_proj.weight.T)
    assert out.seg_of_frame[0].equal(weights.argmax(0))


def test_padding_changes_nothing():
    torch.manual_seed(0)
    module, hidden = AttentionCompressor(DIM, heads=2), torch.randn(2, 9, DIM)
    plain = run(module, hidden, [9, 6], [4, 2], 4)
    hidden = torch.nn.functional.pad(hidden, (0, 0, 0, 3), value=5.0)
    hidden[1, 6:] = float("nan")
    padded = run(module, hidden, [9, 6], [4, 2], 5)
    torch.testing.assert_close(padded.segments[:, :4], plain.segments)
    assert padded.seg_of_frame[:, :9].equal(plain.seg_of_frame) and (padded.seg_of_frame[1, 6:] == -1).all()
    assert (padded.segments[:, 4:] == 0).all() and padded.seg_of_frame[1].max() <= 1


def test_gradients_and_a_row_without_frames():
    torch.manual_seed(0)
    module, hidden = AttentionCompressor(DIM, heads=2), torch.randn(3, 5, DIM, requires_grad=True)
    out = run(module, hidden, [5, 3, 0], [3, 2, 2], 3)
    assert out.seg_len.tolist() == [3, 2, 0] and (out.segments[2] == 0).all() and (out.seg_of_frame[2] == -1).all()
    (out.segments * torch.randn(3, 3, DIM)).sum().backward()
    assert (hidden.grad[0].abs().sum(1) > 0).all()
    assert (hidden.grad[1, 3:] == 0).all() and (hidden.grad[2] == 0).all()
    assert all(p.grad.isfinite().all() for p in module.parameters())
    assert module.query.weight.grad.abs().sum() > 0 and module.attention.in_proj_weight.grad.abs().sum() > 0


@pytest.mark.parametrize("heads", [4, 0])
def test_heads_must_divide_the_width(heads):
    with pytest.raises(ValueError, match=rf"heads must divide the encoder's width 6; got {heads}"):
        AttentionCompressor(DIM, heads=heads)

"""Continuous integrate-and-fire against cases worked out by hand, and what may not go wrong with its scaling."""

import pytest
import torch

from nemo_comat import cif_weights, quantity_loss
from nemo_comat.compress import CIFCompressor

DIM = 4


def shares(weights, text_len, n_tokens=None):
    """cif_weights of one row of plain weights."""
    weights = torch.tensor([weights], dtype=torch.float64)
    lengths = torch.tensor([weights.shape[1]]), torch.tensor([text_len])
    return cif_weights(weights.log(), *lengths, n_tokens or text_len)[0]


@pytest.mark.parametrize(
    "weights, wanted",
    [
        # the boundaries are at 0.5, 1.3 and 2
        ([0.5, 0.8, 0.7], [[0.5, 0], [0.5, 0.3], [0, 0.7]]),
        # one frame fills the rest of a segment, a whole one, and the start of a third
        ([0.2, 2.6, 0.2], [[0.2, 0, 0], [0.8, 1, 0.8], [0, 0, 0.2]]),
        # twice too small: the same after scaling
        ([0.25, 0.4, 0.35], [[0.5, 0], [0.5, 0.3], [0, 0.7]]),
        # boundaries that fall together with those of segments
        ([1.0, 0.0, 1.0], [[1, 0], [0, 0], [0, 1]]),
        ([0.9], [[1, 1, 1]]),
    ],
)
def test_shares_by_hand(weights, wanted):
    torch.testing.assert_close(shares(weights, len(wanted[0])), torch.tensor(wanted).float(), atol=2e-6, rtol=0)


def slow_cif(weights, text_len):
    """Integrates one frame after another, in float64: list of {frame: part} for each segment."""
    scale = text_len / sum(weights)
    segments, room = [{}], 1.0
    for t, weight in enumerate(weights):
        left = weight * scale
        while left >= room - 1e-9 and len(segments) < text_len:
            segments[-1][t] = room
            left, room = left - room, 1.0
            segments.append({})
        segments[-1][t] = left
        room -= left
    return segments


def test_shares_against_a_slow_loop_and_mass_is_conserved():
    rng = torch.Generator().manual_seed(0)
    weight = torch.rand(3, 1500, generator=rng, dtype=torch.float64)
    frame_len, text_len = torch.tensor([1500, 900, 40]), torch.tensor([120, 7, 90])
    got = cif_weights(weight.log(), frame_len, text_len, 120)
    for row, (frames, tokens) in enumerate(zip(frame_len.tolist(), text_len.tolist())):
        wanted = torch.zeros(frames, tokens)
        for n, parts in enumerate(slow_cif(weight[row, :frames].tolist(), tokens)):
            for t, part in parts.items():
                wanted[t, n] = part
        torch.testing.assert_close(got[row, :frames, :tokens], wanted, atol=2e-4, rtol=0)
        torch.testing.assert_close(got[row, :, :tokens].sum(0), torch.ones(tokens), atol=3e-5, rtol=0)
        scaled = weight[row, :frames] * tokens / weight[row, :frames].sum()
        torch.testing.assert_close(got[row, :frames].sum(1), scaled.float(), atol=1e-4, rtol=0)
        assert (got[row, frames:] == 0).all() and (got[row, :, tokens:] == 0).all()


@pytest.mark.parametrize("log_weight", [-18.0, -80.0, -1e4])
def test_a_sum_near_zero_neither_blows_up_nor_vanishes(log_weight):
    # e^-18 over four frames is a sum of 6e-8; the others are no float32 at all
    log_weight = torch.full((1, 4), log_weight, requires_grad=True)
    got = cif_weights(log_weight, torch.tensor([4]), torch.tensor([2]), 2)
    assert got[0].tolist() == [[0.5, 0], [0.5, 0], [0, 0.5], [0, 0.5]]
    (got * torch.arange(8.0).view(4, 2)).sum().backward()
    assert log_weight.grad.isfinite().all() and 0 < log_weight.grad.abs().max() < 10


def test_gradient_of_the_shares():
    torch.manual_seed(0)
    mix = torch.randn(2, 6, 3)
    log_weight = torch.randn(2, 6, requires_grad=True)
    lengths = torch.tensor([6, 4]), torch.tensor([3, 2])

    def mixed(x):
        return (cif_weights(x, *lengths, 3) * mix).sum()

    mixed(log_weight).backward()
    step = 1e-2 * torch.eye(12).view(12, 2, 6)
    with torch.no_grad():
        slope = torch.stack([(mixed(log_weight + d) - mixed(log_weight - d)) / 2e-2 for d in step]).view(2, 6)
    torch.testing.assert_close(log_weight.grad, slope, atol=2e-2, rtol=2e-2)
    assert (log_weight.grad[1, 4:] == 0).all()


def test_rows_without_frames_or_tokens_get_nothing():
    log_weight = torch.zeros(2, 3, requires_grad=True)
    got = cif_weights(log_weight, torch.tensor([0, 3]), torch.tensor([2, 0]), 2)
    assert (got == 0).all()
    got.sum().backward()
    assert (log_weight.grad == 0).all()


def test_quantity_loss_by_hand():
    weight = torch.tensor([[0.5, 0.5, 0.25], [0.5, 0.5, 0.25]], requires_grad=True)
    loss = quantity_loss(weight.log(), torch.tensor([3, 2]), torch.tensor([3, 0]))
    assert loss.tolist() == pytest.approx([1.75, 1.0])
    loss.sum().backward()
    assert weight.grad.flatten().tolist() == pytest.approx([-1, -1, -1, 1, 1, 0])


def run(module, hidden, frame_len, text_len, n_tokens):
    return module(hidden, torch.tensor(frame_len), None, None, None, torch.tensor(text_len), n_tokens)


def test_the_compressor_by_hand():
    module = CIFCompressor(1, quantity_weight=2.0)
    with torch.no_grad():  # weight = sigmoid(relu(frame + next frame))
        module.conv.weight.copy_(torch.tensor([[[0.0, 1.0, 1.0]]]))
        for part in (module.conv.bias, module.linear.bias):
            part.zero_()
        module.linear.weight.fill_(1)
    hidden = torch.tensor([[[1.0], [0.0], [-5.0], [8.0], [99.0]]])
    out = run(module, hidden, [4], [2], 3)
    # sigmoid of 1, 0, 3 and 8; two tokens over their sum of 3.183297 scale the boundaries to 0.459, 0.773, 1.372 and 2
    assert out.loss.item() == pytest.approx(2 * (3.183297 - 2), abs=1e-4)
    first = 0.459309 * 1 + (1 - 0.773449) * -5
    second = (1.371931 - 1) * -5 + (2 - 1.371931) * 8
    assert out.segments[0, :, 0].tolist() == pytest.approx([first, second, 0], abs=1e-3)
    assert out.seg_len.tolist() == [2] and out.seg_label.tolist() == [[-1, -1, -1]]
    assert out.seg_of_frame.tolist() == [[0, 0, 1, 1, -1]]


def test_a_frame_without_weight_is_in_no_segment(monkeypatch):
    module = CIFCompressor(1)
    monkeypatch.setattr(module, "log_weight", lambda hidden: torch.tensor([[0.0, -200.0, 0.0]]))
    assert run(module, torch.ones(1, 3, 1), [3], [2], 2).seg_of_frame.tolist() == [[0, -1, 1]]


def test_padding_changes_nothing():
    torch.manual_seed(0)
    module, hidden = CIFCompressor(DIM), torch.randn(2, 9, DIM)
    plain = run(module, hidden, [9, 6], [4, 2], 4)
    hidden = torch.nn.functional.pad(hidden, (0, 0, 0, 3), value=5.0)
    hidden[1, 6:] = float("nan")
    padded = run(module, hidden, [9, 6], [4, 2], 5)
    torch.testing.assert_close(padded.segments[:, :4], plain.segments)
    torch.testing.assert_close(padded.loss, plain.loss)
    assert (padded.segments[:, 4:] == 0).all() and (padded.seg_of_frame[1, 6:] == -1).all()
    assert padded.seg_of_frame[:, :9].equal(plain.seg_of_frame)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_frames_of_half_precision(dtype):
    torch.manual_seed(0)
    module, hidden = CIFCompressor(DIM), torch.randn(2, 9, DIM).to(dtype)
    given = [9, 6], [4, 2], 4
    torch.testing.assert_close(run(module, hidden, *given).segments, run(module, hidden.float(), *given).segments)


def test_a_batch_without_frames():
    out = run(CIFCompressor(DIM), torch.zeros(2, 0, DIM), [0, 0], [1, 0], 1)
    assert out.seg_len.tolist() == [0, 0] and out.seg_of_frame.shape == (2, 0) and (out.segments == 0).all()


def test_gradient_reaches_frames_and_predictor():
    torch.manual_seed(0)
    module, hidden = CIFCompressor(DIM, quantity_weight=0.0), torch.randn(2, 9, DIM, requires_grad=True)
    out = run(module, hidden, [9, 6], [4, 2], 4)
    (out.segments * torch.randn(2, 4, DIM)).sum().backward()
    assert (hidden.grad[0].abs().sum(1) > 0).all() and (hidden.grad[1, 6:] == 0).all()
    assert all(p.grad.abs().sum() > 0 for p in module.parameters()) and (out.loss == 0).all()


def test_the_quantity_loss_teaches_the_predictor():
    torch.manual_seed(0)
    module, hidden = CIFCompressor(DIM), torch.randn(1, 9, DIM, requires_grad=True)
    run(module, hidden, [9], [4], 4).loss.sum().backward()
    assert hidden.grad.any() and all(p.grad.any() for p in module.parameters())


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"log_weight must be \[B, T\], got \(1, 2, 3\)"):
        cif_weights(torch.zeros(1, 2, 3), torch.tensor([2]), torch.tensor([1]), 1)

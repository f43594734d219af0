"""CTC compression against a slow loop."""

import numpy as np
import pytest
import torch

from nemo_comat import ctc_compress, ctc_viterbi
from nemo_comat.compress import BLANKS, LABELS, POOLS, pool_segments, run_segments

BLANK = 3


def random_batch(batch, frames, tokens, *, vocab=4, dim=5, seed=0):
    rng = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, frames, dim, generator=rng)
    log_probs = (3 * torch.randn(batch, frames, vocab, generator=rng)).log_softmax(-1)
    targets = torch.randint(0, vocab - 1, (batch, tokens), generator=rng)
    return hidden, log_probs, targets


def states_to_labels(states, target):
    return [BLANK if state % 2 == 0 else target[state // 2] for state in states]


def slow_compress(hidden, frames, log_probs, run, labels, blanks, pool, blank=BLANK):
    """One row, in float64 with loops: list of segment vectors."""
    segments, t = [], 0
    while t < frames:
        end = t
        while end < frames and run[end] == run[t]:
            end += 1
        if labels[t] != blank or blanks == "keep":
            posterior = np.exp([log_probs[i, labels[i]] for i in range(t, end)])
            weight = {"avg": np.ones(end - t), "weighted": posterior, "softmax": np.exp(posterior)}[pool]
            segments.append((weight[:, None] * hidden[t:end]).sum(0) / weight.sum())
        t = end
    return segments


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("blanks", BLANKS)
@pytest.mark.parametrize("pool", POOLS)
def test_compress_against_a_slow_loop(labels, blanks, pool):
    hidden, log_probs, targets = random_batch(5, 24, 6)
    frame_len, target_len = torch.tensor([24, 20, 13, 1, 3]), torch.tensor([6, 3, 6, 1, 6])
    options = dict(labels=labels, blanks=blanks, pool=pool, blank=BLANK)
    out = ctc_compress(hidden, frame_len, log_probs, targets=targets, target_len=target_len, **options)
    states = ctc_viterbi(log_probs, frame_len, targets, target_len, blank=BLANK).tolist()
    for row, frames in enumerate(frame_len.tolist()):
        if labels == "greedy":
            run = label = log_probs[row].argmax(-1).tolist()
        elif row == 4:  # 6 tokens in 3 frames: no path, no segment
            run, label, frames = [], [], 0
        else:
            run, label = states[row], states_to_labels(states[row], targets[row].tolist())
        wanted = slow_compress(
            hidden[row].double().numpy(), frames, log_probs[row].double().numpy(), run, label, blanks, pool
        )
        assert out.seg_len[row] == len(wanted)
        if wanted:
            np.testing.assert_allclose(out.segments[row, : len(wanted)].numpy(), np.array(wanted), rtol=1e-4, atol=1e-5)
        assert (out.segments[row, len(wanted) :] == 0).all() and (out.seg_label[row, len(wanted) :] == -1).all()
        for t in range(frames):
            s = out.seg_of_frame[row, t].item()
            assert s == -1 and label[t] == BLANK if s < 0 else out.seg_label[row, s] == label[t]


def test_forced_segments_are_the_transcript():
    hidden, log_probs, _ = random_batch(1, 12, 4)
    targets = torch.tensor([[1, 1, 0, 0]])
    reference = dict(labels="forced", targets=targets, target_len=torch.tensor([4]))
    out = ctc_compress(hidden, torch.tensor([12]), log_probs, blank=BLANK, **reference)
    assert out.seg_len.tolist() == [4] and out.seg_label.tolist() == [[1, 1, 0, 0]]


def test_blanks_part_equal_neighbours():
    labels = torch.tensor([[1, 1, BLANK, 1, 2, 2, BLANK, BLANK]])
    dropped, n = run_segments(labels, labels == BLANK, torch.tensor([7]), blanks="drop")
    assert dropped.tolist() == [[0, 0, -1, 1, 2, 2, -1, -1]] and n.tolist() == [3]
    kept, n = run_segments(labels, labels == BLANK, torch.tensor([7]), blanks="keep")
    assert kept.tolist() == [[0, 0, 1, 2, 3, 3, 4, -1]] and n.tolist() == [5]


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("pool", POOLS)
def test_padding_changes_nothing(labels, pool):
    hidden, log_probs, targets = random_batch(2, 10, 3)
    frame_len, target_len = torch.tensor([10, 6]), torch.tensor([3, 2])
    options = dict(blank=BLANK, labels=labels, pool=pool, target_len=target_len)
    plain = ctc_compress(hidden, frame_len, log_probs, targets=targets, **options)
    hidden, log_probs, targets = hidden.clone(), log_probs.clone(), targets.clone()
    hidden[1, 6:], log_probs[1, 6:], targets[1, 2:] = 1e9, 0.0, BLANK
    hidden, log_probs = (torch.nn.functional.pad(x, (0, 0, 0, 4), value=7.0) for x in (hidden, log_probs))
    padded = ctc_compress(hidden, frame_len, log_probs, targets=torch.nn.functional.pad(targets, (0, 2)), **options)
    most = int(plain.seg_len.max())
    assert padded.seg_len.equal(plain.seg_len)
    torch.testing.assert_close(padded.segments[:, :most], plain.segments[:, :most])
    assert (padded.segments[:, most:] == 0).all()


def test_every_blank_of_a_forced_path_is_a_segment():
    labels = [BLANK, 1, BLANK, 0, BLANK]
    log_probs, hidden = torch.eye(4)[None, labels].mul(9).log_softmax(-1), torch.arange(5.0)[None, :, None]
    reference = dict(targets=torch.tensor([[1, 0]]), target_len=torch.tensor([2]))
    out = ctc_compress(hidden, torch.tensor([5]), log_probs, blank=BLANK, labels="forced", blanks="keep", **reference)
    assert out.seg_label.tolist() == [labels] and out.segments[0, :, 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("pool", POOLS)
def test_what_is_left_out_or_large_is_not_in_the_gradient(pool):
    hidden, log_probs, _ = random_batch(1, 6, 1)
    hidden[0, :4] = 3e38  # their mean is a number, their sum is none
    hidden[0, 4:] = float("nan")  # a frame that is dropped as blank, and one of padding
    log_probs[0, :4, 0], log_probs[0, 4:, BLANK] = 9.0, 9.0
    log_probs = log_probs.log_softmax(-1)
    hidden.requires_grad_(), log_probs.requires_grad_()
    out = ctc_compress(hidden, torch.tensor([5]), log_probs, blank=BLANK, pool=pool)
    assert out.seg_len.tolist() == [1]
    (out.segments[0, 0] / 3e38).sum().backward()
    assert hidden.grad.isfinite().all() and (hidden.grad[0, 4:] == 0).all()
    assert log_probs.grad is None or log_probs.grad.isfinite().all()


@pytest.mark.parametrize("pool", POOLS)
def test_gradients_reach_frames_and_posteriors(pool):
    hidden, log_probs, _ = random_batch(1, 6, 1)
    log_probs[0, :, 0] += torch.tensor([5.0, 5, 5, 0, 0, 0])  # a run of three frames
    hidden, log_probs = hidden.double().requires_grad_(), log_probs.double().requires_grad_()
    seg_of_frame = torch.tensor([[0, 0, 0, -1, 1, 1]])
    weight = None if pool == "avg" else log_probs[..., 0]

    def pooled(hidden, log_probs):
        return pool_segments(hidden, seg_of_frame, weight if pool == "avg" else log_probs[..., 0], 2)

    if pool == "avg":
        pooled(hidden, log_probs).sum().backward()
        assert hidden.grad[0, :, 0].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0.5, 0.5])
    else:
        torch.manual_seed(0)
        mix = torch.randn(1, 2, 5, dtype=torch.float64)
        (pooled(hidden, log_probs) * mix).sum().backward()
        assert (hidden.grad[0, 3] == 0).all() and (log_probs.grad[0, [0, 1, 2, 4, 5], 0] != 0).all()


def test_tiny_posteriors_still_weigh():
    log_weight = torch.tensor([[-500.0, -500.0 + np.log(3)]])
    pooled = pool_segments(torch.tensor([[[0.0], [1.0]]]), torch.tensor([[0, 0]]), log_weight, 1)
    assert pooled.item() == pytest.approx(0.75, abs=1e-4)


def test_bad_arguments_are_refused():
    hidden, log_probs, targets = random_batch(1, 4, 2)
    frame_len = torch.tensor([4])
    with pytest.raises(ValueError, match="labels must be one of greedy, forced"):
        ctc_compress(hidden, frame_len, log_probs, blank=BLANK, labels="viterbi")
    with pytest.raises(ValueError, match="pool one of avg, weighted, softmax; got 'greedy', 'max'"):
        ctc_compress(hidden, frame_len, log_probs, blank=BLANK, pool="max")
    with pytest.raises(ValueError, match="blanks must be one of drop, keep; got 'yes'"):
        ctc_compress(hidden, frame_len, log_probs, blank=BLANK, blanks="yes")
    with pytest.raises(ValueError, match="labels='forced' needs targets"):
        ctc_compress(hidden, frame_len, log_probs, blank=BLANK, labels="forced")
    with pytest.raises(ValueError, match="of the same frames"):
        ctc_compress(hidden[:, :3], frame_len, log_probs, blank=BLANK)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    hidden = torch.full((1, 3000, 1), 60000.0).to(dtype)
    segments = pool_segments(hidden, torch.zeros(1, 3000, dtype=torch.int64), None, 1)
    assert segments.dtype == dtype and segments.item() == hidden[0, 0, 0]


def test_lengths_and_labels_of_any_integer_dtype():
    hidden, log_probs, targets = random_batch(2, 9, 3)
    lengths = torch.tensor([9, 5]), torch.tensor([3, 2])
    reference = dict(targets=targets, target_len=lengths[1])
    wanted = ctc_compress(hidden, lengths[0], log_probs, blank=BLANK, labels="forced", **reference)
    for dtype in (torch.uint8, torch.uint16, torch.uint64, torch.int8):
        reference = dict(targets=targets.to(dtype), target_len=lengths[1].to(dtype))
        out = ctc_compress(hidden, lengths[0].to(dtype), log_probs, blank=BLANK, labels="forced", **reference)
        assert all(a.equal(b) for a, b in zip(out, wanted))


@pytest.mark.parametrize("pool", ["weighted", "softmax"])
def test_what_is_no_posterior_reaches_no_gradient(pool):
    hidden, log_probs, _ = random_batch(3, 6, 2)
    log_probs[0, 2], log_probs[1, 3, 0], log_probs[2] = float("nan"), float("inf"), -float("inf")
    hidden.requires_grad_(), log_probs.requires_grad_()
    ctc_compress(hidden, torch.tensor([6, 6, 6]), log_probs, blank=BLANK, pool=pool).segments.sum().backward()
    assert hidden.grad.isfinite().all() and log_probs.grad.isfinite().all()


def test_frames_and_blanks_out_of_range_are_refused():
    hidden, log_probs, _ = random_batch(2, 6, 2)
    with pytest.raises(ValueError, match=r"frame_len must lie in 0\.\.6, got \[7, 6\]"):
        ctc_compress(hidden, torch.tensor([7, 6]), log_probs, blank=BLANK)
    with pytest.raises(ValueError, match=r"frame_len must be integers \[2\], got torch.int64 \(3,\)"):
        ctc_compress(hidden, torch.tensor([6, 6, 6]), log_probs, blank=BLANK)
    with pytest.raises(ValueError, match=r"blank must lie in 0\.\.3, got 4"):
        ctc_compress(hidden, torch.tensor([6, 6]), log_probs, blank=4)
    with pytest.raises(ValueError, match=r"hidden must be floats .* got torch.int64"):
        ctc_compress(hidden.long(), torch.tensor([6, 6]), log_probs, blank=BLANK)

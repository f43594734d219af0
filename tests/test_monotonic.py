"""Monotonic alignment search: every backend against brute force, a planted path, and the contract's corner cases."""

import threading
import time
from itertools import combinations

import numpy as np
import pytest
import torch

from nemo_comat import monotonic_align, segment_log_softmax
from nemo_comat.align import MonotonicAligner

BACKENDS = ["cpu", "torch"]
INF = float("inf")


def brute_force(score):
    """Best path of one row by trying all: [S] tokens and its float64 total, or None where no total is finite."""
    segs, tokens = score.shape
    best, best_total = None, -INF
    for steps in combinations(range(1, segs), tokens - 1):
        path = np.zeros(segs, dtype=int)
        for step in steps:
            path[step:] += 1
        with np.errstate(invalid="ignore"):
            total = score[np.arange(segs), path].sum()
        if total > best_total:
            best, best_total = path, total
    return (best, best_total) if np.isfinite(best_total) else (None, None)


def oracle(score, dtype=np.float64):
    """The recursion by its definition, one row, ties on the current token: a second, independent answer.

    In float64 it is the exact one; in float32 it is rounded as the contract says.
    """
    segs, tokens = score.shape
    score = np.where(np.isnan(score), -INF, score).astype(dtype)
    value = np.full((segs, tokens), -INF, dtype=dtype)
    value[0, 0] = score[0, 0]
    with np.errstate(over="ignore", invalid="ignore"):
        for s in range(1, segs):
            for n in range(tokens):
                best = max(value[s - 1, n], value[s - 1, n - 1] if n else -INF)
                total = score[s, n] + best
                value[s, n] = -INF if np.isnan(total) else total
    if not np.isfinite(value[-1, -1]):
        return [-1] * segs
    n, path = tokens - 1, []
    for s in range(segs - 1, -1, -1):
        path.append(n)
        if s and n and value[s - 1, n - 1] > value[s - 1, n]:
            n -= 1
    return path[::-1]


def lengths(*values):
    return torch.tensor(values)


@pytest.mark.parametrize("backend", BACKENDS)
def test_brute_force_on_all_small_sizes(backend):
    rng = np.random.default_rng(0)
    for segs in range(1, 10):
        for tokens in range(1, segs + 1):
            score = rng.normal(size=(4, segs, tokens)).astype(np.float32)
            path = monotonic_align(torch.tensor(score), lengths(*[segs] * 4), lengths(*[tokens] * 4), backend=backend)
            for row in range(4):
                assert path[row].tolist() == brute_force(score[row].astype(np.float64))[0].tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_ragged_batches_agree_with_the_float64_oracle(backend):
    rng = np.random.default_rng(1)
    for _ in range(30):
        batch, segs, tokens = rng.integers(1, 6), rng.integers(1, 40), rng.integers(1, 20)
        # integers sum exactly in float32, so that ties are ties in both
        score = rng.integers(-3, 4, size=(batch, segs, tokens)).astype(np.float32)
        score[rng.random(score.shape) < 0.05] = -INF
        score[rng.random(score.shape) < 0.05] = np.nan
        seg_len, text_len = rng.integers(0, segs + 1, batch), rng.integers(0, tokens + 1, batch)
        path = monotonic_align(torch.tensor(score), torch.tensor(seg_len), torch.tensor(text_len), backend=backend)
        assert path.dtype == torch.int32
        for row, (s, n) in enumerate(zip(seg_len, text_len)):
            wanted = oracle(score[row, :s, :n]) if 0 < n <= s else [-1] * s
            assert path[row].tolist() == wanted + [-1] * (segs - s)


@pytest.mark.parametrize("backend", BACKENDS)
def test_planted_path_is_found(backend):
    torch.manual_seed(0)
    segs, tokens = 300, 70
    steps = torch.randperm(segs - 1)[: tokens - 1].sort().values + 1
    planted = torch.zeros(segs, dtype=torch.int32)
    planted[steps] = 1
    planted = planted.cumsum(0)
    score = 0.1 * torch.randn(1, segs, tokens)
    score[0, torch.arange(segs), planted] += 5
    assert monotonic_align(score, lengths(segs), lengths(tokens), backend=backend)[0].tolist() == planted.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_corner_cases(backend):
    score = torch.zeros(7, 3, 3)
    score[5, 1, 1] = INF
    score[6, :, 0] = -INF
    seg_len, text_len = lengths(3, 3, 2, 0, 3, 3, 3), lengths(1, 3, 3, 0, 0, 2, 1)
    path = monotonic_align(score, seg_len, text_len, backend=backend).tolist()
    assert path[0] == [0, 0, 0]  # one token
    assert path[1] == [0, 1, 2]  # S = N
    assert path[2] == [-1, -1, -1]  # S < N
    assert path[3] == path[4] == [-1, -1, -1]  # zero lengths
    assert path[5] == [-1, -1, -1]  # a best path that is not finite
    assert path[6] == [-1, -1, -1]  # no finite path
    assert monotonic_align(torch.zeros(0, 3, 2), lengths().long(), lengths().long(), backend=backend).shape == (0, 3)
    assert monotonic_align(torch.zeros(1, 2, 0), lengths(2), lengths(0), backend=backend).tolist() == [[-1, -1]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_stay_on_the_current_token(backend):
    # going back from the end, equal values stay: the last token starts as early as it can
    assert monotonic_align(torch.zeros(1, 5, 2), lengths(5), lengths(2), backend=backend).tolist() == [[0, 1, 1, 1, 1]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [-1e10, 1e10])
def test_scores_far_from_zero(backend, scale):
    # a finite stand-in for -inf would win against such scores
    score = torch.full((1, 4, 2), scale)
    score[0, 2, 1] += abs(scale)
    path = monotonic_align(score, lengths(4), lengths(2), backend=backend)[0].tolist()
    assert path[0] == 0 and path[2:] == [1, 1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_and_strides(backend, dtype):
    torch.manual_seed(0)
    score = torch.randn(3, 20, 7).to(dtype)
    kept = score.clone()
    seg_len, text_len = lengths(20, 15, 9), lengths(7, 5, 7)
    plain = monotonic_align(score.float(), seg_len, text_len, backend="torch")
    frames_innermost = score.transpose(1, 2).contiguous().transpose(1, 2)
    every_second = torch.stack((score, score), -1).flatten(2)[..., ::2]
    for view in (score, frames_innermost, every_second):
        assert monotonic_align(view, seg_len.int(), text_len.int(), backend=backend).equal(plain)
    assert score.equal(kept)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_changes_nothing(backend):
    torch.manual_seed(0)
    score, seg_len, text_len = torch.randn(2, 12, 5), lengths(12, 7), lengths(5, 3)
    padded = torch.full((2, 20, 9), float("nan"))
    padded[0, :12, :5] = score[0]
    padded[1, :7, :3] = score[1, :7, :3]
    path = monotonic_align(score, seg_len, text_len, backend=backend)
    longer = monotonic_align(padded, seg_len, text_len, backend=backend)
    assert longer[:, :12].equal(path) and (longer[:, 12:] == -1).all()


def test_bad_arguments_are_refused():
    score = torch.zeros(2, 4, 3)
    with pytest.raises(ValueError, match=r"score must be a float tensor \[B, S, N\]"):
        monotonic_align(score[0], lengths(4), lengths(3))
    with pytest.raises(ValueError, match="score must be a float tensor"):
        monotonic_align(score.long(), lengths(4, 4), lengths(3, 3))
    with pytest.raises(ValueError, match=r"seg_len must be integers \[2\]"):
        monotonic_align(score, lengths(4), lengths(3, 3))
    with pytest.raises(ValueError, match=r"text_len must lie in 0\.\.3, got \[3, 4\]"):
        monotonic_align(score, lengths(4, 4), lengths(3, 4))
    with pytest.raises(ValueError, match="seg_len must lie in"):
        monotonic_align(score, lengths(-1, 4), lengths(3, 3))
    with pytest.raises(ValueError, match="backend must be one of auto, cuda, cpu, torch; got 'gpu'"):
        monotonic_align(score, lengths(4, 4), lengths(3, 3), backend="gpu")


def test_threads_share_the_cpu_backend():
    torch.manual_seed(0)
    scores, seg_len, text_len = torch.randn(4, 8, 200, 60), torch.full((8,), 200), torch.full((8,), 60)
    wanted = [monotonic_align(score, seg_len, text_len, backend="torch") for score in scores]
    found, together = [None] * 4, threading.Barrier(4)

    def run(i):
        together.wait()
        found[i] = [monotonic_align(scores[i], seg_len, text_len, backend="cpu") for _ in range(20)]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(path.equal(wanted[i]) for i in range(4) for path in found[i])


def test_the_cpu_backend_lets_other_threads_run():
    score, seg_len, text_len = torch.zeros(64, 2000, 400), torch.full((64,), 2000), torch.full((64,), 400)
    monotonic_align(score[:1], seg_len[:1], text_len[:1], backend="cpu")
    thread = threading.Thread(target=monotonic_align, args=(score, seg_len, text_len), kwargs={"backend": "cpu"})
    thread.start()
    waits = 0
    while thread.is_alive():
        time.sleep(0.001)
        waits += 1
    # with the lock held, the first wait would last until the call ends
    assert waits > 3


@pytest.mark.gpu
def test_torch_backend_on_a_gpu_equals_cpu():
    torch.manual_seed(0)
    score, seg_len, text_len = torch.randn(8, 50, 20), torch.randint(0, 51, (8,)), torch.randint(0, 21, (8,))
    there = monotonic_align(score.cuda(), seg_len.cuda(), text_len.cuda(), backend="torch")
    assert there.is_cuda and there.cpu().equal(monotonic_align(score, seg_len, text_len))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64])
def test_unsigned_lengths(dtype):
    score = torch.zeros(2, 3, 2)
    path = monotonic_align(score, lengths(3, 2).to(dtype), lengths(2, 1).to(dtype))
    assert path.tolist() == [[0, 1, 1], [0, 0, -1]]


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64])
def test_lengths_that_are_no_integers_are_refused(dtype):
    with pytest.raises(ValueError, match=r"seg_len must be integers \[1\], got"):
        monotonic_align(torch.zeros(1, 1, 1), lengths(1).to(dtype), lengths(1))


def test_segment_log_softmax_by_hand():
    # exp(score / 0.5) is 1, 3, 4 and 1, 1, 2 and what is not counted: beyond the length, and NaN
    score = 0.5 * torch.tensor([[1.0, 1.0], [3.0, 1.0], [4.0, 2.0], [9.0, 9.0]]).log()[None]
    score[0, 3, 1] = torch.nan
    shares = segment_log_softmax(score, torch.tensor([3]), temperature=0.5).exp()[0]
    torch.testing.assert_close(shares[:3], torch.tensor([[1 / 8, 1 / 4], [3 / 8, 1 / 4], [4 / 8, 1 / 2]]))
    assert (shares[3] == 0).all()
    score[0, 1, 0] = torch.nan
    shares = segment_log_softmax(score.half(), torch.tensor([3]), temperature=0.5).exp()[0]
    torch.testing.assert_close(shares[[0, 2], 0], torch.tensor([1 / 5, 4 / 5]), rtol=1e-3, atol=0)
    assert shares.dtype == torch.float32 and shares[1, 0].isnan()


def test_no_segment_of_a_row_without_segments_has_a_share():
    shares = segment_log_softmax(torch.zeros(2, 4, 2), torch.tensor([0, 4])).exp()
    assert (shares[0] == 0).all() and (shares[1] == 0.25).all()


@pytest.mark.parametrize("temperature", [0, -0.1])
def test_a_temperature_that_is_not_above_0_is_refused(temperature):
    with pytest.raises(ValueError, match=f"temperature must be above 0, got {temperature}; None aligns the score"):
        MonotonicAligner(temperature=temperature)(torch.zeros(1, 3, 2), torch.tensor([3]), torch.tensor([2]))


def test_a_token_that_is_like_everything_does_not_draw_all_segments():
    # three segments for each token; the one in the middle is a frequent word, nearer to every segment than their own
    own = torch.eye(3).repeat_interleave(3, 0)
    score = (0.3 * own + torch.tensor([0.0, 0.5, 0.0]))[None]
    lengths = torch.tensor([9]), torch.tensor([3])
    assert monotonic_align(score, *lengths).tolist() == [[0, 1, 1, 1, 1, 1, 1, 1, 2]]
    for aligner, wanted in (
        (MonotonicAligner(), [0, 0, 0, 1, 1, 1, 2, 2, 2]),
        (MonotonicAligner(temperature=None), [0, 1, 1, 1, 1, 1, 1, 1, 2]),
    ):
        path, plan = aligner(score, *lengths)
        assert path.tolist() == [wanted] and plan is None


def test_the_aligner_does_not_see_padding():
    score = torch.randn(3, 8, 4)
    lengths = torch.tensor([8, 6, 3]), torch.tensor([4, 2, 3])
    path = MonotonicAligner()(score, *lengths)[0]
    for row, (segs, tokens) in enumerate(zip(*lengths)):
        alone = MonotonicAligner()(score[row : row + 1, :segs, :tokens], segs[None], tokens[None])[0]
        assert path[row].tolist() == alone[0].tolist() + [-1] * (8 - int(segs))

"""CTC Viterbi: every backend against enumeration and a recursion; the CUDA kernel emulated, compiled, and on a GPU."""

from itertools import product

import emulated
import emulated_viterbi
import numpy as np
import pytest
import torch
from devices import DEVICES, H200, T4, cramped, cubin_size, to_gpu

from nemo_comat import ctc_viterbi
from nemo_comat.kernels import viterbi_cuda

BLANK = 3
INF = float("inf")
BACKENDS = pytest.mark.parametrize("backend", ["cpu", "torch"])
COMPILER = pytest.mark.skipif(not emulated.available(), reason="needs g++")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def one_thread():
    """The torch backend's operations are so small here that on a busy machine threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_log_probs(*shape, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(shape, generator=rng)).log_softmax(-1)


def random_batches(count, seed=0, most=(5, 30, 15)):
    """(log_probs, frame_len, targets, target_len, blank): ragged, every kind of scores, dtype, stride and integer."""
    rng = np.random.default_rng(seed)
    for case in range(count):
        batch, frames, tokens = (int(rng.integers(1, n + 1)) for n in most)
        tokens *= case % 9 != 8
        vocab = int(rng.integers(1, 8))
        log_probs = emulated.random_scores(rng, emulated.KINDS[case % len(emulated.KINDS)], (batch, frames, vocab))
        log_probs = torch.tensor(log_probs).to(DTYPES[case % 3])
        if case % 4 == 1:
            log_probs = log_probs.transpose(1, 2).contiguous().transpose(1, 2)
        if case % 4 == 2:
            log_probs = torch.stack((log_probs, log_probs), -1)[..., 0]
        frame_len = torch.tensor(rng.integers(0, frames + 1, batch))
        target_len = torch.tensor(rng.integers(0, np.minimum(tokens, frame_len.numpy()) + 1))
        targets = torch.tensor(rng.integers(0, vocab, (batch, tokens)))
        if case % 2:
            frame_len, targets = frame_len.int(), targets.int()
        yield log_probs, frame_len, targets, target_len, int(rng.integers(vocab))


def recursion(log_probs, frame_len, targets, target_len, blank):
    rows = zip(log_probs.float().numpy(), frame_len.tolist(), targets.tolist(), target_len.tolist())
    return torch.tensor(np.array([emulated_viterbi.recursion(*row, blank) for row in rows]))


# --- against other answers ---


def collapse(labels):
    kept = [label for i, label in enumerate(labels) if i == 0 or label != labels[i - 1]]
    return [label for label in kept if label != BLANK]


def brute_force(log_probs, target):
    """Largest float64 log-probability over all label sequences that collapse to the target, or None."""
    best = None
    for labels in product(range(log_probs.shape[1]), repeat=len(log_probs)):
        if collapse(labels) == target:
            total = sum(log_probs[t, label] for t, label in enumerate(labels))
            best = total if best is None else max(best, total)
    return best


@pytest.mark.parametrize("target", [[], [0], [1, 1], [0, 1, 0], [2, 2, 2], [0, 0, 1]])
def test_against_enumeration(target):
    for frames in range(1, 7):
        log_probs = random_log_probs(1, frames, 4, seed=frames)
        targets = torch.tensor([target + [0] * (4 - len(target))])
        best = brute_force(log_probs[0].double().numpy(), target)
        for backend in ("cpu", "torch"):
            lengths = torch.tensor([frames]), torch.tensor([len(target)])
            path = ctc_viterbi(log_probs, lengths[0], targets, lengths[1], blank=BLANK, backend=backend)[0].tolist()
            if best is None:
                assert path == [-1] * frames
                continue
            labels = [BLANK if state % 2 == 0 else target[state // 2] for state in path]
            assert collapse(labels) == target
            assert sum(float(log_probs[0, t, label]) for t, label in enumerate(labels)) == pytest.approx(best, abs=1e-4)


@BACKENDS
def test_random_batches_agree_with_the_recursion(backend):
    possible = 0
    for log_probs, frame_len, targets, target_len, blank in random_batches(60):
        path = ctc_viterbi(log_probs, frame_len, targets, target_len, blank=blank, backend=backend)
        wanted = recursion(log_probs, frame_len, targets, target_len, blank)
        assert path.dtype == torch.int64 and path.equal(wanted)
        possible += int((wanted[:, 0] >= 0).sum())
    assert possible > 30


def test_cpu_equals_torch_on_larger_batches():
    for log_probs, frame_len, targets, target_len, blank in random_batches(15, seed=1, most=(6, 120, 60)):
        arguments = log_probs, frame_len, targets, target_len
        assert ctc_viterbi(*arguments, blank=blank, backend="cpu").equal(
            ctc_viterbi(*arguments, blank=blank, backend="torch")
        )


# --- by hand ---


@BACKENDS
def test_frames_just_enough_and_one_too_few(backend):
    # repeated labels need a blank between them: 1 1 2 takes 4 frames
    targets = torch.tensor([[1, 1, 2], [1, 1, 2]])
    lengths = torch.tensor([4, 3]), torch.tensor([3, 3])
    path = ctc_viterbi(random_log_probs(2, 4, 4), lengths[0], targets, lengths[1], blank=BLANK, backend=backend)
    assert path.tolist() == [[1, 2, 3, 5], [-1, -1, -1, -1]]


@BACKENDS
def test_ties(backend):
    def path(frames, *target):
        targets, lengths = torch.tensor([target]), (torch.tensor([frames]), torch.tensor([len(target)]))
        log_probs = torch.zeros(1, frames, 4)
        return ctc_viterbi(log_probs, lengths[0], targets, lengths[1], blank=BLANK, backend=backend)[0].tolist()

    # going back: the last blank before the last token, staying before one state, one state before two
    assert path(5, 0) == [1, 2, 2, 2, 2]
    assert path(5, 0, 1) == [1, 3, 4, 4, 4]
    assert path(2, 0, 1) == [1, 3]
    assert path(5, 1, 1) == [1, 2, 3, 4, 4]


@BACKENDS
def test_a_batch_equals_its_rows_alone(backend):
    log_probs, targets = random_log_probs(6, 30, 4), torch.randint(0, 3, (6, 8))
    frame_len, target_len = torch.tensor([30, 25, 12, 9, 5, 0]), torch.tensor([8, 0, 3, 5, 8, 0])
    batch = ctc_viterbi(log_probs, frame_len, targets, target_len, blank=BLANK, backend=backend)
    for row, (t, u) in enumerate(zip(frame_len.tolist(), target_len.tolist())):
        one = slice(row, row + 1)
        lengths = frame_len[one], target_len[one]
        alone = ctc_viterbi(log_probs[one, :t], lengths[0], targets[one, :u], lengths[1], blank=BLANK, backend=backend)
        assert batch[row, :t].equal(alone[0]) and (batch[row, t:] == -1).all()


@BACKENDS
def test_probability_zero_nan_and_infinity_are_refused(backend):
    log_probs, targets = random_log_probs(3, 6, 4), torch.tensor([[0, 1]] * 3)
    log_probs[0, :, 0], log_probs[1, 3], log_probs[2, 0, 0] = -INF, float("nan"), INF
    lengths = torch.tensor([6, 6, 6]), torch.tensor([2, 2, 2])
    assert (ctc_viterbi(log_probs, lengths[0], targets, lengths[1], blank=BLANK, backend=backend) == -1).all()


@BACKENDS
def test_nothing_to_do(backend):
    def path(batch, frames, tokens):
        lengths = torch.full((batch,), frames), torch.full((batch,), tokens)
        log_probs, targets = torch.zeros(batch, frames, 4), torch.zeros(batch, tokens, dtype=torch.long)
        return ctc_viterbi(log_probs, lengths[0], targets, lengths[1], blank=BLANK, backend=backend)

    assert path(0, 5, 2).shape == (0, 5) and path(2, 0, 2).shape == (2, 0) and path(2, 0, 0).shape == (2, 0)
    assert (
        path(1, 3, 0).tolist() == [[0, 0, 0]] and path(1, 1, 1).tolist() == [[1]] and path(1, 1, 2).tolist() == [[-1]]
    )


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_strides_and_a_gradient_that_is_not_asked_for(backend, dtype):
    log_probs, targets = random_log_probs(3, 20, 4).to(dtype), torch.randint(0, 3, (3, 5))
    frame_len, target_len = torch.tensor([20, 15, 9]), torch.tensor([5, 3, 4])
    plain = ctc_viterbi(log_probs.float(), frame_len, targets, target_len, blank=BLANK, backend="torch")
    kept = log_probs.clone()
    frames_innermost = log_probs.transpose(1, 2).contiguous().transpose(1, 2)
    every_second = torch.stack((log_probs, log_probs), -1).flatten(2)[..., ::2]
    for view in (log_probs, frames_innermost, every_second, log_probs.clone().requires_grad_()):
        path = ctc_viterbi(view, frame_len.int(), targets.int(), target_len.int(), blank=BLANK, backend=backend)
        assert path.equal(plain)
    wide = torch.stack((targets, targets), -1).flatten(1)[:, ::2]
    assert ctc_viterbi(log_probs, frame_len, wide, target_len, blank=BLANK, backend=backend).equal(plain)
    assert log_probs.equal(kept)


@BACKENDS
def test_padding_changes_nothing(backend):
    log_probs, targets = random_log_probs(2, 12, 4), torch.randint(0, 3, (2, 5))
    frame_len, target_len = torch.tensor([12, 7]), torch.tensor([5, 3])
    padded, more = torch.full((2, 20, 4), float("nan")), torch.full((2, 9), 99)
    padded[0, :12], padded[1, :7] = log_probs[0], log_probs[1, :7]
    more[0, :5], more[1, :3] = targets[0], targets[1, :3]
    path = ctc_viterbi(log_probs, frame_len, targets, target_len, blank=BLANK, backend=backend)
    longer = ctc_viterbi(padded, frame_len, more, target_len, blank=BLANK, backend=backend)
    assert longer[:, :12].equal(path) and (longer[:, 12:] == -1).all()


def test_bad_arguments_are_refused():
    log_probs, targets, two = torch.zeros(2, 4, 5), torch.zeros(2, 3, dtype=torch.long), torch.tensor([2, 2])

    def refused(message, log_probs=log_probs, frame_len=two, targets=targets, target_len=two, blank=0):
        with pytest.raises(ValueError, match=message):
            ctc_viterbi(log_probs, frame_len, targets, target_len, blank=blank)

    refused(
        r"log_probs must be floats \[B, T, V\] and targets integers \[B, U\], got torch.float32 \(4, 5\)", log_probs[0]
    )
    refused(r"log_probs must be floats .* got torch.int64", log_probs.long())
    refused(r"targets integers \[B, U\]", targets=targets[0])
    refused("targets must have log_probs' 2 rows, got 1", targets=targets[:1])
    refused(r"frame_len must be integers \[2\], got torch.int64 \(1,\)", frame_len=two[:1])
    refused(r"target_len must be integers \[2\], got torch.float32", target_len=two.float())
    refused(r"frame_len must lie in 0\.\.4, got \[2, 5\]", frame_len=torch.tensor([2, 5]))
    refused(r"target_len must lie in 0\.\.3, got \[-1, 3\]", target_len=torch.tensor([-1, 3]))
    refused(r"targets must lie in 0\.\.4, got 0\.\.5", targets=targets + 5)
    refused(r"targets must lie in 0\.\.4, got -1\.\.0", targets=torch.tensor([[0, -1, 0]] * 2))
    refused(r"blank must lie in 0\.\.4, got 5", blank=5)


@BACKENDS
def test_rows_out_of_range_that_were_not_checked_have_no_path(monkeypatch, backend):
    monkeypatch.setattr("nemo_comat.compress.viterbi._check", lambda *arguments: None)
    log_probs, targets = torch.zeros(7, 4, 4), torch.zeros(7, 2, dtype=torch.long)
    targets[:, 1] = torch.tensor([1, 1, 1, 1, 1, 4, -1])
    frame_len, target_len = torch.tensor([4, 5, -1, 4, 4, 4, 4]), torch.tensor([2, 2, 2, 3, -1, 2, 2])
    path = ctc_viterbi(log_probs, frame_len, targets, target_len, blank=BLANK, backend=backend)
    assert path[0].tolist() == [1, 3, 4, 4] and (path[1:] == -1).all()


# --- launches on an emulated device ---


def test_threads_and_memory():
    assert [viterbi_cuda.threads_of(tokens) for tokens in (0, 31, 32, 500, 511, 512, 9000)] == [32, 32, 64, *[512] * 4]
    for device in DEVICES.values():
        assert viterbi_cuda.shared_bytes_of(viterbi_cuda.MAX_THREADS) <= min(48 << 10, device.shared_per_block)
    # 400 frames of 60 tokens: 12 KiB of directions
    assert viterbi_cuda.direction_words(400, 60) == 50 * 61


def launch_cases():
    yield from random_batches(30, seed=2)
    # all of a block of several warps, and one pair more than a block has threads
    for tokens in (100, 511, 512):
        log_probs = random_log_probs(1, tokens + 40, 5, seed=tokens)
        targets = torch.arange(tokens)[None] % 4
        yield log_probs, torch.tensor([tokens + 40]), targets, torch.tensor([tokens]), 4
    log_probs = torch.zeros(1, 1, 1, dtype=torch.float64).expand(2, 12, 5)
    yield log_probs, torch.tensor([12, 9]).short(), torch.ones(2, 3).short(), torch.tensor([3, 2]).short(), 0
    # in memory these have the other sign, and PyTorch knows
    log_probs = torch.complex(torch.zeros(1, 9, 5), random_log_probs(1, 9, 5, seed=3).neg()).conj().imag
    yield log_probs, torch.tensor([9]), torch.tensor([[3, 1, 1]]), torch.tensor([3]), 0


def test_the_launch_cases_can_be_moved():
    for log_probs, *_ in launch_cases():
        moved = to_gpu(log_probs, "cpu")
        torch.testing.assert_close(moved, log_probs, rtol=0, atol=0, equal_nan=True)
        assert moved.stride() == log_probs.stride() and moved.is_neg() == log_probs.is_neg()


@pytest.fixture(scope="module")
def launched_kernels(tmp_path_factory):
    """An Emulator of all instances of the kernel, in their order."""
    library = tmp_path_factory.mktemp("viterbi") / "launched.so"
    source = emulated.source("viterbi")
    emulated.build([emulated_viterbi.entry(x, source) for x in emulated_viterbi.instances()], library, sanitize=False)
    return emulated.Emulator(library)


@COMPILER
@pytest.mark.parametrize("device", [H200, T4], ids=["H200", "T4"])
def test_launches_on_an_emulated_device_equal_the_cpu(launched_kernels, device):
    launched = []

    def run(element, index, blocks, threads, arguments, *, shared_bytes):
        launched.append((threads, int(arguments[-2]) == 0, int(arguments[-1]) == 0))
        entry = emulated_viterbi.instances().index({"element": element})
        launched_kernels.launch(entry, blocks, threads, shared_bytes, arguments, seed=len(launched))

    for log_probs, frame_len, targets, target_len, blank in launch_cases():
        arguments = log_probs, frame_len, targets, target_len
        wanted = ctc_viterbi(*arguments, blank=blank, backend="cpu")
        for place in (device, cramped(device)):
            found = viterbi_cuda.launch(run, *arguments, blank, place)
            assert found.dtype == torch.int64 and found.equal(wanted)
    # (directions in shared memory, one strip): so long a reference has them there on no T4
    seen = {(shared, alone) for _, shared, alone in launched}
    assert seen == {(True, True), (False, True), (False, False), *([(True, False)] if device is H200 else [])}
    assert {threads for threads, *_ in launched} == {32, 128, 512}


@pytest.mark.emulated
@COMPILER
def test_every_instance_agrees_with_the_recursion_under_address_sanitizer(emulation):
    report = emulation.report()["viterbi"]
    assert report["instances"] == 3 and report["cases"] >= 3 * emulated_viterbi.CASES


@pytest.mark.emulated
@COMPILER
@pytest.mark.parametrize("bug", emulated_viterbi.PLANTED)
def test_planted_bugs_are_found(emulation, bug):
    assert emulation.report()["viterbi"]["planted"][bug], f"nothing found: {bug}"


@pytest.mark.parametrize(
    "element, architecture", [("float", 75), ("Half", 75), ("Half", 80), ("Bfloat", 90), ("float", 100)]
)
def test_nvrtc_compiles(element, architecture):
    assert cubin_size("viterbi", f"VITERBI_ELEMENT={element}", f"sm_{architecture}") > 0


# --- on a GPU ---


@pytest.fixture
def cupy():
    return pytest.importorskip("cupy")


def assert_cuda_equals_cpu(log_probs, frame_len, targets, target_len, blank):
    there = to_gpu(log_probs), frame_len.cuda(), targets.cuda(), target_len.cuda()
    wanted = ctc_viterbi(log_probs, frame_len, targets, target_len, blank=blank, backend="cpu")
    assert ctc_viterbi(*there, blank=blank, backend="cuda").cpu().equal(wanted)
    return there, wanted


@pytest.mark.gpu
def test_torch_backend_on_a_gpu_equals_cpu():
    for log_probs, frame_len, targets, target_len, blank in random_batches(20, seed=3):
        there = to_gpu(log_probs), frame_len.cuda(), targets.cuda(), target_len.cuda()
        wanted = ctc_viterbi(log_probs, frame_len, targets, target_len, blank=blank, backend="cpu")
        assert ctc_viterbi(*there, blank=blank, backend="torch").cpu().equal(wanted)


@pytest.mark.gpu
def test_cuda_equals_cpu_on_random_batches(cupy):
    for batch in random_batches(3000, seed=4, most=(8, 300, 120)):
        assert_cuda_equals_cpu(*batch)


@pytest.mark.gpu
def test_cuda_equals_cpu_on_launch_cases(cupy):
    """Small enough for compute-sanitizer; every type, and strips."""
    for batch in launch_cases():
        assert_cuda_equals_cpu(*batch)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(16, 400, 60, 129), (32, 400, 80, 1025), (4, 2000, 500, 40), (2, 5000, 2000, 40)])
def test_cuda_equals_cpu_on_large_shapes(cupy, shape):
    batch, frames, tokens, vocab = shape
    log_probs, targets = random_log_probs(batch, frames, vocab), torch.randint(0, vocab - 1, (batch, tokens))
    lengths = torch.full((batch,), frames), torch.full((batch,), tokens)
    assert_cuda_equals_cpu(log_probs, lengths[0], targets, lengths[1], vocab - 1)


@pytest.mark.gpu
def test_cuda_rows_out_of_range_have_no_path(cupy):
    log_probs, targets = torch.zeros(7, 4, 4).cuda(), torch.zeros(7, 2, dtype=torch.long)
    targets[:, 1] = torch.tensor([1, 1, 1, 1, 1, 4, -1])
    frame_len, target_len = torch.tensor([4, 5, -1, 4, 4, 4, 4]), torch.tensor([2, 2, 2, 3, -1, 2, 2])
    for backend in ("cuda", "torch", "cpu"):
        path = ctc_viterbi(log_probs, frame_len.cuda(), targets.cuda(), target_len.cuda(), blank=BLANK, backend=backend)
        assert path[0].tolist() == [1, 3, 4, 4] and (path[1:] == -1).all()


@pytest.mark.gpu
def test_cuda_graph_side_stream_and_no_sync(cupy):
    log_probs, targets = random_log_probs(4, 100, 6), torch.randint(0, 5, (4, 30))
    lengths = torch.tensor([100, 80, 30, 7]), torch.tensor([30, 9, 30, 8])
    (there, *rest), wanted = assert_cuda_equals_cpu(log_probs, lengths[0], targets, lengths[1], 5)  # compiles
    torch.cuda.synchronize()
    there.zero_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            there.copy_(log_probs.pin_memory(), non_blocking=True)
            on_side = ctc_viterbi(there, *rest, blank=5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert on_side.cpu().equal(wanted)
    there.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ctc_viterbi(there, *rest, blank=5)
    there.copy_(log_probs)
    graph.replay()
    torch.cuda.synchronize()
    assert captured.cpu().equal(wanted)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.uint16, torch.uint32, torch.uint64])
def test_labels_and_lengths_of_any_integer_dtype(dtype):
    log_probs, targets = random_log_probs(2, 9, 300), torch.tensor([[1, 2, 2], [3, 1, 0]])
    lengths = torch.tensor([9, 6]), torch.tensor([3, 2])
    # a blank that an int8 or uint8 label cannot hold
    wanted = ctc_viterbi(log_probs, lengths[0], targets, lengths[1], blank=299)
    small = [x.to(dtype) for x in (lengths[0], targets, lengths[1])]
    for backend in ("cpu", "torch"):
        assert ctc_viterbi(log_probs, *small, blank=299, backend=backend).equal(wanted)

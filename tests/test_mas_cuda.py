"""The CUDA aligner: its choices, launches on an emulated device, its source through NVRTC; and tests for a GPU."""

import itertools

import emulated
import emulated_mas
import numpy as np
import pytest
import torch
from devices import DEVICES, H200, T4, cramped, cubin_size, to_gpu

from nemo_comat import monotonic_align
from nemo_comat.kernels import cuda, mas_cuda
from nemo_comat.kernels.mas_cuda import PLANS, Instance, Plan

COMPILER = "needs g++"


def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype)


# --- choices ---


def test_the_smallest_plan_that_holds_the_text_is_chosen():
    for tokens, width in (
        (1, 64),
        (64, 64),
        (65, 128),
        (200, 256),
        (400, 512),
        (513, 1024),
        (1024, 1024),
        (4096, 1024),
    ):
        instance, _ = mas_cuda.choose(empty(2, 10, tokens), H200)
        assert instance.plan.width == width


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_every_shape_gets_a_plan_that_fits(device):
    sizes = itertools.product((1, 16, 300, 65535), (1, 800, 65536), (1, 60, 200, 500, 1024, 5000), cuda.ELEMENTS)
    for batch, segs, tokens, dtype in sizes:
        score = torch.empty(1, dtype=dtype).expand(batch, segs, tokens)
        instance, moves_shared = mas_cuda.choose(score, device)
        words = instance.direction_words(segs, tokens)
        assert words * 32 >= segs * tokens
        assert instance.shared_bytes + (4 * words if moves_shared else 0) <= device.shared_per_block


def test_directions_are_in_shared_memory_where_the_blocks_of_a_multiprocessor_fit_together():
    assert mas_cuda.choose(empty(64, 800, 200), H200)[1]
    assert not mas_cuda.choose(empty(32, 4096, 1024), H200)[1]
    fits_alone = empty(16, 2000, 400), empty(264, 2000, 400)
    assert [mas_cuda.choose(score, H200)[1] for score in fits_alone] == [True, False]


def test_the_copy_follows_strides_and_address():
    def copy(score):
        return mas_cuda.copy_of(score)

    assert copy(empty(2, 10, 8)) == "TEXT16"
    assert copy(empty(2, 10, 6)) == "TEXT4"
    assert copy(empty(2 * 10 * 8 + 1)[1:].view(2, 10, 8)) == "TEXT4"
    assert copy(empty(2, 10, 16)[..., :5]) == "TEXT16"
    assert copy(empty(2, 10, 6, dtype=torch.bfloat16)) == "TEXT4"
    assert copy(empty(2, 10, 5, dtype=torch.bfloat16)) == "ELEMENTS"
    assert copy(empty(2, 8, 10).transpose(1, 2)) == "FRAMES4"
    assert copy(empty(2, 8, 10, dtype=torch.float16).transpose(1, 2)) == "FRAMES4"
    assert copy(empty(2, 8, 11, dtype=torch.float16).transpose(1, 2)) == "ELEMENTS"
    assert copy(empty(2, 10, 16)[..., ::2]) == "ELEMENTS"
    assert copy(empty(1, 10, 1).expand(2, 10, 8)) == "FRAMES4"
    assert copy(empty(1, 1, 1).expand(2, 10, 8)) == "ELEMENTS"
    assert copy(empty(1, 10, 8).expand(2, 10, 8)) == "TEXT16"
    assert copy(empty(2, 10, 1)) == "TEXT4"


def test_asynchronous_copies_only_where_the_device_has_them():
    score = empty(2, 10, 8)
    assert mas_cuda.choose(score, H200)[0].asynchronous and not mas_cuda.choose(score, T4)[0].asynchronous
    assert not mas_cuda.choose(empty(2, 10, 16)[..., ::2], H200)[0].asynchronous


# --- launches on an emulated device ---


def launch_cases():
    """(score, seg_len, text_len) that reach every way of copying, shared and global directions, and strips."""
    torch.manual_seed(0)

    def lengths(batch, segs, tokens):
        text_len = torch.randint(0, tokens + 1, (batch,))
        text_len[0] = min(segs, tokens)
        seg_len = torch.cat((torch.tensor([segs]), torch.randint(0, segs + 1, (batch - 1,))))
        return seg_len, text_len

    small = [(segs, tokens) for segs in range(10) for tokens in range(segs + 1)]
    yield torch.randn(len(small), 9, 9), *torch.tensor(small).T.contiguous()
    yield torch.randn(3, 70, 40), *lengths(3, 70, 40)
    yield torch.randn(3, 70, 39).half(), *(x.int() for x in lengths(3, 70, 39))
    yield torch.randn(3, 40, 70).bfloat16().transpose(1, 2), *lengths(3, 70, 40)
    yield torch.randn(2, 50, 20, dtype=torch.float64), *(x.short() for x in lengths(2, 50, 20))
    yield torch.randn(2, 9, 500).transpose(1, 2), *lengths(2, 500, 9)
    yield torch.randn(1, 300, 260)[:, :, ::2], *lengths(1, 300, 130)
    yield torch.randn(1, 1060, 1040), torch.tensor([1060]), torch.tensor([1040])
    yield torch.full((1, 1, 1), -7.0).expand(2, 12, 5), *lengths(2, 12, 5)
    one = torch.ones(2, dtype=torch.int64)
    yield torch.randn(2, 4, 9)[:, :1], one, one  # the stride of an axis of one fits no wide copy
    yield torch.randn(2, 4, 9).half()[:, :1], one, one
    # in memory these have the other sign, and PyTorch knows
    yield torch.randn(3, 70, 40, dtype=torch.complex64).conj().imag, *lengths(3, 70, 40)


def test_the_launch_cases_can_be_moved():
    for score, *_ in launch_cases():
        moved = to_gpu(score, "cpu")
        assert moved.equal(score) and moved.stride() == score.stride() and moved.is_neg() == score.is_neg()


@pytest.mark.skipif(not emulated.available(), reason=COMPILER)
@pytest.mark.parametrize("device", [H200, T4], ids=["H200", "T4"])
def test_launches_on_an_emulated_device_equal_the_cpu(monkeypatch, tmp_path, device):
    cases = list(launch_cases())
    chosen = {mas_cuda.choose(s if s.dtype in cuda.ELEMENTS else s.float(), device)[0] for s, *_ in cases}
    instances = sorted(chosen, key=lambda x: x.macro)
    entries = [emulated_mas.entry(vars(x) | {"macro": x.macro}, emulated.source("mas")) for x in instances]
    emulated.build(entries, tmp_path / "launched.so", sanitize=False)
    emulator = emulated.Emulator(tmp_path / "launched.so")

    def run(instance, index, blocks, threads, arguments, *, shared_bytes):
        emulator.launch(instances.index(instance), blocks, threads, shared_bytes, arguments, seed=1)

    places = set()
    for score, seg_len, text_len in cases:
        wanted = monotonic_align(score, seg_len, text_len, backend="cpu")
        for place in (device, cramped(device)):
            found = mas_cuda.launch(run, score, seg_len, text_len, place)
            assert found.dtype == torch.int32 and found.equal(wanted)
            places.add(mas_cuda.choose(score.float(), place)[1])
    assert places == {True, False}


@pytest.mark.emulated
@pytest.mark.skipif(not emulated.available(), reason=COMPILER)
def test_every_instance_agrees_with_the_recursion_under_address_sanitizer(emulation):
    report = emulation.report()["mas"]
    assert report["instances"] == len(emulated_mas.all_instances()) and report["cases"] >= report["instances"]


@pytest.mark.emulated
@pytest.mark.skipif(not emulated.available(), reason=COMPILER)
@pytest.mark.parametrize("bug", emulated_mas.PLANTED)
def test_planted_bugs_are_found(emulation, bug):
    assert emulation.report()["mas"]["planted"][bug], f"nothing found: {bug}"


def test_the_recursion_of_the_emulation_agrees_with_the_cpu_backend():
    rng = np.random.default_rng(0)
    for case in range(200):
        segs, tokens = rng.integers(1, 40), rng.integers(1, 30)
        score = emulated.random_scores(rng, emulated.KINDS[case % len(emulated.KINDS)], (1, segs, tokens))
        seg_len, text_len = rng.integers(0, segs + 1), rng.integers(0, tokens + 1)
        found = monotonic_align(torch.tensor(score), torch.tensor([seg_len]), torch.tensor([text_len]), backend="cpu")
        assert found[0].tolist() == emulated_mas.recursion(score[0], seg_len, text_len).tolist()


# --- the compiler ---

WAYS = [(element, copy) for element in ("float", "Half", "Bfloat") for copy in mas_cuda.COPIES]


@pytest.mark.parametrize("architecture", [75, 80, 90, 100])
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.width} tokens")
def test_nvrtc_compiles_every_plan(plan, architecture):
    # the twelve ways of reading scores take turns
    element, copy = WAYS[(PLANS.index(plan) * 7 + architecture // 5) % len(WAYS)]
    instance = Instance(plan, element, copy, architecture >= 80 and copy != "ELEMENTS")
    assert cubin_size("mas", f"MAS_PLAN={instance.macro}", f"sm_{architecture}") > 0


def test_what_does_not_compile_is_noticed():
    with pytest.raises(AssertionError, match="no such plan"):
        cubin_size("mas", f"MAS_PLAN={Instance(Plan(2, 1, 16, 1), 'float', 'TEXT16', True).macro}", "sm_90")


# --- on a GPU ---


def random_batches(count, seed=0):
    rng = np.random.default_rng(seed)
    for case in range(count):
        batch, segs, tokens = rng.integers(1, 9), rng.integers(1, 300), rng.integers(1, 300)
        score = emulated.random_scores(rng, emulated.KINDS[case % len(emulated.KINDS)], (batch, segs, tokens))
        seg_len = torch.tensor(rng.integers(0, segs + 1, batch))
        text_len = torch.tensor(rng.integers(0, np.minimum(tokens, seg_len + 1) + 1))
        score = torch.tensor(score).to((torch.float32, torch.float16, torch.bfloat16)[case % 3])
        if case % 4 == 1:
            score = score.transpose(1, 2).contiguous().transpose(1, 2)
        if case % 4 == 2:
            score = torch.stack((score, score), -1)[..., 0]
        yield score, seg_len, text_len


@pytest.fixture
def cupy():
    return pytest.importorskip("cupy")


def assert_cuda_equals_cpu(score, seg_len, text_len):
    found = monotonic_align(to_gpu(score), seg_len.cuda(), text_len.cuda(), backend="cuda")
    assert found.cpu().equal(monotonic_align(score, seg_len, text_len))


@pytest.mark.gpu
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.width} tokens")
def test_cuda_equals_cpu_on_every_plan(cupy, plan):
    """Small enough for compute-sanitizer; every type, every way of copying, and strips."""
    torch.manual_seed(0)
    for dtype in cuda.ELEMENTS:
        for tokens in (plan.width, plan.width - 3, plan.width + 40 * (plan is PLANS[-1])):
            segs = tokens + 41
            text = torch.randn(2, segs, tokens).to(dtype)
            frames = torch.randn(2, tokens, -(-segs // 4) * 4).to(dtype).transpose(1, 2)[:, :segs]
            for score in (text, frames, torch.stack((text, text), -1)[..., 0]):
                assert_cuda_equals_cpu(score, torch.tensor([segs, segs - 9]), torch.tensor([tokens, tokens - 7]))


@pytest.mark.gpu
def test_cuda_equals_cpu_on_launch_cases(cupy):
    """Small enough for compute-sanitizer; axes of one, expanded and negated scores."""
    for batch in launch_cases():
        assert_cuda_equals_cpu(*batch)


@pytest.mark.gpu
def test_cuda_equals_cpu_on_random_batches(cupy):
    for batch in random_batches(10000):
        assert_cuda_equals_cpu(*batch)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "shape", [(4, 800, 200), (2, 2000, 400), (2, 4096, 1024), (1, 9000, 4500), (1, 65536, 60), (65535, 3, 2)]
)
def test_cuda_equals_cpu_on_large_shapes(cupy, shape):
    torch.manual_seed(0)
    assert_cuda_equals_cpu(torch.randn(shape), *(torch.full(shape[:1], n) for n in shape[1:]))


@pytest.mark.gpu
def test_cuda_graph_side_stream_and_no_sync(cupy):
    score, seg_len, text_len = torch.randn(4, 100, 30), torch.tensor([100, 80, 30, 7]), torch.tensor([30, 9, 30, 8])
    wanted = monotonic_align(score, seg_len, text_len)
    there = [x.cuda() for x in (torch.zeros_like(score), seg_len, text_len)]
    monotonic_align(*there)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            there[0].copy_(score.cuda(non_blocking=True))
            on_side = monotonic_align(*there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert on_side.cpu().equal(wanted)
    there[0].zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = monotonic_align(*there)
    there[0].copy_(score)
    graph.replay()
    torch.cuda.synchronize()
    assert captured.cpu().equal(wanted)


@pytest.mark.gpu
def test_cuda_on_a_second_device(cupy):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    score, seg_len, text_len = torch.randn(2, 50, 20), torch.tensor([50, 30]), torch.tensor([20, 9])
    found = monotonic_align(*(x.to("cuda:1") for x in (score, seg_len, text_len)))
    assert found.device == torch.device("cuda:1")
    assert found.cpu().equal(monotonic_align(score, seg_len, text_len))

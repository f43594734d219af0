"""The choice of a backend, numba's cache, and launches through a fake CuPy: the same for all that search."""

import os
import subprocess
import sys
import threading
import types
import warnings

import pytest
import torch
from devices import H200, RTX_3090, T4

from nemo_comat import ctc_viterbi, monotonic_align
from nemo_comat.align.monotonic import _align_batch
from nemo_comat.kernels import backends, cuda, numba_cpu

TWO = torch.tensor([2])


def align(**options):
    return monotonic_align(torch.zeros(1, 2, 2), TWO, TWO, **options)


def viterbi(**options):
    return ctc_viterbi(torch.zeros(1, 2, 4), TWO, torch.tensor([[1, 2]]), TWO, blank=0, **options)


SEARCHES = pytest.mark.parametrize("search", [align, viterbi])


# --- choices ---


def chosen(backend, kind):
    return backends.choose(backend, torch.device(kind), function="monotonic_align", tensor="score")


def test_auto_takes_what_the_tensor_is_on(monkeypatch):
    monkeypatch.setattr(backends, "_why_no_cupy", lambda: None)
    assert [chosen("auto", kind) for kind in ("cuda", "cpu", "meta")] == ["cuda", "cpu", "torch"]
    assert [chosen(backend, "cuda") for backend in ("cuda", "cpu", "torch")] == ["cuda", "cpu", "torch"]


@SEARCHES
def test_unknown_backends_are_refused(search):
    with pytest.raises(ValueError, match="backend must be one of auto, cuda, cpu, torch; got 'gpu'"):
        search(backend="gpu")


def test_the_cuda_backend_says_why_it_cannot_be_used(monkeypatch):
    with pytest.raises(RuntimeError, match="score is on cpu, not on a CUDA device; move it there"):
        align(backend="cuda")
    with pytest.raises(RuntimeError, match="log_probs is on cpu, not on a CUDA device; move it there"):
        viterbi(backend="cuda")
    monkeypatch.setitem(sys.modules, "cupy", None)
    backends._why_no_cupy.cache_clear()
    try:
        with pytest.raises(RuntimeError, match="CuPy cannot be imported.*pip install cupy-cuda12x"):
            chosen("cuda", "cuda")
    finally:
        backends._why_no_cupy.cache_clear()
    monkeypatch.setattr(torch.version, "hip", "6.0")
    with pytest.raises(RuntimeError, match="this PyTorch is built for ROCm, and the kernel needs CUDA"):
        chosen("cuda", "cuda")


def test_auto_without_cupy_takes_torch_on_the_gpu_and_warns_once(monkeypatch):
    monkeypatch.setattr(backends, "_why_no_cupy", lambda: "CuPy cannot be imported")
    backends._warn_of_torch.cache_clear()
    with pytest.warns(UserWarning, match="monotonic_align uses its slower torch backend: CuPy cannot be imported"):
        assert chosen("auto", "cuda") == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen("auto", "cuda") == "torch"


@SEARCHES
def test_auto_without_numba_takes_torch_and_says_where(monkeypatch, search):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    backends._warn_of_torch.cache_clear()
    with pytest.warns(UserWarning, match="numba is missing") as warned:
        path = search()
    assert warned[0].filename == __file__ and path.equal(search(backend="torch"))


def test_shared_memory_is_divided_among_the_blocks_of_a_multiprocessor():
    assert H200.shared_budget(132) == 232448 and H200.shared_budget(133) == 233472 // 2 - 1024
    assert RTX_3090.shared_budget(1000) == 102400 // 4 - 1024 and T4.shared_budget(1) == 65536 - 1024


# --- numba ---


def test_the_cpu_backend_is_compiled_once_for_all_processes():
    align(backend="cpu")
    viterbi(backend="cpu")
    code = (
        "import torch; from nemo_comat.align import monotonic; from nemo_comat.compress import viterbi;"
        "from nemo_comat.kernels import numba_cpu; two = torch.tensor([2]);"
        "monotonic.monotonic_align(torch.zeros(1, 2, 2), two, two, backend='cpu');"
        "viterbi.ctc_viterbi(torch.zeros(1, 2, 4), two, torch.tensor([[1, 2]]), two, blank=0, backend='cpu');"
        "searches = [numba_cpu.jit(f).__wrapped__ for f in (monotonic._align_batch, viterbi._viterbi_batch)];"
        "print(*(sum(search.stats.cache_hits.values()) for search in searches))"
    )
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]
    assert "Compiling" not in done.stderr


def test_the_cpu_backend_works_where_nothing_can_be_cached(monkeypatch):
    def njit(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr("numba.njit", njit)
    assert numba_cpu.jit.__wrapped__(_align_batch).__wrapped__ is _align_batch


def test_the_cpu_backend_works_where_there_is_no_room_for_its_cache(tmp_path):
    code = (
        "import resource, torch; from nemo_comat import monotonic_align; two = torch.tensor([2]);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000));"
        "print(monotonic_align(torch.eye(2)[None], two, two, backend='cpu').tolist())"
    )
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path), NUMBA_CACHE_DIR=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[[0, 1]]\n"
    assert "numba cannot keep nemo_comat.align.monotonic on disk (File too large)" in done.stderr


# --- CUDA ---


@pytest.fixture
def fake_cupy(monkeypatch):
    """`put(kernel)` makes a CuPy of one H200 whose RawKernel is `kernel`; what is learnt of it is forgotten after."""

    class CompileException(Exception):
        pass

    class Nothing:
        def __init__(self, *arguments):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    class OneDevice(Nothing):
        attributes = {
            "MultiProcessorCount": 132,
            "MaxSharedMemoryPerBlockOptin": 232448,
            "MaxSharedMemoryPerMultiprocessor": 233472,
        }

    def put(kernel):
        compiler = types.SimpleNamespace(CompileException=CompileException)
        cuda = types.SimpleNamespace(Device=OneDevice, Stream=Nothing, ExternalStream=Nothing, compiler=compiler)
        cupy = types.SimpleNamespace(cuda=cuda, RawKernel=kernel)
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        return cupy

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: types.SimpleNamespace(cuda_stream=7))
    monkeypatch.setattr(backends, "why_no_cuda", lambda device, tensor: None)
    yield put
    cuda.device.cache_clear()
    cuda._compiled.cache_clear()


@pytest.mark.parametrize(
    "search, message",
    [
        (align, r"(?s)mas.cu does not compile for MAS_PLAN=float,2,1,16,4.*expected a ;"),
        (viterbi, r"(?s)viterbi.cu does not compile for VITERBI_ELEMENT=float.*expected a ;"),
    ],
)
def test_a_failed_compile_raises_with_the_log(fake_cupy, search, message):
    class Kernel:
        def __setattr__(self, name, value):
            raise cupy.cuda.compiler.CompileException("x.cu(7): error: expected a ;")

        def __init__(self, *arguments):
            pass

    cupy = fake_cupy(Kernel)
    with pytest.raises(RuntimeError, match=message):
        search(backend="cuda")


def test_a_cupy_that_cannot_compile_says_what_it_lacks(fake_cupy):
    class Kernel:
        def __setattr__(self, name, value):
            raise RuntimeError("Failed to find CUDA headers")

        def __init__(self, *arguments):
            pass

    fake_cupy(Kernel)
    with pytest.raises(
        RuntimeError, match=r"cannot compile or load mas.cu: Failed to find CUDA headers; .*'cupy-cuda12x\[ctk\]'"
    ):
        align(backend="cuda")


@pytest.mark.parametrize("protocol", [True, False])
def test_the_kernel_runs_on_pytorchs_stream(fake_cupy, monkeypatch, protocol):
    """By the protocol of streams where CuPy and PyTorch have it, else by the class of before."""
    entered = []

    class Kernel:
        def __init__(self, *arguments):
            pass

        def __call__(self, *arguments, **options):
            entered.append("launched")

    class Stream:
        def __init__(self, pointer, index=None):
            self.seen = pointer, index

        def __enter__(self):
            entered.append(self.seen)

        def __exit__(self, *error):
            entered.append("left")

    theirs = types.SimpleNamespace(cuda_stream=7)
    cupys = fake_cupy(Kernel).cuda
    cupys.ExternalStream = Stream
    if protocol:
        theirs.__cuda_stream__ = lambda: (0, 7)
        cupys.Stream = types.SimpleNamespace(from_external=lambda stream: Stream(stream.__cuda_stream__()[1], "new"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: theirs)
    cuda.run("mas", "MAS_PLAN=…", 3, 1, 32, (), shared_bytes=0)
    assert entered == [(7, "new" if protocol else 3), "launched", "left"]


@SEARCHES
def test_a_failed_launch_raises(fake_cupy, search):
    class Kernel:
        def __init__(self, *arguments):
            pass

        def __call__(self, *arguments, **options):
            raise OSError("CUDA_ERROR_INVALID_VALUE")

    fake_cupy(Kernel)
    with pytest.raises(OSError, match="CUDA_ERROR_INVALID_VALUE"):
        search(backend="cuda")


def test_threads_launch_side_by_side(fake_cupy):
    """Compiling and launching from several threads at once reaches the kernel with each thread's own arguments."""
    seen = []

    class Kernel:
        def __init__(self, *arguments):
            pass

        def __call__(self, grid, block, arguments, shared_mem):
            seen.append((grid[0], int(arguments[9])))

    fake_cupy(Kernel)

    def run(tokens):
        lengths = torch.ones(tokens, dtype=torch.long)
        monotonic_align(torch.zeros(tokens, 4, tokens), lengths, lengths, backend="cuda")

    threads = [threading.Thread(target=run, args=(tokens,)) for tokens in range(1, 5)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(seen) == [(tokens, tokens) for tokens in range(1, 5)]

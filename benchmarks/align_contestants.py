"""The implementations of monotonic alignment search that are compared: ours by backend, and the peers."""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from nemo_comat import monotonic_align
from nemo_comat.kernels import backends
from nemo_comat.lengths import length_mask

CODE = Path(__file__).parent / "mas_avx2.cpp"


@dataclass
class Contestant:
    """One implementation: `run(prepare(score, seg_len, text_len))` aligns, `read` makes [B, S] tokens of its answer."""

    name: str
    prepare: callable
    run: callable
    read: callable = lambda answer: answer
    kept: int = 0  # arrays of the scores' size in float32 that `prepare` makes
    arrays: int = 1  # and those that one call needs beside them


def ours(backend):
    return Contestant(
        f"nemo_comat {backend}",
        lambda *inputs: inputs,
        lambda inputs: monotonic_align(*inputs, backend=backend),
        arrays=2 * (backend == "torch"),  # scores in float32, and where each step came from
    )


def captured(contestant):
    """The same as a CUDA graph that is replayed: the kernels' time, without that of their launch."""

    def prepare(*inputs):
        ready = contestant.prepare(*inputs)
        contestant.run(ready)  # compiles
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            answer = contestant.run(ready)
        return graph, answer

    def run(ready):
        graph, answer = ready
        graph.replay()
        return answer

    return replace(contestant, name=f"{contestant.name}, CUDA graph", prepare=prepare, run=run)


@functools.cache
def avx2():
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "mas_avx2.so")
        subprocess.run(["g++", "-O3", "-mavx2", "-shared", "-fPIC", str(CODE), "-o", str(library)], check=True)
        function = ctypes.CDLL(str(library)).mas_avx2  # in memory from here on

    def prepare(score, seg_len, text_len):
        return score.float().contiguous(), seg_len.long(), text_len.long()

    def run(inputs):
        batch, segs, tokens = inputs[0].shape
        path = torch.empty(batch, segs, dtype=torch.int32)
        function(*(ctypes.c_void_p(x.data_ptr()) for x in (*inputs, path)), batch, segs, tokens)
        return path

    return Contestant("C++ AVX2, one thread", prepare, run, arrays=0)


def text_first(score, seg_len, text_len):
    """[B, N, S] scores and mask, as the Glow-TTS family wants them."""
    value = score.float().transpose(1, 2).contiguous()
    frames = length_mask(seg_len, value.shape[2])
    tokens = length_mask(text_len, value.shape[1])
    return value, (tokens[:, :, None] & frames[:, None]).float()


def pypi():
    from monotonic_alignment_search import maximum_path

    return Contestant(
        "monotonic-alignment-search",
        text_first,
        lambda inputs: maximum_path(*inputs),
        lambda answer: answer.transpose(1, 2).argmax(-1),
        kept=2,
        arrays=2,
    )


def nemo():
    from nemo.collections.tts.parts.utils.helpers import b_mas

    def prepare(score, seg_len, text_len):
        return score.float()[:, None].contiguous(), text_len, seg_len

    def run(inputs):
        device = inputs[0].device
        return torch.from_numpy(b_mas(*(x.cpu().numpy() for x in inputs))).to(device)

    return Contestant("NeMo b_mas", prepare, run, lambda answer: answer[:, 0].argmax(-1), kept=1, arrays=2)


def super_mas():
    from super_monotonic_align import maximum_path

    def prepare(*inputs):
        value, mask = text_first(*inputs)
        return value, mask.bool()

    return Contestant(
        "Super-MAS",
        prepare,
        # it overwrites its input, which a caller that needs the scores has to keep
        lambda inputs: maximum_path(inputs[0].clone(), inputs[1], dtype=torch.float32),
        lambda answer: answer.transpose(1, 2).argmax(-1),
        kept=2,
        arrays=2,
    )


def contestants(device):
    """Those that can run on a device, the first one the reference of all ratios; and why others cannot, by name."""
    peers = {"monotonic-alignment-search": pypi, "NeMo b_mas": nemo, "Super-MAS": super_mas}
    found, missing = [], {}
    if device.type == "cuda":
        reason = backends.why_no_cuda(device)
        if reason:
            missing["nemo_comat cuda"] = reason
        found = [ours("torch")] if reason else [ours("cuda"), captured(ours("cuda")), ours("torch")]
    else:
        found = [ours("cpu"), ours("torch")]
        del peers["Super-MAS"]
        missing["Super-MAS"] = "needs a GPU"
        if shutil.which("g++") and "avx2" in Path("/proc/cpuinfo").read_text():
            found.append(avx2())
        else:
            missing["C++ AVX2"] = "needs g++ and a processor with AVX2"
    for name, maker in peers.items():
        try:
            found.append(maker())
        except ImportError as error:
            missing[name] = str(error)
    return found, missing

"""Times monotonic alignment search by backend, beside the peers that are installed, and checks every answer.

    python benchmarks/bench_align.py                       # the shapes of the README, on the GPU where there is one
    python benchmarks/bench_align.py --shapes 64,800,200 --dtype bfloat16 --layout frames --device cpu

Each contestant gets scores in the layout that it wants, prepared outside the clock, in inputs that take turns;
contestants take turns too, and the median counts. What a peer copies between devices, or before it overwrites its
input, is inside the clock. An answer is checked twice: the path is monotonic from the first token to the last, and its
total is as high as the best contestant's. On a GPU times are CUDA events around many calls; on a CPU read the ratios,
not the times.

Peers: monotonic-alignment-search (PyPI), NeMo's b_mas (numba, all cores), Super-MAS (Triton, where it is importable),
and on a CPU mas_avx2.cpp, one thread of C++ as yardstick for the cpu backend.
"""

import argparse
import ctypes
import functools
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import nemo_comat
from nemo_comat import monotonic_align
from nemo_comat.kernels import backends
from nemo_comat.output import check_outputs, exit_in_one_sentence, written_beside

HERE = Path(__file__).parent
SHAPES = ((16, 60, 30), (32, 200, 60), (64, 800, 200), (16, 2000, 400), (32, 4096, 1024), (256, 4096, 1024))


@dataclass
class Contestant:
    """One implementation: `run(prepare(score, seg_len, text_len))` aligns, `read` makes [B, S] tokens of its answer."""

    name: str
    prepare: callable
    run: callable
    read: callable = lambda answer: answer
    arrays: int = 1  # arrays of the scores' size that one call needs beside its input


def ours(backend):
    return Contestant(
        f"nemo_comat {backend}",
        lambda *inputs: inputs,
        lambda inputs: monotonic_align(*inputs, backend=backend),
        arrays=0,
    )


def avx2():
    library = Path(tempfile.mkdtemp()) / "mas_avx2.so"
    command = ["g++", "-O3", "-mavx2", "-shared", "-fPIC", str(HERE / "mas_avx2.cpp"), "-o", str(library)]
    subprocess.run(command, check=True)
    function = ctypes.CDLL(str(library)).mas_avx2

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
    frames = torch.arange(value.shape[2], device=value.device) < seg_len[:, None]
    tokens = torch.arange(value.shape[1], device=value.device) < text_len[:, None]
    return value, (tokens[:, :, None] & frames[:, None]).float()


def pypi():
    from monotonic_alignment_search import maximum_path

    return Contestant(
        "monotonic-alignment-search",
        text_first,
        lambda inputs: maximum_path(*inputs),
        lambda answer: answer.transpose(1, 2).argmax(-1),
        arrays=4,
    )


def nemo():
    from nemo.collections.tts.parts.utils.helpers import b_mas

    def prepare(score, seg_len, text_len):
        return score.float()[:, None].contiguous(), text_len, seg_len

    def run(inputs):
        device = inputs[0].device
        return torch.from_numpy(b_mas(*(x.cpu().numpy() for x in inputs))).to(device)

    return Contestant("NeMo b_mas", prepare, run, lambda answer: answer[:, 0].argmax(-1), arrays=3)


def super_mas():
    from super_monotonic_align import maximum_path

    return Contestant(
        "Super-MAS",
        text_first,
        # it overwrites its input, which a caller that needs the scores has to keep
        lambda inputs: maximum_path(inputs[0].clone(), inputs[1].bool(), dtype=torch.float32),
        lambda answer: answer.transpose(1, 2).argmax(-1),
        arrays=4,
    )


def contestants(device):
    """Those that can run on a device, the first one the reference of all ratios; and why others cannot, by name."""
    peers = {"monotonic-alignment-search": pypi, "NeMo b_mas": nemo, "Super-MAS": super_mas}
    found, missing = [], {}
    if device.type == "cuda":
        reason = backends.why_no_cuda(device)
        if reason:
            missing["nemo_comat cuda"] = reason
        found = [ours(backend) for backend in (["torch"] if reason else ["cuda", "torch"])]
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


def clock(device, call, calls=1):
    """Seconds of one call, over `calls` calls in a row."""
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - began) / calls
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    events[0].record()
    for _ in range(calls):
        call()
    events[1].record()
    events[1].synchronize()
    return events[0].elapsed_time(events[1]) / 1000 / calls


@functools.cache
def copy_bandwidth(device):
    """Bytes a second, read and written, that a copy of 256 MiB moves."""
    source = torch.zeros(64 << 20, device=device)
    target = torch.empty_like(source)
    seconds = [clock(device, lambda: target.copy_(source)) for _ in range(12)]
    return 2 * 4 * source.numel() / statistics.median(seconds[2:])


def total(score, path):
    """Each path's sum of scores, in float64, and whether it is monotonic from the first token to the last."""
    tokens, path = score.shape[2], path.long()
    steps = path.diff(dim=1)
    valid = (path[:, 0] == 0) & (path[:, -1] == tokens - 1) & ((steps == 0) | (steps == 1)).all(1)
    return score.gather(2, path.clamp(0, tokens - 1)[..., None])[..., 0].double().sum(1), valid


def memory_left(device):
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def random_inputs(shape, device, dtype, layout):
    """Up to four (score, seg_len, text_len), full rows, to take turns; one that no cache can hold is enough."""
    batch, segs, tokens = shape
    size = batch * segs * tokens * dtype.itemsize
    count = 1 if size >= 1 << 28 else max(1, min(4, memory_left(device) // 4 // size))
    generator = torch.Generator(device).manual_seed(0)
    lengths = [torch.full((batch,), n, device=device) for n in (segs, tokens)]
    for _ in range(count):
        score = torch.randn(shape, generator=generator, device=device).to(dtype)
        yield score if layout == "text" else score.transpose(1, 2).contiguous().transpose(1, 2), *lengths


def measure(field, pool, device, rounds):
    """Answers and seconds of a call of each contestant, measured in turns: [(contestant, answers, times)]."""
    ready = []
    for contestant in field:
        prepared = [contestant.prepare(*inputs) for inputs in pool]
        answers = [contestant.read(contestant.run(inputs)) for inputs in prepared]
        once = clock(device, functools.partial(contestant.run, prepared[0]))
        calls = max(1, int(0.02 / max(once, 1e-6)))
        ready.append((contestant, prepared, answers, calls, rounds if once < 1 else min(rounds, 3), []))
    for turn in range(rounds):
        for contestant, prepared, _, calls, its_rounds, times in ready:
            if turn < its_rounds:
                inputs = itertools.cycle(prepared[turn % len(pool) :] + prepared[: turn % len(pool)])
                times.append(clock(device, lambda run=contestant.run, turns=inputs: run(next(turns)), calls))
    return [(contestant, answers, times) for contestant, _, answers, _, _, times in ready]


def judge(pool, answers_of_all):
    """For each contestant whether all its paths are valid, and whether they are as good as the best one's."""
    judged = [[True, True] for _ in answers_of_all]
    for score, *answers in zip((inputs[0] for inputs in pool), *answers_of_all):
        totals = [total(score, answer) for answer in answers]
        best = torch.stack([sums.masked_fill(~valid, float("-inf")) for sums, valid in totals]).max(0).values
        for verdict, (sums, valid) in zip(judged, totals):
            verdict[0] &= bool(valid.all())
            # float32 totals are rounded: a path is as good as the best within that
            verdict[1] &= bool((sums >= best - 1e-5 * score.shape[1]).all())
    return judged


def bench(shape, device, dtype, layout, rounds):
    """Rows {shape, contestant, seconds, …} or {shape, contestant, skipped} for one shape."""
    batch, segs, tokens = shape
    left, cells = memory_left(device), batch * segs * tokens
    pool = list(random_inputs(shape, device, dtype, layout))
    taken = len(pool) * cells * dtype.itemsize
    field, missing = contestants(device)
    rows = [{"shape": shape, "contestant": name, "skipped": why} for name, why in missing.items()]
    for contestant in list(field):
        if contestant.arrays * cells * 4 + taken > 0.8 * left:
            field.remove(contestant)
            rows.append({"shape": shape, "contestant": contestant.name, "skipped": "its copies do not fit in memory"})
    measured = measure(field, pool, device, rounds)
    moved = cells * dtype.itemsize + 4 * batch * segs
    for (contestant, _, times), (valid, optimal) in zip(measured, judge(pool, [answers for _, answers, _ in measured])):
        seconds = statistics.median(times)
        row = {"shape": shape, "contestant": contestant.name, "seconds": seconds, "valid": valid, "optimal": optimal}
        row["ratio"] = seconds / statistics.median(measured[0][2])
        row["spread"] = (max(times) - min(times)) / seconds
        row["bytes"] = moved
        row["share_of_copy_bandwidth"] = moved / seconds / copy_bandwidth(device)
        rows.append(row)
    return rows


def table(rows, on_gpu):
    """The rows as Markdown; times on a GPU, on a CPU only what they are to the first contestant's."""
    time_of = "time | " if on_gpu else ""
    head = f"| B, S, N | contestant | {time_of}ratio | valid | optimal | share of copy bandwidth |"
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    for row in rows:
        start = f"| {', '.join(str(n) for n in row['shape'])} | {row['contestant']} |"
        if "skipped" in row:
            lines.append(f"{start} skipped: {row['skipped']} {'| ' * (head.count('|') - 3)}")
            continue
        seconds = f" {row['seconds'] * 1e6:.1f} us |" if on_gpu else ""
        good = " | ".join("yes" if row[key] else "NO" for key in ("valid", "optimal"))
        lines.append(f"{start}{seconds} {row['ratio']:.2f} | {good} | {row['share_of_copy_bandwidth']:.1%} |")
    return "\n".join(lines)


def chart(rows, title, file):
    """Time over the first contestant's by shape, a line for each contestant; above 1 is slower."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text: a small file
    import matplotlib.pyplot as plt

    timed = [row for row in rows if "seconds" in row]
    shapes = list(dict.fromkeys(row["shape"] for row in timed))
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for number, name in enumerate(dict.fromkeys(row["contestant"] for row in timed)):
        points = [(shapes.index(row["shape"]), row["ratio"]) for row in timed if row["contestant"] == name]
        style = dict(marker="o", linewidth=2.5) if number == 0 else dict(marker="s", linewidth=1.2, markersize=4)
        axes.plot(*zip(*points, strict=True), label=name, **style)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(range(len(shapes)), [f"{b} x\n{s} x {n}" for b, s, n in shapes])
    axes.set_xlabel("utterances x segments x tokens")
    axes.set_ylabel(f"time, {timed[0]['contestant']} = 1")
    axes.grid(axis="y", alpha=0.3)
    axes.set_title(title, fontsize=11)
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    figure.savefig(file, metadata={"Date": None})


def where(device):
    """What the figures were measured on."""
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    else:
        models = [x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
        machine = f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores"
    commit = subprocess.run(["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "machine": machine,
        "torch": torch.__version__,
        "nemo_comat": nemo_comat.__version__,
        "commit": commit.stdout.strip(),
        "copy_bandwidth_gb_s": copy_bandwidth(device) / 1e9,
    }


def shape_of(text):
    numbers = tuple(int(n) for n in text.split(","))
    if len(numbers) != 3 or min(numbers) < 1 or numbers[1] < numbers[2]:
        raise argparse.ArgumentTypeError(f"a shape is B,S,N with S >= N >= 1, such as 64,800,200; got {text!r}")
    return numbers


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", type=shape_of, default=SHAPES, metavar="B,S,N")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--layout", choices=["text", "frames"], default="text", help="the innermost axis of the scores")
    parser.add_argument("--rounds", type=int, default=7, help="times that each contestant is measured")
    parser.add_argument("--out", type=Path, default=Path("bench_align"), help="folder for align.json and align.svg")
    parser.add_argument("--overwrite", action="store_true", help="replace the results of another measurement there")
    arguments = parser.parse_args()
    with exit_in_one_sentence():
        check_outputs([arguments.out / name for name in ("align.json", "align.svg")], overwrite=arguments.overwrite)
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    place, rows = where(device), []
    print(
        ", ".join(
            f"{key} {value:.0f}" if isinstance(value, float) else f"{key} {value}" for key, value in place.items()
        )
    )
    for shape in arguments.shapes:
        rows += bench(shape, device, dtype, arguments.layout, arguments.rounds)
        print(f"measured {shape}", flush=True)
    print(table(rows, device.type == "cuda"))
    settings = {"dtype": arguments.dtype, "layout": arguments.layout, "rounds": arguments.rounds}
    with exit_in_one_sentence(), written_beside(arguments.out / "align.json") as file:
        file.write_text(json.dumps({**place, **settings, "rows": rows}, indent=1) + "\n")
    with exit_in_one_sentence(), written_beside(arguments.out / "align.svg") as file:
        chart(rows, f"Monotonic alignment search on {place['machine']}, {arguments.dtype}", file)
    print(f"written: {arguments.out / 'align.json'}, {arguments.out / 'align.svg'}")
    if not all(
        row["valid"] and row["optimal"] for row in rows if "seconds" in row and "nemo_comat" in row["contestant"]
    ):
        raise SystemExit("an answer of nemo_comat is not right; see the table")


if __name__ == "__main__":
    main()

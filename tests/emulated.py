"""mas.cu on the CPU: g++ compiles it behind cuda_emulation.h, and its answers are compared with a plain recursion.

As a program it checks instances, under AddressSanitizer, and that bugs planted in mas.cu are found:

    python tests/emulated.py INSTANCES.json FOLDER CASES

INSTANCES.json holds a list of {macro, columns, warps, element, copy, shared_bytes}; FOLDER receives the library and
report.json. It needs NumPy alone, so that little else runs instrumented.
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SOURCE = HERE.parent / "nemo_comat" / "mas.cu"
INF = float("inf")
ELEMENT_BYTES = {"float": 4, "Half": 2, "Bfloat": 2}
# ASan knows the stacks of threads, not those of fibers
ASAN_OPTIONS = "detect_leaks=0:detect_stack_use_after_return=0"

# what is planted: text of mas.cu, and what it is changed to
PLANTED = {
    "no barrier between turns": (
        "            __syncthreads();\n        }\n\n        if (!strip_follows)",
        "        }\n\n        if (!strip_follows)",
    ),
    "a wait that lets one group too many pass": ("wait_for_copies<STAGES - 1>", "wait_for_copies<STAGES>"),
    "a copy that overwrites the chunk in use": (
        "next = chunk + (ASYNC ? STAGES - 1 : 1)",
        "next = chunk + (ASYNC ? STAGES : 1)",
    ),
    "no warp barrier after the wait": (
        "                __syncwarp();\n                const unsigned char* rows",
        "                const unsigned char* rows",
    ),
    "a barrier that one lane never reaches": (
        "                __syncwarp();\n                const unsigned char* rows",
        "                if (lane) __syncwarp();\n                const unsigned char* rows",
    ),
    "an edge too short for the warps' distance": ("SLOTS = 4 * FRAMES", "SLOTS = 2 * FRAMES"),
    "a row past the last is read": ("s < scores.segs;", "s <= scores.segs;"),
    "a column past the last is read": ("scores.tokens - n;", "scores.tokens + 1 - n;"),
    "a saved column is read past its end": (" && strip + lane <= segs ?", " ?"),
    "shared memory is overrun": ("(WARPS + 1) * SLOTS;\n", "(WARPS + 1) * SLOTS + 8;\n"),
    "ties step": (
        "fmaxf(stay, minus_infinity()) - fmaxf(step, minus_infinity())",
        "-(fmaxf(step, minus_infinity()) - fmaxf(stay, minus_infinity()))",
    ),
    "NaN wins over a step": ("fmaxf(stay, minus_infinity()) - fmaxf", "fabsf(stay) - fmaxf"),
    "the last word of directions is not aligned": ("bits[c] << (-done & 31)", "bits[c]"),
    "infinite totals pass": ("== 0x7f800000u) {", "== 0x7f900000u) {"),
}


def available():
    return shutil.which("g++") is not None


def all_instances():
    """Every instance that the launcher can choose: on devices with asynchronous copies and without."""
    from nemo_comat.align_cuda import COPIES, ELEMENTS, PLANS, Instance

    return [
        Instance(plan, element, copy, asynchronous)
        for plan in PLANS
        for element in ELEMENTS.values()
        for copy in COPIES
        for asynchronous in ([True, False] if copy != "ELEMENTS" else [False])
    ]


def as_json(instance):
    """What this program needs to know of an instance."""
    plan = {"columns": instance.plan.columns, "warps": instance.plan.warps}
    rest = {"element": instance.element, "copy": instance.copy, "macro": instance.macro}
    return {**plan, **rest, "shared_bytes": instance.shared_bytes}


def build(macros, library, *, sources=("",), sanitize=True):
    """Compiles mas.cu to a library with entry i for MAS_PLAN macros[i].

    `sources` are whole texts instead of mas.cu, entry i from sources[i]; the same text is compiled once.
    Raises subprocess.CalledProcessError where g++ fails.
    """
    if sources == ("",):
        sources = [SOURCE.read_text()] * len(macros)
    different = list(dict.fromkeys(sources))
    spaces = "\n".join(f"namespace source_{i} {{\n{text}\n}}" for i, text in enumerate(different))
    cases = ""
    for i, (macro, source) in enumerate(zip(macros, sources)):
        space, element = f"source_{different.index(source)}", macro.split(",")[0]
        element = element if element == "float" else f"{space}::{element}"
        in_space = macro.replace(macro.split(",")[0], element, 1).replace(
            macro.split(",")[5], f"{space}::{macro.split(',')[5]}"
        )
        cases += f"""
        case {i}:
            return run([&](auto... rest) {{
                {space}::monotonic_align<{in_space}>((const {element}*)score, rest...);
            }});"""
    code = f"""
#include "{HERE / "cuda_emulation.h"}"
{spaces}
extern "C" int emulate(
    int instance, int blocks, int threads, int shared_bytes, uint64_t seed, const void* low,
    const unsigned char* allowed, long long bytes, char* message, const void* score, long long stride_b, int stride_s,
    int stride_n, const void* seg_len, int seg_bytes, const void* text_len, int text_bytes, int max_segs,
    int max_tokens, int* path, unsigned* moved, float* saved) {{
    auto run = [&](auto kernel) {{
        const std::string error = emulation::launch(
            blocks, threads, shared_bytes, seed, {{(const char*)low, allowed, bytes}}, [&] {{
                kernel(stride_b, stride_s, stride_n, seg_len, seg_bytes, text_len, text_bytes, max_segs, max_tokens,
                       path, moved, saved);
            }});
        snprintf(message, 256, "%s", error.c_str());
        return (int)!error.empty();
    }};
    switch (instance) {{{cases}
    }}
    return -1;
}}
"""
    flags = ["-fsanitize=address,alignment", "-fno-sanitize-recover=all"] if sanitize else []
    # optimising would take longer than it saves
    command = ["g++", "-std=c++17", "-O0", "-g1", "-w", "-fPIC", "-shared", "-fno-strict-aliasing", *flags]
    subprocess.run([*command, "-x", "c++", "-", "-o", str(library)], input=code, text=True, check=True)


class Emulator:
    """The instances of one library; calls of `launch` take the arguments of the kernel `mas` as addresses."""

    def __init__(self, library):
        self.function = ctypes.CDLL(str(library)).emulate

    def launch(self, instance, blocks, threads, shared_bytes, arguments, *, seed, low=0, allowed=None):
        kinds = "pqiipipiiippp"
        types = {"p": ctypes.c_void_p, "q": ctypes.c_longlong, "i": ctypes.c_int}
        message = ctypes.create_string_buffer(256)
        code = self.function(
            instance,
            blocks,
            threads,
            shared_bytes,
            ctypes.c_uint64(seed),
            ctypes.c_void_p(low),
            None if allowed is None else allowed.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_longlong(0 if allowed is None else len(allowed)),
            message,
            *(types[kind](int(x)) for kind, x in zip(kinds, arguments)),
        )
        if code:
            raise AssertionError(message.value.decode() or f"there is no instance {instance}")


class Memory:
    """Bytes from malloc, of the exact size, so that AddressSanitizer sees every step beyond them."""

    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]

    def __init__(self, size, fill=0xA5, before=0):
        # `before` shifts the start, for addresses that are not aligned
        size, before = int(size), int(before)
        self.base = self.libc.malloc(size + before)
        self.address, self.size = self.base + before, size
        ctypes.memset(self.base, fill, size + before)

    def __del__(self):
        self.libc.free(self.base)

    def array(self, dtype, shape=-1):
        return np.frombuffer((ctypes.c_char * self.size).from_address(self.address), dtype).reshape(shape)


def recursion(score, segs, tokens, dtype=np.float32):
    """The path of one row [S, N] by the definition, in `dtype`: [S] token indices, -1 on padding or without a path."""
    path = np.full(score.shape[0], -1)
    if not 0 < tokens <= segs <= score.shape[0] or tokens > score.shape[1]:
        return path
    with np.errstate(all="ignore"):
        score = np.where(np.isnan(score), -INF, score).astype(dtype)[:segs, :tokens]
        stepped = np.zeros(score.shape, bool)
        value = np.full(tokens, -INF, dtype)
        value[0] = score[0, 0]
        for s in range(1, segs):
            before = np.concatenate(([dtype(-INF)], value[:-1]))
            stepped[s] = before > value
            value = score[s] + np.where(stepped[s], before, value)
            value = np.where(np.isnan(value), dtype(-INF), value)
    if not np.isfinite(value[-1]):
        return path
    token = tokens - 1
    for s in range(segs - 1, -1, -1):
        path[s] = token
        token -= stepped[s, token]
    return path


def to_element(score, element):
    """Float32 scores in the element type, as bits, and what they then are in float32."""
    if element == "float":
        return score.view(np.uint32), score
    if element == "Half":
        with np.errstate(all="ignore"):
            half = score.astype(np.float16)
        return half.view(np.uint16), half.astype(np.float32)
    bits = score.view(np.uint32) >> 16
    return bits.astype(np.uint16), (bits << 16).astype(np.uint32).view(np.float32)


KINDS = ("ties", "normal", "holes", "large", "infinite")


def random_scores(rng, kind, shape):
    if kind == "normal":
        return rng.normal(size=shape).astype(np.float32)
    score = rng.integers(-3, 4, size=shape).astype(np.float32)
    if kind == "large":
        score = (score - 4) * np.float32(1e10)
    if kind in ("holes", "infinite"):
        score[rng.random(shape) < 0.04] = -INF
        score[rng.random(shape) < 0.04] = np.nan
    if kind == "infinite":
        score[rng.random(shape) < 0.002] = INF
    return score


def run_case(emulator, index, instance, rng, *, batch, segs, tokens, kind, moves_shared, full=False):
    """One random launch of an instance, compared row by row with `recursion`; AssertionError where it differs."""
    element, copy = instance["element"], instance["copy"]
    size = ELEMENT_BYTES[element]
    score = random_scores(rng, kind, (batch, segs, tokens))
    seg_len = rng.integers(0, segs + 1, batch) if not full else np.full(batch, segs)
    text_len = (
        np.array([rng.integers(0, min(tokens, n + 1) + 1) for n in seg_len]) if not full else np.full(batch, tokens)
    )
    for row in range(batch):
        if not full and rng.random() < 0.3:
            seg_len[row] = segs
            text_len[row] = rng.choice([1, min(segs, tokens), rng.integers(1, min(segs, tokens) + 1)])
        if not full and rng.random() < 0.05:
            text_len[row] = rng.choice([-1, tokens + 1, 2**31 - 1])
    bits, exact = to_element(score, element)

    # strides in elements: exact rows, or rows, utterances and an address with room, as the way of copying allows
    unit = {"TEXT16": 16, "TEXT4": 4, "FRAMES4": 4, "ELEMENTS": size}[copy] // size
    room = unit * rng.integers(0, 3)
    if copy == "FRAMES4":
        stride_s, stride_n = 1, -(-segs // unit) * unit + room
        stride_b = stride_n * tokens + unit * rng.integers(0, 2)
    elif copy == "ELEMENTS":
        stride_n = rng.integers(1, 4)
        stride_s = stride_n * tokens + room
        stride_b = stride_s * segs + rng.integers(0, 3)
    else:
        stride_s, stride_n = -(-tokens // unit) * unit + room, 1
        stride_b = stride_s * segs + unit * rng.integers(0, 2)
    at = np.arange(batch)[:, None, None] * stride_b + np.arange(segs)[:, None] * stride_s + np.arange(tokens) * stride_n
    memory = Memory(size * (at.max() + 1), before=size * unit * (copy != "TEXT16") * rng.integers(0, 2))
    memory.array(bits.dtype)[at] = bits
    valid = (np.arange(segs)[:, None] < seg_len[:, None, None]) & (np.arange(tokens) < text_len[:, None, None])
    valid &= ((0 < text_len) & (text_len <= seg_len) & (text_len <= tokens))[:, None, None]
    allowed = np.zeros(memory.size, np.uint8)
    for byte in range(size):
        allowed[size * at[valid] + byte] = 1

    plan = instance
    width = 32 * plan["columns"]
    words = -(-segs // 32) * -(-tokens // width) * width
    shared = plan["shared_bytes"] + (4 * words if moves_shared else 0)
    length_type = rng.choice([np.int32, np.int64])
    lengths = []
    for values in (seg_len, text_len):
        memory_of = Memory(batch * length_type().itemsize)
        memory_of.array(length_type)[:] = values
        lengths.append(memory_of)
    fill = int(rng.choice([0xFF, 0x7E]))
    path = Memory(4 * batch * segs)
    moved = None if moves_shared else Memory(4 * batch * words, fill)
    saved = Memory(4 * batch * segs, fill) if tokens > width * plan["warps"] else None
    arguments = (
        memory.address,
        stride_b,
        stride_s,
        stride_n,
        lengths[0].address,
        length_type().itemsize,
        lengths[1].address,
        length_type().itemsize,
        segs,
        tokens,
        path.address,
        moved.address if moved else 0,
        saved.address if saved else 0,
    )
    emulator.launch(
        index,
        batch,
        32 * plan["warps"],
        shared,
        arguments,
        seed=int(rng.integers(2**31)),
        low=memory.address,
        allowed=allowed,
    )
    found = path.array(np.int32, (batch, segs))
    for row in range(batch):
        wanted = recursion(exact[row], seg_len[row], text_len[row])
        assert np.array_equal(found[row], wanted), (
            f"{instance['macro']} {kind} {(batch, segs, tokens)} row {row}, lengths {seg_len[row]}, {text_len[row]}: "
            f"wanted {wanted.tolist()}, found {found[row].tolist()}"
        )
    assert np.array_equal(memory.array(bits.dtype)[at], bits), "the scores were written to"


def random_shape(instance, rng):
    """(segs, tokens) that reach all of an instance: part of a warp, all warps, and strips."""
    width = 32 * instance["columns"] * instance["warps"]
    tokens = int(
        rng.choice([1, 2, rng.integers(1, width + 1), rng.integers(1, width + 1), width, width + 1, width + 70])
    )
    longest = 1.1 if tokens > 300 else 2.5
    segs = int(tokens * rng.choice([1, rng.uniform(1, longest)]) + rng.choice([0, rng.integers(90)]))
    return segs, tokens


def run_random_case(emulator, index, instance, case):
    rng = np.random.default_rng((index, case))
    segs, tokens = random_shape(instance, rng)
    # half of the cases are as large as they get, so that wide plans are busy throughout
    full = bool(rng.integers(2))
    options = dict(kind=KINDS[(case + index) % len(KINDS)], moves_shared=bool(rng.integers(2)), full=full)
    batch = 1 if segs * tokens > 20000 else 3
    run_case(emulator, index, instance, rng, batch=batch, segs=segs, tokens=tokens, **options)


def check_instances(emulator, instances, cases):
    for index, instance in enumerate(instances):
        for case in range(cases):
            run_random_case(emulator, index, instance, case)
    return cases * len(instances)


def check_planted(emulator, index, instance, cases=60):
    """What finds a planted bug: the first case that fails, or that AddressSanitizer stops. None where nothing does."""
    for case in range(cases):
        log = tempfile.TemporaryFile("w+")
        child = os.fork()
        if not child:
            os.dup2(log.fileno(), 2)
            try:
                run_random_case(emulator, index, instance, case)
            except AssertionError as error:
                print(f"{error}"[:300], file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            log.seek(0)
            lines = [line for line in log.read().splitlines() if "ERROR" in line or "WARNING" not in line]
            return f"case {case}: {lines[0] if lines else 'killed'}"
    return None


def main(instances_file, folder, cases):
    instances = json.loads(Path(instances_file).read_text())
    planted_in = next(
        x for x in instances if x["macro"].startswith("float,2,2,") and x["macro"].endswith("TEXT16,true")
    )
    source, library, report = SOURCE.read_text(), Path(folder) / "emulated.so", Path(folder) / "report.json"
    for name, (text, _) in PLANTED.items():
        assert source.count(text) == 1, f"{name}: mas.cu has {source.count(text)} times {text!r}"
    if "ASAN_OPTIONS" not in os.environ:
        sources = [source] * len(instances) + [source.replace(*change) for change in PLANTED.values()]
        began = time.time()
        build([x["macro"] for x in instances + [planted_in] * len(PLANTED)], library, sources=sources)
        print(f"built in {time.time() - began:.0f} s", flush=True)
        runtime = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
        environment = dict(os.environ, LD_PRELOAD=runtime.stdout.strip(), ASAN_OPTIONS=ASAN_OPTIONS)
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    emulator = Emulator(library)
    began = time.time()
    planted = {name: check_planted(emulator, len(instances) + i, planted_in) for i, name in enumerate(PLANTED)}
    for name, found in planted.items():
        print(f"planted: {name}: {found or 'NOT FOUND'}")
    print(f"looked for them in {time.time() - began:.0f} s", flush=True)
    began = time.time()
    count = check_instances(emulator, instances, int(cases))
    print(f"{count} cases on {len(instances)} instances as the recursion says, in {time.time() - began:.0f} s")
    report.write_text(json.dumps({"planted": planted, "cases": count, "instances": len(instances)}))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""mas.cu on the CPU: g++ compiles it behind cuda_emulation.h, and its answers are compared with a plain recursion.

As a program it runs random cases on every instance it is given, and is meant to run under AddressSanitizer:
`LD_PRELOAD=$(g++ -print-file-name=libasan.so) python tests/emulated.py LIBRARY INSTANCES.json CASES`.
It needs NumPy alone, so that it starts fast and nothing else is instrumented.
"""

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SOURCE = HERE.parent / "nemo_comat" / "mas.cu"
INF = float("inf")
ELEMENT_BYTES = {"float": 4, "Half": 2, "Bfloat": 2}


def build(macros, library, *, source=None, sanitize=True):
    """Starts g++ on mas.cu with one entry for each MAS_PLAN in `macros`; the process to wait for."""
    cases = "\n".join(
        f"        case {i}: return run([&](auto... rest) {{ monotonic_align<{macro}>((const {macro.split(',')[0]}*)score, rest...); }});"
        for i, macro in enumerate(macros)
    )
    code = f"""
#include "{HERE / "cuda_emulation.h"}"
{source or SOURCE.read_text()}
extern "C" int emulate(int instance, int blocks, int threads, int shared_bytes, uint64_t seed, const void* low,
                       const unsigned char* allowed, long long bytes, char* message, const void* score, long long stride_b,
                       int stride_s, int stride_n, const void* seg_len, int seg_bytes, const void* text_len,
                       int text_bytes, int max_segs, int max_tokens, int* path, unsigned* moved, float* saved) {{
    auto run = [&](auto kernel) {{
        const std::string error = emulation::launch(
            blocks, threads, shared_bytes, seed, {{(const char*)low, allowed, bytes}}, [&] {{
                kernel(stride_b, stride_s, stride_n, seg_len, seg_bytes, text_len, text_bytes, max_segs, max_tokens, path,
                       moved, saved);
            }});
        snprintf(message, 256, "%s", error.c_str());
        return (int)!error.empty();
    }};
    switch (instance) {{
{cases}
    }}
    return -1;
}}
"""
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"] if sanitize else []
    command = ["g++", "-std=c++17", "-O1", "-g1", "-w", "-fPIC", "-shared", "-fno-strict-aliasing", *flags]
    process = subprocess.Popen([*command, "-x", "c++", "-", "-o", str(library)], stdin=subprocess.PIPE, text=True)
    process.stdin.write(code)
    process.stdin.close()
    return process


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
    text_len = np.array([rng.integers(0, min(tokens, n + 1) + 1) for n in seg_len]) if not full else np.full(batch, tokens)
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
    at = (
        np.arange(batch)[:, None, None] * stride_b + np.arange(segs)[:, None] * stride_s + np.arange(tokens) * stride_n
    )
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
        index, batch, 32 * plan["warps"], shared, arguments, seed=int(rng.integers(2**31)), low=memory.address, allowed=allowed
    )
    found = path.array(np.int32, (batch, segs))
    for row in range(batch):
        wanted = recursion(exact[row], seg_len[row], text_len[row])
        assert np.array_equal(found[row], wanted), (
            f"{instance['macro']} {kind} {(batch, segs, tokens)} row {row}, lengths {seg_len[row]}, {text_len[row]}: "
            f"wanted {wanted.tolist()}, found {found[row].tolist()}"
        )
    assert np.array_equal(memory.array(bits.dtype)[at], bits), "the scores were written to"


def shapes_for(instance, rng):
    """(segs, tokens) that reach all of an instance: part of a warp, all warps, and strips."""
    width = 32 * instance["columns"] * instance["warps"]
    tokens = int(rng.choice([1, 2, rng.integers(1, width + 1), width, width + 1, rng.integers(width + 1, 2 * width + 40)]))
    segs = int(tokens * rng.choice([1, 1, 1.2, 2]) + rng.integers(0, 90))
    return segs, tokens


def main(library, instances_file, cases):
    emulator, instances = Emulator(library), json.loads(Path(instances_file).read_text())
    count = 0
    for index, instance in enumerate(instances):
        for case in range(int(cases)):
            rng = np.random.default_rng((index, case))
            segs, tokens = shapes_for(instance, rng)
            batch = 1 if segs * tokens > 20000 else 3
            kind = KINDS[(case + index) % len(KINDS)]
            run_case(
                emulator,
                index,
                instance,
                rng,
                batch=batch,
                segs=segs,
                tokens=tokens,
                kind=kind,
                moves_shared=bool((case + index) % 2),
            )
            count += 1
    print(f"{count} cases on {len(instances)} instances: all as the recursion says")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""CUDA kernels on the CPU: g++ compiles them behind cuda_emulation.h; their answers are compared with plain recursions.

What a kernel's cases are is in emulated_mas.py and emulated_viterbi.py. As a program this checks all their instances,
under AddressSanitizer, and that bugs planted in their sources are found:

    python tests/emulated.py INSTANCES.json FOLDER CASES

INSTANCES.json holds a list of instances for each kernel, as its `instances` gives it; FOLDER receives the library and
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
from typing import NamedTuple

import numpy as np

HERE = Path(__file__).parent
INF = float("inf")
ELEMENT_BYTES = {"float": 4, "Half": 2, "Bfloat": 2}
# ASan knows the stacks of threads, not those of fibers
ASAN_OPTIONS = "detect_leaks=0:detect_stack_use_after_return=0"


def available():
    return shutil.which("g++") is not None


class Entry(NamedTuple):
    """A function to emulate: text of CUDA, the function (an instance of a template) and its parameters' types."""

    source: str
    function: str
    parameters: str


def source(kernel):
    """Text that is compiled for a kernel: elements.cu and its own file."""
    return "".join((HERE.parent / "nemo_comat" / "kernels" / f"{name}.cu").read_text() for name in ("elements", kernel))


def build(entries, library, *, sanitize=True):
    """Compiles a library that `Emulator` can launch entries of; the same source is compiled once.

    Raises subprocess.CalledProcessError where g++ fails.
    """
    sources = list(dict.fromkeys(entry.source for entry in entries))
    code = f'#include "{HERE / "cuda_emulation.h"}"\n'
    for i, text in enumerate(sources):
        code += f"namespace source_{i} {{\n{text}\n"
        for k, (of, function, parameters) in enumerate(entries):
            if of == text:
                given = ", ".join(f"({kind})a[{n}]" for n, kind in enumerate(parameters.split(", ")))
                code += f"void entry_{k}(const uint64_t* a) {{ {function}({given}); }}\n"
        code += "}\n"
    cases = "".join(
        f"case {k}: return run(source_{sources.index(e.source)}::entry_{k});\n" for k, e in enumerate(entries)
    )
    code += f"""
extern "C" int emulate(int entry, int blocks, int threads, int shared_bytes, uint64_t seed, const void* low,
                       const unsigned char* allowed, long long bytes, char* message, const uint64_t* arguments) {{
    auto run = [&](auto kernel) {{
        const std::string error = emulation::launch(
            blocks, threads, shared_bytes, seed, {{(const char*)low, allowed, bytes}}, [&] {{ kernel(arguments); }});
        snprintf(message, 256, "%s", error.c_str());
        return (int)!error.empty();
    }};
    switch (entry) {{
        {cases}
    }}
    return -1;
}}
"""
    flags = ["-fsanitize=address,alignment", "-fno-sanitize-recover=all"] if sanitize else []
    # optimising would take longer than it saves
    command = ["g++", "-std=c++17", "-O0", "-g1", "-w", "-fPIC", "-shared", "-fno-strict-aliasing", *flags]
    subprocess.run([*command, "-x", "c++", "-", "-o", str(library)], input=code, text=True, check=True)


class Emulator:
    """The entries of one library; `launch` takes a kernel's arguments as whole numbers, pointers as addresses."""

    def __init__(self, library):
        self.function = ctypes.CDLL(str(library)).emulate

    def launch(self, entry, blocks, threads, shared_bytes, arguments, *, seed, low=0, allowed=None):
        message = ctypes.create_string_buffer(256)
        code = self.function(
            entry,
            blocks,
            threads,
            shared_bytes,
            ctypes.c_uint64(seed),
            ctypes.c_void_p(low),
            None if allowed is None else allowed.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_longlong(0 if allowed is None else len(allowed)),
            message,
            (ctypes.c_uint64 * len(arguments))(*(int(x) % 2**64 for x in arguments)),
        )
        if code:
            raise AssertionError(message.value.decode() or f"there is no entry {entry}")


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


def integers(values, rng):
    """Values in memory of their exact size, as int32 or int64."""
    values = np.asarray(values)
    kind = rng.choice([np.int32, np.int64])
    memory = Memory(values.size * kind().itemsize)
    memory.array(kind)[:] = values.ravel()
    return memory, kind().itemsize


def find_planted(run_case, cases=60):
    """What finds a planted bug: the first case that fails, or that AddressSanitizer stops. None where nothing does."""
    for case in range(cases):
        log = tempfile.TemporaryFile("w+")
        child = os.fork()
        if not child:
            os.dup2(log.fileno(), 2)
            try:
                run_case(case)
            except AssertionError as error:
                print(f"{error}"[:300], file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            log.seek(0)
            lines = [line for line in log.read().splitlines() if "ERROR" in line or "WARNING" not in line]
            return f"case {case}: {lines[0] if lines else 'killed'}"
    return None


def changed(kernel):
    """{bug: source with the bug} of a kernel's module."""
    text = source(kernel.NAME)
    for bug, (old, _) in kernel.PLANTED.items():
        assert text.count(old) == 1, f"{bug}: {kernel.NAME}.cu has {text.count(old)} times {old!r}"
    return {bug: text.replace(*change) for bug, change in kernel.PLANTED.items()}


def check_kernel(emulator, first, kernel, instances, cases):
    """Report of one kernel: its instances are the library's entries from `first` on, its planted bugs the next."""
    began, victim = time.time(), kernel.victim(instances)
    planted = {}
    for entry, bug in enumerate(kernel.PLANTED, first + len(instances)):
        planted[bug] = find_planted(lambda case, entry=entry: kernel.run_random_case(emulator, entry, victim, case))
        print(f"{kernel.NAME}: planted: {bug}: {planted[bug] or 'NOT FOUND'}")
    print(f"{kernel.NAME}: looked for them in {time.time() - began:.0f} s", flush=True)
    began, cases = time.time(), cases * kernel.CASES
    for entry, instance in enumerate(instances, first):
        for case in range(cases):
            kernel.run_random_case(emulator, entry, instance, case)
    count = cases * len(instances)
    print(f"{kernel.NAME}: {count} cases as the recursion says, in {time.time() - began:.0f} s", flush=True)
    return {"planted": planted, "cases": count, "instances": len(instances)}


def main(instances_file, folder, cases):
    import emulated_mas
    import emulated_viterbi

    kernels = (emulated_mas, emulated_viterbi)
    instances = json.loads(Path(instances_file).read_text())
    library = Path(folder) / "emulated.so"
    entries = []
    for kernel in kernels:
        of, victim = instances[kernel.NAME], kernel.victim(instances[kernel.NAME])
        entries += [kernel.entry(instance, source(kernel.NAME)) for instance in of]
        entries += [kernel.entry(victim, text) for text in changed(kernel).values()]
    if "ASAN_OPTIONS" not in os.environ:
        began = time.time()
        build(entries, library)
        print(f"built in {time.time() - began:.0f} s", flush=True)
        runtime = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
        environment = dict(os.environ, LD_PRELOAD=runtime.stdout.strip(), ASAN_OPTIONS=ASAN_OPTIONS)
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    emulator, report, first = Emulator(library), {}, 0
    for kernel in kernels:
        of = instances[kernel.NAME]
        report[kernel.NAME] = check_kernel(emulator, first, kernel, of, int(cases))
        first += len(of) + len(kernel.PLANTED)
    (Path(folder) / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])

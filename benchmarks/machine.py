"""The machine that is measured on: its clock, its memory, and what it is."""

import functools
import os
import statistics
import time
from pathlib import Path

import torch

import nemo_comat
from nemo_comat.output import one_sentence
from nemo_comat.provenance import commit_here, processor_name


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
    seconds = [clock(device, lambda: target.copy_(source), calls=10) for _ in range(12)]
    return 2 * 4 * source.numel() / statistics.median(seconds[2:])


def memory_left(device):
    """Bytes that can be had on a device; on a CPU those too that hold files which can be read again."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return kilobytes("/proc/meminfo", "MemAvailable")


def where(device):
    """What the figures were measured on."""
    cores = f"{processor_name()}, {os.cpu_count()} cores"
    return {
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else cores,
        "torch": torch.__version__,
        "nemo_comat": nemo_comat.__version__,
        "commit": commit_here(),
        "copy_bandwidth_gb_s": copy_bandwidth(device) / 1e9,
    }


def line_of(place):
    """What `where` says, in one line."""
    said = (f"{key} {value:.0f}" if isinstance(value, float) else f"{key} {value}" for key, value in place.items())
    return ", ".join(said)


def the_device(name):
    """The torch.device of a name, "cuda" being the current GPU; one that is named becomes the current one.

    Args:
        name: str, or None for the GPU where there is one.
    Raises:
        SystemExit: there is no such device, or it is neither a CPU nor one of CUDA.
    """
    there = torch.cuda.device_count()
    try:
        device = torch.device(name or ("cuda" if there else "cpu"))
    except RuntimeError as error:
        raise SystemExit(f"--device {name} is none ({one_sentence(error)}); give cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and (device.index or 0) >= there:
        raise SystemExit(f"--device {name} is not here: PyTorch sees {there} GPUs; give another, or cpu.")
    if device.type not in ("cpu", "cuda"):
        raise SystemExit(f"--device {name} cannot be timed here; give cpu, cuda or cuda:N.")
    if device.type == "cuda":
        if device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        torch.cuda.set_device(device)  # events and graphs are of the current one's stream
    return device


def resident(key):
    """Bytes that Linux counts of this process under a key, such as VmRSS or VmHWM."""
    return kilobytes("/proc/self/status", key)


def kilobytes(file, key):
    """Bytes that a file of Linux's gives under a key in kB."""
    status = dict(line.split(":", 1) for line in Path(file).read_text().splitlines())
    return 1024 * int(status[key].split()[0])

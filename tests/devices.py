"""GPUs that the tests speak of without having them, NVRTC to compile for them, and tensors moved to a real one."""

import pytest
import torch

from nemo_comat.kernels import cuda
from nemo_comat.kernels.cuda import Device

H200 = Device(multiprocessors=132, shared_per_block=232448, shared_per_multiprocessor=233472, capability=90)
RTX_3090 = Device(multiprocessors=82, shared_per_block=101376, shared_per_multiprocessor=102400, capability=86)
T4 = Device(multiprocessors=40, shared_per_block=65536, shared_per_multiprocessor=65536, capability=75)
DEVICES = {"H200": H200, "RTX 3090": RTX_3090, "T4": T4}


def cramped(device):
    """The device with so little shared memory a multiprocessor that directions are kept in global memory."""
    return Device(device.multiprocessors, device.shared_per_block, 1024, device.capability)


def cubin_size(name, macro, architecture):
    """Bytes that NVRTC makes of kernel `name` with -Dmacro; AssertionError with the log where it makes none."""
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings and nvidia-cuda-nvrtc")
    options = [b"--std=c++17", f"--gpu-architecture={architecture}".encode(), f"-D{macro}".encode()]
    # which CuPy adds to all that it compiles
    options += [b"-ftz=true", b"--device-as-default-execution-space"]
    _, program = nvrtc.nvrtcCreateProgram(cuda.source(name).encode(), f"{name}.cu".encode(), 0, [], [])
    (result,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    # NVRTC writes into the bytes, and a single byte is an object that all of Python shares
    log = b" " * max(size, 2)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert int(result) == 0, log.decode()
    return nvrtc.nvrtcGetCUBINSize(program)[1]


def to_gpu(tensor, device="cuda"):
    """On the GPU with the same strides, those of zero too, and negated where it is only marked so."""
    if tensor.is_neg():
        return torch._neg_view(to_gpu(torch._neg_view(tensor), device))
    shape = [1 if step == 0 else size for size, step in zip(tensor.shape, tensor.stride())]
    once = tensor.as_strided(shape, tensor.stride(), tensor.storage_offset())
    there = torch.empty_strided(shape, tensor.stride(), dtype=tensor.dtype, device=device).copy_(once)
    return there.expand(tensor.shape)

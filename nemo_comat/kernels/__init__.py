"""Kernels: which backend computes, and the CUDA sources with the code that launches them."""

from nemo_comat.kernels import backends, cuda, mas_cuda, numba_cpu, viterbi_cuda

__all__ = ["backends", "cuda", "mas_cuda", "numba_cpu", "viterbi_cuda"]

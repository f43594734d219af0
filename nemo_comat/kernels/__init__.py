"""Kernels: which backend computes, and the CUDA sources with the code that launches them."""

from nemo_comat.kernels import backends, mas_cuda, viterbi_cuda

__all__ = ["backends", "mas_cuda", "viterbi_cuda"]

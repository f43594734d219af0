"""Kernels: which backend computes, and the CUDA sources with the code that launches them.

`backends` chooses, compiles and launches; `mas_cuda` launches mas.cu for `monotonic_align`, and `viterbi_cuda`
viterbi.cu for `ctc_viterbi`. elements.cu is what both sources begin with.
"""

"""Fused kernels in Triton for CUDA devices; imported only where one is about to run."""

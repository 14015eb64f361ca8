"""Fused cuDNN graphs and Triton kernels, in planned memory, as one CUDA graph."""

from tiacc.backends.cudnn.backend import CudnnBackend

__all__ = ["CudnnBackend"]

"""The libraries of the backend: cuDNN's graph API through its frontend, and Triton; how they are found and what they are."""

from __future__ import annotations

import importlib
import importlib.metadata
import threading
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch

from tiacc.backends.base import SUPPORTED, Support

_INSTALL = "pip install 'tiacc[cudnn]'"
_local = threading.local()


@lru_cache(maxsize=1)
def availability() -> Support:
    """Return whether there is a CUDA device and the frontend is installed; nothing is imported."""
    if find_spec("cudnn") is None:
        return Support(False, f"the frontend of cuDNN is not installed; {_INSTALL}")
    if find_spec("triton") is None:
        return Support(False, "Triton is not installed; pip install triton")
    if not torch.cuda.is_available():
        return Support(False, "torch finds no CUDA device")
    if not torch.backends.cudnn.is_available():
        return Support(False, "this build of torch has no cuDNN")
    return SUPPORTED


def version() -> str:
    """Return the versions of the frontend and of cuDNN, ``"1.14.1+91900"``; an empty string where the frontend is not installed."""
    try:
        return f"{importlib.metadata.version('nvidia-cudnn-frontend')}+{torch.backends.cudnn.version() or 'none'}"
    except importlib.metadata.PackageNotFoundError:
        return ""


def environment_key(device: torch.device) -> str:
    """Return what the speed of kernels depends on beside themselves: the GPU and the libraries."""
    properties = torch.cuda.get_device_properties(device)
    triton = importlib.metadata.version("triton")
    return f"{properties.name}, {properties.multi_processor_count} SMs; cuDNN {version()}; torch {torch.__version__}; Triton {triton}"


def module() -> Any:
    """Return the frontend of cuDNN."""
    return importlib.import_module("cudnn")


def handle(device: torch.device, stream: int) -> Any:
    """Return this thread's handle of cuDNN on a device, set to a stream.

    A handle serves one thread at a time, and what it launches goes to the stream that it was last set to.
    """
    handles: dict[int, Any] = _local.__dict__.setdefault("handles", {})
    index = device.index or 0
    if index not in handles:
        with torch.cuda.device(device):
            handles[index] = module().create_handle()
    module().set_stream(handle=handles[index], stream=stream)
    return handles[index]


def data_type(dtype: torch.dtype) -> Any:
    """Return a dtype as the frontend calls it."""
    names = {torch.float16: "HALF", torch.bfloat16: "BFLOAT16", torch.float32: "FLOAT", torch.bool: "BOOLEAN"}
    return getattr(module().data_type, names[dtype])

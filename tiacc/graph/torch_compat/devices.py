"""What torch tells of devices in private."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

import torch

RECORDING = threading.RLock()
"""Held while a graph is recorded, which changes what all threads share: the collector of garbage, the scratch memory of cuBLAS."""


def current_stream(index: int) -> int:
    """Return the handle of this thread's current stream on a CUDA device; no object is made for it."""
    return int(torch._C._cuda_getCurrentRawStream(index))


def current_device() -> int:
    """Return the index of this thread's current CUDA device, which is in use already."""
    return int(torch._C._cuda_getDevice())


def is_recording() -> bool:
    """Return whether a CUDA graph is being recorded on the current stream of a device that is in use already."""
    return bool(torch._C._cuda_isCurrentStreamCapturing())


def recorded(work: Callable[[], None], stream: torch.cuda.Stream, *, keep: bool = False) -> torch.cuda.CUDAGraph:
    """Return the work that a function puts on the current stream as a CUDA graph; it has run at least once.

    torch keeps the scratch memory of cuBLAS by stream, for good. A graph whose products use what another graph's memory pool gave reads and
    writes memory that is gone when that graph is, and when someone clears what torch keeps, as `torch.compile` does. So it is cleared
    before, which makes the products of this graph use memory of its own pool, and after, so that no other graph uses that.

    Args:
        work: What is recorded; other threads may use the device meanwhile.
        stream: What it is recorded on.
        keep: Whether to keep what was recorded beside what is launched, so that its nodes can be asked for.
    """
    with RECORDING:
        graph = torch.cuda.CUDAGraph(keep_graph=keep)
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        torch._C._cuda_clearCublasWorkspaces()
        collects = gc.isenabled()
        gc.disable()  # what is freed while a stream is recorded may need calls that are not allowed then
        try:
            with torch.cuda.stream(stream):
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    work()
                finally:
                    graph.capture_end()
        finally:
            torch._C._cuda_clearCublasWorkspaces()
            if collects:
                gc.enable()
        if keep:
            graph.instantiate()
        return graph

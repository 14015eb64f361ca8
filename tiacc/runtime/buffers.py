"""Device memory for engines: one arena for each device and stream, shared by the engines that run there.

The scratch memory of an engine is only in use while it runs, and what runs on one stream runs one after the other. So all engines
of a model, and all models of a process, can use the same arena on a stream; it grows to what the largest of them needs and is
freed with the last engine that refers to it. An engine whose launches have addresses in them, as those of a CUDA graph, asks for a
`Region` instead, which never moves.

Memory comes from PyCUDA where that is installed, in torch's primary context (a second context in one process would share neither
memory nor streams with torch), else from torch.
"""

from __future__ import annotations

import functools
import importlib.util
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

ALIGNMENT = 256
"""What addresses of tensors and of scratch memory are multiples of, in bytes: TensorRT wants it, and kernels read whole cache lines."""


class Block(Protocol):
    """A piece of device memory."""

    pointer: int

    def free(self) -> None:
        """Give it back, once the work that uses it is done."""


class TorchBlock:
    """Memory from torch's caching allocator, on a stream: it is given to others only after the work on that stream."""

    def __init__(self, size_bytes: int, device: torch.device, stream: int) -> None:
        on = torch.cuda.ExternalStream(stream, device=device) if stream else torch.cuda.default_stream(device)
        with torch.cuda.device(device), torch.cuda.stream(on):
            self._tensor: torch.Tensor | None = torch.empty(size_bytes, dtype=torch.uint8, device=device)
        self.pointer = self._tensor.data_ptr()

    def free(self) -> None:
        """Give it back."""
        self._tensor = None


class PyCudaBlock:
    """Memory from the driver, through PyCUDA, in torch's primary context."""

    def __init__(self, size_bytes: int, device: torch.device, stream: int) -> None:
        self._context = primary_context(device.index or 0)
        with entered(self._context):
            self._allocation: Any = _driver().mem_alloc(size_bytes)
        self.pointer = int(self._allocation)

    def free(self) -> None:
        """Give it back; the driver waits for the work that uses it."""
        allocation, self._allocation = self._allocation, None
        if allocation is not None:
            with entered(self._context):
                allocation.free()


Allocate = Callable[[int, torch.device, int], Block]
"""Takes a size in bytes, a device and a stream handle."""


def default_allocator() -> Allocate:
    """Return what allocates memory here: PyCUDA where it is installed, else torch."""
    return PyCudaBlock if importlib.util.find_spec("pycuda") is not None else TorchBlock


def _driver() -> Any:
    import pycuda.driver as driver

    driver.init()
    return driver


@functools.cache
def primary_context(index: int) -> Any:
    """Return torch's own CUDA context of a device, as PyCUDA sees it."""
    torch.cuda.init()
    return _driver().Device(index).retain_primary_context()


@contextmanager
def entered(context: Any) -> Iterator[None]:
    """Make a PyCUDA context current, and the one before it afterwards."""
    context.push()
    try:
        yield
    finally:
        context.pop()


class Arena:
    """The scratch memory of one device and stream. `shared` finds or makes it.

    Attributes:
        lock: Held while the work that uses the memory is put on the stream: two threads on one stream take turns.
        size_bytes: How much there is.
    """

    def __init__(self, device: torch.device, stream: int, allocate: Allocate) -> None:
        self.lock = threading.Lock()
        self.size_bytes = 0
        self._device = device
        self._stream = stream
        self._allocate = allocate
        self._block: Block | None = None

    def reserve(self, size_bytes: int) -> int:
        """Return the address of at least `size_bytes`; call it with the lock held. It grows and never shrinks."""
        if self._block is None or size_bytes > self.size_bytes:
            wanted = max(-(-size_bytes // ALIGNMENT) * ALIGNMENT, ALIGNMENT)
            if self._block is not None:
                self._block.free()
                self._block, self.size_bytes = None, 0
            self._block = self._allocate(wanted, self._device, self._stream)
            self.size_bytes = wanted
        return self._block.pointer

    def __del__(self) -> None:
        block, self._block = self._block, None
        if block is not None:
            block.free()


_arenas: weakref.WeakValueDictionary[tuple[torch.device, int], Arena] = weakref.WeakValueDictionary()
_arenas_lock = threading.Lock()


def shared(device: torch.device, stream: int, allocate: Allocate | None = None) -> Arena:
    """Return the arena of a device and stream; it lives as long as someone holds it.

    Args:
        device: The device, with its index.
        stream: The handle of the stream.
        allocate: What it takes its memory from when it is made; see `default_allocator`.
    """
    with _arenas_lock:
        arena = _arenas.get((device, stream))
        if arena is None:
            arena = _arenas[device, stream] = Arena(device, stream, allocate or default_allocator())
        return arena


class Region:
    """Memory that stays where it is as long as someone holds it. `region` finds or makes it.

    Attributes:
        lock: Held while the work that uses the memory is put on its stream.
        bytes: The memory, as a ``uint8`` tensor of shape ``(size,)``.
    """

    def __init__(self, size_bytes: int, device: torch.device, stream: int, allocate: Allocate) -> None:
        self.lock = threading.Lock()
        self._block: Block | None = allocate(max(size_bytes, ALIGNMENT), device, stream)
        self.bytes = _as_tensor(self._block.pointer, max(size_bytes, ALIGNMENT), device)

    def __del__(self) -> None:
        block, self._block = self.__dict__.get("_block"), None
        if block is not None:
            block.free()


class _Exported:
    """A piece of device memory as other libraries are told of it.

    Source: the CUDA array interface, version 3 (https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html).
    """

    def __init__(self, pointer: int, size_bytes: int) -> None:
        self.__cuda_array_interface__ = {"shape": (size_bytes,), "typestr": "|u1", "data": (pointer, False), "version": 3}


def _as_tensor(pointer: int, size_bytes: int, device: torch.device) -> torch.Tensor:
    return torch.as_tensor(_Exported(pointer, size_bytes), device=device)


_regions: weakref.WeakValueDictionary[tuple[torch.device, int], Region] = weakref.WeakValueDictionary()


def region(device: torch.device, stream: int, size_bytes: int, allocate: Allocate | None = None) -> Region:
    """Return memory on a device for what runs on one stream: that which is in use there already if it is large enough, else more.

    Args:
        device: The device, with its index.
        stream: The handle of the stream.
        size_bytes: How much is needed.
        allocate: What it takes its memory from; see `default_allocator`.
    """
    with _arenas_lock:
        found = _regions.get((device, stream))
        if found is None or found.bytes.numel() < size_bytes:
            found = _regions[device, stream] = Region(size_bytes, device, stream, allocate or default_allocator())
        return found


def held_bytes(device: torch.device) -> int:
    """Return the size of all arenas and regions that are in use on a device, whatever their stream, in bytes."""
    index = torch.cuda.current_device() if device.index is None else device.index
    with _arenas_lock:
        arenas = [arena.size_bytes for (home, _), arena in _arenas.items() if home.index == index]
        regions = [region.bytes.numel() for (home, _), region in _regions.items() if home.index == index]
    return sum(arenas) + sum(regions)

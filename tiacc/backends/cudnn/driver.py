"""What torch has no name for in the CUDA driver: quick launches of a kernel, and new arguments for the kernels of a recorded graph.

Source: CUDA Driver API, "Execution Control" and "Graph Management" (``CUDA_KERNEL_NODE_PARAMS_v2``).
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

_KERNEL_NODE = 0
_NO_CONTEXT = (3, 201)
"""CUDA_ERROR_NOT_INITIALIZED and CUDA_ERROR_INVALID_CONTEXT: a thread that has not used the device yet."""
_POINTER_BYTES = 8

_FUNCTIONS = (
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuFuncSetCacheConfig",
    "cuFuncSetAttribute",
    "cuLaunchKernelEx",
    "cuGraphGetNodes",
    "cuGraphNodeGetType",
    "cuGraphKernelNodeGetParams_v2",
    "cuGraphExecKernelNodeSetParams_v2",
    "cuGetErrorName",
)


_PREFER_SHARED = 1  # CU_FUNC_CACHE_PREFER_SHARED
_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # of CUfunction_attribute
_PROGRAMMATIC_STREAM_SERIALIZATION = 6  # of CUlaunchAttributeID
_SHARED_BYTES = 48 << 10
"""A kernel may use so much shared memory without asking for it."""

_DIMENSIONS = [(f"{kind}Dim{axis}", ctypes.c_uint) for kind in ("grid", "block") for axis in "XYZ"]


class _Attribute(ctypes.Structure):
    """``CUlaunchAttribute``, whose value is a number."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60))


class _Config(ctypes.Structure):
    """``CUlaunchConfig``."""

    _fields_ = (
        *_DIMENSIONS,
        ("sharedMemBytes", ctypes.c_uint),
        ("hStream", ctypes.c_void_p),
        ("attrs", ctypes.POINTER(_Attribute)),
        ("numAttrs", ctypes.c_uint),
    )


class _Params(ctypes.Structure):
    """``CUDA_KERNEL_NODE_PARAMS_v2``."""

    _fields_ = (
        ("func", ctypes.c_void_p),
        *_DIMENSIONS,
        ("sharedMemBytes", ctypes.c_uint),
        ("kernelParams", ctypes.POINTER(ctypes.c_void_p)),
        ("extra", ctypes.POINTER(ctypes.c_void_p)),
        ("kern", ctypes.c_void_p),
        ("ctx", ctypes.c_void_p),
    )


@functools.cache
def _library() -> ctypes.CDLL | None:
    """Return the driver; None where it, or one of the functions, is missing."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        for name in _FUNCTIONS:
            getattr(library, name).restype = ctypes.c_int
    except (OSError, AttributeError):
        return None
    return library


def is_usable() -> bool:
    """Return whether the classes and functions here work: with a driver for CUDA 12 and newer."""
    return hasattr(torch.cuda.CUDAGraph, "raw_cuda_graph_exec") and _library() is not None


class _Arguments:
    """Arguments where the driver reads them: `values`, to be changed in place; of a smaller one the first bytes are read."""

    def __init__(self, values: Sequence[int]) -> None:
        count = len(values)
        self.values = (ctypes.c_uint64 * count)(*values)
        begin = ctypes.addressof(self.values)
        self.pointers = (ctypes.c_void_p * count)(*range(begin, begin + count * _POINTER_BYTES, _POINTER_BYTES))


class Kernel:
    """A kernel, launched with a grid.

    Args:
        function: The handle of the kernel.
        arguments: Its arguments.
        grid: How many blocks it runs, in up to three dimensions.
        threads: The threads of a block.
        shared_bytes: The shared memory of a block.
        overlaps: Whether it may be set up while the kernel before it runs, and waits for that itself.

    Attributes:
        arguments: Its arguments, each in eight bytes, to be changed in place.
        function: The handle.
    """

    def __init__(
        self, function: int, arguments: Sequence[int], grid: Sequence[int], threads: int, shared_bytes: int, *, overlaps: bool
    ) -> None:
        self.function = function
        self._held = _Arguments(arguments)
        self.arguments = self._held.values
        self._attribute = _Attribute(id=_PROGRAMMATIC_STREAM_SERIALIZATION, value=1)
        self._config = _Config(*grid, *[1] * (3 - len(grid)), threads, 1, 1, shared_bytes)
        if overlaps:
            self._config.attrs, self._config.numAttrs = ctypes.pointer(self._attribute), 1
        self._told = (ctypes.byref(self._config), ctypes.c_void_p(function), self._held.pointers, None)
        self._call = _driver().cuLaunchKernelEx

    def launch(self, stream: int) -> None:
        """Launch it on a stream of the current device.

        Raises:
            RuntimeError: The driver refuses.
        """
        self._config.hStream = stream
        status = self._call(*self._told)
        if status:
            _once_more(status, self._call, self._told)


@functools.cache
def loaded(device: int, code: bytes, name: str, shared_bytes: int) -> int:
    """Return the handle of a kernel on a device, which is the current one; it stays for as long as this process.

    Args:
        device: The index of the device.
        code: A cubin.
        name: What the kernel is called in it.
        shared_bytes: The shared memory of its blocks.

    Raises:
        RuntimeError: The driver refuses.
    """
    driver, module, function = _driver(), ctypes.c_void_p(), ctypes.c_void_p()
    told = (ctypes.byref(module), code)
    _once_more(driver.cuModuleLoadData(*told), driver.cuModuleLoadData, told)
    _check(driver.cuModuleGetFunction(ctypes.byref(function), module, name.encode()))
    if shared_bytes > _SHARED_BYTES:
        _check(driver.cuFuncSetCacheConfig(function, _PREFER_SHARED))
        _check(driver.cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes))
    return int(function.value or 0)


class KernelNode:
    """A kernel in a recorded graph; all of its arguments are of the size of a pointer.

    Args:
        executable: The handle of the instantiated graph.
        handle: The handle of the node.
        params: How it was recorded.
        arguments: The arguments it was recorded with.

    Attributes:
        arguments: Its arguments, to be changed in place; `update` makes them those of the launches after it.
        function: The handle of the kernel.
    """

    def __init__(self, executable: int, handle: int, params: _Params, arguments: Sequence[int]) -> None:
        self.function = int(params.func or 0)
        self._held = _Arguments(arguments)
        self.arguments = self._held.values
        params.kernelParams = ctypes.cast(self._held.pointers, ctypes.POINTER(ctypes.c_void_p))
        self._params = params
        self._told = (ctypes.c_void_p(executable), ctypes.c_void_p(handle), ctypes.byref(params))
        self._call = _driver().cuGraphExecKernelNodeSetParams_v2

    def update(self) -> None:
        """Have launches from now on use the arguments; those that are under way do not see it.

        Raises:
            RuntimeError: The driver refuses.
        """
        status = self._call(*self._told)
        if status:
            _once_more(status, self._call, self._told)


def kernel_nodes(graph: torch.cuda.CUDAGraph, functions: Mapping[int, int]) -> list[KernelNode]:
    """Return the nodes of some kernels in a graph, in the order in which they were recorded.

    Args:
        graph: A graph that keeps what was recorded, and is instantiated.
        functions: How many arguments each of the kernels has, by handle; all are of the size of a pointer.

    Raises:
        RuntimeError: The driver refuses.
    """
    library = _driver()
    recorded, executable = ctypes.c_void_p(graph.raw_cuda_graph()), graph.raw_cuda_graph_exec()
    size = ctypes.c_size_t()
    _check(library.cuGraphGetNodes(recorded, None, ctypes.byref(size)))
    handles = (ctypes.c_void_p * size.value)()
    _check(library.cuGraphGetNodes(recorded, handles, ctypes.byref(size)))
    found = []
    for handle in filter(None, handles):
        kind = ctypes.c_int()
        _check(library.cuGraphNodeGetType(ctypes.c_void_p(handle), ctypes.byref(kind)))
        if kind.value != _KERNEL_NODE:
            continue
        params = _Params()
        _check(library.cuGraphKernelNodeGetParams_v2(ctypes.c_void_p(handle), ctypes.byref(params)))
        if params.func in functions:
            count = functions[int(params.func)]
            values = [ctypes.cast(params.kernelParams[index], ctypes.POINTER(ctypes.c_uint64)).contents.value for index in range(count)]
            found.append(KernelNode(executable, handle, params, values))
    return found


def _driver() -> ctypes.CDLL:
    library = _library()
    if library is None:
        raise RuntimeError("the CUDA driver is missing, or older than CUDA 12")
    return library


def _once_more(status: int, call: Callable[..., int], told: tuple[Any, ...]) -> None:
    """Call again in the context of the current device, if it was that what a thread lacked."""
    if status in _NO_CONTEXT:
        torch.cuda.current_stream().query()
        status = call(*told)
    _check(status)


def _check(status: int) -> None:
    if status:
        name = ctypes.c_char_p()
        _driver().cuGetErrorName(status, ctypes.byref(name))
        raise RuntimeError(f"the CUDA driver refuses: {(name.value or b'unknown error').decode()} ({status})")

"""How an engine is run on a GPU, but for TensorRT itself: real memory of PyCUDA's, real streams, real threads.

TensorRT's library is a stand-in. Its contexts launch torch's kernels on the stream, and at the addresses, that they are given:
``y = 2 x + 1``, where the product stays in scratch memory for a while before it is read again. So memory that is shared where it must
not be, given back while it is in use, or written in another order than the streams' makes numbers wrong.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.machinery
import importlib.util
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tiacc.backends.base import Profile
from tiacc.backends.tensorrt import flavours
from tiacc.backends.tensorrt.backend import TensorRTBackend
from tiacc.backends.tensorrt.engine import TensorRTEngine
from tiacc.backends.tensorrt.payload import EnginePayload
from tiacc.errors import ShapeOutOfRangeError
from tiacc.graph.types import Dim, TensorSpec
from tiacc.runtime import blob, buffers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("pycuda") is None, reason="PyCUDA is not installed"),
]

MOST_ROWS = 8
SPEC = TensorSpec((Dim("n", 0, 2, MOST_ROWS), 3), torch.float32, torch.device("cuda"))
PROFILE = Profile(((0, 3),), ((2, 3),), ((MOST_ROWS, 3),))
CYCLES = 200_000
"""How long a product stays in scratch memory: about a tenth of a millisecond."""


@dataclass(frozen=True)
class Run:
    """What a context was given for one run: addresses, and the handle of a stream."""

    context: int
    stream: int
    source: int
    result: int
    scratch: int
    scratch_bytes: int


class World:
    """A stand-in of TensorRT's module, the engines made with it, and what they were given.

    Attributes:
        row_bytes: The scratch memory that a run takes for each row.
        runs: What was run, in order.
        module: The module.
    """

    def __init__(self) -> None:
        self.row_bytes = 1024
        self.runs: list[Run] = []
        self.module: Any = types.ModuleType("tensorrt")
        self.module.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
        self.module.__version__ = "10.13.3"
        self.module.ILogger = type("ILogger", (), {"ERROR": 1, "INTERNAL_ERROR": 0, "WARNING": 2})
        self.module.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
        self.module.Runtime = lambda logger: self
        self._contexts = 0

    def deserialize_cuda_engine(self, plan: bytes) -> World:
        return self

    def create_execution_context(self, strategy: str) -> Context:
        assert strategy == "user managed"
        self._contexts += 1
        return Context(self, self._contexts)

    def payload(self) -> EnginePayload:
        return EnginePayload("tensorrt", "10.13.3", (), ("x",), ("y",), (SPEC,), (SPEC,), (PROFILE,), b"plan")

    def engine(self) -> TensorRTEngine:
        engine = TensorRTBackend().load(self.payload().to_bytes())
        assert isinstance(engine, TensorRTEngine)
        return engine


class Context:
    """A stand-in of ``IExecutionContext``."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self._number = number
        self._shape: tuple[int, ...] = ()
        self._addresses: dict[str, int] = {}
        self._scratch = (0, 0)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = shape
        return True

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shape

    def update_device_memory_size_for_shapes(self) -> int:
        return max(self._shape[0], 1) * self._world.row_bytes

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % buffers.ALIGNMENT == 0
        self._addresses[name] = address
        return address != 0

    def set_device_memory(self, pointer: int, size_bytes: int) -> None:
        assert pointer % buffers.ALIGNMENT == 0
        self._scratch = (pointer, size_bytes)

    def execute_async_v3(self, stream: int) -> bool:
        self._world.runs.append(Run(self._number, stream, self._addresses["x"], self._addresses["y"], *self._scratch))
        if 0 in self._shape:
            return True
        source, result, scratch = (_tensor_at(address, self._shape) for address in (*self._addresses.values(), self._scratch[0]))
        with torch.cuda.stream(torch.cuda.ExternalStream(stream) if stream else torch.cuda.default_stream()):
            torch.mul(source, 2, out=scratch)
            torch.cuda._sleep(CYCLES)
            torch.add(scratch, 1, out=result)
        return True


class _Exported:
    def __init__(self, address: int, shape: tuple[int, ...]) -> None:
        self.__cuda_array_interface__ = {"shape": shape, "typestr": "<f4", "data": (address, False), "version": 3}


def _tensor_at(address: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.as_tensor(_Exported(address, shape), device="cuda")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """TensorRT, installed."""
    made = World()
    monkeypatch.setitem(sys.modules, "tensorrt", made.module)
    flavours.load_flavour.cache_clear()
    yield made
    flavours.load_flavour.cache_clear()
    torch.cuda.synchronize()
    gc.collect()


def _right(x: torch.Tensor, y: torch.Tensor) -> bool:
    return torch.equal(y, 2 * x + 1)


def _rows(count: int) -> torch.Tensor:
    return torch.randn(count, 3, device="cuda")


@contextmanager
def _held(stream: torch.cuda.Stream) -> Iterator[None]:
    """Let nothing run that is put on a stream, until the end of the block.

    What is to be put there must have run before: loading a kernel, or taking memory from the driver, may wait for the device. Should
    something wait all the same, the stream is let go after a while, and whoever asks finds it idle.
    """
    flag = torch.zeros(1, dtype=torch.int32).pin_memory()
    wait = ctypes.CDLL("libcuda.so.1").cuStreamWaitValue32_v2
    at_least = ctypes.c_uint(0)
    assert wait(ctypes.c_void_p(stream.cuda_stream), ctypes.c_uint64(flag.data_ptr()), ctypes.c_uint32(1), at_least) == 0
    last_resort = threading.Timer(30, flag.fill_, (1,))
    last_resort.daemon = True
    last_resort.start()
    try:
        yield
    finally:
        last_resort.cancel()
        flag.fill_(1)
        stream.synchronize()


# -- one call -------------------------------------------------------------------------------------------------------------------------


def test_a_stored_engine_runs_where_its_caller_is(world: World) -> None:
    """From the bytes in a model file: the caller's stream, its tensors where they are, scratch memory of PyCUDA's."""
    device = torch.device("cuda")
    stored = blob.pack(
        world.payload().to_bytes(),
        backend="tensorrt",
        backend_version="10.13.3",
        device=device,
        inputs=(SPEC,),
        outputs=(SPEC,),
        profiles=(PROFILE,),
    )
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x = _rows(4)
        (y,) = torch.ops.tiacc.run_engine([x], stored, "tensorrt", blob.key_of(stored))
        assert _right(x, y)
    (run,) = world.runs
    assert (run.stream, run.source, run.result) == (stream.cuda_stream, x.data_ptr(), y.data_ptr())
    arena = buffers.shared(torch.device("cuda", torch.cuda.current_device()), stream.cuda_stream)
    assert isinstance(arena._block, buffers.PyCudaBlock)
    assert (run.scratch, run.scratch_bytes) == (arena._block.pointer, 4 * world.row_bytes)
    x = _rows(3)
    assert _right(x, torch.ops.tiacc.run_engine([x], stored, "tensorrt", blob.key_of(stored))[0])
    assert world.runs[-1].stream == torch.cuda.current_stream().cuda_stream


def test_what_is_no_dense_tensor_at_an_aligned_address_is_copied(world: World) -> None:
    engine = world.engine()
    strided, shifted = torch.randn(3, 4, device="cuda").T, torch.randn(16, device="cuda")[1:13].reshape(4, 3)
    for x in (strided, shifted, _rows(2).requires_grad_()):
        (y,) = engine.run([x])
        assert _right(x, y) and not y.requires_grad
    assert [run.source == x.data_ptr() for run, x in zip(world.runs, (strided, shifted))] == [False, False]
    (empty,) = engine.run([_rows(0)])
    assert empty.shape == (0, 3) and world.runs[-1].source == world.runs[-1].scratch


def test_a_shape_that_is_refused_leaves_the_engine_as_it_was(world: World) -> None:
    engine, x = world.engine(), _rows(2)
    assert _right(x, engine.run([x])[0])
    with pytest.raises(ShapeOutOfRangeError, match=r"shape \(9, 3\).*Widen input_shapes"):
        engine.run([_rows(MOST_ROWS + 1)])
    assert len(world.runs) == 1
    assert _right(x, engine.run([x])[0])


def test_torchs_context_stays_the_current_one(world: World) -> None:
    get = ctypes.CDLL("libcuda.so.1").cuCtxGetCurrent

    def current() -> int | None:
        handle = ctypes.c_void_p()
        assert get(ctypes.byref(handle)) == 0
        return handle.value

    torch.zeros(1, device="cuda")
    before = current()
    engine = world.engine()
    for rows in (1, MOST_ROWS):
        engine.run([_rows(rows)])
        assert current() == before
    del engine
    gc.collect()
    assert current() == before


# -- streams and threads --------------------------------------------------------------------------------------------------------------


def test_a_run_does_not_wait_for_the_device(world: World) -> None:
    engine, stream = world.engine(), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x = _rows(4)
        for _ in range(2):
            assert _right(x, engine.run([x])[0])
        with _held(stream):
            (y,) = engine.run([x])
            assert not stream.query()
        assert _right(x, y)


def test_a_stream_does_not_wait_for_another(world: World) -> None:
    engine, streams = world.engine(), (torch.cuda.Stream(), torch.cuda.Stream())
    results = {}
    x = _rows(4)
    torch.cuda.synchronize()
    for stream in streams:
        with torch.cuda.stream(stream):
            for _ in range(2):
                assert _right(x, engine.run([x])[0])
    world.runs.clear()
    with _held(streams[0]):
        for stream in streams:
            with torch.cuda.stream(stream):
                (results[stream],) = engine.run([x])
        streams[1].synchronize()
        assert not streams[0].query()
    assert all(_right(x, y) for y in results.values())
    first, second = world.runs
    assert first.context != second.context and first.scratch != second.scratch


def test_threads_on_streams_of_their_own_and_on_a_shared_one(world: World) -> None:
    engines = [world.engine(), world.engine()]
    shared = torch.cuda.Stream()
    failures: list[str] = []

    def work(seed: int, stream: torch.cuda.Stream) -> None:
        try:
            sizes = torch.randint(1, MOST_ROWS + 1, (25,), generator=torch.Generator().manual_seed(seed)).tolist()
            with torch.cuda.stream(stream):
                for turn, size in enumerate(sizes):
                    x = torch.full((size, 3), float(1000 * seed + turn), device="cuda")
                    if not _right(x, engines[turn % 2].run([x])[0]):
                        failures.append(f"thread {seed}, run {turn}")
        except Exception as error:  # noqa: BLE001 - it would be lost in the thread
            failures.append(repr(error))

    torch.cuda.synchronize()
    streams = [torch.cuda.Stream(), torch.cuda.Stream(), shared, shared]
    threads = [threading.Thread(target=work, args=(seed, stream)) for seed, stream in enumerate(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(world.runs) == 100
    assert {run.stream for run in world.runs} == {stream.cuda_stream for stream in streams}


# -- memory ---------------------------------------------------------------------------------------------------------------------------


def test_memory_that_is_in_use_is_not_given_to_others(world: World) -> None:
    """A run waits in a stream while its arena is replaced by a larger one, and while another stream takes what was freed."""
    engine, streams = world.engine(), (torch.cuda.Stream(), torch.cuda.Stream())
    world.row_bytes = 4 << 20
    small, large, other = _rows(1), _rows(MOST_ROWS), _rows(1)
    engine.run([small])  # on a third stream: what is loaded now need not be loaded while the first one waits
    torch.cuda.synchronize()
    world.runs.clear()
    with torch.cuda.stream(streams[0]):
        torch.cuda._sleep(100 * CYCLES)
        first, second = engine.run([small])[0], engine.run([large])[0]
    with torch.cuda.stream(streams[1]):
        (third,) = engine.run([other])
    torch.cuda.synchronize()
    assert [_right(x, y) for x, y in ((small, first), (large, second), (other, third))] == [True] * 3
    assert world.runs[0].scratch_bytes < world.runs[1].scratch_bytes


def test_engines_share_scratch_memory_which_goes_with_the_last(world: World) -> None:
    def free() -> int:
        gc.collect()
        torch.cuda.synchronize()
        return int(torch.cuda.mem_get_info()[0])

    x = _rows(4)
    world.engine().run([x])  # what the driver loads for kernels takes memory too
    world.row_bytes = 64 << 20
    engines = [world.engine(), world.engine()]
    before = free()
    for engine in engines:
        assert _right(x, engine.run([x])[0])
    taken = before - free()
    del engine
    assert abs(taken - 4 * world.row_bytes) < 32 << 20
    engines.pop()
    assert abs(before - free() - taken) < 32 << 20
    last = threading.Thread(target=engines.clear)  # which has no context of CUDA's
    last.start()
    last.join()
    assert abs(before - free()) < 32 << 20


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_an_engine_runs_on_the_device_of_its_inputs(world: World) -> None:
    engine = world.engine()
    for index in (1, 0, 1):
        x = torch.randn(4, 3, device=f"cuda:{index}")
        (y,) = engine.run([x])
        assert y.device == x.device and _right(x, y)
    assert world.runs[0].scratch == world.runs[2].scratch != world.runs[1].scratch

"""How an engine is run: which calls TensorRT gets, in which order, with which addresses.

TensorRT executes nothing on a machine without a GPU. What is tested here is the caller's side, against a scripted stand-in of
TensorRT's runtime that holds the order of calls to the rules and "computes" by writing a mark to the output addresses.
"""

from __future__ import annotations

import ctypes
import gc
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tiacc.backends.base import Profile
from tiacc.backends.tensorrt.execution import Executor, choose_profile
from tiacc.backends.tensorrt.flavours import Flavour
from tiacc.backends.tensorrt.payload import EnginePayload
from tiacc.errors import EngineFormatError, ShapeOutOfRangeError, TiaccError
from tiacc.graph.specs import Dim, TensorSpec
from tiacc.runtime import buffers

_SPEC = TensorSpec((Dim("n", 1, 2, 8), 3), torch.float32)
_SMALL, _LARGE = Profile(((1, 3),), ((1, 3),), ((2, 3),)), Profile(((1, 3),), ((4, 3),), ((8, 3),))


def _payload(*profiles: Profile) -> EnginePayload:
    return EnginePayload("tensorrt", "10.13.3", (), ("input_0",), ("output_0",), (_SPEC,), (_SPEC,), profiles or (_LARGE,), b"plan")


class _Context:
    """A stand-in of ``IExecutionContext`` that adds 1 to its input; scratch is 1000 bytes a row."""

    def __init__(self, world: _World) -> None:
        self.world = world
        self.calls: list[tuple[Any, ...]] = []
        self.shape: tuple[int, ...] | None = None
        self.addresses: dict[str, int] = {}
        self.memory: tuple[int, int] | None = None
        self.is_running = threading.Lock()

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.calls.append(("profile", profile, stream))
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.calls.append(("shape", name, shape))
        self.shape = shape
        return "shape" not in self.world.refuses

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self.shape is not None
        return self.shape

    def update_device_memory_size_for_shapes(self) -> int:
        assert self.shape is not None
        return 1000 * self.shape[0]

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address != 0
        self.calls.append(("address", name))
        self.addresses[name] = address
        return True

    def set_device_memory(self, pointer: int, size: int) -> None:
        self.calls.append(("memory", size))
        self.memory = (pointer, size)

    def execute_async_v3(self, stream: int) -> bool:
        assert self.is_running.acquire(blocking=False), "one context runs twice at once"
        assert self.shape is not None and self.memory is not None
        self.calls.append(("execute", stream))
        self.world.scratch.append(self.memory[0])
        count = self.shape[0] * self.shape[1]
        source = (ctypes.c_float * count).from_address(self.addresses["input_0"])
        result = (ctypes.c_float * count).from_address(self.addresses["output_0"])
        for index in range(count):
            result[index] = source[index] + 1
        self.is_running.release()
        return "execute" not in self.world.refuses


class _World:
    """A stand-in of the Python module, and all that was made with it."""

    def __init__(self) -> None:
        self.contexts: list[_Context] = []
        self.refuses: set[str] = set()
        self.scratch: list[int] = []
        self.blocks: list[_Block] = []
        world = self

        class Logger:
            ERROR, INTERNAL_ERROR, WARNING = 1, 0, 2

            def __init__(self) -> None:
                self.log(Logger.ERROR, "the stand-in's last words")  # type: ignore[attr-defined]

        def create_context(strategy: Any) -> _Context:
            assert strategy == "user managed"
            world.contexts.append(_Context(world))
            return world.contexts[-1]

        engine = SimpleNamespace(create_execution_context=create_context)
        deserialize = lambda plan: None if "load" in world.refuses else engine  # noqa: E731
        self.module = SimpleNamespace(
            ILogger=Logger,
            Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=deserialize),
            ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
        )

    def allocate(self, size_bytes: int, device: torch.device, stream: int) -> _Block:
        self.blocks.append(_Block(size_bytes))
        return self.blocks[-1]

    def executor(self, *profiles: Profile) -> Executor:
        return Executor(Flavour("tensorrt", (10, 13, 3), self.module), _payload(*profiles), torch.device("cpu"), self.allocate)


class _Block:
    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.buffer = ctypes.create_string_buffer(size_bytes)
        self.pointer = ctypes.addressof(self.buffer)
        self.is_free = False

    def free(self) -> None:
        assert not self.is_free
        self.is_free = True


def _aligned(*shape: int) -> torch.Tensor:
    """Return random numbers at an address that TensorRT takes."""
    count = torch.Size(shape).numel()
    raw = torch.empty(count + 64)
    start = (-raw.data_ptr() % buffers.ALIGNMENT) // 4
    return raw[start : start + count].normal_().reshape(shape)


def test_calls_of_a_run_in_order() -> None:
    world = _World()
    x = _aligned(2, 3)
    (y,) = world.executor().run([x], stream=7)
    assert torch.equal(y, x + 1)
    (context,) = world.contexts
    assert context.calls == [
        ("shape", "input_0", (2, 3)),
        ("address", "input_0"),
        ("address", "output_0"),
        ("memory", 2000),
        ("execute", 7),
    ]
    assert context.addresses == {"input_0": x.data_ptr(), "output_0": y.data_ptr()}
    assert context.memory == (world.blocks[0].pointer, 2000)


def test_shapes_are_set_only_when_they_change() -> None:
    world = _World()
    executor = world.executor()
    for rows in (2, 2, 5, 5, 2):
        x = _aligned(rows, 3)
        assert torch.equal(executor.run([x], stream=0)[0], x + 1)
    (context,) = world.contexts
    assert [call[2] for call in context.calls if call[0] == "shape"] == [(2, 3), (5, 3), (2, 3)]


def test_each_call_returns_tensors_of_its_own() -> None:
    executor = _World().executor()
    first, second = executor.run([_aligned(2, 3)], 0)[0], executor.run([_aligned(2, 3)], 0)[0]
    assert first.data_ptr() != second.data_ptr()


def test_strided_and_misaligned_inputs_are_copied_and_others_are_not() -> None:
    world = _World()
    executor = world.executor()
    strided, shifted = torch.randn(3, 2).T, _aligned(9)[1:7].reshape(2, 3)
    for x in (strided, shifted):
        assert torch.equal(executor.run([x], 0)[0], x + 1)
        assert world.contexts[0].addresses["input_0"] != x.data_ptr()
        assert world.contexts[0].addresses["input_0"] % 4 == 0
    with torch.enable_grad():
        assert not executor.run([_aligned(2, 3).requires_grad_()], 0)[0].requires_grad


def test_empty_tensors_have_an_address() -> None:
    profile = Profile(((0, 3),), ((2, 3),), ((4, 3),))
    (y,) = _World().executor(profile).run([torch.empty(0, 3)], 0)
    assert y.shape == (0, 3)


def test_the_smallest_profile_that_fits_is_taken() -> None:
    world = _World()
    executor = world.executor(_LARGE, _SMALL)
    executor.run([_aligned(2, 3)], stream=5)
    executor.run([_aligned(3, 3)], stream=5)
    assert world.contexts[0].calls[0] == ("profile", 1, 5)
    assert world.contexts[1].calls[0][0] == "shape"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((9, 3), r"input 0 of the engine has shape \(9, 3\); it was built for \(1, 3\) to \(2, 3\) or \(1, 3\) to \(8, 3\)"),
        ((2, 4), r"Widen input_shapes"),
        ((2, 3, 1), r"has shape \(2, 3, 1\)"),
    ],
)
def test_shapes_outside_every_profile(shape: tuple[int, ...], message: str) -> None:
    world = _World()
    with pytest.raises(ShapeOutOfRangeError, match=message):
        world.executor(_SMALL, _LARGE).run([torch.zeros(shape)], 0)
    assert world.contexts == []


def test_shapes_that_no_profile_admits_together() -> None:
    two = [Profile(((a,), (b,)), ((a,), (b,)), ((a,), (b,))) for a, b in ((1, 1), (2, 2))]
    payload = EnginePayload("tensorrt", "10.13", (), ("a", "b"), (), (), (), tuple(two), b"")
    assert choose_profile(payload, [(2,), (2,)]) == 1
    with pytest.raises(ShapeOutOfRangeError, match="together"):
        choose_profile(payload, [(1,), (2,)])


def test_streams_have_their_own_contexts_and_arenas() -> None:
    world = _World()
    executor = world.executor()
    for stream in (1, 2, 1, 2):
        executor.run([_aligned(2, 3)], stream)
    assert len(world.contexts) == 2
    assert len(world.blocks) == 2
    assert world.scratch[0] == world.scratch[2] != world.scratch[1] == world.scratch[3]


def test_engines_share_the_arena_of_a_stream_which_grows_and_is_freed_with_the_last() -> None:
    world = _World()
    first, second = world.executor(), world.executor()
    first.run([_aligned(1, 3)], stream=11)
    second.run([_aligned(1, 3)], stream=11)
    assert len(world.blocks) == 1
    second.run([_aligned(4, 3)], stream=11)
    assert [block.size_bytes for block in world.blocks] == [1024, 4096]
    assert [block.is_free for block in world.blocks] == [True, False]
    del first
    gc.collect()
    assert not world.blocks[-1].is_free
    del second
    gc.collect()
    assert world.blocks[-1].is_free


def test_threads_on_their_own_streams() -> None:
    world = _World()
    executor = world.executor()
    wrong: list[int] = []

    def work(stream: int) -> None:
        for _ in range(50):
            x = _aligned(1 + stream % 8, 3)
            if not torch.equal(executor.run([x], stream)[0], x + 1):
                wrong.append(stream)

    threads = [threading.Thread(target=work, args=(stream,)) for stream in (1, 2, 3, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(world.contexts) <= 4


@pytest.mark.parametrize("what", ["shape", "execute"])
def test_refusals_carry_the_last_words_and_the_engine_stays_usable(what: str) -> None:
    world = _World()
    executor = world.executor()
    world.refuses.add(what)
    with pytest.raises(TiaccError, match="the stand-in's last words"):
        executor.run([_aligned(2, 3)], 0)
    world.refuses.clear()
    x = _aligned(2, 3)
    assert torch.equal(executor.run([x], 0)[0], x + 1)


def test_plan_that_does_not_load() -> None:
    world = _World()
    world.refuses.add("load")
    with pytest.raises(EngineFormatError, match=r"made by version 10\.13\.3: the stand-in's last words"):
        world.executor()


# -- on a GPU, with PyCUDA: the memory itself ------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [buffers.TorchBlock, buffers.PyCudaBlock])
def test_arena_memory_is_real_and_is_given_back(kind: Any) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    if kind is buffers.PyCudaBlock:
        pytest.importorskip("pycuda")
    device = torch.device("cuda", 0)
    torch.zeros(1, device=device)
    torch.cuda.empty_cache()
    before = torch.cuda.mem_get_info(device)[0]
    for round_ in range(20):
        arena = buffers.Arena(device, torch.cuda.current_stream(device).cuda_stream, kind)
        with arena.lock:
            small = arena.reserve(1 << 20)
            assert arena.reserve(1 << 10) == small
            assert arena.reserve(64 << 20) % buffers.ALIGNMENT == 0
        value = torch.full((1024,), float(round_), device=device)
        assert value.sum().item() == 1024.0 * round_  # torch's context is still the current one
        del arena
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    assert abs(torch.cuda.mem_get_info(device)[0] - before) < 4 << 20

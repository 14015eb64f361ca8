"""Running a plan: TensorRT's runtime, its execution contexts, and the addresses of tensors.

An execution context belongs to one profile and serves one stream at a time. Contexts are pooled by both, so that threads on their
own streams neither wait for each other nor share one. Inputs are read where they are, outputs are new tensors of torch, and scratch
memory is the stream's arena (`tiacc.runtime.buffers`). Nothing here waits for the device.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tiacc.backends.base import Profile
from tiacc.backends.tensorrt.flavours import Flavour
from tiacc.backends.tensorrt.layers import Messages
from tiacc.backends.tensorrt.payload import EnginePayload
from tiacc.backends.tensorrt.runtime_cache import RuntimeCache
from tiacc.errors import BackendUnavailableError, EngineFormatError, ShapeOutOfRangeError, TiaccError
from tiacc.runtime import buffers


@dataclass
class _Context:
    """An execution context, and what was last set on it."""

    native: Any
    profile: int
    shapes: tuple[tuple[int, ...], ...] | None = None
    output_shapes: tuple[tuple[int, ...], ...] = ()
    scratch_bytes: int = 0


class Executor:
    """A plan loaded on one device.

    Args:
        flavour: The library.
        payload: The plan and its description.
        device: Where it runs.
        allocate: Where scratch memory comes from.
    """

    def __init__(self, flavour: Flavour, payload: EnginePayload, device: torch.device, allocate: buffers.Allocate | None = None) -> None:
        self._flavour = flavour
        self._payload = payload
        self._device = device
        self._allocate = allocate
        self._messages = Messages()
        self._lock = threading.Lock()
        self._idle: dict[tuple[int, int], list[_Context]] = {}
        self._arenas: dict[int, buffers.Arena] = {}
        trt = flavour.module
        self._runtime = trt.Runtime(self._messages.create(flavour))
        self._engine = self._runtime.deserialize_cuda_engine(payload.plan)
        if self._engine is None:
            made_for = f" for {', '.join(payload.target)}" if payload.target else ""
            raise EngineFormatError(
                f"{flavour.name} {flavour.version_text} does not load an engine made by version {payload.version}{made_for}: "
                f"{self._messages.last_error}; optimize the model again here"
            )
        self._cache = RuntimeCache.of(flavour, payload)

    def run(self, inputs: Sequence[torch.Tensor], stream: int) -> list[torch.Tensor]:
        """Put one run on a stream.

        Args:
            inputs: The inputs, on the device; any strides.
            stream: The handle of the caller's current stream.

        Raises:
            ShapeOutOfRangeError: No optimisation profile admits the shapes.
            TiaccError: TensorRT refuses to run.
        """
        payload = self._payload
        tensors = [_readable(tensor) for tensor in inputs]
        shapes = tuple(tuple(tensor.shape) for tensor in tensors)
        profile = choose_profile(payload, shapes)
        context = self._take(profile, stream)
        try:
            self._set_shapes(context, shapes)
            outputs = [
                torch.empty(shape, dtype=spec.dtype, device=self._device) for shape, spec in zip(context.output_shapes, payload.outputs)
            ]
            arena = self._arena(stream)
            with arena.lock:
                scratch = arena.reserve(context.scratch_bytes)
                for name, tensor in zip((*payload.input_names, *payload.output_names), (*tensors, *outputs)):
                    # an empty tensor has no address, and TensorRT wants one
                    self._check(context.native.set_tensor_address(name, tensor.data_ptr() or scratch), f"the address of {name}")
                context.native.set_device_memory(scratch, context.scratch_bytes)
                self._check(context.native.execute_async_v3(stream), "the run")
        finally:
            self._put(context, stream)
        return outputs

    # -- contexts --------------------------------------------------------------------------------------------------------------

    def _take(self, profile: int, stream: int) -> _Context:
        with self._lock:
            idle = self._idle.get((profile, stream))
            if idle:
                return idle.pop()
        return self._create(profile, stream)

    def _put(self, context: _Context, stream: int) -> None:
        with self._lock:
            self._idle.setdefault((context.profile, stream), []).append(context)

    def _create(self, profile: int, stream: int) -> _Context:
        strategy = self._flavour.module.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._cache is not None:
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            self._cache.attach(config)
            native = self._engine.create_execution_context(config)
        else:
            native = self._engine.create_execution_context(strategy)
        if native is None:
            raise BackendUnavailableError(f"{self._flavour.name} makes no execution context: {self._messages.last_error}")
        if profile:
            self._check(native.set_optimization_profile_async(profile, stream), f"optimisation profile {profile}")
        return _Context(native, profile)

    def _set_shapes(self, context: _Context, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Set the input shapes where they differ from the last run's, and ask for those of the outputs."""
        if context.shapes == shapes:
            return
        context.shapes = None
        native, payload = context.native, self._payload
        for name, shape in zip(payload.input_names, shapes):
            self._check(native.set_input_shape(name, shape), f"the shape {shape} of {name}")
        missing = native.infer_shapes()
        if missing:
            raise self._refused(f"the shapes, which depend on {', '.join(missing)}")
        context.output_shapes = tuple(tuple(native.get_tensor_shape(name)) for name in payload.output_names)
        context.scratch_bytes = native.update_device_memory_size_for_shapes()
        context.shapes = shapes

    def _arena(self, stream: int) -> buffers.Arena:
        with self._lock:
            if stream not in self._arenas:
                self._arenas[stream] = buffers.shared(self._device, stream, self._allocate)
            return self._arenas[stream]

    def _check(self, is_accepted: bool, what: str) -> None:
        if not is_accepted:
            raise self._refused(what)

    def _refused(self, what: str) -> TiaccError:
        return TiaccError(f"{self._flavour.name} {self._flavour.version_text} refuses {what}: {self._messages.last_error}")


def choose_profile(payload: EnginePayload, shapes: Sequence[tuple[int, ...]]) -> int:
    """Return the index of the profile that fits the shapes best: the one whose largest inputs are smallest.

    Raises:
        ShapeOutOfRangeError: None admits them; with the input, the range and the option to widen it.
    """
    fitting = [(_elements(profile.max), index) for index, profile in enumerate(payload.profiles) if profile.admits(shapes)]
    if fitting:
        return min(fitting)[1]
    raise ShapeOutOfRangeError(_misfit(payload.profiles, shapes))


def _elements(shapes: Sequence[Sequence[int]]) -> int:
    total = 0
    for shape in shapes:
        size = 1
        for length in shape:
            size *= length
        total += size
    return total


def _misfit(profiles: Sequence[Profile], shapes: Sequence[tuple[int, ...]]) -> str:
    for index, shape in enumerate(shapes):
        ranges = [(profile.min[index], profile.max[index]) for profile in profiles]
        if not any(len(shape) == len(low) and all(a <= size <= b for a, size, b in zip(low, shape, high)) for low, high in ranges):
            told = " or ".join(str(low) if low == high else f"{low} to {high}" for low, high in ranges)
            return f"input {index} of the engine has shape {shape}; it was built for {told}. Widen input_shapes to run it with others"
    return f"the engine was not built for inputs of the shapes {list(shapes)} together; add them to input_shapes"


def _readable(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that TensorRT can read where it is: dense, at an aligned address."""
    tensor = tensor.detach()
    if not tensor.is_contiguous():
        return tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % buffers.ALIGNMENT else tensor

"""``tiacc::run_engine``, the operator by which an optimized TorchScript model calls an engine.

Importing this module registers it. An engine is loaded from its bytes on its first call, and lives as long as the tensor of its bytes:
as long as a model refers to it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from tiacc.errors import EngineFormatError, ShapeOutOfRangeError
from tiacc.graph.types import Dim, TensorSpec
from tiacc.runtime import blob as envelope
from tiacc.runtime import modes

if TYPE_CHECKING:
    from tiacc.backends.base import Engine

_ATTRIBUTE = "_tiacc_engine"
_KNOWN_SHAPES_LIMIT = 256

_library = torch.library.Library("tiacc", "DEF")
_library.define("run_engine(Tensor[] inputs, Tensor blob, str backend, str key) -> Tensor[]")
_library.define("check_inputs(Tensor[] inputs, str specs) -> ()", alias_analysis="CONSERVATIVE")

_library.define("fits(Tensor[] inputs, str specs) -> bool")

_lock = threading.Lock()
_engines: weakref.WeakValueDictionary[str, LoadedEngine] = weakref.WeakValueDictionary()


class LoadedEngine:
    """An engine and the check of its inputs.

    Attributes:
        engine: What the backend loaded or built.
        header: What the envelope says of it.
    """

    def __init__(self, engine: Engine, header: envelope.Header) -> None:
        self.engine = engine
        self.header = header
        self._run = engine.run
        self._dtypes = [spec.dtype for spec in header.inputs]
        self._device = header.device
        self._is_there = _is_on(header.device)
        self._checked: set[tuple[torch.Size, ...]] = set()

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Check the inputs and run.

        Raises:
            ShapeOutOfRangeError: An input has a shape, dtype or device that the engine was not built for.
        """
        shapes = tuple([tensor.shape for tensor in inputs])
        for tensor, dtype in zip(inputs, self._dtypes):
            if tensor.dtype is not dtype or not self._is_there(tensor):
                raise ShapeOutOfRangeError(self._complaint(inputs))
        if shapes not in self._checked:
            if not self._admits(shapes):
                raise ShapeOutOfRangeError(self._complaint(inputs))
            if len(self._checked) < _KNOWN_SHAPES_LIMIT:
                self._checked.add(shapes)
        return self._run(inputs)

    def _admits(self, shapes: tuple[torch.Size, ...]) -> bool:
        if len(shapes) != len(self.header.inputs):
            return False
        if not all(spec.admits(shape) for spec, shape in zip(self.header.inputs, shapes)):
            return False
        return not self.header.profiles or any(profile.admits(shapes) for profile in self.header.profiles)

    def _complaint(self, inputs: Sequence[torch.Tensor]) -> str:
        if len(inputs) != len(self.header.inputs):
            return f"this engine takes {len(self.header.inputs)} inputs, not {len(inputs)}"
        for index, (tensor, spec) in enumerate(zip(inputs, self.header.inputs)):
            given = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)} on {tensor.device.type}"
            if tensor.dtype != spec.dtype or tensor.device.type != self._device or not spec.admits(tensor.shape):
                hint = "give such an input, or optimize again with input_shapes that include this one"
                if tensor.device.type != self._device:
                    hint = "move the input there: an engine runs on the type of device that it was built for"
                return (
                    f"input {index} of an engine of {self.header.backend} is {given}, and the engine takes {_describe(spec)} on "
                    f"{self._device}; {hint}"
                )
        taken = "; ".join(str(profile.opt) for profile in self.header.profiles)
        return (
            f"the inputs of an engine of {self.header.backend} have shapes {[tuple(tensor.shape) for tensor in inputs]}, and the engine "
            f"takes these sets of shapes: {taken}; optimize again with input_shapes that include this one"
        )


def _is_on(device: str) -> Callable[[torch.Tensor], bool]:
    """Return what tells whether a tensor is on a type of device: without an object, as `Tensor.device` makes one, where torch has that."""
    name = f"is_{device}"
    return operator.attrgetter(name) if hasattr(torch.Tensor, name) else lambda tensor: tensor.device.type == device


def attach(blob: torch.Tensor, engine: Engine, device: str) -> None:
    """Have calls with an envelope run another engine than the one in it, in this process, on tensors of a device type."""
    header, _ = envelope.read_header(blob)
    setattr(blob, _ATTRIBUTE, LoadedEngine(engine, dataclasses.replace(header, device=device)))


def load(blob: torch.Tensor, key: str) -> LoadedEngine:
    """Return the engine of an envelope, loading it if no model in this process has.

    Args:
        blob: The envelope, ``uint8`` of shape ``(bytes,)``.
        key: Its digest, as `blob.key_of` gives it.

    Raises:
        EngineFormatError: The envelope is damaged.
        BackendUnavailableError: Its backend cannot be used here.
    """
    with _lock:
        loaded = _engines.get(key)
        if loaded is None:
            loaded = _load(blob)
            _engines[key] = loaded
        setattr(blob, _ATTRIBUTE, loaded)
        return loaded


def loaded(blob: torch.Tensor, key: str) -> LoadedEngine:
    """Return what a call with an envelope runs: what was attached to it, or its engine; see `load`."""
    found: LoadedEngine | None = getattr(blob, _ATTRIBUTE, None)
    return load(blob, key) if found is None else found


def _load(blob: torch.Tensor) -> LoadedEngine:
    from tiacc.backends.base import require

    header, payload = envelope.unpack(blob)
    return LoadedEngine(require(header.backend).load(payload), header)


def _run_engine(inputs: list[torch.Tensor], blob: torch.Tensor, backend: str, key: str) -> list[torch.Tensor]:
    found: LoadedEngine | None = getattr(blob, _ATTRIBUTE, None)
    if found is None or modes.is_any_on():
        return modes.call_outside(_run, inputs, blob, key)
    return found(inputs)


def _run(inputs: list[torch.Tensor], blob: torch.Tensor, key: str) -> list[torch.Tensor]:
    return loaded(blob, key)(inputs)


def _check_inputs(inputs: list[torch.Tensor], specs: str) -> None:
    wanted = _parse_specs(specs)
    for index, (tensor, spec) in enumerate(zip(inputs, wanted)):
        if tensor.dtype != spec.dtype or not spec.admits(tensor.shape):
            raise ShapeOutOfRangeError(
                f"input {index} of the model is {str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}, and the model was "
                f"optimized for {_describe(spec)}; give such an input, or optimize again with input_shapes that include this one"
            )


def _fits(inputs: list[torch.Tensor], specs: str) -> bool:
    """Return whether tensors have the types, and dimensions of one name the same size."""
    sizes: dict[str, int] = {}
    for tensor, spec in zip(inputs, _parse_specs(specs)):
        if tensor.dtype != spec.dtype or not spec.admits(tensor.shape) or tensor.layout != torch.strided:
            return False
        for size, dim in zip(tensor.shape, spec.shape):
            if isinstance(dim, Dim) and sizes.setdefault(dim.name, size) != size:
                return False
    return True


@functools.lru_cache(maxsize=1024)
def _parse_specs(text: str) -> tuple[TensorSpec, ...]:
    try:
        return tuple(envelope.spec_from_json(fields) for fields in json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise EngineFormatError(f"the input check of this model is damaged ({error}); optimize the model again") from error


def _describe(spec: TensorSpec) -> str:
    sizes = ", ".join(f"{size.min}..{size.max}" if isinstance(size, Dim) else str(size) for size in spec.shape)
    return f"{str(spec.dtype).removeprefix('torch.')}[{sizes}]"


_library.impl("run_engine", _run_engine, "CompositeExplicitAutograd")
_library.impl("fits", _fits, "CompositeExplicitAutograd")
_library.impl("check_inputs", _check_inputs, "CompositeExplicitAutograd")

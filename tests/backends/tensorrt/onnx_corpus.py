"""ONNX's own backend test data, parsed by NVIDIA's ONNX parser and evaluated by the interpreter.

Neither the models, nor their expected outputs, nor the networks that the parser makes of them were written here: where the interpreter
agrees, it agrees with two others at once.

The parser wants some inputs (shapes, axes, pads) to be constants, so each model is tried in three variants, and agrees if it does in
one of them.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tiacc.backends.tensorrt.interpreter import NetworkInterpreter
from tiacc.errors import TiaccError

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
VARIANTS = ("as is", "integer inputs folded", "all but the first input folded")
AGREES = "agrees"
NOT_PARSED = "not parsed"


@dataclass(frozen=True)
class Case:
    """A model of the corpus with one set of inputs and expected outputs."""

    name: str
    model: Any
    inputs: list[Any]
    outputs: list[Any]
    rtol: float
    atol: float


@dataclass(frozen=True)
class Outcome:
    """What became of a case: by variant `AGREES`, `NOT_PARSED`, or what is wrong. `layers` are the types of layers that ran."""

    name: str
    by_variant: dict[str, str]
    layers: frozenset[str]

    @property
    def is_parsed(self) -> bool:
        return any(result != NOT_PARSED for result in self.by_variant.values())

    @property
    def agrees(self) -> bool:
        return AGREES in self.by_variant.values()

    @property
    def faults(self) -> dict[str, str]:
        return {variant: result for variant, result in self.by_variant.items() if result not in (AGREES, NOT_PARSED)}


class Sink:
    """Makes networks from models, and keeps what TensorRT says about them off the terminal."""

    def __init__(self, trt: Any) -> None:
        class Logger(trt.ILogger):
            def log(self, severity: Any, message: str) -> None:
                messages.append(message)

        messages: list[str] = []
        self.trt = trt
        self.messages = messages
        self.logger = Logger()
        self.builder = trt.Builder(self.logger)

    def parse(self, model: Any) -> Any:
        """Return the network of an ONNX model (a ``ModelProto`` or its bytes), or None where the parser refuses it."""
        self.messages.clear()
        network = self.builder.create_network(1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = self.trt.OnnxParser(network, self.logger)
        is_parsed = parser.parse(model if isinstance(model, bytes) else model.SerializeToString())
        return network if is_parsed else None


@functools.cache
def load_cases() -> tuple[Case, ...]:
    """Return the corpus, sorted by kind and name."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = [case for kind in KINDS for case in sorted(load_model_tests(kind=kind), key=lambda case: case.name)]
        return tuple(_load(case) for case in found)


def _load(case: Any) -> Case:
    import onnx
    from onnx import numpy_helper

    if case.model is not None:
        inputs, outputs = case.data_sets[0]
        return Case(case.name, case.model, list(inputs), list(outputs), case.rtol, case.atol)
    folder = Path(case.model_dir)
    data = folder / "test_data_set_0"

    def tensors(prefix: str) -> list[Any]:
        files = sorted(data.glob(f"{prefix}_*.pb"), key=lambda path: int(path.stem.rsplit("_", 1)[1]))
        return [numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes())) for path in files]

    return Case(case.name, onnx.load(folder / "model.onnx"), tensors("input"), tensors("output"), case.rtol, case.atol)


def run_case(sink: Sink, case: Case) -> Outcome:
    """Try a case in each variant."""
    by_variant: dict[str, str] = {}
    layers: set[str] = set()
    tried: dict[tuple[str, ...], str] = {}
    for variant in VARIANTS:
        folded = tuple(_folded(case, variant))
        if folded not in tried:
            tried[folded] = _judge(sink, case, folded, layers)
        by_variant[variant] = tried[folded]
    return Outcome(case.name, by_variant, frozenset(layers))


def faulty_results(sink: Sink, case: Case) -> Iterator[list[torch.Tensor]]:
    """Yield the outputs of a case in each variant that does not agree."""
    for folded in dict.fromkeys(tuple(_folded(case, variant)) for variant in VARIANTS):
        if _judge(sink, case, folded, set()) not in (AGREES, NOT_PARSED):
            network = _network(sink, case, folded)
            yield list(_evaluate(sink, case, network, folded).values())


def values_of(case: Case) -> dict[str, Any]:
    """Return the inputs of a case by name."""
    initialisers = {tensor.name for tensor in case.model.graph.initializer}
    names = [value.name for value in case.model.graph.input if value.name not in initialisers]
    return dict(zip(names, case.inputs, strict=False))


def _folded(case: Case, variant: str) -> Iterator[str]:
    """Yield the names of the inputs that a variant turns into initialisers."""
    if variant == VARIANTS[0]:
        return
    for place, (name, value) in enumerate(values_of(case).items()):
        is_array = isinstance(value, np.ndarray | np.generic) and value.dtype != object
        if place and is_array and (variant == VARIANTS[2] or value.dtype.kind in "iub"):
            yield name


def _network(sink: Sink, case: Case, folded: tuple[str, ...]) -> Any:
    given = values_of(case)
    return sink.parse(_with_initialisers(case.model, {name: given[name] for name in folded}) if folded else case.model)


def _judge(sink: Sink, case: Case, folded: tuple[str, ...], layers: set[str]) -> str:
    network = _network(sink, case, folded)
    if network is None:
        return NOT_PARSED
    layers.update(network.get_layer(index).type.name for index in range(network.num_layers))
    try:
        return _compare(case, _evaluate(sink, case, network, folded))
    except (TiaccError, _NoTensorError) as error:
        return f"{type(error).__name__}: {error}"


def _evaluate(sink: Sink, case: Case, network: Any, folded: tuple[str, ...]) -> dict[str, torch.Tensor]:
    interpreter = NetworkInterpreter(sink.trt, network)
    given = {name: value for name, value in values_of(case).items() if name not in folded}
    if not set(interpreter.inputs) <= set(given) and len(given) == len(interpreter.inputs):
        # The parser calls an input that goes straight into a loop by its name there.
        given = dict(zip(interpreter.inputs, given.values(), strict=True))
    return interpreter.run({name: _feed(given[name], declared) for name, declared in interpreter.inputs.items()})


def _with_initialisers(model: Any, values: dict[str, np.ndarray]) -> Any:
    from onnx import ModelProto, numpy_helper

    changed = ModelProto.FromString(model.SerializeToString())
    kept = [value for value in changed.graph.input if value.name not in values]
    del changed.graph.input[:]
    changed.graph.input.extend(kept)
    changed.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())
    return changed


class _NoTensorError(Exception):
    """A value of the corpus has no torch counterpart."""


_AS_BITS = {"bfloat16": (np.int16, torch.bfloat16), "float8_e4m3fn": (np.uint8, torch.float8_e4m3fn)}


def to_tensor(value: Any) -> torch.Tensor:
    """Return a value of the corpus as a tensor; 4-bit ones in the types that the interpreter carries them in."""
    from onnx import TensorProto, numpy_helper

    if isinstance(value, TensorProto):
        value = numpy_helper.to_array(value)
    array = np.asarray(value)
    name = array.dtype.name
    if name in _AS_BITS:
        bits, dtype = _AS_BITS[name]
        return torch.from_numpy(array.view(bits).copy()).view(dtype)
    if name == "int4":
        return torch.from_numpy(array.astype(np.int8))
    if name == "float4_e2m1fn":
        return torch.from_numpy(array.astype(np.float32))
    if array.dtype.kind not in "biuf" or name.startswith(("uint4", "int2", "uint2", "float8", "float4")):
        raise _NoTensorError(f"a value of dtype {name}")
    return torch.from_numpy(np.array(array))


def _feed(value: Any, declared: Any) -> torch.Tensor:
    """Return an input as the network wants it: NVIDIA's parser narrows some types."""
    return to_tensor(value).to(declared.dtype)


def _compare(case: Case, results: dict[str, torch.Tensor]) -> str:
    for value, expected in zip(case.model.graph.output, case.outputs, strict=False):
        if isinstance(expected, list):
            return "the output is a sequence"
        want, have = to_tensor(expected), results[value.name]
        if want.shape != have.shape:
            return f"shape {tuple(have.shape)}, expected {tuple(want.shape)}"
        rtol, atol = _tolerance(case, want.dtype)
        have, want = have.to(torch.float64), want.to(torch.float64)
        if not torch.allclose(have, want, rtol=rtol, atol=atol, equal_nan=True):
            return f"values differ by up to {float((have - want).abs().nan_to_num(nan=float('inf')).max()):.3g}"
    return AGREES


def _tolerance(case: Case, dtype: torch.dtype) -> tuple[float, float]:
    """Return the relative and absolute tolerance: the case's own, but that of the type where an output is a narrow one."""
    if not dtype.is_floating_point:
        return 0.0, 0.0
    if dtype in (torch.float16, torch.bfloat16):
        return 2e-2, 1e-2
    return case.rtol, max(case.atol, 1e-7)

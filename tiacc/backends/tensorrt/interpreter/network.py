"""What an ``INetworkDefinition`` says, read once: layers by their own classes, who makes what, loops, conditionals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from tiacc.backends.tensorrt.interpreter.dtypes import carrier
from tiacc.backends.tensorrt.interpreter.errors import InterpretationError, UnsupportedLayerError

# The class whose attributes a layer of each type has. The bindings hand out bare ``ILayer`` objects, and take an
# assignment to ``__class__`` unchecked: under a wrong class they read other memory. So this table is held to, type by
# type.
_CLASSES = {
    "ACTIVATION": "IActivationLayer",
    "ASSERTION": "IAssertionLayer",
    "ATTENTION_INPUT": "IAttentionInputLayer",
    "ATTENTION_OUTPUT": "IAttentionOutputLayer",
    "CAST": "ICastLayer",
    "CONCATENATION": "IConcatenationLayer",
    "CONDITION": "IConditionLayer",
    "CONDITIONAL_INPUT": "IIfConditionalInputLayer",
    "CONDITIONAL_OUTPUT": "IIfConditionalOutputLayer",
    "CONSTANT": "IConstantLayer",
    "CONVOLUTION": "IConvolutionLayer",
    "CUMULATIVE": "ICumulativeLayer",
    "DECONVOLUTION": "IDeconvolutionLayer",
    "DEQUANTIZE": "IDequantizeLayer",
    "DYNAMIC_QUANTIZE": "IDynamicQuantizeLayer",
    "EINSUM": "IEinsumLayer",
    "ELEMENTWISE": "IElementWiseLayer",
    "FILL": "IFillLayer",
    "GATHER": "IGatherLayer",
    "GRID_SAMPLE": "IGridSampleLayer",
    "IDENTITY": "IIdentityLayer",
    "ITERATOR": "IIteratorLayer",
    "KV_CACHE_UPDATE": "IKVCacheUpdateLayer",
    "LOOP_OUTPUT": "ILoopOutputLayer",
    "LRN": "ILRNLayer",
    "MATRIX_MULTIPLY": "IMatrixMultiplyLayer",
    "MOE": "IMoELayer",
    "NMS": "INMSLayer",
    "NON_ZERO": "INonZeroLayer",
    "NORMALIZATION": "INormalizationLayer",
    "ONE_HOT": "IOneHotLayer",
    "PADDING": "IPaddingLayer",
    "PARAMETRIC_RELU": "IParametricReLULayer",
    "POOLING": "IPoolingLayer",
    "QUANTIZE": "IQuantizeLayer",
    "RAGGED_SOFTMAX": "IRaggedSoftMaxLayer",
    "RECURRENCE": "IRecurrenceLayer",
    "REDUCE": "IReduceLayer",
    "RESIZE": "IResizeLayer",
    "REVERSE_SEQUENCE": "IReverseSequenceLayer",
    "ROTARY_EMBEDDING": "IRotaryEmbeddingLayer",
    "SCALE": "IScaleLayer",
    "SCATTER": "IScatterLayer",
    "SELECT": "ISelectLayer",
    "SHAPE": "IShapeLayer",
    "SHUFFLE": "IShuffleLayer",
    "SLICE": "ISliceLayer",
    "SOFTMAX": "ISoftMaxLayer",
    "SQUEEZE": "ISqueezeLayer",
    "TOPK": "ITopKLayer",
    "TRIP_LIMIT": "ITripLimitLayer",
    "UNARY": "IUnaryLayer",
    "UNSQUEEZE": "IUnsqueezeLayer",
}
_LOOP_KINDS = ("TRIP_LIMIT", "RECURRENCE", "ITERATOR", "LOOP_OUTPUT")
_CONDITIONAL_KINDS = ("CONDITION", "CONDITIONAL_INPUT", "CONDITIONAL_OUTPUT")


@dataclass(frozen=True)
class TensorType:
    """What the network declares of a tensor.

    Attributes:
        shape: Its sizes, -1 for a dynamic one.
        dtype: The torch dtype that carries its values.
        type_name: Its name in ``trt.DataType``.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    type_name: str

    def __str__(self) -> str:
        return f"{self.type_name} {self.shape}"


@dataclass(frozen=True)
class Layer:
    """A layer.

    Attributes:
        index: Its place in the network.
        kind: Its type, as in ``trt.LayerType``.
        name: Its name.
        native: The TensorRT object, of its own class where the interpreter knows it.
        inputs: The names of its inputs; None where one is not connected.
        outputs: The same of its outputs.
        scope: The number of the loop or conditional that it is a boundary of, or -1.
    """

    index: int
    kind: str
    name: str
    native: Any
    inputs: tuple[str | None, ...]
    outputs: tuple[str | None, ...]
    scope: int = -1

    def __str__(self) -> str:
        return f"layer {self.name!r} ({self.kind})"


@dataclass
class Loop:
    """The boundary layers of a loop, as indices of layers."""

    count: int | None = None
    condition: int | None = None
    recurrences: list[int] = field(default_factory=list)
    iterators: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    def state(self) -> Iterator[int]:
        """Yield those that decide how the loop goes on: its limits and recurrences."""
        yield from (index for index in (self.count, self.condition) if index is not None)
        yield from self.recurrences

    def boundary(self) -> Iterator[int]:
        """Yield all of them."""
        yield from (*self.state(), *self.iterators, *self.outputs)


class Network:
    """The structure of an ``INetworkDefinition``, which must not change afterwards.

    Attributes:
        layers: All layers, in the network's order, which need not be one of evaluation.
        producers: From the name of a tensor to the index of its layer and its place among the layer's outputs.
        inputs: The network's inputs by name.
        outputs: The names of its outputs, in order.
        loops: By number.
        conditions: From the number of a conditional to the name of the tensor it is decided by.

    Raises:
        InterpretationError: TensorRT cannot say the type of a tensor: the network is invalid there.
    """

    def __init__(self, trt: Any, network: Any) -> None:
        self.trt = trt
        self.native = network
        self.layers: list[Layer] = []
        self.producers: dict[str, tuple[int, int]] = {}
        self.loops: dict[int, Loop] = {}
        self.conditions: dict[int, str] = {}
        self._types: dict[str, TensorType] = {}
        # Loops and conditionals have no name or number of their own. The bindings return the same object for one as
        # long as that object lives, so they are kept, and their identity is the number.
        self._scopes: list[Any] = []
        self.inputs = {}
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            self.inputs[tensor.name] = self._type_of(tensor, "network input")
        self.outputs = [network.get_output(index).name for index in range(network.num_outputs)]
        for index in range(network.num_layers):
            self._read_layer(index, network.get_layer(index))

    def type_of(self, layer: Layer, place: int) -> TensorType | None:
        """Return what the network declares of an output of a layer, or None where it has no such output."""
        name = layer.outputs[place]
        if name is None:
            return None
        if name not in self._types:
            self._types[name] = self._type_of(layer.native.get_output(place), str(layer))
        return self._types[name]

    def _type_of(self, tensor: Any, owner: str) -> TensorType:
        try:
            shape = tuple(int(size) for size in tensor.shape)
        except (RuntimeError, ValueError) as error:
            message = f"{owner}: TensorRT cannot infer the shape of {tensor.name!r}: the network is invalid"
            raise InterpretationError(message) from error
        return TensorType(shape, carrier(tensor.dtype), tensor.dtype.name)

    def _read_layer(self, index: int, native: Any) -> None:
        kind = self.trt.ILayer.type.__get__(native).name
        known = _CLASSES.get(kind)
        if known is not None and type(native) is self.trt.ILayer:
            native.__class__ = getattr(self.trt, known)
        inputs = tuple(_name(native.get_input(place)) for place in range(native.num_inputs))
        outputs = tuple(_name(native.get_output(place)) for place in range(native.num_outputs))
        scope = -1
        if kind in _LOOP_KINDS:
            scope = self._scope(native.loop)
            self._add_to_loop(self.loops.setdefault(scope, Loop()), kind, native, index)
        elif kind in _CONDITIONAL_KINDS:
            scope = self._scope(native.conditional)
            if kind == "CONDITION" and inputs[0] is not None:
                self.conditions[scope] = inputs[0]
        self.layers.append(Layer(index, kind, native.name, native, inputs, outputs, scope))
        self.producers.update((name, (index, place)) for place, name in enumerate(outputs) if name is not None)

    def _scope(self, owner: Any) -> int:
        for number, scope in enumerate(self._scopes):
            if scope is owner:
                return number
        self._scopes.append(owner)
        return len(self._scopes) - 1

    def _add_to_loop(self, loop: Loop, kind: str, native: Any, index: int) -> None:
        if kind == "TRIP_LIMIT":
            if native.kind.name == "COUNT":
                loop.count = index
            elif native.kind.name == "WHILE":
                loop.condition = index
            else:
                what = f"trip limit {native.kind.name}"
                raise UnsupportedLayerError(f"layer {native.name!r} ({kind}) cannot be evaluated: {what}")
        else:
            {"RECURRENCE": loop.recurrences, "ITERATOR": loop.iterators, "LOOP_OUTPUT": loop.outputs}[kind].append(index)


def _name(tensor: Any) -> str | None:
    return None if tensor is None else str(tensor.name)

"""A compiled OpenVINO model that takes and gives torch tensors."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import torch

from tiacc.backends.openvino import dtypes, library
from tiacc.backends.openvino.payload import Header, pack, write_model
from tiacc.errors import BuildError, InvalidArgumentError
from tiacc.graph.types import TensorSpec

COPIED_BYTES = 1 << 16
"""Tensors up to this size are copied into and out of memory that a request keeps; larger ones are lent to it where they lie.

To wrap a tensor for OpenVINO takes about as long as to copy 64 KiB.
"""

_PASSIVE_LAYERS = frozenset({"Input", "Output", "Const", "Reorder", "Reshape"})



class OpenVINOEngine:
    """A subgraph as an OpenVINO model on the CPU.

    Attributes:
        inputs: The type of each input.
        outputs: The type of each output.
    """

    def __init__(self, model: Any, header: Header, *, keep: object = None) -> None:
        """Compile a model.

        Args:
            model: The ``openvino.Model``.
            header: What is known of it.
            keep: What holds the memory that the model's constants refer to.

        Raises:
            BuildError: OpenVINO cannot compile it.
        """
        self.inputs: tuple[TensorSpec, ...] = header.inputs
        self.outputs: tuple[TensorSpec, ...] = header.outputs
        self._model = model
        self._header = header
        self._keep = keep
        self._ranges = [(index, *item) for index, item in enumerate(header.index_ranges) if item is not None]
        checked = {index for index, *_ in self._ranges}
        self._limits = [(index, limit) for index, limit in enumerate(header.integer_limits) if limit and index not in checked]
        self._lock = threading.Lock()
        self._variants: dict[Any, _Variant] = {}
        self._variant_for(header.static_shapes[0] if header.static_shapes else None)

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the outputs. Each call returns tensors of its own; the inputs are only read.

        Raises:
            InvalidArgumentError: An integer input holds a value that is too large for what is computed with it in 32 bits, or is beyond
                the end of what is indexed by it.
            BackendUnavailableError: This process was forked from one that had used OpenVINO.
        """
        library.check_process()
        for index, low, high in self._ranges:
            _check_range(inputs[index], index, low, high)
        for index, limit in self._limits:
            _check_magnitude(inputs[index], index, limit)
        key = None
        if self._header.static_shapes:
            shapes = tuple([tuple(tensor.shape) for tensor in inputs])
            key = shapes if shapes in self._header.static_shapes else None
        variant = self._variants.get(key) or self._variant_for(key)
        return variant.run(inputs)

    def _variant_for(self, shapes: tuple[tuple[int, ...], ...] | None) -> _Variant:
        """Return the compiled model for inputs of these shapes, or for every shape; it is compiled on its first use."""
        with self._lock:
            if shapes not in self._variants:
                self._variants[shapes] = _Variant(_reshaped(self._model, shapes, self._header), self._header)
            return self._variants[shapes]

    def serialize(self) -> bytes:
        """Return the header, the model and its weights."""
        return pack(self._header, *write_model(self._model))

    def precisions(self) -> dict[str, int]:
        """Return how many nodes OpenVINO computes in each element type: ``{"f32": 53, "i32": 2}``.

        Nodes that only hold or pass on data are not counted. OpenVINO reports the type in which a node hands on its result; where
        the processor lacks a half precision type it computes in float32 and rounds at the end, and such a node counts as ``"f32"``.
        """
        native = {dtypes.NAMES[dtype] for dtype in library.native_float_types()}
        counted: Counter[str] = Counter()
        compiled = next(iter(self._variants.values())).compiled
        for node in compiled.get_runtime_model().get_ordered_ops():
            info = node.get_rt_info()
            if info["layerType"].astype(str) not in _PASSIVE_LAYERS:
                name = info["runtimePrecision"].astype(str)
                counted["f32" if name in ("bf16", "f16") and name not in native else name] += 1
        return dict(counted)


def _config(header: Header, model: Any) -> dict[str, Any]:
    """Return the properties to compile with.

    The precision hint is always ``f32``: the graph's own types decide. Under that hint OpenVINO leaves the types of a model as they
    are, except that it computes in float32 where the processor has no bfloat16, and always for float16; without it, it would compute
    a float32 model in bfloat16 where the processor has that.

    Source: ``Graph::EnforceInferencePrecision`` ("only precision reduction is currently allowed") in
    ``src/plugins/intel_cpu/src/graph.cpp``, and ``get_convert_precisions`` in ``transformation_pipeline.cpp``.
    """
    config = {
        "INFERENCE_PRECISION_HINT": header.precision,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": header.num_threads or torch.get_num_threads(),
    }
    if _has_as_many_heads_as_rows(model):
        config["SNIPPETS_MODE"] = "DISABLE"
    return config


def _has_as_many_heads_as_rows(model: Any) -> bool:
    """Return whether OpenVINO may overwrite the queries of an attention while it reads them.

    It makes one kernel of an attention and of the transpositions ``(B, L, H, E)`` ↔ ``(B, H, L, E)`` around it, and lets that write its
    result over the queries where both have one shape. But with H = L they have one shape in two orders.

    Source: ``Subgraph::canBeInPlace`` in ``src/plugins/intel_cpu/src/nodes/subgraph.cpp``.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() in ("Softmax", "ScaledDotProductAttention"):
            shape = node.get_output_partial_shape(0)
            if shape.rank.is_static and len(shape) == 4 and shape[1] == shape[2]:
                return True
    return False


def _check_magnitude(tensor: torch.Tensor, index: int, limit: int) -> None:
    if not tensor.numel():
        return
    low, high = torch.aminmax(tensor)
    worst = max(-int(low), int(high))
    if worst > limit:
        raise InvalidArgumentError(
            f"input {index} of an openvino engine holds a value of magnitude {worst}, and OpenVINO computes what follows from it "
            f"exactly up to {limit}; optimize with another backend, or leave the operators that read it out of the engine"
        )


def _check_range(tensor: torch.Tensor, index: int, low: int, high: int) -> None:
    if not tensor.numel():
        return
    least, greatest = map(int, torch.aminmax(tensor))
    if least < low or greatest > high:
        wrong = least if least < low else greatest
        raise InvalidArgumentError(
            f"index out of range: input {index} of an openvino engine holds {wrong}, and what is indexed by it has entries {low} to {high}"
        )


def _reshaped(model: Any, shapes: tuple[tuple[int, ...], ...] | None, header: Header) -> Any:
    if shapes is None:
        return model
    fixed = model.clone()  # shares the weights
    fixed.reshape({place: list(shape) for place, shape in zip(header.parameters, shapes) if place >= 0})
    return fixed


def _input_handed_on(model: Any, result: Any, parameters: Sequence[int]) -> int | None:
    """Return the index of the engine's input that a result is, unchanged; None for a result that is computed."""
    node = result.input_value(0).get_node()
    while node.get_type_name() == "Convert" and node.get_output_element_type(0) == node.get_input_element_type(0):
        node = node.input_value(0).get_node()
    names = [parameter.get_friendly_name() for parameter in model.get_parameters()]
    return parameters.index(names.index(node.get_friendly_name())) if node.get_type_name() == "Parameter" else None


class _Variant:
    """A compiled model and its idle requests."""

    def __init__(self, model: Any, header: Header) -> None:
        try:
            self.compiled = library.core().compile_model(model, "CPU", _config(header, model))
        except RuntimeError as error:
            raise BuildError(f"OpenVINO {library.version()} cannot compile a subgraph: {' '.join(str(error).split())[-600:]}") from error
        self._parameters = header.parameters
        self._input_dtypes = [spec.dtype for spec in header.inputs]
        self._output_dtypes = [spec.dtype for spec in header.outputs]
        self._handed_on = [_input_handed_on(model, result, header.parameters) for result in model.get_results()]
        self._idle: deque[_Request] = deque()

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        try:
            request = self._idle.pop()  # the one used last: its memory is warm
        except IndexError:
            request = _Request(self.compiled, self._parameters, self._input_dtypes, self._output_dtypes, self._handed_on)
        outputs = request.run(inputs)
        self._idle.append(request)  # a request that failed is not used again
        return outputs


class _Request:
    """An inference request with the memory that it keeps for small tensors."""

    def __init__(
        self,
        compiled: Any,
        parameters: Sequence[int],
        input_dtypes: Sequence[torch.dtype],
        output_dtypes: Sequence[torch.dtype],
        handed_on: Sequence[int | None],
    ) -> None:
        self._request = compiled.create_infer_request()
        self._inputs = [
            _Input(self._request, place, index, dtype)
            for index, (place, dtype) in enumerate(zip(parameters, input_dtypes, strict=True))
            if place >= 0
        ]
        self._outputs = [
            _Output(self._request, place, dtype, None if index is not None else port.partial_shape)
            for place, (dtype, port, index) in enumerate(zip(output_dtypes, compiled.outputs, handed_on, strict=True))
        ]
        self._handed_on = handed_on

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        with torch.no_grad():
            lent = [place.give(inputs[place.index]) for place in self._inputs]
            results = [
                place.prepare() if index is None else inputs[index].resolve_neg().clone(memory_format=torch.contiguous_format)
                for place, index in zip(self._outputs, self._handed_on)
            ]
            self._request.start_async()
            self._request.wait()
            del lent
            return [place.take() if result is None else result for place, result in zip(self._outputs, results)]


class _Input:
    """Where a request reads one of its inputs."""

    def __init__(self, request: Any, place: int, index: int, dtype: torch.dtype) -> None:
        self.index = index
        self._request = request
        self._place = place
        self._dtype = dtype
        self._own: torch.Tensor | None = None

    def give(self, tensor: torch.Tensor) -> torch.Tensor:
        """Let the request read `tensor`, from a copy if it is small; return what must live until it has."""
        if tensor.nbytes <= COPIED_BYTES:
            if self._own is None or self._own.shape != tensor.shape:
                self._own = torch.empty(tensor.shape, dtype=self._dtype)
                self._request.set_input_tensor(self._place, dtypes.wrap(self._own))
            return self._own.copy_(tensor)
        lent = tensor.detach().resolve_neg().contiguous()
        self._own = None
        self._request.set_input_tensor(self._place, dtypes.wrap(lent))
        return lent


class _Output:
    """Where a request writes one of its outputs.

    An output that is an input handed on is not asked for: OpenVINO writes nothing to memory that it is lent for such a one, and where
    sizes vary its own may be gone.
    """

    def __init__(self, request: Any, place: int, dtype: torch.dtype, shape: Any) -> None:
        self._request = request
        self._place = place
        self._dtype = dtype
        self._shape: tuple[int, ...] | None = tuple(shape.to_shape()) if shape is not None and shape.is_static else None
        self._own: torch.Tensor | None = None
        if self._shape is not None and torch.Size(self._shape).numel() * dtype.itemsize <= COPIED_BYTES:
            self._own = torch.empty(self._shape, dtype=dtype)
            request.set_output_tensor(place, dtypes.wrap(self._own))

    def prepare(self) -> torch.Tensor | None:
        """Return a new tensor that the request will write to, or None where the result is copied from the request's memory."""
        if self._shape is None or self._own is not None:
            return None
        result = torch.empty(self._shape, dtype=self._dtype)
        self._request.set_output_tensor(self._place, dtypes.wrap(result))
        return result

    def take(self) -> torch.Tensor:
        """Return a copy of what the request has written to its own memory."""
        if self._own is not None:
            return self._own.clone()
        return dtypes.view(self._request.get_output_tensor(self._place), self._dtype).clone()

"""A subgraph → an ``openvino.Model``.

It is lowered to operators that OpenVINO knows, written as TorchScript, and read by OpenVINO's PyTorch frontend.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from tiacc.backends.openvino import dtypes, library
from tiacc.backends.openvino import lowerings as lowerings  # registers them
from tiacc.backends.openvino.lowering import lower
from tiacc.errors import BuildError, ExportError
from tiacc.graph import exporter, specs, torch_compat
from tiacc.graph.types import Dim, TensorSpec


@dataclass(frozen=True)
class Conversion:
    """A converted subgraph.

    Attributes:
        model: The ``openvino.Model``. Its constants refer to the memory of the subgraph's.
        parameters: For each input its place among the model's parameters, -1 for an input that the model does not read.
        function: The TorchScript function that it was read from, which holds the constants.
    """

    model: Any
    parameters: tuple[int, ...]
    function: Any


def convert(subgraph: fx.GraphModule, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Conversion:
    """Convert a subgraph.

    Args:
        subgraph: Its outputs are a tuple.
        inputs: The type of each of its placeholders.
        outputs: The type of each of its outputs.

    Raises:
        BuildError: OpenVINO has no converter for a node, or it fails.
    """
    try:
        function = exporter.to_function(lower(subgraph))
    except ExportError as error:
        raise BuildError(f"the openvino backend cannot build this subgraph: {error}") from error
    ov = library.openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    try:
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(function)  # must live until the conversion is over
        source = frontend.load(decoder)
        for place, spec in zip(source.get_inputs(), inputs, strict=True):
            source.set_partial_shape(place, partial_shape(spec))
            source.set_element_type(place, dtypes.type_of(spec.dtype))
        model = frontend.convert(source)
    except Exception as error:  # the frontend raises several types of its own besides RuntimeError
        raise BuildError(f"OpenVINO {ov.__version__} cannot convert a subgraph: {_summary(error, subgraph)}") from error
    model = _with_types(model, outputs)
    names = [value.debugName() for value in function.graph.inputs()]
    found = {name: index for index, parameter in enumerate(model.inputs) for name in parameter.names}
    return Conversion(model, tuple(found.get(name, -1) for name in names), function)


def _with_types(model: Any, outputs: tuple[TensorSpec, ...]) -> Any:
    """Return a model whose outputs have the element types that are wanted; the frontend makes some of them 32 bits wide.

    Raises:
        BuildError: The model has other outputs than those.
    """
    ov = library.openvino()
    for place, (port, spec) in enumerate(zip(model.outputs, outputs, strict=True)):
        shape, wanted = port.partial_shape, partial_shape(spec)
        if not shape.compatible(wanted):
            raise BuildError(f"OpenVINO {ov.__version__} gives output {place} the shape {shape}, and torch {wanted}")
    if all(port.element_type == dtypes.type_of(spec.dtype) for port, spec in zip(model.outputs, outputs)):
        return model
    processor = ov.preprocess.PrePostProcessor(model)
    for place, spec in enumerate(outputs):
        processor.output(place).tensor().set_element_type(dtypes.type_of(spec.dtype))
    return processor.build()


def partial_shape(spec: TensorSpec) -> Any:
    """Return the ``openvino.PartialShape`` of a type: a `Dim` is a dimension between its bounds."""
    ov = library.openvino()
    return ov.PartialShape([_dimension(ov, size) for size in spec.shape])


def _dimension(ov: Any, size: int | Dim) -> Any:
    if isinstance(size, int):
        return ov.Dimension(size)
    if size.max >= torch_compat.UNBOUNDED:
        return ov.Dimension(size.min, -1)
    return ov.Dimension(size.min, size.max)


def _summary(error: Exception, subgraph: fx.GraphModule) -> str:
    """Return what the frontend says of the cause, and the nodes that it may mean with their source lines."""
    text = str(error)
    start = text.find("Summary:")
    reason = " ".join(text[start + 8 if start >= 0 else 0 :].split())
    failed = set(re.findall(r"aten::\w+", reason))
    nodes = [
        f"{node.name} = {node.target}{specs.where(node)}"
        for node in subgraph.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.name in failed
    ]
    return f"{reason[:600]}{' in ' + '; '.join(nodes[:5]) if nodes else ''}"

"""The sample inputs that torch ships for its own operators, as graphs of aten calls.

A sample is traced by TorchScript, which keeps composite operators whole, and the trace read into an `fx.GraphModule`.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import fx

_DTYPES = {0: torch.uint8, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.int64, 5: torch.float16, 6: torch.float32,
           7: torch.float64, 11: torch.bool, 15: torch.bfloat16}  # fmt: skip


class NotAGraph(Exception):
    """The sample is not a plain graph of aten calls on tensors."""


@dataclass(frozen=True)
class Sample:
    """One sample input, traced.

    Attributes:
        name: The operator's name in torch's database, with its variant.
        gm: The graph.
        inputs: Its inputs.
        expected: What eager torch returns.
    """

    name: str
    gm: fx.GraphModule
    inputs: list[torch.Tensor]
    expected: list[torch.Tensor]


@cache
def database() -> dict[str, list[Any]]:
    """Return torch's operator database by aten name."""
    from torch.testing._internal.common_methods_invocations import op_db

    table: dict[str, list[Any]] = {}
    for info in op_db:
        table.setdefault(info.aten_name, []).append(info)
    return table


def samples(info: Any, dtype: torch.dtype, most: int = 1000) -> Iterator[Sample | str]:
    """Yield the samples of one operator, or why one of them is not a graph."""
    if dtype not in info.dtypes:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(0)
        for number, item in enumerate(info.sample_inputs("cpu", dtype, requires_grad=False)):
            if number >= most:
                return
            try:
                yield trace(info, item)
            except NotAGraph as error:
                yield str(error)


def trace(info: Any, item: Any) -> Sample:
    """Trace one sample input."""
    tensors: list[torch.Tensor] = []

    def collect(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            tensors.append(value.detach())
            return _Place(len(tensors) - 1)
        if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
            return type(value)(map(collect, value)) if not hasattr(value, "_fields") else type(value)(*map(collect, value))
        return value

    def fill(value: Any, given: tuple[torch.Tensor, ...]) -> Any:
        if isinstance(value, _Place):
            return given[value.index]
        if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
            items = [fill(part, given) for part in value]
            return type(value)(items) if not hasattr(value, "_fields") else type(value)(*items)
        return value

    args = [collect(value) for value in (item.input, *item.args)]
    kwargs = {key: collect(value) for key, value in item.kwargs.items()}

    def call(*given: torch.Tensor) -> Any:
        return info.op(*fill(args, given), **{key: fill(value, given) for key, value in kwargs.items()})

    if not tensors or any(tensor.layout != torch.strided for tensor in tensors):
        raise NotAGraph("no strided tensor among its inputs")
    try:
        with torch.no_grad():
            expected = call(*(tensor.clone() for tensor in tensors))
            traced = torch.jit.trace(call, tuple(tensors), check_trace=False)
    except Exception as error:  # whatever TorchScript cannot trace is no sample
        raise NotAGraph(f"TorchScript does not trace it: {type(error).__name__}") from error
    results = list(expected) if isinstance(expected, (list, tuple)) else [expected]
    if not all(isinstance(result, torch.Tensor) for result in results):
        raise NotAGraph("its result is not tensors")
    return Sample(info.name + (f".{info.variant_test_name}" if info.variant_test_name else ""), read(traced), tensors, results)


@dataclass
class _Place:
    index: int


def read(function: torch.jit.ScriptFunction) -> fx.GraphModule:
    """Read a traced function into a graph."""
    graph, root = fx.Graph(), torch.nn.Module()
    values: dict[int, Any] = {}
    script = function.inlined_graph
    for index, value in enumerate(script.inputs()):
        values[value.unique()] = graph.placeholder(f"x{index}")
    for node in script.nodes():
        kind, inputs = node.kind(), [values.get(value.unique()) for value in node.inputs()]
        outputs = list(node.outputs())
        if kind == "prim::Constant":
            result: Any = node.outputsAt(0).toIValue() if not node.mustBeNone() else None
            if isinstance(result, torch.Tensor):
                name = f"constant_{len(values)}"
                root.register_buffer(name, result.detach())
                result = graph.get_attr(name)
            results = [result]
        elif kind in ("prim::ListConstruct", "prim::TupleConstruct"):
            results = [list(inputs)]
        elif kind in ("prim::ListUnpack", "prim::TupleUnpack"):
            source = inputs[0]
            is_list = isinstance(source, list)
            results = list(source) if is_list else [graph.call_function(operator.getitem, (source, i)) for i in range(len(outputs))]
        elif kind.startswith("aten::") and node.schema() != "(no schema)":
            results = _call(graph, node, inputs, len(outputs))
        else:
            raise NotAGraph(f"its trace has a {kind}")
        values.update({value.unique(): result for value, result in zip(outputs, results)})
    returned = [values[value.unique()] for value in script.outputs()]
    flat: list[Any] = []
    for item in returned:
        flat.extend(item if isinstance(item, list) else [item])
    if not all(isinstance(item, fx.Node) for item in flat):
        raise NotAGraph("its result is no tensor")
    graph.output(tuple(flat))
    return fx.GraphModule(root, graph)


def _call(graph: fx.Graph, node: Any, inputs: list[Any], count: int) -> list[Any]:
    schema = torch._C.parse_schema(node.schema())
    packet = getattr(torch.ops.aten, schema.name.split("::")[1])
    overload = getattr(packet, schema.overload_name or "default", None)
    if overload is None or (schema.name.endswith("_") and not schema.name.endswith("__")):
        raise NotAGraph(f"its trace calls {schema.name}")
    args, kwargs = [], {}
    for argument, value in zip(overload._schema.arguments, inputs):
        kind = str(argument.real_type)
        if isinstance(value, int) and not isinstance(value, bool) and "ScalarType" in kind:
            value = _DTYPES.get(value)
        if isinstance(value, int) and not isinstance(value, bool) and ("Layout" in kind or "MemoryFormat" in kind):
            value = None if "Layout" in kind else {0: torch.contiguous_format, 1: torch.preserve_format}.get(value)
        if argument.kwarg_only:
            kwargs[argument.name] = value
        else:
            args.append(value)
    call = graph.call_function(overload, tuple(args), kwargs)
    if count == 1:
        return [call]
    return [graph.call_function(operator.getitem, (call, index)) for index in range(count)]

"""fx → TorchScript: write the graph of a region as TorchScript nodes.

Nodes are made directly in a TorchScript graph, with their types taken from the operators' schemas: no source text is generated and
compiled, so the cost is linear in the nodes and nothing is resolved anew by argument types. A region's nodes go where the nodes that it
replaces were; everything around them stays as it was.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import fx

from tiacc.errors import ExportError
from tiacc.graph import specs, torch_compat
from tiacc.graph.assumptions import Form
from tiacc.graph.fresh_results import copy_returned_constants
from tiacc.graph.regions import UNINITIALISED, OutputIndex, Region, RegionInput
from tiacc.runtime import blob as envelope

_SCALAR_KINDS: dict[Callable[..., Any], str] = {
    operator.add: "aten::add",
    operator.sub: "aten::sub",
    operator.mul: "aten::mul",
    operator.floordiv: "aten::floordiv",
    operator.truediv: "aten::div",
    operator.mod: "aten::remainder",
    operator.neg: "aten::neg",
    operator.eq: "aten::eq",
    operator.ne: "aten::ne",
    operator.lt: "aten::lt",
    operator.le: "aten::le",
    operator.gt: "aten::gt",
    operator.ge: "aten::ge",
    torch.sym_int: "aten::Int",
    torch.sym_float: "aten::Float",
    torch.sym_max: "prim::max",
    torch.sym_min: "prim::min",
    math.floor: "aten::floor",
    math.ceil: "aten::ceil",
    torch.ops.aten.sym_size.int: "aten::size",
}

_OF_BOOLS = {"aten::add": "aten::logical_or", "aten::mul": "aten::logical_and"}
"""What operators compute where both operands are bool."""


def to_function(gm: fx.GraphModule) -> torch_compat.Function:
    """Return a TorchScript function that computes what `gm` does; its results are a tuple, or the value itself if there is one.

    Raises:
        ExportError: A node has no TorchScript form.
    """
    graph = torch._C.Graph()
    writer = _Writer(graph)
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            value = graph.addInput(node.name)
            value.setType(_type_of(node.meta["val"]))
            writer.values[node] = value
    outputs = writer.write(gm)
    if len(outputs) == 1:
        graph.registerOutput(outputs[0])
    else:
        node = graph.insertNode(graph.create("prim::TupleConstruct", outputs, 1))
        node.output().setType(torch._C.TupleType([value.type() for value in outputs]))
        graph.registerOutput(node.output())
    return torch_compat.function_of(graph)


def replace_regions(module: torch.jit.ScriptModule, replacements: Sequence[tuple[Region, fx.GraphModule]]) -> None:
    """Put new code in the place of the nodes of regions, in the TorchScript graph that they belong to, and check the result.

    Args:
        module: The module that the regions were imported from; its graph is edited.
        replacements: Regions in program order, each with a graph that has the placeholders and outputs of ``region.graph``.

    Raises:
        ExportError: A node has no TorchScript form, or the result is malformed.
    """
    graph = torch_compat.forward_graph(module)
    for region, gm in reversed(replacements):  # the last first: a region's inputs are values of the code that comes before it
        _replace_region(graph, region, gm)
    torch_compat.remove_dead_code(graph)
    for name in module._c._method_names():
        copy_returned_constants(module._c._get_method(name).graph)
    try:
        torch_compat.lint(graph)
    except RuntimeError as error:
        raise ExportError(f"the optimized TorchScript graph is malformed: {error}") from error


def _replace_region(graph: torch_compat.Graph, region: Region, gm: fx.GraphModule) -> None:
    if region.guard:
        _add_choice(graph, region, gm)
        return
    writer = _Writer(graph)
    with graph.insert_point_guard(region.nodes[0]):
        placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
        writer.values.update({node: writer.project(read) for node, read in zip(placeholders, region.inputs, strict=True)})
        results = writer.write(gm)
        for output in region.outputs:
            new = writer.build(output.template, output.value.type(), results)
            output.value.replaceAllUsesWith(new)
    for node in reversed(region.nodes):
        node.destroy()


def _add_choice(graph: torch_compat.Graph, region: Region, gm: fx.GraphModule) -> None:
    """Put new code beside the nodes of a guarded region: it runs where the inputs have the types that it was made for."""
    writer = _Writer(graph)
    with graph.insert_point_guard(region.nodes[0]):
        inputs = [writer.project(read) for read in region.inputs]
        tensors = [value for value, spec in zip(inputs, region.guard) if spec is not None]
        items = writer.emit("prim::ListConstruct", tensors, [torch._C.ListType.ofTensors()])
        text = json.dumps([envelope.spec_to_json(spec) for spec in region.guard if spec is not None])
        (condition,) = writer.emit("tiacc::fits", [*items, writer.of(text)], [torch._C.BoolType.get()])
        choice = graph.insertNode(graph.create("prim::If", [condition], len(region.outputs)))
    optimized, fallback = choice.addBlock(), choice.addBlock()
    with graph.insert_point_guard(optimized.returnNode()):
        inner = _Writer(graph)
        inner.values.update(zip(gm.graph.find_nodes(op="placeholder"), inputs, strict=True))
        results = inner.write(gm)
        for output in region.outputs:
            optimized.registerOutput(inner.build(output.template, output.value.type(), results))
    old = {}
    for output, new in zip(region.outputs, torch_compat.outputs_of(choice)):
        new.setType(output.value.type())
        output.value.replaceAllUsesWith(new)
        old[new.unique()] = output.value
    for node in region.nodes:
        node.moveBefore(fallback.returnNode())
        torch_compat.replace_inputs(node, old)
    for output in region.outputs:
        fallback.registerOutput(output.value)
    torch_compat.hold_values(graph, fallback, condition, False)


class _Writer:
    """Writes fx nodes at the insert point of a TorchScript graph."""

    def __init__(self, graph: torch_compat.Graph) -> None:
        self.graph = graph
        self.values: dict[fx.Node, torch_compat.Value] = {}
        self._parts: dict[fx.Node, Sequence[torch_compat.Value]] = {}
        self._constants: dict[tuple[type, Any], torch_compat.Value] = {}
        self._containers: dict[int, torch_compat.Value] = {}

    def write(self, gm: fx.GraphModule) -> list[torch_compat.Value]:
        """Write the nodes of `gm`, whose placeholders have values, and return its outputs."""
        for node in gm.graph.nodes:
            if node.op == "get_attr":
                self.values[node] = self._tensor(specs.fetch_attr(gm, str(node.target)))
            elif node.op == "call_function":
                self._write_call(node)
            elif node.op == "output":
                return [self.of(item) for item in node.args[0]]
        raise ExportError("the graph has no output")

    def of(self, item: Any) -> torch_compat.Value:
        """Return the value of a node or constant."""
        return self.values[item] if isinstance(item, fx.Node) else self._constant(item)

    def project(self, read: RegionInput) -> torch_compat.Value:
        """Return what a region reads: a value, or a member of a container."""
        value = self._given(read.value)
        for key in read.path:
            type_ = value.type()
            if type_.kind() == "TupleType":
                value = self.emit("prim::TupleIndex", [value, self.of(key)], [type_.elements()[key]])[0]
            else:
                inner = type_.getElementType() if type_.kind() == "ListType" else type_.getValueType()
                value = self.emit("aten::__getitem__", [value, self.of(key)], [inner])[0]
            value = self._given(value)
        return value

    def _given(self, value: torch_compat.Value) -> torch_compat.Value:
        """Return a value that might be None by its type and is not."""
        type_ = value.type()
        return self.emit("prim::unchecked_cast", [value], [type_.getElementType()])[0] if type_.kind() == "OptionalType" else value

    def holds(self, value: torch_compat.Value, assumed: Any) -> torch_compat.Value:
        """Return whether a value is, or has the form, that was assumed."""
        left: torch_compat.Value = value
        right: Any = assumed
        if isinstance(assumed, Form):
            right = None
            if isinstance(assumed.keys, int):
                left, right = self.emit("aten::len", [value], [torch._C.IntType.get()])[0], assumed.keys
            elif assumed.keys is not None:
                key_type = torch._C.ListType(value.type().getKeyType())
                left = self.emit("aten::keys", [value], [key_type])[0]
                right = self.emit("prim::ListConstruct", [self.of(key) for key in assumed.keys], [key_type])[0]
        is_present = isinstance(assumed, Form) and assumed.keys is None
        kind = "aten::__isnot__" if is_present else "aten::__is__" if assumed is None else "aten::eq"
        return self.emit(kind, [left, right if isinstance(right, torch._C.Value) else self.of(right)], [torch._C.BoolType.get()])[0]

    def build(self, template: Any, wanted: torch_compat.Type, results: Sequence[torch_compat.Value]) -> torch_compat.Value:
        """Make a value of a region's output from the outputs of its graph."""
        if isinstance(template, OutputIndex):
            return results[template.index]
        if isinstance(template, (list, dict)):  # a list that is in two places is one list
            if id(template) not in self._containers:
                self._containers[id(template)] = self._build_container(template, wanted, results)
            return self._containers[id(template)]
        if isinstance(template, tuple):
            inner = torch_compat.without_optional(wanted)
            members = [self.build(member, type_, results) for member, type_ in zip(template, inner.elements())]
            return self.emit("prim::TupleConstruct", members, [inner])[0]
        if isinstance(template, torch.Tensor):
            return self._tensor(template)
        if template is UNINITIALISED:
            return self.emit("prim::Uninitialized", [], [wanted])[0]
        return self._constant(_cast(template, wanted))

    def _build_container(
        self, template: list[Any] | dict[Any, Any], wanted: torch_compat.Type, results: Sequence[torch_compat.Value]
    ) -> torch_compat.Value:
        inner = torch_compat.without_optional(wanted)
        if isinstance(template, list):
            members = [self.build(member, inner.getElementType(), results) for member in template]
            return self.emit("prim::ListConstruct", members, [inner])[0]
        types = (inner.getKeyType(), inner.getValueType())
        members = [self.build(member, type_, results) for item in template.items() for member, type_ in zip(item, types)]
        return self.emit("prim::DictConstruct", members, [inner])[0]

    # -- calls -----------------------------------------------------------------------------------------------------------------

    def _write_call(self, node: fx.Node) -> None:
        target = node.target
        if target is operator.getitem:
            self._write_getitem(node)
            return
        if target in _SCALAR_KINDS:
            arguments = [self.of(item) for item in node.args]
            self.values[node] = self.emit(_SCALAR_KINDS[target], arguments, [_type_of(node.meta["val"])])[0]
            return
        if not isinstance(target, torch._ops.OpOverload):
            raise ExportError(f"{node.name} calls {target}, which has no TorchScript form{specs.where(node)}")
        schema = target._schema
        arguments = []
        for place, argument in enumerate(schema.arguments):
            if place < len(node.args):
                item = node.args[place]
            elif argument.name in node.kwargs:
                item = node.kwargs[argument.name]
            elif argument.has_default_value():
                item = argument.default_value
            else:
                raise ExportError(f"{node.name} = {target} lacks its argument {argument.name!r}{specs.where(node)}")
            arguments.append(self._argument(item, argument.type))
        name = self._keep_tensor(node, arguments) if target in torch_compat.TAKES_NUMBERS else schema.name
        results = self.emit(name, arguments, [result.type for result in schema.returns])
        if len(results) == 1:
            self.values[node] = results[0]
        else:
            self._parts[node] = results

    def _keep_tensor(self, node: fx.Node, arguments: list[torch_compat.Value]) -> str:
        """Have a 0-d constant that torch's executor takes for a number count as a tensor all the same; return what to call."""
        first, second = node.args[:2]
        name = str(node.target._schema.name)  # type: ignore[union-attr]
        if not isinstance(first, fx.Node) or not isinstance(second, fx.Node) or second.op != "get_attr" or specs.tensor_of(second).dim():
            return name
        constant, other = torch_compat.constant_of(arguments[1]), specs.tensor_of(first)
        dtype = torch.result_type(other, constant)
        if constant.dtype == torch.bool:  # the executor fails on such a number
            if dtype == torch.bool and name in _OF_BOOLS:
                del arguments[2:]
                return _OF_BOOLS[name]
            arguments[1] = self._constant(int(constant))
        elif torch.result_type(other, constant.item()) == dtype:
            return name
        rest = [self._constant(item) for item in (dtype, False, False, None)]
        arguments[0] = self.emit("aten::to", [arguments[0], *rest], [torch._C.TensorType.get()])[0]
        return name

    def _write_getitem(self, node: fx.Node) -> None:
        source, index = node.args
        assert isinstance(source, fx.Node)
        if source not in self._parts:
            count = len(source.meta["val"])
            self._parts[source] = self.emit("prim::ListUnpack", [self.values[source]], [torch._C.TensorType.get()] * count)
        self.values[node] = self._parts[source][index]  # type: ignore[index]

    def _argument(self, item: Any, wanted: torch_compat.Type) -> torch_compat.Value:
        kind = wanted.kind()
        if item is None:
            return self._constant(None)
        if kind == "OptionalType":
            return self._argument(item, wanted.getElementType())
        if kind == "ListType":
            element = wanted.getElementType()
            if isinstance(item, fx.Node) and isinstance(item.meta["val"], (list, tuple)):
                return self.values[item]
            members = [self._argument(member, element) for member in (item if isinstance(item, (list, tuple)) else [item])]
            type_ = torch._C.ListType(members[0].type()) if element.kind() == "VarType" else wanted
            return self.emit("prim::ListConstruct", members, [type_])[0]
        if kind == "VarType" and isinstance(item, (list, tuple)):
            return self._argument(item, torch._C.ListType(wanted))
        if isinstance(item, fx.Node):
            return self.values[item]
        return self._constant(_cast(item, wanted))

    def emit(self, kind: str, inputs: list[torch_compat.Value], types: Iterable[torch_compat.Type]) -> list[torch_compat.Value]:
        """Insert a node, and return its outputs, of the given types."""
        types = list(types)
        node = self.graph.insertNode(self.graph.create(kind, inputs, len(types)))
        outputs = torch_compat.outputs_of(node)
        for value, type_ in zip(outputs, types):
            value.setType(type_)
        return outputs

    def _constant(self, item: Any) -> torch_compat.Value:
        if isinstance(item, torch.memory_format):
            item = torch_compat.memory_format_number(item)
        elif isinstance(item, torch.dtype):
            item = torch_compat.dtype_number(item)
        key = (type(item), repr(item))
        if key not in self._constants:
            self._constants[key] = self.graph.insertConstant(item)
        return self._constants[key]

    def _tensor(self, tensor: torch.Tensor) -> torch_compat.Value:
        return self.graph.insertConstant(tensor.detach() if tensor.requires_grad else tensor)


def _cast(item: Any, wanted: torch_compat.Type) -> Any:
    kind = wanted.kind()
    if kind == "FloatType" and isinstance(item, int):
        return float(item)
    if kind == "BoolType" and isinstance(item, int):
        return bool(item)
    if kind == "IntType" and isinstance(item, bool):
        return int(item)
    if kind == "DeviceObjType" and isinstance(item, str):
        return torch.device(item)
    return item


def _type_of(value: Any) -> torch_compat.Type:
    if isinstance(value, torch.Tensor):
        return torch._C.TensorType.get()
    if isinstance(value, (bool, torch.SymBool)):
        return torch._C.BoolType.get()
    if isinstance(value, (int, torch.SymInt)):
        return torch._C.IntType.get()
    if isinstance(value, (float, torch.SymFloat)):
        return torch._C.FloatType.get()
    raise ExportError(f"a value of type {type(value).__name__} has no TorchScript form here")


def call_first(graph: torch_compat.Graph, operator_name: str, tensors: Sequence[RegionInput], text: str) -> None:
    """Call an operator ``(Tensor[], str) -> ()`` before everything else in a TorchScript graph."""
    first = next(iter(graph.nodes()), graph.return_node())
    with graph.insert_point_guard(first):
        writer = _Writer(graph)
        items = graph.insertNode(graph.create("prim::ListConstruct", [writer.project(read) for read in tensors], 1))
        items.output().setType(torch._C.ListType.ofTensors())
        graph.insertNode(graph.create(operator_name, [items.output(), graph.insertConstant(text)], 0))


def guard(graph: torch_compat.Graph, original: torch_compat.Graph, assumptions: dict[int, Any]) -> None:
    """Make the code of a ``forward`` conditional: it runs when arguments have the values that were assumed, else the original does.

    Args:
        graph: The optimized graph; it is edited.
        original: The graph that it came from, with the same inputs and outputs.
        assumptions: What is assumed of each argument, by its place after ``self``: a number, a string, None, or a `Form`.
    """
    nodes = list(graph.nodes())
    outputs = list(graph.outputs())
    inputs = list(graph.inputs())
    with graph.insert_point_guard(graph.return_node()):
        writer = _Writer(graph)
        condition: torch_compat.Value | None = None
        for place, value in assumptions.items():
            holds = writer.holds(inputs[place + 1], value)
            both = [torch._C.BoolType.get()]
            condition = holds if condition is None else writer.emit("aten::__and__", [condition, holds], both)[0]
        assert condition is not None
        choice = graph.insertNode(graph.create("prim::If", [condition], len(outputs)))
        optimized, fallback = choice.addBlock(), choice.addBlock()
        for node in nodes:
            node.moveBefore(optimized.returnNode())
        for value in outputs:
            optimized.registerOutput(value)
    with graph.insert_point_guard(fallback.returnNode()):
        for value in graph.insertGraph(original, inputs):
            fallback.registerOutput(value)
    for block, outcome in ((optimized, True), (fallback, False)):
        torch_compat.hold_values(graph, block, condition, outcome)
    for index, (old, new) in enumerate(zip(outputs, torch_compat.outputs_of(choice))):
        new.setType(old.type())
        graph.return_node().replaceInput(index, new)
    torch_compat.lint(graph)

"""A graph → one that OpenVINO computes right: operators that it lacks or gets wrong, said in operators that it has.

What OpenVINO lacks is in `tiacc.backends.openvino.lowerings`. Besides, tensors of different element types are converted to the type
that torch would compute in, so that OpenVINO never has to choose one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import fx

from tiacc.graph import arguments, specs, torch_compat

aten = torch.ops.aten

Lowering: TypeAlias = Callable[..., "fx.Node | Sequence[fx.Node] | None"]

LOWERINGS: dict[str, Lowering] = {}
"""The lowerings by the operator's name: ``"softplus.default"``."""

_ARITHMETIC = (
    "add.Tensor sub.Tensor rsub.Tensor mul.Tensor div.Tensor atan2.default maximum.default minimum.default max.other min.other "
    "where.self logaddexp.default"
)
_WITH_NUMBERS = "add.Scalar sub.Scalar rsub.Scalar mul.Scalar div.Scalar pow.Tensor_Scalar clamp.default"

PROMOTED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_ARITHMETIC.split(), ("self", "other")),
    **dict.fromkeys(_WITH_NUMBERS.split(), ("self",)),
    "pow.Tensor_Tensor": ("self", "exponent"),
    "pow.Scalar": ("exponent",),
    "prelu.default": ("self", "weight"),
    "lerp.Scalar": ("self", "end"),
    "lerp.Tensor": ("self", "end", "weight"),
    "addcmul.default": ("self", "tensor1", "tensor2"),
    "clamp.Tensor": ("self", "min", "max"),
    "clamp_min.Tensor": ("self", "min"),
    "clamp_max.Tensor": ("self", "max"),
}
"""The operands that torch converts to the type of the result before it computes, by the operator's name."""

COMPARED: frozenset[str] = frozenset(
    f"{name}.{kind}" for name in ("eq", "ne", "lt", "le", "gt", "ge") for kind in ("Tensor", "Scalar")
)
"""The operators whose two operands torch converts to one type that is not the result's."""

_SEQUENCES = frozenset({"cat.default", "concat.default", "concatenate.default", "stack.default"})


def lowers(*names: str) -> Callable[[Lowering], Lowering]:
    """Return a decorator that registers a lowering of aten overloads.

    It is called with an `Emitter` and the arguments in schema order, and returns the node that computes the same, or one for each
    result; None leaves the operator as it is.
    """

    def add(lowering: Lowering) -> Lowering:
        for name in names:
            LOWERINGS[name] = lowering
        return lowering

    return add


def name_of(node: fx.Node) -> str:
    """Return the name of an operator without ``aten``, ``"relu.default"``; an empty string where a node calls no aten operator."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace != "aten":
        return ""
    return str(node.target).removeprefix("aten.")


class Emitter:
    """Writes nodes into a graph, each with its value.

    Attributes:
        graph: The graph.
        node: The node that is being lowered.
        constants: The constants that were written, by name.
    """

    def __init__(self, gm: fx.GraphModule, graph: fx.Graph) -> None:
        self.graph = graph
        self.node: fx.Node
        self.constants: dict[str, torch.Tensor] = {}
        self._mode = specs.fake_mode_of(gm)

    def __call__(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Write a call."""
        written = self.graph.call_function(target, args, kwargs)
        if "source" in self.node.meta:
            written.meta["source"] = self.node.meta["source"]
        specs.infer_call(self._mode, written)
        return written

    def item(self, node: fx.Node, index: int) -> fx.Node:
        """Write the choice of one result of a node that has several."""
        chosen = self.graph.call_function(operator.getitem, (node, index))
        chosen.meta["val"] = node.meta["val"][index]
        return chosen

    def constant(self, tensor: torch.Tensor) -> fx.Node:
        """Write a constant."""
        name = f"lowered_{len(self.constants)}"
        self.constants[name] = tensor
        written = self.graph.get_attr(name)
        written.meta["val"] = torch_compat.fake_constant(self._mode, tensor)
        return written

    def size(self, node: fx.Node, dim: int) -> fx.Node | int:
        """Return a size of a tensor: a number where it is fixed, else a node that computes it."""
        size = specs.tensor_of(node).shape[dim]
        return size if isinstance(size, int) else self(aten.sym_size.int, node, dim)

    def cast(self, item: Any, dtype: torch.dtype) -> Any:
        """Write the conversion of a tensor to `dtype`, unless it has it or is a number."""
        if is_number(item) or specs.tensor_of(item).dtype == dtype:
            return item
        return self(aten.to.dtype, item, dtype)


def is_number(item: Any) -> bool:
    """Return whether an argument is no tensor: a number, or a node that computes one."""
    return not isinstance(item, fx.Node) or not specs.is_tensor(item)


def lower(gm: fx.GraphModule) -> fx.GraphModule:
    """Return a graph that computes what `gm` does in operators that OpenVINO has. `gm` is not changed."""
    graph = fx.Graph()
    emit = Emitter(gm, graph)
    copies: dict[fx.Node, Any] = {}
    for node in gm.graph.nodes:
        if node.target is operator.getitem and isinstance(copies[node.args[0]], (list, tuple)):
            copies[node] = copies[node.args[0]][node.args[1]]
            continue
        emit.node = node
        lowering = LOWERINGS.get(name_of(node))
        result = None
        if lowering is not None:
            result = lowering(emit, *fx.map_arg(tuple(arguments.bound(node).values()), copies.__getitem__))
        if result is None:
            result = graph.node_copy(node, _promote(emit, node, copies).__getitem__)
        copies[node] = result
    lowered = torch_compat.graph_module(_root(gm, emit.constants), graph)
    lowered.meta["fake_mode"] = specs.fake_mode_of(gm)
    return lowered


def _root(gm: fx.GraphModule, constants: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return the attributes that the graph reads, by name."""
    read = {str(node.target): specs.fetch_attr(gm, str(node.target)) for node in gm.graph.nodes if node.op == "get_attr"}
    return {**read, **constants}


def _promote(emit: Emitter, node: fx.Node, copies: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
    """Return `copies`, with the operands of `node` converted to the type in which torch computes."""
    operands, dtype = _operands(node)
    changed = {item: emit.cast(copies[item], dtype) for item in operands if dtype is not None and not is_number(item)}
    return {**{item: copies[item] for item in node.all_input_nodes}, **changed}


def _operands(node: fx.Node) -> tuple[list[Any], torch.dtype | None]:
    name = name_of(node)
    if name in PROMOTED:
        given = arguments.bound(node)
        return [given[key] for key in PROMOTED[name]], specs.tensor_of(node).dtype
    if name in COMPARED:
        given = arguments.bound(node)
        return [given["self"], given["other"]], common_dtype(given["self"], given["other"])
    if name in _SEQUENCES:
        return list(next(iter(arguments.bound(node).values()))), specs.tensor_of(node).dtype
    return [], None


def common_dtype(first: Any, second: Any) -> torch.dtype:
    """Return the element type in which torch compares two operands, tensors or numbers."""
    values = [item.meta["val"] if isinstance(item, fx.Node) else item for item in (first, second)]
    first_value, second_value = (0 if isinstance(value, torch.SymInt) else value for value in values)
    return torch.result_type(first_value, second_value)

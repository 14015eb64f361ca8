"""Which values of a TorchScript graph may share memory: torch's own analysis, and what that does not say."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from tiacc.graph.torch_compat.operators import may_alias, overload_of
from tiacc.graph.torch_compat.scripts import Block, Graph, Node, Value, blocks_of, nodes_of, outputs_of, reshaped_values

RETURNS_ITS_ARGUMENT = frozenset(
    {f"aten::{kind}dropout" for kind in ("", "feature_", "alpha_", "feature_alpha_")} | {"aten::type_as", "aten::_unsafe_view"}
)
"""The operators that may return their first argument, or a view of it, without saying so in their schema."""

MAKES_MEMORY = frozenset(
    {f"aten::{name}" for name in ("clone", "add", "sub", "mul", "div")}
    | {f"aten::{kind}{end}" for kind in ("zeros", "ones", "full", "empty") for end in ("", "_like")}
    | {f"aten::new_{kind}" for kind in ("zeros", "ones", "full", "empty")}
)
"""Operators whose result is memory of its own."""

_READS_ITS_TYPE = frozenset(f"prim::{name}" for name in ("device", "dtype", "layout", "type", "is_cuda", "requires_grad"))

_KEEPS_IT = "-> *)"
"""What the schema of an operator says of an argument that it puts into a list or dictionary."""


class Aliases:
    """Which values of a TorchScript graph may share memory; computed on first use."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._names: dict[int, frozenset[int]] = {}
        self._database: Any = None

    def _load(self) -> Any:
        if self._database is None:
            self._database = self._graph.alias_db()
        return self._database

    def has_writers(self, value: Value) -> bool:
        """Return whether some node may write into the memory of `value`."""
        return bool(self._load().has_writers(value))

    @cached_property
    def reshaped(self) -> frozenset[int]:
        """The unique numbers of the values that may share memory with a tensor whose shape is changed in place."""
        values = [value for node in nodes_of(self._graph) for value in reshaped_values(node)]
        return frozenset().union(*map(self.of, values))

    def of(self, value: Value) -> frozenset[int]:
        """Return the unique numbers of the values that may share memory with `value`, itself included."""
        name = value.unique()
        if name not in self._names:
            self._names[name] = self._found(value)
        return self._names[name]

    def when_written(self, node: Node, value: Value) -> frozenset[int]:
        """Return the unique numbers of the values that may share memory with `value` whenever `node` writes into it.

        torch takes all members of all lists for one. What is made nearby, and put into a list only after the write, shares its memory
        with none of them then.
        """
        root = value
        while (maker := root.node()).kind() not in MAKES_MEMORY:
            if not _is_view(maker):
                return self.of(value)
            root = next(iter(maker.inputs()))
        block = maker.owningBlock()
        end = _ancestor(node, block)
        values = [root]
        for one in values:
            for use in one.uses():
                if _ancestor(use.user, block).isAfter(end) or use.user.kind() in _READS_ITS_TYPE:
                    continue
                overload = overload_of(use.user) if use.user.kind().startswith("aten::") else None
                if overload is None or _KEEPS_IT in use.user.schema():
                    return self.of(value)
                if may_alias(overload) or use.user.kind() in RETURNS_ITS_ARGUMENT:
                    results = outputs_of(use.user)
                    if any(result.type().kind() != "TensorType" for result in results):
                        return self.of(value)
                    known = {item.unique() for item in values}
                    values.extend(result for result in results if result.unique() not in known)
        return frozenset(item.unique() for item in values)

    def _found(self, value: Value) -> frozenset[int]:
        database, links = self._load(), self._unannounced()
        names: set[int] = set()
        waiting = [value]
        while waiting:
            one = waiting.pop()
            near = {other.unique() for other in _tensor_values(self._graph) if database.may_contain_alias(one, other)} | {one.unique()}
            names |= near
            waiting.extend(
                other for pair in links for this, other in (pair, pair[::-1]) if this.unique() in near and other.unique() not in names
            )
        return frozenset(names)

    def _unannounced(self) -> list[tuple[Value, Value]]:
        """Return the results and arguments that may be one tensor although the schema of the operator does not say so."""
        nodes = [node for node in nodes_of(self._graph) if node.kind() in RETURNS_ITS_ARGUMENT]
        return [(next(iter(node.outputs())), next(iter(node.inputs()))) for node in nodes]


def _is_view(node: Node) -> bool:
    """Return whether a node makes a view of its first input, or returns it."""
    overload = overload_of(node) if node.kind().startswith("aten::") else None
    return overload is not None and may_alias(overload) and next(iter(node.inputs())).type().kind() == "TensorType"


def _ancestor(node: Node, block: Block) -> Node:
    """Return the node of `block` that a node is, or is inside of."""
    while node.owningBlock() is not block:
        node = node.owningBlock().owningNode()
    return node


def _tensor_values(graph: Graph) -> list[Value]:
    values = list(graph.inputs())
    blocks = [graph.return_node().owningBlock()]
    while blocks:
        block = blocks.pop()
        for node in block.nodes():
            values.extend(value for value in outputs_of(node) if node.kind() != "prim::Constant" or value.type().kind() == "TensorType")
            for inner in blocks_of(node):
                values.extend(inner.inputs())
                blocks.append(inner)
    return values

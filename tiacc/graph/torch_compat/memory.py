"""Which values of a TorchScript graph may share memory: torch's own analysis, and what that does not say."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from tiacc.graph.torch_compat.scripts import Graph, Value, nodes_of, reshaped_values

RETURNS_ITS_ARGUMENT = frozenset(
    {f"aten::{kind}dropout" for kind in ("", "feature_", "alpha_", "feature_alpha_")} | {"aten::type_as", "aten::_unsafe_view"}
)
"""The operators that may return their first argument, or a view of it, without saying so in their schema."""


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


def _tensor_values(graph: Graph) -> list[Value]:
    values = list(graph.inputs())
    blocks = [graph.return_node().owningBlock()]
    while blocks:
        block = blocks.pop()
        for node in block.nodes():
            values.extend(value for value in node.outputs() if node.kind() != "prim::Constant" or value.type().kind() == "TensorType")
            for inner in node.blocks():
                values.extend(inner.inputs())
                blocks.append(inner)
    return values

"""The optimized model's graph as the report holds it: every operator with its type, place and segment, in text that stays small.

A graph of 5,000 operators is some 300 kB of JSON: all strings are in one table, and a node is a line of numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from tiacc.graph import specs
from tiacc.graph.module_paths import paths_of

if TYPE_CHECKING:
    from tiacc.backends.partitioner import Partition

GRAPH_VERSION = 1

IN_TORCH = -1
"""The segment of what no engine runs."""


@dataclass(frozen=True)
class GraphNode:
    """An operator, or an input or the output of a region.

    Attributes:
        op: The overload, ``"aten.conv2d.default"``; or ``"input"``, ``"output"``, ``"getitem"``.
        name: Its name in the graph.
        type: What it computes, ``"float32[1, 64, h=8..64, 8]"``; several types are joined by ``"; "``.
        path: The module that it belongs to, ``"layer1.0"``, or an empty string.
        source: File and line of the TorchScript source, or an empty string.
        weights: The types of the constants that it reads.
        region: The index of its region.
        segment: The index of its segment in the region, or `IN_TORCH`.
        inputs: The places in the list of nodes of those whose values it reads.
    """

    op: str
    name: str
    type: str
    path: str
    source: str
    weights: str
    region: int
    segment: int
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class ModelGraph:
    """The nodes of all regions, in the order in which they run.

    Attributes:
        strings: Every text that a node has, once.
        nodes: One line a node: the places of its six texts in `strings`, region, segment, and the nodes that it reads, all separated by
            spaces. `rows` reads them.
        version: Of this form.
    """

    strings: list[str] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)
    version: int = GRAPH_VERSION

    @classmethod
    def of(cls, rows: Iterable[GraphNode]) -> ModelGraph:
        """Return the graph of these nodes."""
        places: dict[str, int] = {}
        lines = []
        for row in rows:
            texts = (row.op, row.name, row.type, row.path, row.source, row.weights)
            numbers = (*(places.setdefault(text, len(places)) for text in texts), row.region, row.segment, *row.inputs)
            lines.append(" ".join(map(str, numbers)))
        return cls(list(places), lines)

    def rows(self) -> Iterator[GraphNode]:
        """Yield the nodes."""
        for line in self.nodes:
            numbers = list(map(int, line.split()))
            op, name, type_, path, source, weights = (self.strings[place] for place in numbers[:6])
            yield GraphNode(op, name, type_, path, source, weights, numbers[6], numbers[7], tuple(numbers[8:]))


def nodes_of(gm: fx.GraphModule, partition: Partition, region: int, built: Collection[int], first: int = 0) -> list[GraphNode]:
    """Return the nodes of a region in the order in which they run. Constants and the arithmetic on sizes are left out.

    Args:
        gm: Its graph.
        partition: Which segments it has.
        region: Its index.
        built: The indices of the segments that have engines; the others run in Torch.
        first: The place of its first node in the list of all nodes.
    """
    segment_of = {node: item.index for item in partition.segments if item.index in built for node in item.nodes}
    order: list[fx.Node] = [node for node in gm.graph.nodes if node.op == "placeholder"]
    for item in partition.order:
        order.extend([item] if isinstance(item, fx.Node) else item.nodes)
    return _rows(gm, [*order, gm.graph.output_node()], segment_of, region, first)


def graph_of(gm: fx.GraphModule, segment_of: Mapping[fx.Node, int]) -> ModelGraph:
    """Return a graph that is not partitioned, in its own order.

    Args:
        gm: The graph.
        segment_of: The number by which each node is coloured; `IN_TORCH` where it has none.
    """
    return ModelGraph.of(_rows(gm, [node for node in gm.graph.nodes if node.op != "get_attr"], segment_of, 0, 0))


def _rows(
    gm: fx.GraphModule, order: Sequence[fx.Node], segment_of: Mapping[fx.Node, int], region: int, first: int
) -> list[GraphNode]:
    paths = paths_of(gm)
    order = [node for node in order if not specs.is_scalar(node)]
    places = {node: first + index for index, node in enumerate(order)}
    return [
        GraphNode(
            op=_op(node),
            name=node.name,
            type="" if node.op == "output" else _type(node.meta.get("val")),
            path=paths.get(node, ""),
            source=node.meta.get("source", ""),
            weights="; ".join(_type(item.meta.get("val")) for item in node.all_input_nodes if item.op == "get_attr"),
            region=region,
            segment=segment_of.get(node, IN_TORCH),
            inputs=tuple(places[item] for item in node.all_input_nodes if item in places),
        )
        for node in order
    ]


def _op(node: fx.Node) -> str:
    if node.op == "placeholder":
        return "input"
    if node.op == "output":
        return "output"
    return "getitem" if node.target is operator.getitem else str(node.target)


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return str(specs.spec_of(value))
    if isinstance(value, (list, tuple)):
        return "; ".join(map(_type, value))
    return type(value).__name__

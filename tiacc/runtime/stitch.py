"""Segments → engines → a graph that calls them."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from tiacc.backends.base import BuildSpec
from tiacc.backends.partitioner import Partition, Segment, numbers_of
from tiacc.graph import specs, torch_compat


@dataclass(frozen=True)
class Border:
    """What a segment shares with the rest of its graph.

    Attributes:
        inputs: The nodes before it whose values it reads, constants and sizes excepted.
        outputs: The nodes in it whose values others read.
    """

    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]

    @property
    def border_bytes(self) -> int:
        """The size of its inputs and outputs together, at the usual sizes of dimensions that vary."""
        values = [specs.tensor_of(node) for node in (*self.inputs, *self.outputs)]
        return sum(math.prod(specs.spec_of(value).sizes()) * value.element_size() for value in values)


@dataclass(frozen=True)
class Subgraph(Border):
    """A segment as a graph of its own, with a placeholder for each input.

    Attributes:
        graph: What a backend builds from; each constant is held by it.
    """

    graph: fx.GraphModule


@dataclass(frozen=True)
class StitchedEngine:
    """An engine ready to be called from a graph.

    Attributes:
        subgraph: What it computes.
        backend: The name of its backend.
        blob: Its envelope.
        key: The digest of the envelope.
        spec: What it was built for.
    """

    subgraph: Subgraph
    backend: str
    blob: torch.Tensor
    key: str
    spec: BuildSpec | None = None


def extract(gm: fx.GraphModule, partition: Partition, segments: Sequence[Segment] | None = None) -> list[Subgraph]:
    """Copy segments out as graphs of their own.

    Args:
        gm: The graph that was partitioned; it is not changed.
        partition: The proposal.
        segments: Those to copy; all of them unless given.
    """
    chosen = partition.segments if segments is None else segments
    return [_extract(gm, segment, border) for segment, border in zip(chosen, borders(gm, partition, chosen))]


def borders(gm: fx.GraphModule, partition: Partition, segments: Sequence[Segment]) -> list[Border]:
    """Return the borders of segments of a partition of `gm`."""
    inside = {node: segment.index for segment in partition.segments for node in segment.nodes}
    needed = _needed_elsewhere(gm, partition, inside)
    found = []
    for segment in segments:
        inputs = tuple(node for node in _read(_body(segment)) if node.op != "get_attr")
        found.append(Border(inputs, tuple(node for node in segment.nodes if node in needed)))
    return found


def _body(segment: Segment) -> list[fx.Node]:
    """Return the nodes of a segment, and the arithmetic on sizes that they need, in order."""
    return sorted((*numbers_of(segment.nodes), *segment.nodes))


def _read(body: list[fx.Node]) -> list[fx.Node]:
    """Return the nodes, none of `body`, that it reads, each once and in the order in which it does."""
    own = set(body)
    return list(dict.fromkeys(before for node in body for before in node.all_input_nodes if before not in own))


def _needed_elsewhere(gm: fx.GraphModule, partition: Partition, inside: dict[fx.Node, int]) -> set[fx.Node]:
    """Return the nodes of segments that something outside of their segment reads, sizes included."""
    needed: set[fx.Node] = set()
    for segment in partition.segments:
        for node in (*numbers_of(segment.nodes), *segment.nodes):
            needed.update(before for before in node.all_input_nodes if inside.get(before, segment.index) != segment.index)
    outer = [node for node in gm.graph.nodes if node.op == "output" or (node.op == "call_function" and node not in inside)]
    live = [node for node in outer if not specs.is_scalar(node)]
    for node in (*live, *numbers_of(live)):
        needed.update(before for before in node.all_input_nodes if before in inside)
    return needed


def _extract(gm: fx.GraphModule, segment: Segment, border: Border) -> Subgraph:
    graph = fx.Graph()
    root = torch.nn.Module()
    copies: dict[fx.Node, fx.Node] = {}
    body = _body(segment)
    for node in _read(body):
        if node.op == "get_attr":
            name = str(node.target).replace(".", "_")
            root.register_buffer(name, specs.fetch_attr(gm, str(node.target)))
            copies[node] = graph.get_attr(name)
        else:
            copies[node] = graph.placeholder(node.name)
        copies[node].meta = dict(node.meta)
    for node in body:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in border.outputs))
    subgraph = torch_compat.graph_module(root, graph)
    subgraph.meta["fake_mode"] = specs.fake_mode_of(gm)
    return Subgraph(border.inputs, border.outputs, subgraph)


def stitch(gm: fx.GraphModule, partition: Partition, engines: dict[int, StitchedEngine]) -> fx.GraphModule:
    """Return a graph in which each segment that has an engine is a call of it, and the other nodes are as they were.

    Args:
        gm: The graph that was partitioned; it is not changed.
        partition: The proposal.
        engines: The engine of each segment that was built, by the segment's index.
    """
    graph = fx.Graph()
    root = torch.nn.Module()
    copies: dict[fx.Node, fx.Node] = {}

    def copy(node: fx.Node) -> None:
        copies[node] = graph.node_copy(node, copies.__getitem__)

    for node in gm.graph.nodes:
        if node.op == "placeholder":
            copy(node)
    in_engines = {node for index in engines for node in partition.segments[index].nodes}
    for node in gm.graph.nodes:
        if node.op == "get_attr" and any(user not in in_engines for user in node.users):
            root.register_buffer(str(node.target), specs.fetch_attr(gm, str(node.target)))
            copy(node)
    for item in partition.order:
        if isinstance(item, Segment) and item.index in engines:
            _call_engine(graph, root, item.index, engines[item.index], copies)
            continue
        for member in item.nodes if isinstance(item, Segment) else (item,):
            for node in (*numbers_of((member,)), member):
                # An input is missing for sizes that only engines compute with.
                if node not in copies and all(before in copies for before in node.all_input_nodes):
                    copy(node)
    output = next(node for node in reversed(gm.graph.nodes) if node.op == "output")
    graph.output(fx.map_arg(output.args[0], copies.__getitem__))
    stitched = torch_compat.graph_module(root, graph)
    stitched.graph.eliminate_dead_code()
    stitched.recompile()
    stitched.meta["fake_mode"] = specs.fake_mode_of(gm)
    return stitched


def _call_engine(
    graph: fx.Graph, root: torch.nn.Module, index: int, engine: StitchedEngine, copies: dict[fx.Node, fx.Node]
) -> None:
    name = f"engine_{index}"
    root.register_buffer(name, engine.blob)
    blob = graph.get_attr(name)
    inputs = [copies[node] for node in engine.subgraph.inputs]
    call = graph.call_function(torch.ops.tiacc.run_engine.default, (inputs, blob, engine.backend, engine.key))
    call.meta["val"] = [node.meta["val"] for node in engine.subgraph.outputs]
    for place, node in enumerate(engine.subgraph.outputs):
        copies[node] = graph.call_function(operator.getitem, (call, place))
        copies[node].meta = dict(node.meta)

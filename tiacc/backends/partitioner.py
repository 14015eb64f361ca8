"""Which backend runs which nodes.

Each node goes to the first backend, in priority order, that supports it; nodes of one backend that can run together form a segment.
The partitioner proposes and changes nothing.

Segments come from a schedule: run every node that can run and belongs to no backend; then pick the backend with most nodes ready, and
run all of its nodes that can run, and those that become ready by it; these are a segment; and so on. Whatever the schedule runs in one
go needs nothing that comes later, so a segment is convex and the graph of segments acyclic by construction, in time linear in nodes
and edges.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import fx

from tiacc.backends.base import Backend, Fault, asked
from tiacc.graph import specs


@dataclass(frozen=True)
class Segment:
    """Nodes that one engine will run.

    Attributes:
        index: Its number, in the order of execution.
        backend: The name of its backend.
        nodes: Its nodes in topological order.
    """

    index: int
    backend: str
    nodes: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Rejection:
    """A node that stays in torch.

    Attributes:
        node: The node.
        reasons: Why each backend left it, by the backend's name.
        source: Its line of TorchScript source, or an empty string.
    """

    node: fx.Node
    reasons: dict[str, str]
    source: str


@dataclass(frozen=True)
class Partition:
    """A proposal.

    Attributes:
        segments: The segments, in the order of execution.
        rejections: The nodes in none, in the order of the graph.
        order: Segments and single nodes, in an order in which they can run.
        faults: What was wrong with the first answer that a backend did not give as it should, by its name.
    """

    segments: tuple[Segment, ...]
    rejections: tuple[Rejection, ...]
    order: tuple[Segment | fx.Node, ...]
    faults: Mapping[str, str] = field(default_factory=dict)


def partition(gm: fx.GraphModule, backends: Sequence[Backend], *, min_segment_nodes: int = 1) -> Partition:
    """Assign the nodes of a graph to backends.

    Args:
        gm: A graph over aten overloads, every node with its value.
        backends: In order of priority.
        min_segment_nodes: Segments of fewer operators are left in torch.
    """
    owner: dict[fx.Node, str | None] = {}
    refused: dict[fx.Node, dict[str, str]] = {}
    faults: dict[str, str] = {}
    for node in gm.graph.nodes:
        if node.op != "call_function" or specs.is_scalar(node):
            continue
        if node.target is operator.getitem:
            owner[node] = owner[node.args[0]]
            continue
        owner[node], refused[node] = _choose(node, backends, faults)
    order: list[Segment | fx.Node] = []
    segments: list[Segment] = []
    rejections: dict[fx.Node, Rejection] = {}
    positions = {node: place for place, node in enumerate(gm.graph.nodes)}
    for backend, nodes in _schedule(gm, owner):
        nodes.sort(key=positions.__getitem__)
        operators = sum(node.target is not operator.getitem for node in nodes)
        if backend is not None and operators >= min_segment_nodes:
            segments.append(Segment(len(segments), backend, tuple(nodes)))
            order.append(segments[-1])
            continue
        order.extend(nodes)
        for node in nodes:
            if node in refused:
                reasons = refused[node]
                if backend is not None:
                    reasons = {**reasons, backend: f"its segment would have {operators} operators, fewer than {min_segment_nodes}"}
                rejections[node] = Rejection(node, reasons, node.meta.get("source", ""))
    rejected = tuple(rejections[node] for node in gm.graph.nodes if node in rejections)
    return Partition(tuple(segments), rejected, tuple(order), faults)


def without(partition: Partition, reasons: Mapping[int, str]) -> Partition:
    """Return a partition in which some segments are none: their nodes stay in torch.

    Args:
        partition: The proposal; it is not changed.
        reasons: Why, by the index of the segment.
    """
    segments: list[Segment] = []
    order: list[Segment | fx.Node] = []
    rejections = {found.node: found for found in partition.rejections}
    for item in partition.order:
        if not isinstance(item, Segment):
            order.append(item)
        elif item.index not in reasons:
            segments.append(replace(item, index=len(segments)))
            order.append(segments[-1])
        else:
            order.extend(item.nodes)
            for node in item.nodes:
                if node.target is not operator.getitem:
                    reason = {item.backend: reasons[item.index]}
                    rejections[node] = Rejection(node, reason, node.meta.get("source", ""))
    return Partition(tuple(segments), tuple(rejections[node] for node in sorted(rejections)), tuple(order), partition.faults)


def _choose(node: fx.Node, backends: Sequence[Backend], faults: dict[str, str]) -> tuple[str | None, dict[str, str]]:
    """Return the name of the first backend that takes a node, and why those before it do not; note faults of theirs."""
    reasons: dict[str, str] = {}
    loose = _number_from_outside(node)
    for backend in backends:
        if loose is not None:
            reasons[backend.name] = f"it needs the number {loose.name}, which is not computed from a tensor of the graph"
            continue
        support = asked(backend, "supports", node)
        if support:
            return backend.name, reasons
        if isinstance(support, Fault):
            faults.setdefault(backend.name, support.reason)
        reasons[backend.name] = support.reason
    return None, reasons


def _number_from_outside(node: fx.Node) -> fx.Node | None:
    """Return a number that a node needs and that is an input of the graph: an engine takes tensors only."""
    pending = [item for item in node.all_input_nodes if not specs.is_tensor(item)]
    seen: set[fx.Node] = set()
    while pending:
        item = pending.pop()
        if item in seen:
            continue
        seen.add(item)
        if item.op == "placeholder":
            return item
        if specs.is_scalar(item):
            pending.extend(before for before in item.all_input_nodes if not specs.is_tensor(before))
    return None


def _schedule(gm: fx.GraphModule, owner: dict[fx.Node, str | None]) -> list[tuple[str | None, list[fx.Node]]]:
    """Return batches of nodes of one owner each, in an order in which they can run. Numbers run as soon as they can, with no owner."""
    waiting: dict[fx.Node, int] = {}
    ready: dict[str | None, deque[fx.Node]] = {None: deque()}
    for node in gm.graph.nodes:
        if node.op == "call_function":
            waiting[node] = sum(before.op == "call_function" for before in node.all_input_nodes)
            if not waiting[node]:
                ready.setdefault(owner.get(node), deque()).append(node)
    batches: list[tuple[str | None, list[fx.Node]]] = []
    while any(ready.values()):
        backend = None if ready[None] else max(ready, key=lambda name: len(ready[name]))
        numbers: list[fx.Node] = []
        batch: list[fx.Node] = []
        while ready[backend]:
            node = ready[backend].popleft()
            batch.append(node)
            for after in node.users:
                if after.op != "call_function":
                    continue
                waiting[after] -= 1
                if waiting[after]:
                    continue
                if after in owner:
                    ready.setdefault(owner[after], deque()).append(after)
                elif backend is None:
                    ready[None].append(after)
                else:
                    numbers.append(after)
                    _run_numbers(numbers, waiting, owner, ready)
        batches.append((backend, batch))
        if numbers:
            batches.append((None, numbers))
    return batches


def _run_numbers(
    numbers: list[fx.Node],
    waiting: dict[fx.Node, int],
    owner: dict[fx.Node, str | None],
    ready: dict[str | None, deque[fx.Node]],
) -> None:
    """Run the last of `numbers`, and those that only waited for it; a segment computes the numbers that it needs itself."""
    pending = [numbers[-1]]
    while pending:
        number = pending.pop()
        for after in number.users:
            if after.op != "call_function":
                continue
            waiting[after] -= 1
            if waiting[after]:
                continue
            if after in owner:
                ready.setdefault(owner[after], deque()).append(after)
            else:
                numbers.append(after)
                pending.append(after)


def numbers_of(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Return the arithmetic on sizes that `nodes` need, in topological order."""
    found: dict[fx.Node, None] = {}
    pending = [(item, False) for node in reversed(nodes) for item in reversed(node.all_input_nodes) if specs.is_scalar(item)]
    while pending:
        item, is_done = pending.pop()
        if item in found:
            continue
        if is_done:
            found[item] = None
            continue
        pending.append((item, True))
        pending.extend((before, False) for before in item.all_input_nodes if specs.is_scalar(before))
    return list(found)


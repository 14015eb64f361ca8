"""Which segments pay: what their operators take in Torch, against what a call of an engine takes beside them.

The estimates are rough, and on the side of engines: an engine is much faster than Torch at what it does. They part the handful of small
operators between two that no backend takes from the layers of a network. A model whose only segments are such handfuls keeps them: the
measurement tells whether they pay.
"""

from __future__ import annotations

from collections.abc import Sequence

from tiacc.backends import partitioner
from tiacc.backends.base import Backend
from tiacc.backends.partitioner import Partition, Segment
from tiacc.graph.flops import elements_of, flops_of

OPERATOR_US = 3.0
"""What a call of an operator takes in Torch beside its work, in microseconds."""

FLOPS_PER_US = 20_000
"""How fast Torch computes products, in floating-point operations a microsecond."""

ELEMENTS_PER_US = 1000
"""How fast it does all else, in elements a microsecond."""


def microseconds_in_torch(segment: Segment) -> float:
    """Return about what the operators of a segment take in Torch, at the sizes that engines are fastest at."""
    total = 0.0
    for node in segment.nodes:
        flops, elements = flops_of(node), elements_of(node)
        total += OPERATOR_US + (flops / FLOPS_PER_US if flops > elements else elements / ELEMENTS_PER_US)
    return total


def that_pay(partitions: Sequence[Partition], backends: Sequence[Backend]) -> list[Partition]:
    """Return the partitions of a model's regions without the segments that take less in Torch than a call of their engine does at least.

    Args:
        partitions: One a region.
        backends: Those that the segments are for; one with an attribute ``call_us`` says by it what a call of its engines takes, in
            microseconds, beside the work.
    """
    calls = {backend.name: float(getattr(backend, "call_us", 0.0)) for backend in backends}
    if sum(len(partition.segments) for partition in partitions) < 2:
        return list(partitions)
    small: list[dict[int, str]] = []
    for partition in partitions:
        small.append({})
        for segment in partition.segments:
            saved = microseconds_in_torch(segment) if calls[segment.backend] else 0.0
            if saved < calls[segment.backend]:
                small[-1][segment.index] = (
                    f"its segment of {len(segment.nodes)} operators takes about {saved:.0f} µs in Torch, and a call of an engine "
                    f"{calls[segment.backend]:.0f} µs beside its work"
                )
    if all(len(found) == len(partition.segments) for found, partition in zip(small, partitions)):
        return list(partitions)
    return [partitioner.without(partition, found) if found else partition for partition, found in zip(partitions, small)]


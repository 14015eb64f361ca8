"""Where each buffer but the constants is in the memory of a program: two share a place if they are never needed at the same time."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from tiacc.backends.cudnn.program import CONSTANT, Buffer, Program

ALIGNMENT = 256
"""What places are multiples of, in bytes: kernels read whole cache lines."""


@dataclass(frozen=True)
class MemoryPlan:
    """The places of buffers.

    Attributes:
        offsets: Of each buffer, in bytes.
        size_bytes: How much memory is needed in all.
        total_bytes: What it would be without sharing.
    """

    offsets: dict[Buffer, int]
    size_bytes: int
    total_bytes: int


def assign(program: Program) -> MemoryPlan:
    """Give each buffer a place, the largest first, each at the lowest place that is free while it is needed.

    Source: greedy by size, Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020 (arXiv:2001.03288).
    """
    spans = lifetimes(program)
    offsets: dict[Buffer, int] = {}
    placed: list[tuple[int, int, int, int]] = []  # begin, end of life; begin, end of place
    for buffer in sorted(spans, key=lambda item: (-item.size_bytes, spans[item])):
        begin, end = spans[buffer]
        size = -(-buffer.size_bytes // ALIGNMENT) * ALIGNMENT
        taken = [(low, high) for first, last, low, high in placed if first <= end and begin <= last]
        heapq.heapify(taken)
        place = 0
        while taken:
            low, high = heapq.heappop(taken)
            if low - place >= size:
                break
            place = max(place, high)
        offsets[buffer] = place
        placed.append((begin, end, place, place + size))
    return MemoryPlan(offsets, max((high for *_, high in placed), default=0), sum(buffer.size_bytes for buffer in spans))


def lifetimes(program: Program) -> dict[Buffer, tuple[int, int]]:
    """Return the first and last step that each buffer is needed by; inputs are there before the first, outputs to the end."""
    spans: dict[Buffer, tuple[int, int]] = {entry.ref.buffer: (-1, -1) for entry in program.inputs if entry is not None}
    for index, step in enumerate(program.steps):
        for ref in step.refs():
            if ref.buffer.kind != CONSTANT:
                first, _ = spans.get(ref.buffer, (index, index))
                spans[ref.buffer] = (first, index)
    for ref, _ in program.outputs:
        if ref.buffer.kind != CONSTANT:
            first, _ = spans.get(ref.buffer, (-1, -1))
            spans[ref.buffer] = (first, len(program.steps))
    return spans

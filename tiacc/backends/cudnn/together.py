"""Steps that follow each other and do not depend on each other, as the heads of a detector: their kernels may be one launch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from tiacc.backends.cudnn.memory_plan import MemoryPlan
from tiacc.backends.cudnn.program import CONSTANT, Buffer, ConvStep, Program, Step

MOST = 8
"""How many steps are in one launch at most."""


def runs(program: Program, memory: MemoryPlan) -> list[range]:
    """Return the runs of two and more convolutions, of which none reads what another writes, nor is where another is.

    Args:
        program: The steps.
        memory: Where their buffers are.
    """
    found: list[range] = []
    run: list[int] = []
    for place, step in enumerate(program.steps):
        if not (run and len(run) < MOST and _is_apart(program, memory, run, step)):
            found.append(range(run[0], place) if run else range(0))
            run = []
        if isinstance(step, ConvStep):
            run.append(place)
    found.append(range(run[0], len(program.steps)) if run else range(0))
    return [item for item in found if len(item) > 1]


def _is_apart(program: Program, memory: MemoryPlan, places: Sequence[int], step: Step) -> bool:
    """Return whether a step may run at the same time as some before it."""
    return isinstance(step, ConvStep) and not any(
        _touch(memory, one.out.buffer, ref.buffer)
        for place in places
        for one, other in itertools.permutations((step, program.steps[place]))
        if isinstance(one, ConvStep)
        for ref in other.refs()
        if ref.buffer.kind != CONSTANT
    )


def _touch(memory: MemoryPlan, one: Buffer, other: Buffer) -> bool:
    begin, start = memory.offsets[one], memory.offsets[other]
    return begin < start + other.size_bytes and start < begin + one.size_bytes

"""Whether the kernels of a program wait for what they read.

Kernels of libraries may begin while the one before them ends, and rely on each other to wait in time. Not all do: a fused convolution of
cuDNN 9.19 reads what it adds to its sums before the convolution that writes it is done. A step that is timed alone shows nothing of it,
so the program as a whole is held against what its steps compute one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tiacc.backends.cudnn.executable import Executable
from tiacc.backends.cudnn.program import Ref, TorchStep

RUNS = 3
"""How often a graph is run: a race is not lost each time."""

TOLERANCE = 5e-3
"""The relative error that sums in another order may have, carried through a network in half precision."""


def first_wrong(executable: Executable, inputs: Sequence[torch.Tensor]) -> int | None:
    """Return the first step whose result is another when the steps follow each other at once; None if there is none.

    Args:
        executable: A program that is bound.
        inputs: What it is run on.
    """
    right, wrong = 0, len(executable.calls)
    if not wrong or _agree(executable, inputs, wrong, [ref for ref, _ in executable.program.outputs]):
        return None
    while wrong - right > 1:
        middle = (right + wrong) // 2
        step = executable.program.steps[middle - 1]
        if _agree(executable, inputs, middle, step.outs if isinstance(step, TorchStep) else (step.out,)):
            right = middle
        else:
            wrong = middle
    return wrong - 1


def _agree(executable: Executable, inputs: Sequence[torch.Tensor], count: int, results: Sequence[Ref]) -> bool:
    """Return whether the first steps give the same results in a graph as one by one."""
    executable.fill(inputs)
    for call in executable.calls[:count]:
        call()
        executable.wait()
    wanted = [executable.read(ref).clone() for ref in results]
    graph = executable.recorded(count)
    for _ in range(RUNS):
        executable.poison()
        executable.fill(inputs)
        graph.replay()
        if not all(is_same(executable.read(ref), value) for ref, value in zip(results, wanted)):
            return False
    return True


def is_same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Return whether two tensors differ by no more than rounding; what is no number is so in both."""
    if not wanted.is_floating_point():
        return torch.equal(found, wanted)
    one, other = found.float(), wanted.float()
    finite = one.isfinite()
    if not torch.equal(finite, other.isfinite()):
        return False
    one, other = (torch.where(finite, value, 0.0) for value in (one, other))
    return bool((one - other).norm() <= TOLERANCE * other.norm())

"""Steps that do not depend on each other, and one launch of their kernels."""

from __future__ import annotations

import os

import pytest
import torch
from torch import fx

from tests.backends.cudnn.programs import CPU, aten, block, error, planned
from tests.helpers import Sketch, random_inputs
from tiacc.backends.cudnn import memory_plan, tactics, together
from tiacc.backends.cudnn.executable import Executable
from tiacc.backends.cudnn.naming import key_of
from tiacc.backends.cudnn.program import Program


def heads(*channels: int) -> fx.GraphModule:
    """Return point-wise convolutions of one image, of which the first has a sigmoid behind it."""
    sketch = Sketch()
    x = sketch.input("x", 2, 24, 9, 7)
    outputs = []
    for index, count in enumerate(channels):
        weight, bias = sketch.constant(f"w{index}", torch.randn(count, 24, 1, 1)), sketch.constant(f"b{index}", torch.randn(count))
        outputs.append(sketch.call(aten.conv2d.default, x, weight, bias))
    outputs[0] = sketch.call(aten.sigmoid.default, outputs[0])
    return sketch.output(*outputs)


def runs_of(program: Program) -> list[range]:
    return together.runs(program, memory_plan.assign(program))


def test_heads_do_not_depend_on_each_other() -> None:
    assert runs_of(planned(heads(20, 2, 3))) == [range(3)]
    assert runs_of(planned(block())) == []


def test_long_runs_are_cut() -> None:
    assert runs_of(planned(heads(*[2] * (together.MOST + 2)))) == [range(together.MOST), range(together.MOST, together.MOST + 2)]


def test_steps_that_share_memory_are_apart() -> None:
    program = planned(heads(20, 2))
    plan = memory_plan.assign(program)
    (first, second) = (step.out.buffer for step in program.steps)
    shared = memory_plan.MemoryPlan({**plan.offsets, second: plan.offsets[first]}, plan.size_bytes, plan.total_bytes)
    assert together.runs(program, plan) == [range(2)]
    assert together.runs(program, shared) == []


def test_tactics_by_which_kernels_are_alike() -> None:
    program = planned(heads(20, 2))
    one, other = program.steps
    cache = tactics.TacticCache(None, "this GPU")
    cache.add(one, [(5.0, "triton:64,32,64,4,2,0,1"), (6.0, "triton:64,64,64,8,3,0,1"), (4.0, "triton:64,64,64,8,3,0,2")])
    cache.add(other, [(2.0, "cudnn:0"), (3.0, "triton:64,16,64,4,2,0,1"), (2.5, "triton:16,16,64,8,3,0,1"), (9.0, "torch")])
    chosen = {key_of(one): "triton:64,64,64,8,3,0,2", key_of(other): "cudnn:0"}
    found = tactics.alike(program, [range(2)], chosen, cache)
    assert found == {key_of(one): "triton:64,32,64,4,2,0,1", key_of(other): "triton:64,16,64,4,2,0,1"}
    assert tactics.alike(program, [range(2)], found, cache) is None
    assert tactics.alike(program, [], chosen, cache) is None


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="this runs in Triton's interpreter, on the CPU")
def test_one_launch_does_the_work_of_all() -> None:
    gm = heads(20, 2, 3)
    inputs = random_inputs(gm)
    program = planned(gm)
    executable = Executable(program, {}, {}, CPU)
    tiles = ("triton:16,32,32,4,2,0,1", "triton:32,16,16,4,2,0,1", "triton:16,16,32,4,2,0,1")
    executable.bind({key_of(step): tile for step, tile in zip(program.steps, tiles, strict=True)})
    assert len(executable._kernels) == 1
    executable._bytes.fill_(0xFF)
    executable.fill(inputs)
    executable.steps(1)
    for got, wanted in zip(executable.results(), gm(*inputs), strict=True):
        assert error(got, wanted) < 1e-6

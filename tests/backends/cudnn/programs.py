"""Graphs, their programs, and runs of these on the CPU: shared by the tests of the backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from tests.helpers import Sketch
from tiacc.backends.cudnn import eager
from tiacc.backends.cudnn.executable import Executable
from tiacc.backends.cudnn.planner import plan
from tiacc.backends.cudnn.program import Program, Step

aten = torch.ops.aten
CPU = torch.device("cpu")


def run(program: Program, inputs: Sequence[torch.Tensor], compute: Callable[[Step, Any], None] = eager.compute) -> list[torch.Tensor]:
    """Run a program in its planned memory, which is full of NaN at first."""
    executable = Executable(program, {}, {}, CPU)
    executable._bytes.fill_(0xFF)
    executable.fill(inputs)
    with torch.no_grad():
        for step in program.steps:
            compute(step, executable.read)
    return executable.results()


def planned(gm: fx.GraphModule, *, tf32: bool = False) -> Program:
    """Return the program of a graph; torch on the CPU, which it is compared with, knows no TensorFloat-32."""
    return plan(gm, (tf32, tf32))


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the relative error of the whole."""
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    if not wanted.is_floating_point():
        return float(not torch.equal(got, wanted))
    return float((got.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-12))


def block(dtype: torch.dtype = torch.float32, channels: int = 16) -> fx.GraphModule:
    """Return two convolutions with a shortcut round them, as in a ResNet."""
    sketch = Sketch()
    x = sketch.input("x", 2, channels, 9, 7, dtype=dtype)
    w1, w2 = (sketch.constant(f"w{i}", (0.2 * torch.randn(channels, channels, 3, 3)).to(dtype)) for i in (1, 2))
    bias = sketch.constant("bias", torch.randn(channels).to(dtype))
    hidden = sketch.call(aten.relu.default, sketch.call(aten.conv2d.default, x, w1, bias, [1, 1], [1, 1]))
    out = sketch.call(aten.conv2d.default, hidden, w2, None, [1, 1], [1, 1])
    return sketch.output(sketch.call(aten.relu.default, sketch.call(aten.add.Tensor, out, x)))

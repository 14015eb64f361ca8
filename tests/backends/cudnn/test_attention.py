"""Attention as a step, and its kernel in Triton's interpreter, against torch in float64."""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from tests.backends.cudnn.programs import CPU, aten, error, planned
from tests.helpers import Sketch
from tiacc.backends.cudnn import eager
from tiacc.backends.cudnn.executable import Executable
from tiacc.backends.cudnn.naming import title
from tiacc.backends.cudnn.program import AttentionStep, TorchStep

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="these run in Triton's interpreter, on the CPU")


def sketched(q, k, mask=None, causal=False, scale=None, dtype=torch.float16):
    sketch = Sketch()
    inputs = [sketch.input(name, *shape, dtype=dtype) for name, shape in (("q", q), ("k", k), ("v", k))]
    masks = [sketch.input("mask", *mask[0], dtype=mask[1])] if mask else [None]
    call = sketch.call(
        aten.scaled_dot_product_attention.default, *inputs, *masks, 0.0, causal, scale=scale, enable_gqa=q[1] != k[1]
    )
    return sketch.output(sketch.call(aten.flatten.using_ints, sketch.call(aten.transpose.int, call, 1, 2), 2))


@pytest.mark.parametrize(
    ("q", "k", "mask", "causal", "scale"),
    [
        ((2, 3, 21, 16), (2, 3, 21, 16), None, False, None),
        ((1, 2, 70, 32), (1, 2, 70, 32), None, True, None),
        ((2, 4, 9, 16), (2, 2, 37, 16), None, False, 0.7),
        ((2, 2, 19, 16), (2, 2, 33, 16), ((2, 1, 1, 33), torch.bool), False, None),
        ((2, 2, 19, 16), (2, 2, 33, 16), ((2, 2, 19, 33), torch.float16), False, None),
    ],
)
def test_against_torch(q, k, mask, causal, scale) -> None:
    program = planned(sketched(q, k, mask, causal, scale))
    *copies, step = program.steps  # inputs of four dimensions are laid out as images
    assert isinstance(step, AttentionStep) and {title(copy) for copy in copies} <= {"copy"}
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator).half() for shape in (q, k, k)]
    if mask:
        values = torch.randn(mask[0], generator=generator)
        inputs.append(values > 0 if mask[1] == torch.bool else values.half())
    wanted = F.scaled_dot_product_attention(
        *(item.double() if item.is_floating_point() else item for item in inputs), is_causal=causal, scale=scale, enable_gqa=q[1] != k[1]
    )
    executable = Executable(program, {}, {}, CPU)
    for tactic in executable.bench.tactics(step):
        executable._bytes.fill_(0xFF)
        executable.fill(inputs)
        for copy in copies:
            eager.compute(copy, executable.read)
        executable.bench.bind(step, tactic)()
        (got,) = executable.results()
        assert error(got.float(), wanted.transpose(1, 2).flatten(2).float()) < 2e-3, tactic


def test_rows_that_see_nothing_are_zero_as_in_torch() -> None:
    program = planned(sketched((1, 1, 4, 16), (1, 1, 5, 16), ((1, 1, 4, 5), torch.bool)))
    executable = Executable(program, {}, {}, CPU)
    mask = torch.ones(1, 1, 4, 5, dtype=torch.bool)
    mask[0, 0, 2] = False
    inputs = [torch.randn(1, 1, length, 16).half() for length in (4, 5, 5)]
    executable.fill([*inputs, mask])
    *copies, step = program.steps
    for copy in copies:
        eager.compute(copy, executable.read)
    executable.bench.bind(step, "triton:64,64,4,2")()
    (got,) = executable.results()
    wanted = F.scaled_dot_product_attention(*inputs, mask)
    assert torch.equal(got[0, 2], wanted[0, 0, 2]) and not got[0, 2].any()


def test_float32_and_odd_sizes_are_left_to_torch() -> None:
    for gm in (sketched((1, 2, 5, 16), (1, 2, 5, 16), dtype=torch.float32), sketched((1, 2, 5, 24), (1, 2, 5, 24))):
        assert any(isinstance(step, TorchStep) for step in planned(gm).steps)

"""Every kind of kernel, evaluated by Triton's interpreter, against torch; where there is a GPU, the kernels themselves."""

from __future__ import annotations

import math
import os

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from tests.backends.cudnn.models import subgraph
from tests.backends.cudnn.programs import CPU, block, error, planned, run
from tests.helpers import random_inputs
from tiacc.backends.cudnn import border, eager, folding, kernels, products, tiles
from tiacc.backends.cudnn.body import OPERATIONS, Body, Instruction, evaluate, triton_lines
from tiacc.backends.cudnn.launch import Bench
from tiacc.backends.cudnn.layouts import channels_last_strides, contiguous_strides
from tiacc.backends.cudnn.naming import title
from tiacc.backends.cudnn.program import Buffer, ConvStep, PointwiseStep, Ref, TorchStep
from tiacc.backends.cudnn.tiles import Tile
from tiacc.backends.cudnn.triton_call import TritonCall

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="these run in Triton's interpreter, on the CPU")

SMALL_TILES = (Tile(16, 16, 32, 4, 2), Tile(32, 16, 16, 4, 2, early=True), Tile(16, 32, 32, 4, 2, split=3))


class Everything(nn.Module):
    """Convolutions of all kinds, windows, reductions, rows and element-wise work."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(3, 16, 7, 2, 3), nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.grouped, self.point = nn.Conv2d(16, 32, 3, 2, 1, groups=2), nn.Conv2d(32, 32, 1)
        self.squeeze, self.excite = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)
        self.up, self.dilated = nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.Conv2d(16, 24, 3, 1, 2, dilation=2)
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = torch.relu(self.first(x))
        x = nn.functional.hardswish(self.depthwise(x))
        x = nn.functional.gelu(self.grouped(x))
        x = x * torch.sigmoid(self.excite(nn.functional.silu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        x = torch.relu(self.point(x) + x)
        joined = torch.cat([nn.functional.max_pool2d(x, 3, 2, 1), nn.functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False)], 1)
        x = self.dilated(nn.functional.leaky_relu(self.up(joined[:, 16:48]), 0.1))
        rows = self.norm(x.flatten(2).transpose(1, 2))
        return torch.softmax(self.head(rows), -1), x.amax((2, 3)), nn.functional.avg_pool2d(x, 2, ceil_mode=True)


@pytest.mark.parametrize("level", [0, 1])
def test_every_tactic_of_every_step(level: int) -> None:
    torch.manual_seed(level)
    x = torch.randn(2, 3, 13, 11)
    model = Everything().eval()
    program = planned(subgraph(model, [x], level))
    tolerance = (2e-6, 1e-3)[level]
    seen = []

    def compute(step, read) -> None:
        eager.compute(step, read)
        if isinstance(step, TorchStep):
            return
        out = read(step.out)
        wanted = out.clone()
        bench = Bench(read, {}, CPU)
        tactics = [tactic for tactic in bench.tactics(step) if tactic.startswith("triton")][:2]
        if isinstance(step, ConvStep) and not step.is_depthwise and step.x.shape[1] > tiles.NARROW:
            tactics = [f"triton:{tile}" for tile in SMALL_TILES]
        assert tactics
        for tactic in tactics:
            out.fill_(float("nan"))
            bench.bind(step, tactic)()
            assert error(out.clone(), wanted) < tolerance, (title(step), tactic)
            seen.append(title(step))
        out.copy_(wanted)

    outputs = run(program, [x], compute)
    with torch.no_grad():
        for got, wanted in zip(outputs, model(x), strict=True):
            assert error(got, wanted) < (2e-6, 3e-3)[level]
    assert {"conv7x7+add+relu", "depthwise3x3+add+hardswish", "deconv4x4+add+leaky_relu", "conv3x3+add+gelu", "mean", "max"} <= set(seen)


def nearest_tf32(tensor: torch.Tensor) -> torch.Tensor:
    """Return the nearest numbers with 10 bits behind the point, in float64."""
    mantissa, exponent = torch.frexp(tensor.double())
    return torch.ldexp((mantissa.abs() * 2048 + 0.5).floor().copysign(mantissa), exponent - 11)


def test_operands_are_rounded_to_tensorfloat_32() -> None:
    """Tensor cores cut numbers off, which makes every sum too small; here both operands are numbers that they read whole."""
    gm = block(channels=24)
    inputs = random_inputs(gm)

    def compute(step, read) -> None:
        eager.compute(step, read)
        wanted = torch.nn.functional.conv2d(nearest_tf32(read(step.x)), nearest_tf32(read(step.weight)), None, 1, 1)
        wanted = evaluate(step.body, [wanted.float(), *(read(ref) for ref in step.operands)])
        assert error(wanted, read(step.out)) > 1e-5
        for tile in SMALL_TILES:
            Bench(read, {}, CPU).bind(step, f"triton:{tile}")()
            assert error(read(step.out).clone(), wanted) < 1e-6

    run(planned(gm, tf32=True), inputs, compute)
    found = products.rounded(torch.tensor([float("nan"), float("inf"), -float("inf"), 1 + 2**-11, -1 - 2**-12, 0.0]))
    assert found.tolist()[1:] == [float("inf"), -float("inf"), 1 + 2**-10, -1.0, 0.0] and found[0].isnan()


def test_counters_of_split_sums_are_cleared() -> None:
    gm = block(channels=24)

    def compute(step, read) -> None:
        bench = Bench(read, {}, CPU)
        call = bench.bind(step, f"triton:{SMALL_TILES[2]}")
        for _ in range(2):
            call()
        assert not bench._counters.any()

    inputs = random_inputs(gm)
    assert error(run(planned(gm), inputs, compute)[0], gm(*inputs)[0]) < 1e-6


def tensors_of(out: Ref, source: Ref) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((out.buffer.numel,), float("nan"), dtype=out.dtype), torch.randn(source.buffer.numel).to(source.dtype)


@pytest.mark.parametrize("inwards", [True, False])
def test_images_are_turned_round_at_the_border(inwards: bool) -> None:
    shape = (2, 37, 5, 9)
    refs = [Ref(Buffer("b", 2 * 37 * 45, torch.float16), shape, layout(shape)) for layout in (channels_last_strides, contiguous_strides)]
    out, source = refs if inwards else refs[::-1]
    storages = tensors_of(out, source)
    TritonCall(border.turned(out, source), (2 * 2, 2), list(storages), {"TILE": 32}, 4, 2)()
    assert torch.equal(out.tensor(storages[0]), source.tensor(storages[1]))


@pytest.mark.parametrize("fold", [2, 4])
def test_images_are_folded_at_the_border(fold: int) -> None:
    shape = (2, 3, 8, 12)
    wanted = (2, folding.channels_of(3, fold), 8 // fold, 12 // fold)
    source = Ref(Buffer("b", 576, torch.float32), shape, contiguous_strides(shape))
    out = Ref(Buffer("f", math.prod(wanted), torch.float16), wanted, channels_last_strides(wanted))
    storages = tensors_of(out, source)
    TritonCall(border.folded(out, source, fold), (-(-out.numel // 128),), list(storages), {"BLOCK": 128}, 4, 2)()
    assert torch.equal(out.tensor(storages[0]), folding.image(source.tensor(storages[1]), fold).half())


def test_tensors_that_leave_together() -> None:
    """An image that is turned round, one that is not worth it, a vector, and one of two types: four copies in one launch."""
    shapes = [(2, 37, 5, 9), (2, 2, 16, 16), (3, 11), (2, 40, 8, 8)]
    copies, tensors, pairs = [], [], []
    for shape in shapes:
        strides = channels_last_strides(shape) if len(shape) == 4 else contiguous_strides(shape)
        source = Ref(Buffer("source", math.prod(shape) + 5, torch.float16), shape, strides, 5)
        out = Ref(Buffer("out", math.prod(shape), torch.float32), shape, contiguous_strides(shape))
        storages = tensors_of(out, source)
        copies.append(border._copy(out, source))
        tensors += storages
        pairs.append((out.tensor(storages[0]), source.tensor(storages[1])))
    text = kernels.side_by_side([(copy.text, copy.grid, copy.constants) for copy in copies])
    TritonCall(text, (sum(math.prod(copy.grid) for copy in copies),), tensors, {}, 4, 2)()
    for got, wanted in pairs:
        assert torch.equal(got, wanted.float())


def test_kernels_side_by_side_wait_before_any_of_them_begins() -> None:
    source = Ref(Buffer("source", 300, torch.float16), (300,), (1,))
    out = Ref(Buffer("out", 300, torch.float32), (300,), (1,))
    copy = border._copy(out, source)
    text = kernels.side_by_side([(copy.text, copy.grid, copy.constants)] * 2)
    lines = kernels.overlapped(text, waits=True, triggers=False).splitlines()
    place = next(index for index, line in enumerate(lines) if "gdc_wait" in line)
    assert lines[place - 1].startswith("def kernel(")


@pytest.mark.parametrize("op", sorted(OPERATIONS))
def test_operations_as_kernels_and_as_torch(op: str) -> None:
    """The text of each operation against its function, with zeros, large numbers and NaN among the operands."""
    count = 1 + max(int(part[0]) for part in OPERATIONS[op].triton.split("{")[1:])
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(64, generator=generator) * 3 for _ in range(count)]
    values[0][:4] = torch.tensor([0.0, 9.0, -9.0, float("nan")])
    conditions = {"and": (0, 1), "or": (0, 1), "not": (0,), "number": (0,), "where": (0,)}.get(op, ())
    operands = [value > 0 if place in conditions else value for place, value in enumerate(values)]
    if op in ("log", "sqrt", "rsqrt"):
        operands[0] = operands[0].abs()
    body = Body(count, (Instruction(op, tuple(range(count))),))
    if op in ("leaky_relu", "elu"):
        body = Body(1, (Instruction(op, (0, 0.3)),))
        operands = operands[:1]
    wanted = evaluate(body, operands)
    refs = {}

    def ref(tensor: torch.Tensor) -> Ref:
        made = Ref(Buffer(f"b{len(refs)}", tensor.numel(), tensor.dtype), tuple(tensor.shape), tuple(tensor.stride()))
        refs[made.buffer] = tensor
        return made

    out = torch.zeros_like(wanted)
    step = PointwiseStep(ref(out), tuple(ref(operand) for operand in operands), body)
    Bench(lambda item: item.tensor(refs[item.buffer]), {}, CPU).bind(step, "triton:64,1")()
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert triton_lines(body, [f"a{place}" for place in range(len(operands))])[0]

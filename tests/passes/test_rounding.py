"""Weights whose rounding errors cancel: each rounded up or down, and the layer's mean error gone."""

import pytest
import torch

from tests.helpers import Sketch
from tiacc.passes.base import PassContext
from tiacc.passes.cast_half import CastHalf
from tiacc.passes.rounding import round_together

aten = torch.ops.aten
HALVES = [torch.float16, torch.bfloat16]


def sums(error, channel):
    return error.movedim(channel, 0).flatten(1).sum(1)


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize(("shape", "channel"), [((8, 200), 0), ((64, 16, 3, 3), 0), ((32, 8, 4, 4), 1), ((300, 7), 1)])
def test_errors_of_a_channel_cancel_and_hardly_grow(half, shape, channel):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator) * 0.1
    bias = torch.randn(shape[channel], generator=generator)
    rounded = round_together(weight, half, channel, bias)
    nearest = weight.to(half)
    assert rounded.dtype == half and rounded.stride() == weight.stride()
    error, least = rounded.double() - weight.double(), nearest.double() - weight.double()
    error_of_bias = bias.to(half).double() - bias.double()
    assert (sums(error, channel) + error_of_bias).norm() < 0.25 * (sums(least, channel) + error_of_bias).norm()
    assert error.norm() < 1.1 * least.norm()
    # Up or down, to one of the two neighbours: never further than one step.
    large = torch.maximum(rounded.double().abs(), weight.double().abs())
    one_step = torch.finfo(half).eps * large.clamp(min=torch.finfo(half).smallest_normal)
    assert (error.abs() <= one_step).all()


def test_numbers_of_the_dtype_stay_as_they_are():
    weight = torch.randn(16, 64).bfloat16().float()
    assert torch.equal(round_together(weight, torch.bfloat16).float(), weight)
    assert torch.equal(round_together(torch.zeros(4, 9), torch.float16), torch.zeros(4, 9, dtype=torch.float16))


def test_the_largest_number_is_not_rounded_to_infinity():
    weight = torch.full((2, 40), 65503.0)
    assert round_together(weight, torch.float16).isfinite().all()


@torch.no_grad()
def test_a_layer_behind_a_relu_is_nearer_to_float32():
    generator = torch.Generator().manual_seed(1)
    sketch = Sketch()
    weight = torch.randn(64, 256, generator=generator) / 16
    bias = torch.randn(64, generator=generator)
    x = sketch.input("x", 32, 256)
    gm = sketch.output(sketch.call(aten.linear.default, x, sketch.constant("w", weight), sketch.constant("b", bias)))
    CastHalf(torch.bfloat16)(gm, PassContext())
    x = torch.rand(32, 256, generator=generator)
    exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    nearest = torch.nn.functional.linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16())

    def bias_of(result):
        return (result.double() - exact).mean(0).norm()

    assert bias_of(gm(x)[0]) < 0.7 * bias_of(nearest)

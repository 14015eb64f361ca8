from __future__ import annotations

import operator

import pytest
import torch

from tests.helpers import Dim, Sketch, assert_same, assert_untouched, assert_values_hold, copy_of, lines, state_of
from tiacc.passes.base import Fuel, PassContext
from tiacc.passes.eliminate_dead_code import EliminateDeadCode
from tiacc.passes.fold_batch_norm import FoldBatchNorm

aten = torch.ops.aten
N = Dim("n", 1, 2, 4)


def norm(sketch, x, channels, *, name="bn", target=aten.batch_norm.default, shift=True, affine=True, dtype=torch.float32, eps=1e-3):
    """A batch normalisation with random statistics and parameters."""

    def constant(part, value):
        return sketch.constant(f"{name}_{part}", value.to(dtype))

    weight = constant("weight", torch.randn(channels)) if affine else None
    bias = constant("bias", torch.randn(channels) if shift else torch.zeros(channels)) if affine else None
    mean = constant("mean", torch.randn(channels) if shift else torch.zeros(channels))
    var = constant("var", torch.rand(channels) + 0.2)
    training = () if target is aten._native_batch_norm_legit_no_training.default else (False,)
    more = (True,) if target is aten.batch_norm.default else ()
    y = sketch.call(target, x, weight, bias, mean, var, *training, 0.1, eps, *more, source="net.py:9")
    return y if target is aten.batch_norm.default else sketch.call(operator.getitem, y, 0)


def check(gm, changes=1, *, rtol=1e-4, atol=1e-4, which=("min", "opt", "max")):
    before, state, tensors = copy_of(gm), state_of(gm), dict(gm.named_buffers())
    ctx = PassContext()
    assert FoldBatchNorm()(gm, ctx).changes == changes
    assert_same(gm, before, which=which, rtol=rtol, atol=atol)
    assert_values_hold(gm)
    assert_untouched(state, tensors)
    assert FoldBatchNorm()(gm).changes == 0
    if changes:
        assert "batch_norm" not in str(lines(gm))
    return ctx.data["fold-batch-norm"]


# (target, weight shape, spatial sizes of the input, arguments after the bias)
CONVOLUTIONS = [
    (aten.conv1d.default, (6, 4, 3), (9,), ([2], [1])),
    (aten.conv2d.default, (6, 4, 3, 2), (8, 7), ([2, 1], [1, 1], [1, 2])),
    (aten.conv2d.default, (6, 2, 3, 3), (8, 7), ([1, 1], [1, 1], [1, 1], 2)),
    (aten.conv2d.default, (4, 1, 3, 3), (8, 7), ([1, 1], [1, 1], [1, 1], 4)),
    (aten.conv3d.default, (4, 2, 2, 3, 1), (5, 6, 4), ([1, 1, 1], [0, 1, 0], [1, 1, 1], 2)),
    (aten.conv2d.padding, (6, 4, 3, 3), (8, 7), ([1, 1], "same")),
    (aten.conv_transpose1d.default, (4, 6, 3), (9,), ([2], [1], [1])),
    (aten.conv_transpose2d.input, (4, 3, 3, 3), (8, 7), ([2, 2], [1, 1], [1, 1], 2)),
    (aten.conv_transpose2d.input, (4, 1, 4, 4), (8, 7), ([2, 2], [1, 1], [0, 0], 4)),
    (aten.conv_transpose3d.input, (4, 2, 2, 2, 2), (3, 4, 5), ([2, 2, 2], [0, 0, 0], [0, 0, 1], 4)),
    (aten.convolution.default, (6, 2, 3, 3), (8, 7), ([1, 1], [1, 1], [1, 1], False, [0, 0], 2)),
    (aten.convolution.default, (4, 3, 3, 3), (8, 7), ([2, 2], [1, 1], [1, 1], True, [1, 1], 2)),
    (aten._convolution.default, (6, 4, 3, 3), (8, 7), ([1, 1], [0, 0], [1, 1], False, [0, 0], 1, False, False, True, True)),
    (aten._convolution.deprecated, (4, 6, 3, 3), (8, 7), ([2, 2], [0, 0], [1, 1], True, [0, 0], 1, False, False, True)),
]


def convolution(sketch, x, case, *, bias=True, name="conv"):
    target, shape, _, rest = case
    is_transposed = "transpose" in str(target) or (len(rest) > 3 and rest[3] is True)
    groups = next((item for item in rest[2:] if isinstance(item, int) and not isinstance(item, bool)), 1)
    channels = shape[1] * groups if is_transposed else shape[0]
    weight = sketch.constant(f"{name}_weight", torch.randn(shape))
    b = sketch.constant(f"{name}_bias", torch.randn(channels)) if bias else None
    return sketch.call(target, x, weight, b, *rest, source="net.py:8"), channels


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda case: f"{case[0]}{case[1]}")
def test_after_a_convolution(case, bias):
    sketch = Sketch()
    y, channels = convolution(sketch, sketch.input("x", 2, 4, *case[2]), case, bias=bias)
    gm = sketch.output(sketch.call(aten.relu.default, norm(sketch, y, channels)))
    assert check(gm) == {}
    assert len(lines(gm)) == 3
    assert {node.meta.get("source") for node in gm.graph.nodes if "conv" in str(node.target)} >= {"net.py:8"}
    EliminateDeadCode()(gm)
    assert sorted(name for name, _ in gm.named_buffers()) == ["conv_weight_bias_folded", "conv_weight_folded"]


def test_the_printed_graph():
    sketch = Sketch()
    y, channels = convolution(sketch, sketch.input("x", N, 4, 8, 7), CONVOLUTIONS[1], bias=False)
    gm = sketch.output(norm(sketch, y, channels))
    check(gm)
    assert lines(gm) == [
        "conv2d_default = aten.conv2d.default(x, conv_weight_folded, conv_weight_bias_folded, [2, 1], [1, 1], [1, 2])",
        "return conv2d_default",
    ]


PRODUCTS = {
    "linear": lambda s, x: s.call(aten.linear.default, x, s.constant("w", torch.randn(6, 4)), s.constant("b", torch.randn(6))),
    "linear without bias": lambda s, x: s.call(aten.linear.default, x, s.constant("w", torch.randn(6, 4))),
    "addmm": lambda s, x: s.call(aten.addmm.default, s.constant("b", torch.randn(6)), x, s.constant("w", torch.randn(4, 6))),
    "addmm of a row": lambda s, x: s.call(aten.addmm.default, s.constant("b", torch.randn(1, 6)), x, s.constant("w", torch.randn(4, 6))),
    "addmm with factors": lambda s, x: s.call(
        aten.addmm.default, s.constant("b", torch.randn(6)), x, s.constant("w", torch.randn(4, 6)), beta=0.5, alpha=-2
    ),
    "addmm of one number": lambda s, x: s.call(aten.addmm.default, s.constant("b", torch.randn(1)), x, s.constant("w", torch.randn(4, 6))),
    "mm": lambda s, x: s.call(aten.mm.default, x, s.constant("w", torch.randn(4, 6))),
    "matmul": lambda s, x: s.call(aten.matmul.default, x, s.constant("w", torch.randn(4, 6))),
    "mm of a transposed weight": lambda s, x: s.call(aten.mm.default, x, s.constant("w", torch.randn(6, 4).t())),
}


@pytest.mark.parametrize("make", PRODUCTS.values(), ids=PRODUCTS)
def test_after_a_product(make):
    sketch = Sketch()
    gm = sketch.output(norm(sketch, make(sketch, sketch.input("x", N, 4)), 6))
    assert check(gm) == {}
    assert len(lines(gm)) == 2


@pytest.mark.parametrize("make", PRODUCTS.values(), ids=PRODUCTS)
def test_before_a_product(make):
    sketch = Sketch()
    gm = sketch.output(sketch.call(aten.relu.default, make(sketch, norm(sketch, sketch.input("x", N, 4), 4))))
    assert check(gm) == {}
    assert len(lines(gm)) == 3


UNPADDED = [
    (aten.conv1d.default, (6, 4, 3), (9,), ([2], [0])),
    (aten.conv2d.default, (6, 2, 3, 3), (8, 7), ([1, 1], [0, 0], [1, 1], 2)),
    (aten.conv3d.default, (4, 4, 2, 3, 1), (5, 6, 4), ()),
    (aten.conv2d.padding, (6, 4, 3, 3), (8, 7), ([1, 1], "valid")),
    (aten.conv2d.padding, (6, 4, 1, 1), (8, 7), ([1, 1], "same")),
    (aten.convolution.default, (6, 2, 3, 3), (8, 7), ([1, 1], [0, 0], [1, 1], False, [0, 0], 2)),
]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", UNPADDED, ids=lambda case: f"{case[0]}{case[1]}")
def test_before_a_convolution_that_does_not_pad(case, bias):
    sketch = Sketch()
    y, _ = convolution(sketch, norm(sketch, sketch.input("x", 2, 4, *case[2]), 4), case, bias=bias)
    gm = sketch.output(y)
    assert check(gm) == {}
    assert len(lines(gm)) == 2


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda case: f"{case[0]}{case[1]}")
def test_before_a_convolution_that_pads_only_without_a_shift(case):
    for shift in (True, False):
        sketch = Sketch()
        y, _ = convolution(sketch, norm(sketch, sketch.input("x", 2, 4, *case[2]), 4, shift=shift), case)
        gm = sketch.output(y)
        has_padding = case[0] is not aten._convolution.default  # the one case without padding that is not transposed
        reasons = check(gm, 0 if shift and has_padding else 1)
        assert ("pads its input" in str(reasons)) == (shift and has_padding)


@pytest.mark.parametrize(
    "target", [aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default, aten.native_batch_norm.default]
)
@pytest.mark.parametrize("affine", [True, False])
def test_every_spelling_of_the_normalisation(target, affine):
    sketch = Sketch()
    y, channels = convolution(sketch, sketch.input("x", N, 4, 8, 7), CONVOLUTIONS[1])
    gm = sketch.output(norm(sketch, y, channels, target=target, affine=affine))
    assert check(gm) == {}
    assert len(lines(gm)) == 2


def test_a_chain_of_norms_folds_whole():
    sketch = Sketch()
    y = norm(sketch, sketch.input("x", N, 4, 8, 8), 4, name="first")
    y, _ = convolution(sketch, y, UNPADDED[1], name="a")
    y = norm(sketch, norm(sketch, y, 6, name="second"), 6, name="third")
    gm = sketch.output(y)
    check(gm, 3)
    assert lines(gm)[:-1] == [
        "conv2d_default = aten.conv2d.default(x, a_weight_folded_2, a_weight_bias_folded_2, [1, 1], [0, 0], [1, 1], 2)"
    ]


def test_a_chain_of_norms_before_a_layer_folds_whole():
    sketch = Sketch()
    y = sketch.input("x", N, 4, 8, 8)
    for name in ("first", "second", "third"):
        y = norm(sketch, y, 4, name=name)
    y, _ = convolution(sketch, y, UNPADDED[1])
    assert check(sketch.output(y), 3) == {}


def test_a_weight_shared_by_two_layers_keeps_its_own_value_in_each():
    sketch = Sketch()
    x = sketch.input("x", N, 4, 6, 6)
    w = sketch.constant("w", torch.randn(4, 4, 3, 3))
    first = norm(sketch, sketch.call(aten.conv2d.default, x, w), 4, name="a")
    second = sketch.call(aten.conv2d.default, x, w)
    third = norm(sketch, sketch.call(aten.conv2d.default, x, w), 4, name="b")
    check(sketch.output(first, second, third), 2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-2), (torch.bfloat16, 1e-1), (torch.float64, 1e-12)])
def test_other_dtypes(dtype, tolerance):
    sketch = Sketch()
    x = sketch.input("x", N, 4, 6, 6, dtype=dtype)
    w = sketch.constant("w", torch.randn(5, 4, 3, 3).to(dtype))
    gm = sketch.output(norm(sketch, sketch.call(aten.conv2d.default, x, w), 5, dtype=dtype))
    check(gm, rtol=tolerance, atol=10 * tolerance)
    assert gm.w_folded.dtype == gm.w_bias_folded.dtype == dtype


def test_a_channels_last_weight_keeps_its_layout():
    sketch = Sketch()
    x = sketch.input("x", N, 4, 6, 6)
    w = sketch.constant("w", torch.randn(5, 4, 3, 3).to(memory_format=torch.channels_last))
    gm = sketch.output(norm(sketch, sketch.call(aten.conv2d.default, x, w), 5))
    check(gm)
    assert gm.w_folded.is_contiguous(memory_format=torch.channels_last)


class TestNearMisses:
    def refused(self, gm, words):
        text = lines(gm)
        reasons = check(gm, 0, rtol=0, atol=0, which=("opt",))
        assert lines(gm) == text
        assert words in str(reasons)

    def sketch(self):
        sketch = Sketch()
        return sketch, sketch.input("x", N, 4, 8, 7)

    def test_the_convolution_is_read_twice(self):
        sketch, x = self.sketch()
        y, channels = convolution(sketch, x, CONVOLUTIONS[1])
        self.refused(sketch.output(norm(sketch, y, channels), sketch.call(aten.neg.default, y)), "read by others too")

    def test_the_convolution_is_returned(self):
        sketch, x = self.sketch()
        y, channels = convolution(sketch, x, CONVOLUTIONS[1])
        self.refused(sketch.output(norm(sketch, y, channels), y), "read by others too")

    def test_something_lies_between(self):
        sketch, x = self.sketch()
        y, channels = convolution(sketch, x, CONVOLUTIONS[1])
        self.refused(sketch.output(norm(sketch, sketch.call(aten.relu.default, y), channels)), "relu_default is no convolution")

    def test_the_weight_is_an_input(self):
        sketch, x = self.sketch()
        y = sketch.call(aten.conv2d.default, x, sketch.input("w", 5, 4, 3, 3))
        self.refused(sketch.output(norm(sketch, y, 5)), "the weight of conv2d_default is not a constant")

    def test_the_bias_is_an_input(self):
        sketch, x = self.sketch()
        y = sketch.call(aten.conv2d.default, x, sketch.constant("w", torch.randn(5, 4, 3, 3)), sketch.input("b", 5))
        self.refused(sketch.output(norm(sketch, y, 5)), "the bias of conv2d_default is not a constant")

    def test_the_statistics_are_inputs(self):
        sketch, x = self.sketch()
        y, channels = convolution(sketch, x, CONVOLUTIONS[1])
        mean, var = sketch.input("mean", channels), sketch.constant("var", torch.rand(channels) + 1)
        self.refused(
            sketch.output(sketch.call(aten.batch_norm.default, y, None, None, mean, var, False, 0.1, 1e-5, True)),
            "its running_mean is not a constant",
        )

    def test_the_statistics_are_the_batchs(self):
        sketch, x = self.sketch()
        y, channels = convolution(sketch, x, CONVOLUTIONS[1])
        weight = sketch.constant("weight", torch.randn(channels))
        y = sketch.call(aten.batch_norm.default, y, weight, None, None, None, True, 0.1, 1e-5, True)
        self.refused(sketch.output(y), "training mode")

    def test_the_statistics_are_read(self):
        sketch, x = self.sketch()
        y, channels = convolution(sketch, x, CONVOLUTIONS[1])
        result = norm(sketch, y, channels, target=aten.native_batch_norm.default)
        self.refused(sketch.output(result, sketch.call(operator.getitem, result.args[0], 1)), "its statistics are read")

    def test_a_convolution_without_batch_has_its_channels_elsewhere(self):
        sketch = Sketch()
        y = sketch.call(aten.conv2d.default, sketch.input("x", 4, 8, 8), sketch.constant("w", torch.randn(6, 4, 3, 3)))
        self.refused(sketch.output(norm(sketch, y, 6)), "no batch dimension")

    def test_the_channels_of_a_linear_layer_over_more_dimensions_are_last(self):
        sketch = Sketch()
        y = sketch.call(aten.linear.default, sketch.input("x", N, 6, 4), sketch.constant("w", torch.randn(6, 4)))
        self.refused(sketch.output(norm(sketch, y, 6)), "not the product of two matrices")

    def test_addmm_with_a_bias_for_each_row(self):
        sketch = Sketch()
        b, w = sketch.constant("b", torch.randn(6, 1)), sketch.constant("w", torch.randn(4, 6))
        y = sketch.call(aten.addmm.default, b, sketch.input("x", 6, 4), w)
        self.refused(sketch.output(norm(sketch, y, 6)), "not one number a channel")

    def test_a_variance_below_zero(self):
        sketch, x = self.sketch()
        y, channels = convolution(sketch, x, CONVOLUTIONS[1])
        mean, var = sketch.constant("mean", torch.randn(channels)), sketch.constant("var", torch.full((channels,), -1.0))
        gm = sketch.output(sketch.call(aten.batch_norm.default, y, None, None, mean, var, False, 0.1, 1e-5, True))
        ctx = PassContext()
        assert FoldBatchNorm()(gm, ctx).changes == 0
        assert "not finite" in str(ctx.data)

    def test_a_weight_that_would_overflow(self):
        sketch = Sketch()
        x = sketch.input("x", 1, 4, 6, 6, dtype=torch.float16)
        y = sketch.call(aten.conv2d.default, x, sketch.constant("w", torch.full((5, 4, 1, 1), 6e4).half()))
        gm = sketch.output(norm(sketch, y, 5, dtype=torch.float16, eps=1e-6))
        gm.bn_var.fill_(1e-4)
        ctx = PassContext()
        assert FoldBatchNorm()(gm, ctx).changes == 0
        assert "overflow torch.float16" in str(ctx.data)

    def test_the_layer_after_it_is_not_the_only_reader(self):
        sketch, x = self.sketch()
        y = norm(sketch, x, 4)
        z, _ = convolution(sketch, y, UNPADDED[1])
        self.refused(sketch.output(z, sketch.call(aten.relu.default, y)), "read by several")

    def test_it_is_not_the_input_of_the_layer_after_it(self):
        sketch = Sketch()
        y = norm(sketch, sketch.input("x", 6, 4), 4)
        self.refused(sketch.output(sketch.call(aten.mm.default, sketch.input("z", 3, 6), y)), "not a constant")


def test_a_deep_network_folds_all_and_the_order_of_fuel_is_that_of_the_graph():
    def make():
        torch.manual_seed(0)
        sketch = Sketch()
        x = sketch.input("x", 1, 4, 8, 8)
        for index in range(5):
            w = sketch.constant(f"w{index}", torch.randn(4, 4, 3, 3) / 6)
            y = norm(sketch, sketch.call(aten.conv2d.default, x, w, None, [1, 1], [1, 1]), 4, name=f"bn{index}")
            x = sketch.call(aten.add.Tensor, sketch.call(aten.relu.default, y), x)
        return sketch.output(x)

    check(make(), 5)
    gm = make()
    before = copy_of(gm)
    assert FoldBatchNorm()(gm, PassContext(fuel=Fuel(2))).changes == 2
    assert ["w0" in name or "w1" in name for name, _ in gm.named_buffers() if name.endswith("_folded")] == [True] * 4
    assert_same(gm, before, rtol=1e-4, atol=1e-4)

from __future__ import annotations

import operator

import pytest
import torch

from tests.helpers import (
    Dim,
    Sketch,
    assert_untouched,
    assert_values_hold,
    copy_of,
    lines,
    placeholders,
    random_inputs,
    run,
    state_of,
)
from tiacc.passes import precision_policy
from tiacc.passes.base import Fuel, PassContext
from tiacc.passes.cast_half import CastHalf
from tiacc.passes.eliminate_dead_code import EliminateDeadCode
from tiacc.passes.manager import PassManager
from tiacc.passes.precision_policy import Kind, Policy

aten = torch.ops.aten
HALVES = [torch.float16, torch.bfloat16]


def check(gm, half=torch.float16, *, keep_fp32=(), text=None, inputs=None, units=16):
    """Cast; compare with float32 within some roundings; cast again to no effect. Return the report."""
    before, state, tensors = copy_of(gm), state_of(gm), dict(gm.named_buffers())
    was = lines(gm)
    ctx = PassContext()
    changes = CastHalf(half, keep_fp32)(gm, ctx).changes
    report = ctx.data["cast-half"]
    assert changes == report.changes
    if text is not None:
        assert lines(gm) == text
    if not changes:
        assert lines(gm) == was
    casts = list(gm.graph.find_nodes(op="call_function", target=aten.to.dtype))
    assert len({(n.args[0], n.args[1]) for n in casts}) == len(casts), "one cast a value and dtype"
    for which in ("min", "opt", "max"):
        given = inputs or random_inputs(before, which)
        for a, b in zip(run(gm, given), run(before, given), strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            if b.is_floating_point() and b.numel():
                scale = b[b.isfinite()].abs().max()
                assert ((a - b).nan_to_num(0, 0, 0).abs().max() / scale) < units * torch.finfo(half).eps
            else:
                assert torch.equal(a, b)
    assert_values_hold(gm, inputs)
    assert_untouched(state, tensors)
    again = CastHalf(half, keep_fp32)(gm, ctx)
    assert again.changes == 0
    return report


def constant(sketch, name, *shape, scale=0.3):
    generator = torch.Generator().manual_seed(len(name) + sum(shape))
    return sketch.constant(name, torch.randn(shape, generator=generator) * scale)


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_the_printed_graph(half):
    sketch = Sketch()
    x = sketch.input("x", 1, 3, Dim("h", 4, 8, 12), 8)
    y = sketch.call(aten.conv2d.default, x, constant(sketch, "w", 4, 3, 3, 3), constant(sketch, "b", 4), source="net.py:3")
    y = sketch.call(aten.relu.default, y)
    e = sketch.call(aten.exp.default, sketch.call(aten.neg.default, y))
    z = sketch.call(aten.mul.Tensor, y, e)
    z = sketch.call(aten.conv2d.default, z, constant(sketch, "v", 2, 4, 1, 1))
    gm = sketch.output(sketch.call(aten.add.Tensor, z, 1.0), y)
    suffix = {torch.float16: "fp16", torch.bfloat16: "bf16"}[half]
    report = check(
        gm,
        half,
        text=[
            f"to_dtype = aten.to.dtype(x, {half})",
            f"conv2d_default = aten.conv2d.default(to_dtype, w_{suffix}, b_{suffix})",
            "relu_default = aten.relu.default(conv2d_default)",
            "to_dtype_2 = aten.to.dtype(relu_default, torch.float32)",
            "neg_default = aten.neg.default(relu_default)",
            "to_dtype_1 = aten.to.dtype(neg_default, torch.float32)",
            "exp_default = aten.exp.default(to_dtype_1)",
            "mul_tensor = aten.mul.Tensor(to_dtype_2, exp_default)",
            f"to_dtype_3 = aten.to.dtype(mul_tensor, {half})",
            f"conv2d_default_1 = aten.conv2d.default(to_dtype_3, v_{suffix})",
            "add_tensor = aten.add.Tensor(conv2d_default_1, 1.0)",
            "to_dtype_4 = aten.to.dtype(add_tensor, torch.float32)",
            "return to_dtype_4, to_dtype_2",
        ],
    )
    assert (report.dtype, report.half, report.casts, report.constants, report.changes) == (half, 5, 5, 3, 8)
    assert list(report.kept) == ["exp_default", "mul_tensor"]
    assert "exponentials" in report.kept["exp_default"]
    assert report.kept["mul_tensor"] == "it follows a float32 value"
    assert sum(report.reasons.values()) == 2
    # The cast takes the source line of what it casts.
    assert {n.meta.get("source") for n in gm.graph.nodes if n.target is aten.conv2d.default} == {"net.py:3", None}
    EliminateDeadCode()(gm)
    assert all(tensor.dtype == half for tensor in gm.buffers())


def test_shared_values_are_cast_once():
    sketch = Sketch()
    x = sketch.input("x", 4, 6)
    w = constant(sketch, "w", 6, 6)
    parts = [sketch.call(aten.linear.default, x, w) for _ in range(3)]
    total = sketch.call(aten.cat.default, [sketch.call(aten.exp.default, parts[0]), sketch.call(aten.sin.default, parts[0])])
    report = check(sketch.output(total, parts[1], parts[2]))
    # x down once; the first part up once; two results up.
    assert (report.casts, report.constants) == (4, 1)


def test_a_cast_is_made_before_the_reshapes_not_after():
    sketch = Sketch()
    x = sketch.input("x", 4, Dim("n", 2, 3, 5), 18)
    y = sketch.call(aten.exp.default, x)  # stays in float32
    parts = sketch.call(aten.split.Tensor, sketch.call(aten.relu.default, y), 6, 2)
    q, k, v = (sketch.call(operator.getitem, parts, index) for index in range(3))
    k = sketch.call(aten.transpose.int, k, 1, 2)
    z = sketch.call(aten.bmm.default, sketch.call(aten.bmm.default, q, k), v)
    gm = sketch.output(z)
    report = check(gm)
    assert report.casts == 2
    assert lines(gm)[1:3] == ["to_dtype = aten.to.dtype(exp_default, torch.float16)", "relu_default = aten.relu.default(to_dtype)"]


def test_a_cast_stays_behind_what_makes_a_value_smaller_or_is_read_in_float32():
    sketch = Sketch()
    x = sketch.input("x", 8, 50, 6)
    token = sketch.call(aten.select.int, x, 1, 0)
    z = sketch.call(aten.linear.default, token, constant(sketch, "w", 5, 6))
    both = sketch.call(aten.relu.default, x)
    u = sketch.call(aten.linear.default, both, constant(sketch, "u", 5, 6))
    gm = sketch.output(z, u, sketch.call(aten.exp.default, both))
    check(gm)
    assert "to_dtype = aten.to.dtype(select_int, torch.float16)" in lines(gm)
    assert "to_dtype_1 = aten.to.dtype(relu_default, torch.float16)" in lines(gm)


def test_what_follows_takes_the_widest():
    sketch = Sketch()
    x = sketch.input("x", 4, 6)
    narrow = sketch.call(aten.linear.default, x, constant(sketch, "w", 6, 6))
    wide = sketch.call(aten.exp.default, narrow)
    c = constant(sketch, "c", 6)
    gm = sketch.output(
        sketch.call(aten.add.Tensor, narrow, c),  # half
        sketch.call(aten.add.Tensor, wide, c),  # float32, and so the constant
        sketch.call(aten.cat.default, [narrow, wide]),  # float32
        sketch.call(aten.where.self, sketch.call(aten.gt.Scalar, narrow, 0.0), narrow, sketch.call(aten.neg.default, narrow)),  # half
        sketch.call(aten.mul.Tensor, x, x),  # float32: the input is
    )
    report = check(gm)
    halves = {n.name for n in gm.graph.nodes if n.op == "call_function" and n.meta["val"].dtype == torch.float16}
    assert halves >= {"linear_default", "add_tensor", "where_self", "neg_default"}
    assert {"add_tensor_1", "cat_default", "mul_tensor", "exp_default"} == set(report.kept)
    assert {"c", "c_fp16", "w", "w_fp16"} == {name for name, _ in gm.named_buffers()}


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_where_an_image_is_sampled_is_computed_in_float32(half):
    sketch, width = Sketch(), 512
    image = sketch.input("image", 1, 2, width, width)
    offset = sketch.call(aten.conv2d.default, image, constant(sketch, "w", 2, 2, 1, 1))
    offset = sketch.call(aten.permute.default, sketch.call(aten.tanh.default, offset), [0, 2, 3, 1])
    offset = sketch.call(aten.mul.Tensor, offset, 1e-3)
    middles = (2 * torch.arange(width) + 1) / width - 1
    right = sketch.call(aten.expand.default, sketch.constant("right", middles), [width, width])
    down = sketch.call(aten.expand.default, sketch.constant("down", middles[:, None].clone()), [width, width])
    grid = sketch.call(aten.add.Tensor, offset, sketch.call(aten.stack.default, [right, down], -1))
    report = check(sketch.output(sketch.call(aten.grid_sampler.default, image, grid, 0, 0, False)), half, units=1)
    reasons = dict.fromkeys(("tanh_default", "mul_tensor", "expand_default", "expand_default_1", "add_tensor"), precision_policy.POSITION)
    assert report.kept.items() >= reasons.items()
    assert "conv2d_default" not in report.kept


@pytest.mark.parametrize(("terms", "is_kept"), [(3, True), (64, False)])
def test_a_change_of_coordinates_is_computed_in_float32(terms, is_kept):
    sketch = Sketch()
    places = sketch.call(aten.linear.default, sketch.input("x", 1, 2 * terms), constant(sketch, "w", 2 * terms, 2 * terms))
    matrix = sketch.call(aten.view.default, places, [1, terms, 2])
    grid = sketch.call(aten.bmm.default, constant(sketch, "base", 1, 64, terms), matrix)
    first, second = (sketch.call(operator.getitem, sketch.call(aten.chunk.default, grid, 2, 1), index) for index in range(2))
    grid = sketch.call(aten.view.default, sketch.call(aten.sub.Tensor, first, second), [1, 8, 4, 2])
    gm = sketch.output(sketch.call(aten.grid_sampler.default, sketch.input("image", 1, 2, 8, 8), grid, 0, 1, False))
    report = check(gm, units=64)
    assert "linear_default" not in report.kept
    assert report.kept.get("bmm_default") == (precision_policy.POSITION if is_kept else None)
    assert report.kept["sub_tensor"] == precision_policy.POSITION


def test_a_number_in_a_tensor_does_not_widen():
    sketch = Sketch()
    x = sketch.input("x", 4, 6)
    scale = sketch.call(aten.exp.default, sketch.input("scale"))
    y = sketch.call(aten.mul.Tensor, sketch.call(aten.linear.default, x, constant(sketch, "w", 6, 6)), scale)
    report = check(sketch.output(y))
    assert set(report.kept) == {"exp_default"}


class TestConstants:
    def linear(self, weight, half):
        sketch = Sketch()
        gm = sketch.output(sketch.call(aten.linear.default, sketch.input("x", 4, 6), sketch.constant("w", weight)))
        return gm, check(gm, half)

    def test_one_that_fits_is_replaced(self):
        gm, report = self.linear(torch.randn(5, 6), torch.float16)
        torch.testing.assert_close(gm.w_fp16.float(), gm.w, rtol=torch.finfo(torch.float16).eps, atol=0)
        assert report.kept == {}

    @pytest.mark.parametrize(
        ("scale", "half", "words"),
        [(1e-9, torch.float16, "its constant w loses 100% in float16"), (1e6, torch.float16, "its constant w overflows float16")],
    )
    def test_one_that_does_not_keeps_its_reader_in_float32(self, scale, half, words):
        report = self.linear(torch.randn(5, 6) * scale, half)[1]
        assert report.kept == {"linear_default": words}
        assert report.changes == 0
        assert self.linear(torch.randn(5, 6) * scale, torch.bfloat16)[1].kept == {}

    def test_positions_stay_whole_numbers(self):
        sketch = Sketch()
        x = sketch.call(aten.linear.default, sketch.input("x", 3000, 1), constant(sketch, "w", 1, 1))
        grid = sketch.constant("grid", torch.arange(3000.0).reshape(-1, 1))
        gm = sketch.output(sketch.call(aten.add.Tensor, x, grid))
        report = check(gm)
        assert report.kept == {"add_tensor": "its constant grid holds whole numbers that float16 rounds"}

    def test_one_read_in_both_precisions_is_there_twice(self):
        sketch = Sketch()
        x, w = sketch.input("x", 6, 6), constant(sketch, "w", 6, 6)
        gm = sketch.output(sketch.call(aten.linear.default, x, w), sketch.call(aten.exp.default, w))
        check(gm)
        assert "linear_default = aten.linear.default(to_dtype, w_fp16)" in lines(gm)
        assert "exp_default = aten.exp.default(w)" in lines(gm)

    def test_a_table_is_read_in_half(self):
        sketch = Sketch()
        ids = sketch.input("ids", 2, 5, dtype=torch.int64)
        gm = sketch.output(sketch.call(aten.embedding.default, constant(sketch, "table", 10, 6), ids))
        assert check(gm).half == 1
        assert lines(gm)[0] == "embedding_default = aten.embedding.default(table_fp16, ids)"


class TestDtypeArguments:
    def graph(self, make, *, dtype=torch.float32):
        """linear → what `make` makes of the half result, a float32 one, and an input of `dtype` → (returned)."""
        sketch = Sketch()
        x, other = sketch.input("x", 4, 6), sketch.input("other", 4, 6, dtype=dtype)
        half = sketch.call(aten.linear.default, x, constant(sketch, "w", 6, 6))
        return sketch.output(make(sketch, half, other))

    def dtype_of(self, gm, name):
        return next(n for n in gm.graph.nodes if n.name.startswith(name)).meta["val"].dtype

    def test_integers_become_float32_not_half(self):
        """4097 is no number of float16."""
        gm = self.graph(lambda s, h, i: s.call(aten.add.Tensor, s.call(aten.to.dtype, i, torch.float32), h), dtype=torch.int64)
        report = check(gm, inputs=[torch.randn(4, 6) * 1e-3, torch.full((4, 6), 4097)])
        assert {"to_dtype", "add_tensor"} == set(report.kept)
        assert self.dtype_of(gm, "add_tensor") == torch.float32

    def test_what_takes_its_dtype_from_another_keeps_it(self):
        for make in (
            lambda s, h, i: s.call(aten.mul.Tensor, s.call(aten.type_as.default, i, h), 1.0),
            lambda s, h, i: s.call(aten.mul.Tensor, s.call(aten.to.other, i, h), 1.0),
        ):
            gm = self.graph(make, dtype=torch.int64)
            check(gm, inputs=[torch.randn(4, 6), torch.full((4, 6), 4097)])
            assert any("aten.to.device(other, cpu, torch.float32" in line for line in lines(gm))

    def test_truth_values_do_not_widen(self):
        gm = self.graph(lambda s, h, b: s.call(aten.mul.Tensor, h, s.call(aten.to.dtype, b, torch.float32)), dtype=torch.bool)
        report = check(gm)
        assert report.kept == {}
        assert self.dtype_of(gm, "mul_tensor") == torch.float16

    def test_bytes_widen_where_half_cannot_hold_them(self):
        for half, is_kept in ((torch.float16, False), (torch.bfloat16, False)):
            gm = self.graph(lambda s, h, b: s.call(aten.mul.Tensor, h, s.call(aten.to.dtype, b, torch.float32)), dtype=torch.uint8)
            assert bool(check(gm, half).kept) == is_kept
        gm = self.graph(lambda s, h, b: s.call(aten.mul.Tensor, h, s.call(aten.to.dtype, b, torch.float32)), dtype=torch.int16)
        assert set(check(gm).kept) == {"to_dtype", "mul_tensor"}

    def test_an_explicit_float32_is_obeyed(self):
        gm = self.graph(lambda s, h, o: s.call(aten.neg.default, s.call(aten.to.dtype, h, torch.float32)))
        report = check(gm)
        assert report.kept == {"to_dtype": "the model asks for torch.float32", "neg_default": "it follows a float32 value"}
        gm = self.graph(lambda s, h, o: s.call(aten.softmax.int, h, 1, torch.float32))
        assert check(gm).kept == {"softmax_int": "the model asks for torch.float32"}
        gm = self.graph(lambda s, h, o: s.call(aten.sum.dim_IntList, h, [1], dtype=torch.float64))
        check(gm)
        assert self.dtype_of(gm, "sum") == torch.float64

    def test_a_copy_without_a_dtype_follows(self):
        gm = self.graph(lambda s, h, o: s.call(aten._to_copy.default, h, memory_format=torch.contiguous_format))
        assert check(gm).kept == {}
        assert self.dtype_of(gm, "_to_copy_default") == torch.float16

    def test_made_tensors_take_no_part(self):
        for make in (
            lambda s, h, o: s.call(aten.zeros_like.default, h),
            lambda s, h, o: s.call(aten.new_zeros.default, h, [4, 6]),
            lambda s, h, o: s.call(aten.full.default, [4, 6], 0.5),
            lambda s, h, o: s.call(aten.full.default, [4, 6], float("-inf"), dtype=torch.float32),
        ):
            gm = self.graph(lambda s, h, o, make=make: s.call(aten.maximum.default, h, make(s, h, o)))
            report = check(gm)
            assert report.kept == {}
            assert self.dtype_of(gm, "maximum_default") == torch.float16
        # 0.1 is no number of float16, and neither is -1e9.
        for value in (0.1, -1e9):
            gm = self.graph(lambda s, h, o, value=value: s.call(aten.maximum.default, h, s.call(aten.full.default, [4, 6], value)))
            assert "maximum_default" in check(gm).kept

    def test_a_made_tensor_keeps_its_own_dtype(self):
        gm = self.graph(lambda s, h, o: s.call(aten.exp.default, s.call(aten.ones_like.default, h)))
        check(gm)
        assert "ones_like_default = aten.ones_like.default(linear_default, dtype=torch.float32)" in lines(gm)

    def test_other_dtypes_are_left_alone(self):
        for dtype in (torch.float64, torch.int64, torch.float16):
            sketch = Sketch()
            x = sketch.input("x", 4, 4, dtype=dtype)
            gm = sketch.output(sketch.call(aten.matmul.default, x, x), sketch.call(aten.add.Tensor, x, 1))
            assert check(gm, torch.bfloat16).changes == 0


class TestKeepFp32:
    def graph(self):
        sketch = Sketch()
        x = sketch.input("x", 4, 6)
        for index in range(3):
            x = sketch.call(aten.linear.default, x, constant(sketch, f"w{index}", 6, 6))
            x.meta["path"] = f"encoder.layer.{index}.dense"
            x = sketch.call(aten.softmax.int, x, 1)
        return sketch.output(x)

    @pytest.mark.parametrize(
        ("patterns", "kept"),
        [
            (("softmax",), {"softmax_int", "softmax_int_1", "softmax_int_2"}),
            (("aten.softmax",), {"softmax_int", "softmax_int_1", "softmax_int_2"}),
            (("aten.softmax.int",), {"softmax_int", "softmax_int_1", "softmax_int_2"}),
            (("aten::softmax",), {"softmax_int", "softmax_int_1", "softmax_int_2"}),
            (("aten::softmax.int",), {"softmax_int", "softmax_int_1", "softmax_int_2"}),
            (("softmax_int_1",), {"softmax_int_1"}),
            (("linear*_2", "soft*_2"), {"linear_default_2", "softmax_int_2"}),
            (("encoder.layer.1.*",), {"linear_default_1", "softmax_int_1"}),
            (("encoder.layer.1",), {"linear_default_1", "softmax_int_1"}),
            (("*",), {f"{name}{end}" for name in ("linear_default", "softmax_int") for end in ("", "_1", "_2")}),
        ],
    )
    def test_what_is_named_stays_in_float32(self, patterns, kept):
        gm = self.graph()
        report = check(gm, keep_fp32=patterns)
        named = {name for name, reason in report.kept.items() if reason.startswith("keep_fp32=")}
        assert named == kept
        assert report.unmatched == ()
        for node in gm.graph.nodes:
            if node.name in kept:
                assert node.meta["val"].dtype == torch.float32

    def test_all_kept_is_no_change(self):
        assert check(self.graph(), keep_fp32=("*",)).changes == 0

    def test_what_matches_nothing_is_told(self):
        assert check(self.graph(), keep_fp32=("gelu", "softmax", "encoder.layers.*")).unmatched == ("gelu", "encoder.layers.*")


class TestAttention:
    def graph(self, mask):
        sketch = Sketch()
        x = sketch.input("x", 2, 4, 6, 8)
        heads = [sketch.call(aten.linear.default, x, constant(sketch, name, 8, 8)) for name in ("q", "kk", "vvv")]
        return sketch.output(sketch.call(aten.scaled_dot_product_attention.default, *heads, mask(sketch)))

    @pytest.mark.parametrize(("fill", "half"), [(float("-inf"), torch.float16), (-1e9, torch.bfloat16), (-1e4, torch.float16)])
    def test_a_mask_that_fits_is_cast(self, fill, half):
        gm = self.graph(lambda s: s.constant("mask", torch.full((6, 6), fill).triu(1)))
        report = check(gm, half)
        assert report.kept == {}
        assert "mask_" in lines(gm)[-3]

    @pytest.mark.parametrize(("fill", "half"), [(-1e9, torch.float16), (torch.finfo(torch.float32).min, torch.bfloat16)])
    def test_a_mask_that_does_not_fit_stays_float32_and_the_products_are_half(self, fill, half):
        gm = self.graph(lambda s: s.constant("mask", torch.full((6, 6), fill).triu(1)))
        report = check(gm, half)
        assert report.kept == {}
        assert report.half == 4
        attention = gm.graph.find_nodes(op="call_function", target=aten.scaled_dot_product_attention.default)[0]
        assert attention.args[3].target == "mask"

    def test_a_mask_that_is_computed_stays_float32(self):
        def mask(s):
            keep = s.call(aten.to.dtype, s.input("keep", 6, 6, dtype=torch.bool), torch.float32)
            return s.call(aten.mul.Tensor, s.call(aten.rsub.Scalar, keep, 1.0), -1e9)

        gm = self.graph(mask)
        keep = torch.ones(6, 6, dtype=torch.bool).tril()
        report = check(gm, inputs=[torch.randn(2, 4, 6, 8), keep])
        assert set(report.kept) == {"mul_tensor", "rsub_scalar"}
        assert report.half == 4

    def test_a_mask_added_by_hand_keeps_the_addition_and_the_softmax(self):
        sketch = Sketch()
        x = sketch.input("x", 2, 6, 8)
        scores = sketch.call(aten.matmul.default, x, sketch.call(aten.transpose.int, x, 1, 2))
        masked = sketch.call(aten.add.Tensor, scores, sketch.constant("mask", torch.full((6, 6), -1e9).triu(1)))
        y = sketch.call(aten.matmul.default, sketch.call(aten.softmax.int, masked, -1), x)
        report = check(sketch.output(y))
        assert set(report.kept) == {"add_tensor", "softmax_int"}
        report = check(self.by_fill(-1e9))
        assert set(report.kept) == {"masked_fill_scalar", "softmax_int"}
        assert check(self.by_fill(float("-inf"))).kept == {}

    def by_fill(self, value):
        sketch = Sketch()
        x = sketch.input("x", 2, 6, 8)
        scores = sketch.call(aten.matmul.default, x, sketch.call(aten.transpose.int, x, 1, 2))
        mask = sketch.constant("mask", torch.ones(6, 6, dtype=torch.bool).triu(1))
        y = sketch.call(aten.softmax.int, sketch.call(aten.masked_fill.Scalar, scores, mask, value), -1)
        return sketch.output(sketch.call(aten.matmul.default, y, x))


def test_statistics_of_a_normalisation_stay_float32():
    sketch = Sketch()
    x = sketch.call(aten.conv2d.default, sketch.input("x", 2, 3, 6, 6), constant(sketch, "w", 4, 3, 3, 3))
    var = sketch.constant("var", torch.rand(4) + 0.5)
    weight, mean = constant(sketch, "a", 4), constant(sketch, "m", 4)
    y = sketch.call(aten.relu.default, x)
    gm = sketch.output(sketch.call(aten.batch_norm.default, y, weight, None, mean, var, False, 0.1, 1e-5, True))
    assert check(gm).kept == {}
    assert lines(gm)[3] == "batch_norm_default = aten.batch_norm.default(relu_default, a, None, m, var, False, 0.1, 1e-05, True)"


def test_layer_norm_by_hand_has_its_statistics_in_float32():
    sketch = Sketch()
    x = sketch.call(aten.linear.default, sketch.input("x", 4, 8), constant(sketch, "w", 8, 8))
    centred = sketch.call(aten.sub.Tensor, x, sketch.call(aten.mean.dim, x, [-1], True))
    variance = sketch.call(aten.var.correction, x, [-1], correction=0, keepdim=True)
    root = sketch.call(aten.sqrt.default, sketch.call(aten.add.Tensor, variance, 1e-12))
    y = sketch.call(aten.linear.default, sketch.call(aten.div.Tensor, centred, root), constant(sketch, "v", 8, 8))
    report = check(sketch.output(y), torch.bfloat16)
    assert set(report.kept) == {"var_correction", "add_tensor", "sqrt_default", "div_tensor"}


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_a_recurrent_layer_and_the_parts_of_its_result(half):
    sketch = Sketch()
    x = sketch.input("x", 3, Dim("n", 1, 2, 4), 4)
    zeros = sketch.call(aten.zeros.default, [1, sketch.call(aten.sym_size.int, x, 1), 5])
    weights = [constant(sketch, name, *shape) for name, shape in (("a", (20, 4)), ("bb", (20, 5)), ("ccc", (20,)), ("dddd", (20,)))]
    result = sketch.call(aten.lstm.input, x, [zeros, zeros], weights, True, 1, 0.0, False, False, False)
    parts = [sketch.call(operator.getitem, result, index) for index in range(3)]
    gm = sketch.output(parts[0], sketch.call(aten.exp.default, parts[1]), sketch.call(aten.relu.default, parts[2]))
    report = check(gm, half)
    assert set(report.kept) == {"exp_default"}
    assert report.constants == 4


def test_indices_of_the_largest():
    sketch = Sketch()
    y = sketch.call(aten.linear.default, sketch.input("x", 4, 6), sketch.constant("w", torch.eye(6)))
    top = sketch.call(aten.topk.default, y, 2)
    gm = sketch.output(sketch.call(operator.getitem, top, 0), sketch.call(operator.getitem, top, 1))
    check(gm, inputs=[torch.randperm(24).reshape(4, 6).float()])


def test_results_that_are_read_as_a_list_stay():
    sketch = Sketch()
    x = sketch.call(aten.linear.default, sketch.input("x", 4, 6), constant(sketch, "w", 6, 6))
    y = sketch.call(aten.cat.default, sketch.call(aten.split.Tensor, x, 3, 1))
    report = check(sketch.output(y))
    assert "its results are read as a list" in report.kept.values()


def test_a_conversion_that_undoes_a_lossless_one_takes_what_was_there():
    sketch = Sketch()
    x = sketch.input("x", 4, 6, dtype=torch.float16)
    wide = sketch.call(aten.to.dtype, x, torch.float32)
    gm = sketch.output(sketch.call(aten.linear.default, wide, constant(sketch, "w", 6, 6)))
    check(gm, torch.float16)
    assert "linear_default = aten.linear.default(x, w_fp16)" in lines(gm)
    sketch = Sketch()
    x = sketch.input("x", 4, 6, dtype=torch.float16)
    gm = sketch.output(sketch.call(aten.linear.default, sketch.call(aten.to.dtype, x, torch.float32), constant(sketch, "w", 6, 6)))
    check(gm, torch.bfloat16)
    assert "linear_default = aten.linear.default(to_dtype_1, w_bf16)" in lines(gm)


def test_an_operator_that_refuses_half_precision_stays(monkeypatch):
    monkeypatch.setitem(precision_policy.TABLE, "linalg_inv", Policy(Kind.COMPUTE))
    sketch = Sketch()
    x = sketch.input("x", 3, 3)
    gm = sketch.output(sketch.call(aten.linalg_inv.default, x), sketch.call(aten.linalg_inv.default, constant(sketch, "w", 3, 3)))
    report = check(gm)
    assert set(report.kept.values()) == {"the operator does not take torch.float16"}
    assert report.changes == 0
    assert [name for name, _ in gm.named_buffers()] == ["w"]


def test_fuel_is_one_unit_a_node():
    def make():
        sketch = Sketch()
        x = sketch.input("x", 6, 6)
        for index in range(4):
            x = sketch.call(aten.linear.default, x, constant(sketch, f"w{index}", 6, 6))
        return sketch.output(x)

    for fuel in range(5):
        gm, ctx = make(), PassContext(fuel=Fuel(fuel))
        CastHalf(torch.float16)(gm, ctx)
        assert ctx.data["cast-half"].half == fuel
        kinds = [n.meta["val"].dtype for n in gm.graph.find_nodes(op="call_function", target=aten.linear.default)]
        assert kinds == [torch.float16] * fuel + [torch.float32] * (4 - fuel)


def test_inputs_and_outputs_keep_their_dtypes():
    sketch = Sketch()
    x = sketch.input("x", 4, 6)
    y = sketch.call(aten.linear.default, x, constant(sketch, "w", 6, 6))
    gm = sketch.output(y, sketch.call(aten.reshape.default, y, [24]), sketch.call(aten.gt.Scalar, y, 0.0), x)
    CastHalf(torch.bfloat16)(gm)
    assert [n.meta["val"].dtype for n in placeholders(gm)] == [torch.float32]
    outputs = run(gm, random_inputs(gm))
    assert [out.dtype for out in outputs] == [torch.float32, torch.float32, torch.bool, torch.float32]
    assert [value.dtype for value in gm.graph.output_node().meta["val"]] == [out.dtype for out in outputs]


def test_options_are_read_from_text():
    (pass_,) = PassManager.parse("cast-half{dtype=bf16, keep_fp32=softmax|layer_norm}").passes
    assert pass_ == CastHalf(torch.bfloat16, ("softmax", "layer_norm"))
    assert str(pass_) == "cast-half{dtype=bf16, keep_fp32=softmax|layer_norm}"

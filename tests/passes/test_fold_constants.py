from __future__ import annotations

import operator

import pytest
import torch

from tests.helpers import Dim, Sketch, assert_same, assert_untouched, assert_values_hold, copy_of, lines, state_of
from tiacc.passes.base import Fuel, PassContext
from tiacc.passes.eliminate_dead_code import EliminateDeadCode
from tiacc.passes.fold_constants import FoldConstants

aten = torch.ops.aten


def check(gm, changes, text, **options):
    """Fold; compare text and results; fold again to no effect; leave the given tensors as they were."""
    before, state, tensors = copy_of(gm), state_of(gm), dict(gm.named_buffers())
    assert FoldConstants(**options)(gm).changes == changes
    assert lines(gm) == text
    assert_same(gm, before, which=("min", "opt", "max"), rtol=0, atol=0)
    assert_values_hold(gm)
    assert_untouched(state, tensors)
    assert FoldConstants(**options)(gm).changes == 0


def test_a_chain_of_constants_becomes_one():
    sketch = Sketch()
    x = sketch.input("x", Dim("n", 1, 2, 5), 3)
    w = sketch.constant("w", torch.randn(4, 3))
    scaled = sketch.call(aten.mul.Tensor, w, 0.5)
    y = sketch.call(aten.mm.default, x, sketch.call(aten.t.default, scaled), source="net.py:3")
    gm = sketch.output(y)
    check(gm, 2, ["mm_default = aten.mm.default(x, t_default_folded)", "return mm_default"])
    # As the transposed view that it was.
    assert gm.t_default_folded.stride() == (1, 3)
    torch.testing.assert_close(gm.t_default_folded, w.graph.owning_module.w.t() * 0.5)


def test_a_value_read_inside_and_outside_becomes_a_constant_of_its_own():
    sketch = Sketch()
    x = sketch.input("x", 3)
    w = sketch.constant("w", torch.randn(3))
    a = sketch.call(aten.exp.default, w)
    b = sketch.call(aten.neg.default, a)
    gm = sketch.output(sketch.call(aten.add.Tensor, sketch.call(aten.mul.Tensor, x, a), b))
    check(gm, 2, [
        "mul_tensor = aten.mul.Tensor(x, exp_default_folded)",
        "add_tensor = aten.add.Tensor(mul_tensor, neg_default_folded)",
        "return add_tensor",
    ])


def test_parts_of_a_split_constant():
    sketch = Sketch()
    x = sketch.input("x", 2)
    parts = sketch.call(aten.split.Tensor, sketch.constant("w", torch.randn(4)), 2)
    y = sketch.call(aten.mul.Tensor, x, sketch.call(operator.getitem, parts, 0))
    gm = sketch.output(sketch.call(aten.add.Tensor, y, sketch.call(operator.getitem, parts, 1)))
    check(gm, 3, [
        "mul_tensor = aten.mul.Tensor(x, getitem_folded)",
        "add_tensor = aten.add.Tensor(mul_tensor, getitem_1_folded)",
        "return add_tensor",
    ])


def test_a_list_of_constants_read_as_a_list_stays():
    sketch = Sketch()
    x = sketch.input("x", 2)
    parts = sketch.call(aten.split.Tensor, sketch.constant("w", torch.randn(4)), 2)
    big = sketch.call(aten.cat.default, parts)
    gm = sketch.output(sketch.call(aten.add.Tensor, x, sketch.call(operator.getitem, parts, 1)), big)
    check(gm, 1, [
        "split_tensor = aten.split.Tensor(w, 2)",
        "cat_default = aten.cat.default(split_tensor)",
        "add_tensor = aten.add.Tensor(x, getitem_folded)",
        "return add_tensor, cat_default",
    ])


def test_made_tensors_and_dtypes():
    sketch = Sketch()
    x = sketch.input("x", Dim("n", 1, 2, 5), 4)
    steps = sketch.call(aten.arange.default, 4, dtype=torch.float64)
    gm = sketch.output(sketch.call(aten.add.Tensor, x, steps))
    check(gm, 1, ["add_tensor = aten.add.Tensor(x, arange_default_folded)", "return add_tensor"])
    assert gm.arange_default_folded.dtype == torch.float64


def test_sizes_that_are_known_become_numbers():
    sketch = Sketch()
    x = sketch.input("x", Dim("n", 1, 2, 5), 4, 3)
    known, varying = sketch.call(aten.sym_size.int, x, 1), sketch.call(aten.sym_size.int, x, 0)
    product = sketch.call(operator.mul, known, 3)
    gm = sketch.output(sketch.call(aten.reshape.default, x, [varying, product]))
    check(gm, 2, [
        "sym_size_int_1 = aten.sym_size.int(x, 0)",
        "reshape_default = aten.reshape.default(x, [sym_size_int_1, 12])",
        "return reshape_default",
    ])


def test_random_uninitialised_and_dynamic_values_stay():
    sketch = Sketch()
    x = sketch.input("x", Dim("n", 1, 2, 5), 4)
    w = sketch.constant("w", torch.zeros(4))
    sketch.call(aten.bernoulli.p, w, 0.5)
    sketch.call(aten.dropout.default, w, 0.5, True)
    sketch.call(aten.empty.memory_format, [4])
    zeros = sketch.call(aten.zeros.default, [sketch.call(aten.sym_size.int, x, 0), 4])
    gm = sketch.output(sketch.call(aten.add.Tensor, x, zeros))
    before = lines(gm)
    assert FoldConstants()(gm).changes == 0
    assert lines(gm) == before


def test_what_is_returned_stays_new_on_every_call():
    sketch = Sketch()
    w = sketch.constant("w", torch.randn(4))
    y = sketch.call(aten.exp.default, sketch.call(aten.neg.default, w))
    gm = sketch.output(sketch.call(aten.reshape.default, y, [2, 2]))
    check(gm, 1, [
        "exp_default = aten.exp.default(neg_default_folded)",
        "reshape_default = aten.reshape.default(exp_default, [2, 2])",
        "return reshape_default",
    ])
    gm()[0].zero_()
    torch.testing.assert_close(gm()[0].view(-1), (-gm.w).exp())


@pytest.mark.parametrize(
    ("options", "folds"),
    [({}, True), ({"limit_bytes": 1023}, False), ({"growth_bytes": 1019}, False), ({"limit_bytes": 1024, "growth_bytes": 1020}, True)],
)
def test_a_result_may_grow_up_to_the_limits(options, folds):
    sketch = Sketch()
    x = sketch.input("x", 16, 16)
    w = sketch.constant("w", torch.randn(1))
    gm = sketch.output(sketch.call(aten.add.Tensor, x, sketch.call(aten.repeat.default, w, [16, 16])))
    assert FoldConstants(**options)(gm).changes == int(folds)


def test_a_huge_result_stays_and_what_makes_it_small_again_too():
    sketch = Sketch()
    x = sketch.input("x", 3)
    huge = sketch.call(aten.zeros.default, [1 << 20, 1 << 10])
    gm = sketch.output(sketch.call(aten.add.Tensor, x, sketch.call(aten.sum.default, huge)))
    assert FoldConstants()(gm).changes == 0


def test_growth_adds_up():
    sketch = Sketch()
    x = sketch.input("x", 256)
    for _ in range(4):
        x = sketch.call(aten.add.Tensor, x, sketch.call(aten.ones.default, [256]))
    gm = sketch.output(x)
    assert FoldConstants(growth_bytes=3 * 1024)(gm).changes == 3


def test_an_operator_that_fails_stays():
    sketch = Sketch()
    x = sketch.input("x", 2, 2)
    w = sketch.constant("w", torch.zeros(2, 2))
    inverse = sketch.call(aten.linalg_inv.default, w)
    later = sketch.call(aten.neg.default, inverse)
    gm = sketch.output(sketch.call(aten.add.Tensor, sketch.call(aten.mul.Tensor, x, sketch.call(aten.exp.default, w)), later))
    assert FoldConstants()(gm).changes == 1
    assert "linalg_inv" in str(lines(gm))
    with pytest.raises(RuntimeError, match="singular"):
        gm(torch.zeros(2, 2))


def test_what_cannot_be_filled_stays():
    sketch = Sketch()
    x = sketch.input("x", 3, dtype=torch.uint8)
    gm = sketch.output(sketch.call(aten.add.Tensor, sketch.call(aten.full_like.default, x, 300), sketch.call(aten.ones_like.default, x)))
    assert FoldConstants()(gm).changes == 1
    assert "full_like" in str(lines(gm))


def test_fuel_leaves_the_rest():
    sketch = Sketch()
    x = sketch.input("x", 3)
    for _ in range(3):
        x = sketch.call(aten.add.Tensor, x, sketch.call(aten.ones.default, [3]))
    gm = sketch.output(x)
    before = copy_of(gm)
    assert FoldConstants()(gm, PassContext(fuel=Fuel(2))).changes == 2
    assert_same(gm, before)


def test_the_old_constant_goes_with_dead_code():
    sketch = Sketch()
    x = sketch.input("x", 3)
    gm = sketch.output(sketch.call(aten.add.Tensor, x, sketch.call(aten.neg.default, sketch.constant("w", torch.randn(3)))))
    FoldConstants()(gm)
    EliminateDeadCode()(gm)
    assert [name for name, _ in gm.named_buffers()] == ["neg_default_folded"]


def test_what_only_reads_the_type_of_a_tensor_folds():
    sketch = Sketch()
    x = sketch.input("x", 2, 4)
    mask = sketch.call(aten.new_zeros.default, x, [2, 4])
    ones = sketch.call(aten.fill.Tensor, sketch.call(aten.slice.Tensor, mask, 1, 0, 2), sketch.constant("seven", torch.tensor(7)))
    mask = sketch.call(aten.slice_scatter.default, mask, ones, 1, 0, 2)
    mask = sketch.call(aten.add.Tensor, mask, sketch.call(aten.ones_like.default, x))
    gm = sketch.output(sketch.call(aten.mul.Tensor, x, sketch.call(aten.mul.Tensor, mask, sketch.call(aten.full_like.default, x, 0.5))))
    check(gm, 8, ["mul_tensor_1 = aten.mul.Tensor(x, mul_tensor_folded)", "return mul_tensor_1"])
    assert gm.mul_tensor_folded.tolist() == [[4, 4, 0.5, 0.5]] * 2


def test_what_is_filled_by_a_size_that_varies_stays():
    sketch = Sketch()
    x = sketch.input("x", Dim("n", 1, 2, 5), 3)
    gm = sketch.output(sketch.call(aten.mul.Tensor, x, sketch.call(aten.ones_like.default, x)))
    check(gm, 0, [
        "ones_like_default = aten.ones_like.default(x)",
        "mul_tensor = aten.mul.Tensor(x, ones_like_default)",
        "return mul_tensor",
    ])


def test_what_is_empty_folds():
    sketch = Sketch()
    x = sketch.input("x", 3, 4)
    empty = sketch.call(aten.exp.default, sketch.call(aten.slice.Tensor, x, 0, 0, 0))
    gm = sketch.output(sketch.call(aten.cat.default, [sketch.call(aten.neg.default, x), empty]))
    check(gm, 2, [
        "neg_default = aten.neg.default(x)",
        "cat_default = aten.cat.default([neg_default, exp_default_folded])",
        "return cat_default",
    ])
    assert gm.exp_default_folded.shape == (0, 4)

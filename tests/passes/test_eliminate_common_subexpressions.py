from __future__ import annotations

import operator

import pytest
import torch

from tests.helpers import Dim, Sketch, assert_same, assert_untouched, copy_of, count_calls, lines, random_inputs, run, state_of
from tiacc.passes.base import Fuel, PassContext
from tiacc.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from tiacc.passes.eliminate_dead_code import EliminateDeadCode

aten = torch.ops.aten


def check(gm, changes, text=None):
    before, state, tensors = copy_of(gm), state_of(gm), dict(gm.named_buffers())
    text_before = lines(gm)
    assert EliminateCommonSubexpressions()(gm).changes == changes
    assert lines(gm) == (text or text_before)
    assert_same(gm, before, which=("min", "opt", "max"), rtol=0, atol=0)
    assert_untouched(state, tensors)
    assert EliminateCommonSubexpressions()(gm).changes == 0


def test_equal_chains_become_one():
    sketch = Sketch()
    x = sketch.input("x", Dim("n", 1, 2, 5), 3)
    a, b = (sketch.call(aten.softmax.int, sketch.call(aten.relu.default, x), 1) for _ in range(2))
    check(sketch.output(sketch.call(aten.sub.Tensor, a, b)), 2, [
        "relu_default = aten.relu.default(x)",
        "softmax_int = aten.softmax.int(relu_default, 1)",
        "sub_tensor = aten.sub.Tensor(softmax_int, softmax_int)",
        "return sub_tensor",
    ])


def pair(first, second, *, shape=(2, 4, 6, 6)):
    """A graph that adds up two calls, each given as a function of the sketch and its two inputs."""
    sketch = Sketch()
    x, y = sketch.input("x", *shape), sketch.input("y", *shape)
    a, b = first(sketch, x, y), second(sketch, x, y)
    return sketch.output(sketch.call(aten.cat.default, [a, b]))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda s, x, y: s.call(aten.avg_pool2d.default, x, [2, 2]), lambda s, x, y: s.call(aten.avg_pool2d.default, x, (2, 2), [])),
        (lambda s, x, y: s.call(aten.softmax.int, x, 1), lambda s, x, y: s.call(aten.softmax.int, x, dim=1, dtype=None)),
        (lambda s, x, y: s.call(aten.add.Tensor, x, y), lambda s, x, y: s.call(aten.add.Tensor, y, x, alpha=1)),
        (lambda s, x, y: s.call(aten.mul.Tensor, x, y), lambda s, x, y: s.call(aten.mul.Tensor, y, x)),
        (lambda s, x, y: s.call(aten.dropout.default, x, 0.5, False), lambda s, x, y: s.call(aten.dropout.default, x, 0.5, False)),
    ],
)
def test_equal_however_written(first, second):
    gm = pair(first, second)
    before = copy_of(gm)
    assert EliminateCommonSubexpressions()(gm).changes == 1
    assert_same(gm, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda s, x, y: s.call(aten.sub.Tensor, x, y), lambda s, x, y: s.call(aten.sub.Tensor, y, x)),
        (lambda s, x, y: s.call(aten.add.Tensor, x, y, alpha=2), lambda s, x, y: s.call(aten.add.Tensor, y, x, alpha=2)),
        (lambda s, x, y: s.call(aten.add.Tensor, x, y), lambda s, x, y: s.call(aten.add.Tensor, x, y, alpha=2)),
        (lambda s, x, y: s.call(aten.softmax.int, x, 1), lambda s, x, y: s.call(aten.softmax.int, x, 2)),
        (lambda s, x, y: s.call(aten.rand_like.default, x), lambda s, x, y: s.call(aten.rand_like.default, x)),
        (lambda s, x, y: s.call(aten.dropout.default, x, 0.5, True), lambda s, x, y: s.call(aten.dropout.default, x, 0.5, True)),
        (lambda s, x, y: s.call(aten.div.Scalar, x, 0.0), lambda s, x, y: s.call(aten.div.Scalar, x, -0.0)),
        (lambda s, x, y: s.call(aten.relu.default, x), lambda s, x, y: s.call(aten.relu.default, y)),
        (lambda s, x, y: s.call(aten.empty_like.default, x), lambda s, x, y: s.call(aten.empty_like.default, x)),
    ],
)
def test_near_misses_stay_two(first, second):
    gm = pair(first, second)
    before = lines(gm)
    assert EliminateCommonSubexpressions()(gm).changes == 0
    assert lines(gm) == before


def test_the_larger_of_two_zeros_depends_on_their_order():
    for target in (aten.maximum.default, aten.minimum.default):
        gm = pair(lambda s, x, y, op=target: s.call(op, x, y), lambda s, x, y, op=target: s.call(op, y, x))
        before = copy_of(gm)
        EliminateCommonSubexpressions()(gm)
        zeros = torch.zeros(2, 4, 6, 6)
        assert torch.equal(run(gm, [zeros, -zeros])[0].signbit(), run(before, [zeros, -zeros])[0].signbit())


def test_sums_that_are_laid_out_in_different_ways_stay_two():
    """A sum is laid out as its first operand."""
    sketch = Sketch()
    x = sketch.input("x", 3, 3)
    y = sketch.call(aten.mul.Tensor, sketch.call(aten.t.default, x), 2)
    first, second = sketch.call(aten.add.Tensor, y, x), sketch.call(aten.add.Tensor, x, y)
    check(sketch.output(sketch.call(aten.sum.dim_IntList, first, [0]), sketch.call(aten.view.default, second, [-1])), 0)


def test_numbers_of_different_types_differ():
    sketch = Sketch()
    x = sketch.input("x", 2, 3, dtype=torch.int64)
    a = [sketch.call(aten.mul.Scalar, x, factor) for factor in (1, 1.0)]
    gm = sketch.output(sketch.call(aten.cat.default, a))
    check(gm, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4, 5)])
def test_equal_constants_become_one(dtype, shape):
    sketch = Sketch()
    x = sketch.input("x", *shape)
    value = (torch.randn(shape) * 3).to(dtype)
    nodes = [sketch.constant(name, value.clone()) for name in "abc"]
    x = sketch.call(aten.mul.Tensor, sketch.call(aten.mul.Tensor, sketch.call(aten.mul.Tensor, x, nodes[0]), nodes[1]), nodes[2])
    gm = sketch.output(x)
    check(gm, 2, [line.replace(", b)", ", a)").replace(", c)", ", a)") for line in lines(gm)])
    EliminateDeadCode()(gm)
    assert [name for name, _ in gm.named_buffers()] == ["a"]


def test_constants_that_differ_a_little_stay_two():
    value = torch.randn(6, 6)
    last, zero = value.clone(), torch.zeros(6, 6)
    last[5, 5] += 1e-3
    for first, second in (
        (value, last),
        (value, value.double()),
        (value, value.reshape(36)),
        (torch.eye(6), torch.eye(6).t()),  # equal numbers, other strides
        (zero, -zero),
        (value, value.t().contiguous()),
    ):
        sketch = Sketch()
        a, b = sketch.constant("a", first), sketch.constant("b", second)
        x = sketch.call(aten.sum.default, a), sketch.call(aten.sum.default, sketch.call(aten.neg.default, b))
        check(sketch.output(sketch.call(aten.add.Tensor, *x)), 0)


def test_one_tensor_under_two_names_is_one():
    sketch = Sketch()
    x, shared = sketch.input("x", 3), torch.randn(3)
    y = sketch.call(aten.mul.Tensor, x, sketch.constant("a", shared))
    gm = sketch.output(sketch.call(aten.add.Tensor, y, sketch.constant("b", shared)))
    check(gm, 1, ["mul_tensor = aten.mul.Tensor(x, a)", "add_tensor = aten.add.Tensor(mul_tensor, a)", "return add_tensor"])


def test_two_returned_tensors_stay_two():
    sketch = Sketch()
    x = sketch.input("x", 2, 3)
    nodes = [sketch.call(aten.relu.default, x) for _ in range(2)]
    gm = sketch.output(nodes[0], sketch.call(aten.reshape.default, nodes[1], [3, 2]))
    check(gm, 0)
    first, second = run(gm, random_inputs(gm))
    first.zero_()
    assert second.abs().sum() > 0


def test_a_returned_tensor_and_one_that_is_not_become_one():
    sketch = Sketch()
    x = sketch.input("x", 2, 3)
    inner = sketch.call(aten.neg.default, sketch.call(aten.relu.default, x))
    gm = sketch.output(sketch.call(aten.relu.default, x), inner)
    check(gm, 1, [
        "relu_default = aten.relu.default(x)",
        "neg_default = aten.neg.default(relu_default)",
        "return relu_default, neg_default",
    ])


def test_parts_and_sizes():
    sketch = Sketch()
    x = sketch.input("x", Dim("n", 2, 2, 4), 4)
    sizes = [sketch.call(operator.mul, sketch.call(aten.sym_size.int, x, 0), 2) for _ in range(2)]
    parts = [sketch.call(operator.getitem, sketch.call(aten.split.Tensor, x, 2, 1), index) for index in (0, 1, 0)]
    y = sketch.call(aten.cat.default, [sketch.call(aten.reshape.default, part, [size]) for part, size in zip(parts, [*sizes, sizes[0]])])
    gm = sketch.output(y)
    before = copy_of(gm)
    # sym_size, mul; two splits, the third part, its reshape
    assert EliminateCommonSubexpressions()(gm).changes == 6
    assert_same(gm, before, which=("min", "opt", "max"), rtol=0, atol=0)


def test_fuel_stops_it():
    sketch = Sketch()
    x = sketch.input("x", 2, 3)
    nodes = [sketch.call(aten.relu.default, x) for _ in range(4)]
    gm = sketch.output(sketch.call(aten.cat.default, nodes))
    assert EliminateCommonSubexpressions()(gm, PassContext(fuel=Fuel(2))).changes == 2


def test_work_grows_with_the_graph_not_with_its_square():
    def work(count):
        sketch = Sketch()
        x = sketch.input("x", 2)
        for _ in range(count):
            x = sketch.call(aten.add.Tensor, sketch.call(aten.relu.default, x), sketch.call(aten.relu.default, x))
        sketch.graph.output((x,))
        gm = torch.fx.GraphModule(sketch.root, sketch.graph)
        return count_calls(lambda: EliminateCommonSubexpressions().apply(gm, PassContext()))

    assert work(1000) < 11 * work(100)

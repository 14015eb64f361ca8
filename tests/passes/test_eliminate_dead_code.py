from __future__ import annotations

import torch

from tests.helpers import Sketch, assert_same, copy_of, lines
from tiacc.passes.base import Fuel, PassContext
from tiacc.passes.eliminate_dead_code import EliminateDeadCode

aten = torch.ops.aten


def graph():
    sketch = Sketch()
    x = sketch.input("x", 2, 3)
    sketch.input("unread", 4)
    w, v = sketch.constant("w", torch.randn(3)), sketch.constant("v", torch.randn(3))
    sketch.root.register_buffer("nobody", torch.randn(3))
    y = sketch.call(aten.mul.Tensor, x, w)
    sketch.call(aten.neg.default, sketch.call(aten.add.Tensor, y, v))
    size = sketch.call(aten.sym_size.int, x, 0)
    sketch.call(aten.split.Tensor, x, 1)
    return sketch.output(sketch.call(aten.relu.default, y)), size


def test_unread_nodes_and_tensors_go():
    gm, _ = graph()
    gm.register_buffer("nobody", torch.randn(3))
    gm.add_submodule("inner", torch.nn.Linear(2, 2))
    before = copy_of(gm)
    result = EliminateDeadCode()(gm)
    # neg, add, get_attr v, sym_size, split; tensors v, nobody, inner.weight, inner.bias
    assert result.changes == 9
    assert lines(gm) == ["mul_tensor = aten.mul.Tensor(x, w)", "relu_default = aten.relu.default(mul_tensor)", "return relu_default"]
    assert [name for name, _ in gm.named_buffers()] == ["w"]
    assert list(gm.named_parameters()) == []
    assert [node.name for node in gm.graph.nodes if node.op == "placeholder"] == ["x", "unread"]
    assert_same(gm, before)
    assert EliminateDeadCode()(gm).changes == 0


def test_random_draws_and_checks_stay():
    sketch = Sketch()
    x = sketch.input("x", 2, 3)
    sketch.call(aten.rand_like.default, x)
    sketch.call(aten.dropout.default, x, 0.5, True)
    sketch.call(aten._assert_async.msg, sketch.call(aten.all.default, sketch.call(aten.isfinite.default, x)), "not finite")
    gm = sketch.output(sketch.call(aten.relu.default, x))
    before = lines(gm)
    assert EliminateDeadCode()(gm).changes == 0
    assert lines(gm) == before


def test_a_dropout_that_is_off_goes():
    sketch = Sketch()
    x = sketch.input("x", 2, 3)
    sketch.call(aten.dropout.default, x, 0.5, False)
    gm = sketch.output(sketch.call(aten.relu.default, x))
    assert EliminateDeadCode()(gm).changes == 1


def test_fuel_stops_it():
    gm, _ = graph()
    assert EliminateDeadCode()(gm, PassContext(fuel=Fuel(2))).changes == 2
    assert [word in str(lines(gm)) for word in ("neg", "sym_size", "split")] == [True, False, False]

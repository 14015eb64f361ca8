from __future__ import annotations

import operator

import pytest
import torch
from torch import fx

from tests.helpers import Dim, Sketch
from tiacc.graph.specs import spec_of
from tiacc.passes import rewrite
from tiacc.passes.cast_half import CastHalf
from tiacc.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from tiacc.passes.eliminate_dead_code import EliminateDeadCode
from tiacc.passes.fold_constants import FoldConstants

aten = torch.ops.aten


def test_a_constant_gets_a_free_name_and_a_value():
    sketch = Sketch()
    x = sketch.input("x", 3)
    w = sketch.constant("w", torch.randn(3))
    y = sketch.call(aten.mul.Tensor, x, w, source="net.py:2")
    gm = sketch.output(y)
    y = gm.graph.find_nodes(op="call_function", target=aten.mul.Tensor)[0]
    nodes = [rewrite.add_constant(y, name, torch.full((2, 2), float(index))) for index, name in enumerate(["w", "w", "a.b-c", "forward"])]
    assert [node.target for node in nodes] == ["w_1", "w_2", "a_b_c", "forward_1"]
    assert [rewrite.constant_of(node)[0, 0].item() for node in nodes] == [0.0, 1.0, 2.0, 3.0]
    assert str(spec_of(nodes[0].meta["val"])) == "float32[2, 2]"
    assert torch.equal(gm.w, rewrite.constant_of(y.args[1]))
    assert rewrite.constant_of(y) is None
    assert rewrite.constant_of(3) is None


def test_many_constants_of_one_name_do_not_try_the_names_of_those_before(monkeypatch):
    """Layers that share a weight each fold something into it."""
    sketch = Sketch()
    gm = sketch.output(sketch.call(aten.relu.default, sketch.input("x", 3)))
    anchor, tried = gm.graph.output_node(), []
    get = torch.nn.Module.__getattr__
    monkeypatch.setattr(torch.nn.Module, "__getattr__", lambda self, name: tried.append(name) or get(self, name))
    for _ in range(20):
        rewrite.add_constant(anchor, "w", torch.zeros(1))
    assert [node.target for node in gm.graph.find_nodes(op="get_attr")] == ["w", *(f"w_{count}" for count in range(1, 20))]
    assert sum(name.startswith("w") for name in tried) <= 5 * 20


def test_a_constant_needs_a_module():
    with pytest.raises(ValueError, match="belongs to no module"):
        rewrite.add_constant(fx.Graph().placeholder("x"), "w", torch.zeros(1))


def test_a_call_takes_the_source_line_of_what_it_stands_for():
    sketch = Sketch()
    x = sketch.input("x", 3)
    y = sketch.call(aten.relu.default, x, source="net.py:2")
    z = sketch.call(aten.neg.default, y)
    gm = sketch.output(z)
    x, y, z, _ = gm.graph.nodes
    made = rewrite.add_call(z, aten.add.Tensor, y, y, alpha=2, like=y, val=y.meta["val"])
    assert (made.next, made.meta["source"], made.meta["val"], made.kwargs) == (z, "net.py:2", y.meta["val"], {"alpha": 2})
    plain = rewrite.add_call(z, aten.relu.default, y)
    assert plain.meta == {}
    rewrite.replace(z, made)
    assert rewrite.returned_nodes(gm) == (made,)
    assert rewrite.single_user(made) is gm.graph.output_node()
    assert rewrite.single_user(y) is None


@pytest.mark.parametrize(
    ("target", "args", "is_pure"),
    [
        (aten.relu.default, ("x",), True),
        (aten.relu_.default, ("x",), False),
        (aten.rand.default, ([3],), False),
        (aten.dropout.default, ("x", 0.5, False), True),
        (aten.dropout.default, ("x", 0.5, True), False),
        (aten._assert_async.default, ("x",), False),
        (operator.getitem, ("x", 0), True),
        (operator.mul, (2, 3), True),
        (aten.sym_size.int, ("x", 0), True),
        (print, ("x",), False),
    ],
)
def test_what_may_be_dropped_merged_or_folded(target, args, is_pure):
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(target, tuple(x if arg == "x" else arg for arg in args))
    assert rewrite.is_pure(node) == is_pure
    assert not rewrite.is_pure(x)


def statistics(target, *flags, with_statistics=True):
    """A normalisation of a constant by the statistics of the batch, read by nobody, and one that is read."""
    sketch = Sketch()
    c = sketch.constant("c", torch.randn(2, 3, 4))
    mean = sketch.constant("mean", torch.zeros(3)) if with_statistics else None
    var = sketch.constant("var", torch.ones(3)) if with_statistics else None
    for _ in range(2):
        node = sketch.call(target, c, None, None, mean, var, *flags)
    return sketch.output(sketch.call(aten.add.Tensor, sketch.input("x", 2, 3, 4), node))


@pytest.mark.parametrize(
    ("target", "flags"),
    [(aten.batch_norm.default, (True, 0.1, 1e-5, True)), (aten.instance_norm.default, (True, 0.1, 1e-5, True))],
)
def test_what_writes_its_statistics_is_neither_folded_nor_merged_nor_dropped(target, flags):
    gm = statistics(target, *flags)
    nodes = gm.graph.find_nodes(op="call_function", target=target)
    assert [rewrite.is_pure(node) for node in nodes] == [False, False]
    for pass_ in (FoldConstants(), EliminateCommonSubexpressions(), EliminateDeadCode()):
        assert pass_(gm).changes == 0
    assert torch.equal(gm.mean, torch.zeros(3))
    assert torch.equal(gm.var, torch.ones(3))
    # The written-into statistics are the model's own in half precision too.
    CastHalf(torch.bfloat16)(gm)
    gm(torch.randn(2, 3, 4))
    assert gm.mean.abs().sum() > 0
    gm = statistics(target, *flags, with_statistics=False)
    assert all(rewrite.is_pure(node) for node in gm.graph.find_nodes(op="call_function", target=target))


def test_types_are_the_same_for_every_size_or_not():
    sketch = Sketch()
    x, y = sketch.input("x", Dim("n", 2, 3, 4), 3), sketch.input("y", Dim("m", 2, 3, 4), 3)
    flat = sketch.call(aten.flatten.using_ints, x, 0, 1)
    again = sketch.call(aten.reshape.default, x, [-1])
    turned = sketch.call(aten.t.default, sketch.call(aten.contiguous.default, sketch.call(aten.t.default, x)))
    wide = sketch.call(aten.to.dtype, x, torch.float64)
    gm = sketch.output(flat, again, turned, wide, y)
    val = {node.name: node.meta["val"] for node in gm.graph.nodes}
    same = rewrite.same_type
    assert same(val["x"], val["x"])
    assert same(val["flatten_using_ints"], val["reshape_default"])
    assert same(val["x"], val["t_default_1"])
    assert not rewrite.same_layout(val["x"], val["t_default_1"])
    assert not same(val["x"], val["y"]), "n is not m, though both may be 3"
    assert not same(val["x"], val["to_dtype"])
    assert not same(val["x"], val["flatten_using_ints"])
    assert not same(val["x"], 3)


def test_finiteness():
    for bad in (float("nan"), float("inf"), -float("inf")):
        assert not rewrite.is_finite(torch.tensor([1.0, bad, 2.0]))
    for good in (torch.zeros(0), torch.tensor(1.0), torch.full((3,), 3e38), torch.randn(3).half()):
        assert rewrite.is_finite(good)


def test_memory_follows_views_and_parts():
    sketch = Sketch()
    x = sketch.input("x", 4, 4)
    inner = sketch.call(aten.relu.default, x)
    made = sketch.call(aten.neg.default, x)
    part = sketch.call(operator.getitem, sketch.call(aten.split.Tensor, made, 2), 0)
    view = sketch.call(aten.t.default, part)
    gm = sketch.output(view, sketch.call(aten.neg.default, inner))
    named = {node.name: node for node in gm.graph.nodes}
    memory = rewrite.Memory(gm)
    returned = {name for name, node in named.items() if memory.is_returned(node)}
    assert returned == {"t_default", "getitem", "split_tensor", "neg_default", "neg_default_1"}
    # What is not returned may become anything.
    assert memory.may_replace(named["relu_default"], named["x"])
    # A returned tensor may not become an input, nor share memory with another, but may become one that nobody else has.
    assert not memory.may_replace(named["neg_default_1"], named["x"])
    assert not memory.may_replace(named["neg_default_1"], named["neg_default"])
    assert not memory.may_replace(named["neg_default_1"], named["t_default"])
    assert memory.may_replace(named["neg_default_1"], named["relu_default"])
    assert not memory.may_replace(named["neg_default"], named["relu_default"]), "it is taken now"

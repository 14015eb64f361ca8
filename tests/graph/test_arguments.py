from __future__ import annotations

import operator

import pytest
import torch
from torch import fx

from tiacc.graph import arguments

aten = torch.ops.aten


def call(target, *args, **kwargs):
    graph = fx.Graph()
    args = tuple(graph.placeholder(a) if isinstance(a, str) else a for a in args)
    kwargs = {name: graph.placeholder(a) if isinstance(a, str) else a for name, a in kwargs.items()}
    return graph.call_function(target, args, kwargs)


def named(node):
    return {k: v.name if isinstance(v, fx.Node) else v for k, v in arguments.bound(node).items()}


FULL = {"input": "x", "weight": "y", "bias": None, "stride": [2, 2], "padding": [0, 0], "dilation": [1, 1], "groups": 1}


@pytest.mark.parametrize(
    "node",
    [
        call(aten.conv2d.default, "x", "y", None, [2, 2]),
        call(aten.conv2d.default, "x", "y", None, [2, 2], [0, 0], [1, 1], 1),
        call(aten.conv2d.default, "x", "y", stride=[2, 2]),
        call(aten.conv2d.default, input="x", weight="y", stride=[2, 2], groups=1),
    ],
)
def test_every_spelling_of_a_call_is_bound_alike(node):
    assert named(node) == FULL
    assert list(named(node)) == list(FULL)


def test_keyword_only_and_enum_defaults_are_torch_objects():
    assert named(call(aten.add.Tensor, "x", "y")) == {"self": "x", "other": "y", "alpha": 1}
    assert named(call(aten.contiguous.default, "x"))["memory_format"] is torch.contiguous_format
    assert named(call(aten.randperm.default, 3))["dtype"] is torch.int64


def test_a_default_list_is_the_callers_own():
    first, second = (call(aten.avg_pool2d.default, "x", [2, 2]) for _ in range(2))
    arguments.bound(first)["padding"].append(7)
    assert arguments.bound(second)["padding"] == [0, 0]


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (call(aten.relu.default, "x", "y"), "takes 1 arguments and was given 2"),
        (call(aten.add.Tensor, "x"), "was not given 'other'"),
        (call(aten.add.Tensor, "x", "y", 2), "takes 'alpha' by keyword only"),
        (call(aten.relu.default, "x", inplace=True), r"no use for the keyword arguments \['inplace'\]"),
        (call(aten.pow.Tensor_Scalar, "x", 2, exponent=3), r"no use for the keyword arguments \['exponent'\]"),
        (call(operator.getitem, "x", 0), "calls no operator overload"),
        (fx.Graph().placeholder("x"), "calls no operator overload"),
    ],
)
def test_a_call_that_does_not_fit_is_refused_by_name(node, words):
    with pytest.raises(TypeError, match=words):
        arguments.bound(node)


def test_rebind_keeps_the_spelling_and_fills_what_lies_between():
    node = call(aten.conv2d.default, "x", "y")
    before = named(node)
    arguments.rebind(node, groups=4)
    assert node.args[2:] == (None, [1, 1], [0, 0], [1, 1], 4)
    assert node.kwargs == {}
    assert named(node) == {**before, "groups": 4}

    node = call(aten.add.Tensor, "x", "y")
    arguments.rebind(node, alpha=2)
    assert (len(node.args), node.kwargs) == (2, {"alpha": 2})
    arguments.rebind(node, **{"self": node.args[1]})
    assert named(node) == {"self": "y", "other": "y", "alpha": 2}
    assert len(node.graph.find_nodes(op="placeholder")[0].users) == 0


def test_rebind_moves_a_named_positional_to_its_place():
    node = call(aten.softmax.int, "x", dim=1)
    arguments.rebind(node, dtype=torch.float32)
    assert node.args[1:] == (1, torch.float32)
    assert node.kwargs == {}


def test_rebind_refuses_an_unknown_name():
    with pytest.raises(TypeError, match=r"no parameters \['beta'\]"):
        arguments.rebind(call(aten.add.Tensor, "x", "y"), beta=1)

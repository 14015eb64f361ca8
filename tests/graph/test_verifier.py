"""Each rule of the verifier lets a good graph pass and names the node that breaks it."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import fx

from tests.graph.programs import PROGRAMS
from tests.graph.test_importer import abstract, randomised
from tiacc.errors import ImportGraphError
from tiacc.graph import specs
from tiacc.graph.importer import import_module
from tiacc.graph.specs import TensorSpec
from tiacc.graph.verifier import verify

aten = torch.ops.aten


def good() -> fx.GraphModule:
    graph, root = fx.Graph(), torch.nn.Module()
    root.register_buffer("weight", torch.randn(3, 4))
    x = graph.placeholder("x")
    y = graph.call_function(aten.mm.default, (x, graph.get_attr("weight")))
    parts = graph.call_function(aten.split.Tensor, (y, 2, 1))
    rows = graph.call_function(aten.sym_size.int, (x, 0))
    picked = graph.call_function(operator.getitem, (parts, 1))
    graph.output((graph.call_function(aten.view.default, (picked, [rows, 2])),))
    return specs.propagate(fx.GraphModule(root, graph), [TensorSpec((5, 3), torch.float32)])


def node_of(gm: fx.GraphModule, target: object) -> fx.Node:
    return next(node for node in gm.graph.nodes if node.target is target or node.op == target)


def in_place(gm: fx.GraphModule) -> None:
    node_of(gm, aten.mm.default).target = aten.relu_.default
    node_of(gm, aten.relu_.default).args = (node_of(gm, "placeholder"),)


def no_value(gm: fx.GraphModule) -> None:
    del node_of(gm, aten.mm.default).meta["val"]


def foreign_call(gm: fx.GraphModule) -> None:
    node_of(gm, aten.mm.default).target = torch.mm


def missing_argument(gm: fx.GraphModule) -> None:
    node_of(gm, aten.mm.default).args = (node_of(gm, "placeholder"),)


def unknown_keyword(gm: fx.GraphModule) -> None:
    node_of(gm, aten.mm.default).kwargs = {"speed": 11}


def absent_part(gm: fx.GraphModule) -> None:
    node = node_of(gm, operator.getitem)
    node.args = (node.args[0], 7)


def stale_constant(gm: fx.GraphModule) -> None:
    gm.weight = torch.randn(3, 4, dtype=torch.float64)


def nested_output(gm: fx.GraphModule) -> None:
    output = node_of(gm, "output")
    output.args = ((output.args[0],),)


def test_good_graphs_pass() -> None:
    verify(good())
    for name in ("conv-net", "in-place-views", "unrolled", "static-branch"):
        program = PROGRAMS[name]
        result = import_module(torch.jit.script(randomised(program.make())), [abstract(value) for value in program.calls[0]])
        for region in result.regions:
            verify(region.graph)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (in_place, "relu_.* writes into none"),
        (no_value, "mm.*meta"),
        (foreign_call, "a call is of an operator"),
        (missing_argument, "arguments of its schema"),
        (unknown_keyword, "arguments of its schema"),
        (absent_part, "getitem picks"),
        (stale_constant, "weight.*of the dtype and shape"),
        (nested_output, "flat tuple"),
    ],
)
def test_each_breach_is_named(damage: Callable[[fx.GraphModule], None], said: str) -> None:
    gm = good()
    damage(gm)
    with pytest.raises(ImportGraphError, match=said):
        verify(gm)

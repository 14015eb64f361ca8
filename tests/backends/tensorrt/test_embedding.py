"""Embeddings against eager torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import Parameter

from tests.backends.tensorrt.cases import Case, case
from tests.backends.tensorrt.harness import check, check_graph, graph_of, needs_rtx, one_node, refused

pytestmark = needs_rtx
aten = torch.ops.aten

torch.manual_seed(0)
_TABLE, _ROWS = torch.randn(10, 4), torch.randint(0, 10, (12,))


def _offsets(*values: int) -> Parameter:
    return Parameter(torch.tensor(values), requires_grad=False)


CASES = [
    *(case(aten.embedding.default, _TABLE, torch.randint(0, 10, shape)) for shape in ((2, 3), (5,), (), (0,))),
    case(aten.embedding.default, Parameter(_TABLE.half()), torch.randint(0, 10, (2, 3), dtype=torch.int32), 1),
]
_BAGS = [
    *(((_TABLE, _ROWS, _offsets(0, 4, 8), False, mode)) for mode in (0, 1, 2)),
    *(((_TABLE, _ROWS, _offsets(0, 4, 4, 9), False, mode)) for mode in (0, 1, 2)),
    (_TABLE, _ROWS, _offsets(0, 3, 12), False, 0, False, torch.randn(12), True),
]


@pytest.mark.parametrize("args", _BAGS, ids=range(len(_BAGS)))
@pytest.mark.parametrize("op", [aten.embedding_bag.default, aten._embedding_bag.default, aten._embedding_bag_forward_only.default])
def test_bags(op: Any, args: tuple[Any, ...]) -> None:
    gm, inputs = one_node(op, *args)
    output = next(node for node in gm.graph.nodes if node.op == "output")
    output.args = ((output.args[0][0],),)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    check_graph(gm, inputs, compile=True)


def test_bags_without_a_padding_index() -> None:
    def function(table: Any, rows: Any, offsets: Any) -> Any:
        return aten.embedding_bag.padding_idx(table, rows, offsets, False, 0, False, None, False, None)[0]

    gm = graph_of(lambda table, rows: function(table, rows, table), 2)
    table, rows, offsets = _BAGS[0][:3]
    gm.register_buffer("offsets", offsets.detach())
    bag = next(node for node in gm.graph.nodes if node.target is aten.embedding_bag.padding_idx)
    with gm.graph.inserting_before(bag):
        bag.update_arg(2, gm.graph.get_attr("offsets"))
    gm.recompile()
    check_graph(gm, [table, rows])


def test_dynamic_sizes() -> None:
    others = [[_TABLE, torch.randint(0, 10, (1, 5))]]
    graph = graph_of(lambda table, index: aten.embedding.default(table, index), 2)
    check_graph(graph, [_TABLE, torch.randint(0, 10, (2, 3))], dynamic=[(), (0, 1)], others=others, compile=True)


@pytest.mark.parametrize("item", CASES, ids=str)
def test_matches_eager(item: Case) -> None:
    check(item.op, *item.args, **item.kwargs)


def test_bags_that_are_not_known_are_refused() -> None:
    assert "gradient" in refused(aten.embedding_bag.default, _TABLE, _ROWS, torch.tensor([0, 4]))

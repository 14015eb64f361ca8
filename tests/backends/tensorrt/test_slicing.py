"""Slices, diagonals and triangles against eager torch."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from tests.backends.tensorrt.cases import Case, case
from tests.backends.tensorrt.harness import check, check_graph, check_varying, graph_of, needs_rtx, rejection
from tiacc.graph import specs
from tiacc.graph.specs import Dim, TensorSpec

pytestmark = needs_rtx
aten = torch.ops.aten

torch.manual_seed(0)
_X, _I, _B = torch.randn(3, 4, 5), torch.randint(-9, 9, (3, 4, 5)), torch.randn(3, 4, 5) > 0
_END = 9223372036854775807

CASES = [
    *(case(aten.slice.Tensor, value, -1, 1, 4, 2) for value in (_X, _I, _B, _X.half(), Parameter(_X))),
    *(case(aten.slice.Tensor, _X, 1, *span) for span in ((0, _END), (-2, _END), (0, -1), (None, None), (1, 9, 3), (3, 2))),
    *(case(aten.select.int, value, dim, index) for value in (_X, _I, _B) for dim, index in ((0, 1), (-1, -2))),
    case(aten.narrow.default, _X, 2, 1, 3),
    case(aten.narrow.default, _X, -1, -3, 2),
    case(aten.slice_scatter.default, _X, torch.randn(3, 2, 5), 1, 1, 3),
    case(aten.slice_scatter.default, _X, torch.randn(3, 4, 2), 2, 1, 5, 2),
    case(aten.slice_scatter.default, _I, torch.zeros(3, 4, 5, dtype=torch.int64)),
    case(aten.select_scatter.default, _X, torch.randn(3, 5), 1, -1),
    case(aten.select_scatter.default, _B, _B[:, 0], 1, 2),
    *(case(aten.diagonal.default, _X, offset, 1, -1) for offset in (0, 2, -1)),
    case(aten.linalg_diagonal.default, _X, offset=1),
    case(aten.diagonal_scatter.default, _X, torch.randn(5, 3)),
    case(aten.diagonal_scatter.default, _X, torch.randn(3, 3), -1, 1, 2),
    *(case(aten.diag.default, value, offset) for value in (_X[0], _X[0, 0]) for offset in (0, 1, -2)),
    *(case(aten.diag_embed.default, value, 1) for value in (_X, _I, _B)),
    case(aten.diag_embed.default, _X[0], -1, 0, 2),
    case(aten.diagflat.default, _X[0], 1),
    case(aten.trace.default, _X[0]),
    case(aten.trace.default, _I[0]),
    *(case(op.default, value, diagonal) for op in (aten.tril, aten.triu) for value in (_X, _I, _B) for diagonal in (0, 1, -2)),
]


def _size(x: Any, dim: int) -> Any:
    return aten.sym_size.int(x, dim)


DYNAMIC: dict[str, Callable[[Any], Any]] = {
    "from 1": lambda x: aten.slice.Tensor(x, 2, 1, _END),
    "to the last": lambda x: aten.slice.Tensor(x, 2, 0, -1),
    "the last two": lambda x: aten.slice.Tensor(x, 2, -2),
    "every third": lambda x: aten.slice.Tensor(x, 2, 1, _END, 3),
    "inside": lambda x: aten.slice.Tensor(x, 2, 1, -1),
    "to half": lambda x: aten.slice.Tensor(x, 2, 0, operator.floordiv(_size(x, 2), 2)),
    "the last": lambda x: aten.select.int(x, 2, -1),
    "the first": lambda x: aten.select.int(x, 0, 0),
    "narrow": lambda x: aten.narrow.default(x, 2, 1, 2),
    "replace the inside": lambda x: aten.slice_scatter.default(x, aten.slice.Tensor(aten.neg.default(x), 2, 1, -1), 2, 1, -1),
    "replace the last": lambda x: aten.select_scatter.default(x, aten.select.int(aten.neg.default(x), 2, 0), 2, -1),
    "lower triangle": lambda x: aten.tril.default(x),
    "upper triangle": lambda x: aten.triu.default(x, 1),
    "diagonal matrices": lambda x: aten.diag_embed.default(x, 1),
}


@pytest.mark.parametrize("item", CASES, ids=str)
def test_matches_eager(item: Case) -> None:
    check(item.op, *item.args, **item.kwargs)


@pytest.mark.parametrize("function", DYNAMIC.values(), ids=DYNAMIC.keys())
def test_dynamic_sizes(function: Callable[[Any], Any]) -> None:
    check_varying(function)


def test_a_slice_of_a_table_to_a_dynamic_length() -> None:
    def function(x: Any, table: Any) -> Any:
        return aten.add.Tensor(x, aten.slice.Tensor(table, 0, 0, _size(x, 1)))

    others = [[torch.randn(2, 3, 4), torch.randn(20, 4)], [torch.randn(2, 9, 4), torch.randn(20, 4)]]
    check_graph(graph_of(function, 2), [torch.randn(2, 5, 4), torch.randn(20, 4)], dynamic=[(1,), ()], others=others, compile=True)


def test_a_slice_that_may_end_behind_the_dimension_is_refused() -> None:
    gm = graph_of(lambda x: aten.slice.Tensor(x, 0, 0, 5), 1)
    specs.propagate(gm, [TensorSpec((Dim("n", 1, 6, 12), 3), torch.float32)])
    assert "depends on a dynamic size" in rejection(gm)

"""Elements chosen by indices, against eager torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import Parameter

from tests.backends.tensorrt.cases import Case, case
from tests.backends.tensorrt.harness import check, check_graph, graph_of, needs_rtx, refused

pytestmark = needs_rtx
aten = torch.ops.aten

torch.manual_seed(0)
_X, _I, _B = torch.randn(4, 5, 6), torch.randint(-9, 9, (4, 5, 6)), torch.randn(4, 5, 6) > 0
_P, _Q = torch.tensor([0, 3, -1]), torch.tensor([[1], [-2]])
_SORTED = torch.tensor([-1.0, 0.0, 0.0, 1.5])

CASES = [
    *(case(aten.index_select.default, value, -2, torch.tensor([4, 0, 0])) for value in (_X, _I, _B)),
    case(aten.index_select.default, _X, 0, torch.tensor(2, dtype=torch.int32)),
    *(case(aten.gather.default, value, -1, torch.randint(0, 6, (4, 2, 3))) for value in (_X, _I, _B)),
    case(aten.gather.default, torch.randn(()), 0, torch.tensor(0)),
    case(aten.take.default, _X, torch.tensor([[0, 119], [-1, 7]])),
    case(aten.take_along_dim.default, _X, torch.randint(0, 5, (4, 2, 1)), 1),
    case(aten.take_along_dim.default, _X, torch.randint(0, 120, (7,))),
    *(case(aten.index.Tensor, value, [_P]) for value in (_X, _I, _B)),
    case(aten.index.Tensor, _X, [None, _Q]),
    case(aten.index.Tensor, _X, [_P, _Q]),
    case(aten.index.Tensor, _X, [None, _P, _Q]),
    case(aten.index.Tensor, _X, [_P, None, _Q]),
    case(aten.index.Tensor, _X, [_P, torch.tensor(1), _Q]),
    case(aten.index.Tensor, _X, [Parameter(_P, requires_grad=False), None, _Q.int()]),
    case(aten.index.Tensor_hacked_twin, _X, [_P, _P]),
    case(aten._unsafe_index.Tensor, _X, [None, _P, _P]),
    case(aten._unsafe_index.Tensor_hacked_twin, _X, [_P, _P]),
    case(aten.one_hot.default, torch.randint(0, 4, (2, 3)), 4),
    *(case(aten.bucketize.Tensor, torch.tensor([-2.0, 0.0, 1.5, 9.0, float("nan")]), _SORTED, right=right) for right in (False, True)),
    case(aten.bucketize.Scalar, 0.0, _SORTED, out_int32=True),
    case(aten.searchsorted.Tensor, _SORTED.expand(2, 4).clone(), torch.randn(2, 3)),
    case(aten.searchsorted.Tensor, _SORTED, torch.randn(2, 3), side="right"),
    case(aten.searchsorted.Tensor, _SORTED.flip(0), torch.randn(3), sorter=torch.arange(3, -1, -1)),
    case(aten.searchsorted.Scalar, _SORTED, 0.0, right=True),
    case(aten.isin.Tensor_Tensor, _I, torch.tensor([1, 5])),
    case(aten.isin.Tensor_Tensor, _I, torch.tensor([1, 5]), invert=True),
    case(aten.isin.Tensor_Scalar, _I, 3),
]


@pytest.mark.parametrize("item", CASES, ids=str)
def test_matches_eager(item: Case) -> None:
    check(item.op, *item.args, **item.kwargs)


def test_dynamic_sizes() -> None:
    def by_one(x: Any, index: Any) -> Any:
        return aten.index.Tensor(x, [None, None, index])

    def by_two(x: Any, index: Any) -> Any:
        return aten.index.Tensor(x, [index, None, index])

    for function in (by_one, by_two):
        others = [[torch.randn(3, 3, 4), torch.tensor([1, -2, 0])]]
        check_graph(
            graph_of(function, 2), [torch.randn(2, 3, 6), torch.tensor([0, 1, -1])], dynamic=[(0, 2), ()], others=others, compile=True
        )


def test_an_element_of_each_row() -> None:
    def function(x: Any, index: Any) -> Any:
        return aten.index.Tensor(x, [aten.arange.default(aten.sym_size.int(x, 0)), index])

    others = [[torch.randn(3, 3), torch.tensor([1, 2, 0])]]
    check_graph(graph_of(function, 2), [torch.randn(2, 3), torch.tensor([0, 2])], dynamic=[(0,), (0,)], others=others, compile=True)


def test_a_wide_float_is_refused() -> None:
    assert "float64" in refused(aten.index_select.default, _X.double(), 0, _P.abs())

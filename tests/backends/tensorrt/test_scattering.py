"""Elements written and added at indices, against eager torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.backends.tensorrt.cases import Case, case
from tests.backends.tensorrt.harness import check, check_graph, graph_of, needs_rtx, refused

pytestmark = needs_rtx
aten = torch.ops.aten

torch.manual_seed(0)
_X, _I, _B = torch.randn(4, 5, 6), torch.randint(-9, 9, (4, 5, 6)), torch.randn(4, 5, 6) > 0
_P, _Q = torch.tensor([0, 3, 1]), torch.tensor([[1], [-2]])
_MASK = torch.rand(4, 5) > 0.5
_ORDER = torch.argsort(torch.rand(4, 5, 6), -1)  # no index twice, which torch leaves open
_MANY = torch.randint(0, 6, (3, 5, 7))
_KINDS = ("sum", "prod", "mean", "amax", "amin")

CASES = [
    case(aten.scatter.src, _X, -1, _ORDER, torch.randn(4, 5, 6)),
    case(aten.scatter.src, _X, 2, _ORDER[:2, :3], torch.randn(4, 5, 6)),
    case(aten.scatter.src, _I, 2, _ORDER, _I.flip(0)),
    case(aten.scatter.src, _B, 2, _ORDER, _B.flip(0)),
    case(aten.scatter.value, _X, 1, torch.randint(0, 5, (4, 2, 6)), 2.5),
    case(aten.scatter.value, torch.randn(()), 0, torch.tensor(0), 1.0),
    case(aten.scatter.reduce, _X, 2, _MANY, torch.randn(3, 5, 7), reduce="add"),
    case(aten.scatter.value_reduce, _X, 2, _MANY[..., :2], 1.5, reduce="multiply"),
    case(aten.scatter_add.default, _X, 2, _MANY, torch.randn(3, 5, 7)),
    case(aten.scatter_add.default, _I, 2, _MANY, torch.randint(0, 9, (3, 5, 7))),
    *(
        case(aten.scatter_reduce.two, _X, 2, _MANY, torch.randn(3, 5, 7), kind, include_self=includes)
        for kind in _KINDS
        for includes in (True, False)
    ),
    case(aten.index_add.default, _X, 1, torch.tensor([0, 0, 4]), torch.randn(4, 3, 6), alpha=2),
    case(aten.index_add.default, _I, 0, _P, _I[:3]),
    *(case(aten.index_reduce.default, _X, 1, torch.tensor([0, 0, 4]), torch.randn(4, 3, 6), kind) for kind in _KINDS if kind != "sum"),
    case(aten.index_copy.default, _X, -1, torch.tensor([5, 0]), torch.randn(4, 5, 2)),
    case(aten.index_fill.int_Scalar, _X, 1, torch.tensor([0, 2]), 3.0),
    case(aten.index_fill.int_Tensor, _X, 1, torch.tensor([0, 2]), torch.tensor(3.0)),
    *(case(aten.index_put.default, value, [_P], value[:3]) for value in (_X, _I, _B)),
    case(aten.index_put.default, _X, [None, _P], torch.randn(6)),
    case(aten.index_put.default, _X, [None, _P, torch.tensor([1, 2, 5])], torch.randn(4, 3)),
    case(aten.index_put.default, _X, [_P, None, torch.tensor([1, 2, 5])], torch.randn(3, 5)),
    case(aten.index_put.default, _X, [torch.tensor([1, 1, -3])], torch.randn(3, 5, 6), True),
    case(aten.index_put.default, _X, [None, _Q, torch.tensor([0, 2])], torch.randn(4, 2, 2), True),
    case(aten.index_put.default, _X, [_MASK], torch.tensor(0.5)),
    case(aten.index_put.default, _X, [_MASK], torch.randn(1, 6)),
    case(aten.index_put.hacked_twin, _X, [_P], torch.randn(3, 5, 6)),
    case(aten._unsafe_index_put.default, _X, [_P], torch.randn(3, 5, 6)),
    case(aten._unsafe_index_put.hacked_twin, _X, [_P], torch.randn(3, 5, 6)),
    case(aten.put.default, _X, torch.tensor([0, 7]), torch.randn(2)),
    case(aten.put.default, _X, torch.tensor([7, 7, 0]), torch.randn(3), True),
]


@pytest.mark.parametrize("item", CASES, ids=str)
def test_matches_eager(item: Case) -> None:
    check(item.op, *item.args, **item.kwargs)


def test_dynamic_sizes() -> None:
    def put(x: Any, index: Any) -> Any:
        return aten.index_put.default(x, [None, index], aten.neg.default(aten.index.Tensor(x, [None, index])))

    def add(x: Any, index: Any) -> Any:
        return aten.index_add.default(x, 1, index, aten.index.Tensor(x, [None, index]))

    for function in (put, add):
        others = [[torch.randn(3, 3, 4), torch.tensor([1, 2])]]
        inputs = [torch.randn(2, 3, 6), torch.tensor([0, 2])]
        check_graph(graph_of(function, 2), inputs, dynamic=[(0, 2), ()], others=others, compile=True)


def test_a_sum_at_dynamic_indices() -> None:
    def function(x: Any, index: Any) -> Any:
        return aten.scatter_add.default(x, 2, index, aten.neg.default(x))

    others = [[torch.randn(3, 3, 4), torch.randint(0, 4, (3, 3, 4))]]
    inputs = [torch.randn(2, 3, 6), torch.randint(0, 6, (2, 3, 6))]
    check_graph(graph_of(function, 2), inputs, dynamic=[(0, 2), (0, 2)], others=others, compile=True)


def test_refusals() -> None:
    large = torch.zeros(5000, dtype=torch.int64)
    assert "comparisons" in refused(aten.scatter_add.default, torch.randn(5000), 0, large, torch.randn(5000))
    assert "depends on the data" in refused(aten.index_put.default, _X, [_MASK], torch.randn(int(_MASK.sum()), 6))
    assert "bool" in refused(aten.index_put.default, _B, [_P], _B[:3], True)

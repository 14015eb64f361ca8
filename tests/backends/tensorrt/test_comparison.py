"""Comparisons, logic and choice against eager torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import Parameter

from tests.backends.tensorrt.cases import Case, case
from tests.backends.tensorrt.harness import check, check_graph, graph_of, needs_rtx, refused, words

pytestmark = needs_rtx
aten = torch.ops.aten

torch.manual_seed(0)
_A, _B = torch.randint(-3, 4, (2, 3, 4)).float(), torch.randint(-3, 4, (3, 1)).float()
_I, _J = torch.randint(-3, 4, (2, 3, 4)), torch.randint(-3, 4, (4,))
_C, _D = torch.randn(2, 3, 4) > 0, torch.randn(3, 1) > 0
_NAN = torch.tensor([math.nan, 1.0, math.inf, -math.inf])
_RELATIONS = words(
    "eq ne not_equal lt less le less_equal gt greater ge greater_equal"
)

CASES = [
    *(case(getattr(aten, name).Tensor, _A, _B) for name in _RELATIONS),
    *(case(getattr(aten, name).Tensor, _I, _J) for name in _RELATIONS),
    *(case(getattr(aten, name).Tensor, _C, _D) for name in _RELATIONS),
    *(case(getattr(aten, name).Tensor, _I, _B) for name in _RELATIONS),
    *(case(getattr(aten, name).Tensor, _NAN, _NAN.flip(0)) for name in _RELATIONS),
    *(case(getattr(aten, name).Scalar, _A, 1) for name in _RELATIONS),
    *(case(getattr(aten, name).Scalar, _I, 0.5) for name in _RELATIONS),
    *(case(getattr(aten, name).Scalar, _C, True) for name in _RELATIONS),
    case(aten.isclose.default, _A, _A + 1e-6),
    case(aten.isclose.default, _NAN, _NAN, equal_nan=True),
    case(aten.isclose.default, _NAN, _NAN),
    case(aten.isclose.default, _I, _J, 0.5),
    case(aten.isclose.default, _C, _D),
    *(case(op.default, _A, _B) for op in (aten.logical_and, aten.logical_or, aten.logical_xor)),
    *(case(op.default, _C, _I) for op in (aten.logical_and, aten.logical_or, aten.logical_xor)),
    *(case(op.Tensor, _C, _D) for op in (aten.bitwise_and, aten.bitwise_or, aten.bitwise_xor, aten.__and__, aten.__or__, aten.__xor__)),
    *(case(op.Scalar, _C, True) for op in (aten.bitwise_and, aten.bitwise_or, aten.bitwise_xor, aten.__and__, aten.__or__, aten.__xor__)),
    *(case(op.Scalar_Tensor, True, _C) for op in (aten.bitwise_and, aten.bitwise_or, aten.bitwise_xor)),
    case(aten.where.self, _C, _A, _B),
    case(aten.where.self, _D, _A, _I),
    case(aten.where.self, _C, _C, _D),
    case(aten.where.self, _C, Parameter(_A), Parameter(torch.tensor(0.5))),
    case(aten.where.ScalarOther, _C, _A, 0),
    case(aten.where.ScalarOther, _C, _I, 2),
    case(aten.where.ScalarSelf, _C, 1.5, _A),
    case(aten.where.Scalar, _C, 1.5, -1.0),
    case(aten.masked_fill.Scalar, _A, _C, -math.inf),
    case(aten.masked_fill.Scalar, _A.half(), _D, -1e4),
    case(aten.masked_fill.Scalar, _I, _C, 7),
    case(aten.masked_fill.Scalar, torch.randn(4), _C, 0),
    case(aten.masked_fill.Tensor, _A, _D, Parameter(torch.tensor(2.0))),
]


@pytest.mark.parametrize("item", CASES, ids=str)
def test_matches_eager(item: Case) -> None:
    check(item.op, *item.args, **item.kwargs)


def test_attention_mask_with_dynamic_length() -> None:
    def function(scores: torch.fx.Proxy, mask: torch.fx.Proxy) -> torch.fx.Proxy:
        return aten.masked_fill.Scalar(scores, aten.eq.Scalar(mask, 0), -1e9)

    inputs = [torch.randn(2, 4, 5), torch.randint(0, 2, (4, 5))]
    others = [[torch.randn(1, 4, 5), torch.randint(0, 2, (4, 5))]]
    check_graph(graph_of(function, 2), inputs, dynamic=[(0,), ()], others=others, compile=True)


@pytest.mark.parametrize(
    ("op", "args", "reason"),
    [
        (aten.bitwise_and.Tensor, (_I, _I), "int64"),
        (aten.eq.Tensor, (_A.double(), _A), "float64"),
    ],
)
def test_refusals(op: object, args: tuple[object, ...], reason: str) -> None:
    assert reason in refused(op, *args)

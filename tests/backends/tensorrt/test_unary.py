"""Functions of one tensor against eager torch."""

from __future__ import annotations

import math

import pytest
import torch

from tests.backends.tensorrt.cases import Case, case
from tests.backends.tensorrt.harness import check, check_graph, graph_of, needs_rtx, refused, words

pytestmark = needs_rtx
aten = torch.ops.aten

torch.manual_seed(0)
_WIDE = torch.randn(3, 5) * 3
_UNIT = torch.rand(3, 5) * 1.9 - 0.95
_POSITIVE = torch.rand(3, 5) * 4 + 0.1
_ABOVE_ONE = _POSITIVE + 1
_SPECIAL = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.5, -2.5, 1e-6])
_INTEGERS = torch.randint(-5, 6, (3, 5))
_BOOLS = torch.randn(3, 5) > 0

_DOMAINS = {
    "sqrt": _POSITIVE, "rsqrt": _POSITIVE, "log": _POSITIVE, "log2": _POSITIVE, "log10": _POSITIVE, "log1p": _UNIT, "special_log1p": _UNIT,
    "asin": _UNIT, "acos": _UNIT, "arcsin": _UNIT, "arccos": _UNIT, "atanh": _UNIT, "arctanh": _UNIT,
    "acosh": _ABOVE_ONE, "arccosh": _ABOVE_ONE,
}  # fmt: skip
_FLOATING = words(
    "exp log sqrt reciprocal sin cos tan sinh cosh asin acos atan asinh acosh atanh arcsin arccos arctan arcsinh arccosh "
    "arctanh erf special_erf erfc special_erfc exp2 special_exp2 expm1 special_expm1 log1p special_log1p log2 log10 rsqrt "
    "square sinc special_sinc deg2rad rad2deg floor ceil round special_round trunc fix frac abs absolute neg negative sign "
    "sgn signbit positive isnan isinf isfinite isposinf isneginf logical_not nan_to_num"
)
_ON_INTEGERS = words(
    "exp sin atan sqrt square floor ceil round trunc fix abs absolute neg negative sign sgn signbit positive isnan isinf "
    "isfinite isposinf isneginf logical_not bitwise_not nan_to_num"
)
_ON_BOOLS = words(
    "exp sign sgn signbit isnan isfinite logical_not bitwise_not isposinf"
)


def _op(name: str) -> object:
    return getattr(aten, name).default


CASES = [
    *(case(_op(name), _DOMAINS.get(name, _WIDE)) for name in _FLOATING),
    *(case(_op(name), _DOMAINS.get(name, _WIDE).half()) for name in _FLOATING),
    *(case(_op(name), _INTEGERS.abs() if name == "sqrt" else _INTEGERS) for name in _ON_INTEGERS),
    *(case(_op(name), _INTEGERS.int()) for name in ("abs", "neg", "sign", "bitwise_not", "floor", "sin")),
    *(case(_op(name), _BOOLS) for name in _ON_BOOLS),
    *(case(_op(name), _SPECIAL) for name in words("isnan isinf isfinite isposinf isneginf signbit nan_to_num sinc expm1 exp sqrt")),
    *(case(aten.round.decimals, _WIDE, decimals=decimals) for decimals in (-1, 0, 2)),
    case(aten.logit.default, torch.rand(3, 5)),
    case(aten.special_logit.default, _WIDE, 0.1),
    case(aten.nan_to_num.default, _SPECIAL, 7.0, 8.0, -9.0),
    case(aten.abs.default, torch.randn(())),
    case(aten.floor.default, torch.empty(0, 3)),
]


@pytest.mark.parametrize("item", CASES, ids=str)
def test_matches_eager(item: Case) -> None:
    check(item.op, *item.args, **item.kwargs)


@pytest.mark.parametrize("name", ["expm1", "log1p"])
def test_keeps_digits_near_zero(name: str) -> None:
    value = torch.tensor([1e-7, -3e-6, 2e-4])
    definition = check(_op(name), value, tolerance=1e-5)
    assert definition.network.num_layers > 3


def test_dynamic_shape() -> None:
    gm = graph_of(lambda x: aten.log1p.default(aten.abs.default(x)), 1)
    check_graph(gm, [torch.randn(4, 3)], dynamic=[(0, 1)], others=[[torch.randn(1, 6)]], compile=True)


@pytest.mark.parametrize(
    ("op", "args", "reason"),
    [
        (aten.exp.default, (torch.randn(3).double(),), "its result is float64"),
        (aten.logit.default, (torch.rand(3), 0.7), "above 0.5"),
        (aten.nan_to_num.default, (_BOOLS,), "bool"),
        (aten.abs.default, (torch.randn(2, dtype=torch.complex64),), "complex64"),
        (aten.erfinv.default, (torch.rand(3),), "no converter for aten.erfinv.default"),
    ],
)
def test_refusals(op: object, args: tuple[object, ...], reason: str) -> None:
    assert reason in refused(op, *args)

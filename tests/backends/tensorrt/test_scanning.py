"""Running sums, products and extrema against eager torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.backends.tensorrt.cases import Case, case
from tests.backends.tensorrt.harness import check, check_varying, needs_rtx

pytestmark = needs_rtx
aten = torch.ops.aten

torch.manual_seed(0)
_X, _I, _B, _S = torch.randn(3, 4, 7), torch.randint(-3, 4, (3, 4, 7)), torch.randn(3, 4, 7) > 0, torch.randn(())

CASES = [
    *(case(aten.cumsum.default, value, dim) for value in (_X, _I, _B, _X.half()) for dim in (0, -1)),
    case(aten.cumsum.default, _I, 1, dtype=torch.float32),
    *(case(op, _S, 0) for op in (aten.cumsum.default, aten.cumprod.default, aten.cummax.default)),
    *(case(aten.cumprod.default, value, dim) for value in (_X, _I) for dim in (0, -1)),
    *(case(op.default, value, -1) for op in (aten.cummax, aten.cummin) for value in (_X, _I)),
    case(aten.logcumsumexp.default, 10 * _X, 2),
    case(aten.logcumsumexp.default, torch.tensor([-math.inf, -math.inf, 0.0, 1.0]), 0),
    *(case(aten.diff.default, value, 1, -1) for value in (_X, _I, _B)),
    case(aten.diff.default, _X, 2, 1, torch.randn(3, 1, 7), torch.randn(3, 2, 7)),
    case(aten.diff.default, _X, 0, 1, torch.randn(3, 1, 7)),
]

DYNAMIC: dict[str, Callable[[Any], Any]] = {
    "sum": lambda x: aten.cumsum.default(x, 2),
    "product": lambda x: aten.cumprod.default(x, 2),
    "largest": lambda x: (aten.cummax.default(x, 2)[0], aten.cummax.default(x, 2)[1]),
    "logarithm": lambda x: aten.logcumsumexp.default(x, 2),
}


@pytest.mark.parametrize("item", CASES, ids=str)
def test_matches_eager(item: Case) -> None:
    check(item.op, *item.args, **item.kwargs)


@pytest.mark.parametrize("function", DYNAMIC.values(), ids=DYNAMIC.keys())
def test_dynamic_sizes(function: Callable[[Any], Any]) -> None:
    check_varying(function)

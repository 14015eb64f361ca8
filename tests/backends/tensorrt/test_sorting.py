"""Sorting against eager torch. Elements are distinct: which of equal ones comes first, torch leaves open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.backends.tensorrt.cases import Case, case
from tests.backends.tensorrt.harness import check, check_varying, needs_rtx, refused

pytestmark = needs_rtx
aten = torch.ops.aten

torch.manual_seed(0)
_X, _I = torch.randn(3, 4, 7), torch.randperm(84).reshape(3, 4, 7)

CASES = [
    *(case(aten.topk.default, value, 3, dim, largest) for value in (_X, _I, _I.int()) for dim, largest in ((-1, True), (1, False))),
    case(aten.topk.default, torch.randn(9), 4),
    case(aten.topk.default, torch.randn(()), 1),
    case(aten.topk.default, torch.randperm(40).half().reshape(4, 10), 2),
    *(case(aten.sort.default, value, dim, descending) for value in (_X, _I) for dim, descending in ((-1, False), (0, True))),
    case(aten.sort.default, torch.randn(5)),
    case(aten.sort.stable, torch.tensor([3.0, 1.0, 3.0, 1.0, 2.0]), stable=True),
    case(aten.argsort.default, _X, 1, True),
    case(aten.argsort.stable, _X, stable=True, dim=-1),
    case(aten.msort.default, _X),
    *(case(aten.kthvalue.default, _X, 2, dim, keep) for dim, keep in ((-1, False), (0, True))),
]

DYNAMIC: dict[str, Callable[[Any], Any]] = {
    "sort": lambda x: (aten.sort.default(x, 2)[0], aten.sort.default(x, 2)[1]),
    "argsort": lambda x: aten.argsort.default(x, 2, True),
    "the largest two": lambda x: (aten.topk.default(x, 2, 2)[0], aten.topk.default(x, 2, 2)[1]),
}


@pytest.mark.parametrize("item", CASES, ids=str)
def test_matches_eager(item: Case) -> None:
    check(item.op, *item.args, **item.kwargs)


@pytest.mark.parametrize("function", DYNAMIC.values(), ids=DYNAMIC.keys())
def test_dynamic_sizes(function: Callable[[Any], Any]) -> None:
    check_varying(function)


def test_more_elements_than_the_layer_finds_are_refused() -> None:
    assert "3840" in refused(aten.sort.default, torch.randn(4000))
    assert refused(aten.topk.default, torch.randn(4000), 3840) == ""

"""Padding in every mode, and dropout, against eager torch."""

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
_X, _Y, _Z = torch.randn(2, 3, 6), torch.randn(2, 3, 5, 6), torch.randn(1, 2, 4, 5, 6)
_PADS = ((_X, [2, 1]), (_Y, [1, 2, 0, 3]), (_Z, [1, 0, 2, 1, 0, 3]))

CASES = [
    *(case(aten.constant_pad_nd.default, value, pads, 1.5) for value, pads in _PADS),
    case(aten.constant_pad_nd.default, _X, [-1, 2, 1, -1], -2.0),
    case(aten.constant_pad_nd.default, torch.randint(0, 9, (2, 3)), [1, 1], 7),
    case(aten.constant_pad_nd.default, _X > 0, [1, 1], True),
    *(case(aten.pad.default, value, pads, mode) for value, pads in _PADS for mode in ("constant", "reflect", "replicate", "circular")),
    case(aten.pad.default, _X.half(), [1, 1], "constant", 2.0),
    case(aten.pad.default, _Y, [-1, 1, -2, 1], "circular"),
    *(case(op.default, *pair) for op, pair in zip((aten.reflection_pad1d, aten.reflection_pad2d, aten.reflection_pad3d), _PADS)),
    *(case(op.default, *pair) for op, pair in zip((aten.replication_pad1d, aten.replication_pad2d, aten.replication_pad3d), _PADS)),
    case(aten._pad_circular.default, _Y, [1, 2, 3, 0]),
    *(case(op.default, _X, 0.5, False) for op in (aten.dropout, aten.feature_dropout, aten.alpha_dropout, aten.feature_alpha_dropout)),
    case(aten.native_dropout.default, _X, 0.5, False),
]

DYNAMIC: dict[str, Callable[[Any], Any]] = {
    "constant": lambda x: aten.constant_pad_nd.default(x, [1, 2], 3.0),
    "negative": lambda x: aten.constant_pad_nd.default(x, [-1, 2], 3.0),
    "reflect": lambda x: aten.reflection_pad1d.default(x, [1, 2]),
    "replicate": lambda x: aten.replication_pad1d.default(x, [1, 2]),
    "circular": lambda x: aten.pad.default(x, [1, 2], "circular"),
    "circular and negative": lambda x: aten.pad.default(x, [-1, 2], "circular"),
}


@pytest.mark.parametrize("item", CASES, ids=str)
def test_matches_eager(item: Case) -> None:
    check(item.op, *item.args, **item.kwargs)


@pytest.mark.parametrize("function", DYNAMIC.values(), ids=DYNAMIC.keys())
def test_dynamic_sizes(function: Callable[[Any], Any]) -> None:
    check_varying(function)


def test_dropout_in_training_is_refused() -> None:
    assert "random" in refused(aten.dropout.default, _X, 0.5, True)

"""Flips, rolls, shuffles and windows against eager torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from tests.backends.tensorrt.cases import Case, case
from tests.backends.tensorrt.harness import check, check_graph, check_varying, graph_of, needs_rtx

pytestmark = needs_rtx
aten = torch.ops.aten

torch.manual_seed(0)
_X, _I, _B, _S = torch.randn(2, 3, 4), torch.randint(-9, 9, (2, 3, 4)), torch.randn(2, 3, 4) > 0, torch.randn(())
_Y = torch.randn(2, 8, 4, 6)

CASES = [
    *(case(aten.flip.default, value, [0, -1]) for value in (_X, _I, _B, Parameter(_X))),
    case(aten.flip.default, _X, []),
    case(aten.fliplr.default, _X),
    case(aten.flipud.default, _X),
    *(case(aten.rot90.default, _X, turns, [0, 2]) for turns in (0, 1, 2, 3, -1)),
    *(
        case(aten.roll.default, value, shifts, dims)
        for value in (_X, _I, _B)
        for shifts, dims in (([1], [0]), ([-5, 2], [2, 1]), ([7], []))
    ),
    case(aten.pixel_shuffle.default, _Y, 2),
    case(aten.pixel_unshuffle.default, _Y, 2),
    case(aten.channel_shuffle.default, _Y, 4),
    case(aten.native_channel_shuffle.default, _Y, 2),
    *(case(aten.unfold.default, value, -1, 3, 1) for value in (_X, _I, _B)),
    case(aten.unfold.default, _Y, 2, 2, 2),
    case(aten.unfold.default, _S, 0, 1, 1),
    *(case(aten.im2col.default, value, [2, 3], [1, 2], [1, 0], [2, 1]) for value in (_Y, _Y[0])),
    case(aten.col2im.default, torch.randn(2, 12, 16), [5, 6], [2, 3], [1, 1], [0, 0], [1, 1]),
    case(aten.col2im.default, torch.randn(2, 12, 6), [6, 7], [2, 2], [2, 1], [1, 0], [2, 3]),
]

DYNAMIC: dict[str, Callable[[Any], Any]] = {
    "flip": lambda x: aten.flip.default(x, [0, 2]),
    "roll": lambda x: aten.roll.default(x, [1, -8], [0, 2]),
    "rot90": lambda x: aten.rot90.default(x, 1, [0, 2]),
    "unfold a fixed dimension": lambda x: aten.unfold.default(x, 1, 2, 1),
}


@pytest.mark.parametrize("item", CASES, ids=str)
def test_matches_eager(item: Case) -> None:
    check(item.op, *item.args, **item.kwargs)


@pytest.mark.parametrize("function", DYNAMIC.values(), ids=DYNAMIC.keys())
def test_dynamic_sizes(function: Callable[[Any], Any]) -> None:
    check_varying(function)


@pytest.mark.parametrize("op", [aten.pixel_shuffle.default, aten.pixel_unshuffle.default, aten.channel_shuffle.default])
def test_shuffles_of_dynamic_images(op: Any) -> None:
    others = [[torch.randn(1, 8, 2, 10)], [torch.randn(3, 8, 8, 4)]]
    check_graph(graph_of(lambda x: op(x, 2), 1), [torch.randn(2, 8, 4, 6)], dynamic=[(0, 2, 3)], others=others, compile=True)

"""Interpolation in every mode against eager torch."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.backends.tensorrt.cases import Case, case
from tests.backends.tensorrt.harness import (
    assert_close,
    check,
    check_graph,
    graph_of,
    interpret,
    needs_rtx,
    network_of,
    refused,
    rejection,
)
from tiacc.graph import specs
from tiacc.graph.specs import Dim, TensorSpec

pytestmark = needs_rtx
aten = torch.ops.aten

torch.manual_seed(0)
_X, _Y, _Z = torch.randn(2, 3, 7), torch.randn(2, 3, 5, 7), torch.randn(1, 2, 4, 5, 6)
_IMAGES = (_X, _Y, _Z)
_NEAREST = (aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d)
_EXACT = (aten._upsample_nearest_exact1d, aten._upsample_nearest_exact2d, aten._upsample_nearest_exact3d)
_LINEAR = (aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_trilinear3d)
_ANTIALIASED = (aten._upsample_bilinear2d_aa, aten._upsample_bicubic2d_aa)

CASES = [
    *(
        case(packet.vec, image, None, [factor] * (image.dim() - 2))
        for packets in (_NEAREST, _EXACT)
        for packet, image in zip(packets, _IMAGES)
        for factor in (2.0, 1.7, 0.6)
    ),
    *(
        case(packet.default, image, [9, 4, 3][: image.dim() - 2])
        for packets in (_NEAREST, _EXACT)
        for packet, image in zip(packets, _IMAGES)
    ),
    *(
        case(packet.vec, image, None, aligned, [factor] * (image.dim() - 2))
        for packet, image in zip(_LINEAR, _IMAGES)
        for aligned in (False, True)
        for factor in (2.0, 1.7, 0.6)
    ),
    *(
        case(packet.default, image, [9, 1, 3][: image.dim() - 2], aligned)
        for packet, image in zip(_LINEAR, _IMAGES)
        for aligned in (False, True)
    ),
    *(case(aten.upsample_bicubic2d.default, _Y, size, aligned) for size in ([9, 4], [1, 14]) for aligned in (False, True)),
    case(aten.upsample_bicubic2d.vec, _Y, None, False, [1.7, 0.6]),
    case(aten.upsample_bilinear2d.default, _Y, [9, 11], False, 1.85, 1.6),
    case(aten.upsample_nearest2d.default, _Y, [9, 11], 1.85, 1.6),
    *(case(packet.default, _Y, [3, 4], aligned) for packet in _ANTIALIASED for aligned in (False, True)),
    *(case(packet.vec, _Y, None, False, [0.6, 0.5]) for packet in _ANTIALIASED),
    case(aten.upsample_bilinear2d.default, _Y.half(), [10, 14], False),
]


def _size(x: Any, dim: int) -> Any:
    return aten.sym_size.int(x, dim)


DYNAMIC: dict[str, Callable[[Any], Any]] = {
    "nearest by a factor": lambda x: aten.upsample_nearest2d.vec(x, None, [2.0, 3.0]),
    "bilinear by a factor": lambda x: aten.upsample_bilinear2d.vec(x, None, False, [0.5, 1.7]),
    "bilinear by a factor, corners aligned": lambda x: aten.upsample_bilinear2d.vec(x, None, True, [2.0, 2.0]),
    "bilinear to a size": lambda x: aten.upsample_bilinear2d.vec(x, [operator.mul(_size(x, 2), 2), 9], False, None),
    "bicubic to a size": lambda x: aten.upsample_bicubic2d.vec(x, [_size(x, 3), _size(x, 2)], False, None),
    "nearest exact to a size": lambda x: aten._upsample_nearest_exact2d.vec(x, [_size(x, 3), 7], None),
}


@pytest.mark.parametrize("item", CASES, ids=str)
def test_matches_eager(item: Case) -> None:
    check(item.op, *item.args, **item.kwargs)


@pytest.mark.parametrize("function", DYNAMIC.values(), ids=DYNAMIC.keys())
def test_dynamic_sizes(function: Callable[[Any], Any]) -> None:
    others = [[torch.randn(1, 4, 5, 9)], [torch.randn(3, 4, 8, 4)]]
    check_graph(graph_of(function, 1), [torch.randn(2, 4, 6, 6)], dynamic=[(0, 2, 3)], others=others, compile=True)


def test_whole_numbers_are_refused() -> None:
    assert "uint8" in refused(aten.upsample_nearest2d.default, torch.zeros(1, 1, 4, 4, dtype=torch.uint8), [8, 8])


@pytest.mark.parametrize("op", [aten.upsample_nearest1d, aten._upsample_nearest_exact1d], ids=str)
@pytest.mark.parametrize("factor", [0.5, 0.6, 1.7, 3.0, None])
def test_the_nearest_element_is_torchs_at_every_size(op: Any, factor: float | None) -> None:
    """Which of two elements is the nearer is decided by rounding where the factor is no whole number."""
    low, high = 2, 40
    gm = graph_of(lambda x, y: op.vec(x, [_size(y, 0)] if factor is None else None, None if factor is None else [factor]), 2)
    types = [TensorSpec((1, 1, Dim("n", low, 7, high)), torch.float32), TensorSpec((Dim("m", low, 5, high), 1), torch.float32)]
    specs.propagate(gm, types)
    assert rejection(gm) == ""
    definition = network_of(gm, types)
    for before in range(low, high, 1 if factor else 4):
        for after in (7,) if factor else range(low, high, 3):
            case = [torch.arange(float(before)).reshape(1, 1, before), torch.zeros(after, 1)]
            assert_close(interpret(definition, case), gm(*case))


@pytest.mark.parametrize(("factor", "reason"), [(0.7, "float32"), (1.7, "")])
def test_a_factor_that_gives_another_size_in_float32_is_refused(factor: float, reason: str) -> None:
    gm = graph_of(lambda x: aten.upsample_linear1d.vec(x, None, False, [factor]), 1)
    specs.propagate(gm, [TensorSpec((1, 1, Dim("n", 2, 7, 40)), torch.float32)])
    assert reason in rejection(gm)
    assert bool(reason) == bool(rejection(gm))

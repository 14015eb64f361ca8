"""Pooling against eager torch, with its rules for windows that reach beyond the input."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.backends.tensorrt.cases import Case, case
from tests.backends.tensorrt.harness import check, check_dynamic, needs_rtx, one_node, refused, rejection, spec_of
from tiacc.backends.tensorrt.converters.pooling import adaptive_bounds, adaptive_weights
from tiacc.graph import specs

pytestmark = needs_rtx
aten = torch.ops.aten

torch.manual_seed(0)
_X1, _X2, _X3 = torch.randn(2, 3, 10), torch.randn(2, 3, 9, 10), torch.randn(1, 2, 5, 6, 7)
_SIZES = torch.randn(1, 2, 4, 6), torch.randn(1, 2, 8, 9)
_FLAGS = (False, True)

CASES = [
    *(case(aten.max_pool1d.default, _X1, [3], [2], [1], [1], up) for up in _FLAGS),
    *(case(aten.max_pool2d.default, _X2, [3, 2], [2, 3], [1, 0], [1, 1], up) for up in _FLAGS),
    *(case(aten.max_pool2d.default, _X2, [3], [2], [1], [2], up) for up in _FLAGS),
    *(case(aten.max_pool2d.default, torch.randn(1, 1, 2, 2), [1], [2], [0], [1], up) for up in _FLAGS),
    *(case(aten.max_pool3d.default, _X3, [2, 3, 2], [2], [0, 1, 1], [1], up) for up in _FLAGS),
    case(aten.max_pool2d.default, _X2, [2, 2]),
    case(aten.max_pool2d.default, _X2[0], [2, 2]),
    case(aten.max_pool1d.default, _X1[0], [3]),
    case(aten.max_pool2d.default, -_X2.abs() - 1, [3], [2], [1], [1], True),
    case(aten.max_pool2d.default, _X2.half(), [3], [2], [1]),
    *(case(aten.avg_pool1d.default, _X1, [3], [2], [1], up, pad) for up, pad in itertools.product(_FLAGS, _FLAGS)),
    *(
        case(aten.avg_pool2d.default, _X2, [3, 2], [2, 3], [1, 0], up, pad, div)
        for up, pad, div in itertools.product(_FLAGS, _FLAGS, (None, 5))
    ),
    *(case(aten.avg_pool3d.default, _X3, [2, 3, 2], [2], [0, 1, 1], up, pad) for up, pad in itertools.product(_FLAGS, _FLAGS)),
    case(aten.avg_pool2d.default, _X2[0], [3]),
    case(aten.avg_pool2d.default, torch.randn(1, 1, 2, 2), [1], [2], [0], True),
    *(case(aten.adaptive_avg_pool1d.default, _X1, [size]) for size in (1, 5, 7, 12)),
    *(case(aten.adaptive_avg_pool2d.default, _X2, size) for size in ([1, 1], [3, 5], [4, 7], [9, 10], [1, 3], [12, 2])),
    *(case(op.default, _X2, [4, 7]) for op in (aten._adaptive_avg_pool2d,)),
    *(case(op.default, _X3, [2, 3, 4]) for op in (aten.adaptive_avg_pool3d, aten._adaptive_avg_pool3d)),
    case(aten.adaptive_avg_pool2d.default, _X2[0], [4, 7]),
    case(aten.adaptive_avg_pool2d.default, _X2.half(), [4, 7]),
]


@pytest.mark.parametrize("item", CASES, ids=str)
def test_matches_eager(item: Case) -> None:
    check(item.op, *item.args, **item.kwargs)


_WITH_INDICES = [
    (aten.max_pool1d_with_indices.default, (_X1, [3], [2], [1], [1], True)),
    (aten.max_pool2d_with_indices.default, (_X2, [3], [2], [1])),
    (aten.max_pool3d_with_indices.default, (_X3, [2])),
    (aten.adaptive_max_pool1d.default, (_X1, [3])),
    (aten.adaptive_max_pool2d.default, (_X2, [1, 1])),
    (aten.adaptive_max_pool2d.default, (_X2, [4, 7])),
    (aten.adaptive_max_pool2d.default, (_X2, [9, 10])),
    (aten.adaptive_max_pool3d.default, (_X3, [2, 3, 4])),
]


@pytest.mark.parametrize(("op", "args"), _WITH_INDICES)
def test_values_without_their_places(op: object, args: tuple[object, ...]) -> None:
    from tests.backends.tensorrt.harness import check_graph

    gm, inputs = one_node(op, *args)
    specs.propagate(gm, [spec_of(tensor) for tensor in inputs])
    assert "indices" in rejection(gm)
    call = next(node for node in gm.graph.nodes if node.target is op)
    value = next(user for user in call.users if user.args[1] == 0)
    output = next(node for node in gm.graph.nodes if node.op == "output")
    output.args = ((value,),)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    check_graph(gm, inputs, compile=True)


@pytest.mark.parametrize("up", _FLAGS)
@pytest.mark.parametrize(("size", "stride", "pad", "dilation"), [(3, 2, 1, 1), (1, 2, 0, 1), (2, 3, 0, 1), (2, 3, 1, 1), (3, 2, 1, 2)])
def test_max_pool_of_dynamic_sizes(up: bool, size: int, stride: int, pad: int, dilation: int) -> None:
    args = (_SIZES[0], [size], [stride], [pad], [dilation], up)
    check_dynamic(aten.max_pool2d.default, args, [(0, 2, 3)], [_SIZES[1]], [torch.randn(2, 2, 5, 7)])


@pytest.mark.parametrize("up", _FLAGS)
@pytest.mark.parametrize("counts_padding", _FLAGS)
@pytest.mark.parametrize(("size", "stride", "pad"), [(3, 2, 1), (1, 2, 0), (2, 3, 1)])
@pytest.mark.parametrize("divisor", [None, 3])
def test_average_pool_of_dynamic_sizes(up: bool, counts_padding: bool, size: int, stride: int, pad: int, divisor: int | None) -> None:
    args = (_SIZES[0], [size], [stride], [pad], up, counts_padding, divisor)
    check_dynamic(aten.avg_pool2d.default, args, [(0, 2, 3)], [_SIZES[1]], [torch.randn(2, 2, 5, 7)])


@pytest.mark.parametrize("size", [[1, 1], [3, 4], [2, 1], [6, 9]])
def test_adaptive_pool_of_dynamic_sizes(size: list[int]) -> None:
    check_dynamic(aten.adaptive_avg_pool2d.default, (_SIZES[0], size), [(0, 2, 3)], [_SIZES[1]], compile=True)


@pytest.mark.parametrize(("size", "count"), [(7, 3), (5, 5), (4, 6), (10, 4), (1, 3)])
def test_adaptive_windows(size: int, count: int) -> None:
    value = torch.randn(1, 1, size)
    expected = torch.nn.functional.adaptive_avg_pool1d(value, count)[0, 0]
    assert torch.allclose(adaptive_weights(size, count) @ value[0, 0], expected, atol=1e-6)
    largest = torch.stack([value[0, 0, start:end].max() for start, end in adaptive_bounds(size, count)])
    assert torch.equal(largest, torch.nn.functional.adaptive_max_pool1d(value, count)[0, 0])


@pytest.mark.parametrize(
    ("op", "args", "reason"),
    [
        (aten.max_pool2d.default, (torch.randint(0, 9, (1, 1, 4, 4)), [2]), "int64"),
        (aten.max_pool2d.default, (torch.randn(1, 1, 40, 40), [9], [1], [0], [2]), "dilated window"),
        (aten.max_pool2d_with_indices.default, (_X2, [2]), "indices"),
        (aten.adaptive_avg_pool2d.default, (torch.randn(0, 2, 4, 4), [2, 2]), "empty"),
    ],
)
def test_refusals(op: object, args: tuple[object, ...], reason: str) -> None:
    assert reason in refused(op, *args)

"""Reductions against eager torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.backends.tensorrt.cases import Case, case
from tests.backends.tensorrt.harness import check, check_graph, check_varying, graph_of, needs_rtx, refused, rejection
from tiacc.graph import specs
from tiacc.graph.specs import Dim, TensorSpec

pytestmark = needs_rtx
aten = torch.ops.aten

torch.manual_seed(0)
_X, _I, _B, _S = torch.randn(3, 4, 5), torch.randint(-9, 9, (3, 4, 5)), torch.randn(3, 4, 5) > 0, torch.randn(())
_NAN = torch.where(torch.rand(3, 4, 5) > 0.8, torch.tensor(math.nan), _X)
_NONE = torch.randn(3, 0)
_SPREADS = (aten.var, aten.std, aten.var_mean, aten.std_mean)
_DISTINCT = torch.randperm(60).reshape(3, 4, 5)

CASES = [
    *(case(op, value) for op in (aten.sum.default, aten.prod.default) for value in (_X, _I % 3, _B, _S, _NONE)),
    *(case(aten.sum.dim_IntList, value, [0, -1], keep) for value in (_X, _I, _B, _X.half()) for keep in (False, True)),
    case(aten.sum.dim_IntList, _X, None),
    case(aten.sum.dim_IntList, _I, [1], dtype=torch.float32),
    case(aten.sum.dim_IntList, _B, [1], dtype=torch.bool),
    case(aten.prod.dim_int, _X, -1, True),
    case(aten.mean.default, _X),
    case(aten.mean.dim, _X, [-1, 0], True),
    case(aten.mean.dim, _I, [1], dtype=torch.float32),
    case(aten.mean.default, _NONE),
    case(aten.nansum.default, _NAN, [1]),
    case(aten.nansum.default, _I, [1]),
    case(aten.nanmean.default, _NAN, [2], True),
    *(case(aten.count_nonzero.default, value) for value in (_X, _I, _B)),
    case(aten.count_nonzero.dim_IntList, _I, [0, 2]),
    *(case(op, value, [0, 2], True) for op in (aten.amax.default, aten.amin.default) for value in (_X, _I, _B)),
    *(case(op, value) for op in (aten.amax.default, aten.amin.default, aten.max.default, aten.min.default) for value in (_X, _I, _B)),
    *(case(op, _DISTINCT, dim, keep) for op in (aten.max.dim, aten.min.dim) for dim, keep in ((-1, False), (0, True))),
    *(case(op, value, 1) for op in (aten.max.dim, aten.min.dim) for value in (_X, _X.half())),
    *(case(op, _S, 0) for op in (aten.max.dim, aten.argmax.default)),
    *(case(aten.aminmax.default, value, dim=1, keepdim=True) for value in (_X, _I)),
    *(case(op, value) for op in (aten.argmax.default, aten.argmin.default) for value in (_X, _DISTINCT)),
    *(case(op, _X, dim, keep) for op in (aten.argmax.default, aten.argmin.default) for dim, keep in ((0, False), (-1, True))),
    case(aten.argmax.default, torch.randn(9)),
    *(case(op.default, value) for op in (aten.any, aten.all) for value in (_X, _I, _B, _S, _NONE)),
    *(case(op.dim, value, -1, True) for op in (aten.any, aten.all) for value in (_I, _B)),
    *(case(op.dims, _B, [0, 1]) for op in (aten.any, aten.all)),
    *(case(op.default, _X) for op in _SPREADS),
    *(case(op.dim, _X, [1], False, True) for op in _SPREADS),
    *(case(op.correction, _X, [0, 2], correction=2) for op in _SPREADS),
    case(aten.var.correction, _X, None),
    case(aten.var.dim, torch.randn(3, 1), [1]),
    case(aten.std.default, 1000 + 0.1 * _X.half()),
    *(case(op.default, _X, [1, -1]) for op in (aten.logsumexp, aten.special_logsumexp)),
    case(aten.logsumexp.default, torch.tensor([[-math.inf, -math.inf], [math.inf, 0.0], [1e4, 1e4]]), [1], True),
]

DYNAMIC: dict[str, Callable[[Any], Any]] = {
    "sum": lambda x: aten.sum.dim_IntList(x, [0, 2]),
    "mean": lambda x: aten.mean.dim(x, [-1], True),
    "variance": lambda x: aten.var.correction(x, [0, 2], correction=1),
    "biased variance": lambda x: aten.var.correction(x, [2], correction=0),
    "deviation": lambda x: aten.std.default(x),
    "largest": lambda x: (aten.max.dim(x, 2)[0], aten.max.dim(x, 2)[1]),
    "where the largest is": lambda x: aten.argmax.default(x),
    "logarithm of a sum": lambda x: aten.logsumexp.default(x, [2]),
}


@pytest.mark.parametrize("item", CASES, ids=str)
def test_matches_eager(item: Case) -> None:
    check(item.op, *item.args, **item.kwargs)


@pytest.mark.parametrize("function", DYNAMIC.values(), ids=DYNAMIC.keys())
def test_dynamic_sizes(function: Callable[[Any], Any]) -> None:
    check_varying(function)


def test_the_layer_for_indices_is_added_only_if_they_are_used() -> None:
    definition = check_graph(graph_of(lambda x: aten.max.dim(x, 1)[0], 1), [_X])
    assert definition.network.num_layers == 1


def test_an_empty_tensor_with_a_size_that_varies_is_refused() -> None:
    gm = graph_of(lambda x: aten.any.default(x), 1)
    specs.propagate(gm, [TensorSpec((Dim("n", 1, 3, 6), 0), torch.float32)])
    assert "no elements" in rejection(gm)


def test_a_median_is_refused() -> None:
    assert "no converter" in refused(aten.median.default, _X)

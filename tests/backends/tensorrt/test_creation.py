"""Tensors made of numbers, against eager torch."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from tests.backends.tensorrt.cases import Case, case
from tests.backends.tensorrt.harness import (
    check,
    check_graph,
    check_varying,
    interpret,
    needs_rtx,
    network_of,
    one_node,
    rejection,
    spec_of,
)
from tiacc.graph import specs

pytestmark = needs_rtx
aten = torch.ops.aten

torch.manual_seed(0)
_X, _I = torch.randn(2, 3, 6), torch.randint(0, 9, (2, 3))
_BYTES = torch.zeros(2, 3, dtype=torch.uint8)

CASES = [
    *(case(op.default, value) for op in (aten.zeros_like, aten.ones_like) for value in (_X, _I, _X > 0)),
    case(aten.zeros_like.default, _BYTES, dtype=torch.float32),
    case(aten.full_like.default, _X, 2.5),
    case(aten.full_like.default, _X, 2.5, dtype=torch.int64),
    case(aten.new_zeros.default, _X, [2, 2]),
    case(aten.new_ones.default, _I, [3], dtype=torch.bool),
    case(aten.new_full.default, _X, [2, 1], 7),
    case(aten.fill.Scalar, _X, -1.5),
    case(aten.fill.Tensor, _X, torch.tensor(3.0)),
]
_MADE: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (aten.zeros.default, ([2, 3],), {}),
    (aten.ones.default, ([2, 3],), {"dtype": torch.float16}),
    (aten.full.default, ([2, 3], 1.5), {}),
    (aten.arange.default, (3,), {}),
    (aten.arange.start, (-1, 2), {}),
    (aten.arange.start_step, (0.5, 2, 0.5), {}),
    (aten.linspace.default, (0, 1, 3), {}),
    (aten.logspace.default, (0, 1, 3), {}),
    (aten.eye.default, (3,), {}),
    (aten.eye.m, (2, 3), {}),
    (aten.scalar_tensor.default, (2.5,), {}),
    (aten.tril_indices.default, (2, 3), {}),
    (aten.triu_indices.default, (2, 3, 1), {}),
]


def _size(x: Any, dim: int) -> Any:
    return aten.sym_size.int(x, dim)


DYNAMIC: dict[str, Callable[[Any], Any]] = {
    "zeros": lambda x: aten.zeros.default([_size(x, 0), _size(x, 2)]),
    "full": lambda x: aten.full.default([_size(x, 0), 2], 1.5),
    "full of a size": lambda x: aten.full.default([2], _size(x, 2)),
    "zeros_like": lambda x: aten.zeros_like.default(x),
    "new_zeros": lambda x: aten.new_zeros.default(x, [_size(x, 2)]),
    "arange": lambda x: aten.arange.default(_size(x, 2)),
    "arange by steps": lambda x: aten.arange.start_step(1, _size(x, 2), 2, dtype=torch.float32),
    "arange between sizes": lambda x: aten.arange.start(_size(x, 0), operator.add(_size(x, 2), _size(x, 0))),
    "a size as a number": lambda x: aten.mul.Tensor(x, aten.scalar_tensor.default(_size(x, 2), dtype=torch.float32)),
}


@pytest.mark.parametrize(("op", "args", "kwargs"), _MADE, ids=str)
def test_known_numbers_become_constants(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    graph = fx.Graph()
    own = graph.call_function(aten.relu.default, (graph.placeholder("x"),))
    graph.output((own, graph.call_function(op, args, kwargs)))
    check_graph(fx.GraphModule(torch.nn.Module(), graph), [torch.randn(2)])


@pytest.mark.parametrize(
    ("op", "args"),
    [
        (aten.empty.memory_format, ([2, 3],)),
        (aten.empty_like.default, (_X,)),
        (aten.new_empty.default, (_X, [2, 3])),
    ],
    ids=str,
)
def test_what_has_no_values_has_a_shape(op: Any, args: tuple[Any, ...]) -> None:
    gm, inputs = one_node(op, *args, dtype=torch.float16)
    specs.propagate(gm, [spec_of(tensor) for tensor in inputs])
    assert rejection(gm) == ""
    (result,) = interpret(network_of(gm, [spec_of(tensor) for tensor in inputs]), inputs)
    assert (result.dtype, result.shape) == (torch.float16, op(*args).shape)


@pytest.mark.parametrize("item", CASES, ids=str)
def test_matches_eager(item: Case) -> None:
    check(item.op, *item.args, **item.kwargs)


@pytest.mark.parametrize("function", DYNAMIC.values(), ids=DYNAMIC.keys())
def test_dynamic_sizes(function: Callable[[Any], Any]) -> None:
    check_varying(function)

"""Joining tensors and taking them apart, against eager torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from tests.backends.tensorrt.cases import Case, case
from tests.backends.tensorrt.harness import check, check_varying, graph_of, needs_rtx, rejection
from tiacc.graph import specs
from tiacc.graph.specs import Dim, TensorSpec

pytestmark = needs_rtx
aten = torch.ops.aten

torch.manual_seed(0)
_X, _I, _B, _V = torch.randn(2, 3, 4), torch.randint(-9, 9, (2, 3, 4)), torch.randn(2, 3, 4) > 0, torch.randn(5)
_M = torch.randn(6, 4)

CASES = [
    *(case(op.default, [_X, _I, _X], dim) for op in (aten.cat, aten.concat, aten.concatenate) for dim in (0, -1)),
    case(aten.cat.default, [_B, _B], 1),
    case(aten.cat.default, [torch.randn(0), _X], 1),
    case(aten.cat.default, [Parameter(_X), _X], 1),
    *(case(aten.stack.default, [_X, _X], dim) for dim in (0, -1, 2)),
    *(case(op.default, values) for op in (aten.hstack, aten.vstack, aten.dstack, aten.column_stack) for values in ([_V, _V], [_M, _M])),
    case(aten.block_diag.default, [_M, _V, torch.randn(())]),
    case(aten.split.Tensor, _X, 2, -1),
    case(aten.split.Tensor, _X, 2, 1),
    case(aten.unsafe_split.Tensor, _X, 3, 2),
    case(aten.split.sizes, _X, [1, 2], 1),
    case(aten.split_with_sizes.default, _X, [1, 0, 3], -1),
    case(aten.unsafe_split_with_sizes.default, _X, [1, 3], 2),
    *(case(op.default, _X, 3, dim) for op in (aten.chunk, aten.unsafe_chunk) for dim in (1, -1)),
    case(aten.tensor_split.sections, _X, 3, 2),
    case(aten.tensor_split.indices, _X, [1, -1], 2),
    case(aten.hsplit.int, _M, 2),
    case(aten.hsplit.array, _M, [1, 3]),
    case(aten.vsplit.int, _M, 3),
    case(aten.vsplit.array, _M, [2]),
    case(aten.dsplit.int, _X, 2),
    case(aten.dsplit.array, _X, [1]),
    case(aten.unbind.int, _X, -2),
    case(aten.meshgrid.default, [_V, torch.randn(3)]),
    case(aten.meshgrid.indexing, [_V, torch.randn(3), torch.randn(())], indexing="xy"),
]


def _both(values: Any) -> Any:
    return values[0], values[1]


DYNAMIC: dict[str, Callable[[Any], Any]] = {
    "cat along the dynamic dimension": lambda x: aten.cat.default([x, x], 2),
    "cat of batches": lambda x: aten.cat.default([x, x], 0),
    "stack": lambda x: aten.stack.default([x, x], -1),
    "chunks of a fixed dimension": lambda x: _both(aten.chunk.default(x, 2, 1)),
    "tensor_split of a dynamic dimension": lambda x: _both(aten.tensor_split.sections(x, 2, 2)),
    "unbind": lambda x: _both(aten.unbind.int(x, 1)),
    "split": lambda x: _both(aten.split.Tensor(x, 2, 1)),
}


@pytest.mark.parametrize("item", CASES, ids=str)
def test_matches_eager(item: Case) -> None:
    check(item.op, *item.args, **item.kwargs)


@pytest.mark.parametrize("function", DYNAMIC.values(), ids=DYNAMIC.keys())
def test_dynamic_sizes(function: Callable[[Any], Any]) -> None:
    check_varying(function)


def test_a_split_into_an_unknown_number_of_parts_is_refused() -> None:
    gm = graph_of(lambda x: aten.split.Tensor(x, 2, 0)[0], 1)
    specs.propagate(gm, [TensorSpec((Dim("n", 1, 4, 8), 3), torch.float32)])
    assert "depends on its size" in rejection(gm)

"""Changes of dtype against eager torch."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from tests.backends.tensorrt.cases import Case, case
from tests.backends.tensorrt.harness import check, check_graph, graph_of, needs_rtx, refused, rejection
from tiacc.graph import specs

pytestmark = needs_rtx
aten = torch.ops.aten

torch.manual_seed(0)
_VALUES = (3 * torch.rand(3, 4), torch.randint(-5, 5, (3, 4)), torch.randn(3, 4) > 0, torch.randint(0, 200, (3, 4), dtype=torch.uint8))
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.bool, torch.uint8)

CASES = [
    *(case(aten.to.dtype, value, dtype) for value in _VALUES for dtype in _DTYPES),
    case(aten.to.device, _VALUES[0], torch.device("cpu"), torch.float16),
    case(aten.to.dtype_layout, _VALUES[0], dtype=torch.int64),
    case(aten.to.other, _VALUES[0], _VALUES[1]),
    case(aten.to.prim_Device, _VALUES[0], None, torch.float16),
    case(aten.to.prim_dtype, _VALUES[0], torch.int64),
    case(aten.to.prim_other, _VALUES[0]),
    case(aten.type_as.default, _VALUES[1], _VALUES[0]),
    case(aten._to_copy.default, _VALUES[1], dtype=torch.float32),
    *(case(op.default, _VALUES[0]) for op in (aten._cast_Float, aten._cast_Half, aten._cast_Int, aten._cast_Long)),
]


@pytest.mark.parametrize("item", CASES, ids=str)
def test_matches_eager(item: Case) -> None:
    check(item.op, *item.args, **item.kwargs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int16, torch.complex64])
def test_types_that_tensorrt_does_not_have_are_refused(dtype: torch.dtype) -> None:
    assert str(dtype).removeprefix("torch.") in refused(aten.to.dtype, _VALUES[0], dtype)


@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
def test_every_chain_of_casts_that_is_accepted_builds(dtype: torch.dtype) -> None:
    """All chains of one to three casts from a dtype, each an output of its own and all in one engine."""

    def chains(x: Any) -> list[Any]:
        results = []
        for length in (1, 2, 3):
            for chain in itertools.product(_DTYPES, repeat=length):
                value = x
                for target in chain:
                    value = aten.to.dtype(value, target)
                results.append(value)
        return results

    check_graph(graph_of(chains, 1), [torch.tensor([[0, 1, 3, 100], [2, 0, 255, 17]]).to(dtype)], compile=True)


@pytest.mark.parametrize(("first", "second"), list(itertools.product(_DTYPES, _DTYPES)), ids=str)
def test_a_chain_of_casts_builds_by_itself(first: torch.dtype, second: torch.dtype) -> None:
    gm = graph_of(lambda x: (aten.to.dtype(aten.to.dtype(x, first), second),), 1)
    check_graph(gm, [torch.tensor([0.0, 1.0, 100.0])], dynamic=[(0,)], others=[[torch.tensor([3.0, 250.0])]], compile=True)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_whole_numbers_that_bytes_do_not_hold_wrap_around(dtype: torch.dtype) -> None:
    numbers = torch.tensor([-1, 255, 256, 300, -300, 2**31 - 1, -(2**31)] + ([2**40 + 5, -(2**40)] if dtype == torch.int64 else []))
    check_graph(graph_of(lambda x: (aten.to.dtype(aten.to.dtype(x, torch.uint8), torch.float32),), 1), [numbers.to(dtype)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.int16], ids=str)
def test_a_size_of_a_tensor_that_cannot_be_an_input_is_refused(dtype: torch.dtype) -> None:
    """A tensor of which only a size is needed is an input of the network too."""
    gm = graph_of(lambda x, y: aten.expand.default(x, [aten.sym_size.int(y, 0), 2]), 2)
    specs.propagate(gm, [specs.TensorSpec((1, 2), torch.float32), specs.TensorSpec((specs.Dim("n", 1, 2, 4), 3), dtype)])
    assert str(dtype).removeprefix("torch.") in rejection(gm)
    assert str(dtype).removeprefix("torch.") in refused(aten.zeros_like.default, torch.zeros(2, dtype=dtype), dtype=torch.float32)

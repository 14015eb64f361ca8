"""Changes of dtype against eager torch."""

from __future__ import annotations

import pytest
import torch

from tests.backends.tensorrt.cases import Case, case
from tests.backends.tensorrt.harness import check, needs_rtx, refused

pytestmark = needs_rtx
aten = torch.ops.aten

torch.manual_seed(0)
_VALUES = (3 * torch.randn(3, 4), torch.randint(-5, 5, (3, 4)), torch.randn(3, 4) > 0, torch.randint(0, 200, (3, 4), dtype=torch.uint8))
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.bool)

CASES = [
    *(case(aten.to.dtype, value, dtype) for value in _VALUES for dtype in _DTYPES),
    case(aten.to.device, _VALUES[0], torch.device("cpu"), torch.float16),
    case(aten.to.dtype_layout, _VALUES[0], dtype=torch.int64),
    case(aten.to.other, _VALUES[0], _VALUES[1]),
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

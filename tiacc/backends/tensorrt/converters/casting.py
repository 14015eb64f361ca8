"""Changes of dtype. A change of device is none: a segment lives on one."""

from __future__ import annotations

import torch

from tiacc.backends.tensorrt.call import Call
from tiacc.backends.tensorrt.converters import ALL, converts
from tiacc.backends.tensorrt.shaping import Value

aten = torch.ops.aten

WITH_BYTES = ALL | {torch.uint8}


@converts(
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
    aten.to.other,
    aten.to.prim_Device,
    aten.to.prim_dtype,
    aten.to.prim_other,
    aten.type_as.default,
    aten._to_copy.default,
    aten._cast_Float.default,
    aten._cast_Half.default,
    aten._cast_Int.default,
    aten._cast_Long.default,
    dtypes=WITH_BYTES,
)
def to(call: Call) -> Value:
    """The tensor in the dtype of the result."""
    return call.net.cast(call.operand("self"), call.dtype)

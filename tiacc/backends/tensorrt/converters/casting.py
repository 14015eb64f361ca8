"""Changes of dtype. A change of device is none: a segment lives on one.

TensorRT has uint8 for inputs and outputs of a network only. Within it, int32 holds the values 0 to 255.
"""

from __future__ import annotations

import torch

from tiacc.backends.tensorrt.call import Call
from tiacc.backends.tensorrt.conversion import Conversion
from tiacc.backends.tensorrt.converters import ALL, INTEGERS, converts
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
    results=WITH_BYTES,
)
def to(call: Call) -> Value:
    """The tensor in the dtype of the result."""
    value = call.operand("self")
    return bytes_of(call.net, value) if call.dtype == torch.uint8 else call.net.cast(value, call.dtype)


def bytes_of(net: Conversion, value: Value) -> Value:
    """Return a value in uint8, or in int32 as what stands for it: numbers beyond 255 and below 0 wrap around, as in torch."""
    if isinstance(value, torch.Tensor):
        return value.to(torch.uint8)
    dtype = net.dtype(value)
    if dtype in (torch.uint8, torch.bool):
        return value if dtype == torch.uint8 else net.cast(value, torch.int32)
    whole = value if dtype in INTEGERS else net.cast(value, torch.int32)
    rest = net.binary("SUB", whole, net.binary("PROD", net.binary("FLOOR_DIV", whole, 256), 256))
    return net.cast(rest, torch.int32)

"""TensorRT data types as torch ones, and the values of weights.

Torch has no unpacked 4-bit types. A value of such a type is carried in a wider tensor that only ever holds numbers of
the narrow
type: INT4 in ``torch.int8`` (-8 to 7), FP4 (E2M1) in ``torch.float32`` (multiples of 0.5 up to 6 by its grid).
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tiacc.backends.tensorrt.interpreter.errors import InterpretationError

_CARRIERS: dict[str, torch.dtype] = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "FP8": torch.float8_e4m3fn,
    "E8M0": torch.float8_e8m0fnu,
    "FP4": torch.float32,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "INT8": torch.int8,
    "INT4": torch.int8,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}
_NIBBLES = ("INT4", "FP4")
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The magnitudes of FP4 (E2M1) by code. Source: OCP Microscaling Formats specification 1.0, table 5."""
ARITHMETIC = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
"""The floating dtypes that layers compute in; the narrower ones are only stored, quantised and dequantised."""


def carrier(data_type: Any) -> torch.dtype:
    """Return the torch dtype that holds values of a ``trt.DataType``.

    Raises:
        InterpretationError: The type is one that this version does not know.
    """
    try:
        return _CARRIERS[data_type.name]
    except KeyError:
        raise InterpretationError(f"TensorRT data type {data_type.name} is not known to the interpreter") from None


def round_to_fp4(value: Tensor) -> Tensor:
    """Round to the nearest FP4 number, ties to the even code, saturating at ±6. Returns float32."""
    grid = torch.tensor(FP4_VALUES)
    magnitude = value.to(torch.float32).abs().clamp(max=FP4_VALUES[-1])
    upper = torch.bucketize(magnitude, grid).clamp(max=len(FP4_VALUES) - 1)
    lower = (upper - 1).clamp(min=0)
    to_upper, to_lower = grid[upper] - magnitude, magnitude - grid[lower]
    code = torch.where((to_upper < to_lower) | ((to_upper == to_lower) & (upper % 2 == 0)), upper, lower)
    return torch.copysign(grid[code], value.to(torch.float32))


def weights_to_tensor(weights: Any) -> Tensor:
    """Return the values of a weights attribute as a flat tensor, which may share memory with the network.

    The bindings give a numpy view for the types numpy has, and for the others (BF16, FP8, INT4, FP4) a ``trt.Weights``
    with no way to its data; its C++ structure is then read where pybind11 keeps it, after checking that what is there
    is that structure.

    Args:
        weights: What ``layer.weights``, ``layer.kernel`` and the like return.

    Raises:
        InterpretationError: The data cannot be reached; give them to `NetworkInterpreter` as `constants`.
    """
    if isinstance(weights, np.ndarray):
        array = np.ascontiguousarray(weights).reshape(-1)
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    dtype = carrier(weights.dtype)
    if weights.size == 0:
        return torch.empty(0, dtype=dtype)
    raw = torch.from_numpy(_raw_bytes(weights))
    if weights.dtype.name in _NIBBLES:
        return _unpack_nibbles(raw, weights.dtype.name)[: weights.size]
    return raw.view(dtype)


class _WeightsStruct(ctypes.Structure):
    """``nvinfer1::Weights``: the type, the address of the values and their number."""

    _fields_ = (("type", ctypes.c_int32), ("values", ctypes.c_void_p), ("count", ctypes.c_int64))


def _raw_bytes(weights: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Copy the bytes of a ``trt.Weights`` out of the structure that its Python object points to."""
    # A pybind11 instance is a PyObject header followed by the pointer to the C++ object.
    address = ctypes.c_void_p.from_address(id(weights) + object.__basicsize__).value
    struct = _WeightsStruct.from_address(address) if address else None
    if struct is None or not struct.values or struct.type != int(weights.dtype) or struct.count != weights.size:
        raise InterpretationError(
            f"the values of {weights.dtype.name} weights cannot be read through these bindings; "
            "give them to NetworkInterpreter as constants={layer name: tensor}"
        )
    # Not weights.nbytes, which is wrong for types narrower than a byte.
    size = -(-weights.size // 2) if weights.dtype.name in _NIBBLES else weights.size * carrier(weights.dtype).itemsize
    buffer = (ctypes.c_uint8 * size).from_address(struct.values)
    return np.array(np.frombuffer(buffer, dtype=np.uint8))


def _unpack_nibbles(raw: Tensor, name: str) -> Tensor:
    """Return the 4-bit values of packed bytes, the low half of each byte first."""
    codes = torch.stack([raw & 15, raw >> 4], dim=1).reshape(-1).to(torch.int64)
    if name == "INT4":
        return torch.where(codes > 7, codes - 16, codes).to(torch.int8)
    magnitude = torch.tensor(FP4_VALUES)[codes & 7]
    return torch.where(codes > 7, -magnitude, magnitude)

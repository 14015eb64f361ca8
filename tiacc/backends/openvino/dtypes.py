"""Element types: torch's, OpenVINO's, and numpy's between them."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from tiacc.backends.openvino import library

NAMES: dict[torch.dtype, str] = {
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "boolean",
}
"""The element types that tensors may have on their way in and out of an engine, by OpenVINO's name of each."""


@cache
def type_of(dtype: torch.dtype) -> Any:
    """Return the ``openvino.Type`` of a dtype."""
    return getattr(library.openvino().Type, NAMES[dtype])


def wrap(tensor: torch.Tensor) -> Any:
    """Return an ``openvino.Tensor`` over the memory of a contiguous torch tensor.

    Numpy lends OpenVINO the address. It has no bfloat16, so such a tensor goes through as 16-bit integers, with its type named.
    """
    ov = library.openvino()
    if tensor.dtype == torch.bfloat16:
        return ov.Tensor(tensor.view(torch.int16).numpy(), ov.Shape(list(tensor.shape)), ov.Type.bf16)
    return ov.Tensor(tensor.numpy(), shared_memory=True)


def view(tensor: Any, dtype: torch.dtype) -> torch.Tensor:
    """Return a torch tensor over the memory of an ``openvino.Tensor`` whose elements are of type `dtype`."""
    if dtype == torch.bfloat16:
        import numpy as np

        return torch.from_numpy(tensor.data.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(tensor.data)

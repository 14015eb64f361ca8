"""Comparisons, logic, and choosing by a condition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.backends.tensorrt.conversion import Conversion
from tiacc.backends.tensorrt.converters import converts
from tiacc.backends.tensorrt.layers import Tensor
from tiacc.backends.tensorrt.shaping import Value

aten = torch.ops.aten


def compare(net: Conversion, relation: str, first: Any, second: Any, dtype: torch.dtype) -> Tensor:
    """Compare two operands.

    Args:
        net: The network.
        relation: ``"eq"``, ``"ne"``, ``"lt"``, ``"le"``, ``"gt"`` or ``"ge"``.
        first: A tensor or number.
        second: A tensor or number.
        dtype: The type to compare in. Comparisons with NaN are false, but for ``"ne"``.
    """
    if relation in ("eq", "ne"):
        equal = net.binary("EQUAL", first, second, dtype)
        return equal if relation == "eq" else net.logical_not(equal)
    if dtype == torch.bool:
        dtype = torch.int32
    if relation in ("lt", "gt"):
        return net.binary("LESS" if relation == "lt" else "GREATER", first, second, dtype)
    if not dtype.is_floating_point:
        return net.logical_not(net.binary("GREATER" if relation == "le" else "LESS", first, second, dtype))
    first, second = net.align(first, second, dtype=dtype)
    strict = net.binary("LESS" if relation == "le" else "GREATER", first, second)
    return net.binary("OR", strict, net.binary("EQUAL", first, second))


def _comparison(relation: str) -> Callable[[Call], Value]:
    def convert(call: Call) -> Value:
        dtype = call.common_dtype("self", "other")
        if dtype == torch.float64:
            dtype = torch.float32
        return compare(call.net, relation, call.operand("self"), call.operand("other"), dtype)

    convert.__doc__ = f"The comparison {relation}."
    return convert


for _relation, _packets in {
    "eq": (aten.eq,),
    "ne": (aten.ne, aten.not_equal),
    "lt": (aten.lt, aten.less),
    "le": (aten.le, aten.less_equal),
    "gt": (aten.gt, aten.greater),
    "ge": (aten.ge, aten.greater_equal),
}.items():
    for _packet in _packets:
        converts(_packet.Tensor, _packet.Scalar, symbolic=("other",))(_comparison(_relation))


@converts(aten.isclose.default)
def isclose(call: Call) -> Value:
    """Whether |self - other| <= atol + rtol · |other|, or both are equal."""
    net, dtype = call.net, call.common_dtype("self", "other")
    first, second = net.align(call.operand("self"), call.operand("other"), dtype=dtype)
    same = net.binary("EQUAL", first, second)
    if dtype == torch.bool:
        return same
    if dtype.is_floating_point and call.number("equal_nan"):
        same = net.binary("OR", same, net.binary("AND", net.unary("ISNAN", first), net.unary("ISNAN", second)))
    wide = dtype if dtype.is_floating_point else torch.float32
    size = net.binary("PROD", net.unary("ABS", net.cast(second, wide)), float(call.number("rtol")))
    allowed = net.binary("SUM", size, float(call.number("atol")))
    distance = net.cast(net.unary("ABS", net.binary("SUB", first, second)), wide)
    near = compare(net, "le", distance, allowed, wide)
    if dtype.is_floating_point:
        near = net.binary("AND", near, net.logical_not(net.unary("ISINF", distance)))
    return net.binary("OR", same, near)


# -- logic ------------------------------------------------------------------------------------------------------------------------


def as_bool(net: Conversion, value: Value) -> Tensor:
    """Return whether each element differs from 0; NaN does."""
    tensor = net.tensor(value)
    if net.dtype(tensor) == torch.bool:
        return tensor
    return net.logical_not(net.binary("EQUAL", tensor, 0))


def _logical(kind: str) -> Callable[[Call], Value]:
    def convert(call: Call) -> Value:
        net = call.net
        return net.binary(kind, as_bool(net, call.operand("self")), as_bool(net, call.operand("other")), torch.bool)

    convert.__doc__ = f"The logical operation {kind}."
    return convert


def _bitwise(kind: str) -> Callable[[Call], Value]:
    def convert(call: Call) -> Value:
        return call.net.binary(kind, call.operand("self"), call.operand("other"), torch.bool)

    convert.__doc__ = f"The operation {kind} on bools."
    return convert


for _kind, _logic, _bits, _dunder in (
    ("AND", aten.logical_and, aten.bitwise_and, aten.__and__),
    ("OR", aten.logical_or, aten.bitwise_or, aten.__or__),
    ("XOR", aten.logical_xor, aten.bitwise_xor, aten.__xor__),
):
    converts(_logic.default)(_logical(_kind))
    converts(
        _bits.Tensor, _bits.Scalar, _bits.Scalar_Tensor, _dunder.Tensor, _dunder.Scalar, dtypes=(torch.bool,), results=(torch.bool,)
    )(_bitwise(_kind))


# -- choice -----------------------------------------------------------------------------------------------------------------------


def _condition_is_bool(view: NodeView) -> Support:
    dtype = view.fake("condition").dtype
    return SUPPORTED if dtype == torch.bool else Support(False, f"its condition is {str(dtype).removeprefix('torch.')}, not bool")


@converts(aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar, check=_condition_is_bool)
def where(call: Call) -> Value:
    """Self where the condition holds, else other."""
    return call.net.select(call.tensor("condition"), call.operand("self"), call.operand("other"), call.dtype)


@converts(aten.masked_fill.Scalar, aten.masked_fill.Tensor, symbolic=("value",))
def masked_fill(call: Call) -> Value:
    """Self, with `value` where the mask is true."""
    net, value = call.net, call.operand("value")
    return net.select(call.tensor("mask"), value, call.operand("self"), call.dtype)

"""Arithmetic between tensors, or tensors and numbers, with torch's type promotion and broadcasting."""

from __future__ import annotations

import math
from typing import Any

import torch

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.backends.tensorrt.conversion import Conversion
from tiacc.backends.tensorrt.converters import FLOATS, INTEGERS, NUMBERS, converts
from tiacc.backends.tensorrt.converters.unary import truncated
from tiacc.backends.tensorrt.layers import Tensor
from tiacc.backends.tensorrt.shaping import Value

aten = torch.ops.aten


# -- sums and products ------------------------------------------------------------------------------------------------------------


def _scaled(net: Conversion, value: Any, alpha: float, dtype: torch.dtype) -> Any:
    """Return alpha · value, in `dtype`."""
    return value if alpha == 1 else net.binary("PROD", value, alpha, dtype)


@converts(aten.add.Tensor, aten.add.Scalar, symbolic=("other",))
def add(call: Call) -> Value:
    """Self + alpha · other; of bools, a disjunction."""
    net, other, alpha = call.net, call.operand("other"), call.number("alpha")
    if call.dtype == torch.bool:
        return net.binary("OR", call.operand("self"), other if alpha else False, torch.bool)
    return net.binary("SUM", call.operand("self"), _scaled(net, other, alpha, call.dtype), call.dtype)


@converts(aten.sub.Tensor, aten.sub.Scalar, aten.subtract.Tensor, aten.subtract.Scalar, symbolic=("other",))
def sub(call: Call) -> Value:
    """Self - alpha · other."""
    other = _scaled(call.net, call.operand("other"), call.number("alpha"), call.dtype)
    return call.net.binary("SUB", call.operand("self"), other, call.dtype)


@converts(aten.rsub.Tensor, aten.rsub.Scalar, symbolic=("other",))
def rsub(call: Call) -> Value:
    """Other - alpha · self."""
    own = _scaled(call.net, call.operand("self"), call.number("alpha"), call.dtype)
    return call.net.binary("SUB", call.operand("other"), own, call.dtype)


@converts(aten.mul.Tensor, aten.mul.Scalar, aten.multiply.Tensor, aten.multiply.Scalar, symbolic=("other",))
def mul(call: Call) -> Value:
    """A product; of bools, a conjunction."""
    kind = "AND" if call.dtype == torch.bool else "PROD"
    return call.net.binary(kind, call.operand("self"), call.operand("other"), call.dtype)


@converts(aten.addcmul.default, dtypes=NUMBERS)
def addcmul(call: Call) -> Value:
    """Self + value · tensor1 · tensor2."""
    net, dtype = call.net, call.dtype
    product = net.binary("PROD", call.operand("tensor1"), call.operand("tensor2"), dtype)
    return net.binary("SUM", call.operand("self"), _scaled(net, product, call.number("value"), dtype), dtype)


@converts(aten.addcdiv.default, dtypes=FLOATS)
def addcdiv(call: Call) -> Value:
    """Self + value · tensor1 / tensor2."""
    net, dtype = call.net, call.dtype
    quotient = _quotient(net, call.operand("tensor1"), call.operand("tensor2"), dtype)
    return net.binary("SUM", call.operand("self"), _scaled(net, quotient, call.number("value"), dtype), dtype)


@converts(aten.lerp.Scalar, aten.lerp.Tensor, dtypes=FLOATS)
def lerp(call: Call) -> Value:
    """Self + weight · (end - self)."""
    net, dtype = call.net, call.dtype
    difference = net.binary("SUB", call.operand("end"), call.operand("self"), dtype)
    return net.binary("SUM", call.operand("self"), net.binary("PROD", difference, call.operand("weight"), dtype), dtype)


# -- quotients --------------------------------------------------------------------------------------------------------------------


@converts(
    aten.div.Tensor,
    aten.div.Scalar,
    aten.divide.Tensor,
    aten.divide.Scalar,
    aten.true_divide.Tensor,
    aten.true_divide.Scalar,
    symbolic=("other",),
)
def div(call: Call) -> Value:
    """A quotient in floating point."""
    return _quotient(call.net, call.operand("self"), call.operand("other"), call.dtype)


def _quotient(net: Conversion, first: Value, second: Value, dtype: torch.dtype) -> Tensor:
    """Return first / second; by a number known now it is a product with the reciprocal, as in torch's own kernel for GPUs.

    RTX 1.7.1 ends the process where what a convolution or normalisation computes is divided by a number, and then multiplied.
    """
    if not isinstance(second, (int, float, torch.Tensor)) or (isinstance(second, torch.Tensor) and second.numel() != 1):
        return net.binary("DIV", first, second, dtype)
    known = torch.as_tensor(second, dtype=torch.float64)
    inverse, limits = known.reciprocal(), torch.finfo(dtype)
    if not limits.tiny <= abs(float(inverse)) <= limits.max:
        return net.binary("DIV", first, second, dtype)
    return net.binary("PROD", first, inverse if isinstance(second, torch.Tensor) else inverse.item(), dtype)


def _not_bool(view: NodeView) -> Support:
    if view.common_dtype("self", "other") == torch.bool:
        return Support(False, f"{view.node.target} of two bool tensors")
    return SUPPORTED


@converts(
    aten.div.Tensor_mode, aten.div.Scalar_mode, aten.divide.Tensor_mode, aten.divide.Scalar_mode, symbolic=("other",), check=_not_bool
)
def div_mode(call: Call) -> Value:
    """A quotient, rounded towards zero or down."""
    mode = call.number("rounding_mode")
    if mode == "floor":
        return _floor_divided(call)
    net = call.net
    quotient = net.binary("DIV", call.operand("self"), call.operand("other"), call.dtype)
    # integers are divided towards zero
    return truncated(net, quotient) if mode == "trunc" and call.dtype.is_floating_point else quotient


@converts(aten.floor_divide.default, aten.floor_divide.Scalar, symbolic=("other",), check=_not_bool)
def floor_divide(call: Call) -> Value:
    """A quotient, rounded down."""
    return _floor_divided(call)


def _floor_divided(call: Call) -> Tensor:
    return call.net.binary("FLOOR_DIV", call.operand("self"), call.operand("other"), call.dtype)


@converts(aten.remainder.Tensor, aten.remainder.Scalar, aten.remainder.Scalar_Tensor, symbolic=("other",), check=_not_bool)
def remainder(call: Call) -> Value:
    """What is left by a division rounded down; it has the sign of the divisor."""
    net, dtype = call.net, _wide(call.dtype)
    first, second = net.align(call.operand("self"), call.operand("other"), dtype=dtype)
    return net.cast(net.binary("SUB", first, net.binary("PROD", net.binary("FLOOR_DIV", first, second), second)), call.dtype)


@converts(aten.fmod.Tensor, aten.fmod.Scalar, symbolic=("other",), check=_not_bool)
def fmod(call: Call) -> Value:
    """What is left by a division rounded towards zero; it has the sign of the dividend."""
    net, dtype = call.net, _wide(call.dtype)
    first, second = net.align(call.operand("self"), call.operand("other"), dtype=dtype)
    quotient = net.binary("DIV", first, second)
    if dtype.is_floating_point:
        quotient = truncated(net, quotient)
    return net.cast(net.binary("SUB", first, net.binary("PROD", quotient, second)), call.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which a remainder has digits left: float32 for the half types."""
    return torch.float32 if dtype in FLOATS else dtype


# -- powers -----------------------------------------------------------------------------------------------------------------------


def _power_check(view: NodeView) -> Support:
    if view.dtype == torch.bool:
        return Support(False, "a power of bools")
    return SUPPORTED


@converts(aten.pow.Tensor_Scalar, check=_power_check)
def pow_scalar(call: Call) -> Value:
    """A power with a known exponent; products, roots and reciprocals where these will do."""
    net, exponent = call.net, call.number("exponent")
    value = call.tensor("self", call.dtype)
    if exponent == 0:
        return torch.ones((), dtype=call.dtype).expand(tuple(value.shape)) if _has_static_shape(value) else net.binary("POW", value, 0)
    if exponent == 1:
        return net.identity(value)
    if exponent in (2, 3, 4):
        squared = net.binary("PROD", value, value)
        return squared if exponent == 2 else net.binary("PROD", squared, value if exponent == 3 else squared)
    if exponent == -1 and call.dtype.is_floating_point:
        return net.unary("RECIP", value)
    if exponent == 0.5:
        return net.unary("SQRT", value)
    if exponent == -0.5:
        return net.unary("RECIP", net.unary("SQRT", value))
    return net.binary("POW", value, exponent, call.dtype)


def _has_static_shape(value: Tensor) -> bool:
    return all(size >= 0 for size in tuple(value.shape))


@converts(aten.pow.Tensor_Tensor, aten.pow.Scalar, check=_power_check)
def pow_tensor(call: Call) -> Value:
    """A power."""
    return call.net.binary("POW", call.operand("self"), call.operand("exponent"), call.dtype)


@converts(aten.hypot.default, dtypes=FLOATS)
def hypot(call: Call) -> Value:
    """√(a² + b²)."""
    net, dtype = call.net, call.dtype
    first, second = (net.unary("ABS", side) for side in net.align(call.operand("self"), call.operand("other"), dtype=dtype))
    longer, shorter = net.binary("MAX", first, second), net.binary("MIN", first, second)
    ratio = net.binary("DIV", shorter, longer)  # squares of the sides themselves would overflow
    length = net.binary("PROD", longer, net.unary("SQRT", net.binary("SUM", net.binary("PROD", ratio, ratio), 1.0)))
    length = net.select(net.binary("EQUAL", longer, 0.0), 0.0, length, dtype)
    # an infinite side makes it infinite, whatever the other is
    return net.select(net.binary("OR", net.unary("ISINF", first), net.unary("ISINF", second)), math.inf, length, dtype)


# -- the larger, the smaller, what lies between ------------------------------------------------------------------------------------


def extreme(net: Conversion, kind: str, first: Any, second: Any, dtype: torch.dtype) -> Tensor:
    """Return the larger (``"MAX"``) or smaller (``"MIN"``) of two operands; of bools, the disjunction or conjunction."""
    if dtype == torch.bool:
        kind = {"MAX": "OR", "MIN": "AND"}[kind]
    return net.binary(kind, first, second, dtype)


@converts(aten.maximum.default, aten.max.other, aten.fmax.default)
def maximum(call: Call) -> Value:
    """The larger of two."""
    return extreme(call.net, "MAX", call.operand("self"), call.operand("other"), call.dtype)


@converts(aten.minimum.default, aten.min.other, aten.fmin.default)
def minimum(call: Call) -> Value:
    """The smaller of two."""
    return extreme(call.net, "MIN", call.operand("self"), call.operand("other"), call.dtype)


@converts(aten.clamp.default, aten.clip.default, aten.clamp.Tensor, aten.clip.Tensor, symbolic=("min", "max"))
def clamp(call: Call) -> Value:
    """Hold elements between two bounds; the upper one wins where they cross."""
    net, low, high = call.net, call.operand("min"), call.operand("max")
    value = call.tensor("self", call.dtype)
    are_numbers = isinstance(low, (int, float)) and isinstance(high, (int, float))
    if are_numbers and low <= high and call.dtype.is_floating_point:
        return net.activation("CLIP", value, alpha=float(low), beta=float(high))
    if low is not None:
        value = extreme(net, "MAX", value, low, call.dtype)
    return value if high is None else extreme(net, "MIN", value, high, call.dtype)


@converts(aten.clamp_min.default, aten.clamp_min.Tensor, symbolic=("min",))
def clamp_min(call: Call) -> Value:
    """Hold elements above a bound."""
    return extreme(call.net, "MAX", call.operand("self"), call.operand("min"), call.dtype)


@converts(aten.clamp_max.default, aten.clamp_max.Tensor, symbolic=("max",))
def clamp_max(call: Call) -> Value:
    """Hold elements below a bound."""
    return extreme(call.net, "MIN", call.operand("self"), call.operand("max"), call.dtype)


# -- angles and signs ---------------------------------------------------------------------------------------------------------------


@converts(aten.atan2.default, aten.arctan2.default)
def atan2(call: Call) -> Value:
    """The angle of the point (other, self), between -π and π."""
    net, dtype = call.net, call.dtype
    y, x = net.align(call.operand("self"), call.operand("other"), dtype=dtype)
    angle = net.unary("ATAN", net.binary("DIV", y, x))
    turn = net.select(net.binary("LESS", y, 0.0), -math.pi, math.pi, dtype)
    angle = net.select(net.binary("LESS", x, 0.0), net.binary("SUM", angle, turn), angle)
    is_origin = net.binary("AND", net.binary("EQUAL", x, 0.0), net.binary("EQUAL", y, 0.0))
    return net.select(is_origin, 0.0, angle, dtype)


@converts(aten.copysign.Tensor, aten.copysign.Scalar)
def copysign(call: Call) -> Value:
    """|self| with the sign of other; -0.0 is negative."""
    net, dtype = call.net, call.dtype
    size = net.unary("ABS", call.tensor("self", dtype))
    other = call.operand("other")
    if isinstance(other, (int, float)):
        return size if math.copysign(1.0, other) > 0 else net.unary("NEG", size)
    sign = net.tensor(other, dtype)
    is_negative = net.binary("OR", net.binary("LESS", sign, 0.0), net.binary("LESS", net.unary("RECIP", sign), 0.0))
    return net.select(is_negative, net.unary("NEG", size), size)


@converts(aten.heaviside.default, dtypes=NUMBERS)
def heaviside(call: Call) -> Value:
    """0 below 0, 1 above it, and `values` at it."""
    net, dtype = call.net, call.dtype
    value, at_zero = net.align(call.operand("self"), call.operand("values"), dtype=dtype)
    step = net.cast(net.binary("GREATER", value, 0), dtype)
    return net.select(net.binary("EQUAL", value, 0), at_zero, step)


# -- logarithms of sums and products --------------------------------------------------------------------------------------------------


@converts(
    aten.xlogy.Tensor,
    aten.xlogy.Scalar_Self,
    aten.xlogy.Scalar_Other,
    aten.special_xlogy.default,
    aten.special_xlogy.self_scalar,
    aten.special_xlogy.other_scalar,
)
def xlogy(call: Call) -> Value:
    """Self · log(other), and 0 where self is 0 and other is a number."""
    net, dtype = call.net, call.dtype
    first, second = net.align(call.operand("self"), call.operand("other"), dtype=dtype)
    if net.rank(first) < net.rank(second):
        first = net.raise_rank(first, net.rank(second))
    is_zero = net.binary("AND", net.binary("EQUAL", first, 0.0), net.logical_not(net.unary("ISNAN", second)))
    return net.select(is_zero, 0.0, net.binary("PROD", first, net.unary("LOG", second)), dtype)


def _log_add(call: Call, base: float) -> Value:
    """Return the logarithm of a sum of two powers of `base`: max + log(1 + base^-|a - b|)."""
    net, dtype, scale = call.net, call.dtype, math.log(base)
    first, second = net.align(call.operand("self"), call.operand("other"), dtype=dtype)
    distance = net.unary("ABS", net.binary("SUB", first, second))
    power = net.unary("EXP", net.binary("PROD", distance, -scale))
    correction = net.binary("PROD", net.unary("LOG", net.binary("SUM", power, 1.0)), 1 / scale)
    larger = net.binary("MAX", first, second)
    # equal infinities have no distance
    return net.select(net.unary("ISINF", larger), larger, net.binary("SUM", larger, correction))


@converts(aten.logaddexp.default, dtypes=FLOATS)
def logaddexp(call: Call) -> Value:
    """Log(exp(self) + exp(other))."""
    return _log_add(call, math.e)


@converts(aten.logaddexp2.default, dtypes=FLOATS)
def logaddexp2(call: Call) -> Value:
    """Log2(2^self + 2^other)."""
    return _log_add(call, 2.0)


# -- bits ---------------------------------------------------------------------------------------------------------------------------


def _shift_check(view: NodeView) -> Support:
    if not view.is_number("other"):
        return Support(False, "a shift by a tensor")
    return SUPPORTED if 0 <= view.value("other") < 31 else Support(False, "a shift by fewer than 0 or more than 30 bits")


@converts(aten.bitwise_left_shift.Tensor_Scalar, aten.__lshift__.Scalar, dtypes=INTEGERS, results=INTEGERS, check=_shift_check)
def left_shift(call: Call) -> Value:
    """Self · 2ⁿ."""
    return call.net.binary("PROD", call.operand("self"), 1 << call.number("other"), call.dtype)


@converts(aten.bitwise_right_shift.Tensor_Scalar, aten.__rshift__.Scalar, dtypes=INTEGERS, results=INTEGERS, check=_shift_check)
def right_shift(call: Call) -> Value:
    """Self / 2ⁿ, rounded down, as the sign bit is carried along."""
    return call.net.binary("FLOOR_DIV", call.operand("self"), 1 << call.number("other"), call.dtype)



"""Functions of one tensor, element by element: rounding, powers, exponentials, trigonometry, tests."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.backends.tensorrt.conversion import Conversion
from tiacc.backends.tensorrt.converters import ALL, FLOATS, NUMBERS, converts
from tiacc.backends.tensorrt.layers import Tensor
from tiacc.backends.tensorrt.shaping import Value

aten = torch.ops.aten


def _floating(kind: str) -> Callable[[Call], Value]:
    """Return a converter for a function that torch computes in floating point, whatever its argument."""

    def convert(call: Call) -> Value:
        return call.net.unary(kind, call.tensor("self", call.dtype))

    convert.__doc__ = f"The unary operation {kind}, in floating point."
    return convert


for _kind, _overloads in {
    "EXP": (aten.exp.default,),
    "LOG": (aten.log.default,),
    "SQRT": (aten.sqrt.default,),
    "RECIP": (aten.reciprocal.default,),
    "SIN": (aten.sin.default,),
    "COS": (aten.cos.default,),
    "TAN": (aten.tan.default,),
    "SINH": (aten.sinh.default,),
    "COSH": (aten.cosh.default,),
    "ASIN": (aten.asin.default, aten.arcsin.default),
    "ACOS": (aten.acos.default, aten.arccos.default),
    "ATAN": (aten.atan.default, aten.arctan.default),
    "ASINH": (aten.asinh.default, aten.arcsinh.default),
    "ACOSH": (aten.acosh.default, aten.arccosh.default),
    "ATANH": (aten.atanh.default, aten.arctanh.default),
    "ERF": (aten.erf.default, aten.special_erf.default),
}.items():
    converts(*_overloads)(_floating(_kind))


# -- rounding and sign ----------------------------------------------------------------------------------------------------------


def _rounding(kind: str) -> Callable[[Call], Value]:
    def convert(call: Call) -> Value:
        value = call.tensor("self")
        return call.net.unary(kind, value) if call.dtype.is_floating_point else call.net.identity(value)

    convert.__doc__ = f"The unary operation {kind}; an integer is its own."
    return convert


converts(aten.floor.default, dtypes=NUMBERS)(_rounding("FLOOR"))
converts(aten.ceil.default, dtypes=NUMBERS)(_rounding("CEIL"))
converts(aten.round.default, aten.special_round.default, dtypes=NUMBERS)(_rounding("ROUND"))


@converts(aten.round.decimals, dtypes=FLOATS)
def round_decimals(call: Call) -> Value:
    """Round to the nearest multiple of a power of ten, half to even."""
    net, value, decimals = call.net, call.tensor("self"), call.number("decimals")
    factor = float(10 ** abs(decimals))
    first, second = ("PROD", "DIV") if decimals >= 0 else ("DIV", "PROD")
    return net.binary(second, net.unary("ROUND", net.binary(first, value, factor)), factor) if decimals else net.unary("ROUND", value)


def truncated(net: Conversion, value: Tensor) -> Tensor:
    """Return a float tensor rounded towards zero."""
    return net.binary("PROD", net.unary("SIGN", value), net.unary("FLOOR", net.unary("ABS", value)))


@converts(aten.trunc.default, aten.fix.default, dtypes=NUMBERS)
def trunc(call: Call) -> Value:
    """Round towards zero."""
    value = call.tensor("self")
    return truncated(call.net, value) if call.dtype.is_floating_point else call.net.identity(value)


@converts(aten.frac.default, dtypes=FLOATS)
def frac(call: Call) -> Value:
    """X - trunc(x)."""
    value = call.tensor("self")
    return call.net.binary("SUB", value, truncated(call.net, value))


@converts(aten.abs.default, aten.absolute.default, dtypes=NUMBERS)
def absolute(call: Call) -> Value:
    """|x|."""
    return call.net.unary("ABS", call.tensor("self"))


@converts(aten.neg.default, aten.negative.default, dtypes=NUMBERS)
def negative(call: Call) -> Value:
    """-x."""
    return call.net.unary("NEG", call.tensor("self"))


@converts(aten.sign.default, aten.sgn.default)
def sign(call: Call) -> Value:
    """-1, 0 or 1; a bool is its own sign."""
    value = call.tensor("self")
    return call.net.identity(value) if call.dtype == torch.bool else call.net.unary("SIGN", value)


@converts(aten.signbit.default)
def signbit(call: Call) -> Value:
    """Whether the sign bit is set: of -0.0 too, whose reciprocal is negative."""
    net, value = call.net, call.tensor("self")
    dtype = net.dtype(value)
    if dtype == torch.bool:
        return net.binary("XOR", value, value)
    below = net.binary("LESS", value, 0)
    return net.binary("OR", below, net.binary("LESS", net.unary("RECIP", value), 0)) if dtype.is_floating_point else below


@converts(aten.positive.default, dtypes=NUMBERS)
def positive(call: Call) -> Value:
    """X itself."""
    return call.net.identity(call.tensor("self"))


# -- powers, exponentials, logarithms --------------------------------------------------------------------------------------------


@converts(aten.square.default)
def square(call: Call) -> Value:
    """X²."""
    value = call.tensor("self", call.dtype)
    return call.net.binary("PROD", value, value)


@converts(aten.rsqrt.default)
def rsqrt(call: Call) -> Value:
    """1 / √x."""
    return call.net.unary("RECIP", call.net.unary("SQRT", call.tensor("self", call.dtype)))


@converts(aten.exp2.default, aten.special_exp2.default)
def exp2(call: Call) -> Value:
    """2ˣ."""
    return call.net.binary("POW", 2.0, call.tensor("self", call.dtype))


@converts(aten.expm1.default, aten.special_expm1.default)
def expm1(call: Call) -> Value:
    """Exp(x) - 1, exact near 0, where it is 2t / (1 - t) with t = tanh(x / 2)."""
    net, value = call.net, call.tensor("self", call.dtype)
    half_tanh = net.activation("TANH", net.binary("PROD", value, 0.5))
    near = net.binary("DIV", net.binary("PROD", half_tanh, 2.0), net.binary("SUB", 1.0, half_tanh))
    far = net.binary("SUB", net.unary("EXP", value), 1.0)
    return net.select(net.binary("LESS", net.unary("ABS", value), 0.5), near, far)


def log_of_one_plus(net: Conversion, value: Tensor) -> Tensor:
    """Return log(1 + x), exact near 0, where it is 2 · atanh(x / (2 + x))."""
    near = net.binary("PROD", net.unary("ATANH", net.binary("DIV", value, net.binary("SUM", value, 2.0))), 2.0)
    far = net.unary("LOG", net.binary("SUM", value, 1.0))
    return net.select(net.binary("LESS", net.unary("ABS", value), 0.5), near, far)


@converts(aten.log1p.default, aten.special_log1p.default)
def log1p(call: Call) -> Value:
    """Log(1 + x)."""
    return log_of_one_plus(call.net, call.tensor("self", call.dtype))


def _logarithm(base: float) -> Callable[[Call], Value]:
    def convert(call: Call) -> Value:
        return call.net.binary("PROD", call.net.unary("LOG", call.tensor("self", call.dtype)), 1 / math.log(base))

    convert.__doc__ = f"The logarithm to base {base}."
    return convert


converts(aten.log2.default)(_logarithm(2.0))
converts(aten.log10.default)(_logarithm(10.0))


@converts(aten.erfc.default, aten.special_erfc.default)
def erfc(call: Call) -> Value:
    """1 - erf(x); the difference of two numbers near 1 has no digits in half precision, and is taken in float32."""
    value = call.tensor("self", torch.float32)
    return call.net.cast(call.net.binary("SUB", 1.0, call.net.unary("ERF", value)), call.dtype)


def _eps_leaves_room(view: NodeView) -> Support:
    eps = view.value("eps")
    return SUPPORTED if eps is None or eps <= 0.5 else Support(False, "logit whose bounds cross: eps is above 0.5")


@converts(aten.logit.default, aten.special_logit.default, check=_eps_leaves_room)
def logit(call: Call) -> Value:
    """Log(x / (1 - x)), x held within eps of 0 and 1."""
    net, value, eps = call.net, call.tensor("self", call.dtype), call.number("eps")
    if eps is not None:
        value = net.binary("MAX", net.binary("MIN", value, 1.0 - eps), float(eps))
    return net.unary("LOG", net.binary("DIV", value, net.binary("SUB", 1.0, value)))


@converts(aten.sinc.default, aten.special_sinc.default)
def sinc(call: Call) -> Value:
    """Sin(πx) / πx, and 1 at 0."""
    net = call.net
    angle = net.binary("PROD", call.tensor("self", call.dtype), math.pi)
    return net.select(net.binary("EQUAL", angle, 0.0), 1.0, net.binary("DIV", net.unary("SIN", angle), angle), call.dtype)


@converts(aten.deg2rad.default)
def deg2rad(call: Call) -> Value:
    """Degrees to radians."""
    return call.net.binary("PROD", call.tensor("self", call.dtype), math.pi / 180)


@converts(aten.rad2deg.default)
def rad2deg(call: Call) -> Value:
    """Radians to degrees."""
    return call.net.binary("PROD", call.tensor("self", call.dtype), 180 / math.pi)


# -- tests ----------------------------------------------------------------------------------------------------------------------


def _never(net: Conversion, value: Tensor) -> Tensor:
    """Return false for each element."""
    return net.logical_not(_always(net, value))


def _always(net: Conversion, value: Tensor) -> Tensor:
    """Return true for each element of a tensor of whole numbers."""
    return net.binary("EQUAL", value, value)


@converts(aten.isnan.default)
def isnan(call: Call) -> Value:
    """Whether an element is not a number."""
    value = call.tensor("self")
    return call.net.unary("ISNAN", value) if call.net.dtype(value).is_floating_point else _never(call.net, value)


@converts(aten.isinf.default)
def isinf(call: Call) -> Value:
    """Whether an element is infinite."""
    value = call.tensor("self")
    return call.net.unary("ISINF", value) if call.net.dtype(value).is_floating_point else _never(call.net, value)


@converts(aten.isfinite.default)
def isfinite(call: Call) -> Value:
    """Whether an element is neither infinite nor NaN: x - x is 0 only then."""
    net, value = call.net, call.tensor("self")
    if not net.dtype(value).is_floating_point:
        return _always(net, value)
    return net.logical_not(net.binary("OR", net.unary("ISNAN", value), net.unary("ISINF", value)))


def _signed_infinity(comparison: str) -> Callable[[Call], Value]:
    def convert(call: Call) -> Value:
        net, value = call.net, call.tensor("self")
        if not net.dtype(value).is_floating_point:
            return _never(net, value)
        return net.binary("AND", net.unary("ISINF", value), net.binary(comparison, value, 0.0))

    convert.__doc__ = f"Whether an element is infinite and {comparison.lower()} than 0."
    return convert


converts(aten.isposinf.default)(_signed_infinity("GREATER"))
converts(aten.isneginf.default)(_signed_infinity("LESS"))


@converts(aten.logical_not.default)
def logical_not(call: Call) -> Value:
    """Whether an element is zero."""
    net, value = call.net, call.tensor("self")
    return net.logical_not(value) if net.dtype(value) == torch.bool else net.binary("EQUAL", value, 0)


@converts(aten.bitwise_not.default, dtypes=ALL - FLOATS)
def bitwise_not(call: Call) -> Value:
    """Each bit negated: -x - 1 for an integer, in two's complement."""
    net, value = call.net, call.tensor("self")
    return net.logical_not(value) if call.dtype == torch.bool else net.binary("SUB", -1, value)


def _has_finite_range(view: NodeView) -> Support:
    if view.dtype == torch.bool:
        return Support(False, "nan_to_num of bool")
    return SUPPORTED


@converts(aten.nan_to_num.default, check=_has_finite_range)
def nan_to_num(call: Call) -> Value:
    """NaN and the infinities replaced by numbers."""
    net, value = call.net, call.tensor("self")
    if not call.dtype.is_floating_point:
        return net.identity(value)
    limits = torch.finfo(call.dtype)
    nan, high, low = (call.number(name) for name in ("nan", "posinf", "neginf"))
    infinite = net.unary("ISINF", value)
    finite = net.select(
        net.binary("GREATER", value, 0.0), limits.max if high is None else high, limits.min if low is None else low, call.dtype
    )
    return net.select(net.unary("ISNAN", value), 0.0 if nan is None else nan, net.select(infinite, finite, value), call.dtype)

"""Layers that compute each element from the elements at its place: activations, arithmetic, selection, scaling and casts."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tiacc.backends.tensorrt.interpreter.dtypes import ARITHMETIC, round_to_fp4
from tiacc.backends.tensorrt.interpreter.layers import LayerCall, evaluates, is_arithmetic_float

_ACTIVATIONS: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "RELU": lambda x, a, b: x.clamp(min=0),
    "SIGMOID": lambda x, a, b: torch.sigmoid(x),
    "TANH": lambda x, a, b: torch.tanh(x),
    "LEAKY_RELU": lambda x, a, b: torch.where(x >= 0, x, a * x),
    "ELU": lambda x, a, b: torch.where(x >= 0, x, a * torch.expm1(x)),
    "SELU": lambda x, a, b: b * torch.where(x > 0, x, a * torch.expm1(x)),
    "SOFTSIGN": lambda x, a, b: x / (1 + x.abs()),
    "SOFTPLUS": lambda x, a, b: a * torch.logaddexp(b * x, torch.zeros((), dtype=x.dtype)),
    # Not Tensor.clamp, whose bound of one above the other wins: max(alpha, min(beta, x)), NaN kept.
    "CLIP": lambda x, a, b: x.clamp(max=b).clamp(min=a),
    "HARD_SIGMOID": lambda x, a, b: (a * x + b).clamp(0, 1),
    "SCALED_TANH": lambda x, a, b: a * torch.tanh(b * x),
    "THRESHOLDED_RELU": lambda x, a, b: torch.where(x > a, x, torch.zeros((), dtype=x.dtype)),
    "GELU_ERF": lambda x, a, b: F.gelu(x),
    "GELU_TANH": lambda x, a, b: F.gelu(x, approximate="tanh"),
}

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "EXP": torch.exp,
    "LOG": torch.log,
    "SQRT": torch.sqrt,
    "RECIP": torch.reciprocal,
    "ABS": torch.abs,
    "NEG": torch.neg,
    "SIN": torch.sin,
    "COS": torch.cos,
    "TAN": torch.tan,
    "SINH": torch.sinh,
    "COSH": torch.cosh,
    "ASIN": torch.asin,
    "ACOS": torch.acos,
    "ATAN": torch.atan,
    "ASINH": torch.asinh,
    "ACOSH": torch.acosh,
    "ATANH": torch.atanh,
    "CEIL": torch.ceil,
    "FLOOR": torch.floor,
    "ERF": torch.erf,
    "NOT": torch.logical_not,
    "SIGN": torch.sign,
    "ROUND": torch.round,  # half to even
    "ISINF": torch.isinf,
    "ISNAN": torch.isnan,
}

_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "SUM": torch.add,
    "SUB": torch.sub,
    "PROD": torch.mul,
    "MAX": torch.maximum,
    "MIN": torch.minimum,
    "DIV": lambda a, b: torch.div(a, b, rounding_mode=None if is_arithmetic_float(a) else "trunc"),
    "FLOOR_DIV": lambda a, b: torch.floor(a / b) if is_arithmetic_float(a) else torch.div(a, b, rounding_mode="floor"),
    "POW": lambda a, b: torch.pow(a, b) if is_arithmetic_float(a) else _integer_power(a, b),
    "AND": torch.logical_and,
    "OR": torch.logical_or,
    "XOR": torch.logical_xor,
    "EQUAL": torch.eq,
    "GREATER": torch.gt,
    "LESS": torch.lt,
}


@evaluates("ACTIVATION")
def activation(call: LayerCall) -> Tensor:
    """Evaluate IActivationLayer. Source: the formulas of ``trt.ActivationType``."""
    kind = call.trt.IActivationLayer.type.__get__(call.layer).name
    if kind not in _ACTIVATIONS:
        raise call.unsupported(f"activation {kind}")
    x = call.input()
    if is_arithmetic_float(x):
        return _ACTIVATIONS[kind](x, call.layer.alpha, call.layer.beta)
    return convert(_ACTIVATIONS[kind](x.to(torch.float64), call.layer.alpha, call.layer.beta), x.dtype)


@evaluates("PARAMETRIC_RELU")
def parametric_relu(call: LayerCall) -> Tensor:
    """Evaluate IParametricReLULayer; the slopes broadcast to the input."""
    x = call.input()
    return torch.where(x >= 0, x, x * call.input(1))


@evaluates("UNARY")
def unary(call: LayerCall) -> Tensor:
    """Evaluate IUnaryLayer."""
    operation = call.layer.op.name
    if operation not in _UNARY:
        raise call.unsupported(f"unary operation {operation}")
    return _UNARY[operation](call.input())


@evaluates("ELEMENTWISE")
def elementwise(call: LayerCall) -> Tensor:
    """Evaluate IElementWiseLayer: integers divide towards zero, FLOOR_DIV towards minus infinity."""
    operation = call.layer.op.name
    if operation not in _BINARY:
        raise call.unsupported(f"elementwise operation {operation}")
    return _BINARY[operation](call.input(0), call.input(1))


@evaluates("SELECT", arithmetic=False)
def select(call: LayerCall) -> Tensor:
    """Evaluate ISelectLayer."""
    return torch.where(call.input(0), call.input(1), call.input(2))


@evaluates("SCALE")
def scale(call: LayerCall) -> Tensor:
    """Evaluate IScaleLayer: ``(x * scale + shift) ** power``, each given for all elements, by channel or by element."""
    x = call.input()
    axis, mode = call.layer.channel_axis, call.layer.mode.name
    shapes = {
        "UNIFORM": (),
        "CHANNEL": tuple(x.shape[axis] if d == axis else 1 for d in range(x.dim())),
        "ELEMENTWISE": tuple(x.shape[axis:]),
    }

    def coefficient(name: str) -> Tensor | None:
        value = call.weights(name)
        return None if value is None else value.reshape(shapes[mode])

    factor, shift, power = coefficient("scale"), coefficient("shift"), coefficient("power")
    if factor is not None:
        x = x * factor
    if shift is not None:
        x = x + shift
    return x if power is None else torch.pow(x, power)


@evaluates("CAST", "IDENTITY", arithmetic=False)
def cast(call: LayerCall) -> Tensor:
    """Evaluate ICastLayer and IIdentityLayer: a conversion to the declared output type.

    Floating values become integers towards zero and saturate; FP8 saturates at its largest number, as ONNX's Cast does
    by default.
    """
    x = call.input()
    if call.kind == "CAST" and call.layer.to_type.name in ("INT4", "FP4"):
        return _to_four_bits(x, call.layer.to_type.name)
    return convert(x, call.output_dtype)


def convert(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return values in another dtype: towards zero and saturating from floating to integer, saturating to FP8."""
    if x.dtype == dtype:
        return x
    if x.is_floating_point() and x.dtype not in ARITHMETIC:
        x = x.to(torch.float32)
    if dtype == torch.bool:
        return x != 0
    if dtype == torch.float8_e4m3fn:
        top = torch.finfo(dtype).max
        return x.to(torch.float32).clamp(-top, top).to(dtype)
    if x.is_floating_point() and not dtype.is_floating_point:
        return _to_integer(x, dtype)
    return x.to(dtype)


def _to_integer(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return floating values as integers: towards zero, saturating, NaN as 0. Source: CUDA's float-to-integer conversions."""
    limits = torch.iinfo(dtype)
    # In double every limit but int64's largest is exact; that one is a power of two too far, so it is put in by hand.
    wide = x.to(torch.float64).nan_to_num(nan=0.0).trunc()
    whole = wide.clamp(limits.min, limits.max if dtype != torch.int64 else 0x7FFFFFFFFFFFFC00).to(dtype)
    return torch.where(wide > limits.max, torch.full_like(whole, limits.max), whole) if dtype == torch.int64 else whole


def _to_four_bits(x: Tensor, name: str) -> Tensor:
    """Return 4-bit values as ONNX's casts give them: integers wrap, NaN becomes 0 in FP4, which has none."""
    if name == "FP4":
        return round_to_fp4(x.to(torch.float32).nan_to_num(nan=0.0))
    return ((convert(x, torch.int64) + 8) % 16 - 8).to(torch.int8)


def _integer_power(a: Tensor, b: Tensor) -> Tensor:
    """Return integer powers; a negative exponent gives the fraction cut to an integer."""
    if bool((b >= 0).all()):
        return torch.pow(a, b)
    return torch.pow(a.to(torch.float64), b.to(torch.float64)).trunc().to(a.dtype)

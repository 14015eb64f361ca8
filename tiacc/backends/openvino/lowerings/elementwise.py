"""Element-wise functions, and division: OpenVINO divides integers in float32, and rounds towards zero."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from tiacc.backends.openvino.lowering import Emitter, lowers
from tiacc.backends.openvino.lowerings.common import value_of

aten = torch.ops.aten


@lowers("softplus.default")
def _softplus(emit: Emitter, x: fx.Node, beta: float, threshold: float) -> fx.Node | None:
    # OpenVINO's SoftPlus is log(1 + exp(x)): it has no beta, and torch's threshold only saves time where both agree to float32.
    if beta == 1 and threshold >= 20:
        return None
    scaled = emit(aten.mul.Scalar, x, beta)
    soft = emit(aten.div.Scalar, emit(aten.softplus.default, scaled), beta)
    return emit(aten.where.self, emit(aten.gt.Scalar, scaled, threshold), x, soft)


@lowers("threshold.default")
def _threshold(emit: Emitter, x: fx.Node, threshold: float, value: float) -> fx.Node:
    return emit(aten.masked_fill.Scalar, x, emit(aten.le.Scalar, x, threshold), value)


@lowers("hardshrink.default")
def _hardshrink(emit: Emitter, x: fx.Node, limit: float) -> fx.Node:
    return emit(aten.masked_fill.Scalar, x, emit(aten.le.Scalar, emit(aten.abs.default, x), limit), 0)


@lowers("softshrink.default")
def _softshrink(emit: Emitter, x: fx.Node, limit: float) -> fx.Node:
    return emit(aten.sub.Tensor, x, emit(aten.clamp.default, x, -limit, limit))


def _truncated(emit: Emitter, x: fx.Node) -> fx.Node:
    if not value_of(x).dtype.is_floating_point:
        return x
    return emit(aten.mul.Tensor, emit(aten.sign.default, x), emit(aten.floor.default, emit(aten.abs.default, x)))


@lowers("trunc.default")
def _trunc(emit: Emitter, x: fx.Node) -> fx.Node:
    return _truncated(emit, x)


@lowers("frac.default")
def _frac(emit: Emitter, x: fx.Node) -> fx.Node:
    return emit(aten.sub.Tensor, x, _truncated(emit, x))


@lowers("floor.default", "ceil.default", "round.default")
def _rounding(emit: Emitter, x: fx.Node) -> fx.Node | None:
    return None if value_of(x).dtype.is_floating_point else x


@lowers("round.decimals")
def _round_decimals(emit: Emitter, x: fx.Node, decimals: int) -> fx.Node:
    scale = float(10 ** abs(decimals))
    into, back = (aten.mul.Scalar, aten.div.Scalar) if decimals > 0 else (aten.div.Scalar, aten.mul.Scalar)
    return emit(back, emit(aten.round.default, emit(into, x, scale)), scale)


@lowers("positive.default", "alpha_dropout.default")
def _unchanged(emit: Emitter, x: fx.Node, *rest: Any) -> fx.Node:
    return x


@lowers("deg2rad.default")
def _deg2rad(emit: Emitter, x: fx.Node) -> fx.Node:
    return emit(aten.mul.Scalar, emit.cast(x, value_of(emit.node).dtype), math.pi / 180)


@lowers("sinc.default")
def _sinc(emit: Emitter, x: fx.Node) -> fx.Node:
    angle = emit(aten.mul.Scalar, emit.cast(x, value_of(emit.node).dtype), math.pi)
    ratio = emit(aten.div.Tensor, emit(aten.sin.default, angle), angle)
    return emit(aten.masked_fill.Scalar, ratio, emit(aten.eq.Scalar, angle, 0), 1)


@lowers("logit.default")
def _logit(emit: Emitter, x: fx.Node, eps: float | None) -> fx.Node:
    x = emit.cast(x, value_of(emit.node).dtype)
    if eps is not None:
        x = emit(aten.clamp.default, x, eps, 1 - eps)
    return emit(aten.log.default, emit(aten.div.Tensor, x, emit(aten.rsub.Scalar, x, 1)))


@lowers("xlogy.Tensor")
def _xlogy(emit: Emitter, x: fx.Node, y: fx.Node) -> fx.Node:
    dtype = value_of(emit.node).dtype
    x, y = emit.cast(x, dtype), emit.cast(y, dtype)
    product = emit(aten.mul.Tensor, x, emit(aten.log.default, y))
    return emit(aten.masked_fill.Scalar, product, emit(aten.eq.Scalar, x, 0), 0)


@lowers("nan_to_num.default")
def _nan_to_num(emit: Emitter, x: fx.Node, nan: float | None, posinf: float | None, neginf: float | None) -> fx.Node:
    limits = torch.finfo(value_of(x).dtype)
    filled = emit(aten.masked_fill.Scalar, x, emit(aten.isnan.default, x), 0.0 if nan is None else nan)
    for infinity, value in ((math.inf, limits.max if posinf is None else posinf), (-math.inf, limits.min if neginf is None else neginf)):
        filled = emit(aten.masked_fill.Scalar, filled, emit(aten.eq.Scalar, x, infinity), value)
    return filled


@lowers("isposinf.default")
def _isposinf(emit: Emitter, x: fx.Node) -> fx.Node:
    return emit(aten.eq.Scalar, x, math.inf)


@lowers("isneginf.default")
def _isneginf(emit: Emitter, x: fx.Node) -> fx.Node:
    return emit(aten.eq.Scalar, x, -math.inf)


@lowers("addcdiv.default")
def _addcdiv(emit: Emitter, x: fx.Node, first: fx.Node, second: fx.Node, value: float) -> fx.Node:
    return emit(aten.add.Tensor, x, emit(aten.mul.Scalar, emit(aten.div.Tensor, first, second), value))


def _divide(emit: Emitter, x: Any, y: Any, rounding: str) -> fx.Node:
    """Write the rounded quotient in floating point; it is exact for integers below 2**24."""
    wide = value_of(emit.node).dtype
    wide = wide if wide.is_floating_point else torch.float32
    x, y = emit.cast(x, wide), emit.cast(y, wide)
    quotient = emit(aten.div.Scalar if not isinstance(y, fx.Node) else aten.div.Tensor, x, y)
    return emit(aten.floor.default, quotient) if rounding == "floor" else _truncated(emit, quotient)


@lowers("floor_divide.default", "floor_divide.Scalar")
def _floor_divide(emit: Emitter, x: fx.Node, y: Any) -> fx.Node:
    return emit.cast(_divide(emit, x, y, "floor"), value_of(emit.node).dtype)  # type: ignore[no-any-return]


@lowers("div.Tensor_mode", "div.Scalar_mode")
def _div_mode(emit: Emitter, x: fx.Node, y: Any, rounding_mode: str | None) -> fx.Node:
    dtype = value_of(emit.node).dtype
    if rounding_mode is None:
        return emit(aten.div.Tensor if isinstance(y, fx.Node) else aten.div.Scalar, emit.cast(x, dtype), emit.cast(y, dtype))
    return emit.cast(_divide(emit, x, y, rounding_mode), dtype)  # type: ignore[no-any-return]


def _modulo(emit: Emitter, x: fx.Node, y: Any, rounding: str) -> fx.Node:
    dtype = value_of(emit.node).dtype
    quotient = emit.cast(_divide(emit, x, y, rounding), dtype)
    x, y = emit.cast(x, dtype), emit.cast(y, dtype)
    whole = emit(aten.mul.Tensor if isinstance(y, fx.Node) else aten.mul.Scalar, quotient, y)
    return emit(aten.sub.Tensor, x, whole)


@lowers("remainder.Tensor", "remainder.Scalar")
def _remainder(emit: Emitter, x: fx.Node, y: Any) -> fx.Node:
    return _modulo(emit, x, y, "floor")


@lowers("fmod.Tensor", "fmod.Scalar")
def _fmod(emit: Emitter, x: fx.Node, y: Any) -> fx.Node:
    return _modulo(emit, x, y, "trunc")


@lowers("to.dtype", "to.device", "to.other", "to.dtype_layout", "type_as.default", "_to_copy.default")
def _to_its_own_type(emit: Emitter, x: fx.Node, *_: Any) -> fx.Node | None:
    """OpenVINO leaves such a conversion out, and where it made the result of a model of varying sizes, writes to memory that is gone."""
    return x if value_of(x).dtype == value_of(emit.node).dtype else None

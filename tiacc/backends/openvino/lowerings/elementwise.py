"""Element-wise functions, and division: OpenVINO divides integers in float32, and rounds towards zero."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from tiacc.backends.openvino.lowering import Emitter, common_dtype, is_number, lowers
from tiacc.backends.openvino.lowerings.common import value_of

aten = torch.ops.aten


SMALL = 0.02
"""Below this, in float32, three terms of a series are nearer to ``log(1 + x)`` and ``exp(x) - 1`` than these formulas."""


def _precise_near_zero(emit: Emitter, x: fx.Node, far: fx.Node, *terms: float) -> fx.Node:
    """Write ``x + terms[0] x² + terms[1] x³`` where x is small, and `far` elsewhere."""
    series = emit(aten.add.Scalar, emit(aten.mul.Scalar, x, terms[1]), terms[0])
    series = emit(aten.mul.Tensor, x, emit(aten.add.Scalar, emit(aten.mul.Tensor, x, series), 1))
    return emit(aten.where.self, emit(aten.lt.Scalar, emit(aten.abs.default, x), SMALL), series, far)


@lowers("log1p.default")
def _log1p(emit: Emitter, x: fx.Node) -> fx.Node:
    return _precise_near_zero(emit, x, emit(aten.log.default, emit(aten.add.Scalar, x, 1)), -1 / 2, 1 / 3)


@lowers("expm1.default")
def _expm1(emit: Emitter, x: fx.Node) -> fx.Node:
    return _precise_near_zero(emit, x, emit(aten.sub.Scalar, emit(aten.exp.default, x), 1), 1 / 2, 1 / 6)


def _log_of_sum(emit: Emitter, greatest: fx.Node, distance: fx.Node) -> fx.Node:
    """Write ``log(exp(a) + exp(b))``, of the greater of the two and how far they are from each other."""
    return emit(aten.add.Tensor, greatest, _log1p(emit, emit(aten.exp.default, emit(aten.neg.default, distance))))


@lowers("softplus.default")
def _softplus(emit: Emitter, x: fx.Node, beta: float, threshold: float) -> fx.Node:
    # OpenVINO's SoftPlus is log(1 + exp(x)), which is 0 and less for an x below -14. torch's threshold only saves time.
    scaled = x if beta == 1 else emit(aten.mul.Scalar, x, beta)
    soft = _log_of_sum(emit, emit(aten.relu.default, scaled), emit(aten.abs.default, scaled))
    if beta == 1 and threshold >= 20:
        return soft
    return emit(aten.where.self, emit(aten.gt.Scalar, scaled, threshold), x, emit(aten.div.Scalar, soft, beta))


@lowers("log_sigmoid.default")
def _log_sigmoid(emit: Emitter, x: fx.Node) -> fx.Node:
    negative = emit(aten.neg.default, x)
    return emit(aten.neg.default, _log_of_sum(emit, emit(aten.relu.default, negative), emit(aten.abs.default, x)))


@lowers("logaddexp.default")
def _logaddexp(emit: Emitter, x: fx.Node, y: fx.Node) -> fx.Node:
    dtype = value_of(emit.node).dtype
    x, y = emit.cast(x, dtype), emit.cast(y, dtype)
    distance = emit(aten.abs.default, emit(aten.sub.Tensor, x, y))
    distance = emit(aten.masked_fill.Scalar, distance, emit(aten.eq.Tensor, x, y), 0)  # that of two infinities is no number
    return _log_of_sum(emit, emit(aten.maximum.default, x, y), distance)


@lowers("gt.Tensor", "gt.Scalar", "ge.Tensor", "ge.Scalar")
def _greater(emit: Emitter, x: fx.Node, y: Any) -> fx.Node | None:
    # In OpenVINO a NaN is greater than any number, and not less.
    dtype = common_dtype(x, y)
    if not dtype.is_floating_point or (is_number(y) and not isinstance(y, (int, float))):
        return None
    y = emit.constant(torch.tensor(y, dtype=dtype)) if is_number(y) else emit.cast(y, dtype)
    return emit(aten.lt.Tensor if emit.node.target in _STRICT else aten.le.Tensor, y, emit.cast(x, dtype))


_STRICT = frozenset({aten.gt.Tensor, aten.gt.Scalar})


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
    dtype = value_of(emit.node).dtype
    if value_of(x).dtype == dtype:
        return x
    return emit(aten.to.dtype, x, dtype) if emit.node.target is aten._to_copy.default else None

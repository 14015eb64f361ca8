"""Reductions: sums, means, extrema and where they are, variances, norms."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.backends.tensorrt.conversion import Conversion
from tiacc.backends.tensorrt.converters import FLOATS, converts
from tiacc.backends.tensorrt.converters.comparison import as_bool
from tiacc.backends.tensorrt.converters.sorting import top
from tiacc.backends.tensorrt.extents import axes_of, axis_of
from tiacc.backends.tensorrt.layers import Tensor
from tiacc.backends.tensorrt.shaping import Value
from tiacc.backends.tensorrt.sizes import Number, product

aten = torch.ops.aten


def reduced(net: Conversion, kind: str, value: Tensor, axes: Sequence[int], keepdim: bool = False) -> Tensor:
    """Return a reduction over some dimensions; a tensor without dimensions, or none to reduce, stays as it is."""
    return net.reduce(kind, value, axes, keepdim) if net.rank(value) and len(axes) else value


def _axes(call: NodeView) -> list[int]:
    return axes_of(call) if "dim" in call.args else list(range(call.fake("self").dim()))


def _keeps(call: Call) -> bool:
    return bool(call.args.get("keepdim", False))


def _is_floating(view: NodeView) -> Support:
    dtype = view.dtype
    return SUPPORTED if dtype in FLOATS else Support(False, f"its result is {str(dtype).removeprefix('torch.')}, not floating-point")


# -- sums -------------------------------------------------------------------------------------------------------------------------


def _reduction(kind: str) -> Callable[[Call], Value]:
    def convert(call: Call) -> Value:
        if call.dtype == torch.bool:  # a sum of bools that stays bool tells whether one of them is true
            bools = as_bool(call.net, call.operand("self"))
            return extremum(call.net, "MAX" if kind == "SUM" else "MIN", bools, _axes(call), _keeps(call))
        return reduced(call.net, kind, call.tensor("self", call.dtype), _axes(call), _keeps(call))

    convert.__doc__ = f"The reduction {kind}, in the dtype of the result."
    return convert


converts(aten.sum.default, aten.sum.dim_IntList)(_reduction("SUM"))
converts(aten.prod.default, aten.prod.dim_int)(_reduction("PROD"))
converts(aten.mean.default, aten.mean.dim, check=_is_floating)(_reduction("AVG"))


@converts(aten.nansum.default)
def nansum(call: Call) -> Value:
    """The sum of those elements that are numbers."""
    net, value = call.net, call.tensor("self", call.dtype)
    if not call.dtype.is_floating_point:
        return reduced(net, "SUM", value, _axes(call), _keeps(call))
    return reduced(net, "SUM", net.select(net.unary("ISNAN", value), 0.0, value), _axes(call), _keeps(call))


@converts(aten.nanmean.default, check=_is_floating)
def nanmean(call: Call) -> Value:
    """The mean of those elements that are numbers."""
    net, value = call.net, call.tensor("self", call.dtype)
    is_nan = net.unary("ISNAN", value)
    total = reduced(net, "SUM", net.select(is_nan, 0.0, value), _axes(call), _keeps(call))
    return net.binary("DIV", total, reduced(net, "SUM", net.cast(net.logical_not(is_nan), call.dtype), _axes(call), _keeps(call)))


@converts(aten.count_nonzero.default, aten.count_nonzero.dim_IntList)
def count_nonzero(call: Call) -> Value:
    """How many elements are not 0."""
    return reduced(call.net, "SUM", call.net.cast(as_bool(call.net, call.operand("self")), torch.int64), _axes(call))


# -- extrema ----------------------------------------------------------------------------------------------------------------------


def extremum(net: Conversion, kind: str, value: Tensor, axes: Sequence[int], keepdim: bool = False) -> Tensor:
    """Return the largest or smallest element over some dimensions, of bools too."""
    if net.dtype(value) != torch.bool:
        return reduced(net, kind, value, axes, keepdim)
    return net.cast(reduced(net, kind, net.cast(value, torch.int32), axes, keepdim), torch.bool)


def _extremum(kind: str) -> Callable[[Call], Value]:
    def convert(call: Call) -> Value:
        return extremum(call.net, kind, call.tensor("self"), _axes(call), _keeps(call))

    convert.__doc__ = f"The {kind.lower()}imum."
    return convert


converts(aten.amax.default, aten.max.default)(_extremum("MAX"))
converts(aten.amin.default, aten.min.default)(_extremum("MIN"))


def _extremum_along(largest: bool) -> Callable[[Call], list[Value | None]]:
    def convert(call: Call) -> list[Value | None]:
        net, value, axis = call.net, call.tensor("self"), axis_of(call)
        if net.rank(value) == 0:
            return [value, torch.zeros((), dtype=torch.int64)]
        if not call.is_used(1):
            return [extremum(net, "MAX" if largest else "MIN", value, [axis], _keeps(call)), None]
        found = top(net, value, 1, axis, largest=largest)
        return [item if _keeps(call) else net.squeeze(item, [axis]) for item in found]

    convert.__doc__ = f"The {'largest' if largest else 'smallest'} element along a dimension, and the index of the first such."
    return convert


converts(aten.max.dim)(_extremum_along(True))
converts(aten.min.dim)(_extremum_along(False))


@converts(aten.aminmax.default)
def aminmax(call: Call) -> list[Value]:
    """The smallest and the largest element."""
    axes = _axes(call)
    return [extremum(call.net, kind, call.tensor("self"), axes, _keeps(call)) for kind in ("MIN", "MAX")]


def _place(largest: bool) -> Callable[[Call], Value]:
    def convert(call: Call) -> Value:
        net, value = call.net, call.tensor("self")
        rank = net.rank(value)
        if rank == 0:
            return torch.zeros((), dtype=torch.int64)
        if call.args["dim"] is None:
            flat = net.reshape(value, [product(net.shape(value))])
            index = top(net, flat, 1, 0, largest=largest)[1]
            return net.reshape(index, [1] * rank if _keeps(call) else [])
        index = top(net, value, 1, axis_of(call), largest=largest)[1]
        return index if _keeps(call) else net.squeeze(index, [axis_of(call)])

    convert.__doc__ = f"The index of the first of the {'largest' if largest else 'smallest'} elements."
    return convert


converts(aten.argmax.default)(_place(True))
converts(aten.argmin.default)(_place(False))


def _quantifier(kind: str) -> Callable[[Call], Value]:
    def convert(call: Call) -> Value:
        axes = [] if call.args.get("dim") == [] else _axes(call)
        return extremum(call.net, kind, as_bool(call.net, call.operand("self")), axes, _keeps(call))

    convert.__doc__ = f"Whether {'one element' if kind == 'MAX' else 'each element'} differs from 0."
    return convert


converts(aten.any.default, aten.any.dim, aten.any.dims)(_quantifier("MAX"))
converts(aten.all.default, aten.all.dim, aten.all.dims)(_quantifier("MIN"))


# -- moments ----------------------------------------------------------------------------------------------------------------------


def moments(net: Conversion, value: Tensor, axes: Sequence[int], correction: float, keepdim: bool) -> tuple[Tensor, Tensor]:
    """Return the variance, with n - `correction` for n elements in its denominator, and the mean, of a float32 tensor."""
    if net.rank(value) == 0:
        value, axes, keepdim = net.reshape(value, (1,)), (0,), False
    mean = net.reduce("AVG", value, axes, keepdim=True)
    distance = net.binary("SUB", value, mean)
    spread = net.reduce("AVG", net.binary("PROD", distance, distance), axes, keepdim)
    if correction:
        shape = net.shape(value)
        count: Any = product([shape[axis] for axis in axes])
        rest = net.compute(torch.sym_max, net.compute(operator.sub, count, correction), 0)
        is_void = isinstance(rest, (int, float)) and rest == 0
        factor: Number = math.inf if is_void else net.compute(operator.truediv, count, rest)
        spread = net.binary("PROD", spread, factor)
    return spread, mean if keepdim else net.squeeze(mean, axes)


def _spread(call: Call) -> tuple[Tensor, Tensor]:
    """Return the variance and the mean, in float32."""
    correction = call.args.get("correction", 1 if call.args.get("unbiased", True) else 0)
    value = call.tensor("self", torch.float32)
    return moments(call.net, value, _axes(call), 1 if correction is None else correction, _keeps(call))


@converts(aten.var.default, aten.var.dim, aten.var.correction, dtypes=FLOATS)
def var(call: Call) -> Value:
    """The variance."""
    return call.net.cast(_spread(call)[0], call.dtype)


@converts(aten.std.default, aten.std.dim, aten.std.correction, dtypes=FLOATS)
def std(call: Call) -> Value:
    """The standard deviation."""
    return call.net.cast(call.net.unary("SQRT", _spread(call)[0]), call.dtype)


@converts(aten.var_mean.default, aten.var_mean.dim, aten.var_mean.correction, dtypes=FLOATS)
def var_mean(call: Call) -> list[Value]:
    """The variance and the mean."""
    return [call.net.cast(value, call.dtype) for value in _spread(call)]


@converts(aten.std_mean.default, aten.std_mean.dim, aten.std_mean.correction, dtypes=FLOATS)
def std_mean(call: Call) -> list[Value]:
    """The standard deviation and the mean."""
    variance, mean = _spread(call)
    return [call.net.cast(value, call.dtype) for value in (call.net.unary("SQRT", variance), mean)]


@converts(aten.logsumexp.default, aten.special_logsumexp.default)
def logsumexp(call: Call) -> Value:
    """log(Σ exp(x)), with the largest element taken out, unless that is infinite."""
    net, value, axes = call.net, call.tensor("self", call.dtype), _axes(call)
    if net.rank(value) == 0:
        return value
    largest = net.reduce("MAX", value, axes, keepdim=True)
    largest = net.select(net.unary("ISINF", largest), 0.0, largest)
    total = net.reduce("SUM", net.unary("EXP", net.binary("SUB", value, largest)), axes, _keeps(call))
    return net.binary("SUM", net.unary("LOG", total), largest if _keeps(call) else net.squeeze(largest, axes))

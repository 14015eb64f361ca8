"""Running sums, products and extrema, and differences of neighbours.

Where TensorRT has no layer, a scan takes log₂(n) steps: after step k, each element holds the result over the 2ᵏ elements that end
with it. Source: W. D. Hillis and G. L. Steele, "Data parallel algorithms", 1986.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.backends.tensorrt.conversion import Conversion
from tiacc.backends.tensorrt.converters import FLOATS, NUMBERS, converts
from tiacc.backends.tensorrt.converters.comparison import compare
from tiacc.backends.tensorrt.converters.joining import joined
from tiacc.backends.tensorrt.extents import axis_of, bounds, counting, cut
from tiacc.backends.tensorrt.layers import Tensor
from tiacc.backends.tensorrt.shaping import Value

aten = torch.ops.aten

Combine = Callable[[Sequence[Tensor], Sequence[Tensor]], "list[Tensor]"]


def scanned(
    net: Conversion, values: Sequence[Tensor], axis: int, most: int, neutral: Sequence[float], combine: Combine
) -> list[Tensor]:
    """Return running results along a dimension.

    Args:
        net: The network.
        values: Tensors of one shape that are combined together.
        axis: The dimension.
        most: The largest size that it can have.
        neutral: For each tensor, what changes nothing.
        combine: From the results up to an earlier element, and those behind it, to both together.
    """
    items, step = list(values), 1
    while step < most:
        starts = [-step if place == axis else 0 for place in range(net.rank(items[0]))]
        sizes = net.shape(items[0])
        earlier = [
            net.slice(item, starts, sizes, [1] * len(sizes), mode="FILL", fill=fill) for item, fill in zip(items, neutral)
        ]
        items = combine(earlier, items)
        step *= 2
    return items


def _most(view: NodeView) -> int:
    return bounds(view.fake("self").shape[axis_of(view)])[1]


@converts(aten.cumsum.default)
def cumsum(call: Call) -> Value:
    """Running sums along a dimension."""
    net, value, axis = call.net, call.tensor("self", call.dtype), axis_of(call)
    if net.rank(value) == 0:
        return value
    if net.flavour.has("cumulative"):
        place = net.constant(torch.tensor(axis, dtype=torch.int32))
        return net.add("cumulative", value, place, net.trt.CumulativeOperation.SUM, False, False)
    return scanned(net, [value], axis, _most(call), [0], lambda a, b: [net.binary("SUM", a[0], b[0])])[0]


@converts(aten.cumprod.default)
def cumprod(call: Call) -> Value:
    """Running products along a dimension."""
    net, value, axis = call.net, call.tensor("self", call.dtype), axis_of(call)
    if net.rank(value) == 0:
        return value
    return scanned(net, [value], axis, _most(call), [1], lambda a, b: [net.binary("PROD", a[0], b[0])])[0]


def _running(relation: str) -> Callable[[Call], list[Value]]:
    def convert(call: Call) -> list[Value]:
        net, value, axis = call.net, call.tensor("self"), axis_of(call)
        if net.rank(value) == 0:
            return [value, torch.zeros((), dtype=torch.int64)]
        dtype = net.dtype(value)
        worst: Any = math.inf if dtype.is_floating_point else torch.iinfo(dtype).max
        worst = worst if relation == "le" else -math.inf if dtype.is_floating_point else torch.iinfo(dtype).min
        sizes = net.shape(value)
        own = [sizes[axis] if place == axis else 1 for place in range(len(sizes))]
        places = net.tensor(net.expand(net.reshape(counting(net, sizes[axis]), own), sizes))

        def combine(earlier: Sequence[Tensor], later: Sequence[Tensor]) -> list[Tensor]:
            takes_later = compare(net, relation, later[0], earlier[0], dtype)
            return [net.select(takes_later, b, a) for a, b in zip(earlier, later)]

        return scanned(net, [value, places], axis, _most(call), [worst, 0], combine)

    convert.__doc__ = f"The {'largest' if relation == 'ge' else 'smallest'} element so far, and the index of the last such."
    return convert


converts(aten.cummax.default, dtypes=NUMBERS)(_running("ge"))
converts(aten.cummin.default, dtypes=NUMBERS)(_running("le"))


@converts(aten.logcumsumexp.default, dtypes=FLOATS)
def logcumsumexp(call: Call) -> Value:
    """The logarithms of running sums of exponentials."""
    net, value, axis = call.net, call.tensor("self"), axis_of(call)
    if net.rank(value) == 0:
        return value

    def combine(earlier: Sequence[Tensor], later: Sequence[Tensor]) -> list[Tensor]:
        larger = net.binary("MAX", earlier[0], later[0])
        distance = net.unary("ABS", net.binary("SUB", earlier[0], later[0]))
        correction = net.unary("LOG", net.binary("SUM", net.unary("EXP", net.unary("NEG", distance)), 1.0))
        # equal infinities have no distance
        return [net.select(net.unary("ISINF", larger), larger, net.binary("SUM", larger, correction))]

    return scanned(net, [value], axis, _most(call), [-math.inf], combine)[0]


# -- neighbours -------------------------------------------------------------------------------------------------------------------


def _diff_check(view: NodeView) -> Support:
    low = bounds(view.fake("self").shape[axis_of(view)])[0]
    if low <= view.value("n") and not view.is_static("self"):
        return Support(False, "differences along a dimension that may be too short")
    return SUPPORTED


@converts(aten.diff.default, check=_diff_check)
def diff(call: Call) -> Value:
    """The differences of neighbours along a dimension, n times over."""
    net, value, axis = call.net, call.operand("self"), axis_of(call)
    if call.number("n") == 0:
        return value
    ends = [call.operand(name) if call.args[name] is not None else None for name in ("prepend", "append")]
    value = net.tensor(joined(net, [item for item in (ends[0], value, ends[1]) if item is not None], axis, call.dtype))
    for _ in range(call.number("n")):
        rest: Any = net.shape(value)[axis] + -1
        later, earlier = cut(net, value, axis, 1, rest), cut(net, value, axis, 0, rest)
        value = net.binary("XOR" if call.dtype == torch.bool else "SUB", later, earlier)
    return value

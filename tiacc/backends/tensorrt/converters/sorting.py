"""Sorting, by the layer that finds the largest elements. It takes at most 3840 of them."""

from __future__ import annotations

from typing import Any

import torch

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.backends.tensorrt.conversion import Conversion
from tiacc.backends.tensorrt.converters import converts
from tiacc.backends.tensorrt.extents import axis_of, bounds, cut, fixed
from tiacc.backends.tensorrt.layers import Tensor
from tiacc.backends.tensorrt.shaping import Value
from tiacc.backends.tensorrt.sizes import Scalar, Size

aten = torch.ops.aten

MOST = 3840
"""The most elements that the layer returns along the dimension. Source: the message of TensorRT, "Valid range of TopK K"."""


def top(net: Conversion, value: Value, count: Size, axis: int, *, largest: bool) -> list[Tensor]:
    """Return the largest or smallest elements along a dimension, in order, and their indices, in int64.

    Args:
        net: The network.
        value: A tensor of rank 1 or more.
        count: How many, at most `MOST`.
        axis: The dimension, counted from the front.
        largest: The largest, in descending order; else the smallest, in ascending order.
    """
    tensor = net.tensor(value)
    dtype, is_vector = net.dtype(tensor), net.rank(tensor) == 1
    if dtype == torch.bool:
        tensor = net.cast(tensor, torch.int32)
    if is_vector:  # the layer wants two dimensions
        tensor, axis = net.unsqueeze(tensor, [0]), 1
    kind = net.trt.TopKOperation.MAX if largest else net.trt.TopKOperation.MIN
    inputs = {}
    if isinstance(count, Scalar):
        inputs[1] = net.reshape(net.scalar_tensor(count, torch.int32), ())
    layer = net.add_layer("topk", tensor, kind, count if isinstance(count, int) else 1, 1 << axis, inputs=inputs)
    values, indices = layer.get_output(0), net.cast(layer.get_output(1), torch.int64)
    if is_vector:
        values, indices = (net.squeeze(item, [0]) for item in (values, indices))
    return [net.cast(values, dtype), indices]


def _is_short(view: NodeView, count: Any) -> Support:
    most = bounds(count)[1]
    if most > MOST:
        return Support(False, f"TensorRT finds at most {MOST} elements, and it may need {most}")
    return SUPPORTED


def _topk_check(view: NodeView) -> Support:
    return _is_short(view, view.value("k"))


@converts(aten.topk.default, symbolic=("k",), check=_topk_check)
def topk(call: Call) -> list[Value]:
    """The largest or smallest elements along a dimension, in order, and their indices."""
    value = call.operand("self")
    if call.net.rank(value) == 0:
        return [value, torch.zeros((), dtype=torch.int64)]
    return list(top(call.net, value, call.sizes("k")[0], axis_of(call), largest=bool(call.number("largest"))))


def _sort_check(view: NodeView) -> Support:
    fake = view.fake("self")
    axis = axis_of(view) if "dim" in view.args else 0
    return _is_short(view, fake.shape[axis]) if fake.dim() else SUPPORTED


def _sorted(call: Call) -> list[Value]:
    value = call.operand("self")
    if call.net.rank(value) == 0:
        return [value, torch.zeros((), dtype=torch.int64)]
    axis = axis_of(call) if "dim" in call.args else 0
    known = fixed(call.fake("self").shape[axis])
    count = call.net.shape(value)[axis] if known is None else known
    return list(top(call.net, value, count, axis, largest=bool(call.args.get("descending", False))))


@converts(aten.sort.default, aten.sort.stable, check=_sort_check)
def sort(call: Call) -> list[Value]:
    """The elements along a dimension in order, and their indices; of equal ones, the first comes first."""
    return _sorted(call)


@converts(aten.argsort.default, aten.argsort.stable, check=_sort_check)
def argsort(call: Call) -> Value:
    """The indices that put the elements along a dimension in order."""
    return _sorted(call)[1]


@converts(aten.msort.default, check=_sort_check)
def msort(call: Call) -> Value:
    """The elements along the first dimension in order."""
    return _sorted(call)[0]


def _kth_check(view: NodeView) -> Support:
    return _is_short(view, view.value("k"))


@converts(aten.kthvalue.default, check=_kth_check)
def kthvalue(call: Call) -> list[Value]:
    """The k-th smallest element along a dimension, and its index."""
    return _kth(call, call.number("k"))


def _kth(call: Call, count: int) -> list[Value]:
    net, value, axis = call.net, call.operand("self"), axis_of(call)
    if net.rank(value) == 0:
        return [value, torch.zeros((), dtype=torch.int64)]
    found = [cut(net, item, axis, count - 1, 1) for item in top(net, value, count, axis, largest=False)]
    return [item if call.number("keepdim") else net.squeeze(item, [axis]) for item in found]



"""Elements written, or added, at places that tensors of indices name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.backends.tensorrt.conversion import Conversion
from tiacc.backends.tensorrt.converters import NUMBERS, converts
from tiacc.backends.tensorrt.converters.indexing import are_adjacent, cut_to, has_whole_numbers, index_nodes, placed_indices
from tiacc.backends.tensorrt.extents import axis_of, bounds, counting
from tiacc.backends.tensorrt.layers import Tensor
from tiacc.backends.tensorrt.shaping import Value
from tiacc.backends.tensorrt.sizes import Size, is_same, product

aten = torch.ops.aten

COMPARISONS = 1 << 24
"""The most comparisons of an index with a place that a sum at indices may take: each place is compared with each index."""


# -- replacing --------------------------------------------------------------------------------------------------------------------


def scattered(net: Conversion, value: Value, index: Value, source: Value, axis: int) -> Tensor:
    """Return a value with the elements of `source` written at indices along a dimension."""
    mode = net.trt.ScatterMode.ELEMENT
    return net.add("scatter", net.tensor(value), net.tensor(index), net.tensor(source), mode, axis=axis)


def _operands(call: Call) -> tuple[Value, Value, int]:
    """Return the tensor, the index and the dimension, with at least one dimension."""
    net, value, index = call.net, call.operand("self"), call.operand("index")
    if net.rank(value) == 0:
        value = net.reshape(value, (1,))
    if net.rank(index) == 0:
        index = net.reshape(index, (1,))
    return value, index, axis_of(call)


def _source(call: Call, name: str, index: Value) -> Value:
    """Return what is written, in the shape of the index."""
    net, item = call.net, call.operand(name)
    if not hasattr(item, "shape") or net.rank(item) == 0:
        lifted = net.tensor(item, call.dtype, net.rank(index))
        return net.expand(lifted, net.shape(index))
    return cut_to(net, net.cast(item, call.dtype), net.shape(index))


@converts(aten.scatter.src, aten.scatter.value)
def scatter(call: Call) -> Value:
    """A tensor with elements written at indices along a dimension."""
    value, index, axis = _operands(call)
    written = scattered(call.net, value, index, _source(call, "src" if "src" in call.args else "value", index), axis)
    return call.net.reshape(written, ()) if call.rank == 0 else written


def _along(net: Conversion, index: Value, shape: Sequence[Size], axis: int, *, is_wide: bool) -> Value:
    """Return a vector of indices as a dimension of `shape`, repeated along the others if `is_wide`."""
    size = product(net.shape(index))
    own = [size if place == axis else 1 for place in range(len(shape))]
    reshaped = net.reshape(index, own)
    return net.expand(reshaped, [size if place == axis else other for place, other in enumerate(shape)]) if is_wide else reshaped


@converts(aten.index_copy.default)
def index_copy(call: Call) -> Value:
    """A tensor with slices replaced at indices along a dimension."""
    net, (value, index, axis) = call.net, _operands(call)
    source = net.cast(call.operand("source"), call.dtype)
    source = net.reshape(source, (1,)) if net.rank(source) == 0 else source
    written = scattered(net, value, _along(net, index, net.shape(source), axis, is_wide=True), source, axis)
    return net.reshape(written, ()) if call.rank == 0 else written


@converts(aten.index_fill.int_Scalar, aten.index_fill.int_Tensor)
def index_fill(call: Call) -> Value:
    """A tensor with slices filled with a number at indices along a dimension."""
    net, (value, index, axis) = call.net, _operands(call)
    wide = _along(net, index, net.shape(value), axis, is_wide=True)
    written = scattered(net, value, wide, _source(call, "value", wide), axis)
    return net.reshape(written, ()) if call.rank == 0 else written


# -- by several indices -----------------------------------------------------------------------------------------------------------


def _put_check(view: NodeView) -> Support:
    nodes = index_nodes(view)
    masks = [node for node in nodes if node is not None and node.meta["val"].dtype == torch.bool]
    accumulates = view.args.get("accumulate")
    if masks:
        mask = masks[0].meta["val"]
        if len(nodes) > 1 or accumulates:
            return Support(False, "index_put with a mask and other indices, or that accumulates")
        values, rest = view.fake("values"), view.rank - mask.dim()
        if values.dim() > rest + 1 or (values.dim() == rest + 1 and str(values.shape[0]) != "1"):
            return Support(False, "index_put with a mask and a value for each place: how many depends on the data")
        return SUPPORTED
    whole = has_whole_numbers(view)
    if not whole or not accumulates:
        return whole
    axes = [axis for axis, node in enumerate(nodes) if node is not None]
    counts = [math.prod(bounds(size)[1] for size in node.meta["val"].shape) for node in nodes if node is not None]
    total = math.prod(bounds(size)[1] for size in view.fake("self").shape) * max(counts)
    if view.dtype == torch.bool:
        return Support(False, "index_put that accumulates bools")
    if not axes or any(not isinstance(view.fake("self").shape[axis], int) for axis in axes):
        return Support(False, "index_put that accumulates in dynamic dimensions")
    return _is_few(view, total)


def _is_few(view: NodeView, comparisons: int) -> Support:
    if comparisons > COMPARISONS:
        return Support(False, f"{view.node.target} takes {comparisons} comparisons of indices, more than {COMPARISONS}")
    return SUPPORTED


@converts(
    aten.index_put.default,
    aten.index_put.hacked_twin,
    aten._unsafe_index_put.default,
    aten._unsafe_index_put.hacked_twin,
    check=_put_check,
)
def index_put(call: Call) -> Value:
    """A tensor with elements written, or added, at the places that indices name together."""
    net, value, updates = call.net, call.operand("self"), call.tensor("values", call.dtype)
    nodes = index_nodes(call)
    if nodes[0] is not None and nodes[0].meta["val"].dtype == torch.bool:
        return _put_at_mask(call, value, updates)
    shape = net.shape(value)
    axes, indices = placed_indices(net, call.operands("indices"), shape)
    rest = [axis for axis in range(len(shape)) if axis not in axes]
    chosen, count = net.shape(indices[0]), net.rank(indices[0])
    before = axes[0] if are_adjacent(axes) else 0
    sizes = [*(shape[axis] for axis in rest[:before]), *chosen, *(shape[axis] for axis in rest[before:])]
    updates = net.expand(updates, sizes)
    updates = net.permute(updates, [*range(before, before + count), *range(before), *range(before + count, len(sizes))])
    moved = net.permute(value, [*axes, *rest])
    if call.number("accumulate"):
        result = _added(net, moved, indices, updates, [int(shape[axis]) for axis in axes])  # type: ignore[arg-type]
    else:
        places = net.concat([net.unsqueeze(net.tensor(item), [-1]) for item in indices], -1)
        result = net.add("scatter", net.tensor(moved), places, updates, net.trt.ScatterMode.ND)
    order = [*axes, *rest]
    return net.permute(result, [order.index(axis) for axis in range(len(order))])


def _put_at_mask(call: Call, value: Value, updates: Value) -> Value:
    net, mask = call.net, call.operands("indices")[0]
    rest = net.rank(value) - net.rank(mask)
    if net.rank(updates) > rest:
        updates = net.squeeze(updates, [0])
    wide = net.unsqueeze(mask, range(net.rank(mask), net.rank(value)))
    return net.select(wide, updates, value, call.dtype)


def _added(net: Conversion, value: Value, indices: Sequence[Value], updates: Value, sizes: Sequence[int]) -> Value:
    """Add at places in the first dimensions, which have these sizes."""
    rest = list(net.shape(value))[len(sizes) :]
    place: Any = None
    for index, size in zip(indices, sizes):
        index = net.tensor(index, torch.int64)
        index = net.select(net.binary("LESS", index, 0), net.binary("SUM", index, size), index)
        place = index if place is None else net.binary("SUM", net.binary("PROD", place, size), index)
    count = product(net.shape(place))
    flat = net.reshape(value, [product(sizes), *rest])
    sources = net.reshape(updates, [count, *rest])
    index = net.reshape(place, [count, *([1] * len(rest))])
    return net.reshape(reduced_at(net, flat, index, sources, 0, "sum"), net.shape(value))


# -- reducing ---------------------------------------------------------------------------------------------------------------------

_KINDS = {
    "sum": ("SUM", "SUM"),
    "add": ("SUM", "SUM"),
    "mean": ("SUM", "SUM"),
    "prod": ("PROD", "PROD"),
    "multiply": ("PROD", "PROD"),
    "amax": ("MAX", "MAX"),
    "amin": ("MIN", "MIN"),
}


def _neutral(kind: str, dtype: torch.dtype) -> float:
    """Return the number that changes nothing in a reduction."""
    if kind in ("sum", "add", "mean"):
        return 0
    if kind in ("prod", "multiply"):
        return 1
    if dtype.is_floating_point:
        return -math.inf if kind == "amax" else math.inf
    limits = torch.iinfo(dtype)
    return limits.min if kind == "amax" else limits.max


def reduced_at(
    net: Conversion, value: Value, index: Value, source: Value, axis: int, kind: str, *, includes_self: bool = True
) -> Tensor:
    """Reduce elements at indices along a dimension: each place is compared with each index, and what fits is reduced.

    Args:
        net: The network.
        value: What is there before.
        index: The indices, not negative, of the rank of `source`, broadcast against it.
        source: What is added; no larger than `value` but along `axis`.
        axis: The dimension.
        kind: A key of the table above.
        includes_self: Whether what is there before takes part.
    """
    dtype = net.dtype(net.tensor(source))
    sizes = net.shape(value)
    places = counting(net, sizes[axis], torch.int64)
    rank = net.rank(source)
    column = net.reshape(places, [1] * axis + [sizes[axis]] + [1] * (rank - axis))
    hits = net.binary("EQUAL", net.unsqueeze(net.tensor(index, torch.int64), [axis]), column)
    neutral = _neutral(kind, dtype)
    chosen = net.select(hits, net.unsqueeze(source, [axis]), neutral, dtype)
    total = _widened(net, net.reduce(_KINDS[kind][0], chosen, (axis + 1,)), sizes, neutral)
    if includes_self and kind != "mean":
        return net.binary(_KINDS[kind][1], value, total, dtype)
    wide_hits = net.expand(net.cast(hits, torch.int32), net.shape(chosen))
    count = _widened(net, net.reduce("SUM", wide_hits, (axis + 1,)), sizes, 0)
    is_hit = net.binary("GREATER", count, 0)
    if kind == "mean":
        if includes_self:
            total, count = net.binary("SUM", value, total, dtype), net.binary("SUM", count, 1)
        else:
            count = net.binary("MAX", count, 1)
        total = net.binary("DIV" if dtype.is_floating_point else "FLOOR_DIV", total, net.cast(count, dtype))
    return net.select(is_hit, total, value, dtype)


def _widened(net: Conversion, value: Tensor, sizes: Sequence[Size], fill: float) -> Tensor:
    """Return a tensor, no larger than `sizes`, filled up to them."""
    if all(map(is_same, net.shape(value), sizes)):
        return value
    return net.slice(value, [0] * len(sizes), sizes, [1] * len(sizes), mode="FILL", fill=fill)


def _reduce_check(view: NodeView) -> Support:
    if max(view.rank, 1) + 1 > 8:
        return Support(False, f"{view.node.target} of a tensor of rank {view.rank}")
    if "index" in view.args and view.node.target in _BY_VECTOR:
        sizes = [bounds(size)[1] for size in view.fake("source").shape]
    else:
        sizes = [bounds(size)[1] for size in view.fake("index").shape]
    along = bounds(view.fake("self").shape[axis_of(view)])[1] if view.rank else 1
    return _is_few(view, math.prod(sizes) * along)


_BY_VECTOR = (aten.index_add.default, aten.index_reduce.default)


@converts(aten.scatter_add.default, dtypes=NUMBERS, check=_reduce_check)
def scatter_add(call: Call) -> Value:
    """A tensor with elements added at indices along a dimension."""
    return _scatter_reduced(call, "sum", _operands(call), "src")


@converts(aten.scatter.reduce, aten.scatter.value_reduce, aten.scatter_reduce.two, dtypes=NUMBERS, check=_reduce_check)
def scatter_reduce(call: Call) -> Value:
    """A tensor with elements reduced into it at indices along a dimension."""
    return _scatter_reduced(call, call.number("reduce"), _operands(call), "src" if "src" in call.args else "value")


def _scatter_reduced(call: Call, kind: str, operands: tuple[Value, Value, int], name: str) -> Value:
    net, (value, index, axis) = call.net, operands
    if 0 in tuple(index.shape):
        return call.operand("self")
    includes_self = bool(call.args.get("include_self", True))
    result = reduced_at(net, value, index, _source(call, name, index), axis, kind, includes_self=includes_self)
    return net.reshape(result, ()) if call.rank == 0 else result


@converts(*_BY_VECTOR, dtypes=NUMBERS, check=_reduce_check)
def index_add(call: Call) -> Value:
    """A tensor with slices added, or reduced, at indices along a dimension."""
    net, (value, index, axis) = call.net, _operands(call)
    source = net.cast(call.operand("source"), call.dtype)
    source = net.reshape(source, (1,)) if net.rank(source) == 0 else source
    if 0 in tuple(index.shape):
        return call.operand("self")
    alpha = call.args.get("alpha", 1)
    if alpha != 1:
        source = net.binary("PROD", source, alpha, call.dtype)
    kind = call.args.get("reduce", "sum")
    places = _along(net, index, net.shape(source), axis, is_wide=False)
    includes_self = bool(call.args.get("include_self", True))
    result = reduced_at(net, value, places, source, axis, kind, includes_self=includes_self)
    return net.reshape(result, ()) if call.rank == 0 else result


def _flat_put_check(view: NodeView) -> Support:
    if not view.value("accumulate"):
        return SUPPORTED
    if view.dtype == torch.bool or not view.is_static("self"):
        return Support(False, "put that accumulates bools, or in a dynamic tensor")
    sizes = (*view.fake("self").shape, *view.fake("index").shape)
    return _is_few(view, math.prod(bounds(size)[1] for size in sizes))


@converts(aten.put.default, check=_flat_put_check)
def put(call: Call) -> Value:
    """A tensor with elements written, or added, at their places in the flattened tensor."""
    net, value, index = call.net, call.operand("self"), call.operand("index")
    sizes = net.shape(value)
    flat = net.reshape(value, [product(sizes)])
    source = net.cast(call.operand("source"), call.dtype)
    places, written = (net.reshape(item, [product(net.shape(item))]) for item in (index, source))
    if 0 in tuple(places.shape):
        return value
    if call.number("accumulate"):
        return net.reshape(_added(net, flat, [places], written, [int(net.shape(flat)[0])]), sizes)  # type: ignore[arg-type]
    return net.reshape(scattered(net, flat, places, written, 0), sizes)

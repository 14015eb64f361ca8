"""Elements chosen by tensors of indices: reading them, and counting and comparing by index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.backends.tensorrt.conversion import Conversion
from tiacc.backends.tensorrt.converters import INTEGERS, NUMBERS, converts
from tiacc.backends.tensorrt.converters.comparison import compare
from tiacc.backends.tensorrt.extents import axis_of, cut
from tiacc.backends.tensorrt.layers import Tensor
from tiacc.backends.tensorrt.shaping import Value
from tiacc.backends.tensorrt.sizes import Size, is_same, product

aten = torch.ops.aten


# -- along one dimension ----------------------------------------------------------------------------------------------------------


def gathered(net: Conversion, value: Value, index: Value, axis: int) -> Tensor:
    """Return the slices of a value at some indices of a dimension; the shape of the indices takes its place."""
    return net.add("gather", net.tensor(value), net.tensor(index), axis)


def cut_to(net: Conversion, value: Value, sizes: Sequence[Size], but: int = -1) -> Value:
    """Return the first elements along each dimension, as many as `sizes` says; all of them along dimension `but`."""
    for axis, size in enumerate(sizes):
        if axis != but and not is_same(size, net.shape(value)[axis]):
            value = cut(net, value, axis, 0, size)
    return value


def gathered_elements(net: Conversion, value: Value, index: Value, axis: int) -> Tensor:
    """Return, at each place of `index`, the element of `value` at that place but for its index along a dimension."""
    value = cut_to(net, value, net.shape(index), but=axis)
    return net.add("gather_v2", net.tensor(value), net.tensor(index), net.trt.GatherMode.ELEMENT, axis=axis)


@converts(aten.index_select.default)
def index_select(call: Call) -> Value:
    """The slices at some indices of a dimension."""
    net, value, index = call.net, call.operand("self"), call.operand("index")
    if net.rank(value) == 0:
        return value
    if net.rank(index) == 0:
        index = net.reshape(index, (1,))
    return gathered(net, value, index, axis_of(call))


@converts(aten.gather.default)
def gather(call: Call) -> Value:
    """At each place of the index, the element with that index along a dimension."""
    net, value, index = call.net, call.operand("self"), call.operand("index")
    if call.rank == 0:
        return net.reshape(value, ())
    value = net.reshape(value, (1,)) if net.rank(value) == 0 else value
    return gathered_elements(net, value, index, axis_of(call))


@converts(aten.take.default)
def take(call: Call) -> Value:
    """Elements by their place in the flattened tensor."""
    net, value = call.net, call.operand("self")
    return gathered(net, net.reshape(value, [product(net.shape(value))]), call.operand("index"), 0)


@converts(aten.take_along_dim.default)
def take_along_dim(call: Call) -> Value:
    """At each place of the index, the element with that index along a dimension, after broadcasting."""
    net, value, index = call.net, call.operand("self"), call.operand("indices")
    if call.args["dim"] is None:
        value, index = (net.reshape(item, [product(net.shape(item))]) for item in (value, index))
        return gathered_elements(net, value, index, 0)
    axis, rank = axis_of(call), net.rank(value)
    sizes = [
        own if place == axis else other if isinstance(own, int) and own == 1 else own
        for place, (own, other) in enumerate(zip(net.shape(value), net.shape(index)))
    ]
    wide = [net.shape(index)[axis] if place == axis else sizes[place] for place in range(rank)]
    return gathered_elements(net, net.expand(value, sizes), net.expand(index, wide), axis)


# -- by several indices -----------------------------------------------------------------------------------------------------------


def index_nodes(view: NodeView) -> list[fx.Node | None]:
    """Return the items of the argument ``indices``."""
    return list(view.args["indices"])


def has_whole_numbers(view: NodeView) -> Support:
    """Return whether all indices are integers: how many elements a mask chooses is known only when the engine runs."""
    for node in index_nodes(view):
        if node is not None and node.meta["val"].dtype not in INTEGERS:
            dtype = str(node.meta["val"].dtype).removeprefix("torch.")
            return Support(False, f"an index is {dtype}: the size of the result depends on the data")
    return SUPPORTED


def placed_indices(net: Conversion, indices: Sequence[Value | None], shape: Sequence[Size]) -> tuple[list[int], list[Value]]:
    """Return the dimensions that are indexed, and their indices, broadcast against each other and counted from the front."""
    axes = [axis for axis, index in enumerate(indices) if index is not None]
    values: list[Value] = []
    for axis in axes:
        index, size = indices[axis], shape[axis]
        if isinstance(index, torch.Tensor) and isinstance(size, int):
            index = torch.where(index < 0, index + size, index).to(torch.int64)
        values.append(index)
    if len(values) > 1:
        rank = max(net.rank(value) for value in values)
        values = [net.raise_rank(net.tensor(value, torch.int64), rank) for value in values]
        sizes: list[Size] = [1] * rank
        for value in values:
            sizes = [new if isinstance(old, int) and old == 1 else old for old, new in zip(sizes, net.shape(value))]
        values = [net.expand(value, sizes) for value in values]
    return axes, values


def are_adjacent(axes: Sequence[int]) -> bool:
    """Return whether dimensions follow on each other; if so, what they choose stands in their place, else in front."""
    return list(axes) == list(range(axes[0], axes[0] + len(axes)))


@converts(
    aten.index.Tensor,
    aten.index.Tensor_hacked_twin,
    aten._unsafe_index.Tensor,
    aten._unsafe_index.Tensor_hacked_twin,
    check=has_whole_numbers,
)
def index(call: Call) -> Value:
    """Elements at the places that indices of one or several dimensions name together."""
    net, value = call.net, call.operand("self")
    shape = net.shape(value)
    axes, indices = placed_indices(net, call.operands("indices"), shape)
    if not axes:
        return value
    if len(axes) == 1:
        return gathered(net, value, indices[0], axes[0])
    rest = [axis for axis in range(len(shape)) if axis not in axes]
    places = net.concat([net.unsqueeze(item, [-1]) for item in indices], -1)
    moved = net.tensor(net.permute(value, [*axes, *rest]))
    chosen = net.add("gather_v2", moved, places, net.trt.GatherMode.ND)
    if not are_adjacent(axes) or axes[0] == 0:
        return chosen
    count, before = net.rank(indices[0]), axes[0]
    order = [*range(count, count + before), *range(count), *range(count + before, net.rank(chosen))]
    return net.permute(chosen, order)


# -- counting and comparing -------------------------------------------------------------------------------------------------------


def _classes_check(view: NodeView) -> Support:
    if view.value("num_classes") < 0:
        return Support(False, "one_hot without num_classes: the size of the result depends on the data")
    return SUPPORTED


@converts(aten.one_hot.default, check=_classes_check)
def one_hot(call: Call) -> Value:
    """1 at the place that an integer names, 0 elsewhere, along a new last dimension."""
    net, value = call.net, call.tensor("self")
    classes = torch.arange(call.number("num_classes"), dtype=net.dtype(value))
    return net.cast(net.binary("EQUAL", net.unsqueeze(value, [-1]), classes), torch.int64)


def counted(net: Conversion, condition: Value, axis: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """Return how often a condition holds along a dimension."""
    return net.reduce("SUM", net.cast(condition, dtype), (axis,))


def _found(call: Call, edges: Value, value: Value, is_right: bool) -> Value:
    """Return how many edges, in the last dimension, lie before each value; all of them for NaN."""
    net = call.net
    dtype = torch.promote_types(*(item.dtype if isinstance(item, torch.Tensor) else net.dtype(item) for item in (edges, value)))
    edges, wanted = net.tensor(edges, dtype), net.unsqueeze(net.tensor(value, dtype), [-1])
    if net.rank(edges) > 1:
        edges = net.unsqueeze(edges, [-2])
    beyond = compare(net, "gt" if is_right else "ge", edges, wanted, dtype)
    return counted(net, net.logical_not(beyond), -1, call.dtype)


@converts(aten.bucketize.Tensor, aten.bucketize.Scalar, dtypes=NUMBERS)
def bucketize(call: Call) -> Value:
    """The number of the interval, between edges, in which a value lies."""
    value: Any = call.operand("self")
    value = value if hasattr(value, "shape") else torch.tensor(value)
    return _found(call, call.operand("boundaries"), value, call.number("right"))


@converts(aten.searchsorted.Tensor, aten.searchsorted.Scalar, dtypes=NUMBERS)
def searchsorted(call: Call) -> Value:
    """The places at which values keep sorted ones in order."""
    net, edges, value = call.net, call.operand("sorted_sequence"), call.operand("self")
    value = value if hasattr(value, "shape") else torch.tensor(value)
    if call.args["sorter"] is not None:
        edges = gathered_elements(net, edges, call.operand("sorter"), net.rank(edges) - 1)
    return _found(call, edges, value, call.number("right") or call.number("side") == "right")


@converts(aten.isin.Tensor_Tensor, aten.isin.Tensor_Scalar, dtypes=NUMBERS)
def isin(call: Call) -> Value:
    """Whether elements are among others."""
    net, value = call.net, call.operand("elements")
    name = "test_elements" if "test_elements" in call.args else "test_element"
    others: Any = call.operand(name)
    dtype = call.common_dtype("elements", name)
    others = net.reshape(others, [product(net.shape(others))]) if hasattr(others, "shape") else torch.tensor([others])
    if net.shape(others)[0] == 0:
        return net.expand(torch.tensor(bool(call.number("invert"))), net.shape(value))
    equal = net.binary("EQUAL", net.unsqueeze(net.tensor(value, dtype), [-1]), others, dtype)
    found = net.cast(net.reduce("MAX", net.cast(equal, torch.int32), (-1,)), torch.bool)
    return net.logical_not(found) if call.number("invert") else found

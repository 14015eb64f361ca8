"""Parts of a tensor along its dimensions, and tensors with such a part replaced."""

from __future__ import annotations

from typing import Any

import torch

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.backends.tensorrt.conversion import Conversion
from tiacc.backends.tensorrt.converters import converts
from tiacc.backends.tensorrt.converters.joining import joined
from tiacc.backends.tensorrt.extents import (
    axis_of,
    bounded_index,
    bounds,
    counting,
    cut,
    fixed,
    has_signs,
    is_fixed_along,
)
from tiacc.backends.tensorrt.shaping import Value
from tiacc.backends.tensorrt.sizes import Size, largest

aten = torch.ops.aten


# -- slices ---------------------------------------------------------------------------------------------------------------------


def _slice_check(view: NodeView) -> Support:
    axis = axis_of(view)
    before, after, end = view.fake("self").shape[axis], view.out.shape[axis], view.value("end")
    # what is known of the shape rests on an assumption where a fixed end may lie within the dimension or behind it
    if fixed(before) is None and fixed(after) is not None and isinstance(end, int) and end > bounds(before)[0]:
        return Support(False, f"whether the slice ends before dimension {axis} does depends on a dynamic size")
    return has_signs(view, "start", "end")


def _span(call: Call, axis: int) -> tuple[Any, Any]:
    """Return where a slice begins and ends, both within the dimension."""
    size, known = call.shape("self")[axis], call.fake("self").shape[axis]
    start, end = (
        bounded_index(call.sizes(name)[0], call.value(name), size, known, default)
        for name, default in (("start", 0), ("end", size))
    )
    return start, end


def _count(start: Any, end: Any, step: int) -> Size:
    """Return the number of elements between two indices."""
    count = -((start - end) // step) if isinstance(start, int) and isinstance(end, int) else (end - start + (step - 1)) // step
    return largest(count, 0)


@converts(aten.slice.Tensor, symbolic=("start", "end"), check=_slice_check)
def slice_(call: Call) -> Value:
    """The elements from a start to an end, each a step further, along a dimension."""
    axis, step = axis_of(call), call.number("step")
    start, end = _span(call, axis)
    known = fixed(call.out.shape[axis])
    if known is not None:
        count: Size = known
    elif isinstance(start, int) and start == 0 and step == 1 and _is_within(call, axis):
        count = end
    else:
        count = _count(start, end, step)
    return cut(call.net, call.operand("self"), axis, start, count, step)


def _is_within(call: Call, axis: int) -> bool:
    """Return whether the end of a slice that begins at 0 is never before it."""
    end = call.value("end")
    return end is None or bounds(end)[0] >= 0 or bounds(call.fake("self").shape[axis])[0] + bounds(end)[0] >= 0


def _index(call: Call, axis: int) -> Any:
    """Return the index of an element along a dimension, counted from the front."""
    index = call.sizes("index")[0]
    return call.shape("self")[axis] + index if bounds(call.value("index"))[1] < 0 else index


def _index_check(view: NodeView) -> Support:
    return has_signs(view, "index")


@converts(aten.select.int, symbolic=("index",), check=_index_check)
def select(call: Call) -> Value:
    """One element along a dimension, without the dimension."""
    axis = axis_of(call)
    return call.net.squeeze(cut(call.net, call.operand("self"), axis, _index(call, axis), 1), [axis])


def _start_check(view: NodeView) -> Support:
    return has_signs(view, "start")


@converts(aten.narrow.default, symbolic=("start", "length"), check=_start_check)
def narrow(call: Call) -> Value:
    """A number of elements from a start on, along a dimension."""
    axis, start, length = axis_of(call), call.sizes("start")[0], call.sizes("length")[0]
    begin: Any = call.shape("self")[axis] + start if bounds(call.value("start"))[1] < 0 else start
    return cut(call.net, call.operand("self"), axis, begin, length)


# -- replaced slices ------------------------------------------------------------------------------------------------------------


def _scatter_check(view: NodeView) -> Support:
    signs = has_signs(view, "start", "end")
    if signs and view.value("step") != 1:
        if any(fixed(view.value(name) or 0) is None for name in ("start", "end")):
            return Support(False, "slice_scatter with a step between dynamic places")
        return is_fixed_along(view, [axis_of(view)])
    return signs


@converts(aten.slice_scatter.default, symbolic=("start", "end"), check=_scatter_check)
def slice_scatter(call: Call) -> Value:
    """A tensor with a slice replaced by another tensor."""
    net, axis, step = call.net, axis_of(call), call.number("step")
    value, source = call.operand("self"), net.cast(call.operand("src"), call.dtype)
    start, end = _span(call, axis)
    if step != 1:
        size = int(call.out.shape[axis])
        order = torch.arange(size)
        order[start:end:step] = size + torch.arange(len(range(start, max(end, start), step)))
        return net.add("gather", net.concat([value, source], axis), net.constant(order), axis)
    return _replaced(net, value, source, axis, start, start + net.shape(source)[axis])


def _replaced(net: Conversion, value: Value, source: Value, axis: int, start: Any, end: Any) -> Value:
    """Return a value with the elements from `start` to `end` along a dimension replaced."""
    size: Any = net.shape(value)[axis]
    dtype = source.dtype if isinstance(source, torch.Tensor) else net.dtype(source)
    parts = [cut(net, value, axis, 0, start), source, cut(net, value, axis, end, size - end)]
    return joined(net, parts, axis, dtype)


@converts(aten.select_scatter.default, symbolic=("index",), check=_index_check)
def select_scatter(call: Call) -> Value:
    """A tensor with one element along a dimension replaced."""
    net, axis = call.net, axis_of(call)
    source = net.unsqueeze(net.cast(call.operand("src"), call.dtype), [axis])
    start = _index(call, axis)
    return _replaced(net, call.operand("self"), source, axis, start, start + 1)


# -- diagonals ------------------------------------------------------------------------------------------------------------------


def _planes(view: NodeView) -> tuple[int, int]:
    rank = view.fake("self").dim()
    return int(view.value("dim1")) % rank, int(view.value("dim2")) % rank


def _diagonal_check(view: NodeView) -> Support:
    return is_fixed_along(view, _planes(view))


def _diagonal_places(rows: int, columns: int, offset: int) -> torch.Tensor:
    """Return the indices of a diagonal in a flattened matrix."""
    row, column = max(-offset, 0), max(offset, 0)
    count = max(min(rows - row, columns - column), 0)
    return (torch.arange(count) + row) * columns + torch.arange(count) + column


def _flat_planes(net: Conversion, value: Value, first: int, second: int) -> tuple[Value, list[int]]:
    """Return a tensor with two dimensions moved to the end and made one, and the order that moved them."""
    rank = net.rank(value)
    order = [axis for axis in range(rank) if axis not in (first, second)] + [first, second]
    moved = net.permute(value, order)
    sizes = list(net.shape(moved))
    return net.reshape(moved, [*sizes[:-2], int(sizes[-2]) * int(sizes[-1])]), order  # type: ignore[arg-type]


def diagonal_of(net: Conversion, value: Value, offset: int, first: int, second: int) -> Value:
    """Return a diagonal of the planes of two dimensions, as the last dimension."""
    rows, columns = (int(net.shape(value)[axis]) for axis in (first, second))  # type: ignore[arg-type]
    flat, _ = _flat_planes(net, value, first, second)
    places = _diagonal_places(rows, columns, offset)
    return net.add("gather", net.tensor(flat), net.constant(places), net.rank(flat) - 1)


@converts(aten.diagonal.default, check=_diagonal_check)
def diagonal(call: Call) -> Value:
    """A diagonal of the planes of two dimensions, as the last dimension."""
    return diagonal_of(call.net, call.operand("self"), call.number("offset"), *_planes(call))


def _linalg_diagonal_check(view: NodeView) -> Support:
    rank = view.fake("A").dim()
    return is_fixed_along(view, [int(view.value(name)) % rank for name in ("dim1", "dim2")], "A")


@converts(aten.linalg_diagonal.default, check=_linalg_diagonal_check)
def linalg_diagonal(call: Call) -> Value:
    """A diagonal of matrices, as the last dimension."""
    value, rank = call.operand("A"), call.fake("A").dim()
    return diagonal_of(call.net, value, call.number("offset"), call.number("dim1") % rank, call.number("dim2") % rank)


@converts(aten.diagonal_scatter.default, check=_diagonal_check)
def diagonal_scatter(call: Call) -> Value:
    """A tensor with a diagonal replaced."""
    net, value = call.net, call.operand("self")
    source = net.cast(call.operand("src"), call.dtype)
    first, second = _planes(call)
    rows, columns = (int(net.shape(value)[axis]) for axis in (first, second))  # type: ignore[arg-type]
    if 0 in tuple(source.shape):
        return value
    flat, order = _flat_planes(net, value, first, second)
    places = _diagonal_places(rows, columns, call.number("offset"))
    chosen = torch.arange(rows * columns)
    chosen[places] = rows * columns + torch.arange(len(places))
    last = net.rank(flat) - 1
    merged = net.add("gather", net.concat([flat, source], last), net.constant(chosen), last)
    moved = net.reshape(merged, [net.shape(value)[axis] for axis in order])
    return net.permute(moved, [order.index(axis) for axis in range(len(order))])


def _matrix_check(view: NodeView) -> Support:
    return is_fixed_along(view, (0, 1)) if view.fake("self").dim() == 2 else SUPPORTED


@converts(aten.diag.default, check=_matrix_check)
def diag(call: Call) -> Value:
    """A diagonal of a matrix, or the matrix with a vector on a diagonal."""
    net, value, offset = call.net, call.operand("self"), call.number("diagonal")
    return diagonal_of(net, value, offset, 0, 1) if net.rank(value) == 2 else _embedded(net, net.tensor(value), offset)


@converts(aten.trace.default, check=_matrix_check)
def trace(call: Call) -> Value:
    """The sum of the diagonal of a matrix."""
    net = call.net
    return net.reduce("SUM", net.cast(diagonal_of(net, call.operand("self"), 0, 0, 1), call.dtype), (0,))


def _embedded(net: Conversion, value: Value, offset: int) -> Value:
    """Return matrices, the last two dimensions, with the last dimension of a value on a diagonal."""
    side = abs(offset)
    sizes: list[Any] = list(net.shape(value))
    total = sizes[-1] + side
    if side:  # one more element for each row that the diagonal does not meet
        starts = [0] * (len(sizes) - 1) + [-side if offset < 0 else 0]
        value = net.slice(value, starts, [*sizes[:-1], total], [1] * len(sizes), mode="FILL", fill=0)
    columns = counting(net, total)
    rows = net.unsqueeze(net.binary("SUM", columns, offset) if offset else columns, [1])
    on_diagonal = net.binary("EQUAL", rows, net.unsqueeze(columns, [0]))
    return net.select(on_diagonal, net.unsqueeze(value, [-1]), 0, net.dtype(value))


@converts(aten.diag_embed.default)
def diag_embed(call: Call) -> Value:
    """Matrices with the last dimension of a tensor on a diagonal."""
    net, rank = call.net, call.rank
    matrices = _embedded(net, call.tensor("self"), call.number("offset"))
    first, second = call.number("dim1") % rank, call.number("dim2") % rank
    rest = iter(range(rank - 2))
    order = [rank - 2 if axis == first else rank - 1 if axis == second else next(rest) for axis in range(rank)]
    return net.permute(matrices, order)


@converts(aten.diagflat.default)
def diagflat(call: Call) -> Value:
    """The matrix with all elements of a tensor on a diagonal."""
    net, value = call.net, call.tensor("self")
    if net.rank(value) != 1:
        value = net.reshape(value, [-1])
    return _embedded(net, value, call.number("offset"))


# -- triangles ------------------------------------------------------------------------------------------------------------------


def _triangle(call: Call, is_upper: bool) -> Value:
    net, value, offset = call.net, call.tensor("self"), call.number("diagonal")
    rows, columns = net.shape(value)[-2:]
    row, column = net.unsqueeze(counting(net, rows), [1]), net.unsqueeze(counting(net, columns), [0])
    if isinstance(row, torch.Tensor) and isinstance(column, torch.Tensor):
        kept: Value = column - row >= offset if is_upper else column - row <= offset
    elif is_upper:
        kept = net.binary("GREATER", column, net.binary("SUM", row, offset - 1))
    else:
        kept = net.binary("LESS", column, net.binary("SUM", row, offset + 1))
    return net.select(kept, value, 0, call.dtype)


@converts(aten.tril.default)
def tril(call: Call) -> Value:
    """Matrices with zeros above a diagonal."""
    return _triangle(call, is_upper=False)


@converts(aten.triu.default)
def triu(call: Call) -> Value:
    """Matrices with zeros below a diagonal."""
    return _triangle(call, is_upper=True)

"""Joining tensors, and taking them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.backends.tensorrt.conversion import Conversion
from tiacc.backends.tensorrt.converters import converts
from tiacc.backends.tensorrt.extents import axis_of, bounds, cut, fixed
from tiacc.backends.tensorrt.shaping import Value
from tiacc.backends.tensorrt.sizes import Size

aten = torch.ops.aten


# -- joining --------------------------------------------------------------------------------------------------------------------


def joined(net: Conversion, values: Sequence[Any], axis: int, dtype: torch.dtype) -> Value:
    """Return values joined along a dimension, converted to one dtype; those without elements are left out."""
    filled = [value for value in values if 0 not in tuple(value.shape)]
    if len(filled) == 1:
        return net.cast(filled[0], dtype)
    if all(isinstance(value, torch.Tensor) for value in filled):
        return torch.cat([value.to(dtype) for value in filled], axis)
    return net.concat([net.cast(value, dtype) for value in filled], axis)


@converts(aten.cat.default, aten.concat.default, aten.concatenate.default)
def cat(call: Call) -> Value:
    """Tensors joined along a dimension."""
    axis = int(call.number("dim")) % max(call.rank, 1)
    return joined(call.net, call.operands("tensors"), axis, call.dtype)


@converts(aten.stack.default)
def stack(call: Call) -> Value:
    """Tensors of one shape joined along a new dimension."""
    axis = int(call.number("dim")) % call.rank
    return joined(call.net, [call.net.unsqueeze(value, [axis]) for value in call.operands("tensors")], axis, call.dtype)


@converts(aten.hstack.default)
def hstack(call: Call) -> Value:
    """Tensors joined along the second dimension, or along the only one."""
    values = [call.net.unsqueeze(value, [0]) if call.net.rank(value) == 0 else value for value in call.operands("tensors")]
    return joined(call.net, values, min(1, call.rank - 1), call.dtype)


@converts(aten.vstack.default)
def vstack(call: Call) -> Value:
    """Tensors joined as rows."""
    return joined(call.net, [call.net.raise_rank(value, 2) for value in call.operands("tensors")], 0, call.dtype)


@converts(aten.dstack.default)
def dstack(call: Call) -> Value:
    """Tensors joined along the third dimension."""
    net = call.net
    axes = {0: (0, 1, 2), 1: (0, 2), 2: (2,)}
    values = [net.unsqueeze(value, axes[net.rank(value)]) if net.rank(value) < 3 else value for value in call.operands("tensors")]
    return joined(net, values, 2, call.dtype)


@converts(aten.column_stack.default)
def column_stack(call: Call) -> Value:
    """Vectors as columns, and matrices, joined along the second dimension."""
    net = call.net
    axes = {0: (0, 1), 1: (1,)}
    values = [net.unsqueeze(value, axes[net.rank(value)]) if net.rank(value) < 2 else value for value in call.operands("tensors")]
    return joined(net, values, 1, call.dtype)


def _is_static_list(view: NodeView) -> Support:
    for tensor in view.value("tensors"):
        if any(fixed(size) is None for size in tensor.shape):
            return Support(False, f"{view.node.target} of dynamic tensors")
    return SUPPORTED


@converts(aten.block_diag.default, check=_is_static_list)
def block_diag(call: Call) -> Value:
    """Matrices along the diagonal of a larger one, zeros elsewhere."""
    net, dtype = call.net, call.dtype
    columns = int(call.out.shape[1])
    row = column = 0
    parts: list[Value] = []
    for item in call.operands("tensors"):
        value = net.raise_rank(net.tensor(item, dtype), 2)
        height, width = (int(size) for size in value.shape)
        if height:
            parts.append(_placed(net, value, column, columns) if width else torch.zeros(height, columns, dtype=dtype))
        row, column = row + height, column + width
    return joined(net, parts, 0, dtype)


def _placed(net: Conversion, value: Value, before: int, columns: int) -> Value:
    """Return a matrix with columns of zeros before and behind it."""
    return net.slice(value, (0, -before), (value.shape[0], columns), (1, 1), mode="FILL", fill=0)


# -- taking apart ---------------------------------------------------------------------------------------------------------------


def _parts(call: Call, axis: int, counts: Sequence[Size]) -> list[Value | None]:
    """Return consecutive blocks along a dimension; None for those that nobody uses."""
    value = call.operand("self")
    start: Any = 0
    result: list[Value | None] = []
    for index, (count, fake) in enumerate(zip(counts, call.out)):
        known = fixed(fake.shape[axis])
        count = count if known is None else known
        result.append(cut(call.net, value, axis, start, count) if call.is_used(index) else None)
        start = count + start if start else count
    return result


def _known_parts(call: Call) -> list[int]:
    return [int(fake.shape[axis_of(call)]) for fake in call.out]


def _is_fixed(view: NodeView) -> Support:
    if fixed(view.fake("self").shape[axis_of(view)]) is None:
        return Support(False, "how many parts a dynamic dimension has depends on its size")
    return SUPPORTED


@converts(aten.split.Tensor, aten.unsafe_split.Tensor, check=_is_fixed)
def split(call: Call) -> list[Value | None]:
    """Parts of one size, the last perhaps smaller."""
    return _parts(call, axis_of(call), _known_parts(call))


@converts(aten.split.sizes, symbolic=("split_size",))
def split_sizes(call: Call) -> list[Value | None]:
    """Parts of given sizes."""
    return _parts(call, axis_of(call), call.sizes("split_size"))


@converts(aten.split_with_sizes.default, aten.unsafe_split_with_sizes.default, symbolic=("split_sizes",))
def split_with_sizes(call: Call) -> list[Value | None]:
    """Parts of given sizes."""
    return _parts(call, axis_of(call), call.sizes("split_sizes"))


def _chunk_check(view: NodeView) -> Support:
    size = view.fake("self").shape[axis_of(view)]
    # ceil(n / 2) and the rest are always two parts; for more, the number of parts varies with n
    if fixed(size) is None and not (view.value("chunks") <= 2 <= bounds(size)[0]):
        return Support(False, "how many chunks a dynamic dimension has depends on its size")
    return SUPPORTED


@converts(aten.chunk.default, aten.unsafe_chunk.default, check=_chunk_check)
def chunk(call: Call) -> list[Value | None]:
    """At most a number of parts, of one size but for the last."""
    axis = axis_of(call)
    if fixed(call.fake("self").shape[axis]) is not None:
        return _parts(call, axis, _known_parts(call))
    size: Any = call.shape("self")[axis]
    first = (size + 1) // 2
    return _parts(call, axis, [size] if len(call.out) == 1 else [first, size - first])


@converts(aten.tensor_split.sections)
def tensor_split(call: Call) -> list[Value | None]:
    """A number of parts whose sizes differ by at most one, the larger ones first."""
    axis, count = axis_of(call), len(call.out)
    size: Any = call.shape("self")[axis]
    return _parts(call, axis, [(size + (count - 1 - index)) // count for index in range(count)])


def _indices_check(view: NodeView) -> Support:
    axis = axis_of(view) if "dim" in view.args else _implied_axis(view)
    return _is_fixed_axis(view, axis)


def _is_fixed_axis(view: NodeView, axis: int) -> Support:
    if fixed(view.fake("self").shape[axis]) is None:
        return Support(False, "a split of a dynamic dimension at given places")
    return SUPPORTED


def _implied_axis(view: NodeView) -> int:
    name = view.node.target._opname  # type: ignore[union-attr]
    return {"hsplit": min(1, view.fake("self").dim() - 1), "vsplit": 0, "dsplit": 2}[name]


@converts(
    aten.tensor_split.indices,
    aten.hsplit.int,
    aten.hsplit.array,
    aten.vsplit.int,
    aten.vsplit.array,
    aten.dsplit.int,
    aten.dsplit.array,
    check=_indices_check,
)
def split_at(call: Call) -> list[Value | None]:
    """Parts between given places, or of equal sizes."""
    axis = axis_of(call) if "dim" in call.args else _implied_axis(call)
    size = int(call.fake("self").shape[axis])
    value = call.operand("self")
    if "sections" in call.args:
        return _parts(call, axis, [size // len(call.out)] * len(call.out))
    places = [min(max(place + size if place < 0 else place, 0), size) for place in call.number("indices")]
    starts = [0, *places]
    counts = [int(fake.shape[axis]) for fake in call.out]
    return [
        cut(call.net, value, axis, start, count) if call.is_used(index) else None
        for index, (start, count) in enumerate(zip(starts, counts))
    ]


@converts(aten.unbind.int, check=_is_fixed)
def unbind(call: Call) -> list[Value | None]:
    """The slices along a dimension, without it."""
    axis, value, net = axis_of(call), call.operand("self"), call.net
    return [
        net.squeeze(cut(net, value, axis, index, 1), [axis]) if call.is_used(index) else None for index in range(len(call.out))
    ]


# -- grids ----------------------------------------------------------------------------------------------------------------------


@converts(aten.meshgrid.default, aten.meshgrid.indexing)
def meshgrid(call: Call) -> list[Value | None]:
    """The coordinates of a grid, one tensor a dimension."""
    net = call.net
    values = [net.reshape(value, (1,)) if net.rank(value) == 0 else value for value in call.operands("tensors")]
    sizes = [net.shape(value)[0] for value in values]
    order = list(range(len(values)))
    if call.args.get("indexing") == "xy" and len(values) > 1:
        order[:2] = [1, 0]
    shape = [sizes[axis] for axis in order]
    result: list[Value | None] = []
    for index, value in enumerate(values):
        if call.is_used(index):
            own: list[Size] = [sizes[index] if axis == index else 1 for axis in order]
            result.append(net.expand(net.reshape(value, own), shape))
        else:
            result.append(None)
    return result



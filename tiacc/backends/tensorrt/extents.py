"""What the graph knows of sizes before the engine exists: which are fixed, and between which bounds the others lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.backends.tensorrt.conversion import Conversion
from tiacc.backends.tensorrt.shaping import Value
from tiacc.backends.tensorrt.sizes import Scalar, Size, is_same, is_static, largest, smallest
from tiacc.graph import torch_compat
from tiacc.graph.specs import dim_of

UNBOUNDED = 2**62
"""What code writes for "to the end" lies above this."""


def bounds(size: int | torch.SymInt | Any) -> tuple[int, int]:
    """Return the smallest and the largest value of a size, or of a number made of sizes."""
    return torch_compat.limits_of(size)


def fixed(size: int | torch.SymInt | Any) -> int | None:
    """Return a size that is known now, else None."""
    known = dim_of(size)
    return known if isinstance(known, int) else None


def result_sizes(call: Call, given: Sequence[Size]) -> list[Size]:
    """Return the sizes of the result: those that the graph knows, and for the others what is `given` (perhaps -1)."""
    return [now if known is None else known for known, now in zip(map(fixed, call.out.shape), given, strict=True)]


def axis_of(view: NodeView, tensor: str = "self", name: str = "dim") -> int:
    """Return a dimension that an argument names, counted from the front; 0 for a tensor without dimensions."""
    return int(view.value(name)) % max(view.fake(tensor).dim(), 1)


def axes_of(view: NodeView, tensor: str = "self", name: str = "dim") -> list[int]:
    """Return the dimensions that an argument names, one or several, counted from the front; all of them for None or none."""
    rank = view.fake(tensor).dim()
    dims = view.value(name)
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return list(range(rank))
    return sorted({int(dim) % max(rank, 1) for dim in (dims if isinstance(dims, (list, tuple)) else (dims,))})


def is_fixed_along(view: NodeView, axes: Sequence[int], tensor: str = "self") -> Support:
    """Return whether the sizes of a tensor along some dimensions are known."""
    shape = view.fake(tensor).shape
    for axis in axes:
        if fixed(shape[axis]) is None:
            return Support(False, f"{view.node.target} over dimension {axis}, whose size is dynamic")
    return SUPPORTED


def bounded_index(index: Size | None, known: Any, size: Size, known_size: Any, default: Size) -> Size:
    """Return an index as slicing takes it: counted from the front, and held between 0 and the size.

    Args:
        index: The index, or None.
        known: What the graph knows of it.
        size: The size of the dimension.
        known_size: What the graph knows of that.
        default: What None means.

    Raises:
        ValueError: It is not known whether the index counts from the front or from the end.
    """
    if index is None or (isinstance(index, int) and index > UNBOUNDED):
        return default if index is None else size
    low, high = bounds(known)
    if low < 0 <= high:
        raise ValueError("the sign of the index depends on a dynamic size")
    size_low, size_high = bounds(known_size)
    if high < 0:
        index, low, high = size + index, size_low + low, size_high + high
        return index if low >= 0 else largest(index, 0)
    if isinstance(index, Scalar) and str(known) == str(known_size):
        return size
    return index if high <= size_low else smallest(index, size)


def has_signs(view: NodeView, *names: str) -> Support:
    """Return whether it is known of each of some index arguments that it counts from the front, or from the end."""
    for name in names:
        value = view.value(name)
        if value is not None:
            low, high = bounds(value)
            if low < 0 <= high:
                return Support(False, f"the sign of its argument {name!r} depends on a dynamic size")
    return SUPPORTED


def cut(net: Conversion, value: Value, axis: int, start: Size, count: Size, step: int = 1) -> Value:
    """Return `count` elements along a dimension, from `start` on, each `step` further.

    Args:
        net: The network.
        value: A value.
        axis: The dimension, counted from the front.
        start: The first index, at least 0.
        count: How many, such that none lies outside.
        step: The distance; negative to go backwards.
    """
    sizes = list(net.shape(value))
    if isinstance(value, torch.Tensor) and isinstance(start, int) and isinstance(count, int):
        return value.index_select(axis, torch.arange(start, start + count * step, step))
    if isinstance(start, int) and start == 0 and step == 1 and is_same(count, sizes[axis]):
        return value
    starts: list[Size] = [0] * len(sizes)
    starts[axis] = start
    wanted = [*sizes[:axis], count, *sizes[axis + 1 :]]
    if is_static(wanted) and 0 in wanted:
        return torch.empty(wanted, dtype=net.dtype(value))  # type: ignore[arg-type]
    return net.slice(value, starts, wanted, [step if place == axis else 1 for place in range(len(sizes))])


def counting(net: Conversion, count: Size, dtype: torch.dtype = torch.int64, start: Size = 0, step: int = 1) -> Value:
    """Return the numbers ``start, start + step, ...``, `count` of them."""
    if isinstance(count, int) and isinstance(start, int):
        return torch.arange(start, start + count * step, step, dtype=torch.int64).to(dtype)
    trt = net.trt
    first = net.reshape(net.scalar_tensor(start), ())
    numbers = net.add(
        "fill",
        (0,),
        trt.FillOperation.LINSPACE,
        trt.int64,
        inputs={0: net.shape_tensor([count]), 1: first, 2: net.constant(torch.tensor([step]))},
    )
    return net.cast(numbers, dtype)

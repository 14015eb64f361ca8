"""Tensors made of numbers: constants where their sizes are known, and filled in the engine where they are not."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.backends.tensorrt.converters import ALL, BYTES, FLOATS, INTEGERS, converts
from tiacc.backends.tensorrt.extents import counting, fixed, result_sizes
from tiacc.backends.tensorrt.shaping import Value
from tiacc.backends.tensorrt.sizes import Number, Size, is_static

aten = torch.ops.aten

ANY = ALL | BYTES
"""The types that a tensor may have of which only the shape is read."""


def filled(call: Call, number: Number | torch.Tensor, sizes: Sequence[Size], dtype: torch.dtype) -> Value:
    """Return a tensor with one number everywhere."""
    sizes = result_sizes(call, sizes)
    if isinstance(number, (bool, int, float)):
        number = torch.tensor(number).to(dtype)
    if isinstance(number, torch.Tensor) and is_static(sizes):
        return number.to(dtype).expand([int(size) for size in sizes])  # type: ignore[arg-type]
    return call.net.expand(call.net.tensor(number, dtype, len(sizes)), sizes)


def _sized(number: float) -> Callable[[Call], Value]:
    def convert(call: Call) -> Value:
        return filled(call, number, call.sizes("size"), call.dtype)

    convert.__doc__ = f"A tensor of {number} everywhere."
    return convert


def _like(number: float) -> Callable[[Call], Value]:
    def convert(call: Call) -> Value:
        return filled(call, number, call.shape("self"), call.dtype)

    convert.__doc__ = f"A tensor of {number} everywhere, of the shape of another."
    return convert


# what an empty tensor holds is undefined, so zeros will do
for _number, _packets, _likes in (
    (0, (aten.zeros.default, aten.empty.memory_format), (aten.zeros_like.default, aten.empty_like.default)),
    (1, (aten.ones.default,), (aten.ones_like.default,)),
):
    converts(*_packets, symbolic=("size",))(_sized(_number))
    converts(*_likes, dtypes=ANY)(_like(_number))

converts(aten.new_zeros.default, aten.new_empty.default, dtypes=ANY, symbolic=("size",))(_sized(0))
converts(aten.new_ones.default, dtypes=ANY, symbolic=("size",))(_sized(1))


@converts(aten.full.default, aten.new_full.default, dtypes=ANY, symbolic=("size", "fill_value"))
def full(call: Call) -> Value:
    """A tensor with one number everywhere."""
    return filled(call, call.number("fill_value"), call.sizes("size"), call.dtype)


@converts(aten.full_like.default, dtypes=ANY, symbolic=("fill_value",))
def full_like(call: Call) -> Value:
    """A tensor with one number everywhere, of the shape of another."""
    return filled(call, call.number("fill_value"), call.shape("self"), call.dtype)


@converts(aten.fill.Scalar, aten.fill.Tensor, symbolic=("value",))
def fill(call: Call) -> Value:
    """A tensor with one number everywhere, of the shape of another."""
    value: Any = call.operand("value")
    return filled(call, value, call.shape("self"), call.dtype)


@converts(aten.scalar_tensor.default, symbolic=("s",))
def scalar_tensor(call: Call) -> Value:
    """A number as a tensor without dimensions."""
    return filled(call, call.number("s"), (), call.dtype)


# -- ranges -----------------------------------------------------------------------------------------------------------------------


def _range_check(view: NodeView) -> Support:
    if fixed(view.out.shape[0]) is not None and all(
        isinstance(view.value(name), (bool, int, float)) for name in ("start", "end", "step") if name in view.args
    ):
        return SUPPORTED
    for name in ("start", "end", "step"):
        if isinstance(view.args.get(name), float) or isinstance(view.value(name) if name in view.args else 0, torch.SymFloat):
            return Support(False, "arange of fractions to a dynamic end")
    if "step" in view.args and not isinstance(view.value("step"), int):
        return Support(False, "arange with a dynamic step")
    return SUPPORTED


@converts(
    aten.arange.default, aten.arange.start, aten.arange.start_step, symbolic=("start", "end"), results=FLOATS | INTEGERS, check=_range_check
)
def arange(call: Call) -> Value:
    """The numbers from a start to before an end, by steps."""
    net = call.net
    numbers: list[Any] = [call.number(name) if name in call.args else default for name, default in _RANGE]
    start, end, step = numbers
    if is_static(numbers):
        return torch.arange(start, end, step, dtype=call.dtype)
    known = fixed(call.out.shape[0])
    count = known if known is not None else net.compute(operator.floordiv, end - start + (step - (1 if step > 0 else -1)), step)
    return counting(net, count, call.dtype, start, step)


_RANGE = (("start", 0), ("end", 0), ("step", 1))


def _folded(call: Call) -> Value:
    """Return what the operator itself computes from numbers that are known."""
    names = [name for name in call.args if name not in ("dtype", "layout", "device", "pin_memory")]
    return call.node.target(*(call.number(name) for name in names), dtype=call.dtype)  # type: ignore[operator]


converts(aten.linspace.default, aten.logspace.default, aten.eye.default, aten.eye.m)(_folded)
converts(aten.tril_indices.default, aten.triu_indices.default, results=INTEGERS)(_folded)

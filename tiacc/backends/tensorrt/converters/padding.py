"""Padding in every mode, which is a slice beyond the borders, and dropout, which is nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.backends.tensorrt.conversion import Conversion
from tiacc.backends.tensorrt.converters import converts
from tiacc.backends.tensorrt.extents import bounds, cut, fixed, result_sizes
from tiacc.backends.tensorrt.shaping import Value
from tiacc.backends.tensorrt.sizes import Number, Size, largest

aten = torch.ops.aten

_MODES = {"constant": "FILL", "reflect": "REFLECT", "replicate": "CLAMP", "circular": "WRAP"}


def _padded(call: Call, pads: tuple[Size, ...], mode: str, fill: Number | None = None) -> Value:
    net: Conversion = call.net
    value = call.operand("self")
    sizes: list[Any] = list(net.shape(value))
    starts: list[Any] = [0] * len(sizes)
    for index in range(len(pads) // 2):
        axis = len(sizes) - 1 - index
        before, after = pads[2 * index], pads[2 * index + 1]
        starts[axis] = -before
        sizes[axis] = sizes[axis] + before + after
    if all(isinstance(pad, int) and pad == 0 for pad in pads):
        return value
    if mode == "WRAP" and any(isinstance(pad, int) and pad < 0 for pad in pads):
        return _wrapped_rest(call, value, pads)
    return net.slice(value, starts, result_sizes(call, sizes), [1] * len(sizes), mode=mode, fill=fill)


def _wrapped_rest(call: Call, value: Value, pads: tuple[Size, ...]) -> Value:
    """Return a value cut where the padding is negative; what is left is repeated where it is positive."""
    rank = call.net.rank(value)
    starts: list[Any] = [0] * rank
    sizes: list[Any] = list(call.net.shape(value))
    for index in range(len(pads) // 2):
        axis = rank - 1 - index
        before, after = (-pad if isinstance(pad, int) and pad < 0 else 0 for pad in pads[2 * index : 2 * index + 2])
        rest = sizes[axis] - before - after
        value = cut(call.net, value, axis, before, rest)
        starts[axis] = -largest(pads[2 * index], 0)
        sizes[axis] = rest + largest(pads[2 * index], 0) + largest(pads[2 * index + 1], 0)
    return call.net.slice(value, starts, sizes, [1] * rank, mode="WRAP")


def _may_be_empty(view: NodeView) -> Support:
    pads = view.value("pad" if "pad" in view.args else "padding")
    shape = view.fake("self").shape
    for axis in range(len(shape) - len(pads) // 2, len(shape)):
        if fixed(shape[axis]) is None and bounds(shape[axis])[0] < 1:
            return Support(False, f"it repeats dimension {axis}, which may be empty")
    return SUPPORTED


@converts(aten.constant_pad_nd.default, symbolic=("pad",))
def constant_pad_nd(call: Call) -> Value:
    """Padding with a number."""
    return _padded(call, call.sizes("pad"), "FILL", call.number("value"))


def _pad_check(view: NodeView) -> Support:
    return SUPPORTED if view.value("mode") == "constant" else _may_be_empty(view)


@converts(aten.pad.default, symbolic=("pad",), check=_pad_check)
def pad(call: Call) -> Value:
    """Padding in one of four modes."""
    mode = call.number("mode")
    fill = (call.number("value") or 0) if mode == "constant" else None
    return _padded(call, call.sizes("pad"), _MODES[mode], fill)


def _mode(name: str, mode: str) -> Callable[[Call], Value]:
    def convert(call: Call) -> Value:
        return _padded(call, call.sizes(name), mode)

    convert.__doc__ = f"Padding beyond the borders in mode {mode}."
    return convert


for _name, _mode_name, _packets in (
    ("padding", "REFLECT", (aten.reflection_pad1d, aten.reflection_pad2d, aten.reflection_pad3d)),
    ("padding", "CLAMP", (aten.replication_pad1d, aten.replication_pad2d, aten.replication_pad3d)),
    ("pad", "WRAP", (aten._pad_circular,)),
):
    converts(*(packet.default for packet in _packets), symbolic=(_name,), check=_may_be_empty)(_mode(_name, _mode_name))


# -- dropout --------------------------------------------------------------------------------------------------------------------


def _is_evaluating(view: NodeView) -> Support:
    if view.value("train") and view.value("p") != 0:
        return Support(False, f"{view.node.target} in training mode is random")
    return SUPPORTED


@converts(
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
    check=_is_evaluating,
)
def dropout(call: Call) -> Value:
    """The tensor itself, as nothing is dropped outside of training."""
    return call.operand("input")


def _mask_is_unused(view: NodeView) -> Support:
    if view.value("train") is None or (view.value("train") and view.value("p") != 0):
        return Support(False, "native_dropout in training mode is random")
    return SUPPORTED


@converts(aten.native_dropout.default, check=_mask_is_unused)
def native_dropout(call: Call) -> list[Value]:
    """The tensor itself, and a mask that keeps everything."""
    net, value = call.net, call.operand("input")
    kept = net.expand(torch.ones((1,) * net.rank(value), dtype=torch.bool), net.shape(value)) if call.is_used(1) else None
    return [value, kept]

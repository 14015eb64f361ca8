"""Convolutions and transposed convolutions, in one, two and three dimensions.

TensorRT has them in two and three dimensions: those in one are given a dimension of size 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.backends.tensorrt.conversion import Conversion
from tiacc.backends.tensorrt.converters import FLOATS, converts
from tiacc.backends.tensorrt.layers import Tensor
from tiacc.backends.tensorrt.shaping import Value

aten = torch.ops.aten


@dataclass(frozen=True)
class Window:
    """How a convolution moves: one number a spatial dimension each."""

    stride: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int
    is_transposed: bool

    def lifted(self) -> Window:
        """Return the window in two dimensions that does what this one does in one."""
        return Window(
            (1, *self.stride),
            (0, *self.before),
            (0, *self.after),
            (1, *self.dilation),
            (0, *self.output_padding),
            self.groups,
            self.is_transposed,
        )


def has_empty(*fakes: torch.Tensor) -> bool:
    """Return whether a tensor is known to have no elements."""
    return any(isinstance(size, int) and size == 0 for fake in fakes for size in fake.shape)


def _check(view: NodeView) -> Support:
    weight = view.fake("weight")
    if not all(isinstance(size, int) for size in weight.shape):
        return Support(False, "its weight has a dynamic shape")
    if has_empty(view.fake("input"), weight, view.out):
        return Support(False, "a convolution of an empty tensor")
    padding = view.value("padding")
    if not isinstance(padding, str) and any(item < 0 for item in (padding if isinstance(padding, (list, tuple)) else [padding])):
        return Support(False, "a convolution with negative padding")
    if view.fake("input").dtype != weight.dtype:
        return Support(False, f"its input is {view.fake('input').dtype}, its weight {weight.dtype}")
    return SUPPORTED


def _spatial(call: Call) -> int:
    return call.fake("weight").dim() - 2


def _window(call: Call, *, is_transposed: bool) -> Window:
    count = _spatial(call)
    padding = call.number("padding")
    kernel = tuple(call.fake("weight").shape[2:])
    dilation = call.ints("dilation", count)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel)]
        before = tuple(size // 2 for size in total)
        after = tuple(size - size // 2 for size in total)
    else:
        before = after = (0,) * count if padding == "valid" else call.ints("padding", count)
    output_padding = call.ints("output_padding", count) if "output_padding" in call.args else (0,) * count
    return Window(call.ints("stride", count), before, after, dilation, output_padding, call.number("groups"), is_transposed)


@converts(
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv3d.padding,
    dtypes=FLOATS,
    check=_check,
)
def convolution(call: Call) -> Value:
    """A convolution."""
    return _convolve(call, _window(call, is_transposed=False))


@converts(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input, dtypes=FLOATS, check=_check)
def transposed_convolution(call: Call) -> Value:
    """A transposed convolution."""
    return _convolve(call, _window(call, is_transposed=True))


@converts(aten.convolution.default, aten._convolution.default, aten._convolution.deprecated, dtypes=FLOATS, check=_check)
def general_convolution(call: Call) -> Value:
    """A convolution, transposed or not as an argument says."""
    return _convolve(call, _window(call, is_transposed=bool(call.number("transposed"))))


def _convolve(call: Call, window: Window) -> Value:
    net, value = call.net, call.tensor("input")
    weight, bias = call.operand("weight"), call.operand("bias")
    is_batched = net.rank(value) == _spatial(call) + 2
    if not is_batched:
        value = net.unsqueeze(value, (0,))
    is_lifted = _spatial(call) == 1
    if is_lifted:
        value, weight, window = net.unsqueeze(value, (2,)), net.unsqueeze(weight, (2,)), window.lifted()
    if window.is_transposed and call.dtype == torch.bfloat16:  # RTX 1.7.1 does not build it in bfloat16
        wide = [None if item is None else net.cast(item, torch.float32) for item in (value, weight, bias)]
        result = net.cast(_transposed(net, net.tensor(wide[0]), wide[1], wide[2], window), call.dtype)
    elif window.is_transposed:
        result = _transposed(net, value, weight, bias, window)
    else:
        result = _plain(net, value, weight, bias, window)
    if is_lifted:
        result = net.squeeze(result, (2,))
    return result if is_batched else net.squeeze(result, (0,))


def _plain(net: Conversion, value: Tensor, weight: Value, bias: Value | None, window: Window) -> Tensor:
    return _layer(net, "convolution_nd", value, weight, bias, weight.shape[0], window, window.after)


def _transposed(net: Conversion, value: Tensor, weight: Value, bias: Value | None, window: Window) -> Tensor:
    if any(item > 1 for item in window.dilation) and any(item > 1 for item in window.stride):
        # TensorRT has no transposed convolution that is both: the zeros between the taps become part of the weight
        weight = spread(net, weight, window.dilation)
        window = replace(window, dilation=(1,) * len(window.dilation))
    maps = weight.shape[1] * window.groups
    after = [pad - extra for pad, extra in zip(window.after, window.output_padding)]
    missing = [max(-pad, 0) for pad in after]
    held_back = bias if any(missing) else None
    after = [max(pad, 0) for pad in after]
    result = _layer(net, "deconvolution_nd", value, weight, None if any(missing) else bias, maps, window, after)
    if any(missing):  # rows that no input reaches
        sizes = [size + extra for size, extra in zip(net.shape(result), (0, 0, *missing))]
        rank = len(sizes)
        result = net.slice(result, [0] * rank, sizes, [1] * rank, mode="FILL", fill=0.0)
    return result if held_back is None else _add_bias(net, result, held_back)


def spread(net: Conversion, weight: Value, dilation: Sequence[int]) -> Value:
    """Return a kernel with dilation - 1 zeros between its elements, along each spatial dimension."""
    maps, sizes = tuple(weight.shape)[:2], tuple(weight.shape)[2:]
    rank = 2 + 2 * len(sizes)
    spaced = [size for pair in zip(sizes, dilation) for size in pair]
    dense = [size * step for size, step in zip(sizes, dilation)]
    reach = [(size - 1) * step + 1 for size, step in zip(sizes, dilation)]
    value = net.unsqueeze(weight, range(3, rank, 2))
    if isinstance(value, torch.Tensor):
        spread = value.new_zeros((*maps, *spaced))
        taps: list[Any] = [part for _ in sizes for part in (slice(None), slice(0, 1))]
        placed = (slice(None), slice(None), *taps)
        kept = (slice(None), slice(None), *map(slice, reach))
        spread[placed] = value
        return spread.reshape((*maps, *dense))[kept]
    spread = net.slice(value, [0] * rank, [*maps, *spaced], [1] * rank, mode="FILL", fill=0.0)
    rank = 2 + len(sizes)
    return net.slice(net.reshape(spread, (*maps, *dense)), [0] * rank, [*maps, *reach], [1] * rank)


def _add_bias(net: Conversion, value: Tensor, bias: Value) -> Tensor:
    return net.binary("SUM", value, net.reshape(bias, (1, net.shape(bias)[0], *[1] * (net.rank(value) - 2))))


def _layer(
    net: Conversion, kind: str, value: Tensor, weight: Value, bias: Value | None, maps: int, window: Window, after: Sequence[int]
) -> Tensor:
    dtype = net.dtype(value)
    kernel_shape = tuple(weight.shape)[2:]
    empty = net.trt.Weights(net.flavour.dtype(dtype))
    data: dict[str, torch.Tensor] = {}
    inputs: dict[int, Tensor] = {}
    kernel_argument, bias_argument = empty, empty
    if isinstance(weight, torch.Tensor):
        data["kernel"] = weight.detach().to("cpu", dtype).contiguous()
        kernel_argument = net.weights(data["kernel"])
    else:
        inputs[1] = weight
    if isinstance(bias, torch.Tensor):
        data["bias"] = bias.detach().to("cpu", dtype).contiguous()
        bias_argument = net.weights(data["bias"])
    attributes: dict[str, Any] = {"stride_nd": window.stride, "dilation_nd": window.dilation, "num_groups": window.groups}
    if tuple(window.before) == tuple(after):
        attributes["padding_nd"] = tuple(after)
    else:
        attributes.update(pre_padding=tuple(window.before), post_padding=tuple(after))
    result = net.add_weighted(
        kind, value, maps, kernel_shape, kernel_argument, bias_argument, data=data, inputs=inputs, **attributes
    )
    return result if bias is None or isinstance(bias, torch.Tensor) else _add_bias(net, result, bias)

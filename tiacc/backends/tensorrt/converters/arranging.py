"""Elements in another arrangement: flipped, rolled, shuffled between channels and pixels, sliding windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.backends.tensorrt.conversion import Conversion
from tiacc.backends.tensorrt.converters import FLOATS, converts
from tiacc.backends.tensorrt.converters.convolution import spread
from tiacc.backends.tensorrt.extents import axes_of, axis_of, bounds, fixed, is_fixed_along, result_sizes
from tiacc.backends.tensorrt.shaping import Value
from tiacc.backends.tensorrt.sizes import Size, product

aten = torch.ops.aten


# -- order ----------------------------------------------------------------------------------------------------------------------


def flipped(net: Conversion, value: Value, axes: Sequence[int]) -> Value:
    """Return a value with some dimensions in reverse."""
    if isinstance(value, torch.Tensor):
        return value.flip(tuple(axes))
    sizes = net.shape(value)
    starts = [size + -1 if axis in axes else 0 for axis, size in enumerate(sizes)]
    return net.slice(value, starts, sizes, [-1 if axis in axes else 1 for axis in range(len(sizes))])


@converts(aten.flip.default)
def flip(call: Call) -> Value:
    """Some dimensions in reverse."""
    return flipped(call.net, call.operand("self"), axes_of(call, name="dims") if call.args["dims"] else ())


@converts(aten.fliplr.default)
def fliplr(call: Call) -> Value:
    """The second dimension in reverse."""
    return flipped(call.net, call.operand("self"), (1,))


@converts(aten.flipud.default)
def flipud(call: Call) -> Value:
    """The first dimension in reverse."""
    return flipped(call.net, call.operand("self"), (0,))


@converts(aten.rot90.default)
def rot90(call: Call) -> Value:
    """A rotation by a multiple of 90° in the plane of two dimensions."""
    net, value = call.net, call.operand("self")
    first, second = (dim % net.rank(value) for dim in call.number("dims"))
    turns = call.number("k") % 4
    if turns == 0:
        return value
    if turns == 2:
        return flipped(net, value, (first, second))
    turned = flipped(net, value, (second if turns == 1 else first,))
    return net.transpose(turned, first, second)


def _roll_check(view: NodeView) -> Support:
    if any(bounds(size)[0] < 1 and fixed(size) is None for size in view.fake("self").shape):
        return Support(False, "roll of a tensor that may be empty")
    return SUPPORTED if view.value("dims") else is_fixed_along(view, range(view.rank))


@converts(aten.roll.default, check=_roll_check)
def roll(call: Call) -> Value:
    """Elements moved along some dimensions; those that leave at one end come in at the other."""
    net, value = call.net, call.operand("self")
    sizes = net.shape(value)
    dims, shifts = call.number("dims"), call.ints("shifts", 1)
    if not dims:
        flat = _rolled(net, net.reshape(value, [product(sizes)]), {0: shifts[0]})
        return net.reshape(flat, sizes)
    total: dict[int, int] = {}
    for dim, shift in zip(dims, shifts):
        total[dim % len(sizes)] = total.get(dim % len(sizes), 0) + shift
    return _rolled(net, value, total)


def _rolled(net: Conversion, value: Value, shifts: dict[int, int]) -> Value:
    if isinstance(value, torch.Tensor):
        return value.roll(tuple(shifts.values()), tuple(shifts))
    sizes = net.shape(value)
    starts: list[Any] = [0] * len(sizes)
    for axis, shift in shifts.items():
        size: Any = sizes[axis]
        starts[axis] = -shift % size if isinstance(size, int) else (size * (abs(shift) + 1) + -shift) % size
    return net.slice(value, starts, sizes, [1] * len(sizes), mode="WRAP")


# -- channels and pixels --------------------------------------------------------------------------------------------------------


@converts(aten.pixel_shuffle.default)
def pixel_shuffle(call: Call) -> Value:
    """``(..., C·r², H, W)`` as ``(..., C, H·r, W·r)``."""
    net, value, factor = call.net, call.operand("self"), call.number("upscale_factor")
    sizes: list[Any] = list(net.shape(value))
    lead, (channels, height, width) = sizes[:-3], sizes[-3:]
    split = net.reshape(value, [*lead, channels // (factor * factor), factor, factor, height, width])
    count = len(lead)
    order = [*range(count), *(count + axis for axis in (0, 3, 1, 4, 2))]
    return net.reshape(net.permute(split, order), result_sizes(call, [*lead, channels // factor**2, height * factor, width * factor]))


@converts(aten.pixel_unshuffle.default)
def pixel_unshuffle(call: Call) -> Value:
    """``(..., C, H·r, W·r)`` as ``(..., C·r², H, W)``."""
    net, value, factor = call.net, call.operand("self"), call.number("downscale_factor")
    sizes: list[Any] = list(net.shape(value))
    lead, (channels, height, width) = sizes[:-3], sizes[-3:]
    split = net.reshape(value, [*lead, channels, height // factor, factor, width // factor, factor])
    count = len(lead)
    order = [*range(count), *(count + axis for axis in (0, 2, 4, 1, 3))]
    given = [*lead, channels * factor**2, height // factor, width // factor]
    return net.reshape(net.permute(split, order), result_sizes(call, given))


@converts(aten.channel_shuffle.default, aten.native_channel_shuffle.default)
def channel_shuffle(call: Call) -> Value:
    """The channels of groups interleaved."""
    net, value, groups = call.net, call.operand("self"), call.number("groups")
    sizes: list[Any] = list(net.shape(value))
    split = net.reshape(value, [sizes[0], groups, sizes[1] // groups, *sizes[2:]])
    return net.reshape(net.transpose(split, 1, 2), sizes)


# -- windows --------------------------------------------------------------------------------------------------------------------


def _unfold_check(view: NodeView) -> Support:
    shape = view.fake("self").shape
    return is_fixed_along(view, [axis_of(view, name="dimension")]) if shape else SUPPORTED


@converts(aten.unfold.default, check=_unfold_check)
def unfold(call: Call) -> Value:
    """Windows along a dimension; their elements become the last dimension."""
    net, value, size, step = call.net, call.operand("self"), call.number("size"), call.number("step")
    if net.rank(value) == 0:
        return net.reshape(value, [int(count) for count in call.out.shape])
    axis = axis_of(call, name="dimension")
    count = int(call.out.shape[axis])
    places = torch.arange(count)[:, None] * step + torch.arange(size)[None, :]
    windows = net.add("gather", net.tensor(value), net.constant(places), axis)
    rank = net.rank(windows)
    return net.permute(windows, [place for place in range(rank) if place != axis + 1] + [axis + 1])


def _im2col_check(view: NodeView) -> Support:
    rank = view.fake("self").dim()
    return is_fixed_along(view, (rank - 2, rank - 1))


@converts(aten.im2col.default, check=_im2col_check)
def im2col(call: Call) -> Value:
    """The patches that a convolution would see, as columns: ``(N, C·kh·kw, L)``."""
    net, value = call.net, call.tensor("self")
    kernel, dilation, padding, stride = (call.ints(name, 2) for name in ("kernel_size", "dilation", "padding", "stride"))
    is_batch = net.rank(value) == 4
    value = value if is_batch else net.unsqueeze(value, [0])
    batch, channels, *sizes = net.shape(value)
    if any(padding):
        starts = [0, 0, *(-pad for pad in padding)]
        padded = [batch, channels, *(int(size) + 2 * pad for size, pad in zip(sizes, padding))]  # type: ignore[arg-type]
        value = net.slice(value, starts, padded, [1] * 4, mode="FILL", fill=0)
    counts = []
    for index in range(2):
        reach = dilation[index] * (kernel[index] - 1) + 1
        count = (int(sizes[index]) + 2 * padding[index] - reach) // stride[index] + 1  # type: ignore[arg-type]
        places = torch.arange(kernel[index])[:, None] * dilation[index] + torch.arange(count)[None, :] * stride[index]
        value = net.add("gather", value, net.constant(places), 2 * index + 2)
        counts.append(count)
    columns = net.permute(value, (0, 1, 2, 4, 3, 5))  # N, C, kh, kw, oh, ow
    shape: list[Size] = [batch, product([channels, *kernel]), product(counts)]
    return net.reshape(columns, shape if is_batch else shape[1:])


def _col2im_check(view: NodeView) -> Support:
    if any(fixed(size) is None for size in view.value("output_size")):
        return Support(False, "col2im to a dynamic size")
    rank = view.fake("self").dim()
    return is_fixed_along(view, (rank - 2, rank - 1))


@converts(aten.col2im.default, dtypes=FLOATS, check=_col2im_check)
def col2im(call: Call) -> Value:
    """Columns put back in their places and summed: a transposed convolution with a kernel of ones and zeros."""
    dtype = torch.float32 if call.dtype == torch.bfloat16 else call.dtype  # RTX 1.7.1 does not build it in bfloat16
    net, value = call.net, call.tensor("self", dtype)
    height, width = (int(size) for size in call.number("output_size"))
    kernel, dilation, padding, stride = (call.ints(name, 2) for name in ("kernel_size", "dilation", "padding", "stride"))
    is_batch = net.rank(value) == 3
    value = value if is_batch else net.unsqueeze(value, [0])
    batch, rows, _ = net.shape(value)
    taps = kernel[0] * kernel[1]
    channels = int(rows) // taps  # type: ignore[arg-type]
    counts = [
        (size + 2 * padding[index] - dilation[index] * (kernel[index] - 1) - 1) // stride[index] + 1
        for index, size in enumerate((height, width))
    ]
    maps = net.reshape(value, [batch, rows, *counts])
    weights = torch.eye(taps, dtype=dtype).reshape(1, taps, 1, *kernel).expand(channels, -1, -1, -1, -1)
    weights = spread(net, weights.reshape(channels * taps, 1, *kernel), dilation).contiguous()
    covered = [
        (count - 1) * stride[index] + dilation[index] * (kernel[index] - 1) + 1 for index, count in enumerate(counts)
    ]
    summed = net.add_weighted(
        "deconvolution_nd",
        maps,
        channels,
        tuple(weights.shape[2:]),
        net.weights(weights),
        net.trt.Weights(net.flavour.dtype(dtype)),
        data={"kernel": weights},
        stride_nd=stride,
        num_groups=channels,
    )
    shape = [batch, channels, height, width]
    if (height, width) != tuple(covered) or any(padding):
        starts = [0, 0, *padding]
        summed = net.slice(summed, starts, shape, [1] * 4, mode="FILL", fill=0)
    return net.cast(summed if is_batch else net.squeeze(summed, [0]), call.dtype)

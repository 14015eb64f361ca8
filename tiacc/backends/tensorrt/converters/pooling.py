"""Maximum and average pooling, to windows of a size or to outputs of a size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.backends.tensorrt.conversion import Conversion
from tiacc.backends.tensorrt.converters import FLOATS, converts
from tiacc.backends.tensorrt.converters.convolution import has_empty
from tiacc.backends.tensorrt.layers import Tensor
from tiacc.backends.tensorrt.shaping import Value
from tiacc.backends.tensorrt.sizes import Size, is_static, smallest

aten = torch.ops.aten

_MOST_SHIFTS = 64  # a dilated window is as many slices as it has elements


@dataclass(frozen=True)
class Window:
    """The windows of a pooling; one number a spatial dimension each."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    rounds_up: bool

    def lifted(self) -> Window:
        """Return the window in two dimensions that does what this one does in one."""
        return Window((1, *self.size), (1, *self.stride), (0, *self.padding), (1, *self.dilation), self.rounds_up)

    @property
    def never_begins_outside(self) -> bool:
        """Whether the last window, rounded up, begins inside the input for inputs of every size; TensorRT keeps those that do not."""
        return all(stride + pad <= size for size, stride, pad in zip(self.size, self.stride, self.padding))

    def outputs(self, sizes: Sequence[Size]) -> list[Size]:
        """Return the size of the output.

        The last window of a dimension that rounds up must begin inside the input or the padding before it.

        Source: ``pooling_output_shape`` in ATen/native/Pool.h.
        """
        result: list[Size] = []
        for n, size, stride, pad, dilation in zip(sizes, self.size, self.stride, self.padding, self.dilation):
            free = n + (2 * pad - dilation * (size - 1) - 1)
            if not self.rounds_up:
                result.append(free // stride + 1)
            else:  # ceil(free / stride) + 1 windows, or fewer: those that begin before n + pad
                result.append(smallest((free + (stride - 1)) // stride + 1, (n + (pad - 1)) // stride + 1))
        return result

    def overhangs(self, sizes: Sequence[Size]) -> list[Size]:
        """Return how far the last windows reach beyond the padding; it may be negative where sizes are dynamic."""
        result: list[Size] = []
        extent = [dilation * (size - 1) + 1 for size, dilation in zip(self.size, self.dilation)]
        for n, count, stride, pad, reach in zip(sizes, self.outputs(sizes), self.stride, self.padding, extent):
            over = (count - 1) * stride + reach - n - 2 * pad
            result.append(max(over, 0) if isinstance(over, int) else over)
        return result


def _spatial(view: NodeView) -> int:
    name = view.node.target._schema.name  # type: ignore[union-attr]
    return next(count for count in (1, 2, 3) if f"{count}d" in name)


def _window(call: Call) -> Window:
    count = _spatial(call)
    size = call.ints("kernel_size", count)
    stride = call.ints("stride", count) or size
    dilation = call.ints("dilation", count) if "dilation" in call.args else (1,) * count
    return Window(size, stride, call.ints("padding", count), dilation, bool(call.number("ceil_mode")))


class _Input:
    """The input of a pooling: with a batch, and two spatial dimensions at least; `restore` undoes that."""

    def __init__(self, call: Call) -> None:
        net, self.count = call.net, _spatial(call)
        value = call.tensor("self")
        self.is_batched = net.rank(value) == self.count + 2
        if not self.is_batched:
            value = net.unsqueeze(value, (0,))
        self.tensor = net.unsqueeze(value, (2,)) if self.count == 1 else value
        self.net = net

    def restore(self, value: Tensor) -> Tensor:
        if self.count == 1:
            value = self.net.squeeze(value, (2,))
        return value if self.is_batched else self.net.squeeze(value, (0,))


def _is_not_empty(view: NodeView) -> Support:
    results = view.out if isinstance(view.out, (list, tuple)) else (view.out,)
    return Support(False, "a pooling of an empty tensor") if has_empty(view.fake("self"), *results) else SUPPORTED


def _max_check(view: NodeView) -> Support:
    if isinstance(view.out, (list, tuple)) and view.is_used(1):
        return Support(False, "the indices of max pooling are used")
    size = view.value("kernel_size")
    count = math.prod(size) if len(size) > 1 else size[0] ** _spatial(view)
    if any(item != 1 for item in view.value("dilation")) and count > _MOST_SHIFTS:
        return Support(False, f"a dilated window of more than {_MOST_SHIFTS} elements")
    return _is_not_empty(view)


# -- maximum ------------------------------------------------------------------------------------------------------------------------


@converts(aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, dtypes=FLOATS, check=_max_check)
def max_pool(call: Call) -> Value:
    """The largest element of each window."""
    source, window = _Input(call), _window(call)
    if source.count == 1:
        window = window.lifted()
    return source.restore(_max_pool(call.net, source.tensor, window))


@converts(
    aten.max_pool1d_with_indices.default,
    aten.max_pool2d_with_indices.default,
    aten.max_pool3d_with_indices.default,
    dtypes=FLOATS,
    check=_max_check,
    results=(*FLOATS, torch.int64),
)
def max_pool_with_indices(call: Call) -> list[Value | None]:
    """The largest element of each window, its place unused."""
    return [max_pool(call), None]


def _max_pool(net: Conversion, value: Tensor, window: Window) -> Tensor:
    sizes = net.shape(value)[2:]
    if any(item != 1 for item in window.dilation):
        return _dilated_max_pool(net, value, window)
    if window.rounds_up and not is_static(sizes):
        if window.never_begins_outside:
            return _pool(net, value, "MAX", window, window.padding, window.padding, padding_mode=net.trt.PaddingMode.EXPLICIT_ROUND_UP)
        value = _padded(net, value, window.padding, window.overhangs(sizes), -math.inf)
        return _pool(net, value, "MAX", window, (0,) * len(sizes), (0,) * len(sizes))
    after = _after(window, sizes)
    return _pool(net, value, "MAX", window, window.padding, after)


def _dilated_max_pool(net: Conversion, value: Tensor, window: Window) -> Tensor:
    """The maximum over the slices of the input that each element of the window sees."""
    lead, sizes = net.shape(value)[:2], net.shape(value)[2:]
    counts = window.outputs(sizes)
    value = _padded(net, value, window.padding, window.overhangs(sizes), -math.inf)
    result: Tensor = None
    for place in itertools.product(*map(range, window.size)):
        starts = [0, 0, *(index * dilation for index, dilation in zip(place, window.dilation))]
        part = net.slice(value, starts, [*lead, *counts], [1, 1, *window.stride])
        result = part if result is None else net.binary("MAX", result, part)
    return result


def _after(window: Window, sizes: Sequence[Size]) -> tuple[int, ...]:
    """Return the padding after the input with which windows that round down are those that round up."""
    if not window.rounds_up:
        return window.padding
    return tuple(pad + over for pad, over in zip(window.padding, window.overhangs(sizes)))


def _padded(net: Conversion, value: Tensor, padding: Sequence[int], over: Sequence[Size], fill: float) -> Tensor:
    """Return a tensor padded on both sides, and by `over` (or less, where that is negative) after."""
    lead, sizes = net.shape(value)[:2], net.shape(value)[2:]
    wanted = [size + 2 * pad + extra for size, pad, extra in zip(sizes, padding, over)]
    starts = [0, 0, *(-pad for pad in padding)]
    return net.slice(value, starts, [*lead, *wanted], [1] * len(starts), mode="FILL", fill=fill)


def _pool(net: Conversion, value: Tensor, kind: str, window: Window, before: Sequence[int], after: Sequence[int], **more: Any) -> Tensor:
    attributes: dict[str, Any] = {"stride_nd": window.stride, **more}
    if tuple(before) == tuple(after):
        attributes["padding_nd"] = tuple(before)
    else:
        attributes.update(pre_padding=tuple(before), post_padding=tuple(after))
    return net.add("pooling_nd", value, getattr(net.trt.PoolingType, kind), window.size, **attributes)


# -- average ------------------------------------------------------------------------------------------------------------------------


@converts(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default, dtypes=FLOATS, check=_is_not_empty)
def avg_pool(call: Call) -> Value:
    """The mean of each window."""
    source, window = _Input(call), _window(call)
    override = call.number("divisor_override") if "divisor_override" in call.args else None
    if source.count == 1:
        window = window.lifted()
    return source.restore(_avg_pool(call.net, source.tensor, window, bool(call.number("count_include_pad")), override))


def _avg_pool(net: Conversion, value: Tensor, window: Window, counts_padding: bool, override: int | None) -> Tensor:
    sizes = net.shape(value)[2:]
    elements = math.prod(window.size)
    none = (0,) * len(sizes)
    if window.rounds_up and not is_static(sizes):
        over = window.overhangs(sizes)
        mean = _pool(net, _padded(net, value, window.padding, over, 0.0), "AVERAGE", window, none, none)
        if override is not None:
            return net.binary("PROD", mean, elements / override)
        share = _dynamic_share(net, value, window, over, counts_padding)
        return net.binary("DIV", mean, share)
    after = _after(window, sizes)
    if override is None and not counts_padding:
        return _pool(net, value, "AVERAGE", window, window.padding, after, average_count_excludes_padding=True)
    mean = _pool(net, value, "AVERAGE", window, window.padding, after, average_count_excludes_padding=False)
    if override is not None:
        return net.binary("PROD", mean, elements / override)
    if after == window.padding:
        return mean
    return net.binary("DIV", mean, _static_share(window, sizes))  # type: ignore[arg-type]


def _static_share(window: Window, sizes: Sequence[int]) -> torch.Tensor:
    """Return the part of each window that lies inside the input and its padding, broadcast over batch and channels."""
    share = torch.ones((1, 1, *[1] * len(sizes)), dtype=torch.float64)
    for axis, (n, count, size, stride, pad) in enumerate(
        zip(sizes, window.outputs(sizes), window.size, window.stride, window.padding)
    ):
        starts = torch.arange(int(count)) * stride  # type: ignore[arg-type]
        inside = (starts + size).clamp(max=n + 2 * pad) - starts
        shape = [1] * share.dim()
        shape[axis + 2] = -1
        share = share * (inside.double() / size).reshape(shape)
    return share.float()


def _dynamic_share(net: Conversion, value: Tensor, window: Window, over: Sequence[Size], counts_padding: bool) -> Tensor:
    """Return the part of each window that counts, computed in the engine by pooling ones."""
    sizes = net.shape(value)[2:]
    none = (0,) * len(sizes)
    inner = [size + 2 * pad if counts_padding else size for size, pad in zip(sizes, window.padding)]
    ones = net.expand(torch.ones([1] * net.rank(value), dtype=net.dtype(value)), (1, 1, *inner))
    ones = _padded(net, ones, none if counts_padding else window.padding, over, 0.0)
    return _pool(net, ones, "AVERAGE", window, none, none)


# -- to a size ------------------------------------------------------------------------------------------------------------------------


def _adaptive_check(view: NodeView) -> Support:
    is_empty = has_empty(view.fake("self")) or 0 in view.value("output_size")
    return Support(False, "a pooling of an empty tensor") if is_empty else SUPPORTED


@converts(
    aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default,
    aten._adaptive_avg_pool2d.default,
    aten.adaptive_avg_pool3d.default,
    aten._adaptive_avg_pool3d.default,
    dtypes=FLOATS,
    check=_adaptive_check,
)
def adaptive_avg_pool(call: Call) -> Value:
    """The means of windows that split each dimension into so many parts, overlapping where they must."""
    net, value, outputs = call.net, call.tensor("self"), call.ints("output_size", _spatial(call))
    rank = net.rank(value)
    axes = range(rank - len(outputs), rank)
    sizes = net.shape(value)
    if all(count == 1 for count in outputs):
        return net.reduce("AVG", value, axes, keepdim=True)
    if is_static(sizes) and all(size % count == 0 for size, count in zip(sizes[axes[0] :], outputs)):
        source = _Input(call)
        steps = tuple(size // count for size, count in zip(sizes[axes[0] :], outputs))
        window = Window(steps, steps, (0,) * len(steps), (1,) * len(steps), False)
        return source.restore(_avg_pool(net, source.tensor, window.lifted() if source.count == 1 else window, True, None))
    for axis, count in zip(axes, outputs):
        value = _adaptive_axis(net, value, axis, count)
    return value


def _adaptive_axis(net: Conversion, value: Tensor, axis: int, count: int) -> Tensor:
    """Average a dimension to `count` parts: a product with the matrix of the windows' weights."""
    size = net.shape(value)[axis]
    if isinstance(size, int) and size == count:
        return value
    if count == 1:
        return net.reduce("AVG", value, (axis,), keepdim=True)
    rank, dtype = net.rank(value), net.dtype(value)
    matrix: Any = adaptive_weights(size, count).to(dtype) if isinstance(size, int) else _dynamic_weights(net, size, count, dtype)
    if axis == rank - 1:
        return net.matmul(value, matrix, transpose_second=True)
    if axis == rank - 2:
        return net.matmul(matrix, value)
    return net.transpose(net.matmul(net.transpose(value, axis, rank - 1), matrix, transpose_second=True), axis, rank - 1)


def adaptive_bounds(size: int, count: int) -> list[tuple[int, int]]:
    """Return the first and the last index, exclusive, of each of `count` windows over `size` elements.

    Source: ``start_index`` and ``end_index`` in ATen/native/AdaptivePooling.h.
    """
    return [(index * size // count, -(-(index + 1) * size // count)) for index in range(count)]


def adaptive_weights(size: int, count: int) -> torch.Tensor:
    """Return the matrix, of shape ``(count, size)``, that averages `size` elements to `count`."""
    weights = torch.zeros(count, size)
    for index, (start, end) in enumerate(adaptive_bounds(size, count)):
        weights[index, start:end] = 1 / (end - start)
    return weights


def _dynamic_weights(net: Conversion, size: Size, count: int, dtype: torch.dtype) -> Tensor:
    """Return the matrix of `adaptive_weights` for a size known only when the engine runs."""
    length = net.scalar_tensor(size)
    index = torch.arange(count, dtype=torch.int64).reshape(count, 1)
    start = net.binary("FLOOR_DIV", net.binary("PROD", index, length), count)
    # ceil(a / b) = floor((a + b - 1) / b)
    end = net.binary("FLOOR_DIV", net.binary("SUM", net.binary("PROD", index + 1, length), count - 1), count)
    place = net.reshape(net.arange(size), (1, size))
    inside = net.binary("AND", net.logical_not(net.binary("LESS", place, start)), net.binary("LESS", place, end))
    share = net.unary("RECIP", net.cast(net.binary("SUB", end, start), torch.float32))
    return net.cast(net.select(inside, share, 0.0), dtype)


def _adaptive_max_check(view: NodeView) -> Support:
    if view.is_used(1):
        return Support(False, "the indices of adaptive max pooling are used")
    outputs = view.value("output_size")
    outputs = outputs if len(outputs) > 1 else [outputs[0]] * _spatial(view)
    spatial = view.fake("self").shape[-len(outputs) :]
    if any(not isinstance(size, int) and count != 1 for size, count in zip(spatial, outputs)):
        return Support(False, "adaptive max pooling of a dynamic size to more than one element")
    return _adaptive_check(view)


@converts(
    aten.adaptive_max_pool1d.default,
    aten.adaptive_max_pool2d.default,
    aten.adaptive_max_pool3d.default,
    dtypes=FLOATS,
    results=(*FLOATS, torch.int64),
    check=_adaptive_max_check,
)
def adaptive_max_pool(call: Call) -> list[Value | None]:
    """The largest elements of windows that split each dimension into so many parts; their places unused."""
    net, value, outputs = call.net, call.tensor("self"), call.ints("output_size", _spatial(call))
    rank = net.rank(value)
    for axis, count in zip(range(rank - len(outputs), rank), outputs):
        sizes = net.shape(value)
        size = sizes[axis]
        if count == 1:
            value = net.reduce("MAX", value, (axis,), keepdim=True)
        elif isinstance(size, int) and size != count:
            value = _adaptive_max_axis(net, value, axis, adaptive_bounds(size, count))
    return [net.identity(value) if value.is_network_input else value, None]


def _adaptive_max_axis(net: Conversion, value: Tensor, axis: int, bounds: Sequence[tuple[int, int]]) -> Tensor:
    sizes = list(net.shape(value))
    parts = []
    for start, end in bounds:
        starts = [start if place == axis else 0 for place in range(len(sizes))]
        wanted = [end - start if place == axis else size for place, size in enumerate(sizes)]
        parts.append(net.reduce("MAX", net.slice(value, starts, wanted, [1] * len(sizes)), (axis,), keepdim=True))
    return net.concat(parts, axis)

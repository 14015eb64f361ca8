"""Layers that make, place and move values without computing with them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tiacc.backends.tensorrt.interpreter.errors import InterpretationError
from tiacc.backends.tensorrt.interpreter.layers import LayerCall, evaluates, normal_axis


@evaluates("CONSTANT", arithmetic=False)
def constant(call: LayerCall) -> Tensor:
    """Evaluate IConstantLayer."""
    value = call.weights("weights")
    shape = tuple(call.layer.shape)
    return torch.empty(shape, dtype=call.output_dtype) if value is None else value.reshape(shape)


@evaluates("SHAPE", arithmetic=False)
def shape(call: LayerCall) -> Tensor:
    """Evaluate IShapeLayer."""
    return torch.tensor(call.input().shape, dtype=torch.int64)


@evaluates("SHUFFLE", arithmetic=False)
def shuffle(call: LayerCall) -> Tensor:
    """Evaluate IShuffleLayer: transpose, reshape, transpose.

    A 0 in the reshape copies the dimension at its place of the transposed input, where the layer says that it does.
    """
    layer = call.layer
    x = _permute(call.input(), layer.first_transpose)
    sizes = call.ints(1, "reshape_dims")
    if sizes is not None:
        if layer.zero_is_placeholder:
            if any(size == 0 and place >= x.dim() for place, size in enumerate(sizes)):
                raise InterpretationError(f"reshape {sizes} copies a dimension that {tuple(x.shape)} does not have")
            sizes = [x.shape[place] if size == 0 else size for place, size in enumerate(sizes)]
        x = x.reshape(sizes)
    return _permute(x, layer.second_transpose)


def _permute(x: Tensor, permutation: Sequence[int]) -> Tensor:
    """Transpose by the first entries of a ``trt.Permutation``, which always has eight."""
    return x.permute(tuple(permutation)[: x.dim()])


@evaluates("SQUEEZE", arithmetic=False)
def squeeze(call: LayerCall) -> Tensor:
    """Evaluate ISqueezeLayer; without axes, the dimensions go that the network declares to be of size 1."""
    x = call.input()
    given = call.ints(1)
    axes = _implied_axes(call, x) if given is None else {normal_axis(axis, x.dim()) for axis in given}
    if any(x.shape[axis] != 1 for axis in axes):
        raise InterpretationError(f"axes {sorted(axes)} of {tuple(x.shape)} are not all of size 1")
    return x.reshape([size for axis, size in enumerate(x.shape) if axis not in axes])


def _implied_axes(call: LayerCall, x: Tensor) -> set[int]:
    """Return axes of size 1 whose removal gives the declared output; the sizes alone cannot tell where dynamic ones are 1."""
    declared = call.output_shapes[0] or ()
    unit = [axis for axis, size in enumerate(x.shape) if size == 1]
    for axes in itertools.combinations(unit, max(x.dim() - len(declared), 0)):
        rest = [size for axis, size in enumerate(x.shape) if axis not in axes]
        if all(want in (-1, have) for want, have in zip(declared, rest, strict=True)):
            return set(axes)
    raise InterpretationError(f"no squeeze of {tuple(x.shape)} gives {declared}")


@evaluates("UNSQUEEZE", arithmetic=False)
def unsqueeze(call: LayerCall) -> Tensor:
    """Evaluate IUnsqueezeLayer; the axes count in the output."""
    x = call.input()
    wanted = call.ints(1) or []
    rank = x.dim() + len(wanted)
    axes = {normal_axis(axis, rank) for axis in wanted}
    sizes = iter(x.shape)
    return x.reshape([1 if axis in axes else next(sizes) for axis in range(rank)])


@evaluates("CONCATENATION", arithmetic=False)
def concatenation(call: LayerCall) -> Tensor:
    """Evaluate IConcatenationLayer."""
    return torch.cat([call.input(index) for index in range(len(call.inputs))], call.layer.axis)


@evaluates("PADDING", arithmetic=False)
def padding(call: LayerCall) -> Tensor:
    """Evaluate IPaddingLayer: zeros round the last two dimensions; negative padding crops."""
    (top, left), (bottom, right) = call.layer.pre_padding_nd, call.layer.post_padding_nd
    return F.pad(call.input(), [left, right, top, bottom])


@evaluates("SLICE", arithmetic=False)
def slice_(call: LayerCall) -> Tensor:
    """Evaluate ISliceLayer: element ``i`` of an axis is element ``start + i * stride`` of the input's, wherever that may lie.

    Outside the input, the mode decides: an error, periodic repetition, the nearest element, a fill value, or reflection
    about the middle of the outermost elements.
    """
    x = call.input()
    start, size, stride = call.ints(1, "start"), call.ints(2, "shape"), call.ints(3, "stride")
    axes = call.ints(5, "axes")
    if start is None or size is None or stride is None:
        raise InterpretationError("start, size or stride is set neither as an attribute nor as an input")
    if axes is None:
        axes = list(range(x.dim()))
    if not len(axes) == len(start) == len(size) == len(stride):
        raise InterpretationError(f"start {start}, size {size} and stride {stride} do not have one entry for each axis {axes}")
    mode = call.layer.mode.name
    outside: Tensor | None = None
    for axis, first, length, step in zip(axes, start, size, stride, strict=True):
        axis = normal_axis(axis, x.dim())
        extent = x.shape[axis]
        if (first, length, step) == (0, extent, 1):
            continue
        if mode == "STRICT_BOUNDS":
            x = _slice_within(x, axis, first, length, step)
            continue
        places = first + step * torch.arange(length)
        if mode == "FILL":
            beyond = ((places < 0) | (places >= extent)).reshape([-1 if d == axis else 1 for d in range(x.dim())])
            outside = beyond if outside is None else outside | beyond
            places = places.clamp(0, max(extent - 1, 0))
        elif length and not extent:
            raise InterpretationError(f"slice mode {mode} of an empty axis {axis} has nothing to repeat")
        elif mode == "WRAP":
            places = places % max(extent, 1)
        elif mode == "CLAMP":
            places = places.clamp(0, max(extent - 1, 0))
        elif mode == "REFLECT":
            places = _reflect(places, extent)
        else:
            raise call.unsupported(f"slice mode {mode}")
        x = x.index_select(axis, places) if extent else x.new_zeros([length if d == axis else s for d, s in enumerate(x.shape)])
    if outside is None:
        return x
    fill = call.optional(4)
    return torch.where(outside, torch.zeros((), dtype=x.dtype) if fill is None else fill.to(x.dtype).reshape(()), x)


def _slice_within(x: Tensor, axis: int, first: int, length: int, step: int) -> Tensor:
    """Slice an axis by elements that must all exist."""
    last = first + (length - 1) * step
    if length and not (0 <= first < x.shape[axis] and 0 <= last < x.shape[axis]):
        raise InterpretationError(f"slice of axis {axis} from {first} to {last} is out of bounds for {tuple(x.shape)}")
    if length == 0:
        return x.narrow(axis, 0, 0)
    if step == 0:
        return x.narrow(axis, first, 1).expand([length if d == axis else s for d, s in enumerate(x.shape)])
    if step < 0:
        return x.index_select(axis, first + step * torch.arange(length))
    return x[(slice(None),) * axis + (slice(first, last + 1, step),)]


def _reflect(places: Tensor, extent: int) -> Tensor:
    """Reflect positions about the middle of the first and last of `extent` elements, as often as needed."""
    if extent <= 1:
        return torch.zeros_like(places)
    period = 2 * (extent - 1)
    places = places % period
    return torch.where(places < extent, places, period - places)


@evaluates("FILL", arithmetic=False)
def fill(call: LayerCall) -> Tensor:
    """Evaluate IFillLayer.

    LINSPACE is ``alpha + sum(beta[d] * index[d])``, exact for integers. Random fills have TensorRT's distribution and
    not its values, which depend on its generator.
    """
    layer = call.layer
    sizes, dtype = call.ints(0, "shape"), call.output_dtype
    if sizes is None:
        raise InterpretationError("the fill has no shape")
    operation = layer.operation.name
    alpha, beta = call.optional(1), call.optional(2)
    if operation == "LINSPACE":
        exact = torch.float64 if dtype.is_floating_point else torch.int64
        origin = torch.as_tensor(layer.alpha if alpha is None else alpha, dtype=exact).reshape(())
        steps = torch.as_tensor(layer.beta if beta is None else beta, dtype=exact).reshape(-1)
        if len(steps) not in (1, len(sizes)):
            raise InterpretationError(f"{len(steps)} deltas for a fill of rank {len(sizes)}")
        return _linspace(sizes, origin, steps).to(dtype)
    low, high = float(layer.alpha if alpha is None else alpha), float(layer.beta if beta is None else beta)
    value = torch.empty(sizes, dtype=torch.float32)
    if operation == "RANDOM_UNIFORM":
        return value.uniform_(low, high, generator=call.generator).to(dtype)
    if operation == "RANDOM_NORMAL":
        return value.normal_(low, high, generator=call.generator).to(dtype)
    raise call.unsupported(f"fill operation {operation}")


def _linspace(sizes: Sequence[int], origin: Tensor, steps: Tensor) -> Tensor:
    value = origin.expand(list(sizes)).clone() if math.prod(sizes) else torch.empty(list(sizes), dtype=origin.dtype)
    for axis, size in enumerate(sizes):
        ramp = torch.arange(size) * steps[min(axis, len(steps) - 1)]
        value = value + ramp.reshape([size if d == axis else 1 for d in range(len(sizes))])
    return value

"""Interpolation to another size, in every mode of torch.

torch takes the distance of neighbouring samples from the scale factor where one is given, and from the two sizes otherwise. The
same holds for TensorRT's layer, which is told either the scales or the sizes. Where it would make a size of the scales that torch
does not, or rounds a coordinate in its own way, the weights of the samples are taken from torch and multiplied.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.backends.tensorrt.conversion import Conversion
from tiacc.backends.tensorrt.converters import FLOATS, converts
from tiacc.backends.tensorrt.extents import bounds, counting, fixed
from tiacc.backends.tensorrt.layers import Tensor
from tiacc.backends.tensorrt.shaping import Value
from tiacc.backends.tensorrt.sizes import Size, is_static

aten = torch.ops.aten

_MOST_SIZES = 1 << 16
"""The largest size for which a scale factor is tried."""

_SCALES = {1: ("scales",), 2: ("scales_h", "scales_w"), 3: ("scales_d", "scales_h", "scales_w")}


@dataclass(frozen=True)
class Mode:
    """A way to interpolate.

    Attributes:
        kind: The layer's mode: ``"NEAREST"``, ``"LINEAR"`` or ``"CUBIC"``.
        dims: The number of spatial dimensions.
        is_exact: Whether the nearest element is that of the pixel's centre, not of its corner.
        along: Resizes one dimension of ``(1, C, L)``, given the size, whether corners are aligned, and the scale.
        has_layer: Whether TensorRT has a layer for it; it has none with antialiasing.
    """

    kind: str
    dims: int
    along: Callable[[torch.Tensor, int, bool, float | None], torch.Tensor]
    is_exact: bool = False
    has_layer: bool = True


def _flat(operation: Any) -> Callable[[torch.Tensor, int, bool, float | None], torch.Tensor]:
    """Return a resize of one dimension made of one of two dimensions."""

    def along(value: torch.Tensor, size: int, is_aligned: bool, scale: float | None) -> torch.Tensor:
        return operation(value[:, :, None], (1, size), is_aligned, None, scale)[:, :, 0]  # type: ignore[no-any-return]

    return along


def _nearest(operation: Any) -> Callable[[torch.Tensor, int, bool, float | None], torch.Tensor]:
    return lambda value, size, is_aligned, scale: operation(value, (size,), scale)


# -- arguments --------------------------------------------------------------------------------------------------------------------


def _source(view: NodeView) -> str:
    return "self" if "self" in view.args else "input"


def _factors(view: NodeView, dims: int) -> list[float | None]:
    """Return the scale factor of each spatial dimension where one is given."""
    if "scale_factors" in view.args:
        given = view.value("scale_factors")
        return [None] * dims if given is None else [float(factor) for factor in given]
    found = [view.value(name) for name in _SCALES[dims]]
    return [float(factor) if factor is not None and factor > 0 else None for factor in found]


def _rounded(factor: float) -> float:
    """Return a factor as TensorRT's layer holds it."""
    return float(torch.tensor(factor, dtype=torch.float32))


def _gives_sizes(factor: float, low: int, high: int) -> bool:
    """Return whether a factor gives the same size in float32, for all sizes of a range."""
    sizes = torch.arange(low, min(high, _MOST_SIZES) + 1, dtype=torch.float64)
    return high <= _MOST_SIZES and bool(((sizes * factor).floor() == (sizes * _rounded(factor)).floor()).all())


def _check(mode: Mode) -> Callable[[NodeView], Support]:
    def check(view: NodeView) -> Support:
        sizes = [fixed(size) for size in (*view.fake(_source(view)).shape[2:], *view.out.shape[2:])]
        if None not in sizes:
            return SUPPORTED
        if not mode.has_layer:
            return Support(False, "antialiased interpolation of a dynamic size")
        factors = _factors(view, mode.dims)
        if view.value("output_size") is not None and any(factor is not None for factor in factors):
            return Support(False, "interpolation to a dynamic size with scale factors of its own")
        for size, factor in zip(view.fake(_source(view)).shape[2:], factors):
            if mode.kind != "NEAREST" and factor is not None and not _gives_sizes(factor, *bounds(size)):
                return Support(False, "interpolation of a dynamic size by a factor whose rounding to float32 changes the size")
        return SUPPORTED

    return check


# -- conversion -------------------------------------------------------------------------------------------------------------------


def _resize(mode: Mode) -> Callable[[Call], Value]:
    def convert(call: Call) -> Value:
        net, value = call.net, call.tensor(_source(call))
        is_aligned, factors = bool(call.args.get("align_corners", False)), _factors(call, mode.dims)
        before, after = list(net.shape(value)), _sizes(call, net.shape(value), factors)
        if is_aligned:
            factors = [None] * mode.dims
        if is_static(before[2:]) and is_static(after[2:]):
            pairs: list[Any] = list(zip(before[2:], after[2:], factors))
            if not mode.has_layer or not all(_is_plain(mode, *pair) for pair in pairs):
                for axis, pair in enumerate(pairs, 2):
                    value = _along(net, mode, value, axis, pair, is_aligned)
                return value
            return _layer(net, mode, value, after, None, is_aligned)
        if mode.kind == "NEAREST" and not all(map(_is_whole, factors)):
            for axis, pair in enumerate(zip(before[2:], after[2:], factors), 2):
                is_known = is_static(pair[:2])
                value = _along(net, mode, value, axis, pair, False) if is_known else _chosen(net, mode, value, axis, *pair)  # type: ignore[arg-type]
            return value
        return _layer(net, mode, value, after, factors, is_aligned)

    convert.__doc__ = f"Interpolation in mode {mode.kind.lower()}, in {mode.dims} dimensions."
    return convert


def _sizes(call: Call, before: Any, factors: list[float | None]) -> list[Size]:
    """Return the sizes of the result."""
    given = call.args["output_size"]
    result: list[Size] = [*before[:2]]
    for index, known in enumerate(call.out.shape[2:]):
        size = fixed(known)
        if size is not None:
            result.append(size)
        elif given is not None:
            result.append(call.sizes("output_size")[index])
        else:
            factor: Any = factors[index]
            factor = int(factor) if factor == int(factor) else factor
            scaled = call.net.compute(operator.mul, before[index + 2], factor)
            result.append(scaled if isinstance(factor, int) else call.net.compute(torch.sym_int, scaled))
    return result


def _is_plain(mode: Mode, before: int, after: int, factor: float | None) -> bool:
    """Return whether the sizes alone tell TensorRT what torch computes along a dimension, without a rounding of its own."""
    if factor is not None and before * factor != after:
        return False
    return mode.kind != "NEAREST" or after % before == 0 or before % after == 0


def _along(net: Conversion, mode: Mode, value: Tensor, axis: int, pair: tuple[int, int, float | None], is_aligned: bool) -> Tensor:
    """Resize one dimension with weights, or indices, that torch itself tells."""
    before, after, factor = pair
    if before == after and (factor is None or factor == 1):
        return value
    if mode.kind == "NEAREST":
        places = mode.along(torch.arange(before, dtype=torch.float64).reshape(1, 1, -1), after, is_aligned, factor)
        return net.add("gather", value, net.constant(places.reshape(-1).to(torch.int64)), axis)
    weights = mode.along(torch.eye(before).reshape(1, before, before), after, is_aligned, factor)[0]
    rank = net.rank(value)
    moved = net.transpose(value, axis, rank - 1)
    mixed = net.matmul(moved, weights.to(net.dtype(value)).reshape(*[1] * (rank - 2), before, after))
    return net.transpose(mixed, axis, rank - 1)


def _is_whole(factor: float | None) -> bool:
    """Return whether elements are repeated, or skipped, a whole number of times, so that no rounding decides which is the nearest."""
    return factor is not None and factor > 0 and (factor == int(factor) or (1 / factor == int(1 / factor) and _rounded(factor) == factor))


def _chosen(net: Conversion, mode: Mode, value: Tensor, axis: int, before: Size, after: Size, factor: float | None) -> Tensor:
    """Take the nearest elements along a dimension, by the arithmetic of torch in float32, whose rounding decides between two.

    Source: ``nearest_idx`` and ``nearest_exact_idx`` in torch's ``UpSample.h``.
    """
    step = net.compute(operator.truediv, before, after) if factor is None else 1 / factor
    places = counting(net, after, torch.float32)
    if mode.is_exact:
        places = net.binary("SUM", places, 0.5, torch.float32)
    scaled = net.binary("PROD", places, net.scalar_tensor(step, torch.float32), torch.float32)
    nearest = net.cast(net.unary("FLOOR", scaled), torch.int64)
    last = net.scalar_tensor(before + -1)
    return net.add("gather", value, net.binary("MIN", nearest, last, torch.int64), axis)


def _layer(
    net: Conversion, mode: Mode, value: Tensor, sizes: list[Size], factors: list[float | None] | None, is_aligned: bool
) -> Tensor:
    trt = net.trt
    rank = net.rank(value)
    if rank == 3:  # the layer has two dimensions at least
        value, sizes = net.unsqueeze(value, [2]), [*sizes[:2], 1, *sizes[2:]]
    coordinates = "ALIGN_CORNERS" if is_aligned else "HALF_PIXEL"
    attributes: dict[str, Any] = {"resize_mode": getattr(trt.InterpolationMode, mode.kind)}
    if mode.kind == "NEAREST":
        coordinates = "HALF_PIXEL" if mode.is_exact else "ASYMMETRIC"
        attributes["nearest_rounding"] = trt.ResizeRoundMode.HALF_UP if mode.is_exact else trt.ResizeRoundMode.FLOOR
    if mode.kind == "CUBIC":
        attributes["cubic_coeff"] = -0.75
    if is_aligned:  # a single element is the first one, not the middle
        attributes["selector_for_single_pixel"] = trt.ResizeSelector.UPPER
    attributes["coordinate_transformation"] = getattr(trt.ResizeCoordinateTransformation, coordinates)
    if factors is not None and None not in factors:
        scales = [1.0, 1.0, *([1.0] if rank == 3 else []), *(float(factor) for factor in factors)]  # type: ignore[arg-type]
        attributes["scales"] = scales
    elif is_static(sizes):
        attributes["shape"] = tuple(sizes)
    else:
        attributes["inputs"] = {1: net.cast(net.shape_tensor(sizes), torch.int32)}
    result = net.add("resize", value, **attributes)
    return net.squeeze(result, [2]) if rank == 3 else result


def _register(mode: Mode, packet: Any) -> None:
    converts(packet.default, packet.vec, dtypes=FLOATS, symbolic=("output_size",), check=_check(mode))(_resize(mode))


for _dims, _packets in enumerate(
    (
        (aten.upsample_nearest1d, aten._upsample_nearest_exact1d),
        (aten.upsample_nearest2d, aten._upsample_nearest_exact2d),
        (aten.upsample_nearest3d, aten._upsample_nearest_exact3d),
    ),
    1,
):
    _register(Mode("NEAREST", _dims, _nearest(aten.upsample_nearest1d.default)), _packets[0])
    _register(Mode("NEAREST", _dims, _nearest(aten._upsample_nearest_exact1d.default), is_exact=True), _packets[1])


def _linear(value: torch.Tensor, size: int, is_aligned: bool, scale: float | None) -> torch.Tensor:
    return aten.upsample_linear1d.default(value, (size,), is_aligned, scale)  # type: ignore[no-any-return]


_register(Mode("LINEAR", 1, _linear), aten.upsample_linear1d)
_register(Mode("LINEAR", 2, _linear), aten.upsample_bilinear2d)
_register(Mode("LINEAR", 3, _linear), aten.upsample_trilinear3d)
_register(Mode("CUBIC", 2, _flat(aten.upsample_bicubic2d.default)), aten.upsample_bicubic2d)
_register(Mode("LINEAR", 2, _flat(aten._upsample_bilinear2d_aa.default), has_layer=False), aten._upsample_bilinear2d_aa)
_register(Mode("CUBIC", 2, _flat(aten._upsample_bicubic2d_aa.default), has_layer=False), aten._upsample_bicubic2d_aa)

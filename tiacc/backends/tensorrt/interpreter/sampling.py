"""Layers that sample between elements: resize and grid sample."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tiacc.backends.tensorrt.interpreter.layers import LayerCall, evaluates

_GRID_MODES = {"LINEAR": "bilinear", "NEAREST": "nearest", "CUBIC": "bicubic"}
_GRID_PADDING = {"FILL": "zeros", "CLAMP": "border", "REFLECT": "reflection"}
_ROUNDING: dict[str, Callable[[Tensor], Tensor]] = {
    "HALF_UP": lambda place: torch.floor(place + 0.5),
    "HALF_DOWN": lambda place: torch.ceil(place - 0.5),
    "FLOOR": torch.floor,
    "CEIL": torch.ceil,
}


@evaluates("GRID_SAMPLE")
def grid_sample(call: LayerCall) -> Tensor:
    """Evaluate IGridSampleLayer."""
    layer = call.layer
    if layer.sample_mode.name not in _GRID_PADDING:
        raise call.unsupported(f"sample mode {layer.sample_mode.name}")
    mode, padding = _GRID_MODES[layer.interpolation_mode.name], _GRID_PADDING[layer.sample_mode.name]
    return F.grid_sample(call.input(0), call.input(1), mode, padding, layer.align_corners)


@evaluates("RESIZE")
def resize(call: LayerCall) -> Tensor:
    """Evaluate IResizeLayer, one axis after the other; interpolation reads the outermost elements for those outside.

    Given scales, an axis of n elements gets ``floor(n * scale)`` and the coordinates follow the scale; given a size,
    they follow the ratio of the sizes. Source: ``nvinfer1::IResizeLayer`` and ``ResizeCoordinateTransformation``.
    """
    x, layer = call.input(0), call.layer
    sizes = call.ints(1)
    scales = [] if sizes is not None else list(layer.scales)
    if scales:
        sizes = [math.floor(n * scale) for n, scale in zip(x.shape, scales, strict=True)]
    elif sizes is None:
        sizes = list(layer.shape)
    for axis, size in enumerate(sizes):
        extent = x.shape[axis]
        scale = scales[axis] if scales else size / extent
        if size == extent and scale == 1:
            continue
        places = _places(call, extent, size, scale)
        if layer.resize_mode.name == "NEAREST":
            nearest = _ROUNDING[layer.nearest_rounding.name](places).to(torch.int64).clamp(0, extent - 1)
            x = x.index_select(axis, nearest)
        else:
            mixing = _mixing(call, places, extent).to(x.dtype)
            x = torch.movedim(torch.movedim(x, axis, -1) @ mixing.T, -1, axis)
    return x


def _places(call: LayerCall, extent: int, size: int, scale: float) -> Tensor:
    """Return where in the input each of `size` elements lies, in float64."""
    layer = call.layer
    index = torch.arange(size, dtype=torch.float64)
    if size == 1 and layer.selector_for_single_pixel.name == "UPPER":
        return index
    transformation = layer.coordinate_transformation.name
    if transformation == "ALIGN_CORNERS":
        return index * ((extent - 1) / (size - 1)) if size > 1 else index
    if transformation == "HALF_PIXEL":
        return (index + 0.5) / scale - 0.5
    if transformation == "ASYMMETRIC":
        return index / scale
    raise call.unsupported(f"coordinate transformation {transformation}")


def _mixing(call: LayerCall, places: Tensor, extent: int) -> Tensor:
    """Return the matrix ``(size, extent)`` by which linear or cubic interpolation mixes the elements of an axis, in float64."""
    layer = call.layer
    base = torch.floor(places)
    fraction = places - base
    if layer.resize_mode.name == "LINEAR":
        taps = [(0, 1 - fraction), (1, fraction)]
    else:
        taps = [(offset, _cubic_weight((fraction - offset).abs(), layer.cubic_coeff)) for offset in (-1, 0, 1, 2)]
    mixing = torch.zeros(len(places), extent, dtype=torch.float64)
    rows = torch.arange(len(places))
    for offset, weight in taps:
        column = (base + offset).to(torch.int64)
        if layer.exclude_outside:
            weight = torch.where((column >= 0) & (column < extent), weight, torch.zeros_like(weight))
        mixing[rows, column.clamp(0, extent - 1)] += weight
    return mixing / mixing.sum(1, keepdim=True) if layer.exclude_outside else mixing


def _cubic_weight(distance: Tensor, a: float) -> Tensor:
    """Return the weight of an element at a distance from 0 to 2. Source: ``nvinfer1::IResizeLayer::setCubicCoeff``."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, far)

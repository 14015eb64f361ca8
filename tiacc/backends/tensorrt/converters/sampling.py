"""Sampling at given places of an image, and the places of an affine map."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.backends.tensorrt.converters import FLOATS, converts
from tiacc.backends.tensorrt.extents import fixed
from tiacc.backends.tensorrt.shaping import Value

aten = torch.ops.aten

_MODES = ("LINEAR", "NEAREST", "CUBIC")
_BORDERS = ("FILL", "CLAMP", "REFLECT")


@converts(aten.grid_sampler.default, aten.grid_sampler_2d.default, aten.grid_sampler_3d.default, dtypes=FLOATS)
def grid_sampler(call: Call) -> Value:
    """An image ``(N, C, H, W)`` sampled at places ``(N, h, w, 2)`` between -1 and 1, or a volume at places in three dimensions."""
    trt = call.net.trt
    return call.net.add(
        "grid_sample",
        call.tensor("input"),
        call.tensor("grid"),
        interpolation_mode=getattr(trt.InterpolationMode, _MODES[call.number("interpolation_mode")]),
        sample_mode=getattr(trt.SampleMode, _BORDERS[call.number("padding_mode")]),
        align_corners=bool(call.number("align_corners")),
    )


def _size_check(view: NodeView) -> Support:
    if any(fixed(size) is None for size in view.value("size")[2:]):
        return Support(False, "an affine grid of a dynamic size")
    return SUPPORTED


def _corners(count: int, is_aligned: bool) -> torch.Tensor:
    """Return the places of a dimension's pixels between -1 and 1."""
    if count <= 1:
        return torch.zeros(count)
    places = torch.linspace(-1, 1, count)
    return places if is_aligned else places * (count - 1) / count


@converts(aten.affine_grid_generator.default, dtypes=FLOATS, symbolic=("size",), check=_size_check)
def affine_grid(call: Call) -> Value:
    """The places of the pixels of an image under affine maps ``(N, 2, 3)``, or of a volume under ``(N, 3, 4)``."""
    net = call.net
    sizes: Sequence[int] = [int(size) for size in call.out.shape[1:-1]]
    axes = [_corners(size, bool(call.number("align_corners"))) for size in sizes]
    places = torch.stack([*reversed(torch.meshgrid(*axes, indexing="ij")), torch.ones(*sizes)], -1).reshape(1, -1, len(sizes) + 1)
    grid = net.matmul(places.to(call.dtype), call.operand("theta"), transpose_second=True)
    return net.reshape(grid, [net.shape(grid)[0], *sizes, len(sizes)])

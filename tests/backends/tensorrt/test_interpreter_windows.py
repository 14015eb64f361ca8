"""Convolutions, pooling and resizing: every padding rule against sums over windows written out, and against torch."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.backends.tensorrt.networks import Net, assert_close, evaluate, seeded, trt
from tiacc.backends.tensorrt.interpreter import InterpretationError

PADDING_MODES = ["EXPLICIT_ROUND_DOWN", "EXPLICIT_ROUND_UP", "SAME_UPPER", "SAME_LOWER"]


def window_starts(extent: int, span: int, stride: int, pads: tuple[int, int], mode: str) -> range:
    """Return where each window begins, counted from the first element. Source: the formulas of ``nvinfer1::PaddingMode``."""
    if mode.startswith("SAME"):
        count = math.ceil(extent / stride)
        total = max((count - 1) * stride + span - extent, 0)
        before = total // 2 if mode == "SAME_UPPER" else total - total // 2
    else:
        before = pads[0]
        steps = (extent + sum(pads) - span) / stride
        count = (math.ceil if mode == "EXPLICIT_ROUND_UP" else math.floor)(steps) + 1
    return range(-before, -before + count * stride, stride)


def pooled(x: Tensor, size: Any, stride: Any, pads: Any, mode: str, kind: str, excludes: bool) -> Tensor:
    """Pool ``(N, C, ...)`` window by window, in float64."""
    spatial = x.shape[2:]
    starts = [window_starts(n, k, s, p, mode) for n, k, s, p in zip(spatial, size, stride, pads, strict=True)]
    y = torch.empty(*x.shape[:2], *(len(s) for s in starts), dtype=torch.float64)
    for place in itertools.product(*(range(len(s)) for s in starts)):
        cut: list[Any] = [slice(None), slice(None)]
        inside = counted = 1
        for d, index in enumerate(place):
            low, high = starts[d][index], starts[d][index] + size[d]
            cut.append(slice(max(low, 0), min(high, spatial[d])))
            inside *= max(min(high, spatial[d]) - max(low, 0), 0)
            pad = (0, 0) if mode.startswith("SAME") else pads[d]
            reach = (-math.inf, math.inf) if mode.startswith("SAME") else (-pad[0], spatial[d] + pad[1])
            counted *= min(high, reach[1]) - max(low, reach[0])
        window = x.to(torch.float64)[tuple(cut)].flatten(2)
        count = inside if excludes else counted
        y[(..., *place)] = F.pad(window, [0, 1], value=-math.inf).amax(-1) if kind == "MAX" else window.sum(-1) / torch.tensor(float(count))
    return y.to(x.dtype)


POOLS = [
    # extents, window, stride, padding before, padding after
    ((7, 6), (3, 2), (2, 3), (1, 0), (0, 1)),
    ((6, 6), (3, 3), (2, 2), (0, 0), (0, 0)),
    ((5, 8), (2, 4), (2, 1), (0, 1), (1, 2)),
    ((5, 4, 6), (3, 2, 2), (2, 2, 1), (1, 0, 1), (1, 1, 0)),
]


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("case", POOLS, ids=str)
@pytest.mark.parametrize("kind", ["MAX", "AVERAGE excluding padding", "AVERAGE including padding"])
def test_pooling(kind: str, case: Any, mode: str) -> None:
    extents, size, stride, before, after = case
    x = seeded(2, 3, *extents)
    net = Net()
    layer = net.add_pooling_nd(net.input("x", *x.shape), getattr(trt.PoolingType, kind.split()[0]), size)
    layer.stride_nd, layer.pre_padding, layer.post_padding = stride, before, after
    layer.padding_mode = getattr(trt.PaddingMode, mode)
    layer.average_count_excludes_padding = "excluding" in kind
    pads = list(zip(before, after, strict=True))
    want = pooled(x, list(size), list(stride), pads, mode, kind.split()[0], "including" not in kind)
    if want.isnan().any():
        # The average over no elements at all: TensorRT refuses the layer.
        with pytest.raises(InterpretationError, match="network is invalid"):
            evaluate(layer, net, x)
    else:
        assert_close(evaluate(layer, net, x), want)


def test_a_rounded_up_pool_keeps_a_window_that_begins_in_the_padding() -> None:
    net = Net()
    layer = net.add_pooling_nd(net.input("x", 1, 1, 2, 2), trt.PoolingType.AVERAGE, (1, 1))
    layer.stride_nd, layer.post_padding, layer.padding_mode = (2, 2), (1, 1), trt.PaddingMode.EXPLICIT_ROUND_UP
    layer.average_count_excludes_padding = False
    x = seeded(1, 1, 2, 2)
    have = evaluate(layer, net, x)
    assert have.shape == (1, 1, 2, 2)
    assert have[0, 0, 0, 0] == x[0, 0, 0, 0]
    assert float(have[0, 0, 1, 1]) == 0.0


def test_a_blend_of_pools() -> None:
    net = Net()
    layer = net.add_pooling_nd(net.input("x", 1, 2, 6, 6), trt.PoolingType.MAX_AVERAGE_BLEND, (2, 2))
    layer.stride_nd, layer.blend_factor = (2, 2), 0.25
    x = seeded(1, 2, 6, 6)
    assert_close(evaluate(layer, net, x), 0.75 * F.max_pool2d(x, 2) + 0.25 * F.avg_pool2d(x, 2))


CONVOLUTIONS = [
    # extents, kernel, stride, dilation, groups, padding before, padding after
    ((9, 8), (3, 2), (2, 1), (1, 2), 1, (1, 0), (0, 2)),
    ((9, 8), (3, 3), (1, 2), (2, 1), 2, (2, 1), (2, 1)),
    ((7, 7), (2, 2), (3, 3), (1, 1), 4, (0, 0), (0, 0)),
    ((5, 6, 4), (3, 2, 2), (2, 1, 1), (1, 1, 2), 2, (1, 0, 0), (0, 1, 1)),
]


def windows_of(x: Tensor, starts: list[range], kernel: Any, dilation: Any) -> Tensor:
    """Return ``(N, C, positions..., offsets...)``: what each window of a convolution covers, zero outside."""
    places = [
        torch.tensor([[start + k * d for k in range(size)] for start in axis])
        for axis, size, d in zip(starts, kernel, dilation, strict=True)
    ]
    margin = 64
    padded = F.pad(x, [margin] * (2 * len(starts)))
    for d, place in enumerate(places):
        axis = 2 + 2 * d
        padded = padded.index_select(axis, place.flatten() + margin).unflatten(axis, place.shape)
    order = [0, 1, *range(2, 2 + 2 * len(starts), 2), *range(3, 3 + 2 * len(starts), 2)]
    return padded.permute(order)


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolution(case: Any, mode: str) -> None:
    extents, kernel, stride, dilation, groups, before, after = case
    x, weight, bias = seeded(2, 4, *extents), seeded(8, 4 // groups, *kernel, seed=1), seeded(8, seed=2)
    net = Net()
    layer = net.add_convolution_nd(net.input("x", *x.shape), 8, kernel, weight.numpy(), bias.numpy())
    layer.stride_nd, layer.dilation_nd, layer.num_groups = stride, dilation, groups
    layer.pre_padding, layer.post_padding, layer.padding_mode = before, after, getattr(trt.PaddingMode, mode)
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    starts = [window_starts(*args, mode) for args in zip(extents, spans, stride, zip(before, after, strict=True), strict=True)]
    covered = windows_of(x, starts, kernel, dilation).unflatten(1, (groups, -1))
    letters = "uvw"[: len(kernel)], "xyz"[: len(kernel)]
    want = torch.einsum(f"ngc{letters[1]}{letters[0]},gkc{letters[0]}->ngk{letters[1]}", covered, weight.unflatten(0, (groups, -1)))
    want = want.flatten(1, 2) + bias.reshape(-1, *[1] * len(kernel))
    assert_close(evaluate(layer, net, x), want)


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_deconvolution_is_the_adjoint_of_a_convolution(case: Any, mode: str) -> None:
    extents, kernel, stride, dilation, groups, before, after = case
    x, weight, bias = seeded(2, 8, *extents), seeded(8, 4 // groups, *kernel, seed=1), seeded(4, seed=2)
    net = Net()
    layer = net.add_deconvolution_nd(net.input("x", *x.shape), 4, kernel, weight.numpy(), bias.numpy())
    layer.stride_nd, layer.dilation_nd, layer.num_groups = stride, dilation, groups
    layer.pre_padding, layer.post_padding, layer.padding_mode = before, after, getattr(trt.PaddingMode, mode)
    have = evaluate(layer, net, x)
    # Its transpose: the convolution that reads, at each place of x, what of the output that place wrote to.
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    if mode.startswith("SAME"):
        totals = [max(k - s, 0) for k, s in zip(spans, stride, strict=True)]
        first = [t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in totals]
    else:
        first = list(before)
    starts = [range(-p, -p + n * s, s) for p, n, s in zip(first, extents, stride, strict=True)]
    y = torch.zeros_like(have, requires_grad=True)
    covered = windows_of(y, starts, kernel, dilation).unflatten(1, (groups, -1))
    letters = "uvw"[: len(kernel)], "xyz"[: len(kernel)]
    forward = torch.einsum(
        f"ngc{letters[1]}{letters[0]},gkc{letters[0]}->ngk{letters[1]}", covered, weight.unflatten(0, (groups, -1))
    )
    (want,) = torch.autograd.grad(forward.flatten(1, 2), y, x)
    assert_close(have, want + bias.reshape(-1, *[1] * len(kernel)))


def test_kernels_and_biases_may_be_inputs() -> None:
    x, weight, bias = seeded(1, 4, 6, 6), seeded(6, 2, 3, 3, seed=1), seeded(6, seed=2)
    net = Net()
    layer = net.add_convolution_nd(net.input("x", *x.shape), 6, (3, 3), trt.Weights(), trt.Weights())
    layer.num_groups = 2
    layer.set_input(1, net.input("w", *weight.shape))
    layer.set_input(2, net.constant(bias))
    assert_close(evaluate(layer, net, x, weight), F.conv2d(x, weight, bias, groups=2))


INTERPOLATIONS = [
    # mode of torch, aligned corners, what TensorRT is told
    ("nearest", None, ("NEAREST", "ASYMMETRIC", "FLOOR")),
    ("nearest-exact", None, ("NEAREST", "HALF_PIXEL", "HALF_UP")),
    ("bilinear", False, ("LINEAR", "HALF_PIXEL", "FLOOR")),
    ("bilinear", True, ("LINEAR", "ALIGN_CORNERS", "FLOOR")),
    ("bicubic", False, ("CUBIC", "HALF_PIXEL", "FLOOR")),
    ("bicubic", True, ("CUBIC", "ALIGN_CORNERS", "FLOOR")),
]


def resize_layer(net: Net, x: Any, settings: tuple[str, str, str]) -> Any:
    layer = net.add_resize(x)
    layer.resize_mode = getattr(trt.InterpolationMode, settings[0])
    layer.coordinate_transformation = getattr(trt.ResizeCoordinateTransformation, settings[1])
    layer.nearest_rounding = getattr(trt.ResizeRoundMode, settings[2])
    return layer


@pytest.mark.parametrize("size", [(12, 5), (3, 14), (9, 7), (1, 4)], ids=str)
@pytest.mark.parametrize("case", INTERPOLATIONS, ids=str)
def test_resizing_to_a_size_is_interpolation(case: Any, size: tuple[int, int]) -> None:
    mode, aligned, settings = case
    x = seeded(2, 3, 9, 7)
    for is_dynamic in (False, True):
        net = Net()
        layer = resize_layer(net, net.input("x", *x.shape), settings)
        if is_dynamic:
            layer.set_input(1, net.constant([2, 3, *size]))
        else:
            layer.shape = (2, 3, *size)
        assert_close(evaluate(layer, net, x), F.interpolate(x, size, mode=mode, align_corners=aligned))


@pytest.mark.parametrize("case", [c for c in INTERPOLATIONS if not c[1]], ids=str)
def test_resizing_by_scales_uses_the_scales_for_the_coordinates(case: Any) -> None:
    mode, aligned, settings = case
    x = seeded(1, 2, 7, 5)
    net = Net()
    layer = resize_layer(net, net.input("x", *x.shape), settings)
    layer.scales = [1.0, 1.0, 1.75, 0.625]
    want = F.interpolate(
        x.double(), scale_factor=(1.75, 0.625), mode=mode, align_corners=aligned, recompute_scale_factor=False
    )
    assert_close(evaluate(layer, net, x), want.float())


def test_resizing_three_axes() -> None:
    x = seeded(1, 2, 4, 5, 6)
    net = Net()
    layer = resize_layer(net, net.input("x", *x.shape), ("LINEAR", "HALF_PIXEL", "FLOOR"))
    layer.shape = (1, 2, 7, 3, 11)
    assert_close(evaluate(layer, net, x), F.interpolate(x, (7, 3, 11), mode="trilinear", align_corners=False))


def test_resizing_to_one_pixel() -> None:
    x = seeded(1, 1, 4, 4)
    for selector, want in (("FORMULA", x[..., 1:3, 1:3].mean()), ("UPPER", x[0, 0, 0, 0])):
        net = Net()
        layer = resize_layer(net, net.input("x", 1, 1, 4, 4), ("LINEAR", "HALF_PIXEL", "FLOOR"))
        layer.shape, layer.selector_for_single_pixel = (1, 1, 1, 1), getattr(trt.ResizeSelector, selector)
        assert_close(evaluate(layer, net, x).reshape(()), want.reshape(()))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("padding", ["FILL", "CLAMP", "REFLECT"])
@pytest.mark.parametrize("mode", ["LINEAR", "NEAREST", "CUBIC"])
def test_grid_sample_at_the_input_s_own_places_and_beyond(mode: str, padding: str, aligned: bool) -> None:
    x, size = seeded(1, 2, 5, 6), (5, 6)
    net = Net()
    layer = net.add_grid_sample(net.input("x", *x.shape), net.input("grid", 1, *size, 2))
    layer.interpolation_mode, layer.sample_mode = getattr(trt.InterpolationMode, mode), getattr(trt.SampleMode, padding)
    layer.align_corners = aligned
    own = F.affine_grid(torch.eye(2, 3).unsqueeze(0), [1, 2, *size], align_corners=aligned)
    net.output(layer)
    assert_close(net.run(x, own), x, 1e-4)  # type: ignore[arg-type]
    beyond = net.run(x, torch.full_like(own, 9.0))
    assert isinstance(beyond, Tensor)
    if padding == "FILL":
        assert float(beyond.abs().max()) == 0.0
    elif padding == "CLAMP":
        assert_close(beyond, x[..., -1:, -1:].expand_as(beyond))

"""Matrix products, convolutions and pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tiacc.backends.tensorrt.interpreter.errors import InterpretationError
from tiacc.backends.tensorrt.interpreter.layers import LayerCall, evaluates

_CONVOLUTIONS = {2: F.conv2d, 3: F.conv3d}
_TRANSPOSED_CONVOLUTIONS = {2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOLS = {2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOLS = {2: F.avg_pool2d, 3: F.avg_pool3d}


@evaluates("MATRIX_MULTIPLY")
def matrix_multiply(call: LayerCall) -> Tensor:
    """Evaluate IMatrixMultiplyLayer: the last two axes multiply, as they are, transposed, or as one vector each."""
    first, second = call.layer.op0.name, call.layer.op1.name
    a = _as_matrix(call.input(0), first, -2)
    b = _as_matrix(call.input(1), second, -1)
    product = a @ b
    if second == "VECTOR":
        product = product.squeeze(-1)
    return product.squeeze(-1 if second == "VECTOR" else -2) if first == "VECTOR" else product


def _as_matrix(x: Tensor, operation: str, vector_axis: int) -> Tensor:
    if operation == "TRANSPOSE":
        return x.transpose(-1, -2)
    return x.unsqueeze(vector_axis) if operation == "VECTOR" else x


@evaluates("EINSUM")
def einsum(call: LayerCall) -> Tensor:
    """Evaluate IEinsumLayer."""
    return torch.einsum(call.layer.equation, *(call.input(index) for index in range(len(call.inputs))))


@evaluates("CONVOLUTION")
def convolution(call: LayerCall) -> Tensor:
    """Evaluate IConvolutionLayer; kernel and bias are attributes, or inputs 1 and 2."""
    x, layer = call.input(0), call.layer
    kernel_size, stride, dilation = _window(layer.kernel_size_nd, layer.stride_nd, layer.dilation_nd)
    kernel = _kernel(call, (layer.num_output_maps, x.shape[1] // layer.num_groups, *kernel_size))
    bias = call.optional(2)
    bias = call.weights("bias") if bias is None else bias
    span = [d * (k - 1) + 1 for k, d in zip(kernel_size, dilation, strict=True)]
    before, after, extra = _paddings(layer, x.shape[2:], span, stride)
    after = [a + e for a, e in zip(after, extra, strict=True)]
    if before == after and min(before) >= 0:
        pads: Sequence[int] = before
    else:
        x, pads = F.pad(x, _pad_list(before, after)), [0] * len(span)
    return _CONVOLUTIONS[len(span)](x, kernel, bias, stride, pads, dilation, layer.num_groups)


@evaluates("DECONVOLUTION")
def deconvolution(call: LayerCall) -> Tensor:
    """Evaluate IDeconvolutionLayer: the full transposed convolution, cropped by the padding."""
    x, layer = call.input(0), call.layer
    kernel_size, stride, dilation = _window(layer.kernel_size_nd, layer.stride_nd, layer.dilation_nd)
    kernel = _kernel(call, (x.shape[1], layer.num_output_maps // layer.num_groups, *kernel_size))
    bias = call.optional(2)
    bias = call.weights("bias") if bias is None else bias
    span = [d * (k - 1) + 1 for k, d in zip(kernel_size, dilation, strict=True)]
    if layer.padding_mode.name.startswith("SAME"):
        total = [max(reach - step, 0) for reach, step in zip(span, stride, strict=True)]
        before, after = _split_padding(total, layer.padding_mode.name)
    else:
        before, after = list(layer.pre_padding), list(layer.post_padding)
    y = _TRANSPOSED_CONVOLUTIONS[len(span)](x, kernel, None, stride, 0, 0, layer.num_groups, dilation)
    if any(before) or any(after):
        y = F.pad(y, [-pad for pad in _pad_list(before, after)])
    return y if bias is None else y + bias.reshape([-1] + [1] * len(span))


def _kernel(call: LayerCall, shape: tuple[int, ...]) -> Tensor:
    kernel = call.optional(1)
    if kernel is not None:
        return kernel
    kernel = call.weights("kernel")
    if kernel is None:
        raise InterpretationError("the kernel is given neither as weights nor as input 1")
    return kernel.reshape(shape)


@evaluates("POOLING")
def pooling(call: LayerCall) -> Tensor:
    """Evaluate IPoolingLayer.

    A rounded-up output has windows that reach past the padding, even ones that begin in it: they take the maximum of,
    or the average over, what they cover of the input (and of the padding, where averages count it). The maximum of
    nothing is minus infinity; an average over nothing TensorRT refuses.
    """
    x, layer = call.input(), call.layer
    size, stride, _ = _window(layer.window_size_nd, layer.stride_nd, [1] * len(layer.window_size_nd))
    dims = len(size)
    before, after, extra = _paddings(layer, x.shape[-dims:], size, stride)
    beyond = [a + e for a, e in zip(after, extra, strict=True)]
    images = x.reshape(math.prod(x.shape[:-dims]), 1, *x.shape[-dims:])

    def maximum() -> Tensor:
        padded = F.pad(images, _pad_list(before, beyond), value=-math.inf) if any(before) or any(beyond) else images
        return _MAX_POOLS[dims](padded, size, stride)

    def average() -> Tensor:
        total = _AVERAGE_POOLS[dims](F.pad(images, _pad_list(before, beyond)), size, stride, divisor_override=1)
        ones = torch.ones_like(images[:1])
        if layer.average_count_excludes_padding:
            counted = F.pad(ones, _pad_list(before, beyond))
        else:
            counted = F.pad(F.pad(ones, _pad_list(before, after), value=1.0), _pad_list([0] * dims, extra))
        return total / _AVERAGE_POOLS[dims](counted, size, stride, divisor_override=1)

    kind = call.trt.IPoolingLayer.type.__get__(layer).name
    if kind == "MAX":
        y = maximum()
    elif kind == "AVERAGE":
        y = average()
    elif kind == "MAX_AVERAGE_BLEND":
        y = (1 - layer.blend_factor) * maximum() + layer.blend_factor * average()
    else:
        raise call.unsupported(f"pooling type {kind}")
    return y.reshape(*x.shape[:-dims], *y.shape[-dims:])


def _window(size: Any, stride: Any, dilation: Any) -> tuple[list[int], list[int], list[int]]:
    if len(size) not in (2, 3):
        raise InterpretationError(f"a window of {len(size)} dimensions; TensorRT has 2 and 3")
    return list(size), list(stride), list(dilation)


def _paddings(layer: Any, extents: Sequence[int], span: list[int], stride: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Return the padding before and after each dimension, and what a rounded-up output reads beyond it.

    Source: the formulas of ``nvinfer1::PaddingMode``.
    """
    mode = layer.padding_mode.name
    if mode.startswith("SAME"):
        total = [max((n - 1) // s * s + k - n, 0) for n, k, s in zip(extents, span, stride, strict=True)]
        return *_split_padding(total, mode), [0] * len(span)
    before, after = list(layer.pre_padding), list(layer.post_padding)
    extra = [0] * len(span)
    if mode == "EXPLICIT_ROUND_UP":
        for d, (n, k, s) in enumerate(zip(extents, span, stride, strict=True)):
            over = n + before[d] + after[d] - k
            extra[d] = math.ceil(over / s) * s - over
    return before, after, extra


def _split_padding(total: list[int], mode: str) -> tuple[list[int], list[int]]:
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return (small, large) if mode == "SAME_UPPER" else (large, small)


def _pad_list(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Return paddings in the order of `torch.nn.functional.pad`: the last dimension first."""
    return [pad for pair in reversed(list(zip(before, after, strict=True))) for pad in pair]

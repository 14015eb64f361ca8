"""Layers that compute along axes: reductions, softmax, normalisations, running sums."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tiacc.backends.tensorrt.interpreter.layers import LayerCall, axes_of_mask, evaluates, is_arithmetic_float, normal_axis


@evaluates("REDUCE")
def reduce(call: LayerCall) -> Tensor:
    """Evaluate IReduceLayer; nothing reduces to the operation's neutral element, or to NaN for an average.

    Source: the table of ``nvinfer1::ReduceOperation`` for empty volumes.
    """
    x, layer = call.input(), call.layer
    axes, keep, operation = axes_of_mask(layer.axes, x.dim()), layer.keep_dims, layer.op.name
    if not axes:
        return x
    if operation == "SUM":
        return x.sum(axes, keep, dtype=x.dtype)
    if operation == "AVG":
        return _average(x, axes, keep)
    if operation == "PROD":
        for axis in reversed(axes):
            x = x.prod(axis, keep, dtype=x.dtype)
        return x
    if operation not in ("MAX", "MIN"):
        raise call.unsupported(f"reduce operation {operation}")
    if math.prod(x.shape[axis] for axis in axes) == 0:
        limits = torch.finfo(x.dtype) if x.is_floating_point() else torch.iinfo(x.dtype)
        lowest = -math.inf if x.is_floating_point() else limits.min
        highest = math.inf if x.is_floating_point() else limits.max
        return x.new_full(_reduced(x, axes, keep), lowest if operation == "MAX" else highest)
    return x.amax(axes, keep) if operation == "MAX" else x.amin(axes, keep)


def _reduced(x: Tensor, axes: list[int], keep: bool) -> list[int]:
    return [1 if axis in axes else size for axis, size in enumerate(x.shape) if keep or axis not in axes]


def _average(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if is_arithmetic_float(x):
        return x.mean(axes, keep)
    count = math.prod(x.shape[axis] for axis in axes)
    total = x.sum(axes, keep)
    return (torch.div(total, count, rounding_mode="trunc") if count else total).to(x.dtype)


@evaluates("SOFTMAX")
def softmax(call: LayerCall) -> Tensor:
    """Evaluate ISoftMaxLayer."""
    x = call.input()
    axes = axes_of_mask(call.layer.axes, x.dim())
    if len(axes) != 1:
        raise call.unsupported(f"softmax over {len(axes)} axes")
    return torch.softmax(x, axes[0])


@evaluates("RAGGED_SOFTMAX")
def ragged_softmax(call: LayerCall) -> Tensor:
    """Evaluate IRaggedSoftMaxLayer: a softmax over the first ``bounds[..., 0]`` elements of the last axis, zero beyond them."""
    x, bounds = call.input(0), call.input(1)
    is_inside = torch.arange(x.shape[-1]) < bounds
    return torch.softmax(x.masked_fill(~is_inside, -math.inf), -1).masked_fill(~is_inside, 0.0)


@evaluates("NORMALIZATION")
def normalization(call: LayerCall) -> Tensor:
    """Evaluate INormalizationLayer: ``(x - mean) / sqrt(variance + epsilon) * scale + bias`` over axes or groups.

    With groups, mean and variance are those of a group's channels and the given axes. Scale and bias then have one
    entry for a channel, or for a group in layers made by ``add_normalization``.
    """
    x, scale, bias, layer = call.input(0), call.input(1), call.input(2), call.layer
    axes, groups = axes_of_mask(layer.axes, x.dim()), layer.num_groups
    if groups == 1:
        return _normalized(x, axes, layer.epsilon) * scale + bias
    if scale.shape[1] == groups != x.shape[1]:
        scale, bias = (v.repeat_interleave(x.shape[1] // groups, 1) for v in (scale, bias))
    grouped = x.unflatten(1, (groups, x.shape[1] // groups))
    return _normalized(grouped, [2, *(axis + 1 for axis in axes if axis > 1)], layer.epsilon).flatten(1, 2) * scale + bias


def _normalized(x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(axes, keepdim=True) + epsilon)


@evaluates("LRN")
def local_response_normalization(call: LayerCall) -> Tensor:
    """Evaluate ILRNLayer: ``x / (k + alpha / window * sum(x**2 over the window of channels)) ** beta``."""
    x, layer = call.input(), call.layer
    half = layer.window_size // 2
    squares = torch.nn.functional.pad(x.square().unsqueeze(1), [0, 0] * (x.dim() - 2) + [half, layer.window_size - 1 - half])
    total = squares.unfold(2, layer.window_size, 1).sum(-1).squeeze(1)
    return x / torch.pow(layer.k + layer.alpha / layer.window_size * total, layer.beta)


@evaluates("CUMULATIVE")
def cumulative(call: LayerCall) -> Tensor:
    """Evaluate ICumulativeLayer: running sums, of what comes before each element if exclusive, from the end if reversed."""
    x, layer = call.input(0), call.layer
    if layer.op.name != "SUM":
        raise call.unsupported(f"cumulative operation {layer.op.name}")
    axis = normal_axis(int(call.input(1)), x.dim())
    x = x.flip(axis) if layer.reverse else x
    total = torch.cumsum(x, axis, dtype=x.dtype)
    if layer.exclusive and x.shape[axis]:
        total = torch.cat([torch.zeros_like(total.narrow(axis, 0, 1)), total.narrow(axis, 0, x.shape[axis] - 1)], axis)
    return total.flip(axis) if layer.reverse else total

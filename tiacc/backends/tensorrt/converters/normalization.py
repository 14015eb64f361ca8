"""Normalisations: by statistics of the training data, or of the input along some dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.backends.tensorrt.conversion import Conversion
from tiacc.backends.tensorrt.converters import FLOATS, converts
from tiacc.backends.tensorrt.converters.convolution import has_empty
from tiacc.backends.tensorrt.layers import Tensor
from tiacc.backends.tensorrt.shaping import Value

aten = torch.ops.aten


# -- batch ------------------------------------------------------------------------------------------------------------------------


def _batch_check(view: NodeView) -> Support:
    if view.value("training"):
        return Support(False, "batch normalisation in training mode")
    if view.args["running_mean"] is None or view.args["running_var"] is None:
        return Support(False, "batch normalisation without running statistics")
    return _input_is_not_empty(view)


@converts(aten.batch_norm.default, dtypes=FLOATS, check=_batch_check)
def batch_norm(call: Call) -> Value:
    """(x - mean) / √(variance + eps) · weight + bias, a channel each."""
    return _by_statistics(call)


def _by_statistics(call: Call) -> Value:
    net, value = call.net, call.tensor("input")
    weight, bias, mean, variance = (call.operand(name) for name in ("weight", "bias", "running_mean", "running_var"))
    eps = float(call.number("eps"))
    rank = net.rank(value)
    if all(item is None or isinstance(item, torch.Tensor) for item in (weight, bias, mean, variance)):
        scale = torch.rsqrt(variance.double() + eps)
        scale = scale if weight is None else scale * weight.double()
        shift = -mean.double() * scale
        shift = shift if bias is None else shift + bias.double()
        return _affine(net, value, scale, shift)

    def lifted(item: Value) -> Tensor:
        return net.reshape(net.tensor(item, call.dtype), [net.shape(item)[0] if axis == 1 else 1 for axis in range(rank)])

    factor = net.unary("RECIP", net.unary("SQRT", net.binary("SUM", lifted(variance), eps)))
    result = net.binary("PROD", net.binary("SUB", value, lifted(mean)), factor)
    return _scaled(net, result, None if weight is None else lifted(weight), None if bias is None else lifted(bias))


def _affine(net: Conversion, value: Tensor, scale: torch.Tensor, shift: torch.Tensor) -> Tensor:
    """Return value · scale + shift, a channel each."""
    dtype, rank = net.dtype(value), net.rank(value)
    data = {"shift": shift.to("cpu", dtype).contiguous(), "scale": scale.to("cpu", dtype).contiguous()}
    if rank in (4, 5):
        weights = [net.weights(data["shift"]), net.weights(data["scale"]), net.trt.Weights(net.flavour.dtype(dtype))]
        return net.add_weighted("scale_nd", value, net.trt.ScaleMode.CHANNEL, *weights, 1, data=data)
    sizes = [-1 if axis == 1 else 1 for axis in range(rank)]
    return net.binary("SUM", net.binary("PROD", value, data["scale"].reshape(sizes)), data["shift"].reshape(sizes))


def _scaled(net: Conversion, value: Tensor, weight: Value | None, bias: Value | None) -> Tensor:
    if weight is not None:
        value = net.binary("PROD", value, weight)
    return value if bias is None else net.binary("SUM", value, bias)


# -- along dimensions -----------------------------------------------------------------------------------------------------------------


def normalized(
    net: Conversion, value: Tensor, axes: Sequence[int], eps: float, weight: Value | None = None, bias: Value | None = None
) -> Tensor:
    """Return a tensor with mean 0 and variance 1 along `axes`, then times `weight`, plus `bias`.

    Args:
        net: The network.
        value: The tensor.
        axes: The dimensions that the statistics are taken over.
        eps: Is added to the variance.
        weight: Of the rank of `value`, broadcast; or None.
        bias: The same.
    """
    dtype, rank = net.dtype(value), net.rank(value)
    shape = [1] * rank
    if weight is not None:
        shape = list(weight.shape)
    elif bias is not None:
        shape = list(bias.shape)
    scale = torch.ones(shape, dtype=dtype) if weight is None else weight
    shift = torch.zeros(shape, dtype=dtype) if bias is None else bias
    mask = net.axes_mask(axes, rank)
    return net.add("normalization", value, net.tensor(scale, dtype), net.tensor(shift, dtype), mask, epsilon=eps)


def _input_is_not_empty(view: NodeView) -> Support:
    return Support(False, "a normalisation of an empty tensor") if has_empty(view.fake("input")) else SUPPORTED


@converts(aten.layer_norm.default, dtypes=FLOATS, check=_input_is_not_empty)
def layer_norm(call: Call) -> Value:
    """Normalise over the last dimensions."""
    net, value = call.net, call.tensor("input")
    count, rank = len(call.args["normalized_shape"]), net.rank(value)
    weight, bias = (_raised(net, call.operand(name), rank) for name in ("weight", "bias"))
    if rank == count:  # statistics over everything: TensorRT wants a dimension that is left alone
        value = net.unsqueeze(value, (0,))
        weight, bias = (None if item is None else net.unsqueeze(item, (0,)) for item in (weight, bias))
    axes = range(net.rank(value) - count, net.rank(value))
    result = normalized(net, value, axes, float(call.number("eps")), weight, bias)
    return net.squeeze(result, (0,)) if rank == count else result


def _raised(net: Conversion, value: Value | None, rank: int) -> Value | None:
    return None if value is None else net.raise_rank(value, rank)


def _per_channel(net: Conversion, value: Value | None, rank: int) -> Value | None:
    """Return one number a channel as a tensor of `rank` dimensions, the channels second."""
    return None if value is None else net.reshape(value, [net.shape(value)[0] if axis == 1 else 1 for axis in range(rank)])


@converts(aten.group_norm.default, dtypes=FLOATS, check=_input_is_not_empty)
def group_norm(call: Call) -> Value:
    """Normalise each group of channels over itself and the spatial dimensions."""
    net, value, groups = call.net, call.tensor("input"), call.number("num_groups")
    rank, eps = net.rank(value), float(call.number("eps"))
    weight, bias = (_per_channel(net, call.operand(name), rank) for name in ("weight", "bias"))
    sizes = net.shape(value)
    if net.flavour.has("normalization_v2") and rank >= 3 and groups > 1 and isinstance(sizes[1], int):
        shape = [sizes[1] if axis == 1 else 1 for axis in range(rank)]
        scale = net.tensor(torch.ones(shape) if weight is None else weight, call.dtype)
        shift = net.tensor(torch.zeros(shape) if bias is None else bias, call.dtype)
        mask = net.axes_mask(range(2, rank), rank)
        return net.add("normalization_v2", value, scale, shift, mask, epsilon=eps, num_groups=groups)
    grouped = net.reshape(value, (sizes[0], groups, -1))
    result = net.reshape(normalized(net, grouped, (2,), eps), sizes)
    return _scaled(net, result, weight, bias)


def _instance_check(view: NodeView) -> Support:
    if not view.value("use_input_stats") and (view.args["running_mean"] is None or view.args["running_var"] is None):
        return Support(False, "instance normalisation without statistics")
    return _input_is_not_empty(view)


@converts(aten.instance_norm.default, dtypes=FLOATS, check=_instance_check)
def instance_norm(call: Call) -> Value:
    """Normalise each channel of each element of the batch over its spatial dimensions, or by given statistics."""
    if not call.number("use_input_stats"):
        return _by_statistics(call)
    net, value = call.net, call.tensor("input")
    rank = net.rank(value)
    weight, bias = (_per_channel(net, call.operand(name), rank) for name in ("weight", "bias"))
    return normalized(net, value, range(2, rank), float(call.number("eps")), weight, bias)


@converts(aten.rms_norm.default, dtypes=FLOATS, check=_input_is_not_empty)
def rms_norm(call: Call) -> Value:
    """X / √(mean(x²) + eps) · weight, computed in float32."""
    net, value = call.net, call.tensor("input", torch.float32)
    count, weight, eps = len(call.args["normalized_shape"]), call.operand("weight"), call.number("eps")
    axes = range(net.rank(value) - count, net.rank(value))
    mean = net.reduce("AVG", net.binary("PROD", value, value), axes, keepdim=True)
    floor: Any = torch.finfo(call.dtype).eps if eps is None else float(eps)
    factor = net.unary("RECIP", net.unary("SQRT", net.binary("SUM", mean, floor)))
    result = net.binary("PROD", value, factor)
    if weight is not None:
        result = net.binary("PROD", result, weight, torch.float32)
    return net.cast(result, call.dtype)

"""Activations."""

from __future__ import annotations

from typing import Any

import torch

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.backends.tensorrt.conversion import Conversion
from tiacc.backends.tensorrt.converters import FLOATS, NUMBERS, converts
from tiacc.backends.tensorrt.layers import Tensor
from tiacc.backends.tensorrt.shaping import Value

aten = torch.ops.aten


def _is_set(value: Any, default: float) -> bool:
    return float(value) != default


# -- piecewise linear -------------------------------------------------------------------------------------------------------------


@converts(aten.relu.default, dtypes=NUMBERS)
def relu(call: Call) -> Value:
    """max(x, 0)."""
    return call.net.activation("RELU", call.tensor("self"))


def clipped(net: Conversion, value: Tensor, low: float, high: float) -> Tensor:
    """Return a tensor held between two numbers, low <= high."""
    if net.dtype(value).is_floating_point:
        return net.activation("CLIP", value, alpha=float(low), beta=float(high))
    return net.binary("MIN", net.binary("MAX", value, int(low)), int(high))


@converts(aten.relu6.default, dtypes=NUMBERS)
def relu6(call: Call) -> Value:
    """min(max(x, 0), 6)."""
    return clipped(call.net, call.tensor("self"), 0, 6)


@converts(aten.hardtanh.default, dtypes=NUMBERS)
def hardtanh(call: Call) -> Value:
    """X held between two numbers."""
    return clipped(call.net, call.tensor("self"), call.number("min_val"), call.number("max_val"))


@converts(aten.leaky_relu.default, dtypes=FLOATS)
def leaky_relu(call: Call) -> Value:
    """X where it is positive, else slope · x."""
    return call.net.activation("LEAKY_RELU", call.tensor("self"), alpha=float(call.number("negative_slope")))


def _is_evaluating(view: NodeView) -> Support:
    return Support(False, "rrelu in training mode is random") if view.value("training") else SUPPORTED


@converts(aten.rrelu.default, dtypes=FLOATS, check=_is_evaluating)
def rrelu(call: Call) -> Value:
    """A leaky ReLU with the mean of the two slopes."""
    slope = (float(call.number("lower")) + float(call.number("upper"))) / 2
    return call.net.activation("LEAKY_RELU", call.tensor("self"), alpha=slope)


@converts(aten.prelu.default, aten._prelu_kernel.default, dtypes=FLOATS)
def prelu(call: Call) -> Value:
    """X where it is positive, else slope · x, with one slope or one a channel."""
    net, value, slopes = call.net, call.tensor("self"), call.operand("weight")
    rank = net.rank(value)
    if net.rank(slopes) == 1 and rank != 1:
        sizes = net.shape(slopes)
        slopes = net.reshape(slopes, [sizes[0] if axis == min(1, rank - 1) else 1 for axis in range(rank)])
    return net.add("parametric_relu", value, net.tensor(slopes, rank=rank))


@converts(aten.threshold.default, dtypes=NUMBERS)
def threshold(call: Call) -> Value:
    """X where it is above a threshold, else a number."""
    net, value = call.net, call.tensor("self")
    return net.select(net.binary("GREATER", value, call.number("threshold")), value, call.number("value"), call.dtype)


@converts(aten.hardshrink.default, dtypes=FLOATS)
def hardshrink(call: Call) -> Value:
    """X where |x| > λ, else 0; NaN stays."""
    net, value = call.net, call.tensor("self")
    limit = float(call.number("lambd"))
    inside = net.binary("AND", net.logical_not(net.binary("GREATER", value, limit)), net.logical_not(net.binary("LESS", value, -limit)))
    return net.select(net.binary("AND", inside, net.binary("EQUAL", value, value)), 0.0, value, call.dtype)


@converts(aten.softshrink.default, dtypes=FLOATS)
def softshrink(call: Call) -> Value:
    """X moved towards 0 by λ: x - min(max(x, -λ), λ)."""
    value, limit = call.tensor("self"), float(call.number("lambd"))
    return call.net.binary("SUB", value, clipped(call.net, value, -limit, limit))


@converts(aten.hardsigmoid.default, dtypes=FLOATS)
def hardsigmoid(call: Call) -> Value:
    """max(0, min(1, x / 6 + 1 / 2))."""
    return call.net.activation("HARD_SIGMOID", call.tensor("self"), alpha=1 / 6, beta=0.5)


@converts(aten.hardswish.default, dtypes=FLOATS)
def hardswish(call: Call) -> Value:
    """X · hardsigmoid(x)."""
    value = call.tensor("self")
    return call.net.binary("PROD", value, call.net.activation("HARD_SIGMOID", value, alpha=1 / 6, beta=0.5))


# -- with exponentials --------------------------------------------------------------------------------------------------------------


@converts(aten.sigmoid.default, aten.special_expit.default)
def sigmoid(call: Call) -> Value:
    """1 / (1 + exp(-x))."""
    return call.net.activation("SIGMOID", call.tensor("self", call.dtype))


@converts(aten.tanh.default)
def tanh(call: Call) -> Value:
    """The hyperbolic tangent."""
    return call.net.activation("TANH", call.tensor("self", call.dtype))


@converts(aten.silu.default, dtypes=FLOATS)
def silu(call: Call) -> Value:
    """X · sigmoid(x)."""
    value = call.tensor("self")
    return call.net.binary("PROD", value, call.net.activation("SIGMOID", value))


@converts(aten.gelu.default, dtypes=FLOATS)
def gelu(call: Call) -> Value:
    """X · Φ(x), exact or by its approximation with tanh."""
    kind = "GELU_TANH" if call.number("approximate") == "tanh" else "GELU_ERF"
    return call.net.activation(kind, call.tensor("self"))


@converts(aten.elu.default, dtypes=FLOATS)
def elu(call: Call) -> Value:
    """Scale · (x where it is positive, else alpha · (exp(input_scale · x) - 1))."""
    net, value = call.net, call.tensor("self")
    alpha, scale, input_scale = (float(call.number(name)) for name in ("alpha", "scale", "input_scale"))
    if input_scale == 1.0:
        return net.activation("ELU", value, alpha=alpha) if scale == 1.0 else net.activation("SELU", value, alpha=alpha, beta=scale)
    bent = net.binary("PROD", net.activation("ELU", net.binary("PROD", value, input_scale), alpha=1.0), alpha * scale)
    return net.select(net.binary("GREATER", value, 0.0), net.binary("PROD", value, scale), bent)


@converts(aten.selu.default, dtypes=FLOATS)
def selu(call: Call) -> Value:
    """An ELU with the constants of self-normalising networks. Source: Klambauer et al., 2017."""
    return call.net.activation("SELU", call.tensor("self"), alpha=1.6732632423543772, beta=1.0507009873554805)


def _alpha_is_not_zero(view: NodeView) -> Support:
    return SUPPORTED if _is_set(view.value("alpha"), 0.0) else Support(False, "celu divides by an alpha of 0")


@converts(aten.celu.default, dtypes=FLOATS, check=_alpha_is_not_zero)
def celu(call: Call) -> Value:
    """X where it is positive, else alpha · (exp(x / alpha) - 1)."""
    net, value, alpha = call.net, call.tensor("self"), float(call.number("alpha"))
    if alpha == 1.0:
        return net.activation("ELU", value, alpha=1.0)
    curve = net.binary("PROD", net.binary("SUB", net.unary("EXP", net.binary("DIV", value, alpha)), 1.0), alpha)
    return net.binary("SUM", net.activation("RELU", value), net.binary("MIN", curve, 0.0))


def softplus_of(net: Conversion, value: Tensor, beta: float = 1.0) -> Tensor:
    """Return log(1 + exp(βx)) / β."""
    return net.activation("SOFTPLUS", value, alpha=1.0 / beta, beta=beta)


def _beta_is_not_zero(view: NodeView) -> Support:
    return SUPPORTED if _is_set(view.value("beta"), 0.0) else Support(False, "softplus divides by a beta of 0")


@converts(aten.softplus.default, dtypes=FLOATS, check=_beta_is_not_zero)
def softplus(call: Call) -> Value:
    """Log(1 + exp(βx)) / β, and x where βx is above a threshold."""
    net, value = call.net, call.tensor("self")
    beta, limit = float(call.number("beta")), float(call.number("threshold"))
    curve = softplus_of(net, value, beta)
    if limit >= 20:  # beyond it the two differ by less than exp(-20)
        return curve
    return net.select(net.binary("GREATER", net.binary("PROD", value, beta), limit), value, curve)


@converts(aten.log_sigmoid.default, dtypes=FLOATS)
def log_sigmoid(call: Call) -> Value:
    """-log(1 + exp(-x))."""
    net = call.net
    return net.unary("NEG", softplus_of(net, net.unary("NEG", call.tensor("self"))))


@converts(aten.mish.default, dtypes=FLOATS)
def mish(call: Call) -> Value:
    """X · tanh(log(1 + exp(x)))."""
    net, value = call.net, call.tensor("self")
    return net.binary("PROD", value, net.activation("TANH", softplus_of(net, value)))


@converts(aten.glu.default, dtypes=FLOATS)
def glu(call: Call) -> Value:
    """The first half along a dimension, times the sigmoid of the second."""
    net, value = call.net, call.tensor("self")
    sizes = list(net.shape(value))
    axis = call.number("dim") % len(sizes)
    half = sizes[axis] // 2
    strides = [1] * len(sizes)
    parts = []
    for start in (0, half):
        starts = [start if place == axis else 0 for place in range(len(sizes))]
        parts.append(net.slice(value, starts, [half if place == axis else size for place, size in enumerate(sizes)], strides))
    return net.binary("PROD", parts[0], net.activation("SIGMOID", parts[1]))


# -- softmax ------------------------------------------------------------------------------------------------------------------------


def _softmax_check(view: NodeView) -> Support:
    dtype = str(view.dtype).removeprefix("torch.")
    return SUPPORTED if view.dtype in FLOATS else Support(False, f"its result is {dtype}, not floating-point")


def softmax_of(net: Conversion, value: Tensor, axis: int) -> Tensor:
    """Return exp(x) / sum(exp(x)) along a dimension."""
    rank = net.rank(value)
    if rank < 2:  # TensorRT wants two dimensions
        return net.reshape(net.add("softmax", net.reshape(value, (1, -1)), axes=2), net.shape(value))
    return net.add("softmax", value, axes=net.axes_mask((axis,), rank))


@converts(aten.softmax.int, aten._softmax.default, check=_softmax_check)
def softmax(call: Call) -> Value:
    """Exp(x) / sum(exp(x)) along a dimension."""
    return softmax_of(call.net, call.tensor("self", call.dtype), call.number("dim"))


@converts(aten.log_softmax.int, aten._log_softmax.default, check=_softmax_check)
def log_softmax(call: Call) -> Value:
    """X - max - log(sum(exp(x - max))) along a dimension."""
    net, value = call.net, call.tensor("self", call.dtype)
    rank, axis = net.rank(value), call.number("dim")
    if rank == 0:
        return net.binary("SUB", value, value)
    shifted = net.binary("SUB", value, net.reduce("MAX", value, (axis,), keepdim=True))
    total = net.reduce("SUM", net.unary("EXP", shifted), (axis,), keepdim=True)
    return net.binary("SUB", shifted, net.unary("LOG", total))



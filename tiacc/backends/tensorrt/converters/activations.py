"""Activations."""

from __future__ import annotations

import torch

from tiacc.backends.tensorrt.call import Call
from tiacc.backends.tensorrt.converters import FLOATS, NUMBERS, converts
from tiacc.backends.tensorrt.shaping import Value

aten = torch.ops.aten


@converts(aten.relu.default, dtypes=NUMBERS)
def relu(call: Call) -> Value:
    """max(x, 0)."""
    return call.net.activation("RELU", call.tensor("self"))


@converts(aten.sigmoid.default)
def sigmoid(call: Call) -> Value:
    """1 / (1 + exp(-x))."""
    return call.net.activation("SIGMOID", call.tensor("self", call.dtype))


@converts(aten.tanh.default)
def tanh(call: Call) -> Value:
    """The hyperbolic tangent."""
    return call.net.activation("TANH", call.tensor("self", call.dtype))


@converts(aten.leaky_relu.default, dtypes=FLOATS)
def leaky_relu(call: Call) -> Value:
    """X where it is positive, else slope · x."""
    return call.net.activation("LEAKY_RELU", call.tensor("self"), alpha=float(call.number("negative_slope")))

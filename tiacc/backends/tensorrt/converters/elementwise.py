"""Arithmetic between two tensors, or a tensor and a number."""

from __future__ import annotations

import torch

from tiacc.backends.tensorrt.call import Call
from tiacc.backends.tensorrt.converters import converts
from tiacc.backends.tensorrt.shaping import Value

aten = torch.ops.aten


@converts(aten.mul.Tensor, aten.mul.Scalar, symbolic=("other",))
def mul(call: Call) -> Value:
    """A product; of bools, a conjunction."""
    kind = "AND" if call.dtype == torch.bool else "PROD"
    return call.net.binary(kind, call.operand("self"), call.operand("other"), call.dtype)


@converts(aten.add.Tensor, aten.add.Scalar, symbolic=("other",))
def add(call: Call) -> Value:
    """Self + alpha · other; of bools, a disjunction."""
    net, other, alpha = call.net, call.operand("other"), call.number("alpha")
    if call.dtype == torch.bool:
        return net.binary("OR", call.operand("self"), other if alpha else False, torch.bool)
    if alpha != 1:
        other = net.binary("PROD", other, alpha, call.dtype)
    return net.binary("SUM", call.operand("self"), other, call.dtype)

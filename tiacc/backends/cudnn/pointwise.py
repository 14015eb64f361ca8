"""Which operators of aten are element-wise, and how they are written in a body.

Each rule takes the arguments of a node by the names of its schema, tensors among them as expressions, and returns an expression; None
where the arguments are such that it has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from tiacc.backends.cudnn.lazy import Expression, Node

Rule: TypeAlias = Callable[[dict[str, Any]], "Expression | None"]

aten = torch.ops.aten


def _unary(op: str) -> Rule:
    return lambda args: Node(op, (args["self"],))


def _binary(op: str) -> Rule:
    return lambda args: Node(op, (args["self"], args["other"]))


def _scaled(value: Expression, factor: Any) -> Expression:
    return value if factor == 1 else Node("mul", (value, float(factor)))


def _add(args: dict[str, Any]) -> Expression:
    return Node("add", (args["self"], _scaled(args["other"], args["alpha"])))


def _sub(args: dict[str, Any]) -> Expression:
    return Node("sub", (args["self"], _scaled(args["other"], args["alpha"])))


def _rsub(args: dict[str, Any]) -> Expression:
    return Node("sub", (args["other"], _scaled(args["self"], args["alpha"])))


def _clamp(args: dict[str, Any]) -> Expression | None:
    low, high = args.get("min"), args.get("max")
    value: Expression = args["self"]
    if low == 0 and high is None:
        return Node("relu", (value,))
    if low == 0 and high == 6:
        return Node("relu6", (value,))
    if low is not None:
        value = Node("maximum", (value, low if not isinstance(low, int) else float(low)))
    if high is not None:
        value = Node("minimum", (value, high if not isinstance(high, int) else float(high)))
    return value


def _hardtanh(args: dict[str, Any]) -> Expression | None:
    return _clamp({"self": args["self"], "min": args["min_val"], "max": args["max_val"]})


def _pow(args: dict[str, Any]) -> Expression | None:
    value, exponent = args["self"], args["exponent"]
    if not isinstance(exponent, (int, float)):
        return None
    if exponent == 2:
        return Node("square", (value,))
    if exponent == 3:
        return Node("mul", (Node("square", (value,)), value))
    return {0.5: Node("sqrt", (value,)), -0.5: Node("rsqrt", (value,)), -1.0: Node("reciprocal", (value,))}.get(float(exponent))


def _div(args: dict[str, Any]) -> Expression | None:
    if args.get("rounding_mode") is not None:
        return None
    other = args["other"]
    if isinstance(other, float) and other and math.frexp(other)[0] == 0.5:
        return Node("mul", (args["self"], 1.0 / other))
    return Node("div", (args["self"], other))


def _gelu(args: dict[str, Any]) -> Expression:
    return Node("gelu_tanh" if args["approximate"] == "tanh" else "gelu", (args["self"],))


def _elu(args: dict[str, Any]) -> Expression | None:
    if args["scale"] != 1 or args["input_scale"] != 1:
        return None
    return Node("elu", (args["self"], float(args["alpha"])))


def _leaky_relu(args: dict[str, Any]) -> Expression:
    return Node("leaky_relu", (args["self"], float(args["negative_slope"])))


def _softplus(args: dict[str, Any]) -> Expression | None:
    return Node("softplus", (args["self"],)) if args["beta"] == 1 and args["threshold"] == 20 else None


def _where(args: dict[str, Any]) -> Expression:
    return Node("where", (args["condition"], args["self"], args["other"]))


def _masked_fill(args: dict[str, Any]) -> Expression:
    return Node("where", (args["mask"], args["value"], args["self"]))


def _addcmul(args: dict[str, Any]) -> Expression:
    return Node("add", (args["self"], _scaled(Node("mul", (args["tensor1"], args["tensor2"])), args["value"])))


def _lerp(args: dict[str, Any]) -> Expression:
    return Node("add", (args["self"], Node("mul", (args["weight"], Node("sub", (args["end"], args["self"]))))))


def _rules() -> dict[Any, Rule]:
    table: dict[Any, Rule] = {
        aten.add.Tensor: _add,
        aten.add.Scalar: _add,
        aten.sub.Tensor: _sub,
        aten.sub.Scalar: _sub,
        aten.rsub.Scalar: _rsub,
        aten.rsub.Tensor: _rsub,
        aten.div.Tensor: _div,
        aten.div.Scalar: _div,
        aten.clamp.default: _clamp,
        aten.clamp_min.default: _clamp,
        aten.clamp_max.default: _clamp,
        aten.hardtanh.default: _hardtanh,
        aten.pow.Tensor_Scalar: _pow,
        aten.gelu.default: _gelu,
        aten.elu.default: _elu,
        aten.leaky_relu.default: _leaky_relu,
        aten.softplus.default: _softplus,
        aten.where.self: _where,
        aten.where.ScalarOther: _where,
        aten.masked_fill.Scalar: _masked_fill,
        aten.addcmul.default: _addcmul,
        aten.lerp.Scalar: _lerp,
        aten.lerp.Tensor: _lerp,
    }
    for name in ("relu", "relu6", "sigmoid", "tanh", "silu", "hardswish", "hardsigmoid", "neg", "abs", "exp", "log", "sqrt", "rsqrt"):
        table[getattr(aten, name).default] = _unary(name)
    for name in ("reciprocal", "square", "sin", "cos", "erf", "floor", "ceil"):
        table[getattr(aten, name).default] = _unary(name)
    table[aten.logical_not.default] = table[aten.bitwise_not.default] = _unary("not")
    for name in ("maximum", "minimum"):
        table[getattr(aten, name).default] = _binary(name)
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        for overload in ("Tensor", "Scalar"):
            table[getattr(getattr(aten, name), overload)] = _binary(name)
    table[aten.mul.Tensor] = table[aten.mul.Scalar] = _binary("mul")
    table[aten.logical_and.default] = table[aten.bitwise_and.Tensor] = _binary("and")
    table[aten.logical_or.default] = table[aten.bitwise_or.Tensor] = _binary("or")
    return table


RULES = _rules()
"""The rule of each element-wise operator."""

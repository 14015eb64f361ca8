"""Element-wise arithmetic as data: what a kernel does to each element before it stores it.

A `Body` is a short straight-line program over operands. One form of it serves all: a Triton kernel has it as text (`triton_lines`), a
cuDNN graph as pointwise nodes (`cudnn_outputs`), and torch evaluates it (`evaluate`), which is the oracle of the tests.

Numbers are computed in float32 whatever the operands are, and rounded once, when they are stored; conditions are booleans.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

Argument: TypeAlias = "int | float"
"""An ``int`` is the index of a value: an operand, or the result of an instruction before. A ``float`` is a number."""


@dataclass(frozen=True)
class Instruction:
    """One operation on values.

    Attributes:
        op: A key of `OPERATIONS`.
        args: Values and numbers.
    """

    op: str
    args: tuple[Argument, ...]

    def __str__(self) -> str:
        return f"{self.op}({','.join(f'%{arg}' if isinstance(arg, int) else repr(arg) for arg in self.args)})"


@dataclass(frozen=True)
class Body:
    """A program: the operands are the values 0 to ``operands - 1``, then comes one value an instruction; the last is the result.

    Attributes:
        operands: How many operands it reads.
        instructions: In order.
    """

    operands: int
    instructions: tuple[Instruction, ...] = ()

    def __str__(self) -> str:
        return f"{self.operands}:" + ";".join(map(str, self.instructions))

    @property
    def result(self) -> int:
        """The index of the value that is stored."""
        return self.operands + len(self.instructions) - 1 if self.instructions else 0


COPY = Body(1)
"""The program that gives its one operand."""


@dataclass(frozen=True)
class Operation:
    """How an operation is written.

    Attributes:
        triton: Its Triton expression, with ``{0}``, ``{1}`` … for the arguments.
        torch: Its function on float32 tensors and numbers.
        cudnn: Makes its node in a cuDNN graph from a graph and its arguments; None where cuDNN has none.
    """

    triton: str
    torch: Callable[..., Any]
    cudnn: Callable[..., Any] | None = None


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


def _tensor(value: Any) -> Any:
    return value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float32)


def _binary(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda a, b: function(_tensor(a), _tensor(b))


_TANH = "(1.0 - 2.0 / (tl.exp(2.0 * {0}) + 1.0))"
_SIGMOID = "(1.0 / (1.0 + tl.exp(-{0})))"
_ROOT_2_OVER_PI = math.sqrt(2 / math.pi)

# A comparison with NaN is false: clipping is written so that a NaN stays one, as in torch.
OPERATIONS: dict[str, Operation] = {
    "add": Operation("({0} + {1})", lambda a, b: a + b, lambda g, a, b: g.add(a=a, b=b)),
    "sub": Operation("({0} - {1})", lambda a, b: a - b, lambda g, a, b: g.sub(a=a, b=b)),
    "mul": Operation("({0} * {1})", lambda a, b: a * b, lambda g, a, b: g.mul(a=a, b=b)),
    "div": Operation("({0} / {1})", lambda a, b: a / b, lambda g, a, b: g.div(a=a, b=b)),
    "maximum": Operation("tl.where(({0} > {1}) | ({0} != {0}), {0}, {1})", _binary(torch.maximum)),
    "minimum": Operation("tl.where(({0} < {1}) | ({0} != {0}), {0}, {1})", _binary(torch.minimum)),
    "neg": Operation("(-{0})", torch.neg, lambda g, a: g.neg(input=a)),
    "abs": Operation("tl.abs({0})", torch.abs, lambda g, a: g.abs(input=a)),
    "exp": Operation("tl.exp({0})", torch.exp, lambda g, a: g.exp(input=a)),
    "log": Operation("tl.log({0})", torch.log),
    "sqrt": Operation("tl.sqrt_rn({0})", torch.sqrt),
    "rsqrt": Operation("(1.0 / tl.sqrt_rn({0}))", torch.rsqrt),
    "reciprocal": Operation("(1.0 / {0})", torch.reciprocal),
    "square": Operation("({0} * {0})", torch.square),
    "sin": Operation("tl.sin({0})", torch.sin),
    "cos": Operation("tl.cos({0})", torch.cos),
    "erf": Operation("tl.erf({0})", torch.erf),
    "floor": Operation("tl.floor({0})", torch.floor),
    "ceil": Operation("tl.ceil({0})", torch.ceil),
    "relu": Operation("tl.where({0} < 0.0, 0.0, {0})", torch.relu, lambda g, a: g.relu(input=a)),
    "relu6": Operation(
        "tl.where({0} < 0.0, 0.0, tl.where({0} > 6.0, 6.0, {0}))",
        torch.nn.functional.relu6,
        lambda g, a: g.relu(input=a, lower_clip=0.0, upper_clip=6.0),
    ),
    "leaky_relu": Operation(
        "tl.where({0} < 0.0, {0} * {1}, {0})",
        torch.nn.functional.leaky_relu,
        lambda g, a, slope: g.leaky_relu(input=a, negative_slope=slope),
    ),
    "elu": Operation("tl.where({0} < 0.0, {1} * (tl.exp({0}) - 1.0), {0})", torch.nn.functional.elu),
    "sigmoid": Operation(_SIGMOID, torch.sigmoid, lambda g, a: g.sigmoid(input=a)),
    "tanh": Operation(_TANH, torch.tanh, lambda g, a: g.tanh(input=a)),
    "silu": Operation("({0} / (1.0 + tl.exp(-{0})))", torch.nn.functional.silu, lambda g, a: g.swish(input=a)),
    "gelu": Operation(
        "(0.5 * {0} * (1.0 + tl.erf({0} * 0.7071067811865476)))", torch.nn.functional.gelu, lambda g, a: g.gelu(input=a)
    ),
    "gelu_tanh": Operation(
        "({0} - {0} / (tl.exp(" + repr(2 * _ROOT_2_OVER_PI) + " * ({0} + 0.044715 * {0} * {0} * {0})) + 1.0))",
        _gelu_tanh,
        lambda g, a: g.gelu_approx_tanh(input=a),
    ),
    "hardsigmoid": Operation(
        "(tl.where({0} < -3.0, 0.0, tl.where({0} > 3.0, 6.0, {0} + 3.0)) * 0.16666666666666666)", torch.nn.functional.hardsigmoid
    ),
    "hardswish": Operation(
        "({0} * tl.where({0} < -3.0, 0.0, tl.where({0} > 3.0, 6.0, {0} + 3.0)) * 0.16666666666666666)", torch.nn.functional.hardswish
    ),
    "softplus": Operation("tl.where({0} > 20.0, {0}, tl.log(1.0 + tl.exp({0})))", torch.nn.functional.softplus),
    "where": Operation("tl.where({0}, {1}, {2})", lambda c, a, b: torch.where(c, _tensor(a), _tensor(b))),
    "eq": Operation("({0} == {1})", lambda a, b: a == b),
    "ne": Operation("({0} != {1})", lambda a, b: a != b),
    "lt": Operation("({0} < {1})", lambda a, b: a < b),
    "le": Operation("({0} <= {1})", lambda a, b: a <= b),
    "gt": Operation("({0} > {1})", lambda a, b: a > b),
    "ge": Operation("({0} >= {1})", lambda a, b: a >= b),
    "and": Operation("({0} & {1})", torch.logical_and),
    "or": Operation("({0} | {1})", torch.logical_or),
    "not": Operation("({0} == 0)", torch.logical_not),
    "number": Operation("({0}).to(tl.float32)", lambda a: a.to(torch.float32)),
}
"""What a body may do."""

def literal(value: float) -> str:
    """Return a number as Triton reads it."""
    if math.isinf(value):
        return "float('inf')" if value > 0 else "float('-inf')"
    return "float('nan')" if math.isnan(value) else repr(float(value))


def triton_lines(body: Body, operands: Sequence[str], prefix: str = "v") -> tuple[list[str], str]:
    """Return the statements that evaluate a body, and the name of its result.

    Args:
        body: The program.
        operands: The names that its operands have in the kernel; numbers among them are float32 already.
        prefix: What the names of new variables begin with.
    """
    names = list(operands)
    lines = []
    for index, instruction in enumerate(body.instructions):
        written = [names[arg] if isinstance(arg, int) else literal(arg) for arg in instruction.args]
        name = f"{prefix}{index}"
        lines.append(f"{name} = {OPERATIONS[instruction.op].triton.format(*written)}")
        names.append(name)
    return lines, names[body.result]


def evaluate(body: Body, operands: Sequence[torch.Tensor]) -> torch.Tensor:
    """Compute a body with torch: floating-point operands in float32, which the result is in too unless it is a boolean."""
    values: list[Any] = [operand.float() if operand.is_floating_point() else operand for operand in operands]
    for instruction in body.instructions:
        args = [values[arg] if isinstance(arg, int) else arg for arg in instruction.args]
        values.append(OPERATIONS[instruction.op].torch(*args))
    result = values[body.result]
    assert isinstance(result, torch.Tensor)
    return result


def has_cudnn_form(body: Body) -> bool:
    """Return whether cuDNN has a node for each instruction, with numbers only where it takes them as attributes."""
    return all(
        OPERATIONS[instruction.op].cudnn is not None
        and (instruction.op == "leaky_relu" or all(isinstance(arg, int) for arg in instruction.args))
        for instruction in body.instructions
    )


def cudnn_output(body: Body, graph: Any, operands: Sequence[Any]) -> Any:
    """Add the nodes of a body to a cuDNN graph and return the tensor of its result."""
    values = list(operands)
    for instruction in body.instructions:
        make = OPERATIONS[instruction.op].cudnn
        assert make is not None
        values.append(make(graph, *(values[arg] if isinstance(arg, int) else arg for arg in instruction.args)))
    return values[body.result]

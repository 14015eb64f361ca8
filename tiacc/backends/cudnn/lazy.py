"""Values that are not computed yet: what element-wise work is waiting, and for what.

While a graph is planned, each of its values is a `Ref` (it is in memory), or a `Lazy`: an expression over refs and at most one *anchor*,
which is a convolution, a pooling or a reduction that has not been emitted. An element-wise operator makes a larger expression; when
somebody needs the value in memory, one step is emitted for all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from tiacc.backends.cudnn.body import Argument, Body, Instruction
from tiacc.backends.cudnn.program import Ref, Step


@dataclass(eq=False)
class Anchor:
    """A step that waits for the element-wise work behind it.

    Attributes:
        shape: Of its result.
        emit: Makes the step, from where to store, the body (operand 0 is the result of the anchor), and the other operands.
        takes: Whether it can have a further operand of this ref, expanded to `shape`.
        strides: How its result is laid out; None for as its operands are.
        fits: Whether it can store its result in this ref.
    """

    shape: tuple[int, ...]
    emit: Callable[[Ref, Body, tuple[Ref, ...]], Step]
    takes: Callable[[Ref], bool] = lambda ref: True
    strides: Callable[[tuple[int, ...]], tuple[int, ...]] | None = None
    fits: Callable[[Ref], bool] = lambda ref: True


@dataclass(eq=False)
class Node:
    """An operation of an expression."""

    op: str
    args: tuple[Expression, ...]


Expression: TypeAlias = "Node | Anchor | Ref | float"


@dataclass(eq=False)
class Lazy:
    """A value to be computed.

    Attributes:
        expression: How.
        shape: Its shape.
        dtype: The type it is stored in.
        uses: How many read it.
    """

    expression: Expression
    shape: tuple[int, ...]
    dtype: torch.dtype
    uses: int = 1


def anchor_of(expression: Expression) -> Anchor | None:
    """Return the anchor of an expression, if it has one."""
    if isinstance(expression, Anchor):
        return expression
    if isinstance(expression, Node):
        for arg in expression.args:
            found = anchor_of(arg)
            if found is not None:
                return found
    return None


def refs_of(expression: Expression) -> list[Ref]:
    """Return the refs that an expression reads, each once."""
    found: dict[Ref, None] = {}

    def walk(part: Expression) -> None:
        if isinstance(part, Ref):
            found.setdefault(part)
        elif isinstance(part, Node):
            for arg in part.args:
                walk(arg)

    walk(expression)
    return list(found)


def size_of(expression: Expression) -> int:
    """Return the number of operations of an expression."""
    return 1 + sum(map(size_of, expression.args)) if isinstance(expression, Node) else 0


@dataclass
class Flattened:
    """An expression as a program."""

    body: Body
    operands: tuple[Ref, ...]
    anchor: Anchor | None = None
    instructions: list[Instruction] = field(default_factory=list)


def flatten(expression: Expression, shape: tuple[int, ...]) -> Flattened:
    """Return an expression as a body, and its operands expanded to a shape.

    Operand 0 is the anchor, where there is one.
    """
    anchor = anchor_of(expression)
    operands = list(dict.fromkeys(ref.expanded(shape) for ref in refs_of(expression)))
    first = 1 if anchor is not None else 0
    count = first + len(operands)
    instructions: list[Instruction] = []
    known: dict[Instruction, int] = {}

    def emit(part: Expression) -> Argument:
        if isinstance(part, Anchor):
            return 0
        if isinstance(part, Ref):
            return first + operands.index(part.expanded(shape))
        if isinstance(part, Node):
            instruction = Instruction(part.op, tuple(map(emit, part.args)))
            if instruction not in known:
                known[instruction] = count + len(instructions)
                instructions.append(instruction)
            return known[instruction]
        return float(part)

    result = emit(expression)
    if isinstance(result, float):
        raise ValueError("an expression is no number")
    if result != count + len(instructions) - 1 and (instructions or count != 1):
        instructions.append(Instruction("add", (result, 0.0)))
    return Flattened(Body(count, tuple(instructions)), tuple(operands), anchor)

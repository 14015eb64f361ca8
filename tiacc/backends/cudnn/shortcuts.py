"""A 1×1 convolution whose result is only added to another's is computed with that one, as one sum.

before: ``a = conv1x1(x, wa, stride=2) + bias``, ``b = relu(conv1x1(h, wb) + a)``
after:  ``b = relu(conv1x1(h, wb) + conv1x1(x, wa, stride=2) + bias)``

That is what a residual block does whose shortcut changes the channels. The result of the shortcut, as large as that of the block, is
neither written nor read, and is not rounded between.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from tiacc.backends.cudnn.body import Argument, Body, Instruction
from tiacc.backends.cudnn.layouts import is_rows
from tiacc.backends.cudnn.program import Addend, Buffer, ConvStep, Program, Ref, Step


def join_shortcuts(program: Program) -> None:
    """Join the convolutions of a program that can be, in place."""
    reads = Counter(buffer for step in program.steps for buffer in {ref.buffer for ref in step.refs()})
    reads.update({ref.buffer for ref, _ in program.outputs})
    written: dict[Buffer, ConvStep] = {}
    kept: dict[int, Step] = {id(step): step for step in program.steps}
    for step in program.steps:
        if not isinstance(step, ConvStep):
            continue
        for place, operand in enumerate(step.operands):
            shortcut = written.get(operand.buffer)
            if shortcut is None or not _is_same(shortcut.out, operand) or reads[operand.buffer] != 2:
                continue
            both = _joined(shortcut, step, place)
            if both is not None:
                del kept[id(shortcut)]
                kept[id(step)] = both
                break
        else:
            written[step.out.buffer] = step
    program.steps = list(kept.values())


def _joined(shortcut: ConvStep, step: ConvStep, place: int) -> ConvStep | None:
    """Return a step that does what two do, of which the second adds the result of the first, its operand `place`; None where none can."""
    if not (_is_addend(shortcut) and _is_addend(step)) or shortcut.x.dtype != step.x.dtype or shortcut.tf32 != step.tf32:
        return None
    if not _are_added(shortcut.body, (0,)) or not _are_added(step.body, (0, place + 1)):
        return None
    main, other = (step, shortcut) if step.is_point and is_rows(step.x) else (shortcut, step)
    if not (main.is_point and is_rows(main.x)):
        return None
    operands = (*step.operands[:place], *step.operands[place + 1 :], *shortcut.operands)
    return dataclasses.replace(
        main,
        out=step.out,
        body=_body_of_both(shortcut.body, step.body, place),
        operands=operands,
        addend=Addend(other.x, other.weight, other.stride),
    )


def _is_same(one: Ref, other: Ref) -> bool:
    are_as_far = all(size == 1 or a == b for size, a, b in zip(one.shape, one.strides, other.strides))
    return one.shape == other.shape and one.offset == other.offset and are_as_far


def _is_addend(step: ConvStep) -> bool:
    is_1x1 = not step.transposed and tuple(step.weight.shape[2:]) == (1, 1) and step.padding == (0, 0) and step.groups == 1
    return is_1x1 and step.addend is None


def _are_added(body: Body, values: Sequence[int]) -> bool:
    """Return whether some operands are read only to be added up, to each other and to what else there is.

    Of one operand, the whole body must be that sum; of several, what they have become one in may be read in any way.
    """
    waiting = set(values)
    is_whole = len(waiting) == 1
    uses = Counter(arg for instruction in body.instructions for arg in instruction.args if isinstance(arg, int))
    for index, instruction in enumerate(body.instructions):
        taken = [arg for arg in instruction.args if isinstance(arg, int) and arg in waiting]
        if not taken:
            continue
        if instruction.op != "add" or any(uses[arg] != 1 for arg in taken):
            return False
        waiting.difference_update(taken)
        waiting.add(body.operands + index)
        if len(waiting) == 1 and not is_whole:
            return True
    return waiting == {body.result}


def _body_of_both(first: Body, second: Body, place: int) -> Body:
    """Return the body of a sum: operand 0 is the sum of both products, then come the operands of the second, then those of the first.

    What the first adds to its product is computed by its own body, with 0 for the product.
    """
    kept = second.operands - 1
    operands = kept + first.operands - 1
    instructions: list[Instruction] = []

    def write(body: Body, values: list[Argument]) -> Argument:
        for instruction in body.instructions:
            args = tuple(values[arg] if isinstance(arg, int) else arg for arg in instruction.args)
            instructions.append(Instruction(instruction.op, args))
            values.append(operands + len(instructions) - 1)
        return values[body.result]

    rest = write(first, [0.0, *range(kept, operands)])
    own = list(range(kept))
    write(second, [*own[: place + 1], rest, *own[place + 1 :]])
    return Body(operands, tuple(instructions))

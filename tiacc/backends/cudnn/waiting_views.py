"""Views of values that are not computed yet: the step behind them writes where the view wants it, and the work goes on waiting.

A linear layer whose result is turned, scaled and added to a shortcut is one step in this way, although the scale and the shortcut are
those of the turned result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tiacc.backends.cudnn.body import Body
from tiacc.backends.cudnn.lazy import Anchor, Expression, Lazy, Node
from tiacc.backends.cudnn.program import Ref, Step

View = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Turn:
    """A view that can be taken back.

    Attributes:
        shape: What it gives.
        forth: The view.
        back: Gives what it was.
    """

    shape: tuple[int, ...]
    forth: View
    back: View


def turn_of(view: View, shape: tuple[int, ...]) -> Turn:
    """Return a view that puts the dimensions of a shape in another order."""
    places = [1000003 * (dim + 1) for dim in range(len(shape))]
    turned = view(torch.empty_strided(shape, places, device="meta"))
    order = [places.index(stride) for stride in turned.stride()]
    return permutation(order, shape)


def permutation(order: Sequence[int], shape: tuple[int, ...]) -> Turn:
    """Return the view that puts dimensions in an order."""
    inverse = [order.index(dim) for dim in range(len(order))]
    return Turn(tuple(shape[dim] for dim in order), lambda tensor: tensor.permute(list(order)), lambda tensor: tensor.permute(inverse))


def reshape(before: tuple[int, ...], after: tuple[int, ...]) -> Turn:
    """Return the view of a shape as another; it raises RuntimeError where it would have to copy."""
    return Turn(after, lambda tensor: tensor.view(after), lambda tensor: tensor.view(before))


def viewed(value: Lazy, turn: Turn) -> Lazy | None:
    """Return a view of a value that waits for an anchor; None where something it is computed from has no such view."""

    def of(part: Expression) -> Expression:
        if isinstance(part, Ref):
            return _view(part.expanded(value.shape), turn.forth)
        if isinstance(part, Node):
            return Node(part.op, tuple(map(of, part.args)))
        return _turned(part, turn) if isinstance(part, Anchor) else part

    try:
        return Lazy(of(value.expression), turn.shape, value.dtype, value.uses)
    except RuntimeError:
        return None


def _turned(anchor: Anchor, turn: Turn) -> Anchor:
    """Return an anchor whose result is a view of another's."""

    def emit(out: Ref, body: Body, operands: tuple[Ref, ...]) -> Step:
        return anchor.emit(_view(out, turn.back), body, tuple(_view(ref, turn.back) for ref in operands))

    def takes(ref: Ref) -> bool:
        return _may(ref, turn.back, anchor.takes)

    def fits(ref: Ref) -> bool:
        return _may(ref, turn.back, anchor.fits)

    inner = anchor.strides

    def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
        assert inner is not None
        laid_out = torch.empty_strided(anchor.shape, inner(anchor.shape), device="meta")
        return tuple(turn.forth(laid_out).stride())

    return Anchor(turn.shape, emit, takes, strides if inner is not None else None, fits)


def _view(ref: Ref, view: View) -> Ref:
    return ref.like(view(ref.meta()))


def _may(ref: Ref, view: View, judge: Callable[[Ref], bool]) -> bool:
    try:
        return judge(_view(ref, view))
    except RuntimeError:
        return False

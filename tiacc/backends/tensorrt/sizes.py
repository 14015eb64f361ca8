"""Numbers that are known only when the engine runs: sizes of dynamic dimensions, and arithmetic on them.

Converters compute with sizes as if all of them were numbers: ``(height + 2 * pad) // stride + 1`` is an `int` when `height`
is one and a `Scalar` when it is not. A `Scalar` adds its layers when its tensor is first asked for, so that one which is never
needed, because a reshape can take the dimension over as it is, costs nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from tiacc.backends.tensorrt.layers import Tensor

if TYPE_CHECKING:
    from tiacc.backends.tensorrt.shaping import Shaping


class Scalar:
    """A number in the engine: a tensor of shape ``(1,)``, int64 for sizes, float32 or bool for what is computed from them.

    Args:
        net: The network.
        make: Adds its layers and returns the tensor.
        dtype: The type of the tensor.
        key: An expression; scalars of one expression are one number. None when it has none.
    """

    def __init__(
        self, net: Shaping, make: Callable[[], Tensor], dtype: torch.dtype = torch.int64, key: str | None = None
    ) -> None:
        self.net = net
        self.dtype = dtype
        self.key = key
        self._make = make
        self._tensor: Tensor | None = None

    @property
    def tensor(self) -> Tensor:
        """The tensor of shape ``(1,)``; its layers are added on the first use."""
        if self._tensor is None:
            known = self.net.scalars_by_key
            if self.key is None:
                self._tensor = self._make()
            else:
                if self.key not in known:
                    known[self.key] = self._make()
                self._tensor = known[self.key]
        return self._tensor

    def __add__(self, other: Size) -> Any:
        return self if isinstance(other, int) and other == 0 else self.net.compute(operator.add, self, other)

    def __radd__(self, other: int) -> Any:
        return self if other == 0 else self.net.compute(operator.add, other, self)

    def __sub__(self, other: Size) -> Any:
        return self if isinstance(other, int) and other == 0 else self.net.compute(operator.sub, self, other)

    def __rsub__(self, other: int) -> Any:
        return self.net.compute(operator.sub, other, self)

    def __mul__(self, other: Size) -> Any:
        return self if isinstance(other, int) and other == 1 else self.net.compute(operator.mul, self, other)

    def __rmul__(self, other: int) -> Any:
        return self if other == 1 else self.net.compute(operator.mul, other, self)

    def __floordiv__(self, other: Size) -> Any:
        return self if isinstance(other, int) and other == 1 else self.net.compute(operator.floordiv, self, other)

    def __rfloordiv__(self, other: int) -> Any:
        return self.net.compute(operator.floordiv, other, self)

    def __mod__(self, other: Size) -> Any:
        return self.net.compute(operator.mod, self, other)

    def __neg__(self) -> Any:
        return self.net.compute(operator.neg, self)


Size: TypeAlias = "int | Scalar"
"""A number of elements, known now or when the engine runs."""

Number: TypeAlias = "int | float | bool | Scalar"


def is_static(sizes: Sequence[Any]) -> bool:
    """Return whether all of `sizes` are known now."""
    return not any(isinstance(size, Scalar) for size in sizes)


def is_same(first: Size, second: Size) -> bool:
    """Return whether two sizes are known to be equal."""
    if isinstance(first, Scalar) and isinstance(second, Scalar):
        return first is second or (first.key is not None and first.key == second.key)
    return not isinstance(first, Scalar) and not isinstance(second, Scalar) and first == second


def largest(first: Size, second: Size) -> Size:
    """Return the larger of two sizes."""
    net = first.net if isinstance(first, Scalar) else second.net if isinstance(second, Scalar) else None
    if net is None:
        return max(first, second)  # type: ignore[type-var]
    return net.compute(torch.sym_max, first, second)  # type: ignore[no-any-return]


def smallest(first: Size, second: Size) -> Size:
    """Return the smaller of two sizes."""
    net = first.net if isinstance(first, Scalar) else second.net if isinstance(second, Scalar) else None
    if net is None:
        return min(first, second)  # type: ignore[type-var]
    return net.compute(torch.sym_min, first, second)  # type: ignore[no-any-return]


def product(sizes: Sequence[Size]) -> Size:
    """Return the number of elements of a shape."""
    total: Size = 1
    for size in sizes:
        total = size * total if isinstance(size, Scalar) else total * size
    return total

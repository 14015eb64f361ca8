"""The types of values: dimensions that vary, tensors, ranges of shapes.

They stand apart from `tiacc.graph.specs`, which re-exports them, because they need nothing but torch: what a user calls before
a graph exists (`tiacc.shapes`) and what runs when it is gone (`tiacc.runtime`) load them without the machinery of fake tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch


@dataclass(frozen=True)
class Dim:
    """A dimension whose size varies between calls.

    Attributes:
        name: What tells it from others; the same name is the same size.
        min: The smallest size, in elements.
        opt: The size to be fastest at, in elements.
        max: The largest size, in elements.
    """

    name: str
    min: int
    opt: int
    max: int

    def __str__(self) -> str:
        return f"{self.name}={self.min}..{self.max}"


Shape: TypeAlias = tuple[int | Dim, ...]


@dataclass(frozen=True)
class TensorSpec:
    """The type of a tensor.

    Attributes:
        shape: Sizes in elements; a `Dim` where the size varies.
        dtype: The element type.
        device: Where it lives.
    """

    shape: Shape
    dtype: torch.dtype
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - devices are immutable

    @property
    def is_dynamic(self) -> bool:
        """Whether a dimension varies."""
        return any(isinstance(size, Dim) for size in self.shape)

    def sizes(self, which: str = "opt") -> tuple[int, ...]:
        """Return the shape in numbers.

        Args:
            which: ``"min"``, ``"opt"`` or ``"max"``.
        """
        return tuple(getattr(size, which) if isinstance(size, Dim) else size for size in self.shape)

    def admits(self, shape: Sequence[int]) -> bool:
        """Return whether a tensor of `shape` fits."""
        return len(shape) == len(self.shape) and all(
            want.min <= size <= want.max if isinstance(want, Dim) else size == want for want, size in zip(self.shape, shape)
        )

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Profile:
    """A range of shapes, one shape per input, in elements."""

    min: tuple[tuple[int, ...], ...]
    opt: tuple[tuple[int, ...], ...]
    max: tuple[tuple[int, ...], ...]

    @property
    def is_static(self) -> bool:
        """Whether it is a single set of shapes."""
        return self.min == self.max

    def admits(self, shapes: Sequence[Sequence[int]]) -> bool:
        """Return whether inputs of these shapes fit."""
        return all(
            len(shape) == len(low) and all(a <= size <= b for a, size, b in zip(low, shape, high))
            for shape, low, high in zip(shapes, self.min, self.max, strict=True)
        )

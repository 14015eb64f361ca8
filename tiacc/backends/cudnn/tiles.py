"""How convolutions that are sums of matrix products are cut into tiles, and which tiles are worth trying."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tiacc.backends.cudnn.body import has_cudnn_form
from tiacc.backends.cudnn.layouts import is_rows, operand_kind
from tiacc.backends.cudnn.program import ConvStep

NARROW = 16
"""Pixels of at most so many channels are read a row of the kernel at a time."""

MULTIPROCESSORS = 132
"""About how many programs run at a time, one a multiprocessor; an H100 or H200 has so many."""

FEW_PROGRAMS = 4 * MULTIPROCESSORS
"""Of so many programs at most it pays to ask for the weight ahead: more are not set up before the kernel before them ends."""


@dataclass(frozen=True)
class Tile:
    """How a sum of products is cut.

    Attributes:
        high: The pixels of a tile.
        wide: Its output channels.
        deep: The input channels that are read at a time.
        warps: The warps of a program.
        stages: How many reads are under way at a time.
        early: Whether operands of the size of the result are read before the sum, so that the memory has time.
        split: Into how many parts, each a program of its own, the sum is split.
    """

    high: int
    wide: int
    deep: int
    warps: int
    stages: int
    early: bool = False
    split: int = 1

    NUMBERS: ClassVar[int] = 7

    @classmethod
    def parse(cls, numbers: Sequence[int]) -> Tile:
        """Return the tile that `__str__` wrote, as numbers."""
        high, wide, deep, warps, stages, early, split = numbers
        return cls(high, wide, deep, warps, stages, bool(early), split)

    def __str__(self) -> str:
        return f"{self.high},{self.wide},{self.deep},{self.warps},{self.stages},{int(self.early)},{self.split}"


@dataclass(frozen=True)
class Shape:
    """A convolution as matrix products: ``pixels`` by ``deep`` times ``deep`` by ``wide``, for each tap, `kinds` times.

    Of one that another is added to, ``pixels`` by ``deeper`` times ``deeper`` by ``wide`` comes to that.
    """

    pixels: int
    wide: int
    deep: int
    kinds: int
    taps: tuple[int, int]
    image: int
    width: int
    is_point: bool
    is_narrow: bool = False
    deeper: int = 0

    @classmethod
    def of(cls, step: ConvStep) -> Shape:
        """Return the products of a convolution.

        Where pixels have few channels, as those of the first layer, one row of the kernel is taken for one tap, and the channels of
        its pixels, which are next to each other in memory, for the channels of that.
        """
        images, outputs, height, width = step.out.shape
        inputs, (rows, columns) = step.x.shape[1], step.weight.shape[2:]
        if step.transposed:
            sh, sw = step.stride
            image = (height // sh) * (width // sw)
            return cls(images * image, outputs, inputs, sh * sw, (rows // sh, columns // sw), image, width // sw, False)
        deep, wide = inputs // step.groups, outputs // step.groups
        is_point = step.is_point and is_rows(step.x)
        is_narrow = inputs <= NARROW and columns > 1 and columns * inputs <= 128 and step.groups == 1 and step.dilation == (1, 1)
        if is_narrow and step.x.strides[3] == inputs:
            return cls(images * height * width, wide, columns * inputs, 1, (rows, 1), height * width, width, False, True)
        deeper = 0 if step.addend is None else step.addend.x.shape[1]
        return cls(images * height * width, wide, deep, step.groups, (rows, columns), height * width, width, is_point, deeper=deeper)

    def rounds(self, tile: Tile) -> tuple[int, int]:
        """Return how many blocks of input channels are read: those of the convolution at one tap, and those of the other one."""
        return -(-self.deep // tile.deep), -(-self.deeper // tile.deep)


def scratch_of(step: ConvStep, tile: Tile) -> tuple[int, int]:
    """Return how many float32 numbers and how many counters a split sum needs."""
    count = math.prod(grid_of(step, tile)[:2])
    return count * tile.split * tile.high * tile.wide, count


def grid_of(step: ConvStep, tile: Tile) -> tuple[int, int, int]:
    """Return how many programs run in each dimension of the grid."""
    shape = Shape.of(step)
    return (-(-shape.pixels // tile.high) * -(-shape.wide // tile.wide), shape.kinds, tile.split)


def candidates(step: ConvStep) -> list[Tile]:
    """Return the tiles worth trying for a convolution; none where cuDNN is known to be faster.

    Few pixels leave most of the GPU idle: small tiles, and sums in parts. Many leave it waiting for memory: large tiles, and operands
    that are asked for before the sum. A large convolution of several taps is arithmetic, at which cuDNN is better.
    """
    shape = Shape.of(step)
    if shape.is_narrow:
        deep = max(16, 1 << (shape.deep - 1).bit_length())
        wide = 32 if shape.wide <= 32 else 64
        kinds = ((64, 4, 3), (64, 4, 4), (128, 4, 3), (128, 4, 4), (128, 8, 3), (256, 8, 2))
        return [Tile(high, wide, deep, warps, stages) for high, warps, stages in kinds]
    taps = shape.taps[0] * shape.taps[1]
    steps = taps * -(-shape.deep // 64) + -(-shape.deeper // 64)
    is_large = shape.wide > 64 and -(-shape.pixels // 128) * -(-shape.wide // 128) >= MULTIPROCESSORS
    if is_large and taps > 1 and step.groups == 1 and not step.transposed and has_cudnn_form(step.body):
        return []
    has_full = any(operand_kind(ref) == "full" for ref in step.operands)
    found: list[Tile] = []
    fitting = max(16, 1 << (shape.deep - 1).bit_length())
    for high, wide, deep, warps, stages in _TILES_FP32 if step.x.dtype.itemsize == 4 else _TILES:
        if high > max(16, 2 * shape.pixels) or wide > max(16, 2 * shape.wide):
            continue
        count = -(-shape.pixels // high) * -(-shape.wide // wide) * shape.kinds
        most = 4 if high * wide < 64 * 64 else 16
        if high * wide <= 64 * 64 and wide < shape.wide and count > most * MULTIPROCESSORS:
            continue
        tile = Tile(high, wide, min(deep, fitting), warps, stages)
        own, other = shape.rounds(tile)
        tile = dataclasses.replace(tile, stages=min(stages, max(2, taps * own + other)))  # no more are under way than there are
        is_filling = count * 2 >= MULTIPROCESSORS
        if is_filling or (high * wide <= 64 * 64 and (steps < 4 or (high, wide) == (32, 32))):
            found.append(tile)
            if has_full and steps <= 8 and count >= MULTIPROCESSORS:
                found.append(dataclasses.replace(tile, early=True))
        # the more a program adds up, the larger is the tile whose parts are worth adding
        if high * wide <= (128 * 128 if steps >= 64 else 64 * 128):
            found += [
                dataclasses.replace(tile, split=split)
                for split in (2, 4, 8, 16)
                if MULTIPROCESSORS // 2 <= count * split <= 2 * MULTIPROCESSORS and steps >= 2 * split
            ]
    return list(dict.fromkeys(found)) or [Tile(*_TILES[0])]


_TILES: Sequence[tuple[int, int, int, int, int]] = (
    (16, 64, 128, 4, 4),
    (32, 32, 128, 4, 4),
    (64, 16, 64, 4, 4),
    (128, 16, 64, 4, 3),
    (64, 32, 64, 4, 4),
    (64, 32, 128, 4, 3),
    (64, 64, 64, 4, 4),
    (64, 64, 128, 4, 3),
    (64, 128, 64, 4, 3),
    (128, 64, 64, 4, 3),
    (128, 128, 64, 8, 3),
    (64, 256, 64, 8, 3),
    (128, 256, 64, 8, 3),
)
_TILES_FP32: Sequence[tuple[int, int, int, int, int]] = (
    (16, 64, 64, 4, 3),
    (32, 64, 32, 4, 4),
    (64, 64, 32, 4, 3),
    (64, 128, 32, 4, 3),
    (128, 64, 32, 4, 3),
    (128, 128, 32, 8, 3),
)

"""Layouts: the strides of dense tensors, and what a kernel can make of those that a tensor has."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import torch

from tiacc.backends.cudnn.program import CONSTANT, Ref

FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32})
"""The types that kernels compute with, in float32."""


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a dense tensor in row-major order."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def channels_last_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a dense ``(N, C, H, W)`` tensor whose channels are next to each other."""
    _, channels, height, width = shape
    return (height * width * channels, 1, width * channels, channels)


def dense_strides(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return the strides of a tensor, or of a dense one of the same order of dimensions."""
    return permuted_strides(tuple(tensor.shape), tuple(tensor.stride()))


def permuted_strides(shape: tuple[int, ...], like: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a dense tensor whose dimensions are in the order of some strides."""
    order = sorted(range(len(shape)), key=lambda dim: (-like[dim], dim))
    strides = [0] * len(shape)
    step = 1
    for dim in reversed(order):
        strides[dim] = step
        step *= max(shape[dim], 1)
    return tuple(strides)


def strides_like(operands: Sequence[Ref], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return dense strides in the order of the first operand that is not broadcast; row-major where there is none."""
    for ref in operands:
        if ref.buffer.kind != CONSTANT and all(size == 1 or stride for size, stride in zip(shape, ref.strides)):
            return permuted_strides(shape, tuple(0 if size == 1 else stride for size, stride in zip(shape, ref.strides)))
    return contiguous_strides(shape)


def operand_kind(ref: Ref) -> str | None:
    """Return how an operand, expanded to ``(N, C, H, W)``, is read beside the result of a convolution; None if it is not.

    ``"scalar"``: one number. ``"channel"``: one for each channel. ``"image"``: one for each image and channel. ``"full"``: one for each
    element, with channels next to each other and rows one after the other.
    """
    images, channels, height, width = ref.shape
    strides = tuple(0 if size == 1 else stride for size, stride in zip(ref.shape, ref.strides))
    n, c, h, w = strides
    if c not in (0, 1) or ref.dtype not in FLOATS | {torch.bool}:
        return None
    if not n and not h and not w:
        return "channel" if c else "scalar"
    if channels > 1 and c != 1:
        return None
    if not h and not w:
        return "image"
    pixel = w if width > 1 else h if height > 1 else n
    is_dense = (height == 1 or h == pixel * width) and (images == 1 or n == pixel * width * height)
    return "full" if pixel >= channels and is_dense else None


def is_matrix(ref: Ref) -> bool:
    """Return whether a tensor ``(…, K)`` is a matrix whose rows are equally far apart, or broadcast to one."""
    strides = [0 if size == 1 else stride for size, stride in zip(ref.shape, ref.strides)]
    if ref.shape[-1] > 1 and strides[-1] not in (0, 1):
        return False
    leading = [(size, stride) for size, stride in zip(ref.shape[:-1], strides[:-1]) if size > 1]
    if all(not stride for _, stride in leading):
        return True
    return strides[-1] == 1 and all(outer[1] == inner[1] * inner[0] for outer, inner in itertools.pairwise(leading))


def as_image(ref: Ref) -> Ref:
    """Return a tensor ``(…, K)`` as an image ``(1, K, rows, 1)``."""
    rows = math.prod(ref.shape[:-1])
    strides = [stride for size, stride in zip(ref.shape[:-1], ref.strides[:-1]) if size > 1]
    row = strides[-1] if strides else ref.shape[-1]
    return Ref(ref.buffer, (1, ref.shape[-1], rows, 1), (row * rows, ref.strides[-1] if ref.shape[-1] > 1 else 1, row, row), ref.offset)


def is_aligned(ref: Ref, dims: Iterable[int]) -> bool:
    """Return whether a tensor begins at a multiple of 16 bytes, and its neighbours in some dimensions are multiples of that apart."""
    vector = 16 // ref.dtype.itemsize
    return ref.offset % vector == 0 and all(ref.strides[dim] % vector == 0 for dim in dims if ref.shape[dim] > 1)


def is_rows(ref: Ref) -> bool:
    """Return whether the pixels of an image are equally far apart, from the first of the first image to the last of the last."""
    images, _, height, width = ref.shape
    n, _, h, w = ref.strides
    pixel = row_of(ref)
    return (width == 1 or w == pixel) and (height == 1 or h == pixel * width) and (images == 1 or n == pixel * width * height)


def row_of(ref: Ref) -> int:
    """Return how far apart neighbouring pixels are, in elements."""
    images, channels, height, width = ref.shape
    return ref.strides[3] if width > 1 else ref.strides[2] if height > 1 else ref.strides[0] if images > 1 else channels

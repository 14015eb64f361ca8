"""The way in and out of a program: one kernel a tensor, which reads or writes the caller's memory, converts and lays out.

These launches are not in the CUDA graph, since the caller's tensors are elsewhere each time; so they are made as short as they can be.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from tiacc.backends.cudnn import folding, kernels
from tiacc.backends.cudnn.body import COPY
from tiacc.backends.cudnn.layouts import FLOATS, channels_last_strides, contiguous_strides
from tiacc.backends.cudnn.program import Buffer, Entry, PointwiseStep, Ref

ALIGNMENT = 16
"""Kernels are compiled for memory that begins at a multiple of so many bytes, as torch's does unless it is a part of a tensor."""

TILE = 32
"""The pixels and channels of a tile that is turned round."""


class Launch:
    """A kernel with a grid that does not change, launched with little work on the host.

    Args:
        text: The kernel; its arguments are the tensors, then `constants`.
        grid: How many programs it runs.
        constants: Its compile-time constants, in order.
        warps: The warps of a program.
    """

    def __init__(self, text: str, grid: tuple[int, ...], constants: dict[str, int], warps: int) -> None:
        self._kernel = kernels.compiled(text)
        self._grid = (*grid, 1, 1)[:3]
        self._constants = constants
        self._warps = warps
        self._compiled: Any = None

    def __call__(self, stream: int, *tensors: torch.Tensor) -> None:
        """Launch it.

        Args:
            stream: The handle of the stream, which is the current one.
            tensors: Its tensors; their memory begins at a multiple of `ALIGNMENT`.
        """
        compiled = self._compiled
        if compiled is None:
            self._compiled = self._kernel[self._grid](*tensors, **self._constants, num_warps=self._warps)
            return
        # what Triton does once it has found the compiled kernel of some arguments
        numbers = self._constants.values()
        compiled.run(*self._grid, stream, compiled.function, compiled.packed_metadata, None, None, None, *tensors, *numbers)


class Border:
    """One tensor on its way in or out.

    Args:
        ref: Where it is in the program.
        place: The tensor of `ref`.
        shape: Its shape at the caller's.
        dtype: Its type at the caller's.
        fold: The squares of pixels that become one; see `folding`.
        inwards: Whether it comes in.
    """

    def __init__(self, ref: Ref, place: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, *, fold: int = 1, inwards: bool) -> None:
        self._place = place
        self._shape = shape
        self._dtype = dtype
        self._fold = fold
        self._storage = place.as_strided((max(ref.buffer.numel, 1),), (1,), place.storage_offset() - ref.offset)
        outside = Ref(Buffer("caller", math.prod(shape), dtype), shape, contiguous_strides(shape))
        is_plain = place.device.type == "cuda" and ref.dtype in FLOATS and dtype in FLOATS and math.prod(shape) > 0
        self._launch = (_inwards(ref, outside, fold) if inwards else _launch(outside, ref)) if is_plain else None

    def bring_in(self, tensor: torch.Tensor, stream: int) -> None:
        """Lay out a caller's tensor."""
        if self._launch is not None and tensor.is_contiguous() and not tensor.data_ptr() % ALIGNMENT:
            self._launch(stream, self._storage, tensor)
        elif self._fold > 1:
            self._place.copy_(folding.image(tensor, self._fold))
        else:
            self._place.copy_(tensor)

    def bring_out(self, stream: int) -> torch.Tensor:
        """Return a new tensor for the caller."""
        made = torch.empty(self._shape, dtype=self._dtype, device=self._place.device)
        if self._launch is not None:
            self._launch(stream, made, self._storage)
        else:
            made.copy_(self._place)
        return made


def entry(entry: Entry, place: torch.Tensor) -> Border:
    """Return the way in of an input."""
    return Border(entry.ref, place, entry.shape, entry.dtype, fold=entry.fold, inwards=True)


def exit(ref: Ref, dtype: torch.dtype, place: torch.Tensor) -> Border:
    """Return the way out of an output."""
    return Border(ref, place, ref.shape, dtype, inwards=False)


def _inwards(ref: Ref, outside: Ref, fold: int) -> Launch:
    if fold == 1:
        return _launch(ref, outside)
    block = 512
    return Launch(folded(ref, outside, fold), (-(-ref.numel // block),), {"BLOCK": block}, 4)


def _launch(out: Ref, source: Ref) -> Launch:
    """Return the launch of the kernel that copies, converts and lays out."""
    images = [part for part in (out, source) if len(part.shape) == 4 and part.strides == channels_last_strides(part.shape)]
    if len(images) == 1 and out.shape[1] >= TILE // 2 and math.prod(out.shape[2:]) >= TILE // 2:
        tiles = -(-out.shape[1] // TILE) * -(-math.prod(out.shape[2:]) // TILE)
        return Launch(turned(out, source), (tiles, out.shape[0]), {"TILE": TILE}, 4)
    block = 1024 if out.numel >= 2**19 else 256
    step = PointwiseStep(out, (source,), COPY)
    return Launch(kernels.pointwise(step), (-(-out.numel // block),), {"BLOCK": block}, 4)


def turned(out: Ref, source: Ref) -> str:
    """Return the kernel that copies between an image and one whose channels are next to each other, a tile at a time.

    Its arguments are `out`, the source, and ``TILE``.
    """
    _, channels, height, width = out.shape
    number = "tl.program_id(1).to(tl.int64)"

    def place(ref: Ref) -> str:
        pixel, channel = (ref.strides[3], 1) if ref.strides[1] == 1 else (1, ref.strides[1])
        return f"{number} * {ref.strides[0]} + {ref.offset} + pixel[:, None] * {pixel} + channel[None, :] * {channel}"

    return kernels.text(
        ("out", "source", "TILE: tl.constexpr"),
        [
            f"columns = tl.cdiv({channels}, TILE)",
            "pixel = (tl.program_id(0) // columns) * TILE + tl.arange(0, TILE)",
            "channel = (tl.program_id(0) % columns) * TILE + tl.arange(0, TILE)",
            f"mask = (pixel < {height * width})[:, None] & (channel < {channels})[None, :]",
            f"value = tl.load(source + {place(source)}, mask=mask)",
            f"tl.store(out + {place(out)}, value.to(out.dtype.element_ty), mask=mask)",
        ],
    )


def folded(ref: Ref, outside: Ref, fold: int) -> str:
    """Return the kernel that folds an image; its arguments are `out`, the image and ``BLOCK``."""
    _, wide, height, width = ref.shape
    channels = outside.shape[1]
    n, c, h, w = outside.strides
    number = "tl.program_id(0).to(tl.int64)" if kernels.is_wide((ref, outside)) else "tl.program_id(0)"
    return kernels.text(
        ("out", "source", "BLOCK: tl.constexpr"),
        [
            f"index = {number} * BLOCK + tl.arange(0, BLOCK)",
            f"mask = index < {ref.numel}",
            f"part = index % {wide}",
            f"pixel = index // {wide}",
            f"column = pixel % {width}",
            f"row = (pixel // {width}) % {height}",
            f"image = pixel // {width * height}",
            f"down = part // {fold * channels}",
            f"right = (part // {channels}) % {fold}",
            f"place = image * {n} + (part % {channels}) * {c} + (row * {fold} + down) * {h} + (column * {fold} + right) * {w}",
            f"value = tl.load(source + place, mask=mask & (part < {fold * fold * channels}), other=0.0)",
            f"tl.store(out + {ref.offset} + index, value.to(out.dtype.element_ty), mask=mask)",
        ],
    )

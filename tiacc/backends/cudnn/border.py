"""The way in and out of a program: kernels that read or write the caller's memory, convert and lay out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tiacc.backends.cudnn import folding, kernels
from tiacc.backends.cudnn.binaries import Binaries
from tiacc.backends.cudnn.body import COPY
from tiacc.backends.cudnn.layouts import FLOATS, channels_last_strides, contiguous_strides
from tiacc.backends.cudnn.program import Buffer, Entry, PointwiseStep, Ref
from tiacc.backends.cudnn.triton_call import ALIGNMENT, TritonCall

TILE = 32
"""The pixels and channels of a tile that is turned round."""

WARPS = 4
"""The warps of a program."""


MOST_TOGETHER = 8
"""How many tensors one kernel brings out at most."""


@dataclass(frozen=True)
class Copy:
    """A kernel that copies one tensor.

    Attributes:
        text: The kernel; its arguments are `out`, the source, then `constants`.
        grid: How many programs it runs, in two dimensions.
        constants: Its compile-time constants, in order.
    """

    text: str
    grid: tuple[int, int]
    constants: dict[str, int]


class Launch:
    """Some copies in one launch; not for two threads at once.

    Args:
        copies: The copies.
        types: Those of the tensors: of `out` and of the source of each.
        binaries: Where the kernel is found compiled; None if Triton launches it.

    Attributes:
        call: The launch, without its tensors.
    """

    def __init__(self, copies: Sequence[Copy], types: Sequence[torch.dtype], binaries: Binaries | None) -> None:
        calls = [
            TritonCall(copy.text, copy.grid, list(types[2 * index : 2 * index + 2]), copy.constants, WARPS, 2, binaries=binaries)
            for index, copy in enumerate(copies)
        ]
        self.call = calls[0] if len(calls) == 1 else calls[0].beside(calls[1:])
        self._is_by_triton = binaries is None

    def __call__(self, stream: int, *tensors: torch.Tensor) -> None:
        """Launch it.

        Args:
            stream: The handle of the stream, which is the current one.
            tensors: `out` and the source of each copy; their memory begins at a multiple of `ALIGNMENT`.
        """
        if self._is_by_triton:
            self.call.launch_by_triton(tensors)
            return
        loaded = self.call.loaded()
        for index, tensor in enumerate(tensors):
            loaded.arguments[index] = tensor.data_ptr()
        loaded.launch(stream)


class Entrance:
    """The way in of one tensor.

    Args:
        entry: Where it is in the program, and how it comes in.
        place: The tensor of that.
        binaries: Where kernels are found compiled; None if Triton launches them.

    Attributes:
        launch: The kernel, for a tensor that is as most are; None where there is none.
    """

    def __init__(self, entry: Entry, place: torch.Tensor, binaries: Binaries | None) -> None:
        self._place = place
        self._fold = entry.fold
        self._storage = _storage(entry.ref, place)
        outside = _outside(entry.shape, entry.dtype)
        self.launch: Launch | None = None
        if _is_plain(entry.ref, outside, place):
            self.launch = Launch([_inwards(entry.ref, outside, entry.fold)], [entry.ref.dtype, entry.dtype], binaries)

    def bring_in(self, tensor: torch.Tensor, stream: int) -> None:
        """Lay out a caller's tensor."""
        if self.launch is not None and tensor.is_contiguous() and not tensor.data_ptr() % ALIGNMENT:
            self.launch(stream, self._storage, tensor)
        else:
            tensor = tensor.detach()
            self._place.copy_(folding.image(tensor, self._fold) if self._fold > 1 else tensor)


class Exits:
    """The way out of some tensors.

    Args:
        outputs: Where each is in the program, and its type at the caller's.
        places: The tensor of each.
        binaries: Where kernels are found compiled; None if Triton launches them.

    Attributes:
        launches: The kernels, and of each the index and the storage of the outputs that it writes, in the order of its arguments.
        size_bytes: The size of all outputs at the caller's.
    """

    def __init__(self, outputs: Sequence[tuple[Ref, torch.dtype]], places: Sequence[torch.Tensor], binaries: Binaries | None) -> None:
        self._made = [(ref.shape, contiguous_strides(ref.shape), dtype, place.device) for (ref, dtype), place in zip(outputs, places)]
        outsides = [_outside(ref.shape, dtype) for ref, dtype in outputs]
        self.size_bytes = sum(outside.buffer.size_bytes for outside in outsides)
        plain = [index for index, (ref, _) in enumerate(outputs) if _is_plain(ref, outsides[index], places[index])]
        self._others = [(index, place) for index, place in enumerate(places) if index not in plain]
        self.launches: list[tuple[Launch, list[tuple[int, torch.Tensor]]]] = []
        for begin in range(0, len(plain), MOST_TOGETHER):
            some = plain[begin : begin + MOST_TOGETHER]
            pairs = [(outsides[index], outputs[index][0]) for index in some]
            launch = Launch([_copy(*pair) for pair in pairs], [ref.dtype for pair in pairs for ref in pair], binaries)
            self.launches.append((launch, [(index, _storage(outputs[index][0], places[index])) for index in some]))

    def make(self) -> list[torch.Tensor]:
        """Return new tensors for the caller."""
        # `torch.empty`, which finds the strides itself, takes half as long again.
        return [torch.empty_strided(shape, strides, dtype=dtype, device=device) for shape, strides, dtype, device in self._made]

    def launch(self, made: Sequence[torch.Tensor], stream: int) -> None:
        """Launch the kernels, which write into tensors that `make` made."""
        for launch, sources in self.launches:
            launch(stream, *(tensor for index, storage in sources for tensor in (made[index], storage)))

    def copy(self, made: Sequence[torch.Tensor]) -> None:
        """Write what no kernel does, by torch."""
        for index, place in self._others:
            made[index].copy_(place)


def _outside(shape: tuple[int, ...], dtype: torch.dtype) -> Ref:
    return Ref(Buffer("caller", math.prod(shape), dtype), shape, contiguous_strides(shape))


def _storage(ref: Ref, place: torch.Tensor) -> torch.Tensor:
    """Return the tensor of the whole buffer of a ref: kernels add its offset themselves."""
    return place.as_strided((max(ref.buffer.numel, 1),), (1,), place.storage_offset() - ref.offset)


def _is_plain(ref: Ref, outside: Ref, place: torch.Tensor) -> bool:
    return place.device.type == "cuda" and ref.dtype in FLOATS and outside.dtype in FLOATS and outside.numel > 0


def _inwards(ref: Ref, outside: Ref, fold: int) -> Copy:
    if fold == 1:
        return _copy(ref, outside)
    block = 512
    return Copy(folded(ref, outside, fold), (-(-ref.numel // block), 1), {"BLOCK": block})


def _copy(out: Ref, source: Ref) -> Copy:
    """Return the kernel that copies, converts and lays out."""
    images = [part for part in (out, source) if len(part.shape) == 4 and part.strides == channels_last_strides(part.shape)]
    if len(images) == 1 and out.shape[1] >= TILE // 2 and math.prod(out.shape[2:]) >= TILE // 2:
        tiles = -(-out.shape[1] // TILE) * -(-math.prod(out.shape[2:]) // TILE)
        return Copy(turned(out, source), (tiles, out.shape[0]), {"TILE": TILE})
    block = 1024 if out.numel >= 2**19 else 256
    step = PointwiseStep(out, (source,), COPY)
    return Copy(kernels.pointwise(step), (-(-out.numel // block), 1), {"BLOCK": block})


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

"""The Triton kernels of convolutions that are sums of matrix products."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tiacc.backends.cudnn.body import triton_lines
from tiacc.backends.cudnn.kernels import load, text
from tiacc.backends.cudnn.layouts import operand_kind, row_of
from tiacc.backends.cudnn.program import ConvStep, Ref
from tiacc.backends.cudnn.tiles import Shape, Tile


def product(step: ConvStep, tile: Tile) -> tuple[str, list[int]]:
    """Return the kernel of a convolution as a sum of matrix products over the taps of its kernel, and the numbers that it takes.

    Its arguments are `out`, `x`, the weight, the operands, two pieces of scratch memory (`Tile.split`), the numbers, and the sizes of a
    tile. The weight is ``(groups, K/groups, R, S, C/groups)`` in memory, and that of a transposed convolution as `parity_weight` has it:
    each of its output pixels depends on those taps alone that meet an input pixel, so that it is ``stride²`` small convolutions, one for
    each kind of pixel. Tiles are taken in columns of eight, so that those that run at the same time share what they read. Where another
    convolution is added, its image comes behind the weight, and its weight behind each row of that.
    """
    shape = Shape.of(step)
    names = [f"op{place}" for place in range(len(step.operands))]
    kinds = [operand_kind(ref) for ref in step.operands]
    parameters = ["M", "N", "K", "XROW", "OROW", "IMAGE"]
    numbers = [shape.pixels, shape.wide, shape.deep, row_of(step.x), row_of(step.out), shape.image]
    for place, (ref, kind) in enumerate(zip(step.operands, kinds)):
        parameters.append(f"ROW{place}")
        numbers.append(row_of(ref) if kind == "full" else ref.strides[0] if kind == "image" else 0)
    if not shape.is_point:
        parameters += ["H", "W", "OW", "XN", "XH", "XW"]
        numbers += [*step.x.shape[2:], shape.width, step.x.strides[0], step.x.strides[2], step.x.strides[3]]
    if step.addend is not None:
        (down, right), (n, _, h, w) = step.addend.stride, step.addend.x.strides
        parameters += ["ALL", "OW", "YN", "YH", "YW"]
        numbers += [shape.deep + shape.deeper, shape.width, n, h * down, w * right]
    early = [place for place, kind in enumerate(kinds) if kind == "full" and tile.early]
    lines = [*_begin(step, shape, tile), *(f"e{place} = {_raw(place, step.operands[place])}" for place in early)]
    lines += _sum(step, shape, tile)
    finish = [f"b{place} = {_operand(place, ref, kind, place in early)}" for place, (ref, kind) in enumerate(zip(step.operands, kinds))]
    body, result = triton_lines(step.body, ["acc", *(f"b{place}" for place in range(len(names)))])
    begin = f" + {step.out.offset}" if step.out.offset else ""
    finish += [*body, f"tl.store(out{begin} + place[:, None].to(tl.int64) * OROW + channel, {result}.to(out.dtype.element_ty), mask=mask)"]
    lines += finish if tile.split == 1 else _joined(tile, finish)
    scratch = ["partial", "counters"] if tile.split > 1 else []
    names = names if step.addend is None else ["y", *names]
    sizes = [f"{size}: tl.constexpr" for size in ("BM", "BN", "BK")]
    return text(["out", "x", "weight", *names, *scratch, *parameters, *sizes], lines), numbers


def asked_ahead(step: ConvStep) -> list[str]:
    """Return statements by which the programs of a `product` ask for its weight, each for its share, while they wait for the rest.

    A weight is read once a call, so that it comes from far each time: from here on it comes into the cache that all share. Each thread
    asks for the 128 bytes of a line at a time.
    """
    shape = Shape.of(step)
    line = 128 // step.weight.dtype.itemsize
    row = "ALL" if step.addend is not None else f"K * {shape.taps[0] * shape.taps[1]}"
    return [
        f"lines = (N * {shape.kinds}) * ({row}) // {line}",
        "place_of = tl.program_id(0) + tl.num_programs(0) * (tl.program_id(1) + tl.num_programs(1) * tl.program_id(2))",
        "share = tl.cdiv(lines, tl.num_programs(0) * tl.num_programs(1) * tl.num_programs(2))",
        "for first_line in range(0, share, 128):",
        "    asked = tl.minimum(place_of * share + first_line + tl.arange(0, 128), tl.maximum(lines, 1) - 1)",
        "    tl.inline_asm_elementwise(",
        '        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",',
        f'        "=r,l", [weight + asked * {line}], dtype=tl.int32, is_pure=False, pack=1',
        "    )",
    ]


def _begin(step: ConvStep, shape: Shape, tile: Tile) -> list[str]:
    """Return the statements that find the tile, the pixels it reads and those it writes.

    Where tiles fit the sizes nothing is masked, and the reads are as wide as they can be.
    """
    lines = [
        "pid = tl.program_id(0)",
        "rows = tl.cdiv(M, BM)",
        "columns = tl.cdiv(N, BN)",
        "band = pid // (8 * columns)",
        "high = tl.minimum(rows - band * 8, 8)",
        "m0 = (band * 8 + (pid % (8 * columns)) % high) * BM",
        "n0 = ((pid % (8 * columns)) // high) * BN",
        "group = tl.program_id(1)",
        "m = m0 + tl.arange(0, BM)",
        "nn = n0 + tl.arange(0, BN)",
        "k = tl.arange(0, BK)",
        "mmask = m < M" if shape.pixels % tile.high else "mmask = m >= 0",
        "nmask = nn < N" if shape.wide % tile.wide else "nmask = nn >= 0",
        "mask = mmask[:, None] & nmask[None, :]",
        "image = m // IMAGE",
        "acc = tl.zeros((BM, BN), tl.float32)",
    ]
    count = shape.taps[0] * shape.taps[1]
    row = f"(K * {count})" if step.addend is None else "ALL"
    filters = f"nn[None, :] * {row}" if shape.kinds == 1 else f"(group * N + nn[None, :]) * {row}"
    lines.append(f"filters = weight + {filters}")
    start = f" + {step.x.offset}" if step.x.offset else ""
    if step.addend is not None:
        begin = f" + {step.addend.x.offset}" if step.addend.x.offset else ""
        inside = "((m % IMAGE) // OW) * YH + ((m % IMAGE) % OW) * YW"
        lines.append(f"others = y{begin} + (image.to(tl.int64) * YN + {inside})[:, None]")
    if shape.is_point:
        return [*lines, f"pixels = x{start} + m[:, None].to(tl.int64) * XROW", "place = m", "channel = nn[None, :]"]
    lines.append("pixel = m % IMAGE")
    if step.transposed:
        (sh, sw), (ph, pw) = step.stride, step.padding
        height, width = step.out.shape[2:]
        return [
            *lines,
            f"down = group // {sw}",
            f"right = group % {sw}",
            f"top = pixel // OW + (down + {ph}) // {sh} - {shape.taps[0] - 1}",
            f"left = pixel % OW + (right + {pw}) // {sw} - {shape.taps[1] - 1}",
            f"base = x{start} + image.to(tl.int64) * XN",
            f"place = image * {height * width} + ((pixel // OW) * {sh} + down) * {width} + (pixel % OW) * {sw} + right",
            "channel = nn[None, :]",
        ]
    shift = " + group * K" if shape.kinds > 1 else ""
    if shape.is_narrow:
        inputs = step.x.shape[1]
        return [
            *lines,
            f"top = (pixel // OW) * {step.stride[0]} - {step.padding[0]}",
            f"left = ((pixel % OW) * {step.stride[1]} - {step.padding[1]}) * {inputs}",
            f"base = x{start} + image.to(tl.int64) * XN + left",
            "place = m",
            "channel = nn[None, :]",
        ]
    return [
        *lines,
        f"top = (pixel // OW) * {step.stride[0]} - {step.padding[0]}",
        f"left = (pixel % OW) * {step.stride[1]} - {step.padding[1]}",
        f"base = x{start} + image.to(tl.int64) * XN{shift}",
        "place = m",
        "channel = (group * N + nn)[None, :]" if shape.kinds > 1 else "channel = nn[None, :]",
    ]


def _sum(step: ConvStep, shape: Shape, tile: Tile) -> list[str]:
    """Return the loop over taps and input channels, or over one part of it.

    It is one loop, whatever it runs over: Triton asks for what the next rounds read while a round is computed, and does so for the
    rounds of the innermost loop alone.
    """
    dot = f"acc = tl.dot(a, b, acc, input_precision={repr('tf32') if step.is_rounded else repr('ieee')})"
    multiply = [*_ROUNDED, dot] if step.is_rounded else [dot]
    deep = " & (kk < K)[None, :]" if shape.deep % tile.deep else ""
    filters = _masked(
        "filters + {0}[:, None]",
        "nmask[None, :]" if shape.wide % tile.wide else "",
        "(kk < K)[:, None]" if shape.deep % tile.deep else "",
    )
    count = shape.taps[0] * shape.taps[1]
    reach = "mmask[:, None]" if shape.pixels % tile.high else ""
    if step.addend is not None:
        own, _ = shape.rounds(tile)
        is_ragged = shape.deep % tile.deep or shape.deeper % tile.deep
        inner = [
            f"is_own = index < {own}",
            f"kk = tl.where(is_own, index, index - {own}) * BK + k",
            f"inside = kk < tl.where(is_own, K, {shape.deeper})",
            f"a = {_masked('tl.where(is_own, pixels, others) + kk[None, :]', reach, 'inside[None, :]' if is_ragged else '')}",
            "b = " + _masked(
                "filters + (tl.where(is_own, 0, K) + kk)[:, None]",
                "nmask[None, :]" if shape.wide % tile.wide else "",
                "inside[:, None]" if is_ragged else "",
            ),
            *multiply,
        ]
    elif shape.is_point:
        inner = [
            "kk = index * BK + k",
            f"a = {_masked('pixels + kk[None, :]', reach, deep.removeprefix(' & '))}",
            f"b = {filters.format('kk')}",
            *multiply,
        ]
    elif shape.is_narrow:
        inner = [
            f"h = top + index * {step.dilation[0]}",
            "inside = mmask & (h >= 0) & (h < H)",
            "column = left[:, None] + k[None, :]",
            f"valid = inside[:, None] & (column >= 0) & (column < W * {step.x.shape[1]}){deep.replace('kk', 'k')}",
            "a = tl.load((base + h * XH)[:, None] + k[None, :], mask=valid, other=0.0)",
            f"b = {filters.replace('kk', 'k').format('(index * K + k)')}",
            *multiply,
        ]
    else:
        blocks = shape.rounds(tile)[0]
        dilation = (1, 1) if step.transposed else step.dilation
        inner = [
            f"tap = index // {blocks}",
            f"kk = (index % {blocks}) * BK + k",
            f"h = top + (tap // {shape.taps[1]}) * {dilation[0]}",
            f"w = left + (tap % {shape.taps[1]}) * {dilation[1]}",
            "inside = mmask & (h >= 0) & (h < H) & (w >= 0) & (w < W)",
            f"a = tl.load((base + h * XH + w * XW)[:, None] + kk[None, :], mask=inside[:, None]{deep}, other=0.0)",
            f"b = {filters.format('(tap * K + kk)')}",
            *multiply,
        ]
    rounds = "tl.cdiv(K, BK)" if shape.is_point else str(count if shape.is_narrow else count * shape.rounds(tile)[0])
    if step.addend is not None:
        rounds = str(sum(shape.rounds(tile)))
    if tile.split == 1:
        return [f"for index in range(0, {rounds}):", *(f"    {line}" for line in inner)]
    return [
        "part = tl.program_id(2)",
        f"each = tl.cdiv({rounds}, {tile.split})",
        f"for index in range(part * each, tl.minimum((part + 1) * each, {rounds})):",
        *(f"    {line}" for line in inner),
    ]


_ROUNDED = (
    "bits = (a.to(tl.int32, bitcast=True) + 0x1000) & -0x2000",
    "a = tl.where(a == a, bits.to(tl.float32, bitcast=True), a)",
)
"""Rounds pixels to TensorFloat-32, to nearest: tensor cores cut off the bits that they do not read, so that every sum would be too small.
The weight is rounded beforehand; see `rounded`."""


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    """Return a float32 tensor rounded to TensorFloat-32, ties away from zero; what is no number stays."""
    bits = (tensor.view(torch.int32) + 0x1000) & -0x2000
    return torch.where(tensor.isnan(), tensor, bits.view(torch.float32))


def _masked(place: str, *masks: str) -> str:
    """Return the expression that reads from a place, with those masks that there are."""
    needed = " & ".join(mask for mask in masks if mask)
    return f"tl.load({place}, mask={needed}, other=0.0)" if needed else f"tl.load({place})"


def _joined(tile: Tile, finish: Sequence[str]) -> list[str]:
    """Return the end of a kernel whose sum is split: the program that comes last at a tile adds up what all have left there.

    The counter of the tile is 0 again afterwards. The partial sums are written before the counter is raised, and read after it is
    seen, by the order that an atomic operation with acquire and release semantics gives; they are read from the cache that all share.
    """
    return [
        "tile = group * rows * columns + pid",
        "inner = tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]",
        f"tl.store(partial + (tile * {tile.split} + part) * (BM * BN) + inner, acc)",
        "tl.debug_barrier()",
        "before = tl.atomic_add(counters + tile, 1, sem='acq_rel')",
        f"if before == {tile.split - 1}:",
        "    acc = tl.zeros((BM, BN), tl.float32)",
        f"    for other in range({tile.split}):",
        f"        acc += tl.load(partial + (tile * {tile.split} + other) * (BM * BN) + inner, cache_modifier='.cg')",
        "    tl.store(counters + tile, 0)",
        *(f"    {line}" for line in finish),
    ]


def _raw(place: int, ref: Ref) -> str:
    begin = f" + {ref.offset}" if ref.offset else ""
    return f"tl.load(op{place}{begin} + place[:, None].to(tl.int64) * ROW{place} + channel, mask=mask)"


def _operand(place: int, ref: Ref, kind: str | None, is_read: bool) -> str:
    name = f"op{place}"
    if is_read:
        return f"e{place}.to(tl.float32)" if ref.dtype.is_floating_point else f"(e{place} != 0)"
    if kind == "scalar":
        return load(name, "(m0 * 0)", "m0 < M", ref)
    if kind == "channel":
        return load(name, "channel", "nmask[None, :]", ref)
    if kind == "image":
        return load(name, f"image[:, None] * ROW{place} + channel", "mask", ref)
    return load(name, f"place[:, None].to(tl.int64) * ROW{place} + channel", "mask", ref)


def has_product(step: ConvStep) -> bool:
    """Return whether `product` has a kernel for a convolution."""
    if not step.transposed:
        return not step.is_depthwise
    sizes = zip(step.stride, step.weight.shape[2:], step.out.shape[2:], step.padding)
    return step.groups == 1 and step.dilation == (1, 1) and all(
        taps % stride == 0 and size % stride == 0 and stride > 1 for stride, taps, size, _ in sizes
    )


def parity_weight(weight: torch.Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> torch.Tensor:
    """Return the weight ``(C, K, R, S)`` of a transposed convolution as ``(stride², K, R/stride, S/stride, C)``.

    Output pixel ``stride·i + a`` meets input pixel ``i + (a + padding) // stride - t`` by tap ``(a + padding) % stride + stride·t``; the
    taps are turned round, so that they read forwards.
    """
    parts = []
    for down in range(stride[0]):
        for right in range(stride[1]):
            rows = weight[:, :, (down + padding[0]) % stride[0] :: stride[0], (right + padding[1]) % stride[1] :: stride[1]]
            parts.append(rows.flip(2, 3).permute(1, 2, 3, 0))
    return torch.stack(parts).contiguous()

"""The Triton kernels of convolutions: depthwise ones, and those that are sums of matrix products."""

from __future__ import annotations

from collections.abc import Sequence

from tiacc.backends.cudnn.body import triton_lines
from tiacc.backends.cudnn.kernels import finish_window, load, text, window
from tiacc.backends.cudnn.program import ConvStep, Ref
from tiacc.backends.cudnn.rules import operand_kind


def depthwise(step: ConvStep) -> str:
    """Return the kernel of a depthwise convolution; its arguments are `out`, `x`, the weight ``(R, S, K)``, the operands and ``BLOCK``."""
    kernel = (step.weight.shape[2], step.weight.shape[3])
    head = window(step.out, step.x, kernel, step.stride, step.padding, step.dilation)
    split = next(place for place, line in enumerate(head) if line.startswith("for"))
    channels = step.out.shape[1]
    tap = [
        "value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)",
        f"acc += value * tl.load(weight + (kh * {kernel[1]} + kw) * {channels} + c, mask=mask, other=0.0).to(tl.float32)",
    ]
    operands = [f"op{place}" for place in range(len(step.operands))]
    lines = [*head[:split], "acc = tl.zeros((BLOCK,), tl.float32)", *head[split:], *(f"        {line}" for line in tap)]
    return text(("out", "x", "weight", *operands, "BLOCK: tl.constexpr"), [*lines, *finish_window(step.out, step.operands, step.body, "acc")])


def product(step: ConvStep) -> tuple[str, list[int]]:
    """Return the kernel of a convolution as a sum of matrix products over the taps of its kernel, and the numbers that it takes.

    Its arguments are `out`, `x`, the weight ``(groups, K/groups, R, S, C/groups)``, the operands, the numbers, and the sizes of a tile:
    ``BM`` pixels by ``BN`` output channels by ``BK`` input channels. Tiles are taken in columns of eight, so that those that run at the
    same time share what they read.
    """
    images, outputs, height, width = step.out.shape
    _, inputs, x_height, x_width = step.x.shape
    taps = step.weight.shape[2] * step.weight.shape[3]
    groups = step.groups
    deep, wide = inputs // groups, outputs // groups
    is_point = step.is_point and is_rows(step.x)
    precision = "'tf32'" if step.tf32 else "'ieee'"
    names = [f"op{place}" for place in range(len(step.operands))]
    kinds = [operand_kind(ref) for ref in step.operands]
    numbers = [images * height * width, wide, deep, row_of(step.x), row_of(step.out), height * width]
    parameters = ["M", "N", "K", "XROW", "OROW", "IMAGE"]
    for place, (ref, kind) in enumerate(zip(step.operands, kinds)):
        parameters.append(f"ROW{place}")
        numbers.append(row_of(ref) if kind == "full" else ref.strides[0] if kind == "image" else 0)
    if not is_point:
        parameters += ["H", "W", "OW", "XN", "XH", "XW"]
        numbers += [x_height, x_width, width, step.x.strides[0], step.x.strides[2], step.x.strides[3]]
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
        "mmask = m < M",
        "nmask = nn < N",
        "acc = tl.zeros((BM, BN), tl.float32)",
        f"filters = weight + (group * N + nn[None, :]) * (K * {taps})" if groups > 1 else f"filters = weight + nn[None, :] * (K * {taps})",
    ]
    start = f" + {step.x.offset}" if step.x.offset else ""
    shift = " + group * K" if groups > 1 else ""
    dot = f"acc = tl.dot(a, b, acc, input_precision={precision})"
    if is_point:
        lines += [
            f"pixels = x{start} + m[:, None].to(tl.int64) * XROW",
            "for k0 in range(0, K, BK):",
            "    kk = k0 + k",
            "    a = tl.load(pixels + kk[None, :], mask=mmask[:, None] & (kk < K)[None, :], other=0.0)",
            "    b = tl.load(filters + kk[:, None], mask=nmask[None, :] & (kk < K)[:, None], other=0.0)",
            f"    {dot}",
        ]
    else:
        lines += [
            "image = m // IMAGE",
            "pixel = m % IMAGE",
            f"top = (pixel // OW) * {step.stride[0]} - {step.padding[0]}",
            f"left = (pixel % OW) * {step.stride[1]} - {step.padding[1]}",
            f"base = x{start} + image.to(tl.int64) * XN{shift}",
            f"for tap in range(0, {taps}):",
            f"    h = top + (tap // {step.weight.shape[3]}) * {step.dilation[0]}",
            f"    w = left + (tap % {step.weight.shape[3]}) * {step.dilation[1]}",
            "    inside = mmask & (h >= 0) & (h < H) & (w >= 0) & (w < W)",
            "    pixels = base + h * XH + w * XW",
            "    for k0 in range(0, K, BK):",
            "        kk = k0 + k",
            "        a = tl.load(pixels[:, None] + kk[None, :], mask=inside[:, None] & (kk < K)[None, :], other=0.0)",
            "        b = tl.load(filters + (tap * K + kk)[:, None], mask=nmask[None, :] & (kk < K)[:, None], other=0.0)",
            f"        {dot}",
        ]
    lines += ["mask = mmask[:, None] & nmask[None, :]", "channel = (group * N + nn)[None, :]"]
    if "image" in kinds and is_point:
        lines.append("image = m // IMAGE")
    for place, (ref, kind) in enumerate(zip(step.operands, kinds)):
        lines.append(f"b{place} = {_operand(place, ref, kind)}")
    body, result = triton_lines(step.body, ["acc", *(f"b{place}" for place in range(len(names)))])
    begin = f" + {step.out.offset}" if step.out.offset else ""
    lines += [*body, f"tl.store(out{begin} + m[:, None].to(tl.int64) * OROW + channel, {result}.to(out.dtype.element_ty), mask=mask)"]
    parameters = ["out", "x", "weight", *names, *parameters, "BM: tl.constexpr", "BN: tl.constexpr", "BK: tl.constexpr"]
    return text(parameters, lines), numbers


def _operand(place: int, ref: Ref, kind: str | None) -> str:
    name = f"op{place}"
    if kind == "scalar":
        return load(name, "(m0 * 0)", "m0 < M", ref)
    if kind == "channel":
        return load(name, "channel", "nmask[None, :]", ref)
    if kind == "image":
        return load(name, f"image[:, None] * ROW{place} + channel", "mask", ref)
    return load(name, f"m[:, None].to(tl.int64) * ROW{place} + channel", "mask", ref)


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


def tiles(step: ConvStep) -> list[tuple[int, int, int, int, int]]:
    """Return the sizes of tiles worth trying for a convolution: ``(BM, BN, BK, warps, stages)``."""
    pixels = step.out.shape[0] * step.out.shape[2] * step.out.shape[3]
    wide = step.out.shape[1] // step.groups
    deep = step.x.shape[1] // step.groups
    if step.x.dtype.itemsize == 4:
        table = _TILES_FP32
    else:
        table = _TILES
    useful = [
        tile
        for tile in table
        if tile[0] <= max(16, 2 * pixels) and tile[1] <= max(16, 2 * wide) and tile[2] <= max(32, 2 * deep)
        and (tile[0] * tile[1] >= 64 * 64 or -(-pixels // 64) * -(-wide // 64) * step.groups < 264)
        and (tile[0] * tile[1] < 128 * 128 or -(-pixels // 128) * -(-wide // 128) * step.groups >= 66)
    ]
    return useful or [table[0]]


_TILES: Sequence[tuple[int, int, int, int, int]] = (
    (16, 64, 128, 4, 4),
    (32, 32, 128, 4, 4),
    (32, 64, 64, 4, 4),
    (64, 32, 64, 4, 4),
    (64, 64, 64, 4, 4),
    (64, 64, 128, 4, 3),
    (64, 128, 64, 4, 4),
    (128, 64, 64, 4, 4),
    (128, 128, 64, 8, 3),
    (128, 256, 64, 8, 3),
    (256, 128, 64, 8, 3),
    (64, 256, 64, 8, 3),
    (256, 64, 64, 8, 3),
)
_TILES_FP32: Sequence[tuple[int, int, int, int, int]] = (
    (16, 64, 64, 4, 3),
    (32, 64, 32, 4, 4),
    (64, 64, 32, 4, 3),
    (64, 128, 32, 4, 3),
    (128, 64, 32, 4, 3),
    (128, 128, 32, 8, 3),
)

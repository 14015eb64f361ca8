"""The Triton kernel of depthwise convolutions."""

from __future__ import annotations

from tiacc.backends.cudnn.kernels import finish_window, is_wide, text
from tiacc.backends.cudnn.program import ConvStep


def kernel(step: ConvStep) -> str:
    """Return the kernel of a depthwise convolution: a part of a row of pixels, times some channels, a program.

    Its arguments are `out`, `x`, the weight ``(R, S, K)``, the operands, ``BW`` pixels and ``BC`` channels.
    """
    (rows, columns), (_, channels, height, width) = step.weight.shape[2:], step.out.shape
    x, (sh, sw), (ph, pw), (dh, dw) = step.x, step.stride, step.padding, step.dilation
    number = "tl.program_id(0).to(tl.int64)" if is_wide((step.out, x)) else "tl.program_id(0)"
    operands = [f"op{place}" for place in range(len(step.operands))]
    lines = [
        f"parts = tl.cdiv({width}, BW)",
        f"row = {number} // parts",
        f"oh = row % {height}",
        f"n = row // {height}",
        "ow = (tl.program_id(0) % parts) * BW + tl.arange(0, BW)[:, None]",
        "c = tl.program_id(1) * BC + tl.arange(0, BC)[None, :]",
        f"mask = (ow < {width}) & (c < {channels})",
        f"base = n * {x.strides[0]} + {x.offset} + c",
        "acc = tl.zeros((BW, BC), tl.float32)",
        f"for kh in tl.static_range({rows}):",
        f"    h = oh * {sh} - {ph} + kh * {dh}",
        f"    for kw in tl.static_range({columns}):",
        f"        w = ow * {sw} - {pw} + kw * {dw}",
        f"        inside = mask & (h >= 0) & (h < {x.shape[2]}) & (w >= 0) & (w < {x.shape[3]})",
        f"        value = tl.load(x + base + h * {x.strides[2]} + w * {x.strides[3]}, mask=inside, other=0.0).to(tl.float32)",
        f"        tap = tl.load(weight + (kh * {columns} + kw) * {channels} + c, mask=c < {channels}, other=0.0)",
        "        acc += value * tap.to(tl.float32)",
        *finish_window(step.out, step.operands, step.body, "acc"),
    ]
    return text(("out", "x", "weight", *operands, "BW: tl.constexpr", "BC: tl.constexpr"), lines)


def tactics(step: ConvStep) -> list[str]:
    """Return the pixels, channels and warps worth trying."""
    _, channels, _, width = step.out.shape
    found = []
    for pixels, wide, warps in ((8, 32, 1), (8, 64, 2), (16, 32, 2), (16, 64, 4), (32, 32, 4), (32, 64, 4), (4, 128, 2), (8, 128, 4)):
        if pixels < 2 * width and wide < 2 * channels:
            found.append(f"triton:{pixels},{wide},{warps}")
    return found or ["triton:8,32,1"]

"""Triton kernels, written out for a step: its sizes, its strides and its element-wise work are constants of the text.

The kernels of products and convolutions take sizes as arguments instead, so that the layers of a network share them. `source` holds the
text of each kind, `compiled` makes a kernel of a text, once a process.
"""

from __future__ import annotations

import functools
import hashlib
import linecache
import math
import os
from collections.abc import Sequence
from typing import Any

import torch

from tiacc.backends.cudnn.body import Body, triton_lines
from tiacc.backends.cudnn.program import PointwiseStep, PoolStep, ReduceStep, Ref, RowStep

INT32_LIMIT = 2**31 - 1
"""Offsets beyond are computed with 64 bits."""


@functools.cache
def compiled(text: str) -> Any:
    """Return the kernel of a text, which defines a function ``kernel``."""
    import triton
    import triton.language as tl

    name = f"<tiacc kernel {hashlib.sha256(text.encode()).hexdigest()[:16]}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)  # where Triton looks for its source
    scope: dict[str, Any] = {"tl": tl, "triton": triton, "__name__": "tiacc.backends.cudnn.generated"}
    exec(compile(text, name, "exec"), scope)  # the text is made here, of numbers and of the entries of a table
    return triton.jit(scope["kernel"])


@functools.cache
def may_overlap(device: torch.device) -> bool:
    """Return whether a kernel may be set up on a device while the one before it ends ("programmatic dependent launch")."""
    return OVERLAP and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


OVERLAP = os.environ.get("TIACC_CUDNN_OVERLAP", "1") != "0"
"""Whether kernels are launched so that they overlap, where the GPU can."""


def overlapped(source: str, *, waits: bool, triggers: bool, ahead: Sequence[str] = ()) -> str:
    """Return a kernel that overlaps with its neighbours.

    Args:
        source: The kernel.
        waits: It is set up and finds its place while the kernel before it runs, and waits for that to end before it reads or writes.
        triggers: It lets the kernel after it be set up, once it has itself waited: so what was written two kernels ago is there as well.
        ahead: Statements that need not wait.
    """
    lines = source.splitlines(keepends=True)
    head = next(place for place, line in enumerate(lines) if line.startswith("def kernel("))
    touches = (place for place in range(head, len(lines)) if any(word in lines[place] for word in ("tl.load(", "tl.store(", "    for ")))
    first = next(touches, head + 1)
    calls = [*(f"    {line}\n" for line in ahead), "    tl.extra.cuda.gdc_wait()\n"] if waits else []
    calls += ["    tl.extra.cuda.gdc_launch_dependents()\n"] if triggers else []
    return "".join([*lines[:first], *calls, *lines[first:]])


def side_by_side(parts: Sequence[tuple[str, tuple[int, int], dict[str, int]]]) -> str:
    """Return a kernel that does the work of several, each in programs of its own; its arguments are those of each, one after the other.

    Args:
        parts: For each kernel its text, its grid, and its compile-time constants, which come last among its arguments.
    """
    texts, lines, names, begin = [], ["pid = tl.program_id(0)"], [], 0
    for index, (source, (columns, rows), constants) in enumerate(parts):
        head, _, body = source.partition("\n")
        arguments = [name.split(":")[0].strip() for name in head[head.index("(") + 1 : head.rindex(")")].split(",")]
        body = body.replace("tl.program_id(0)", "column").replace("tl.program_id(1)", "row")
        texts.append(f"@triton.jit\ndef part{index}(column, row, {head[head.index('(') + 1 :]}\n{body}\n")
        tensors = [f"{name}{index}" for name in arguments[: len(arguments) - len(constants)]]
        names += tensors
        given = ", ".join((*tensors, *map(str, constants.values())))
        lines += [
            f"{'el' if index else ''}if pid < {begin + columns * rows}:",
            f"    part{index}((pid - {begin}) % {columns}, (pid - {begin}) // {columns}, {given})",
        ]
        begin += columns * rows
    return "".join(texts) + text(names, lines)


def is_wide(refs: Sequence[Ref]) -> bool:
    """Return whether offsets into these tensors need 64 bits."""
    return any(ref.offset + sum((size - 1) * stride for size, stride in zip(ref.shape, ref.strides)) > INT32_LIMIT for ref in refs)


# -- indices ----------------------------------------------------------------------------------------------------------------------------


def merged(sizes: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """Join neighbouring dimensions that are as one to every tensor.

    Args:
        sizes: The sizes of the dimensions, the slowest first.
        strides: For each tensor, its stride in each of them.
    """
    kept: list[int] = []
    tables: list[list[int]] = [[] for _ in strides]
    for dim, size in enumerate(sizes):
        if size == 1:
            continue
        if kept and all(table[-1] == own[dim] * size for table, own in zip(tables, strides)):
            kept[-1] *= size
            for table, own in zip(tables, strides):
                table[-1] = own[dim]
            continue
        kept.append(size)
        for table, own in zip(tables, strides):
            table.append(own[dim])
    return kept, tables


def offsets(index: str, sizes: Sequence[int], strides: Sequence[Sequence[int]], prefix: str) -> tuple[list[str], list[str]]:
    """Return statements that take an index apart, and for each tensor its offset as an expression.

    Args:
        index: The name of the index.
        sizes: The dimensions it runs over, the slowest first.
        strides: For each tensor, its stride in each of them.
        prefix: What the names of new variables begin with.
    """
    sizes, tables = merged(sizes, strides)
    lines: list[str] = []
    names: list[str] = []
    rest = index
    for dim in reversed(range(len(sizes))):
        name = f"{prefix}{dim}"
        if dim == 0:
            lines.append(f"{name} = {rest}")
        else:
            lines.append(f"{name} = {rest} % {sizes[dim]}")
            lines.append(f"{name}q = {rest} // {sizes[dim]}")
            rest = f"{name}q"
        names.append(name)
    names.reverse()
    expressions = []
    for table in tables:
        terms = [name if stride == 1 else f"{name} * {stride}" for name, stride in zip(names, table) if stride]
        expressions.append(" + ".join(terms) if terms else f"{index} * 0")
    return lines, expressions


def load(name: str, offset: str, mask: str, ref: Ref, other: str | None = None) -> str:
    """Return the expression that reads an operand; numbers become float32."""
    default = f", other={other}" if other is not None else ""
    begin = f" + {ref.offset}" if ref.offset else ""
    read = f"tl.load({name}{begin} + {offset}, mask={mask}{default})"
    return f"{read}.to(tl.float32)" if ref.dtype.is_floating_point else f"({read} != 0)"


def _stored(name: str, ref: Ref) -> str:
    return f"{name}.to(tl.int1)" if ref.dtype == torch.bool else f"{name}.to(out.dtype.element_ty)"


def text(parameters: Sequence[str], lines: Sequence[str]) -> str:
    """Return a function ``kernel`` as text."""
    return f"def kernel({', '.join(parameters)}):\n" + "".join(f"    {line}\n" for line in lines)


def _order(ref: Ref) -> list[int]:
    """Return the dimensions of a tensor, the one with the largest stride first."""
    return sorted(range(len(ref.shape)), key=lambda dim: (-ref.strides[dim] if ref.shape[dim] > 1 else -INT32_LIMIT, dim))


# -- element-wise -----------------------------------------------------------------------------------------------------------------------


def pointwise(step: PointwiseStep) -> str:
    """Return the kernel of an element-wise step; its arguments are `out`, the operands, and ``BLOCK``."""
    order = _order(step.out)
    sizes = [step.out.shape[dim] for dim in order]
    refs = (step.out, *step.operands)
    lines, places = offsets("index", sizes, [[ref.strides[dim] for dim in order] for ref in refs], "i")
    names = [f"in{place}" for place in range(len(step.operands))]
    loads = [f"a{place} = {load(name, places[place + 1], 'mask', ref)}" for place, (name, ref) in enumerate(zip(names, step.operands))]
    body, result = triton_lines(step.body, [f"a{place}" for place in range(len(names))])
    number = "tl.program_id(0).to(tl.int64)" if is_wide(refs) else "tl.program_id(0)"
    begin = f" + {step.out.offset}" if step.out.offset else ""
    return text(
        ("out", *names, "BLOCK: tl.constexpr"),
        [
            f"index = {number} * BLOCK + tl.arange(0, BLOCK)",
            f"mask = index < {step.out.numel}",
            *lines,
            *loads,
            *body,
            f"tl.store(out{begin} + {places[0]}, {_stored(result, step.out)}, mask=mask)",
        ],
    )


# -- reductions and rows ----------------------------------------------------------------------------------------------------------------

_NEUTRAL = {"sum": "0.0", "mean": "0.0", "max": "float('-inf')", "min": "float('inf')"}


def _tile(
    step: ReduceStep | RowStep, refs_xr: Sequence[Ref], refs_x: Sequence[Ref]
) -> tuple[list[str], list[str], list[str], list[str], list[str]]:
    """Return the statements and offsets of a tile: rows ``x`` over the dimensions that stay, columns ``r`` over those that go."""
    main = step.inputs[0] if step.inputs else step.out
    order = _order(main)
    shape = main.shape
    outer = [dim for dim in order if dim not in step.dims]
    inner = [dim for dim in order if dim in step.dims]
    every = (*refs_xr, *refs_x)
    x_lines, x_places = offsets("x", [shape[dim] for dim in outer], [[ref.strides[dim] for dim in outer] for ref in every], "x")
    r_lines, r_places = offsets("r", [shape[dim] for dim in inner], [[ref.strides[dim] for dim in inner] for ref in refs_xr], "r")
    return x_lines, x_places[: len(refs_xr)], x_places[len(refs_xr) :], r_lines, r_places


def reduction(step: ReduceStep) -> str:
    """Return the kernel of a reduction; its arguments are `out`, the inputs, the operands, ``XB`` and ``RB``."""
    shape = step.inputs[0].shape
    count = math.prod(shape[dim] for dim in step.dims)
    rows = math.prod(shape) // count
    x_lines, in_x, out_x, r_lines, in_r = _tile(step, step.inputs, (step.out, *step.operands))
    ins = [f"in{place}" for place in range(len(step.inputs))]
    others = [f"op{place}" for place in range(len(step.operands))]
    loads = [
        f"    a{place} = {load(name, f'({in_x[place]}) + ({in_r[place]})', 'mask', ref, '0')}"
        for place, (name, ref) in enumerate(zip(ins, step.inputs))
    ]
    before, value = triton_lines(step.prologue, [f"a{place}" for place in range(len(ins))], "p")
    neutral = _NEUTRAL[step.kind]
    join = {"max": "tl.maximum(acc, {0})", "min": "tl.minimum(acc, {0})"}.get(step.kind, "acc + {0}")
    finish = {"max": "tl.max(acc, 1)[:, None]", "min": "tl.min(acc, 1)[:, None]"}.get(step.kind, "tl.sum(acc, 1)[:, None]")
    scale = f" * {1.0 / count!r}" if step.kind == "mean" else ""
    after_loads = [
        f"b{place} = {load(name, out_x[place + 1], 'xmask', ref)}" for place, (name, ref) in enumerate(zip(others, step.operands))
    ]
    body, result = triton_lines(step.body, ["total", *(f"b{place}" for place in range(len(others)))])
    number = "tl.program_id(0).to(tl.int64)" if is_wide((*step.inputs, step.out)) else "tl.program_id(0)"
    begin = f" + {step.out.offset}" if step.out.offset else ""
    return text(
        ("out", *ins, *others, "XB: tl.constexpr", "RB: tl.constexpr"),
        [
            f"x = {number} * XB + tl.arange(0, XB)[:, None]",
            f"xmask = x < {rows}",
            *x_lines,
            f"acc = tl.full((XB, RB), {neutral}, tl.float32)",
            f"for start in range(0, {count}, RB):",
            "    r = start + tl.arange(0, RB)[None, :]",
            f"    mask = xmask & (r < {count})",
            *(f"    {line}" for line in r_lines),
            *loads,
            *(f"    {line}" for line in before),
            f"    value = tl.where(mask, {value}, {neutral})",
            f"    acc = {join.format('value')}",
            f"total = {finish}{scale}",
            *after_loads,
            *body,
            f"tl.store(out{begin} + ({out_x[0]}), {_stored(result, step.out)}, mask=xmask)",
        ],
    )


def row(step: RowStep) -> str:
    """Return the kernel of a row-wise step; its arguments are `out`, the inputs, the operands, ``XB`` and ``RB``."""
    shape = step.out.shape
    count = math.prod(shape[dim] for dim in step.dims)
    rows = math.prod(shape) // count
    every = (*step.inputs, step.out, *step.operands)
    x_lines, in_x, _, r_lines, in_r = _tile(step, every, ())
    places = [f"({one}) + ({other})" for one, other in zip(in_x, in_r)]
    ins = [f"in{place}" for place in range(len(step.inputs))]
    others = [f"op{place}" for place in range(len(step.operands))]
    n = len(ins)
    loads = [f"a{place} = {load(name, places[place], 'mask', ref, '0')}" for place, (name, ref) in enumerate(zip(ins, step.inputs))]
    before, value = triton_lines(step.prologue, [f"a{place}" for place in range(n)], "p")
    after_loads = [
        f"b{place} = {load(name, places[n + 1 + place], 'mask', ref, '0')}" for place, (name, ref) in enumerate(zip(others, step.operands))
    ]
    body, result = triton_lines(step.body, ["normal", *(f"b{place}" for place in range(len(others)))])
    number = "tl.program_id(0).to(tl.int64)" if is_wide(every) else "tl.program_id(0)"
    begin = f" + {step.out.offset}" if step.out.offset else ""
    return text(
        ("out", *ins, *others, "XB: tl.constexpr", "RB: tl.constexpr"),
        [
            f"x = {number} * XB + tl.arange(0, XB)[:, None]",
            "r = tl.arange(0, RB)[None, :]",
            f"mask = (x < {rows}) & (r < {count})",
            *x_lines,
            *r_lines,
            *loads,
            *before,
            *_normalised(step.kind, value, count, step.eps),
            *after_loads,
            *body,
            f"tl.store(out{begin} + {places[n]}, {_stored(result, step.out)}, mask=mask)",
        ],
    )


def _normalised(kind: str, value: str, count: int, eps: float) -> list[str]:
    if kind in ("softmax", "log_softmax"):
        lines = [
            f"value = tl.where(mask, {value}, float('-inf'))",
            "shifted = value - tl.max(value, 1)[:, None]",
            "power = tl.where(mask, tl.exp(shifted), 0.0)",
            "total = tl.sum(power, 1)[:, None]",
        ]
        return [*lines, "normal = power / total" if kind == "softmax" else "normal = shifted - tl.log(total)"]
    return [
        f"value = tl.where(mask, {value}, 0.0)",
        f"mean = tl.sum(value, 1)[:, None] * {1.0 / count!r}",
        "centred = tl.where(mask, value - mean, 0.0)",
        f"variance = tl.sum(centred * centred, 1)[:, None] * {1.0 / count!r}",
        f"normal = centred * (1.0 / tl.sqrt_rn(variance + {eps!r}))",
    ]


# -- windows ----------------------------------------------------------------------------------------------------------------------------


def window(
    out: Ref, x: Ref, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> list[str]:
    """Return the statements that begin a kernel over ``(N, H', W', C)`` and find the pixel of each tap ``kh``, ``kw``."""
    _, channels, height, width = out.shape
    number = "tl.program_id(0).to(tl.int64)" if is_wide((out, x)) else "tl.program_id(0)"
    return [
        f"index = {number} * BLOCK + tl.arange(0, BLOCK)",
        f"mask = index < {out.numel}",
        f"c = index % {channels}",
        f"pixel = index // {channels}",
        f"ow = pixel % {width}",
        f"oh = (pixel // {width}) % {height}",
        f"n = pixel // {width * height}",
        f"top = oh * {stride[0]} - {padding[0]}",
        f"left = ow * {stride[1]} - {padding[1]}",
        f"base = n * {x.strides[0]} + c + {x.offset}",
        f"for kh in tl.static_range({kernel[0]}):" if kernel[0] * kernel[1] <= 9 else f"for kh in range({kernel[0]}):",
        f"    h = top + kh * {dilation[0]}",
        f"    for kw in tl.static_range({kernel[1]}):" if kernel[0] * kernel[1] <= 9 else f"    for kw in range({kernel[1]}):",
        f"        w = left + kw * {dilation[1]}",
        f"        inside = mask & (h >= 0) & (h < {x.shape[2]}) & (w >= 0) & (w < {x.shape[3]})",
        f"        place = base + h * {x.strides[2]} + w * {x.strides[3]}",
    ]


def finish_window(out: Ref, operands: Sequence[Ref], body: Body, first: str) -> list[str]:
    """Return the statements that end such a kernel: the work behind the window, and the store."""
    strides = [ref.strides for ref in operands]
    loads = []
    for place, (ref, (sn, sc, sh, sw)) in enumerate(zip(operands, strides)):
        loads.append(f"b{place} = {load(f'op{place}', f'(n * {sn} + c * {sc} + oh * {sh} + ow * {sw})', 'mask', ref)}")
    lines, result = triton_lines(body, [first, *(f"b{place}" for place in range(len(operands)))])
    sn, sc, sh, sw = out.strides
    begin = f" + {out.offset}" if out.offset else ""
    return [*loads, *lines, f"tl.store(out{begin} + n * {sn} + c * {sc} + oh * {sh} + ow * {sw}, {_stored(result, out)}, mask=mask)"]


def pool(step: PoolStep) -> str:
    """Return the kernel of a pooling; its arguments are `out`, `x`, the operands and ``BLOCK``."""
    head = window(step.out, step.x, step.kernel, step.stride, step.padding, step.dilation)
    split = next(place for place, line in enumerate(head) if line.startswith("for"))
    if step.kind == "max":
        begin = ["acc = tl.full((BLOCK,), float('-inf'), tl.float32)"]
        tap = [
            "value = tl.load(x + place, mask=inside, other=float('-inf')).to(tl.float32)",
            "acc = tl.where((value > acc) | (value != value), value, acc)",
        ]
        finish: list[str] = []
    else:
        begin = ["acc = tl.zeros((BLOCK,), tl.float32)"]
        tap = ["acc += tl.load(x + place, mask=inside, other=0.0).to(tl.float32)"]
        finish = _divided(step)
    operands = [f"op{place}" for place in range(len(step.operands))]
    lines = [*head[:split], *begin, *head[split:], *(f"        {line}" for line in tap), *finish]
    return text(("out", "x", *operands, "BLOCK: tl.constexpr"), [*lines, *finish_window(step.out, step.operands, step.body, "acc")])


def _divided(step: PoolStep) -> list[str]:
    if isinstance(step.divisor, int):
        return [f"acc = acc * {1.0 / step.divisor!r}"]
    (kh, kw), (ph, pw) = step.kernel, step.padding
    height, width = step.x.shape[2:]
    if step.divisor == "window":
        # windows that reach over the end of the padded image count what is inside of it
        tall = f"(tl.minimum(top + {kh}, {height + ph}) - top)"
        wide = f"(tl.minimum(left + {kw}, {width + pw}) - left)"
    else:
        tall = f"(tl.minimum(top + {kh}, {height}) - tl.maximum(top, 0))"
        wide = f"(tl.minimum(left + {kw}, {width}) - tl.maximum(left, 0))"
    return [f"acc = acc / ({tall} * {wide}).to(tl.float32)"]

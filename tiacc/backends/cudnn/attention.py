"""Attention: how it is planned, and its Triton kernel.

Source: the softmax is computed a block of keys at a time with a running maximum and sum, Dao et al., "FlashAttention", 2022
(arXiv:2205.14135).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from tiacc.backends.cudnn.kernels import text
from tiacc.backends.cudnn.layouts import is_aligned
from tiacc.backends.cudnn.planner import Planner, shape_of
from tiacc.backends.cudnn.program import AttentionStep, Ref
from tiacc.graph import specs

DEPTHS = (16, 32, 64, 128)
"""The sizes of heads that the kernel takes."""

HALVES = frozenset({torch.float16, torch.bfloat16})


def attention(planner: Planner, node: fx.Node, args: dict[str, Any]) -> Ref | None:
    """Attention over ``(N, heads, L, D)`` in half precision; what it gives has its heads next to each other."""
    nodes = [args["query"], args["key"], args["value"]]
    shapes, mask_node = [shape_of(part) for part in nodes], args["attn_mask"]
    dtype = specs.tensor_of(node).dtype
    if args["dropout_p"] or dtype not in HALVES or any(specs.tensor_of(part).dtype != dtype for part in nodes):
        return None
    if any(len(shape) != 4 for shape in shapes) or shapes[1] != shapes[2] or shapes[0][-1] != shapes[1][-1] or not math.prod(shapes[1]):
        return None
    (images, heads, length, depth), (_, groups, seen, _) = shapes[0], shapes[1]
    if depth not in DEPTHS or shapes[1][0] != images or heads % groups:
        return None
    q, k, v = (_dense(planner, part) for part in nodes)
    mask = None
    if mask_node is not None:
        mask = planner.realize(mask_node)
        if mask.dtype not in (*HALVES, torch.float32, torch.bool):
            return None
        mask = mask.expanded((images, heads, length, seen))
    scale = float(args["scale"]) if args["scale"] is not None else depth**-0.5
    strides = (length * heads * depth, depth, heads * depth, 1)
    out = planner.new((images, heads, length, depth), dtype, strides, node.name)
    planner.emit(AttentionStep(out, q, k, v, mask, scale, bool(args["is_causal"])))
    return out


def _dense(planner: Planner, node: fx.Node) -> Ref:
    """Return where a value is, the numbers of a head next to each other."""
    ref = planner.realize(node)
    return ref if ref.strides[-1] == 1 and is_aligned(ref, range(3)) else planner.copied(ref)


def kernel(step: AttentionStep) -> str:
    """Return the kernel; its arguments are `out`, `q`, `k`, `v`, the mask if there is one, ``BM`` rows of queries and ``BN`` keys."""
    _, heads, length, depth = step.out.shape
    groups, seen = step.k.shape[1:3]

    def place(ref: Ref, row: str, head: str = "head") -> str:
        n, h, m, _ = ref.strides
        return f"{ref.offset} + image.to(tl.int64) * {n} + {head} * {h} + {row} * {m}"

    shared = "head" if heads == groups else f"(head // {heads // groups})"
    score = [f"scores = tl.where((n < {seen})[None, :], scores, float('-inf'))"]
    if step.is_causal:
        score.append("scores = tl.where(n[None, :] <= m[:, None], scores, float('-inf'))")
    if step.mask is not None:
        inside = f"(m < {length})[:, None] & (n < {seen})[None, :]"
        read = f"tl.load(mask + {place(step.mask, 'm[:, None]')} + n[None, :] * {step.mask.strides[3]}, mask={inside}, other=0)"
        if step.mask.dtype == torch.bool:
            score.append(f"scores = tl.where({read} != 0, scores, float('-inf'))")
        else:
            score.append(f"scores += {read}.to(tl.float32) * {math.log2(math.e)!r}")
    return text(
        ["out", "q", "k", "v", *(["mask"] if step.mask is not None else []), "BM: tl.constexpr", "BN: tl.constexpr"],
        [
            f"head = tl.program_id(1) % {heads}",
            f"image = tl.program_id(1) // {heads}",
            "m = tl.program_id(0) * BM + tl.arange(0, BM)",
            f"d = tl.arange(0, {depth})",
            f"queries = tl.load(q + {place(step.q, 'm[:, None]')} + d[None, :], mask=(m < {length})[:, None], other=0.0)",
            f"keys = k + {place(step.k, 'tl.arange(0, BN)[None, :]', shared)} + d[:, None]",
            f"values = v + {place(step.v, 'tl.arange(0, BN)[:, None]', shared)} + d[None, :]",
            f"acc = tl.zeros((BM, {depth}), tl.float32)",
            "total = tl.zeros((BM,), tl.float32)",
            "top = tl.full((BM,), float('-inf'), tl.float32)",
            f"for begin in range(0, {seen}, BN):",
            "    n = begin + tl.arange(0, BN)",
            f"    some = tl.load(keys + begin * {step.k.strides[2]}, mask=(n < {seen})[None, :], other=0.0)",
            f"    scores = tl.dot(queries, some) * {step.scale * math.log2(math.e)!r}",
            *(f"    {line}" for line in score),
            "    higher = tl.maximum(top, tl.max(scores, 1))",
            "    level = tl.where(higher == float('-inf'), 0.0, higher)",
            "    power = tl.exp2(scores - level[:, None])",
            "    shrunk = tl.exp2(top - level)",
            "    total = total * shrunk + tl.sum(power, 1)",
            f"    what = tl.load(values + begin * {step.v.strides[2]}, mask=(n < {seen})[:, None], other=0.0)",
            "    acc = tl.dot(power.to(what.dtype), what, acc * shrunk[:, None])",
            "    top = higher",
            "acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]",
            f"places = out + {place(step.out, 'm[:, None]')} + d[None, :]",
            f"tl.store(places, acc.to(out.dtype.element_ty), mask=(m < {length})[:, None])",
        ],
    )


def tactics(step: AttentionStep) -> list[str]:
    """Return the tactics of a step that are kernels of ours: rows of queries, keys, warps and stages."""
    length, seen = step.out.shape[2], step.k.shape[2]
    found = []
    for rows, keys, warps, stages in ((64, 64, 4, 2), (128, 64, 4, 3), (128, 64, 8, 3), (64, 128, 4, 2), (128, 128, 8, 2), (16, 64, 4, 3)):
        if rows <= max(64, 2 * length) and keys <= max(64, 2 * seen) and (rows > 16 or length <= 32):
            found.append(f"triton:{rows},{keys},{warps},{stages}")
    return found

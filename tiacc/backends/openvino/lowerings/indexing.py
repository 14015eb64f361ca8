"""Choices of elements: by a mask, by strides, by blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from tiacc.backends.openvino.lowering import Emitter, is_number, lowers
from tiacc.backends.openvino.lowerings.common import value_of

aten = torch.ops.aten


@lowers("where.ScalarSelf", "where.ScalarOther", "where.Scalar")
def _where(emit: Emitter, condition: fx.Node, first: Any, second: Any) -> fx.Node:
    dtype = value_of(emit.node).dtype
    values = (emit.constant(torch.tensor(item, dtype=dtype)) if is_number(item) else emit.cast(item, dtype) for item in (first, second))
    return emit(aten.where.self, condition, *values)


@lowers("index_put.default")
def _index_put(emit: Emitter, x: fx.Node, indices: Sequence[fx.Node | None], values: fx.Node, accumulate: bool) -> fx.Node:
    first = indices[0]
    if first is not None and value_of(first).dtype == torch.bool:
        for _ in range(value_of(x).dim() - value_of(first).dim()):
            first = emit(aten.unsqueeze.default, first, -1)
        return emit(aten.where.self, first, emit(aten.reshape.default, values, []), x)
    copy = emit(aten.clone.default, x)
    return emit(aten.index_put_.default, copy, list(indices), values, accumulate)


@lowers("take_along_dim.default")
def _take_along_dim(emit: Emitter, x: fx.Node, indices: fx.Node, dim: int) -> fx.Node:
    return emit(aten.gather.default, x, dim % value_of(x).dim(), indices)


@lowers("index.Tensor")
def _index(emit: Emitter, x: fx.Node, indices: Sequence[fx.Node | None]) -> fx.Node | None:
    # OpenVINO makes one index of several, and only the first of them counts from the end where it is negative.
    if sum(index is not None for index in indices) < 2:
        return None
    return emit(aten.index.Tensor, x, [index and _from_the_start(emit, index, emit.size(x, dim)) for dim, index in enumerate(indices)])


def _from_the_start(emit: Emitter, index: fx.Node, size: fx.Node | int) -> fx.Node:
    return emit(aten.where.self, emit(aten.lt.Scalar, index, 0), emit(aten.add.Scalar, index, size), index)


@lowers("as_strided.default")
def _as_strided(emit: Emitter, x: fx.Node, size: list[int], stride: list[int], offset: int | None) -> fx.Node:
    places = torch.arange(value_of(x).numel()).as_strided(size, stride, offset or 0)
    chosen = emit(aten.index_select.default, emit(aten.reshape.default, x, [-1]), 0, emit.constant(places.flatten()))
    return emit(aten.reshape.default, chosen, size)


@lowers("col2im.default")
def _col2im(emit: Emitter, x: fx.Node, image: list[int], block: list[int], *rest: Any) -> fx.Node:
    batch, channels = emit.size(x, 0), int(value_of(emit.node).shape[1])
    rows, columns = image[0] // block[0], image[1] // block[1]
    blocks = emit(aten.reshape.default, x, [batch, channels, *block, rows, columns])
    return emit(aten.reshape.default, emit(aten.permute.default, blocks, [0, 1, 4, 2, 5, 3]), [batch, channels, *image])


@lowers("empty_like.default")
def _empty_like(emit: Emitter, x: fx.Node, *rest: Any) -> fx.Node:
    return emit(aten.zeros_like.default, x, dtype=value_of(emit.node).dtype)


@lowers("empty.memory_format")
def _empty(emit: Emitter, size: Sequence[Any], *rest: Any) -> fx.Node:
    return emit(aten.zeros.default, list(size), dtype=value_of(emit.node).dtype)


@lowers("new_empty.default")
def _new_empty(emit: Emitter, x: fx.Node, size: Sequence[Any], *rest: Any) -> fx.Node:
    return emit(aten.zeros.default, list(size), dtype=value_of(emit.node).dtype)


@lowers("fill.Scalar", "fill.Tensor")
def _fill(emit: Emitter, x: fx.Node, value: Any) -> fx.Node:
    if is_number(value):
        return emit(aten.full_like.default, x, value)
    value = emit.cast(value, value_of(emit.node).dtype)
    return emit(aten.expand_as.default, value, x) if value_of(x).dim() else value

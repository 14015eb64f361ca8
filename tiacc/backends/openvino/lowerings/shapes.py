"""Shapes, joins, placement, and resampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from tiacc.backends.openvino.lowering import Emitter, lowers
from tiacc.backends.openvino.lowerings.common import value_of

aten = torch.ops.aten


@lowers("expand.default", "broadcast_to.default", "expand_as.default")
def _expand(emit: Emitter, x: fx.Node, *rest: Any) -> fx.Node | None:
    return None if value_of(emit.node).dim() else x  # OpenVINO crashes on an expansion to a number


@lowers("mT.default", "mH.default", "adjoint.default")
def _matrix_transpose(emit: Emitter, x: fx.Node) -> fx.Node:
    return emit(aten.transpose.int, x, -2, -1)


@lowers("numpy_T.default")
def _reversed(emit: Emitter, x: fx.Node) -> fx.Node | None:
    rank = value_of(x).dim()
    return emit(aten.permute.default, x, list(reversed(range(rank)))) if rank > 2 else None


@lowers("unfold.default")
def _unfold(emit: Emitter, x: fx.Node, dim: int, size: int, step: int) -> fx.Node:
    return emit(aten.unfold.default, x, dim % value_of(x).dim(), size, step)  # OpenVINO counts no dimension from the end here


@lowers("ravel.default")
def _ravel(emit: Emitter, x: fx.Node) -> fx.Node:
    return emit(aten.reshape.default, x, [-1])


@lowers("fliplr.default")
def _fliplr(emit: Emitter, x: fx.Node) -> fx.Node:
    return emit(aten.flip.default, x, [1])


@lowers("flipud.default")
def _flipud(emit: Emitter, x: fx.Node) -> fx.Node:
    return emit(aten.flip.default, x, [0])


@lowers("flip.default")
def _flip(emit: Emitter, x: fx.Node, dims: list[int]) -> fx.Node | None:
    return None if dims else x


@lowers("squeeze.dims")
def _squeeze(emit: Emitter, x: fx.Node, dims: list[int]) -> fx.Node | None:
    return None if dims else x


@lowers("repeat.default")
def _repeat(emit: Emitter, x: fx.Node, repeats: list[int]) -> fx.Node | None:
    return None if repeats else x


@lowers("tile.default")
def _tile(emit: Emitter, x: fx.Node, repeats: list[int]) -> fx.Node:
    missing = value_of(x).dim() - len(repeats)
    repeats = [1] * max(missing, 0) + list(repeats)
    return emit(aten.repeat.default, x, repeats) if repeats else x


def _raise_rank(emit: Emitter, x: fx.Node, rank: int) -> fx.Node:
    have = value_of(x).dim()
    places = {(0, 1): [0], (0, 2): [0, 0], (0, 3): [0, 0, 0], (1, 2): [0], (1, 3): [0, 2], (2, 3): [2]}.get((have, rank), [])
    for place in places:
        x = emit(aten.unsqueeze.default, x, place)
    return x


@lowers("atleast_1d.default")
def _atleast_1d(emit: Emitter, x: fx.Node) -> fx.Node:
    return _raise_rank(emit, x, 1)


@lowers("atleast_2d.default")
def _atleast_2d(emit: Emitter, x: fx.Node) -> fx.Node:
    return _raise_rank(emit, x, 2)


@lowers("atleast_3d.default")
def _atleast_3d(emit: Emitter, x: fx.Node) -> fx.Node:
    return _raise_rank(emit, x, 3)


def _join(emit: Emitter, tensors: Sequence[fx.Node], rank: int, dim: int) -> fx.Node:
    dtype = value_of(emit.node).dtype
    return emit(aten.cat.default, [_raise_rank(emit, emit.cast(item, dtype), rank) for item in tensors], dim)


@lowers("hstack.default")
def _hstack(emit: Emitter, tensors: Sequence[fx.Node]) -> fx.Node:
    return _join(emit, tensors, 1, 0 if value_of(tensors[0]).dim() <= 1 else 1)


@lowers("vstack.default")
def _vstack(emit: Emitter, tensors: Sequence[fx.Node]) -> fx.Node:
    return _join(emit, tensors, 2, 0)


@lowers("dstack.default")
def _dstack(emit: Emitter, tensors: Sequence[fx.Node]) -> fx.Node:
    return _join(emit, tensors, 3, 2)


@lowers("column_stack.default")
def _column_stack(emit: Emitter, tensors: Sequence[fx.Node]) -> fx.Node:
    columns = [emit(aten.reshape.default, item, [-1, 1]) if value_of(item).dim() <= 1 else item for item in tensors]
    return _join(emit, columns, 2, 1)


@lowers("unsafe_split.Tensor")
def _unsafe_split(emit: Emitter, x: fx.Node, size: int, dim: int) -> list[fx.Node]:
    parts = emit(aten.split.Tensor, x, size, dim)
    return [emit.item(parts, index) for index in range(len(parts.meta["val"]))]


@lowers("diff.default")
def _diff(emit: Emitter, x: fx.Node, n: int, dim: int, prepend: Any, append: Any) -> fx.Node:
    later, earlier = emit(aten.slice.Tensor, x, dim, 1, None, 1), emit(aten.slice.Tensor, x, dim, 0, -1, 1)
    return emit(aten.sub.Tensor, later, earlier)


@lowers("select_scatter.default")
def _select_scatter(emit: Emitter, x: fx.Node, source: fx.Node, dim: int, index: int) -> fx.Node:
    size = int(value_of(x).shape[dim])
    index = index % size
    return _put(emit, x, emit(aten.unsqueeze.default, source, dim % value_of(x).dim()), dim, index, index + 1)


@lowers("slice_scatter.default")
def _slice_scatter(emit: Emitter, x: fx.Node, source: fx.Node, dim: int, start: int | None, end: int | None, step: int) -> fx.Node:
    first, last, _ = slice(start, end).indices(int(value_of(x).shape[dim]))
    return _put(emit, x, source, dim, first, last)


def _put(emit: Emitter, x: fx.Node, source: fx.Node, dim: int, start: int, end: int) -> fx.Node:
    """Write `x` with the places from `start` to `end` along `dim` taken from `source`."""
    size = int(value_of(x).shape[dim])
    parts = [emit.cast(source, value_of(x).dtype)] if end > start else []
    if start:
        parts.insert(0, emit(aten.slice.Tensor, x, dim, 0, start, 1))
    if max(end, start) < size:
        parts.append(emit(aten.slice.Tensor, x, dim, max(end, start), size, 1))
    return emit(aten.cat.default, parts, dim) if len(parts) > 1 else parts[0]


@lowers("_upsample_nearest_exact1d.vec", "_upsample_nearest_exact2d.vec", "_upsample_nearest_exact3d.vec")
def _nearest_exact(emit: Emitter, x: fx.Node, sizes: Any, scales: Sequence[float] | None) -> fx.Node:
    for dim, size in enumerate(value_of(emit.node).shape[2:], 2):
        source = int(value_of(x).shape[dim])
        step = source / int(size) if scales is None else 1 / scales[dim - 2]
        places = [min(math.floor((place + 0.5) * step), source - 1) for place in range(int(size))]
        x = emit(aten.index_select.default, x, dim, emit.constant(torch.tensor(places)))
    return x


@lowers("grid_sampler_2d.default")
def _grid_sampler_2d(emit: Emitter, x: fx.Node, grid: fx.Node, interpolation: int, padding: int, align: bool) -> fx.Node:
    return emit(aten.grid_sampler.default, x, grid, interpolation, padding, align)

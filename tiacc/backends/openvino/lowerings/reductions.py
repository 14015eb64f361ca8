"""Reductions, and variances with any correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from tiacc.backends.openvino.lowering import Emitter, lowers
from tiacc.backends.openvino.lowerings import images
from tiacc.backends.openvino.lowerings.common import normal_dims, value_of

aten = torch.ops.aten


@lowers("sum.default", "prod.default", "mean.default")
def _reduce_all(emit: Emitter, x: fx.Node, dtype: torch.dtype | None) -> fx.Node | None:
    wanted = value_of(emit.node).dtype
    if dtype is None and value_of(x).dtype == wanted:
        return None
    return emit(emit.node.target, emit.cast(x, wanted))  # type: ignore[arg-type]


@lowers("sum.dim_IntList", "prod.dim_int", "mean.dim")
def _reduce_dims(emit: Emitter, x: fx.Node, dims: Any, keepdim: bool, dtype: torch.dtype | None) -> fx.Node | None:
    wanted = value_of(emit.node).dtype
    if dims is None or dims == []:
        dims = list(range(value_of(x).dim()))
    elif dtype is None and value_of(x).dtype == wanted:
        is_sum_of_parts = emit.node.target is aten.sum.dim_IntList and not keepdim and normal_dims(dims, value_of(x).dim()) == [1]
        return images.sum_of_parts(emit, x) if is_sum_of_parts else None
    return emit(emit.node.target, emit.cast(x, wanted), dims, keepdim)  # type: ignore[arg-type]


@lowers("cumsum.default")
def _cumsum(emit: Emitter, x: fx.Node, dim: int, dtype: torch.dtype | None) -> fx.Node | None:
    wanted = value_of(emit.node).dtype
    if dtype is None and value_of(x).dtype == wanted:
        return None
    return emit(aten.cumsum.default, emit.cast(x, wanted), dim)


@lowers("any.dims", "all.dims")
def _any_dims(emit: Emitter, x: fx.Node, dims: Any, keepdim: bool) -> fx.Node:
    single = aten.any.dim if "any" in str(emit.node.target) else aten.all.dim
    for dim in reversed(normal_dims(dims, value_of(x).dim())):
        x = emit(single, x, dim, keepdim)
    return x


@lowers("count_nonzero.dim_IntList", "count_nonzero.default")
def _count_nonzero(emit: Emitter, x: fx.Node, dims: Any) -> fx.Node:
    counted = emit(aten.to.dtype, emit(aten.ne.Scalar, x, 0), torch.int64)
    return emit(aten.sum.dim_IntList, counted, normal_dims(dims, value_of(x).dim()), False)


def _variance(emit: Emitter, x: fx.Node, dims: Any, correction: float | None, keepdim: bool) -> tuple[fx.Node, fx.Node] | None:
    """Write variance and mean with a correction that OpenVINO lacks; None where it has it."""
    correction = 1 if correction is None else correction
    if correction in (0, 1):
        return None
    dims = normal_dims(dims, value_of(x).dim())
    mean = emit(aten.mean.dim, x, dims, True)
    squares = emit(aten.square.default, emit(aten.sub.Tensor, x, mean))
    count = math.prod(int(value_of(x).shape[dim]) for dim in dims)
    scale = 1 / (count - correction) if count > correction else math.inf
    variance = emit(aten.mul.Scalar, emit(aten.sum.dim_IntList, squares, dims, keepdim), scale)
    return variance, mean if keepdim else emit(aten.squeeze.dims, mean, dims)


@lowers("var.correction", "std.correction")
def _var(emit: Emitter, x: fx.Node, dims: Any, correction: float | None, keepdim: bool) -> fx.Node | None:
    found = _variance(emit, x, dims, correction, keepdim)
    if found is None:
        return None
    return emit(aten.sqrt.default, found[0]) if "std" in str(emit.node.target) else found[0]


@lowers("var_mean.correction", "std_mean.correction")
def _var_mean(emit: Emitter, x: fx.Node, dims: Any, correction: float | None, keepdim: bool) -> Sequence[fx.Node] | None:
    found = _variance(emit, x, dims, correction, keepdim)
    if found is None:
        return None
    return (emit(aten.sqrt.default, found[0]) if "std" in str(emit.node.target) else found[0]), found[1]

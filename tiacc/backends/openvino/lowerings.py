"""The lowerings: what OpenVINO lacks, or gets wrong, in operators that it has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from tiacc.backends.openvino.lowering import Emitter, lowers
from tiacc.graph import specs

aten = torch.ops.aten


def _value(node: fx.Node) -> torch.Tensor:
    return specs.tensor_of(node)


def _normal(dims: Any, rank: int) -> list[int]:
    """Return dimensions as a list of numbers from 0; all of them for None or none given."""
    if dims is None or dims == []:
        return list(range(rank))
    return sorted(dim % rank for dim in ([dims] if isinstance(dims, int) else dims))


# -- element-wise functions ------------------------------------------------------------------------------------------------------


@lowers("softplus.default")
def _softplus(emit: Emitter, x: fx.Node, beta: float, threshold: float) -> fx.Node | None:
    # OpenVINO's SoftPlus is log(1 + exp(x)): it has no beta, and torch's threshold only saves time where both agree to float32.
    if beta == 1 and threshold >= 20:
        return None
    scaled = emit(aten.mul.Scalar, x, beta)
    soft = emit(aten.div.Scalar, emit(aten.softplus.default, scaled), beta)
    return emit(aten.where.self, emit(aten.gt.Scalar, scaled, threshold), x, soft)


@lowers("threshold.default")
def _threshold(emit: Emitter, x: fx.Node, threshold: float, value: float) -> fx.Node:
    return emit(aten.masked_fill.Scalar, x, emit(aten.le.Scalar, x, threshold), value)


@lowers("hardshrink.default")
def _hardshrink(emit: Emitter, x: fx.Node, limit: float) -> fx.Node:
    return emit(aten.masked_fill.Scalar, x, emit(aten.le.Scalar, emit(aten.abs.default, x), limit), 0)


@lowers("softshrink.default")
def _softshrink(emit: Emitter, x: fx.Node, limit: float) -> fx.Node:
    return emit(aten.sub.Tensor, x, emit(aten.clamp.default, x, -limit, limit))


def _truncated(emit: Emitter, x: fx.Node) -> fx.Node:
    if not _value(x).dtype.is_floating_point:
        return x
    return emit(aten.mul.Tensor, emit(aten.sign.default, x), emit(aten.floor.default, emit(aten.abs.default, x)))


@lowers("trunc.default")
def _trunc(emit: Emitter, x: fx.Node) -> fx.Node:
    return _truncated(emit, x)


@lowers("frac.default")
def _frac(emit: Emitter, x: fx.Node) -> fx.Node:
    return emit(aten.sub.Tensor, x, _truncated(emit, x))


@lowers("floor.default", "ceil.default", "round.default")
def _rounding(emit: Emitter, x: fx.Node) -> fx.Node | None:
    return None if _value(x).dtype.is_floating_point else x


@lowers("round.decimals")
def _round_decimals(emit: Emitter, x: fx.Node, decimals: int) -> fx.Node:
    scale = float(10 ** abs(decimals))
    into, back = (aten.mul.Scalar, aten.div.Scalar) if decimals > 0 else (aten.div.Scalar, aten.mul.Scalar)
    return emit(back, emit(aten.round.default, emit(into, x, scale)), scale)


@lowers("positive.default", "alpha_dropout.default")
def _unchanged(emit: Emitter, x: fx.Node, *rest: Any) -> fx.Node:
    return x


@lowers("deg2rad.default")
def _deg2rad(emit: Emitter, x: fx.Node) -> fx.Node:
    return emit(aten.mul.Scalar, emit.cast(x, _value(emit.node).dtype), math.pi / 180)


@lowers("sinc.default")
def _sinc(emit: Emitter, x: fx.Node) -> fx.Node:
    angle = emit(aten.mul.Scalar, emit.cast(x, _value(emit.node).dtype), math.pi)
    ratio = emit(aten.div.Tensor, emit(aten.sin.default, angle), angle)
    return emit(aten.masked_fill.Scalar, ratio, emit(aten.eq.Scalar, angle, 0), 1)


@lowers("logit.default")
def _logit(emit: Emitter, x: fx.Node, eps: float | None) -> fx.Node:
    x = emit.cast(x, _value(emit.node).dtype)
    if eps is not None:
        x = emit(aten.clamp.default, x, eps, 1 - eps)
    return emit(aten.log.default, emit(aten.div.Tensor, x, emit(aten.rsub.Scalar, x, 1)))


@lowers("xlogy.Tensor")
def _xlogy(emit: Emitter, x: fx.Node, y: fx.Node) -> fx.Node:
    dtype = _value(emit.node).dtype
    x, y = emit.cast(x, dtype), emit.cast(y, dtype)
    product = emit(aten.mul.Tensor, x, emit(aten.log.default, y))
    return emit(aten.masked_fill.Scalar, product, emit(aten.eq.Scalar, x, 0), 0)


@lowers("nan_to_num.default")
def _nan_to_num(emit: Emitter, x: fx.Node, nan: float | None, posinf: float | None, neginf: float | None) -> fx.Node:
    limits = torch.finfo(_value(x).dtype)
    filled = emit(aten.masked_fill.Scalar, x, emit(aten.isnan.default, x), 0.0 if nan is None else nan)
    for infinity, value in ((math.inf, limits.max if posinf is None else posinf), (-math.inf, limits.min if neginf is None else neginf)):
        filled = emit(aten.masked_fill.Scalar, filled, emit(aten.eq.Scalar, x, infinity), value)
    return filled


@lowers("isposinf.default")
def _isposinf(emit: Emitter, x: fx.Node) -> fx.Node:
    return emit(aten.eq.Scalar, x, math.inf)


@lowers("isneginf.default")
def _isneginf(emit: Emitter, x: fx.Node) -> fx.Node:
    return emit(aten.eq.Scalar, x, -math.inf)


@lowers("addcdiv.default")
def _addcdiv(emit: Emitter, x: fx.Node, first: fx.Node, second: fx.Node, value: float) -> fx.Node:
    return emit(aten.add.Tensor, x, emit(aten.mul.Scalar, emit(aten.div.Tensor, first, second), value))


# -- division of integers: OpenVINO divides in float32, and rounds towards zero ---------------------------------------------------


def _divide(emit: Emitter, x: Any, y: Any, rounding: str) -> fx.Node:
    """Write the rounded quotient in floating point; it is exact for integers below 2**24."""
    wide = _value(emit.node).dtype
    wide = wide if wide.is_floating_point else torch.float32
    x, y = emit.cast(x, wide), emit.cast(y, wide)
    quotient = emit(aten.div.Scalar if not isinstance(y, fx.Node) else aten.div.Tensor, x, y)
    return emit(aten.floor.default, quotient) if rounding == "floor" else _truncated(emit, quotient)


@lowers("floor_divide.default", "floor_divide.Scalar")
def _floor_divide(emit: Emitter, x: fx.Node, y: Any) -> fx.Node:
    return emit.cast(_divide(emit, x, y, "floor"), _value(emit.node).dtype)  # type: ignore[no-any-return]


@lowers("div.Tensor_mode", "div.Scalar_mode")
def _div_mode(emit: Emitter, x: fx.Node, y: Any, rounding_mode: str | None) -> fx.Node:
    dtype = _value(emit.node).dtype
    if rounding_mode is None:
        return emit(aten.div.Tensor if isinstance(y, fx.Node) else aten.div.Scalar, emit.cast(x, dtype), emit.cast(y, dtype))
    return emit.cast(_divide(emit, x, y, rounding_mode), dtype)  # type: ignore[no-any-return]


def _modulo(emit: Emitter, x: fx.Node, y: Any, rounding: str) -> fx.Node:
    dtype = _value(emit.node).dtype
    quotient = emit.cast(_divide(emit, x, y, rounding), dtype)
    x, y = emit.cast(x, dtype), emit.cast(y, dtype)
    whole = emit(aten.mul.Tensor if isinstance(y, fx.Node) else aten.mul.Scalar, quotient, y)
    return emit(aten.sub.Tensor, x, whole)


@lowers("remainder.Tensor", "remainder.Scalar")
def _remainder(emit: Emitter, x: fx.Node, y: Any) -> fx.Node:
    return _modulo(emit, x, y, "floor")


@lowers("fmod.Tensor", "fmod.Scalar")
def _fmod(emit: Emitter, x: fx.Node, y: Any) -> fx.Node:
    return _modulo(emit, x, y, "trunc")


# -- reductions --------------------------------------------------------------------------------------------------------------------


@lowers("sum.default", "prod.default", "mean.default")
def _reduce_all(emit: Emitter, x: fx.Node, dtype: torch.dtype | None) -> fx.Node | None:
    wanted = _value(emit.node).dtype
    if dtype is None and _value(x).dtype == wanted:
        return None
    return emit(emit.node.target, emit.cast(x, wanted))  # type: ignore[arg-type]


@lowers("sum.dim_IntList", "prod.dim_int", "mean.dim")
def _reduce_dims(emit: Emitter, x: fx.Node, dims: Any, keepdim: bool, dtype: torch.dtype | None) -> fx.Node | None:
    wanted = _value(emit.node).dtype
    if dims is None or dims == []:
        dims = list(range(_value(x).dim()))
    elif dtype is None and _value(x).dtype == wanted:
        return None
    return emit(emit.node.target, emit.cast(x, wanted), dims, keepdim)  # type: ignore[arg-type]


@lowers("cumsum.default")
def _cumsum(emit: Emitter, x: fx.Node, dim: int, dtype: torch.dtype | None) -> fx.Node | None:
    wanted = _value(emit.node).dtype
    if dtype is None and _value(x).dtype == wanted:
        return None
    return emit(aten.cumsum.default, emit.cast(x, wanted), dim)


@lowers("any.dims", "all.dims")
def _any_dims(emit: Emitter, x: fx.Node, dims: Any, keepdim: bool) -> fx.Node:
    single = aten.any.dim if "any" in str(emit.node.target) else aten.all.dim
    for dim in reversed(_normal(dims, _value(x).dim())):
        x = emit(single, x, dim, keepdim)
    return x


@lowers("count_nonzero.dim_IntList", "count_nonzero.default")
def _count_nonzero(emit: Emitter, x: fx.Node, dims: Any) -> fx.Node:
    counted = emit(aten.to.dtype, emit(aten.ne.Scalar, x, 0), torch.int64)
    return emit(aten.sum.dim_IntList, counted, _normal(dims, _value(x).dim()), False)


def _variance(emit: Emitter, x: fx.Node, dims: Any, correction: float | None, keepdim: bool) -> tuple[fx.Node, fx.Node] | None:
    """Write variance and mean with a correction that OpenVINO lacks; None where it has it."""
    correction = 1 if correction is None else correction
    if correction in (0, 1):
        return None
    dims = _normal(dims, _value(x).dim())
    mean = emit(aten.mean.dim, x, dims, True)
    squares = emit(aten.square.default, emit(aten.sub.Tensor, x, mean))
    count = math.prod(int(_value(x).shape[dim]) for dim in dims)
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


# -- products ----------------------------------------------------------------------------------------------------------------------


def _blend(emit: Emitter, x: fx.Node, product: fx.Node, beta: float, alpha: float) -> fx.Node:
    product = product if alpha == 1 else emit(aten.mul.Scalar, product, alpha)
    if beta == 0:
        return emit(aten.expand.default, product, _value(emit.node).shape)
    return emit(aten.add.Tensor, x if beta == 1 else emit(aten.mul.Scalar, x, beta), product)


@lowers("addbmm.default")
def _addbmm(emit: Emitter, x: fx.Node, first: fx.Node, second: fx.Node, beta: float, alpha: float) -> fx.Node:
    return _blend(emit, x, emit(aten.sum.dim_IntList, emit(aten.bmm.default, first, second), [0], False), beta, alpha)


@lowers("addmv.default")
def _addmv(emit: Emitter, x: fx.Node, matrix: fx.Node, vector: fx.Node, beta: float, alpha: float) -> fx.Node:
    return _blend(emit, x, emit(aten.mv.default, matrix, vector), beta, alpha)


@lowers("addr.default")
def _addr(emit: Emitter, x: fx.Node, first: fx.Node, second: fx.Node, beta: float, alpha: float) -> fx.Node:
    return _blend(emit, x, emit(aten.outer.default, first, second), beta, alpha)


@lowers("inner.default")
def _inner(emit: Emitter, x: fx.Node, y: fx.Node) -> fx.Node:
    if not _value(x).dim() or not _value(y).dim():
        return emit(aten.mul.Tensor, x, y)
    return emit(aten.matmul.default, x, emit(aten.t.default, y))


@lowers("cosine_similarity.default")
def _cosine_similarity(emit: Emitter, x: fx.Node, y: fx.Node, dim: int, eps: float) -> fx.Node:
    def unit(item: fx.Node) -> fx.Node:
        norm = emit(aten.linalg_vector_norm.default, item, 2, [dim], True)
        return emit(aten.div.Tensor, item, emit(aten.clamp_min.default, norm, eps))

    shape = torch.broadcast_shapes(_value(x).shape, _value(y).shape)
    x, y = (item if _value(item).shape == shape else emit(aten.expand.default, item, list(shape)) for item in (x, y))
    return emit(aten.sum.dim_IntList, emit(aten.mul.Tensor, unit(x), unit(y)), [dim], False)


@lowers("pairwise_distance.default")
def _pairwise_distance(emit: Emitter, x: fx.Node, y: fx.Node, p: float, eps: float, keepdim: bool) -> fx.Node:
    difference = emit(aten.add.Scalar, emit(aten.sub.Tensor, x, y), eps)
    return emit(aten.linalg_vector_norm.default, difference, p, [-1], keepdim)


# -- attention ---------------------------------------------------------------------------------------------------------------------


@lowers("scaled_dot_product_attention.default")
def _grouped_attention(
    emit: Emitter,
    query: fx.Node,
    key: fx.Node,
    value: fx.Node,
    mask: fx.Node | None,
    dropout: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool = False,
) -> fx.Node | None:
    if not enable_gqa:
        return None
    heads = int(_value(query).shape[-3])
    key, value = (
        emit(aten.repeat_interleave.self_int, item, heads // int(_value(item).shape[-3]), -3) for item in (key, value)
    )
    return emit(aten.scaled_dot_product_attention.default, query, key, value, mask, 0.0, is_causal, scale=scale)


@lowers("_transformer_encoder_layer_fwd.default")
def _encoder_layer(
    emit: Emitter,
    x: fx.Node,
    width: int,
    heads: int,
    qkv_weight: fx.Node,
    qkv_bias: fx.Node,
    proj_weight: fx.Node,
    proj_bias: fx.Node,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: fx.Node,
    norm_bias_1: fx.Node,
    norm_weight_2: fx.Node,
    norm_bias_2: fx.Node,
    ffn_weight_1: fx.Node,
    ffn_bias_1: fx.Node,
    ffn_weight_2: fx.Node,
    ffn_bias_2: fx.Node,
    *rest: Any,
) -> fx.Node:
    batch, length = emit.size(x, 0), emit.size(x, 1)

    def attend(item: fx.Node) -> fx.Node:
        joined = emit(aten.split.Tensor, emit(aten.linear.default, item, qkv_weight, qkv_bias), width, -1)
        split = [
            emit(aten.transpose.int, emit(aten.reshape.default, emit.item(joined, place), [batch, length, heads, width // heads]), 1, 2)
            for place in range(3)
        ]
        mixed = emit(aten.transpose.int, emit(aten.scaled_dot_product_attention.default, *split), 1, 2)
        return emit(aten.linear.default, emit(aten.reshape.default, mixed, [batch, length, width]), proj_weight, proj_bias)

    def feed(item: fx.Node) -> fx.Node:
        hidden = emit(aten.linear.default, item, ffn_weight_1, ffn_bias_1)
        hidden = emit(aten.gelu.default if use_gelu else aten.relu.default, hidden)
        return emit(aten.linear.default, hidden, ffn_weight_2, ffn_bias_2)

    for step, weight, bias in ((attend, norm_weight_1, norm_bias_1), (feed, norm_weight_2, norm_bias_2)):
        if norm_first:
            x = emit(aten.add.Tensor, x, step(emit(aten.layer_norm.default, x, [width], weight, bias, eps)))
        else:
            x = emit(aten.layer_norm.default, emit(aten.add.Tensor, x, step(x)), [width], weight, bias, eps)
    return x


# -- shapes ------------------------------------------------------------------------------------------------------------------------


@lowers("expand.default", "broadcast_to.default", "expand_as.default")
def _expand(emit: Emitter, x: fx.Node, *rest: Any) -> fx.Node | None:
    return None if _value(emit.node).dim() else x  # OpenVINO crashes on an expansion to a number


@lowers("mT.default", "mH.default", "adjoint.default")
def _matrix_transpose(emit: Emitter, x: fx.Node) -> fx.Node:
    return emit(aten.transpose.int, x, -2, -1)


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
    missing = _value(x).dim() - len(repeats)
    repeats = [1] * max(missing, 0) + list(repeats)
    return emit(aten.repeat.default, x, repeats) if repeats else x


def _raise_rank(emit: Emitter, x: fx.Node, rank: int) -> fx.Node:
    have = _value(x).dim()
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
    dtype = _value(emit.node).dtype
    return emit(aten.cat.default, [_raise_rank(emit, emit.cast(item, dtype), rank) for item in tensors], dim)


@lowers("hstack.default")
def _hstack(emit: Emitter, tensors: Sequence[fx.Node]) -> fx.Node:
    return _join(emit, tensors, 1, 0 if _value(tensors[0]).dim() <= 1 else 1)


@lowers("vstack.default")
def _vstack(emit: Emitter, tensors: Sequence[fx.Node]) -> fx.Node:
    return _join(emit, tensors, 2, 0)


@lowers("dstack.default")
def _dstack(emit: Emitter, tensors: Sequence[fx.Node]) -> fx.Node:
    return _join(emit, tensors, 3, 2)


@lowers("column_stack.default")
def _column_stack(emit: Emitter, tensors: Sequence[fx.Node]) -> fx.Node:
    columns = [emit(aten.reshape.default, item, [-1, 1]) if _value(item).dim() <= 1 else item for item in tensors]
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
    size = int(_value(x).shape[dim])
    index = index % size
    return _put(emit, x, emit(aten.unsqueeze.default, source, dim % _value(x).dim()), dim, index, index + 1)


@lowers("slice_scatter.default")
def _slice_scatter(emit: Emitter, x: fx.Node, source: fx.Node, dim: int, start: int | None, end: int | None, step: int) -> fx.Node:
    first, last, _ = slice(start, end).indices(int(_value(x).shape[dim]))
    return _put(emit, x, source, dim, first, last)


def _put(emit: Emitter, x: fx.Node, source: fx.Node, dim: int, start: int, end: int) -> fx.Node:
    """Write `x` with the places from `start` to `end` along `dim` taken from `source`."""
    size = int(_value(x).shape[dim])
    parts = [emit.cast(source, _value(x).dtype)] if end > start else []
    if start:
        parts.insert(0, emit(aten.slice.Tensor, x, dim, 0, start, 1))
    if max(end, start) < size:
        parts.append(emit(aten.slice.Tensor, x, dim, max(end, start), size, 1))
    return emit(aten.cat.default, parts, dim) if len(parts) > 1 else parts[0]


@lowers("index_put.default")
def _index_put(emit: Emitter, x: fx.Node, indices: Sequence[fx.Node | None], values: fx.Node, accumulate: bool) -> fx.Node:
    copy = emit(aten.clone.default, x)
    return emit(aten.index_put_.default, copy, list(indices), values, accumulate)


# -- resampling --------------------------------------------------------------------------------------------------------------------


@lowers("_upsample_nearest_exact1d.vec", "_upsample_nearest_exact2d.vec", "_upsample_nearest_exact3d.vec")
def _nearest_exact(emit: Emitter, x: fx.Node, sizes: Any, scales: Sequence[float] | None) -> fx.Node:
    for dim, size in enumerate(_value(emit.node).shape[2:], 2):
        source = int(_value(x).shape[dim])
        step = source / int(size) if scales is None else 1 / scales[dim - 2]
        places = [min(math.floor((place + 0.5) * step), source - 1) for place in range(int(size))]
        x = emit(aten.index_select.default, x, dim, emit.constant(torch.tensor(places)))
    return x


@lowers("grid_sampler_2d.default")
def _grid_sampler_2d(emit: Emitter, x: fx.Node, grid: fx.Node, interpolation: int, padding: int, align: bool) -> fx.Node:
    return emit(aten.grid_sampler.default, x, grid, interpolation, padding, align)

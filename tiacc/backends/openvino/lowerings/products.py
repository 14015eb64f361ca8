"""Products of matrices and vectors, attention, encoder layers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from tiacc.backends.openvino.lowering import Emitter, lowers
from tiacc.backends.openvino.lowerings.common import value_of
from tiacc.graph import torch_compat

aten = torch.ops.aten


def _blend(emit: Emitter, x: fx.Node, product: fx.Node, beta: float, alpha: float) -> fx.Node:
    product = product if alpha == 1 else emit(aten.mul.Scalar, product, alpha)
    if beta == 0:
        return product
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
    if not value_of(x).dim() or not value_of(y).dim():
        return emit(aten.mul.Tensor, x, y)
    return emit(aten.matmul.default, x, emit(aten.t.default, y))


@lowers("cosine_similarity.default")
def _cosine_similarity(emit: Emitter, x: fx.Node, y: fx.Node, dim: int, eps: float) -> fx.Node:
    def unit(item: fx.Node) -> fx.Node:
        norm = emit(aten.linalg_vector_norm.default, item, 2, [place], True)
        return emit(aten.div.Tensor, item, emit(aten.clamp_min.default, norm, eps))

    place = dim - max(value_of(x).dim(), value_of(y).dim()) if dim >= 0 else dim
    sizes = [value_of(item).shape[place] if -place <= value_of(item).dim() else 1 for item in (x, y)]
    if not torch_compat.same_size(*sizes):  # it is broadcast along the very dimension that the norm is of
        both = emit(aten.broadcast_tensors.default, [x, y])
        x, y = emit.item(both, 0), emit.item(both, 1)
    return emit(aten.sum.dim_IntList, emit(aten.mul.Tensor, unit(x), unit(y)), [place], False)


@lowers("pairwise_distance.default")
def _pairwise_distance(emit: Emitter, x: fx.Node, y: fx.Node, p: float, eps: float, keepdim: bool) -> fx.Node:
    difference = emit(aten.add.Scalar, emit(aten.sub.Tensor, x, y), eps)
    return emit(aten.linalg_vector_norm.default, difference, p, [-1], keepdim)


@lowers("scaled_dot_product_attention.default")
def _attention(
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
    if enable_gqa:
        heads = int(value_of(query).shape[-3])
        key, value = (
            emit(aten.repeat_interleave.self_int, item, heads // int(value_of(item).shape[-3]), -3) for item in (key, value)
        )
    elif mask is None:
        return None
    mixed = emit(aten.scaled_dot_product_attention.default, query, key, value, mask, 0.0, is_causal, scale=scale)
    if mask is None:
        return mixed
    # Where all is masked, torch gives zeros, and OpenVINO what is no number.
    is_read = mask if value_of(mask).dtype == torch.bool else emit(aten.ne.Scalar, mask, -math.inf)
    return emit(aten.masked_fill.Scalar, mixed, emit(aten.logical_not.default, emit(aten.any.dim, is_read, -1, True)), 0)


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

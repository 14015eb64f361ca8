"""Attention: as TensorRT's own layer where it takes the operands, else as products and a softmax."""

from __future__ import annotations

import math
from typing import Any

import torch

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.tensorrt import attention_layer
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.backends.tensorrt.conversion import Conversion
from tiacc.backends.tensorrt.converters import FLOATS, converts
from tiacc.backends.tensorrt.converters.activations import softmax_of
from tiacc.backends.tensorrt.converters.normalization import normalized
from tiacc.backends.tensorrt.extents import counting, cut, fixed
from tiacc.backends.tensorrt.layers import Tensor
from tiacc.backends.tensorrt.shaping import Value
from tiacc.backends.tensorrt.sizes import is_same, is_static, product

aten = torch.ops.aten

OPERANDS = FLOATS | {torch.bool}

# -- the attention of tensors -----------------------------------------------------------------------------------------------------


def attend(
    net: Conversion,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Value | None,
    *,
    is_causal: bool,
    scale: float,
    is_alone: bool = True,
) -> Tensor:
    """Return softmax(scale · Q Kᵀ + mask) V; zeros for a query that may attend to nothing.

    Args:
        net: The network.
        query: ``(..., heads, L, E)``.
        key: ``(..., heads, S, E)``.
        value: ``(..., heads, S, V)``.
        mask: Broadcast to ``(..., heads, L, S)``: of bools that are true where a query may attend, or of numbers to add. None for none.
        is_causal: Whether query i attends to the keys 0 to i only.
        scale: The factor.
        is_alone: Whether TensorRT's layer may be among the layers round it (`attention_layer.is_alone`).
    """
    scaled = net.binary("PROD", query, scale)
    if is_alone and net.flavour.has("attention") and _fits_layer(net, query, key, value, mask):
        return _by_layer(net, scaled, key, value, mask, is_causal)
    return net.matmul(_weights(net, scaled, key, mask, is_causal), value)


def _fits_layer(net: Conversion, query: Tensor, key: Tensor, value: Tensor, mask: Value | None) -> bool:
    """Return whether TensorRT's layer takes the operands: of rank 4, keys and values of one shape, heads whose number is known."""
    shapes = [net.shape(tensor) for tensor in (query, key, value)]
    if any(len(shape) != 4 for shape in shapes) or (mask is not None and net.rank(mask) > 4):
        return False
    if not all(map(is_same, shapes[1], shapes[2])) or not is_static([shape[1] for shape in shapes]):
        return False
    return all(is_same(shapes[0][axis], shapes[1][axis]) for axis in (0, 1, 3))


def _by_layer(net: Conversion, query: Tensor, key: Tensor, value: Tensor, mask: Value | None, is_causal: bool) -> Tensor:
    attributes: dict[str, Any] = {"decomposable": True}  # without, a data type that has no fused kernel is refused
    if mask is not None:
        attributes["mask"] = net.tensor(mask, rank=4)
    normalisation = net.trt.AttentionNormalizationOp.SOFTMAX
    result = net.add("attention", query, key, value, normalisation, is_causal, **attributes)
    if mask is None:
        return result
    return _without_empty(net, result, mask)


def _without_empty(net: Conversion, value: Tensor, mask: Value) -> Tensor:
    """Return rows, with zeros for those for which the mask leaves nothing."""
    is_open = _open_rows(net, mask)
    if isinstance(is_open, torch.Tensor) and bool(is_open.all()):
        return value
    return net.select(is_open, value, 0.0, net.dtype(value))


def _open_rows(net: Conversion, mask: Value) -> Value:
    """Return whether each row of a mask leaves something to attend to."""
    if isinstance(mask, torch.Tensor):
        kept = mask if mask.dtype == torch.bool else mask > -math.inf
        return kept.any(-1, keepdim=True)
    if net.dtype(mask) == torch.bool:
        return net.cast(net.reduce("MAX", net.cast(mask, torch.int32), (-1,), keepdim=True), torch.bool)
    return net.binary("GREATER", net.reduce("MAX", mask, (-1,), keepdim=True), -math.inf)


def _weights(net: Conversion, query: Tensor, key: Tensor, mask: Value | None, is_causal: bool) -> Tensor:
    """Return the weights of the keys for each query."""
    scores = net.matmul(query, key, transpose_second=True)
    rank = net.rank(scores)
    if is_causal:
        rows, columns = (counting(net, net.shape(scores)[axis]) for axis in (-2, -1))
        is_later = net.binary("GREATER", net.unsqueeze(columns, [0]), net.unsqueeze(rows, [1]))
        scores = net.select(is_later, -math.inf, scores, net.dtype(scores))
    if mask is None:
        return softmax_of(net, scores, rank - 1)
    dtype = mask.dtype if isinstance(mask, torch.Tensor) else net.dtype(mask)
    is_choice = dtype == torch.bool
    scores = net.select(mask, scores, -math.inf, net.dtype(scores)) if is_choice else net.binary("SUM", scores, mask)
    return _without_empty(net, softmax_of(net, scores, rank - 1), mask)


# -- scaled_dot_product_attention -------------------------------------------------------------------------------------------------


def _check(view: NodeView) -> Support:
    if view.value("dropout_p"):
        return Support(False, "attention with dropout is random")
    if view.value("scale") is None and not fixed(view.fake("query").shape[-1]):
        return Support(False, "attention over vectors of a dynamic size, or of none")
    if view.value("enable_gqa") and _groups(view, "key") is None:
        return Support(False, "grouped attention with a dynamic number of heads")
    return SUPPORTED


def _groups(view: NodeView, name: str) -> int | None:
    """Return how many query heads share a head of `name`."""
    heads, own = (fixed(view.fake(item).shape[-3]) for item in ("query", name))
    return None if heads is None or not own else heads // own


@converts(aten.scaled_dot_product_attention.default, dtypes=OPERANDS, check=_check)
def scaled_dot_product_attention(call: Call) -> Value:
    """Attention, masked or causal, with heads of its own or shared."""
    net, is_causal, is_alone = call.net, bool(call.number("is_causal")), attention_layer.is_alone(call)
    operands = [call.tensor(name) for name in ("query", "key", "value")]
    mask = call.operand("attn_mask")
    scale = call.number("scale")
    scale = 1 / math.sqrt(call.fake("query").shape[-1]) if scale is None else float(scale)
    if call.number("enable_gqa"):
        operands[1:] = [_shared(net, operand, _groups(call, name)) for operand, name in zip(operands[1:], ("key", "value"))]
    if max(net.rank(operand) for operand in operands) == 3:
        lifted = [net.unsqueeze(operand, [1]) for operand in operands]
        if mask is not None:
            mask = net.unsqueeze(net.tensor(mask, rank=2), [-3])
        return net.squeeze(attend(net, lifted[0], lifted[1], lifted[2], mask, is_causal=is_causal, scale=scale, is_alone=is_alone), [1])
    rank = max(2, *(net.rank(operand) for operand in operands))
    query, key, value = (net.raise_rank(operand, rank) for operand in operands)
    return attend(net, query, key, value, mask, is_causal=is_causal, scale=scale, is_alone=is_alone)


def _shared(net: Conversion, value: Tensor, groups: int | None) -> Tensor:
    """Return a tensor with each head repeated, for the consecutive query heads that share it."""
    if groups is None or groups == 1:
        return value
    sizes = list(net.shape(value))
    wide = net.expand(net.unsqueeze(value, [-3]), [*sizes[:-2], groups, *sizes[-2:]])
    return net.reshape(wide, [*sizes[:-3], product([sizes[-3], groups]), *sizes[-2:]])


# -- torch's fused layers ---------------------------------------------------------------------------------------------------------


def linear_of(net: Conversion, value: Value, weight: Value, bias: Value | None) -> Tensor:
    """Return x Wᵀ + b."""
    result = net.matmul(net.tensor(value), weight, transpose_second=True)
    return result if bias is None else net.binary("SUM", result, bias)


def _heads(net: Conversion, value: Value, count: int) -> Value:
    """Return ``(N, L, heads · E)`` as ``(N, heads, L, E)``."""
    sizes = net.shape(value)
    split = net.reshape(value, [*sizes[:2], count, int(sizes[2]) // count])  # type: ignore[arg-type]
    return net.permute(split, (0, 2, 1, 3))


def padding_mask(net: Conversion, mask: Value, kind: int | None) -> Value:
    """Return a mask of torch's fused layers, true where a key is left out, as one that is true where it is kept, of rank 4.

    Source: ``mask_type`` in torch's ``native_multi_head_attention``: 0 is ``(L, L)``, 1 is ``(N, L)``, 2 is ``(N, heads, L, L)``.
    """
    kept = net.logical_not(net.tensor(mask, torch.bool))
    axes = {0: (0, 1), 1: (1, 2)}.get(2 if kind is None else kind, ())
    return net.unsqueeze(kept, axes) if axes and net.rank(kept) == 2 else kept


def self_attention(
    call: Call, heads: int, values: tuple[Value, Value, Value], *, has_weights: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return multi-head attention before its last projection, ``(N, L, E)``, and, if wanted, the weights of the keys."""
    net = call.net
    weight, bias, mask = (call.operand(name) for name in ("qkv_weight", "qkv_bias", "mask"))
    width = int(net.shape(weight)[0]) // 3  # type: ignore[arg-type]
    if values[0] is values[1] is values[2]:
        joint = linear_of(net, values[0], weight, bias)
        parts = [cut(net, joint, 2, index * width, width) for index in range(3)]
    else:
        parts = [
            linear_of(net, item, cut(net, weight, 0, index * width, width), cut(net, bias, 0, index * width, width))
            for index, item in enumerate(values)
        ]
    query, key, value = (_heads(net, part, heads) for part in parts)
    if mask is not None:
        mask = padding_mask(net, mask, call.args["mask_type"])
    scale = 1 / math.sqrt(width // heads)
    weights = _weights(net, net.binary("PROD", query, scale), key, mask, False) if has_weights else None
    mixed = attend(net, query, key, value, mask, is_causal=False, scale=scale) if weights is None else net.matmul(weights, value)
    sizes = net.shape(mixed)
    return net.reshape(net.permute(mixed, (0, 2, 1, 3)), [sizes[0], sizes[2], width]), weights


def _fused_check(view: NodeView) -> Support:
    source = "src" if "src" in view.args else "query"
    if view.fake(source).dim() != 3:
        return Support(False, "a fused attention layer of a tensor that is not of rank 3")
    if any(fixed(size) == 0 for size in view.fake(source).shape):
        return Support(False, "a fused attention layer of a tensor without elements")
    mask = view.value("mask")
    if mask is not None and view.value("mask_type") is None:
        return Support(False, "a fused attention layer with a mask of no known kind")
    return SUPPORTED


@converts(aten._native_multi_head_attention.default, dtypes=OPERANDS, check=_fused_check)
def native_multi_head_attention(call: Call) -> list[Value | None]:
    """Multi-head attention with its projections, and the weights of the keys."""
    net, heads = call.net, call.number("num_head")
    sources = (call.operand("query"), call.operand("key"), call.operand("value"))
    is_used, is_wanted = call.is_used(1), bool(call.number("need_weights"))
    mixed, weights = self_attention(call, heads, sources, has_weights=is_used and is_wanted)
    result = linear_of(net, mixed, call.operand("proj_weight"), call.operand("proj_bias"))
    if is_used and not is_wanted:
        return [result, torch.empty([int(size) for size in call.out[1].shape], dtype=call.dtype)]
    return [result, net.reduce("AVG", weights, (1,)) if weights is not None and call.number("average_attn_weights") else weights]


@converts(aten._transformer_encoder_layer_fwd.default, dtypes=OPERANDS, check=_fused_check)
def transformer_encoder_layer(call: Call) -> Value:
    """A whole layer of a transformer encoder, normalised before or after its two parts."""
    net, value, is_first = call.net, call.tensor("src"), bool(call.number("norm_first"))
    kind = "GELU_ERF" if call.number("use_gelu") else "RELU"

    def norm(item: Tensor, index: int) -> Tensor:
        scale, shift = (net.unsqueeze(call.operand(f"norm_{part}_{index}"), (0, 1)) for part in ("weight", "bias"))
        return normalized(net, item, (2,), float(call.number("eps")), scale, shift)

    def attention(item: Tensor) -> Tensor:
        mixed, _ = self_attention(call, call.number("num_heads"), (item, item, item))
        return linear_of(net, mixed, call.operand("proj_weight"), call.operand("proj_bias"))

    def feed_forward(item: Tensor) -> Tensor:
        hidden = net.activation(kind, linear_of(net, item, call.operand("ffn_weight_1"), call.operand("ffn_bias_1")))
        return linear_of(net, hidden, call.operand("ffn_weight_2"), call.operand("ffn_bias_2"))

    for index, part in enumerate((attention, feed_forward), 1):
        inner = part(norm(value, index) if is_first else value)
        value = net.binary("SUM", value, inner)
        value = value if is_first else norm(value, index)
    return value

"""Transformer layers: attention, rotary embedding, the key-value cache and mixtures of experts."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tiacc.backends.tensorrt.interpreter.layers import LayerCall, evaluates

# The inputs of the layer ATTENTION_INPUT. The fifth, a scale for quantised probabilities, is not evaluated.
_QUERY, _KEY, _VALUE, _MASK, _QUERY_LENGTHS, _KEY_VALUE_LENGTHS = 0, 1, 2, 3, 5, 6


@evaluates("ATTENTION_INPUT")
def attention(call: LayerCall) -> Tensor:
    """Evaluate IAttention at the boundary layer that holds its operands: ``normalize(Q Kᵀ + mask) V``, by batch and head.

    Nothing is divided by the square root of the head's size; who wants it scales the query. With fewer key-value heads
    than query heads, each serves as many consecutive query heads. A boolean mask keeps where it is true. A query that
    may attend to nothing gives zeros. Source: ``nvinfer1::IAttention`` and NVIDIA's ONNX parser, which puts ONNX's
    scaling before the layer.
    """
    settings = call.layer.attention
    if settings.norm_op.name not in ("SOFTMAX", "NONE"):
        raise call.unsupported(f"normalisation {settings.norm_op.name}")
    if call.optional(4) is not None:
        raise call.unsupported("quantised attention probabilities")
    forms = [_form(settings, name) for name in ("query_form", "key_value_form")]
    query, key, value = call.input(_QUERY), call.input(_KEY), call.input(_VALUE)
    if forms == ["PADDED_BHND", "PADDED_BHND"] and call.optional(_KEY_VALUE_LENGTHS) is None:
        return _attend(call, query, key, value, call.optional(_MASK))
    # The query's lengths count only in the packed layout.
    queries = _sequences(query, forms[0], call.ints(_QUERY_LENGTHS) if forms[0] == "PACKED_NHD" else None)
    lengths = call.ints(_KEY_VALUE_LENGTHS)
    keys, values = (_sequences(x, forms[1], lengths) for x in (key, value))
    if _causal(settings) == "LOWER_RIGHT" and forms[0] != forms[1]:
        raise call.unsupported("a causal mask aligned to the lower right where only one side has sequence lengths")
    mask = call.optional(_MASK)
    parts = []
    for index, (q, k, v) in enumerate(zip(queries, keys, values, strict=True)):
        part = None if mask is None else mask[index if mask.shape[0] > 1 else 0, :, : q.shape[1], : k.shape[1]].unsqueeze(0)
        parts.append(_attend(call, q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), part).squeeze(0))
    return torch.cat([p.transpose(0, 1) for p in parts]) if forms[0] == "PACKED_NHD" else torch.stack(parts)


@evaluates("ATTENTION_OUTPUT", arithmetic=False)
def attention_output(call: LayerCall) -> Tensor:
    """Evaluate the boundary layer behind which an attention's result is seen."""
    return call.input()


def _form(settings: Any, name: str) -> str:
    # Releases before the packed layouts know only the padded one.
    form = getattr(settings, name, None)
    return "PADDED_BHND" if form is None else str(form.name)


def _causal(settings: Any) -> str:
    """Return the alignment of the causal mask; releases before `causal_kind` have only the upper-left one."""
    kind = getattr(settings, "causal_kind", None)
    if kind is not None:
        return str(kind.name)
    return "UPPER_LEFT" if settings.causal else "NONE"


def _sequences(x: Tensor, form: str, lengths: list[int] | None) -> list[Tensor]:
    """Return the sequences ``(heads, length, size)`` of a padded or packed operand.

    The lengths are those of each sequence for a padded operand, and running totals from 0 for a packed one.
    """
    if form == "PADDED_BHND":
        return [x[index, :, :length] for index, length in enumerate(lengths or [x.shape[2]] * len(x))]
    totals = lengths or []
    return [x[start:end].transpose(0, 1) for start, end in itertools.pairwise(totals)]


def _attend(call: LayerCall, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    settings = call.layer.attention
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    logits = query @ key.transpose(-1, -2)
    causal = _causal(settings)
    is_kept: Tensor | None = None
    if mask is not None:
        if mask.dtype == torch.bool:
            is_kept = mask
        else:
            logits = logits + mask
    if causal != "NONE":
        rows, columns = logits.shape[-2:]
        offset = columns - rows if causal == "LOWER_RIGHT" else 0
        before = torch.arange(columns) <= torch.arange(rows).unsqueeze(1) + offset
        is_kept = before if is_kept is None else is_kept & before
    if settings.norm_op.name == "NONE":
        if is_kept is not None:
            raise call.unsupported("a mask of keys without normalisation")
        return logits @ value
    if is_kept is not None:
        logits = logits.masked_fill(~is_kept, -math.inf)
    is_empty = (logits == -math.inf).all(-1, keepdim=True)
    return torch.softmax(logits, -1).masked_fill(is_empty, 0.0) @ value


@evaluates("ROTARY_EMBEDDING")
def rotary_embedding(call: LayerCall) -> Tensor:
    """Evaluate IRotaryEmbeddingLayer: pairs of the first ``rotary_embedding_dim`` elements (0: all) turned by an angle each.

    The input is ``(batch, heads, length, size)``; cosines and sines are ``(batch, length, size / 2)``, or ``(positions,
    size / 2)`` looked up by the position ids ``(batch, length)`` of input 3. A pair is two neighbours if interleaved,
    else one of each half.
    """
    x, cosine, sine, positions = call.input(0), call.input(1), call.input(2), call.optional(3)
    size = call.layer.rotary_embedding_dim or x.shape[-1]
    if positions is not None:
        cosine, sine = cosine[positions.to(torch.int64)], sine[positions.to(torch.int64)]
    cosine, sine = cosine.unsqueeze(1), sine.unsqueeze(1)
    turned, rest = x[..., :size], x[..., size:]
    pair_axis = (-1, -2)[not call.layer.interleaved]
    first, second = turned.unflatten(-1, (-1, 2) if call.layer.interleaved else (2, -1)).unbind(pair_axis)
    pairs = torch.stack([first * cosine - second * sine, first * sine + second * cosine], pair_axis)
    return torch.cat([pairs.flatten(-2), rest], -1)


@evaluates("KV_CACHE_UPDATE", arithmetic=False)
def kv_cache_update(call: LayerCall) -> Tensor:
    """Evaluate IKVCacheUpdateLayer: the cache ``(batch, heads, length, size)`` with new entries from an index on."""
    if _form(call.layer, "update_form") != "PADDED_BHND":
        raise call.unsupported("updates in the packed layout")
    cache, update = call.input(0).clone(), call.input(1)
    for index, start in enumerate(call.ints(2) or ()):
        cache[index, :, start : start + update.shape[2]] = update[index]
    return cache


@evaluates("MOE")
def mixture_of_experts(call: LayerCall) -> Tensor:
    """Evaluate IMoELayer: for each token the scored sum of its experts, each ``(act(x G + g) * (x U + u)) D + d``.

    Inputs: hidden states ``(..., size)``, selected experts and their scores ``(..., k)``, gate, up and down weights
    ``(experts, in, out)``, and their biases if there are any.
    """
    layer = call.layer
    if layer.quantization_to_type.name in ("FP8", "FP4", "INT8", "INT4"):
        raise call.unsupported("quantised experts")
    if (layer.swiglu_param_limit, layer.swiglu_param_alpha, layer.swiglu_param_beta) != (math.inf, 1.0, 0.0):
        raise call.unsupported("SwiGLU parameters other than the default ones, whose formula is not documented")
    hidden, chosen, scores = call.input(0), call.input(1).to(torch.int64), call.input(2)
    weights = [call.input(index) for index in (3, 4, 5)]
    biases = [call.optional(index) for index in (6, 7, 8)]
    result = torch.zeros_like(hidden)
    for expert in range(weights[0].shape[0]):
        share = torch.where(chosen == expert, scores, torch.zeros_like(scores)).sum(-1, keepdim=True)
        gate, up = (_linear(hidden, weights[i][expert], biases[i], expert) for i in (0, 1))
        inner = (F.silu(gate) if layer.activation_type.name == "SILU" else gate) * up
        result = result + share * _linear(inner, weights[2][expert], biases[2], expert)
    return result


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, expert: int) -> Tensor:
    return x @ weight if bias is None else x @ weight + bias[expert]

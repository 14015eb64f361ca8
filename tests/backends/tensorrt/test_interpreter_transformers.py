"""Attention, rotary embedding, the key-value cache, mixtures of experts and quantisation, against formulas in torch."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.backends.tensorrt.networks import DTYPES, Net, assert_close, evaluate, seeded, trt
from tiacc.backends.tensorrt.interpreter import UnsupportedLayerError
from tiacc.backends.tensorrt.interpreter.dtypes import round_to_fp4

NORM = trt.AttentionNormalizationOp


def attention(net: Net, *operands: Any, kind: str = "NONE", norm: Any = NORM.SOFTMAX) -> Any:
    return net.add_attention_v2(*operands, norm, getattr(trt.CausalMaskKind, kind))


def operands(dtype: torch.dtype = torch.float32, heads: int = 4, shared: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = seeded(2, heads, 5, 8), seeded(2, shared, 7, 8, seed=1), seeded(2, shared, 7, 8, seed=2)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def inputs(net: Net, *values: Tensor) -> list[Any]:
    return [net.input(f"x{index}", *value.shape, dtype=value.dtype) for index, value in enumerate(values)]


def eager(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    return F.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=1.0, enable_gqa=True, **options)


@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_attention_does_not_scale_and_shares_keys(dtype: torch.dtype, heads: int, shared: int) -> None:
    q, k, v = operands(dtype, heads, shared)
    net = Net()
    have = evaluate(attention(net, *inputs(net, q, k, v)).get_output(0), net, q, k, v)
    assert_close(have, eager(q, k, v).to(dtype), {torch.float32: 1e-5}.get(dtype, 1e-2))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32], ids=str)
def test_attention_with_a_mask(dtype: torch.dtype) -> None:
    q, k, v = operands()
    mask = (seeded(2, 4, 5, 7, seed=3) > 0.2) if dtype == torch.bool else seeded(2, 4, 5, 7, seed=3)
    if dtype == torch.bool:
        mask[..., 0] = True
    net = Net()
    tensors = inputs(net, q, k, v, mask)
    layer = attention(net, *tensors[:3])
    layer.mask = tensors[3]
    want = eager(q, k, v, attn_mask=mask if dtype == torch.bool else mask.double())
    assert_close(evaluate(layer.get_output(0), net, q, k, v, mask), want.float())


def test_a_query_that_may_attend_to_nothing_gives_zeros() -> None:
    q, k, v = operands()
    mask = torch.ones(1, 1, 5, 7, dtype=torch.bool)
    mask[..., 2, :] = False
    net = Net()
    tensors = inputs(net, q, k, v, mask)
    layer = attention(net, *tensors[:3])
    layer.mask = tensors[3]
    have = evaluate(layer.get_output(0), net, q, k, v, mask)
    assert not have[:, :, 2].any()
    assert_close(have[:, :, 3], eager(q, k, v)[:, :, 3].float())


@pytest.mark.parametrize("kind", ["UPPER_LEFT", "LOWER_RIGHT"])
def test_causal_attention(kind: str) -> None:
    q, k, v = operands()
    mask = torch.ones(5, 7, dtype=torch.bool).tril(2 if kind == "LOWER_RIGHT" else 0)
    net = Net()
    have = evaluate(attention(net, *inputs(net, q, k, v), kind=kind).get_output(0), net, q, k, v)
    assert_close(have, eager(q, k, v, attn_mask=mask).float())


def test_attention_without_normalisation() -> None:
    q, k, v = operands()
    net = Net()
    have = evaluate(attention(net, *inputs(net, q, k, v), norm=NORM.NONE).get_output(0), net, q, k, v)
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    assert_close(have, q @ k.mT @ v)


def test_attention_over_keys_of_different_lengths() -> None:
    q, k, v = operands()
    lengths = torch.tensor([3, 7], dtype=torch.int32)
    net = Net()
    tensors = inputs(net, q, k, v, lengths)
    layer = attention(net, *tensors[:3])
    layer.key_value_lengths = tensors[3]
    have = evaluate(layer.get_output(0), net, q, k, v, lengths)
    for index, length in enumerate(lengths.tolist()):
        assert_close(have[index], eager(q, k[:, :, :length], v[:, :, :length])[index].float())


@pytest.mark.parametrize("kind", ["NONE", "UPPER_LEFT", "LOWER_RIGHT"])
def test_attention_in_the_packed_layout(kind: str) -> None:
    starts, key_starts = [0, 2, 5], [0, 4, 7]
    q, k, v = seeded(5, 4, 8), seeded(7, 2, 8, seed=1), seeded(7, 2, 8, seed=2)
    totals = [torch.tensor(t, dtype=torch.int32) for t in (starts, key_starts)]
    net = Net()
    tensors = inputs(net, q, k, v, *totals)
    layer = attention(net, *tensors[:3], kind=kind)
    layer.query_form = layer.key_value_form = trt.AttentionIOForm.PACKED_NHD
    layer.query_lengths, layer.key_value_lengths = tensors[3:]
    have = evaluate(layer.get_output(0), net, q, k, v, *totals)
    for sequence in range(2):
        own, keys = slice(*starts[sequence : sequence + 2]), slice(*key_starts[sequence : sequence + 2])
        parts = [x.transpose(0, 1).unsqueeze(0) for x in (q[own], k[keys], v[keys])]
        rows, columns = parts[0].shape[2], parts[1].shape[2]
        mask = torch.ones(rows, columns, dtype=torch.bool)
        if kind != "NONE":
            mask = mask.tril(columns - rows if kind == "LOWER_RIGHT" else 0)
        assert_close(have[own].transpose(0, 1), eager(*parts, attn_mask=mask)[0].float())


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("size", [0, 4])
def test_rotary_embedding_is_a_rotation_of_complex_numbers(size: int, interleaved: bool) -> None:
    x, angles = seeded(2, 3, 5, 8), seeded(9, (size or 8) // 2, seed=1)
    positions = torch.tensor([[0, 1, 2, 3, 4], [8, 3, 3, 0, 7]])
    net = Net()
    layer = net.add_rotary_embedding(net.input("x", *x.shape), net.constant(angles.cos()), net.constant(angles.sin()), interleaved, size)
    layer.set_input(3, net.constant(positions))
    turned, rest = x[..., : size or 8], x[..., size or 8 :]
    pairs = turned.unflatten(-1, (-1, 2)) if interleaved else turned.unflatten(-1, (2, -1)).transpose(-1, -2)
    numbers = torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones(()), angles)[positions].unsqueeze(1)
    want = torch.view_as_real(numbers)
    want = want.flatten(-2) if interleaved else want.transpose(-1, -2).flatten(-2)
    assert_close(evaluate(layer, net, x), torch.cat([want, rest], -1))


def test_key_value_cache() -> None:
    cache, update, at = seeded(2, 3, 8, 4), seeded(2, 3, 2, 4, seed=1), torch.tensor([0, 5], dtype=torch.int32)
    net = Net()
    layer = net.add_kv_cache_update(*inputs(net, cache, update, at), trt.KVCacheMode.LINEAR)
    kept = cache.clone()
    have = evaluate(layer, net, cache, update, at)
    assert torch.equal(cache, kept)
    kept[0, :, 0:2], kept[1, :, 5:7] = update[0], update[1]
    assert_close(have, kept, 0.0)


@pytest.mark.parametrize("has_biases", [False, True])
def test_mixture_of_experts(has_biases: bool) -> None:
    hidden, chosen, scores = seeded(2, 3, 8), torch.randint(0, 4, (2, 3, 2), dtype=torch.int32), seeded(2, 3, 2, seed=1).abs()
    weights = [seeded(*s, seed=i) for i, s in enumerate([(4, 8, 16), (4, 8, 16), (4, 16, 8)])]
    biases = [seeded(*s, seed=i) for i, s in enumerate([(4, 16), (4, 16), (4, 8)])]
    net = Net()
    layer = net.add_moe(*inputs(net, hidden, chosen, scores))
    layer.set_gated_weights(*(net.constant(w) for w in weights), trt.MoEActType.SILU)
    if has_biases:
        layer.set_gated_biases(*(net.constant(b) for b in biases))
    else:
        biases = [torch.zeros_like(b) for b in biases]
    want = torch.zeros_like(hidden)
    for place in np.ndindex(2, 3):
        for rank in range(2):
            e = int(chosen[(*place, rank)])
            gate, up = (hidden[place] @ weights[i][e] + biases[i][e] for i in (0, 1))
            want[place] += scores[(*place, rank)] * ((F.silu(gate) * up) @ weights[2][e] + biases[2][e])
    assert_close(evaluate(layer, net, hidden, chosen, scores), want)


def test_settings_that_are_not_evaluated_are_refused_by_name() -> None:
    q, k, v = operands()
    mask = torch.ones(1, 1, 5, 7, dtype=torch.bool)
    net = Net()
    tensors = inputs(net, q, k, v, mask)
    layer = attention(net, *tensors[:3], norm=NORM.NONE)
    layer.mask = tensors[3]
    with pytest.raises(UnsupportedLayerError, match=r"AttentionInput.*a mask of keys without normalisation"):
        evaluate(layer.get_output(0), net, q, k, v, mask)


def test_refused_settings_of_attention_and_experts() -> None:
    q, k, v = operands()
    for text, setup in {
        "quantised attention probabilities": lambda layer, net: (
            setattr(layer, "normalization_quantize_to_type", trt.fp8),
            setattr(layer, "normalization_quantize_scale", net.constant(torch.tensor(1.0))),
        ),
        "aligned to the lower right where only one side": lambda layer, net: (
            setattr(layer, "causal_kind", trt.CausalMaskKind.LOWER_RIGHT),
            setattr(layer, "query_form", trt.AttentionIOForm.PACKED_NHD),
            setattr(layer, "query_lengths", net.constant([0, 2, 5])),
        ),
    }.items():
        is_packed = "lower right" in text
        net = Net()
        query = seeded(5, 4, 8) if is_packed else q
        layer = attention(net, *inputs(net, query, k, v))
        setup(layer, net)
        with pytest.raises(UnsupportedLayerError, match=text):
            evaluate(layer.get_output(0), net, query, k, v)
    hidden, chosen, scores = seeded(2, 3, 8), torch.zeros(2, 3, 2, dtype=torch.int32), seeded(2, 3, 2)
    net = Net()
    layer = net.add_moe(*inputs(net, hidden, chosen, scores))
    layer.set_gated_weights(*(net.constant(seeded(*s)) for s in [(4, 8, 16), (4, 8, 16), (4, 16, 8)]), trt.MoEActType.SILU)
    layer.set_swiglu_params(7.0, 1.702, 1.0)
    with pytest.raises(UnsupportedLayerError, match="SwiGLU parameters"):
        evaluate(layer, net, hidden, chosen, scores)


INT8_SCALES = [((), None), ((3,), 0), ((3, 2), None)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("shape", "axis"), INT8_SCALES, ids=str)
def test_int8_quantisation(shape: tuple[int, ...], axis: int | None, dtype: torch.dtype) -> None:
    x = seeded(3, 4, dtype=dtype) * 20
    scale = (seeded(*shape, seed=1).abs() * 0.2 + 0.05).to(dtype)
    net = Net()
    s = net.constant(scale)
    quantized = net.add_quantize(net.input("x", 3, 4, dtype=dtype), s, trt.int8)
    restored = net.add_dequantize(quantized.get_output(0), s, DTYPES[dtype])
    if axis is not None:
        quantized.axis = restored.axis = axis
    have = evaluate([quantized, restored], net, x)
    spread = {(): scale, (3,): scale.reshape(-1, 1)}.get(shape, scale.repeat_interleave(2, -1) if shape else scale).float()
    want = (x.float() / spread).round().clamp(-128, 127)
    assert int(want.abs().max()) >= 127
    assert_close(have[0], want.to(torch.int8), 0.0)
    assert_close(have[1], (want * spread).to(dtype), 1e-3)


def test_quantisation_rounds_ties_to_even() -> None:
    net = Net()
    layer = net.add_quantize(net.input("x", 6), net.constant(torch.tensor(2.0)), trt.int8)
    have = evaluate(layer, net, torch.tensor([1.0, 3.0, 5.0, -1.0, -3.0, 1000.0]))
    assert have.tolist() == [0, 2, 2, 0, -2, 127]


def test_fp8_quantisation() -> None:
    x = torch.cat([seeded(60) * 10, torch.tensor([1e4, -1e4, 0.0, 1e-6])])
    net = Net()
    s = net.constant(torch.tensor(0.125))
    quantized = net.add_quantize(net.input("x", 64), s, trt.fp8)
    have = evaluate(net.add_dequantize(quantized.get_output(0), s, trt.float32), net, x)
    numbers = np.clip(x.numpy() / 0.125, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert_close(have, torch.from_numpy(numbers) * 0.125, 0.0)


def test_fp4_numbers_are_the_nearest_ties_to_even() -> None:
    x = torch.arange(-8.0, 8.0, 0.125)
    want = x.numpy().astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert torch.equal(round_to_fp4(x), torch.from_numpy(want))


def test_dynamic_quantisation_to_fp4() -> None:
    x = seeded(4, 32)
    net = Net()
    layer = net.add_dynamic_quantize(net.input("x", 4, 32), 1, 16, trt.DataType.FP4, trt.DataType.FP8)
    layer.set_input(1, net.constant(0.01))
    values, scales = evaluate([layer, layer.get_output(1)], net, x)
    blocks = x.unflatten(1, (2, 16))
    largest = blocks.abs().amax(-1)
    unit = (largest / 6 / 0.01).numpy().astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert_close(scales.float(), torch.from_numpy(unit), 0.0)
    scale = torch.from_numpy(unit).unsqueeze(-1) * 0.01
    want = (blocks / scale).numpy().astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert_close(values.unflatten(1, (2, 16)), torch.from_numpy(want), 0.0)
    assert float((values.unflatten(1, (2, 16)) * scale - blocks).abs().max()) < float(largest.max()) / 5


def test_dynamic_quantisation_to_fp8_has_powers_of_two_as_scales() -> None:
    x = seeded(4, 64) * 3
    net = Net()
    layer = net.add_dynamic_quantize(net.input("x", 4, 64), 1, 32, trt.DataType.FP8, trt.DataType.E8M0)
    values, scales = evaluate([layer, layer.get_output(1)], net, x)
    scale = scales.float()
    blocks = x.unflatten(1, (2, 32))
    assert bool((torch.log2(scale) == torch.log2(scale).round()).all())
    largest = blocks.abs().amax(-1) / scale
    assert bool(((largest <= 448) & (largest > 224)).all())
    restored = values.float().unflatten(1, (2, 32)) * scale.unsqueeze(-1)
    assert bool(((restored - blocks).abs() <= blocks.abs() / 16 + scale.unsqueeze(-1) * 2**-9).all())


def test_dequantisation_with_a_zero_point() -> None:
    net = Net()
    values, zero = net.constant(torch.tensor([1, -3, 100], dtype=torch.int8)), net.constant(torch.tensor(0, dtype=torch.int8))
    layer = net.add_dequantize(values, net.constant(torch.tensor(0.25)), trt.float32)
    layer.set_input(2, zero)
    name = layer.get_input(2).name
    net.output(layer)
    assert_close(net.run(), torch.tensor([0.25, -0.75, 25.0]), 0.0)  # type: ignore[arg-type]
    owner = next(net.get_layer(i) for i in range(net.num_layers) if net.get_layer(i).get_output(0).name == name)
    owner.name = "zero"
    moved = net.run(constants={"zero": torch.tensor([4], dtype=torch.int8)})
    assert_close(moved, torch.tensor([-0.75, -1.75, 24.0]), 0.0)  # type: ignore[arg-type]


def test_fp4_weights_are_read_from_packed_bytes() -> None:
    numbers = torch.tensor([0.5, -6.0, 3.0, -1.5])
    codes = numbers.numpy().astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    packed = (codes[::2] & 15 | (codes[1::2] & 15) << 4).astype(np.uint8)
    net = Net()
    net.kept.append(packed)
    weights = net.network.add_constant((4,), trt.Weights(trt.DataType.FP4, packed.ctypes.data, 4)).get_output(0)
    layer = net.add_dequantize(weights, net.constant(torch.tensor(2.0)), trt.float32)
    assert_close(evaluate(layer, net), numbers * 2, 0.0)


def test_int4_weights_are_read_from_packed_bytes() -> None:
    numbers = [-8, 7, 3, -1, 0, 5]
    packed = np.array([(low & 15) | (high & 15) << 4 for low, high in zip(numbers[::2], numbers[1::2], strict=True)], np.uint8)
    net = Net()
    net.kept.append(packed)
    weights = net.network.add_constant((6,), trt.Weights(trt.int4, packed.ctypes.data, 6)).get_output(0)
    layer = net.add_dequantize(weights, net.constant(torch.tensor(0.5)), trt.float32)
    assert_close(evaluate(layer, net), torch.tensor(numbers) * 0.5, 0.0)
    assert math.isclose(float(net.run()[1]), 3.5)

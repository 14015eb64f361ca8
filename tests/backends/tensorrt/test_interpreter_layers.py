"""Single layers on networks written by hand, against formulas in torch and numpy: above all what ONNX's corpus does not reach."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.backends.tensorrt.networks import Net, assert_close, evaluate, seeded, trt
from tiacc.backends.tensorrt.interpreter import InterpretationError


@pytest.mark.parametrize("mode", ["FILL", "WRAP", "CLAMP", "REFLECT"])
def test_slice_modes_are_the_ways_to_pad(mode: str) -> None:
    x = seeded(3, 4, 5)
    before, after = (2, 0, 3), (1, 2, 2)
    net = Net()
    size = tuple(n + b + a for n, b, a in zip(x.shape, before, after, strict=True))
    layer = net.add_slice(net.input("x", *x.shape), tuple(-b for b in before), size, (1, 1, 1))
    layer.mode = getattr(trt.SampleMode, mode)
    kind: Any = {"FILL": "constant", "WRAP": "wrap", "CLAMP": "edge", "REFLECT": "reflect"}[mode]
    options = {}
    if mode == "FILL":
        layer.set_input(4, net.constant(1.5))
        options["constant_values"] = 1.5
    want = np.pad(x.numpy(), list(zip(before, after, strict=True)), kind, **options)
    assert_close(evaluate(layer, net, x), torch.from_numpy(want), 0.0)


def test_reflecting_a_single_element_repeats_it_and_none_is_an_error() -> None:
    net = Net()
    layer = net.add_slice(net.input("x", -1), (-2,), (5,), (1,))
    layer.mode = trt.SampleMode.REFLECT
    net.output(layer)
    assert_close(net.run(torch.tensor([7.0])), torch.full((5,), 7.0))  # type: ignore[arg-type]
    with pytest.raises(InterpretationError, match="has nothing to repeat"):
        net.run(torch.zeros(0))


def test_slices_given_by_tensors_and_by_axes() -> None:
    x = seeded(4, 5, 6)
    net = Net()
    layer = net.add_slice(net.input("x", *x.shape), (0,), (0,), (1,))
    for index, values in ((1, [4, 1]), (2, [2, 3]), (3, [-2, 1]), (5, [-1, 0])):
        layer.set_input(index, net.constant(values))
    assert_close(evaluate(layer, net, x), torch.from_numpy(x.numpy()[1:4, :, 4:0:-2].copy()), 0.0)


def test_a_slice_with_a_stride_of_zero_repeats() -> None:
    x = seeded(3, 1)
    net = Net()
    layer = net.add_slice(net.input("x", 3, 1), (0, 0), (3, 4), (1, 0))
    assert_close(evaluate(layer, net, x), x.expand(3, 4), 0.0)


def test_a_slice_out_of_bounds_is_an_error_that_names_the_layer() -> None:
    net = Net()
    layer = net.add_slice(net.input("x", -1), (2,), (3,), (1,))
    layer.name = "cut"
    net.output(layer)
    assert_close(net.run(torch.arange(5.0)), torch.tensor([2.0, 3.0, 4.0]))  # type: ignore[arg-type]
    with pytest.raises(InterpretationError, match=r"'cut' \(SLICE\).*from 2 to 4 is out of bounds"):
        net.run(torch.arange(4.0))


def test_fill_of_a_dynamic_shape() -> None:
    net = Net()
    layer = net.add_fill((1,), trt.FillOperation.LINSPACE, trt.int32)
    for index, value in enumerate((net.add_shape(net.input("x", -1, -1)).get_output(0), net.constant(5), net.constant([100, -10]))):
        layer.set_input(index, value)
    want = torch.tensor([[5, -5, -15], [105, 95, 85]], dtype=torch.int32)
    assert_close(evaluate(layer, net, seeded(2, 3)), want, 0.0)


def test_fill_is_exact_for_large_integers() -> None:
    net = Net()
    layer = net.add_fill((3,), trt.FillOperation.LINSPACE, trt.int64)
    layer.alpha, layer.beta = 2**53 + 1, 2
    assert evaluate(layer, net).tolist() == [2**53 + 1, 2**53 + 3, 2**53 + 5]


@pytest.mark.parametrize("operation", ["RANDOM_UNIFORM", "RANDOM_NORMAL"])
def test_random_fills_have_the_distribution_and_are_reproducible(operation: str) -> None:
    net = Net()
    layer = net.add_fill((100, 200), getattr(trt.FillOperation, operation), trt.float32)
    layer.alpha, layer.beta = 2.0, 5.0
    net.output(layer)
    one, same, other = net.run(), net.run(), net.run(seed=1)
    assert isinstance(one, Tensor) and isinstance(same, Tensor) and isinstance(other, Tensor)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    mean, deviation = (3.5, 3 / math.sqrt(12)) if operation == "RANDOM_UNIFORM" else (2.0, 5.0)
    assert abs(float(one.mean()) - mean) < 0.1
    assert abs(float(one.std()) - deviation) < 0.1


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_group_normalization(version: str) -> None:
    x, count = seeded(2, 6, 4, 5), {"v1": 3, "v2": 6}[version]
    weight, bias = seeded(count, seed=1), seeded(count, seed=2)
    net = Net()
    add = net.add_normalization if version == "v1" else net.add_normalization_v2
    scale, shift = (net.constant(v.reshape(1, -1, 1, 1)) for v in (weight, bias))
    layer = add(net.input("x", *x.shape), scale, shift, 0b1100)
    layer.num_groups, layer.epsilon = 3, 1e-3
    weight, bias = (v.repeat_interleave(6 // count) for v in (weight, bias))
    assert_close(evaluate(layer, net, x), F.group_norm(x, 3, weight, bias, 1e-3))


@pytest.mark.parametrize("version", ["add_normalization", "add_normalization_v2"])
def test_layer_and_instance_normalization(version: str) -> None:
    x = 100 + seeded(2, 3, 4, 5)
    for axes, shape in ((0b1000, (1, 1, 1, 5)), (0b1110, (1, 3, 4, 5)), (0b1100, (1, 3, 1, 1))):
        weight, bias = seeded(*shape, seed=1), seeded(*shape, seed=2)
        net = Net()
        layer = getattr(net, version)(net.input("x", *x.shape), net.constant(weight), net.constant(bias), axes)
        if axes == 0b1100:
            want = F.instance_norm(x, weight=weight.flatten(), bias=bias.flatten())
        else:
            normal = x.shape[axes.bit_length() - axes.bit_count() :]
            want = F.layer_norm(x, normal, weight.reshape(normal), bias.reshape(normal))
        assert_close(evaluate(layer, net, x), want, 1e-4)


@pytest.mark.parametrize("mode", ["UNIFORM", "CHANNEL", "ELEMENTWISE"])
def test_scale(mode: str) -> None:
    x = seeded(2, 3, 4, 5).abs() + 1
    shape = {"UNIFORM": (), "CHANNEL": (1, 3, 1, 1), "ELEMENTWISE": (3, 4, 5)}[mode]
    shift, factor, power = (seeded(*shape, seed=s).abs() + 0.5 for s in (1, 2, 3))
    net = Net()
    arrays = [np.ascontiguousarray(v.numpy().reshape(-1)) for v in (shift, factor, power)]
    layer = net.add_scale_nd(net.input("x", *x.shape), getattr(trt.ScaleMode, mode), *arrays, 1)
    assert_close(evaluate(layer, net, x), (x * factor + shift) ** power)


def test_scale_without_shift_and_power() -> None:
    x = seeded(2, 3, 4, 5)
    net = Net()
    layer = net.add_scale_nd(net.input("x", *x.shape), trt.ScaleMode.UNIFORM, trt.Weights(), np.array([3.0], np.float32), trt.Weights(), 1)
    assert_close(evaluate(layer, net, x), x * 3)


def test_local_response_normalization() -> None:
    x = seeded(2, 7, 3, 4)
    net = Net()
    layer = net.add_lrn(net.input("x", *x.shape), 5, 0.7, 0.6, 1.5)
    assert_close(evaluate(layer, net, x), F.local_response_norm(x, 5, 0.7, 0.6, 1.5))


def test_ragged_softmax() -> None:
    x, bounds = seeded(2, 3, 5), torch.tensor([[[5], [2], [1]], [[3], [4], [5]]], dtype=torch.int32)
    net = Net()
    layer = net.add_ragged_softmax(net.input("x", 2, 3, 5), net.input("bounds", 2, 3, 1, dtype=torch.int32))
    have = evaluate(layer, net, x, bounds)
    for b in range(2):
        for z in range(3):
            length = int(bounds[b, z])
            assert_close(have[b, z], F.pad(torch.softmax(x[b, z, :length], 0), [0, 5 - length]))


def test_padding_and_cropping() -> None:
    x = seeded(1, 2, 4, 5)
    net = Net()
    layer = net.add_padding_nd(net.input("x", *x.shape), (1, -2), (-1, 3))
    assert_close(evaluate(layer, net, x), F.pad(x, [-2, 3, 1, -1]), 0.0)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_non_zero(dtype: torch.dtype) -> None:
    x = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, -3.0]])
    net = Net()
    layer = net.add_non_zero(net.input("x", 2, 3), trt.int32 if dtype == torch.int32 else trt.int64)
    assert_close(evaluate(layer, net, x), torch.tensor([[0, 0, 1], [0, 2, 2]], dtype=dtype), 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool], ids=str)
def test_gathers_with_leading_axes_in_common(dtype: torch.dtype) -> None:
    x = (seeded(2, 3, 4, 5) * 3).to(dtype)
    flat, pairs = torch.tensor([[3, -1], [0, 2]]), torch.tensor([[[0, 3], [-1, 2], [1, 1]], [[2, 0], [2, -4], [0, 0]]])
    net = Net()
    default = net.add_gather(net.input("x", *x.shape, dtype=dtype), net.constant(flat.to(torch.int32)), 2)
    default.num_elementwise_dims = 1
    tuples = net.add_gather_v2(net.network.get_input(0), net.constant(pairs.to(torch.int32)), trt.GatherMode.ND)
    tuples.num_elementwise_dims = 1
    have = evaluate([default, tuples], net, x)
    assert_close(have[0], torch.stack([x[b][:, flat[b]] for b in range(2)]), 0.0)
    assert_close(have[1], torch.stack([torch.stack([x[b, i, j] for i, j in pairs[b]]) for b in range(2)]), 0.0)


def test_an_index_out_of_range_is_an_error() -> None:
    net = Net()
    net.output(net.add_gather(net.input("x", 4), net.input("i", 1, dtype=torch.int32), 0))
    net.run(seeded(4), torch.tensor([-4], dtype=torch.int32))
    for index in (4, -5):
        with pytest.raises(InterpretationError, match="out of range for size 4"):
            net.run(seeded(4), torch.tensor([index], dtype=torch.int32))


def test_scatters() -> None:
    x, updates = seeded(3, 4), seeded(2, 4, seed=1)
    net = Net()
    data = net.input("x", 3, 4)
    nd = net.add_scatter(data, net.constant([[2], [-3]]), net.constant(updates), trt.ScatterMode.ND)
    index = torch.tensor([[0, -1, 2, 3], [1, 0, -2, 1]])
    element = net.add_scatter(data, net.constant(index.to(torch.int32)), net.constant(updates), trt.ScatterMode.ELEMENT)
    element.axis = 1
    have = evaluate([nd, element], net, x)
    want = x.clone()
    want[2], want[0] = updates[0], updates[1]
    assert_close(have[0], want, 0.0)
    want = x.clone()
    for i in range(2):
        for j in range(4):
            want[i, index[i, j]] = updates[i, j]
    assert_close(have[1], want, 0.0)


def test_top_k_of_a_dynamic_count() -> None:
    x = torch.tensor([[3.0, 1.0, 3.0, 2.0], [0.0, 5.0, -1.0, 5.0]])
    net = Net()
    layer = net.add_topk(net.input("x", 2, 4), trt.TopKOperation.MIN, 1, 2)
    layer.set_input(1, net.input("k", dtype=torch.int32))
    values, places = evaluate([layer, layer.get_output(1)], net, x, torch.tensor(3, dtype=torch.int32))
    assert values.tolist() == [[1.0, 2.0, 3.0], [-1.0, 0.0, 5.0]]
    assert places.tolist() == [[1, 3, 0], [2, 0, 1]]
    assert places.dtype == torch.int32


def test_reversed_sequences() -> None:
    x, lengths = seeded(3, 4, 2), torch.tensor([1, 3, 4, 2], dtype=torch.int32)
    net = Net()
    layer = net.add_reverse_sequence(net.input("x", 5, 4, 2), net.input("n", 4, dtype=torch.int32))
    x = seeded(5, 4, 2)
    want = x.clone()
    for batch, length in enumerate(lengths.tolist()):
        want[:length, batch] = x[:length, batch].flip(0)
    assert_close(evaluate(layer, net, x, lengths), want, 0.0)


def test_suppression_of_overlapping_boxes() -> None:
    ops = pytest.importorskip("torchvision").ops
    corner = torch.rand(2, 40, 2, generator=torch.Generator().manual_seed(0))
    boxes = torch.cat([corner, corner + 0.05 + 0.4 * torch.rand(2, 40, 2, generator=torch.Generator().manual_seed(1))], -1)
    scores = torch.rand(2, 40, 3, generator=torch.Generator().manual_seed(2))
    for format_ in ("CORNER_PAIRS", "CENTER_SIZES"):
        net = Net()
        layer = net.add_nms(net.input("b", 2, 40, 4), net.input("s", 2, 40, 3), net.constant(6))
        layer.set_input(3, net.constant(0.3))
        layer.set_input(4, net.constant(0.2))
        layer.bounding_box_format = getattr(trt.BoundingBoxFormat, format_)
        given = boxes if format_ == "CORNER_PAIRS" else ops.box_convert(boxes, "xyxy", "cxcywh")
        rows, count = evaluate([layer, layer.get_output(1)], net, given, scores)
        want = []
        for batch in range(2):
            found = []
            for group in range(3):
                s = scores[batch, :, group]
                kept = ops.nms(boxes[batch], s, 0.3)
                found += [(-float(s[i]), group, int(i)) for i in kept[s[kept] > 0.2][:6]]
            want += [[batch, group, index] for _, group, index in sorted(found)]
        assert rows.tolist() == want
        assert int(count) == len(want) > 10


def test_einsum_and_cumulative_sums() -> None:
    a, b = seeded(2, 3, 4), seeded(4, 3, 5, seed=1)
    net = Net()
    layer = net.add_einsum([net.input("a", 2, 3, 4), net.input("b", 4, 3, 5)], "bij,jik->kb")
    assert_close(evaluate(layer, net, a, b), torch.tensordot(a, b.transpose(0, 1), ([1, 2], [0, 1])).T)
    for exclusive, backwards in ((False, False), (True, False), (False, True), (True, True)):
        net = Net()
        layer = net.add_cumulative(net.input("x", 3, 4), net.constant(1), trt.CumulativeOperation.SUM, exclusive, backwards)
        want = torch.zeros(3, 4)
        for j in range(4):
            span = slice(j + exclusive, 4) if backwards else slice(0, j + 1 - exclusive)
            want[:, j] = a[0][:, span].sum(1)
        assert_close(evaluate(layer, net, a[0]), want)


def test_one_hot_values_may_be_booleans() -> None:
    net = Net()
    values = net.add_cast(net.constant([0, 1]), trt.bool).get_output(0)
    layer = net.add_one_hot(net.input("i", 3, dtype=torch.int32), values, net.constant(4), 0)
    have = evaluate(layer, net, torch.tensor([2, -1, 7], dtype=torch.int32))
    want = torch.zeros(4, 3, dtype=torch.bool)
    want[2, 0] = want[3, 1] = True
    assert_close(have, want, 0.0)


def test_uint8_goes_in_and_out_through_casts() -> None:
    net = Net()
    doubled = net.elementwise("PROD", net.add_cast(net.input("x", 4, dtype=torch.uint8), trt.float32).get_output(0), net.constant([2.0]))
    have = evaluate(net.add_cast(doubled, trt.uint8), net, torch.tensor([0, 3, 100, 127], dtype=torch.uint8))
    assert_close(have, torch.tensor([0, 6, 200, 254], dtype=torch.uint8), 0.0)


def test_reductions_keep_integers_and_order() -> None:
    x = torch.tensor([[2**40, 3], [-5, 7]])
    net = Net()
    source = net.input("x", 2, 2, dtype=torch.int64)
    layers = [net.add_reduce(source, getattr(trt.ReduceOperation, name), 3, False) for name in ("SUM", "PROD", "MAX", "AVG")]
    have = evaluate(layers, net, x)
    total = 2**40 + 5
    assert [int(v) for v in have] == [total, -105 * 2**40, 2**40, total // 4]


def test_the_average_of_nothing_is_not_a_number() -> None:
    net = Net()
    layer = net.add_reduce(net.input("x", 2, -1), trt.ReduceOperation.AVG, 2, False)
    assert evaluate(layer, net, torch.zeros(2, 0)).isnan().all()

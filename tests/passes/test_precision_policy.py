from __future__ import annotations

import itertools
import warnings
from collections import Counter

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db

from tests.helpers import Dim, Sketch
from tiacc.passes import precision_policy
from tiacc.passes.precision_policy import NO_CPU_KERNEL, TABLE, Kind, constant_misfit, misfit, policy_of

aten = torch.ops.aten
HALVES = [torch.float16, torch.bfloat16]
RUN_IN_HALF = {name for name, policy in TABLE.items() if policy.kind in (Kind.COMPUTE, Kind.FOLLOW, Kind.MOVE)}
SAMPLED = sorted({op.aten_name for op in op_db} & RUN_IN_HALF - NO_CPU_KERNEL)


def test_each_operator_is_in_one_list_and_exists():
    lists = [precision_policy.COMPUTE, precision_policy.FOLLOW, precision_policy.MOVE, precision_policy.CONVERT]
    names = " ".join([*lists, *precision_policy.KEEP.values()]).split()
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert [name for name in names if not hasattr(aten, name)] == []
    assert set(names) == set(TABLE)


def converted(value, change):
    if isinstance(value, torch.Tensor):
        return change(value.detach())
    return type(value)(converted(item, change) for item in value) if isinstance(value, (list, tuple)) else value


def to_half(value, half):
    return converted(value, lambda tensor: tensor.to(half) if tensor.dtype == torch.float32 else tensor)


def to_float(value):
    return converted(value, lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)


def tensors_of(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for item in value for tensor in tensors_of(item)] if isinstance(value, (list, tuple)) else []


def assert_near(function, half, args, kwargs=None, units=8):
    """Compare half precision with float32 on the same rounded numbers, so that what is seen is the operator's own error."""
    args, kwargs = to_half(tuple(args), half), {key: to_half(value, half) for key, value in (kwargs or {}).items()}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        got = function(*args, **kwargs)
        want = function(*to_float(args), **{key: to_float(value) for key, value in kwargs.items()})
    for a, b in zip(tensors_of(got), tensors_of(want), strict=True):
        assert a.shape == b.shape
        if b.is_floating_point() and b.numel():
            scale = b[b.isfinite()].abs().max() if b.isfinite().any() else torch.ones(())
            error = (a.float() - b).nan_to_num(0, 0, 0).abs().max() / scale.clamp_min(1e-3)
            assert error < units * torch.finfo(half).eps, (args, kwargs, error)


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("name", SAMPLED)
def test_what_may_run_in_half_precision_does_and_is_near(name, half):
    """On the operator samples of torch: the CPU has a kernel for it, and the result is float32's within a few roundings."""
    entries = [op for op in op_db if op.aten_name == name and op.supports_dtype(torch.float32, "cpu")]
    checked = 0
    for op in entries[:2]:
        for sample in itertools.islice(op.sample_inputs("cpu", torch.float32, requires_grad=False), 3):
            if not {"dtype", "out_dtype"} & set(sample.kwargs):
                assert_near(op, half, (sample.input, *sample.args), sample.kwargs)
                checked += 1
    assert checked


def randn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def recurrent(gates, cells):
    weights = [randn(gates * 5, 4), randn(gates * 5, 5), randn(gates * 5), randn(gates * 5)]
    state = [randn(1, 2, 5) for _ in range(cells)]
    return randn(3, 2, 4), state if cells > 1 else state[0], weights, True, 1, 0.0, False, False, False


def cell(gates, cells):
    state = [randn(2, 5) for _ in range(cells)]
    return randn(2, 4), state if cells > 1 else state[0], randn(gates * 5, 4), randn(gates * 5, 5), randn(gates * 5), randn(gates * 5)


STATISTICS = (randn(3), randn(4)[:3], randn(3) / 9, randn(3).abs() + 0.5)
IMAGE, VOLUME, ROW = randn(2, 3, 6, 6), randn(2, 3, 4, 6, 4), randn(2, 4, 6)
TOKENS, NORMS = randn(2, 5, 8), (randn(8), randn(8), randn(8), randn(8))
ATTENTION = (randn(24, 8) / 3, randn(24), randn(8, 8) / 3, randn(8))
FEED_FORWARD = (randn(9, 8) / 3, randn(9), randn(8, 9) / 3, randn(8))
BY_HAND = {
    "_convolution": (IMAGE, randn(4, 3, 3, 3), randn(4), [1, 1], [1, 1], [1, 1], False, [0, 0], 1, False, False, True, True),
    "convolution": (IMAGE, randn(3, 4, 3, 3), None, [2, 2], [1, 1], [1, 1], True, [0, 0], 1),
    "conv_tbc": (randn(6, 2, 3), randn(3, 3, 4), randn(4)),
    "scaled_dot_product_attention": (randn(2, 2, 5, 8), randn(2, 2, 7, 8), randn(2, 2, 7, 8)),
    "_native_multi_head_attention": (TOKENS, TOKENS, TOKENS, 8, 2, *ATTENTION),
    "_transformer_encoder_layer_fwd": (TOKENS, 8, 2, *ATTENTION, True, False, 1e-3, *NORMS, *FEED_FORWARD),
    "gru": recurrent(3, 1),
    "lstm": recurrent(4, 2),
    "rnn_relu": recurrent(1, 1),
    "rnn_tanh": recurrent(1, 1),
    "gru_cell": cell(3, 1),
    "lstm_cell": cell(4, 2),
    "rnn_relu_cell": cell(1, 1),
    "rnn_tanh_cell": cell(1, 1),
    "divide": (randn(4, 5), randn(5) + 3),
    "multiply": (randn(4, 5), randn(5)),
    "subtract": (randn(4, 5), randn(5)),
    "prelu": (IMAGE, randn(3)),
    "threshold": (IMAGE, 0.25, -1.0),
    **dict.fromkeys(("adjoint", "alias", "celu", "detach", "elu", "hardsigmoid", "lift_fresh", "mish", "selu", "silu"), (IMAGE,)),
    "lift_fresh_copy": (IMAGE,),
    "numpy_T": (randn(3, 4),),
    "adaptive_avg_pool1d": (ROW, [3]),
    "adaptive_avg_pool2d": (IMAGE, [3, 4]),
    "adaptive_avg_pool3d": (VOLUME, [2, 3, 1]),
    "adaptive_max_pool1d": (ROW, [3]),
    "adaptive_max_pool2d": (IMAGE, [3, 4]),
    "adaptive_max_pool3d": (VOLUME, [2, 3, 1]),
    "max_pool2d_with_indices": (IMAGE, [2, 2]),
    "max_pool3d_with_indices": (VOLUME, [2, 2, 2]),
    "_native_batch_norm_legit_no_training": (IMAGE, *STATISTICS, 0.1, 1e-3),
    "instance_norm": (IMAGE, *STATISTICS[:2], None, None, True, 0.1, 1e-3, False),
    "_softmax": (randn(4, 7), -1, False),
    "upsample_bicubic2d": (IMAGE, [9, 8], False),
    "upsample_bilinear2d": (IMAGE, [9, 8], True),
    "upsample_linear1d": (ROW, [9], False),
    "upsample_trilinear3d": (VOLUME, [5, 4, 8], False),
    "upsample_nearest1d": (ROW, [9]),
    "upsample_nearest2d": (IMAGE, [9, 12]),
    "upsample_nearest3d": (VOLUME, [5, 4, 8]),
    "_upsample_nearest_exact1d": (ROW, [9]),
    "_upsample_nearest_exact2d": (IMAGE, [9, 12]),
    "_upsample_nearest_exact3d": (VOLUME, [5, 4, 8]),
    "embedding": (randn(9, 4), torch.tensor([[1, 8], [0, 3]])),
    "index": (randn(9, 4), [torch.tensor([1, 8]), torch.tensor([0, 3])]),
    "_unsafe_view": (randn(3, 4), [12]),
    "channel_shuffle": (randn(2, 4, 3, 3), 2),
    "concat": ([randn(3), randn(4)],),
    "concatenate": ([randn(3), randn(4)],),
    "row_stack": ([randn(3), randn(3)],),
    "moveaxis": (IMAGE, 1, 2),
    "swapaxes": (IMAGE, 1, 2),
    "swapdims": (IMAGE, 1, 2),
    "pixel_shuffle": (randn(2, 8, 3, 3), 2),
    "pixel_unshuffle": (IMAGE, 2),
    "pad": (IMAGE, [1, 2, 0, 1], "constant", 0.5),
    "reflection_pad1d": (ROW, [1, 2]),
    "reflection_pad2d": (IMAGE, [1, 2, 0, 1]),
    "reflection_pad3d": (VOLUME, [1, 2, 0, 1, 1, 1]),
    "replication_pad1d": (ROW, [1, 2]),
    "replication_pad2d": (IMAGE, [1, 2, 0, 1]),
    "replication_pad3d": (VOLUME, [1, 2, 0, 1, 1, 1]),
}

if "native_group_norm" not in SAMPLED:  # as before torch 2.13
    BY_HAND["native_group_norm"] = (IMAGE, *STATISTICS[:2], 2, 3, 36, 3, 1e-3)


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("name", BY_HAND)
def test_what_torch_has_no_samples_of(name, half):
    def function(*args):
        result = getattr(aten, name)(*args)
        return result[0] if name == "_native_multi_head_attention" else result  # the rest is left unset

    assert_near(function, half, BY_HAND[name])


def test_every_operator_that_may_run_in_half_precision_is_tried():
    only_on_a_gpu = {"cudnn_batch_norm"}
    assert set(BY_HAND).isdisjoint(SAMPLED)
    assert set(SAMPLED) | set(BY_HAND) | NO_CPU_KERNEL | only_on_a_gpu == RUN_IN_HALF


def policy(target, *args, half=torch.float16, shape=(2, 3, 8, 8), dtype=torch.float32, **kwargs):
    sketch = Sketch()
    x = sketch.input("x", *shape, dtype=dtype)
    node = sketch.call(target, *(x if arg == "x" else arg for arg in args), **kwargs)
    sketch.output(node)
    return policy_of(node, half)


@pytest.mark.parametrize(
    ("args", "kind", "words"),
    [
        ((aten.relu.default, "x"), Kind.MOVE, ""),
        ((aten.gelu.default, "x"), Kind.FOLLOW, ""),
        ((aten.matmul.default, "x", "x"), Kind.COMPUTE, ""),
        ((aten.exp.default, "x"), Kind.KEEP, "exponentials"),
        ((aten.cumsum.default, "x", 1), Kind.KEEP, "a sum of many terms"),
        ((aten.special_i0.default, "x"), Kind.KEEP, "no entry"),
        ((aten.to.dtype, "x", torch.float64), Kind.CONVERT, ""),
        ((aten.softmax.int, "x", 1), Kind.FOLLOW, ""),
        ((aten.softmax.int, "x", 1, torch.float32), Kind.KEEP, "the model asks for torch.float32"),
        ((aten.mean.dim, "x", [2, 3]), Kind.FOLLOW, ""),
        ((aten.sum.dim_IntList, "x", [1]), Kind.FOLLOW, ""),
        ((aten.sum.dim_IntList, "x", [1, 2, 3]), Kind.FOLLOW, ""),
        ((aten.sum.default, "x"), Kind.KEEP, "a sum of many terms"),
        ((aten.sum.dim_IntList, "x", [1]), Kind.FOLLOW, ""),
        ((aten.add.Scalar, "x", 1e-12), Kind.KEEP, "1e-12 is lost in float16"),
        ((aten.mul.Tensor, "x", -1e9), Kind.KEEP, "-1e+09 overflows float16"),
        ((aten.masked_fill.Scalar, "x", "x", float("-inf")), Kind.FOLLOW, ""),
        ((aten.clamp.default, "x", 1e-3, None), Kind.FOLLOW, ""),
        ((aten.clamp.default, "x", None, 1e5), Kind.KEEP, "100000 overflows float16"),
        ((aten.constant_pad_nd.default, "x", [1, 1], -1e9), Kind.KEEP, "overflows"),
        ((aten.layer_norm.default, "x", [8], None, None, 1e-12), Kind.FOLLOW, ""),
        ((aten.avg_pool3d.default, "x", [1, 1, 1]), Kind.KEEP, "no kernel"),
    ],
)
def test_the_policy_looks_at_the_arguments(args, kind, words):
    sketch = Sketch()
    x = sketch.input("x", 2, 3, 9, 9)
    node = sketch.call(*(x if isinstance(arg, str) else arg for arg in args))
    node.graph.output((node,))
    x.meta["val"] = torch.empty(2, 3, 9, 9)
    found = policy_of(node, torch.float16)
    assert (found.kind, bool(found.reason)) == (kind, bool(words))
    assert words in found.reason


def test_a_sum_over_a_dimension_that_varies_stays():
    sketch = Sketch()
    x = sketch.input("x", 2, Dim("n", 2, 4, 1000))
    short, long = sketch.call(aten.sum.dim_IntList, x, [0]), sketch.call(aten.sum.dim_IntList, x, [1])
    sketch.output(short, long)
    assert [policy_of(node, torch.float16).kind for node in (short, long)] == [Kind.FOLLOW, Kind.KEEP]


@pytest.mark.parametrize(
    ("number", "half", "words"),
    [
        (1e-5, torch.float16, "1e-05 is lost in float16"),
        (1e-5, torch.bfloat16, ""),
        (65504, torch.float16, ""),
        (65536, torch.float16, "65536 overflows float16"),
        (-1e9, torch.bfloat16, ""),
        (torch.finfo(torch.float32).min, torch.bfloat16, "-3.40282e+38 overflows bfloat16"),
        (float("inf"), torch.float16, ""),
        (float("nan"), torch.float16, ""),
        (0, torch.float16, ""),
        (True, torch.float16, ""),
        (None, torch.float16, ""),
    ],
)
def test_numbers_that_do_not_fit(number, half, words):
    assert misfit(number, half) == words


@pytest.mark.parametrize(
    ("tensor", "half", "words"),
    [
        (randn(50, 50), torch.float16, ""),
        (randn(50, 50), torch.bfloat16, ""),
        (randn(50, 50) * 1e-3, torch.float16, ""),
        (randn(50, 50) * 1e-8, torch.float16, "loses"),
        (randn(50, 50) * 1e-8, torch.bfloat16, ""),
        (torch.cat([randn(50), randn(50) * 1e-9]), torch.float16, ""),  # the small ones do not count beside the large
        (randn(50) * 1e5, torch.float16, "overflows float16"),
        (randn(50) * 1e5, torch.bfloat16, ""),
        (torch.tensor([0.0, float("-inf")]), torch.float16, ""),
        (torch.tensor([0.0, -1e9]), torch.float16, "overflows float16"),
        (torch.tensor([0.0, -1e9]), torch.bfloat16, ""),
        (torch.tensor([0.0, torch.finfo(torch.float32).min]), torch.bfloat16, "overflows bfloat16"),
        (torch.arange(2048.0), torch.float16, ""),
        (torch.arange(2100.0), torch.float16, "holds whole numbers that float16 rounds"),
        (torch.arange(300.0), torch.bfloat16, "holds whole numbers that bfloat16 rounds"),
        (torch.tensor(641.0), torch.bfloat16, ""),
        (torch.zeros(3), torch.float16, ""),
        (torch.zeros(0), torch.float16, ""),
        (torch.full((3,), float("nan")), torch.float16, ""),
    ],
)
def test_constants_that_do_not_fit(tensor, half, words):
    found = constant_misfit(tensor, half)
    assert words in found
    assert bool(found) == bool(words)

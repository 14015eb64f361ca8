"""How the interpreter runs: precision, checks, constants, memory, depth, threads and errors."""

from __future__ import annotations

import re
import sys
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.backends.tensorrt.networks import DTYPES, Net, assert_close, evaluate, seeded, trt
from tiacc.backends.tensorrt import interpreter as package
from tiacc.backends.tensorrt.interpreter import (
    InterpretationError,
    NetworkInterpreter,
    UnsupportedLayerError,
    interpret,
    refused_kinds,
    supported_kinds,
)
from tiacc.backends.tensorrt.interpreter import evaluate as evaluate_module
from tiacc.errors import InvalidArgumentError, TiaccError

HALF = [torch.float16, torch.bfloat16]


def product(net: Net, dtype: torch.dtype, *shapes: tuple[int, ...]) -> Any:
    a, b = (net.input(name, *shape, dtype=dtype) for name, shape in zip("ab", shapes, strict=True))
    return net.add_matrix_multiply(a, trt.MatrixOperation.NONE, b, trt.MatrixOperation.NONE)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_accumulates_in_float32_and_rounds_once(dtype: torch.dtype) -> None:
    a, b = seeded(8, 512, dtype=dtype), seeded(512, 8, seed=1, dtype=dtype)
    net = Net()
    have = evaluate(product(net, dtype, (8, 512), (512, 8)), net, a, b)
    exact = (a.double() @ b.double()).to(dtype)
    assert have.dtype == dtype
    # Rounded once: all but a few elements are the rounded exact product, and those are neighbours of it.
    assert float((have != exact).float().mean()) < 0.05
    assert_close(have, exact, 2 * torch.finfo(dtype).eps)
    softmax = Net()
    layer = softmax.add_softmax(softmax.input("x", 4, 4096, dtype=dtype))
    layer.axes = 2
    x = seeded(4, 4096, dtype=dtype)
    assert_close(evaluate(layer, softmax, x), torch.softmax(x.double(), 1).to(dtype), 2 * torch.finfo(dtype).eps)


def test_each_layer_rounds_to_its_declared_dtype() -> None:
    """65504 + 65504 overflows in float16, whatever comes after it."""
    net = Net()
    x = net.input("x", 1, dtype=torch.float16)
    doubled = net.elementwise("SUM", x, x)
    halved = net.elementwise("PROD", doubled, net.constant(torch.tensor([0.5], dtype=torch.float16)))
    net.output(halved)
    for compute_dtype in (torch.float32, torch.float64, None):
        have = net.run(torch.tensor([65504.0], dtype=torch.float16), compute_dtype=compute_dtype)
        assert isinstance(have, Tensor) and have.isinf().all()


def test_the_compute_dtype_is_what_layers_compute_in() -> None:
    a, b = torch.full((1, 3), 1.0), torch.tensor([[1e8], [1.0], [-1e8]])
    net = Net()
    net.output(product(net, torch.float32, (1, 3), (3, 1)))
    assert float(net.run(a, b, compute_dtype=torch.float64)) == 1.0  # type: ignore[arg-type]
    assert float(net.run(a, b)) != 1.0  # type: ignore[arg-type]
    seen = []
    original = evaluate_module._Run._call
    for compute_dtype, want in ((torch.float64, torch.float64), (torch.float32, torch.float32), (None, torch.float16)):
        half = Net()
        half.output(half.add_activation(half.input("x", 2, dtype=torch.float16), trt.ActivationType.TANH))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluate_module._Run, "_call", lambda *args: seen.append(original(*args)) or seen[-1])
            have = half.run(torch.ones(2, dtype=torch.float16), compute_dtype=compute_dtype)
        assert isinstance(have, Tensor) and have.dtype == torch.float16
        assert seen[-1].inputs[0].dtype == want
    with pytest.raises(InvalidArgumentError, match=re.escape("compute_dtype is torch.float16")):
        net.interpreter(compute_dtype=torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF, torch.int32, torch.int64, torch.int8], ids=str)
def test_constants_of_every_dtype_are_read_from_the_network(dtype: torch.dtype) -> None:
    value = (seeded(2, 3) * 10).to(dtype)
    net = Net()
    made = net.constant(value)
    if dtype == torch.int8:  # which may only be dequantised
        have = evaluate(net.add_dequantize(made, net.constant(torch.tensor(1.0)), trt.float32), net)
        assert_close(have, value.float(), 0.0)
    else:
        assert_close(evaluate(net.identity(made), net), value, 0.0)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_kernels_are_read_from_the_network(dtype: torch.dtype) -> None:
    x, weight, bias = seeded(1, 3, 5, 5, dtype=dtype), seeded(4, 3, 3, 3, seed=1, dtype=dtype), seeded(4, seed=2, dtype=dtype)
    net = Net()
    arrays = [trt.Weights(DTYPES[dtype], v.data_ptr(), v.numel()) for v in (weight, bias)]
    layer = net.add_convolution_nd(net.input("x", *x.shape, dtype=dtype), 4, (3, 3), *arrays)
    want = torch.nn.functional.conv2d(x.double(), weight.double(), bias.double())
    assert_close(evaluate(layer, net, x), want.to(dtype), 1e-2)


def test_given_constants_come_before_the_network_s_own() -> None:
    x = seeded(1, 2, 4, 4)
    net = Net()
    weight, bias = seeded(3, 2, 1, 1, seed=1), seeded(3, seed=2)
    conv = net.add_convolution_nd(net.input("x", *x.shape), 3, (1, 1), torch.zeros(3, 2, 1, 1).numpy(), torch.zeros(3).numpy())
    conv.name = "conv"
    offset = net.add_constant((1, 3, 1, 1), torch.zeros(3).numpy())
    offset.name = "offset"
    net.output(net.elementwise("SUM", conv.get_output(0), offset.get_output(0)))
    given = {"conv.kernel": weight, "conv.bias": bias, "offset": torch.full((3,), 7.0)}
    want = torch.nn.functional.conv2d(x, weight, bias) + 7
    assert_close(net.run(x, constants=given), want)  # type: ignore[arg-type]
    assert_close(net.run(x, constants={"conv": weight, "conv.bias": bias, "offset": torch.full((3,), 7.0)}), want)  # type: ignore[arg-type]
    assert not net.run(x).any()  # type: ignore[union-attr]


def test_constants_of_the_wrong_dtype_are_an_error() -> None:
    net = Net()
    layer = net.add_constant((2,), torch.zeros(2).numpy())
    layer.name = "c"
    net.output(net.identity(layer.get_output(0)))
    with pytest.raises(InterpretationError, match=r"'c' \(CONSTANT\): output .* is torch.float16 \(2,\); the network declares FLOAT"):
        net.run(constants={"c": torch.zeros(2, dtype=torch.float16)})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: x[..., :2], r"output .* is torch.float32 \(2, 2\); the network declares FLOAT \(2, 3\)"),
        (lambda x: x.unsqueeze(0), r"output .* is torch.float32 \(1, 2, 3\)"),
        (lambda x: x.to(torch.int64), r"output .* is torch.int64 \(2, 3\)"),
    ],
)
def test_a_value_that_is_not_as_declared_is_an_error(wrong: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    layer = net.add_unary(net.input("x", 2, 3), trt.UnaryOperation.EXP)
    layer.name = "exp"
    net.output(layer)
    interpreter = net.interpreter()
    evaluation = interpreter._evaluations[0]
    patched = type(evaluation)(lambda call: wrong(evaluation.function(call)), evaluation.is_arithmetic)
    monkeypatch.setitem(interpreter._evaluations, 0, patched)
    with pytest.raises(InterpretationError, match=r"'exp' \(UNARY\): " + message):
        interpreter.run({"x": seeded(2, 3)})


def chain(net: Net, length: int, *shape: int) -> Any:
    tensor = net.input("x", *shape)
    for _ in range(length):
        tensor = net.add_unary(tensor, trt.UnaryOperation.NEG).get_output(0)
    return tensor


def test_depth_is_not_limited_by_recursion() -> None:
    net = Net()
    net.output(chain(net, 6_000, 2))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(200 + len(_frames()))
    try:
        have = net.run(torch.ones(2))
    finally:
        sys.setrecursionlimit(limit)
    assert_close(have, torch.ones(2))  # type: ignore[arg-type]


def _frames() -> list[Any]:
    frame, frames = sys._getframe(), []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back  # type: ignore[assignment]
    return frames


def test_values_are_freed_after_their_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []
    original = evaluate_module._Run._store

    def store(run: Any, *args: Any) -> None:
        original(run, *args)
        alive.append(len(run.values))

    monkeypatch.setattr(evaluate_module._Run, "_store", store)
    net = Net()
    tensor = chain(net, 100, 4)
    for _ in range(50):
        tensor = net.elementwise("SUM", tensor, net.constant([1.0, 2.0, 3.0, 4.0]))
    assert_close(evaluate(tensor, net, torch.zeros(4)), 50 * torch.arange(1.0, 5.0))
    assert len(alive) == 200
    assert max(alive) <= 3


def test_layers_that_no_output_needs_are_not_evaluated() -> None:
    net = Net()
    x = net.input("x", 3)
    net.add_gather(x, net.constant([7]), 0)  # out of range
    assert_close(evaluate(net.identity(x), net, torch.ones(3)), torch.ones(3))


def test_layers_need_not_come_in_order() -> None:
    net = Net()
    first = net.add_unary(net.input("x", 2), trt.UnaryOperation.NEG)
    second = net.add_unary(net.network.get_input(0), trt.UnaryOperation.EXP)
    first.set_input(0, second.get_output(0))
    assert_close(evaluate(first, net, torch.zeros(2)), -torch.ones(2))


def test_outputs_share_no_memory_with_inputs_or_constants() -> None:
    net = Net()
    x = net.input("x", 2)
    constant = net.constant([1.0, 2.0])
    net.output(net.identity(x), net.identity(constant))
    feed = torch.tensor([3.0, 4.0])
    for _ in range(2):
        first, second = net.run(feed)
        assert (first.tolist(), second.tolist()) == ([3.0, 4.0], [1.0, 2.0])
        first.zero_()
        second.zero_()
    assert feed.tolist() == [3.0, 4.0]


def test_outputs_come_by_name_and_in_order() -> None:
    net = Net()
    x = net.input("x", 2)
    for name in ("zebra", "ant"):
        layer = net.add_identity(x)
        layer.get_output(0).name = name
        net.output(layer)
    assert list(interpret(trt, net.network, {"x": torch.ones(2)})) == ["zebra", "ant"]


def test_two_interpreters_and_many_threads_at_once() -> None:
    net = Net()
    tensor = chain(net, 30, 16, 16)
    weight = net.constant(seeded(16, 16, seed=1))
    for _ in range(5):
        product_layer = net.add_matrix_multiply(tensor, trt.MatrixOperation.NONE, weight, trt.MatrixOperation.NONE)
        tensor = net.add_activation(product_layer.get_output(0), trt.ActivationType.TANH).get_output(0)
    name = net.output(tensor).network.get_output(0).name
    feeds = [seeded(16, 16, seed=seed) for seed in range(8)]
    alone = [net.interpreter().run({"x": feed})[name] for feed in feeds]
    shared = [net.interpreter(), net.interpreter()]
    results: dict[int, list[Tensor]] = {}

    def work(index: int) -> None:
        results[index] = [shared[index % 2].run({"x": feeds[index]})[name] for _ in range(10)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(value, alone[index]) for index in range(8) for value in results[index])


def test_wrong_feeds_are_refused() -> None:
    net = Net()
    interpreter = net.output(net.identity(net.input("x", -1, 3))).interpreter()
    good = torch.ones(2, 3)
    assert_close(next(iter(interpreter.run({"x": good}).values())), good)
    for feeds, message in [
        ({}, "feeds has inputs []; the network's are ['x']"),
        ({"x": good, "y": good}, "feeds has inputs ['x', 'y']"),
        ({"x": [1.0]}, "feeds['x'] is a list; give a torch.Tensor"),
        ({"x": good.double()}, "feeds['x'] is torch.float64 (2, 3); the network declares FLOAT (-1, 3)"),
        ({"x": torch.ones(2, 4)}, "feeds['x'] is torch.float32 (2, 4)"),
        ({"x": torch.ones(3)}, "feeds['x'] is torch.float32 (3,)"),
    ]:
        with pytest.raises(InvalidArgumentError, match=re.escape(message)):
            interpreter.run(feeds)


def test_an_invalid_network_is_refused_when_it_is_read() -> None:
    net = Net()
    layer = net.add_elementwise(net.input("a", 2), net.input("b", 3), trt.ElementWiseOperation.SUM)
    layer.name = "sum"
    with pytest.raises(InterpretationError, match=r"'sum' \(ELEMENTWISE\): TensorRT cannot infer the shape"):
        evaluate(layer, net, torch.ones(2), torch.ones(3))


def test_layer_types_that_are_not_evaluated_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    layer = net.add_unary(net.input("x", 2), trt.UnaryOperation.EXP)
    layer.name = "mystery"
    net.output(layer)
    from tiacc.backends.tensorrt.interpreter import layers

    monkeypatch.delitem(layers._EVALUATIONS, "UNARY")
    with pytest.raises(UnsupportedLayerError, match=r"layer 'mystery' \(UNARY\) cannot be evaluated: no evaluator") as caught:
        net.interpreter()
    assert isinstance(caught.value, TiaccError)


def test_every_layer_type_of_the_library_is_evaluated_or_refused_with_a_reason() -> None:
    known = set(supported_kinds()) | set(refused_kinds()) | evaluate_module._CONTROL_KINDS
    assert set(trt.LayerType.__members__) == known
    assert set(refused_kinds()) == {"PLUGIN", "PLUGIN_V2", "PLUGIN_V3", "DIST_COLLECTIVE"}
    assert all(refused_kinds().values())


def test_a_failing_layer_is_named_with_its_operands() -> None:
    net = Net()
    layer = net.add_shuffle(net.input("x", -1))
    layer.reshape_dims = (2, 3)
    layer.name = "fold"
    net.output(layer)
    with pytest.raises(InterpretationError, match=r"'fold' \(SHUFFLE\) cannot be evaluated on \['torch.float32 \(5,\)'\].*invalid"):
        net.run(torch.ones(5))


def test_the_package_s_names_are_public() -> None:
    assert set(package.__all__) >= {"NetworkInterpreter", "interpret", "UnsupportedLayerError", "InterpretationError"}
    assert package.NetworkInterpreter is NetworkInterpreter

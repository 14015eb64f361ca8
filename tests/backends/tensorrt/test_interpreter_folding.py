"""The interpreter against TensorRT itself: what it computes on the CPU when it infers shapes.

A tensor that is used as the dimensions of a fill is folded by TensorRT while the network is built, and its values come back as the
fill's shape. So NVIDIA's own code says, without a GPU, what a layer computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.backends.tensorrt.networks import Net, trt

OFFSET = 64  # dimensions are not negative


def folded(net: Net, tensor: Any) -> list[int]:
    """Return the integers of a 1-D tensor, each more than -OFFSET, as TensorRT computes them."""
    count = tensor.shape[0]
    moved = net.elementwise("SUM", tensor, net.constant(torch.full((count,), OFFSET, dtype=_torch_int(tensor))))
    fill = net.add_fill((1,), trt.FillOperation.LINSPACE, trt.int32)
    for index, value in enumerate((moved, net.constant(0), net.constant([0] * count))):
        fill.set_input(index, value)
    sizes = tuple(fill.get_output(0).shape)
    assert min(sizes) >= 0, "TensorRT did not fold the tensor"
    return [size - OFFSET for size in sizes]


def _torch_int(tensor: Any) -> torch.dtype:
    return {trt.int32: torch.int32, trt.int64: torch.int64}[tensor.dtype]


def interpreted(net: Net, tensor: Any) -> list[int]:
    """Return the same from the interpreter."""
    result = net.output(net.identity(tensor)).run()
    assert isinstance(result, Tensor)
    return [int(value) for value in result]


def agree(build: Callable[[Net], Any]) -> list[int]:
    """Hold both to be equal on what `build` makes, flattened and cut to integers, and return it."""
    values = []
    for evaluate in (folded, interpreted):
        net = Net()
        tensor = build(net)
        if tensor.dtype not in (trt.int32, trt.int64):
            tensor = net.add_cast(tensor, trt.int64).get_output(0)
        flat = net.add_shuffle(tensor)
        flat.reshape_dims = (int(np.prod(tensor.shape)),)
        values.append(evaluate(net, flat.get_output(0)))
    assert values[0] == values[1]
    return values[0]


def draw(seed: int, count: int, low: int = -9, high: int = 9) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(low, high, count, endpoint=True)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("operation", ["SUM", "SUB", "PROD", "MAX", "MIN", "DIV", "FLOOR_DIV", "POW"])
def test_integer_arithmetic(operation: str, dtype: torch.dtype) -> None:
    for seed in range(4):
        a = draw(seed, 6, -7, 7)
        b = draw(seed + 50, 6, 1, 7) * np.array([1, -1] * 3) if "DIV" in operation else draw(seed + 50, 6, -7, 7)
        if operation == "POW":
            a, b = draw(seed, 6, -4, 4), draw(seed + 50, 6, 0, 2)
        values = agree(lambda net: net.elementwise(operation, *(net.constant(torch.from_numpy(v).to(dtype)) for v in (a, b))))  # noqa: B023
        assert len(set(values)) > 1


def test_a_negative_power_of_an_integer_is_cut_to_an_integer() -> None:
    assert agree(lambda net: net.elementwise("POW", net.constant([7, 2, 1, -1]), net.constant([-2, -1, -3, -3]))) == [0, 0, 1, -1]


@pytest.mark.parametrize("operation", ["EQUAL", "GREATER", "LESS"])
def test_comparison_and_selection(operation: str) -> None:
    def build(net: Net) -> Any:
        condition = net.elementwise(operation, net.constant([1, 5, 3, 2]), net.constant([2, 2, 3, 2]))
        return net.add_select(condition, net.constant([1, 2, 3, 4]), net.constant([5, 6, 7, 8])).get_output(0)

    agree(build)


@pytest.mark.parametrize("operation", ["ABS", "NEG", "SIGN", "ROUND", "FLOOR", "CEIL"])
def test_float_to_integer_functions(operation: str) -> None:
    values = agree(
        lambda net: net.add_unary(
            net.constant([0.5, 1.5, 2.5, -0.5, -1.5, 3.7, -3.7]), getattr(trt.UnaryOperation, operation)
        ).get_output(0)
    )
    assert len(set(values)) > 1


FUNCTIONS = ["EXP", "LOG", "SQRT", "RECIP", "SIN", "COS", "TAN", "SINH", "COSH", "ASIN", "ACOS", "ATAN", "ASINH", "ATANH", "ERF"]


@pytest.mark.parametrize("operation", FUNCTIONS)
def test_float_functions(operation: str) -> None:
    # Scaled up, so that the cut to an integer shows three digits.
    def build(net: Net) -> Any:
        value = net.add_unary(net.constant([0.3]), getattr(trt.UnaryOperation, operation)).get_output(0)
        return net.elementwise("PROD", net.elementwise("SUM", value, net.constant([4.0])), net.constant([1000.0]))

    assert agree(build)[0] > 0


ACTIVATIONS = sorted(trt.ActivationType.__members__)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations(kind: str) -> None:
    for x in (-2.3, -0.7, 0.0, 0.2, 0.9, 3.1):

        def build(net: Net, x: float = x) -> Any:
            layer = net.add_activation(net.constant([x]), getattr(trt.ActivationType, kind))
            layer.alpha, layer.beta = 0.3, 0.6
            shifted = net.elementwise("SUM", layer.get_output(0), net.constant([4.0]))
            return net.elementwise("PROD", shifted, net.constant([1000.0]))

        agree(build)


@pytest.mark.parametrize("to_type", [trt.int32, trt.int64], ids=str)
def test_casts_cut_towards_zero(to_type: Any) -> None:
    source = [1.5, 2.5, -1.5, -0.5, 3.7, -3.7]
    assert agree(lambda net: net.add_cast(net.constant(source), to_type).get_output(0)) == [1, 2, -1, 0, 3, -3]


def test_casts_saturate() -> None:
    def build(net: Net) -> Any:
        narrow = net.add_cast(net.constant([3e9]), trt.int32).get_output(0)
        return net.add_cast(net.elementwise("SUB", narrow, net.constant([2147483000])), trt.int64).get_output(0)

    assert agree(build) == [647]


def test_booleans() -> None:
    def build(net: Net, operation: str) -> Any:
        a, b = (net.add_cast(net.constant(v), trt.bool).get_output(0) for v in ([0.5, 0.0, -2.0, 0.0], [0.5, 0.0, 0.0, 3.0]))
        made = net.add_unary(a, trt.UnaryOperation.NOT).get_output(0) if operation == "NOT" else net.elementwise(operation, a, b)
        return net.add_cast(made, trt.int32).get_output(0)

    for operation in ("AND", "OR", "XOR", "EQUAL", "NOT"):
        agree(lambda net, op=operation: build(net, op))


def test_float_arithmetic() -> None:
    for operation in ("SUM", "SUB", "PROD", "DIV", "FLOOR_DIV", "MAX", "MIN"):
        agree(lambda net, op=operation: net.elementwise(op, net.constant([7.5, -7.5, 9.0]), net.constant([2.0, 2.0, -4.0])))


@pytest.mark.parametrize("operation", ["SUM", "PROD", "MAX", "MIN", "AVG"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_integer_reductions(operation: str, axes: int) -> None:
    source = draw(3, 6, -3, 4).reshape(2, 3)
    agree(lambda net: net.add_reduce(net.constant(source), getattr(trt.ReduceOperation, operation), axes, True).get_output(0))


def test_an_integer_average_is_cut_towards_zero() -> None:
    source = np.array([[-1, -2, -4], [1, 2, 4]])
    assert agree(lambda net: net.add_reduce(net.constant(source), trt.ReduceOperation.AVG, 2, False).get_output(0)) == [-2, 2]


@pytest.mark.parametrize("operation", ["SUM", "PROD", "MAX", "MIN"])
def test_reductions_of_nothing(operation: str) -> None:
    neutral = {"SUM": 0, "PROD": 1, "MAX": -(2**31), "MIN": 2**31 - 1}[operation]

    def build(net: Net) -> Any:
        nothing = net.constant(np.zeros((2, 0), np.int32))
        reduced = net.add_reduce(nothing, getattr(trt.ReduceOperation, operation), 2, False).get_output(0)
        return net.add_cast(net.elementwise("EQUAL", reduced, net.constant([neutral] * 2)), trt.int32).get_output(0)

    assert agree(build) == [1, 1]


@pytest.mark.parametrize("mode", ["WRAP", "CLAMP", "REFLECT", "STRICT_BOUNDS"])
def test_slices(mode: str) -> None:
    cases = [(5, 3, -2), (1, 4, 1), (0, 3, 2), (2, 3, 0)]
    if mode != "STRICT_BOUNDS":
        cases += [(-2, 7, 1), (4, 7, 1), (-9, 7, 3), (8, 7, -3), (-5, 7, 2)]
    for start, size, stride in cases:

        def build(net: Net, start: int = start, size: int = size, stride: int = stride) -> Any:
            layer = net.add_slice(net.constant([11, 12, 13, 14, 15, 16]), (start,), (size,), (stride,))
            layer.mode = getattr(trt.SampleMode, mode)
            return layer.get_output(0)

        agree(build)


def test_gather_counts_negative_indices_from_the_end() -> None:
    source = np.array([11, 12, 13, 14])
    assert agree(lambda net: net.add_gather(net.constant(source), net.constant([-1, 0, -4, 2]), 0).get_output(0)) == [14, 11, 11, 13]


def test_gather_by_tuples_and_by_elements() -> None:
    source, nd, element = np.array([[11, 15], [13, 14]]), trt.GatherMode.ND, trt.GatherMode.ELEMENT
    assert agree(lambda net: net.add_gather_v2(net.constant(source), net.constant([[0, 1], [1, -1]]), nd).get_output(0)) == [15, 14]

    def elements(net: Net) -> Any:
        layer = net.add_gather_v2(net.constant(source), net.constant([[0, 0], [1, -1]]), element)
        layer.axis = 1
        return layer.get_output(0)

    assert agree(elements) == [11, 11, 14, 14]


def test_squeezes() -> None:
    agree(lambda net: net.add_unsqueeze(net.constant([1, 2]), net.constant([-2, 0])).get_output(0))
    agree(lambda net: net.add_squeeze(net.constant([[[1, 2]]]), net.constant([-2])).get_output(0))


def test_shuffles() -> None:
    def build(net: Net) -> Any:
        layer = net.add_shuffle(net.constant(np.arange(6).reshape(1, 2, 3)))
        layer.first_transpose = (2, 0, 1)
        layer.reshape_dims = (0, -1)
        layer.second_transpose = (1, 0)
        return layer.get_output(0)

    assert agree(build) == [0, 1, 2, 3, 4, 5]

    def permuted(net: Net) -> Any:
        layer = net.add_shuffle(net.constant(np.arange(6).reshape(2, 3)))
        layer.first_transpose = (1, 0)
        return layer.get_output(0)

    assert agree(permuted) == [0, 3, 1, 4, 2, 5]


def test_concatenation_one_hot_fill_and_shape() -> None:
    agree(lambda net: net.add_concatenation([net.constant([1, 2]), net.constant([3])]).get_output(0))
    assert agree(lambda net: net.add_shape(net.constant(np.zeros((3, 1, 5)))).get_output(0)) == [3, 1, 5]
    agree(lambda net: net.add_one_hot(net.constant([1, 0]), net.constant([2, 7]), net.constant(3), -1).get_output(0))

    def ramp(net: Net) -> Any:
        layer = net.add_fill((5,), trt.FillOperation.LINSPACE, trt.int64)
        layer.alpha, layer.beta = 3, -4
        return layer.get_output(0)

    assert agree(ramp) == [3, -1, -5, -9, -13]


def test_matrix_products() -> None:
    none, transposed, vector = (getattr(trt.MatrixOperation, name) for name in ("NONE", "TRANSPOSE", "VECTOR"))
    for a, first, b, second in [
        ((2, 3), none, (3, 2), none),
        ((3, 2), transposed, (3, 2), none),
        ((2, 3), none, (3,), vector),
        ((3,), vector, (3, 2), none),
        ((3,), vector, (2, 3), transposed),
    ]:

        def build(net: Net, a: Any = a, first: Any = first, b: Any = b, second: Any = second) -> Any:
            x, y = (net.constant(draw(seed, int(np.prod(s)), -3, 3).reshape(s).astype(np.float32)) for seed, s in ((1, a), (2, b)))
            return net.add_matrix_multiply(x, first, y, second).get_output(0)

        agree(build)

"""The numbers of a traced model are numbers in a file too: the same segments as in the process, and what the loaded model computes."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.graph.test_importer import write_back
from tests.graph.test_observer import optimized
from tests.helpers import bits
from tiacc.backends import base
from tiacc.backends.base import Backend
from tiacc.compiler import Plan
from tiacc.explanation import Explanation
from tiacc.graph.importer import import_module
from tiacc.graph.specs import Dim, TensorSpec
from tiacc.models import own_copy
from tiacc.passes.pipelines import pipeline

CPU = torch.device("cpu")
HALF = torch.tensor(1 / 3, dtype=torch.float64)
THREE = torch.tensor(3)

FUNCTIONS: dict[str, Callable[[torch.Tensor], Any]] = {
    "scaled": lambda x: (x / 9.8 - 0.1) * (1 / 3) + 1,
    "reversed": lambda x: (3 - x, 2.5 * x, 2.0 / x, 1 + x),
    "first": lambda x: (torch.sub(0.1, x), torch.mul(1 / 3, x), torch.add(7, x), torch.div(9.8, x), torch.sub(2, x, alpha=3)),
    "integers": lambda x: (x + 2, x * 3, x - 1, x / 2),
    "alpha": lambda x: (torch.add(x, 0.1, alpha=3), torch.sub(x, 3, alpha=2)),
    "floored": lambda x: (x // 2, torch.div(x, 3, rounding_mode="trunc"), torch.div(x, 0.3, rounding_mode="floor"), 7 // (x + 9)),
    "in place": lambda x: x.clone().mul_(2).add_(1).sub_(3),
    "in place, floats": lambda x: x.clone().mul_(1 / 3).add_(0.1).div_(9.8),
    "written": lambda x: (torch.ops.aten.copy_(x + x, 0.1), torch.ops.aten.copy_(x * x, 2)),
    "compared": lambda x: (x > 0.1, x <= 1, (x > 0) * 2, (x != 3) * 0.1),
    "behind a cast": lambda x: (x * 1.5).to(torch.float64) + 1,
    "behind a sum": lambda x: (x.sum() * 0.1 + 1) * x,
    "a size": lambda x: x * (x.numel() * 0.1) / x.numel() ** 0.5,
    "chosen": lambda x: (torch.where(x > 1, x, 0.1), torch.where(x > 1, 2, x), x.masked_fill(x > 1, 3)),
    "powers": lambda x: (x**2, 2**x, x**0.5, x.clamp(0.1, 2), torch.full_like(x, 0.1)),
    "constants": lambda x: (x > HALF, torch.eq(HALF, x), x.clamp_min(HALF), x.clamp_max(THREE), torch.where(x > 1, x, HALF)),
    "more constants": lambda x: (torch.where(x > 1, THREE, x), torch.fmod(x, THREE), torch.remainder(x, HALF), x.masked_fill(x > 1, THREE)),
    "powers of constants": lambda x: (torch.pow(x, HALF), torch.pow(THREE, x), torch.maximum(x, HALF), torch.minimum(THREE, x)),
    "bounds": lambda x: (torch.clamp(x, HALF, THREE), torch.clamp(x, max=HALF), torch.atan2(HALF, x), torch.rsub(x, HALF)),
    "as tensors": lambda x: (torch.stack([x.sum(), HALF.to(x.dtype)]), HALF + 0, x * HALF.reshape(1), HALF.expand(2), x * HALF.to(x.dtype)),
}

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.int64, torch.int8, torch.bool)


def data(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Numbers that the constants above are rounded to among them."""
    values = torch.tensor([1 / 3, 0.1, 9.8, 3.0, 0.0, -2.5, 1.0, 7.25, -0.1, 100.0, 2.0, 0.3])
    return values.to(dtype)[: max(1, torch.Size(shape).numel())].reshape(shape)


def traced(function: Callable[[torch.Tensor], Any], x: torch.Tensor) -> torch.jit.ScriptModule | None:
    """Return a trace; None where torch does not compute that."""

    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return function(x)

    try:
        function(x)
    except RuntimeError:
        return None
    return torch.jit.trace(Model(), (x,), check_trace=False)


def from_file(model: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    buffer = io.BytesIO()
    torch.jit.save(model, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def assert_equal_bits(actual: Any, expected: Any) -> None:
    actual, expected = (item if isinstance(item, tuple) else (item,) for item in (actual, expected))
    assert len(actual) == len(expected)
    for place, (one, other) in enumerate(zip(actual, expected)):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), place
        assert torch.equal(bits(one), bits(other)), (place, one, other)


@pytest.mark.parametrize("shape", [(3, 4), ()], ids=["matrix", "0-d"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_file_computes_what_it_did_to_the_bit(name: str, shape: tuple[int, ...]) -> None:
    count = 0
    for dtype in DTYPES:
        x = data(dtype, shape)
        model = traced(FUNCTIONS[name], x)
        if model is None:
            continue
        count += 1
        for source in (model, from_file(model)):
            spec = TensorSpec(shape, dtype)
            try:
                expected = source(x)
            except RuntimeError:  # in a file a number may be of a type that is not written into an integer
                assert source is not model
                continue
            assert_equal_bits(write_back(import_module(source, [spec]))(x), expected)
            assert_equal_bits(optimized(source, (spec,), [])[0](x), expected)
    assert count >= 4


@pytest.mark.parametrize("shape", [(3, 4), ()], ids=["matrix", "0-d"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_copy_of_a_model_in_the_process_computes_what_that_does(name: str, shape: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        x = data(dtype, shape)
        model = traced(FUNCTIONS[name], x)
        if model is not None:
            assert_equal_bits(own_copy(model)(x), model(x))


def segments_of(model: torch.jit.ScriptModule, spec: TensorSpec, backend: Backend) -> list[tuple[int, tuple[str, ...], tuple[str, ...]]]:
    found = Explanation.of(model, Plan((spec,), ({},), pipeline(0, CPU), (backend,), CPU))
    return [(segment.nodes, segment.inputs, segment.outputs) for segment in found.segments]


@pytest.mark.parametrize("backend", ["openvino", "reference"])
def test_a_file_gives_the_segments_of_the_model_in_the_process(backend: str) -> None:
    used = base.backends.get(backend)()
    if not used.available():
        pytest.skip(used.available().reason)
    for name, function in FUNCTIONS.items():
        for dtype in DTYPES[:3] if backend == "openvino" else DTYPES:
            spec, x = TensorSpec((3, 4), dtype), data(dtype, (3, 4))
            model = traced(function, x)
            if model is None or [item.dtype for item in _outputs(model, x)] != [item.dtype for item in _outputs(from_file(model), x)]:
                continue  # the file computes something else
            found = segments_of(model, spec, used)
            assert found and found == segments_of(from_file(model), spec, used), (name, dtype)


def _outputs(model: torch.jit.ScriptModule, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    try:
        results = model(x)
    except RuntimeError:
        return ()
    return results if isinstance(results, tuple) else (results,)


def test_rows_that_vary_are_scaled_by_numbers_as_well() -> None:
    x = data(torch.float16, (3, 4))
    model = from_file(traced(FUNCTIONS["scaled"], x))
    spec = TensorSpec((Dim("rows", 1, 3, 9), 4), torch.float16)
    result = import_module(model, [spec])
    assert not result.regions[0].graph.graph.find_nodes(op="get_attr")
    loaded = write_back(result)
    for rows in (x, x[:1], x.repeat(3, 1)):
        assert_equal_bits(loaded(rows), model(rows))


class Scaled(nn.Module):
    """A constant of the module, which is a tensor to torch's executor."""

    def __init__(self, scale: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x * self.scale, x + self.scale, x / self.scale, self.scale * x


@pytest.mark.parametrize("scale", [HALF, THREE, torch.tensor(1 / 3), torch.tensor(0.1, dtype=torch.float16), torch.tensor(True)], ids=str)
@pytest.mark.parametrize("shape", [(3, 4), ()], ids=["matrix", "0-d"])
def test_a_constant_of_the_module_stays_a_tensor(scale: torch.Tensor, shape: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        x, spec = data(dtype, shape), TensorSpec(shape, dtype)
        traced_model = torch.jit.trace(Scaled(scale), (x,), check_trace=False)
        for model in (traced_model, from_file(traced_model)):
            assert_equal_bits(write_back(import_module(model, [spec]))(x), model(x))
            assert_equal_bits(optimized(model, (spec,), [])[0](x), model(x))

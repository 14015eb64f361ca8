"""Whole models from TorchScript: imported, taken through the passes, made into one network, interpreted, compared with eager torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tiacc
from tests.backends.tensorrt.harness import compile_for, interpret, needs_rtx, network_of, rejection
from tests.backends.tensorrt.models import FULL, LARGE, SMALL, Model, imported, traced

pytestmark = needs_rtx

TOLERANCE = {None: 1e-5, torch.float16: 5e-3}
"""The largest relative error of an output, ``‖network - model‖ / ‖model‖``, by the half type that the network computes in."""


def check_model(model: Model, *, is_dynamic: bool, half: torch.dtype | None) -> float:
    """Build one network from a model, hold it to the model at its smallest, usual and largest sizes, and return the largest error."""
    torch.manual_seed(0)
    module = model.make()
    graph = imported(model, module, is_dynamic=is_dynamic, half=half)
    assert rejection(graph.gm) == ""
    definition = network_of(graph.gm, graph.types)
    worst = 0.0
    for case in model.cases(is_dynamic=is_dynamic):
        with torch.no_grad():
            expected = module(*case)
        wanted = list(expected) if isinstance(expected, tuple) else [expected]
        for have, want in zip(interpret(definition, [case[index] for index in graph.order]), wanted, strict=True):
            assert (have.shape, have.dtype) == (want.shape, want.dtype)
            assert float(want.std()) > 1e-3 * float(want.abs().max()), "the output says nothing"
            worst = max(worst, float((have - want).norm() / want.norm()))
    assert worst <= TOLERANCE[half]
    assert len(compile_for(definition, graph.types).data) > 64
    return worst


_DYNAMIC = pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
_HALF = pytest.mark.parametrize("half", [None, torch.float16], ids=["float32", "float16"])


@_HALF
@_DYNAMIC
@pytest.mark.parametrize("name", SMALL)
def test_small_models(name: str, is_dynamic: bool, half: torch.dtype | None) -> None:
    check_model(SMALL[name], is_dynamic=is_dynamic, half=half)


@pytest.mark.slow
@_HALF
@_DYNAMIC
@pytest.mark.parametrize("name", LARGE)
def test_large_models(name: str, is_dynamic: bool, half: torch.dtype | None) -> None:
    check_model(LARGE[name], is_dynamic=is_dynamic, half=half)


def check_ahead_of_time(model: Model, level: int) -> float:
    """Take a model through `optimize` for a GPU that is not here; its network, interpreted, is held to it at the sizes of its range.

    Returns:
        The largest error.
    """
    torch.manual_seed(0)
    module = model.make()
    ranges = zip(*(model.inputs(*sizes) for sizes in model.sizes))
    shapes = [{f"range,{_NAMES[low.dtype]}": ["*".join(map(str, x.shape)) for x in (low, *others)]} for low, *others in ranges]
    data = [tuple(model.inputs(*sizes)) for sizes in model.sizes]
    options: dict[str, Any] = {"backend": "tensorrt_rtx", "target": ["sm86"], "check_network": True}
    _, report = tiacc.optimize(traced(model, module), level, 0, shapes, data, **options)
    (segment,) = report.segments
    assert (segment.backend, report.fallbacks, report.achieved_level) == ("tensorrt_rtx", [], level)
    assert ("float16" in segment.dtype) == bool(level)
    worst = max(output.rel_norm for output in report.outputs)
    assert 0 < worst <= TOLERANCE[torch.float16 if level else None]
    return worst


_NAMES = {torch.float32: "float", torch.int64: "long", torch.bool: "bool"}
_LEVEL = pytest.mark.parametrize("level", [0, 1])


@_LEVEL
@pytest.mark.parametrize("name", SMALL)
def test_small_models_ahead_of_time(name: str, level: int) -> None:
    check_ahead_of_time(SMALL[name], level)


@pytest.mark.slow
@_LEVEL
@pytest.mark.parametrize("name", LARGE)
def test_large_models_ahead_of_time(name: str, level: int) -> None:
    check_ahead_of_time(LARGE[name], level)


@pytest.mark.slow
@_LEVEL
@pytest.mark.parametrize("name", FULL)
def test_full_size_models_ahead_of_time(name: str, level: int) -> None:
    check_ahead_of_time(FULL[name], level)

"""Segments that are slower in an engine than in Torch are left in Torch; time is what engines say they take."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import fx, nn

import tiacc
from tiacc import measure
from tiacc.backends import base
from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.reference import ReferenceBackend


class TwoParts(nn.Module):
    """Two segments, a sort between them that the backend does not take."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x)).sort(-1)[0]
        return torch.sin(self.second(x))


@pytest.fixture
def takes(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """How many milliseconds an engine takes that has an operator in it; everything else, Torch, takes one."""
    takes: dict[str, float] = {}
    now = [0.0]

    class Slow(ReferenceBackend):
        name = "slow"

        def supports(self, node: fx.Node) -> Support:
            return Support(False, "told not to") if "sort" in str(node.target) else SUPPORTED

        def load(self, payload: bytes) -> Any:
            engine = super().load(payload)
            run = engine.run
            operators = str(torch.jit.load(io.BytesIO(payload)).inlined_graph)
            cost = next((ms for name, ms in takes.items() if name in operators), 0.1)

            def slowly(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
                now[0] += cost
                return run(inputs)

            engine.run = slowly  # type: ignore[method-assign]
            return engine

    def timer(call: Any) -> float:
        before = now[0]
        call()
        return now[0] - before if now[0] > before else 1.0

    monkeypatch.setitem(base.backends._items, "slow", Slow)
    monkeypatch.setattr("tiacc.measure._time_on_cpu", timer)
    monkeypatch.setattr("tiacc.job.LEAST_GAIN", 0.0)
    return takes


def optimize(seed: int) -> tuple[Any, Any]:
    model = torch.jit.script(TwoParts().eval())
    with torch.no_grad():
        model.first.weight += 1e-3 * seed  # models in one process share the engines of equal bytes
        model.second.weight += 1e-3 * seed
    output_model, report = tiacc.optimize(model, 0, 1, ["4*8"], backend="slow", timing_seconds=0.05)
    x = torch.randn(4, 8)
    with torch.no_grad():
        assert measure.largest(measure.compare(model(x), output_model(x))) <= 1e-5
    return output_model, report


def test_a_segment_that_is_slower_in_an_engine_is_left_in_torch(takes: dict[str, float]) -> None:
    takes["sin"] = 20.0
    _, report = optimize(1)
    (segment,) = report.segments
    assert segment.index == 0 and any("linear" in row.op for row in report.fallbacks)
    assert any("segment 0.1 was left in Torch: its engine takes 20 ms, and Torch 1 ms" in action for action in report.actions)
    assert any(row.op == "aten.sin.default" and "20 ms" in row.reasons["slow"] for row in report.fallbacks)


def test_segments_that_are_not_slower_stay(takes: dict[str, float]) -> None:
    _, report = optimize(2)
    assert len(report.segments) == 2 and not report.actions


def test_all_may_be_slower(takes: dict[str, float]) -> None:
    takes.update(sin=20.0, relu=30.0)
    _, report = optimize(3)
    assert not report.segments and sum("left in Torch" in action for action in report.actions) == 2

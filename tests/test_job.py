"""What a call of `optimize` hands on to the backends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiacc
from tiacc import measure
from tiacc.backends.reference import ReferenceBackend


class Waves(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x) + torch.cos(x)


def test_the_options_of_tuning_reach_every_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    build = ReferenceBackend.build
    monkeypatch.setattr(ReferenceBackend, "build", lambda self, graph, spec: seen.append(spec.options) or build(self, graph, spec))
    for options in ({"cache_dir": tmp_path / "cache", "tuning_seconds": 7}, {}):
        model = torch.jit.trace(Waves(), torch.randn(2, 3))
        tiacc.optimize(model, device_type="cpu", input_shapes=["2*3"], backend="reference", timing_seconds=0.1, **options)
    given, default = seen
    assert given["cache_dir"] == tmp_path / "cache"
    assert given["tuning_seconds"] == 7
    assert "cache_dir" not in default
    assert default["tuning_seconds"] == 60


def timed(monkeypatch: pytest.MonkeyPatch, milliseconds: dict[int, float], **options: Any) -> tuple[Any, list[int]]:
    """Return the report of a call in which the clock says how long a model takes, by its place, and the places of the timed calls."""
    order: list[int] = []
    latencies = measure.latencies

    def with_places(calls: Any, *args: Any, **kwargs: Any) -> Any:
        places = {call: place for place, call in enumerate(calls)}

        def timer(call: Any) -> float:
            call()
            order.append(places[call])
            return milliseconds[places[call]] * (1 + 0.001 * (len(order) % 5))

        monkeypatch.setattr("tiacc.measure._time_on_cpu", timer)
        return latencies(calls, *args, **kwargs)

    monkeypatch.setattr("tiacc.measure.latencies", with_places)
    monkeypatch.setattr("tiacc.job.TIMING_SHARE", 0.0)
    model = torch.jit.trace(Waves(), torch.randn(2, 3))
    _, report = tiacc.optimize(model, device_type="cpu", input_shapes=["2*3"], backend="reference", **options)
    return report, order


def test_a_clear_difference_takes_two_calls_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """There and back: the candidate, the input model, whose second call warms it up, and the candidate."""
    report, order = timed(monkeypatch, {0: 20.0, 1: 10.0})
    assert order == [1, 1, 0, 0, 0, 1, 1]
    assert report.baseline_latency.runs == report.optimized_latency.runs == 2
    assert report.speedup == pytest.approx(2, rel=0.01) and 0.1 < report.baseline_latency.doubt < 0.2


@pytest.mark.parametrize(("faster", "options", "least"), [(1.02, {}, 40), (1.3, {}, 3), (2.0, {"require_speedup": 1.95}, 40)])
def test_a_small_difference_takes_more(faster: float, options: Any, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    report, _ = timed(monkeypatch, {0: 10.0 * faster, 1: 10.0}, **options)
    assert report.segments and least <= report.baseline_latency.runs <= 60


def test_the_input_model_that_is_kept_is_not_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    report, order = timed(monkeypatch, {0: 10.0, 1: 20.0})
    assert "kept as it is" in report.actions[-1] and report.speedup == 1.0
    assert order == [1, 1, 0, 0, 0, 1, 1] * 2, "two attempts, and no more"
    assert report.baseline_latency.runs == 2

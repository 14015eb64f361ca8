"""How outputs are compared, and what times tell."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tiacc import measure
from tiacc.errors import AccuracyError
from tiacc.report import Latency

CPU = torch.device("cpu")


def test_each_measure_of_an_error() -> None:
    reference = torch.tensor([3.0, -4.0, 1e-9])
    (error,) = measure.compare(reference, torch.tensor([3.0, -4.5, 1e-3]))
    norm, scale = 5.0, 5.0 / math.sqrt(3)
    assert error.max_abs == pytest.approx(0.5)
    assert error.max_rel == pytest.approx(0.5 / 4)
    assert error.rel_norm == pytest.approx(math.hypot(0.5, 1e-3) / norm, rel=1e-6)
    assert error.cosine == pytest.approx((9 + 18) / (norm * math.hypot(3, 4.5, 1e-3)), rel=1e-6)
    assert error.top1 is None
    # An element next to zero is held against the scale of the output, not against itself.
    (error,) = measure.compare(reference, torch.tensor([3.0, -4.0, 0.1]))
    assert error.max_rel == pytest.approx(0.1 / scale, rel=1e-6)


def test_classes_that_change() -> None:
    reference = torch.tensor([[0.1, 0.9], [0.6, 0.4], [0.2, 0.3], [0.7, 0.1]])
    candidate = reference.clone()
    candidate[2] = torch.tensor([0.31, 0.3])
    (error,) = measure.compare(reference, candidate)
    assert error.top1 == 0.75
    both = measure.worst([error], measure.compare(reference, reference))
    assert both[0].top1 == 0.75 and both[0].max_abs == pytest.approx(0.11)


@pytest.mark.parametrize(
    ("reference", "candidate", "largest"),
    [([1.0, math.nan], [1.0, math.nan], 0.0), ([1.0, math.inf], [1.0, math.inf], 0.0), ([1.0, 2.0], [1.0, math.nan], math.inf)],
)
def test_what_is_not_finite_is_equal_or_lost(reference: list[float], candidate: list[float], largest: float) -> None:
    assert measure.largest(measure.compare(torch.tensor(reference), torch.tensor(candidate))) == largest


@pytest.mark.parametrize("size", [1e-300, 1e-170, 1.0, 1e170, 1e300])
def test_numbers_whose_squares_float64_cannot_hold(size: float) -> None:
    reference = torch.tensor([3.0, -4.0], dtype=torch.float64)
    candidate = torch.tensor([3.0, -4.5], dtype=torch.float64)
    (error,) = measure.compare(size * reference, size * candidate)
    (usual,) = measure.compare(reference, candidate)
    assert error.max_abs == pytest.approx(0.5 * size)
    assert [error.rel_norm, error.max_rel, error.cosine] == pytest.approx([usual.rel_norm, usual.max_rel, usual.cosine])
    assert measure.largest(measure.worst([usual], [error])) == pytest.approx(0.1)


def test_outputs_of_any_layout_and_type() -> None:
    reference, candidate = torch.tensor([[1.0, 2.0], [0.0, 4.0]]), torch.tensor([[1.0, 2.5], [0.0, 4.0]])
    (usual,) = measure.compare(reference, candidate)
    assert measure.compare(reference.to_sparse(), candidate.to_sparse()) == [usual]
    assert measure.compare(reference.to(torch.float8_e5m2), candidate.to(torch.float8_e5m2)) == [usual]
    quantized = [torch.quantize_per_tensor(tensor, 0.5, 0, torch.quint8) for tensor in (reference, candidate)]
    assert measure.compare(*quantized)[0].rel_norm == usual.rel_norm


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        (math.nan, None),
        (torch.ones(2), torch.ones(3)),
        (torch.ones(2), torch.ones(2, dtype=torch.float64)),
        ([torch.ones(2)], [torch.ones(2), torch.ones(2)]),
        ({"a": torch.ones(2)}, {"b": torch.ones(2)}),
        ("yes", "no"),
    ],
)
def test_what_differs_in_more_than_numbers_is_an_error(reference: Any, candidate: Any) -> None:
    with pytest.raises(AccuracyError):
        measure.compare(reference, candidate)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Functions are timed by what they return, in milliseconds."""
    now = [0.0]

    def timer(call: Any) -> float:
        taken = float(call())
        now[0] += taken / 1e3
        return taken

    monkeypatch.setattr("tiacc.measure._time_on_cpu", timer)
    monkeypatch.setattr("tiacc.measure.SHORT_CALL_MS", 0.0)
    monkeypatch.setattr("tiacc.measure.time.perf_counter", lambda: now[0])
    return now


def test_models_are_timed_in_turn_until_their_medians_are_stable(clock: Any) -> None:
    order: list[str] = []

    def model(name: str, ms: float) -> Any:
        def call() -> float:
            order.append(name)
            return ms + 0.001 * (len(order) % 7)

        return call

    slow, fast = measure.latencies([model("slow", 10), model("fast", 4)], CPU, seconds=1000)
    assert slow.runs == fast.runs == 40
    assert order[:4] == ["slow"] * 2 + ["fast"] * 2
    pairs = [set(order[place : place + 2]) for place in range(4, len(order), 2)]
    assert all(pair == {"slow", "fast"} for pair in pairs)
    assert slow.p50_ms == pytest.approx(10, abs=0.01) and fast.p50_ms == pytest.approx(4, abs=0.01)
    assert measure.is_told(slow, fast, 1.01) and measure.is_told(slow, fast, 2.4) and not measure.is_told(slow, fast, 2.499)


def test_the_budget_ends_a_measurement_that_does_not_settle(clock: Any) -> None:
    count = [0]

    def ever_slower() -> float:
        count[0] += 1
        return float(count[0])

    (latency,) = measure.latencies([ever_slower], CPU, seconds=1)
    assert 40 < latency.runs < 60
    assert latency.doubt > 0.1
    (short,) = measure.latencies([ever_slower], CPU, seconds=0, called=2, least=4)
    assert short.runs == 4 and count[0] == 2 + latency.runs + 4


def test_doubt_falls_with_the_number_of_calls(clock: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = [float(value) for value in 10 + torch.randn(4000, generator=generator)]
    doubts = []
    for count in (5, 50, 500):
        values = iter(noise)
        (latency,) = measure.latencies([lambda values=values: next(values)], CPU, seconds=0, least=count, called=3)
        doubts.append(latency.doubt)
        assert abs(latency.p50_ms - 10) / 10 < 2 * latency.doubt
    assert doubts[0] > 2 * doubts[1] > 4 * doubts[2]
    assert not measure.is_told(Latency(10.1, 0, 0, 0, 9, 0.02), Latency(10, 0, 0, 0, 9, 0.02), 1.01)


@pytest.mark.parametrize(("short_call_ms", "turns"), [(1e9, ["baa", "abb"]), (0.0, ["ba", "ab"])])
def test_short_calls_follow_themselves(monkeypatch: pytest.MonkeyPatch, short_call_ms: float, turns: list[str]) -> None:
    monkeypatch.setattr(measure, "SHORT_CALL_MS", short_call_ms)
    monkeypatch.setattr(measure, "MAX_CALLS", 6)
    order: list[str] = []
    found = measure.latencies([lambda: order.append("a"), lambda: order.append("b")], CPU, seconds=1e9)
    assert [latency.runs for latency in found] == [6, 6]
    assert "".join(order) == "aabb" + "".join(turns) * 3


def test_few_calls_tell_only_what_is_clear() -> None:
    sure = [Latency(ms, 0, 0, 0, 2, 0.001) for ms in (10.5, 10.0)]
    assert measure.is_told(*sure, 1.01) and not measure.is_told(*sure, 1.01, margin=0.1)
    assert measure.is_told(Latency(12, 0, 0, 0, 2, 0.001), sure[1], 1.01, margin=0.1)

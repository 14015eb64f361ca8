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
    assert order[:6] == ["fast"] * 3 + ["slow"] * 3, "each is warmed up before it is timed"
    assert order[6:10] == ["slow", "fast", "fast", "slow"]
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
    (short,) = measure.latencies([ever_slower], CPU, seconds=0, called=[2], least=4)
    assert short.runs == 4 and count[0] == 2 + latency.runs + 4


def test_doubt_falls_with_the_number_of_calls(clock: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = [float(value) for value in 10 + torch.randn(4000, generator=generator)]
    doubts = []
    for count in (5, 50, 500):
        values = iter(noise)
        (latency,) = measure.latencies([lambda values=values: next(values)], CPU, seconds=0, least=count, called=[3])
        doubts.append(latency.doubt)
        assert abs(latency.p50_ms - 10) / 10 < 2 * latency.doubt
    assert doubts[0] > 2 * doubts[1] > 4 * doubts[2]
    assert not measure.is_told(Latency(10.1, 0, 0, 0, 9, 0.02), Latency(10, 0, 0, 0, 9, 0.02), 1.01)


@pytest.mark.parametrize(
    ("short_call_ms", "turns"), [(1e9, ["bbb", "aaa", "abb", "baa"]), (0.0, ["bbb", "aaa", "ab", "ba"])], ids=["short", "long"]
)
def test_short_calls_follow_themselves(monkeypatch: pytest.MonkeyPatch, short_call_ms: float, turns: list[str]) -> None:
    """A call that warms a model up is one that the next one follows."""
    monkeypatch.setattr(measure, "SHORT_CALL_MS", short_call_ms)
    monkeypatch.setattr(measure, "MAX_CALLS", 3)
    order: list[str] = []
    found = measure.latencies([lambda: order.append("a"), lambda: order.append("b")], CPU, seconds=1e9)
    assert [latency.runs for latency in found] == [3, 3]
    assert "".join(order) == "".join(turns)


@pytest.mark.parametrize(("called", "before"), [([1, 2], ["b", "a"]), ([0, 5], ["b", "aa"]), ([2, 1], ["b", ""])])
def test_what_was_called_before_is_warm(clock: Any, called: list[int], before: list[str]) -> None:
    order: list[str] = []

    def model(name: str) -> Any:
        return lambda: order.append(name) or 1.0

    measure.latencies([model("a"), model("b")], CPU, seconds=0, called=called, least=1)
    warmed = [max(2 - count, 0) * name for name, count in zip("ab", called)]
    assert "".join(order) == warmed[1] + "b" + warmed[0] + "a"


def test_a_measurement_ends_when_it_is_enough(clock: Any) -> None:
    asked: list[int] = []

    def is_enough(found: list[Latency]) -> bool:
        asked.append(found[0].runs)
        assert [latency.runs for latency in found] == [asked[-1]] * 2
        return asked[-1] >= 9

    found = measure.latencies([lambda: 10.0, lambda: 4.0], CPU, seconds=1000, is_enough=is_enough)
    assert asked == [2, 3, 4, 6, 9], "ever more seldom"
    assert [latency.runs for latency in found] == [9, 9]


@pytest.mark.parametrize("noise", [0.03, 0.1])
@pytest.mark.parametrize(("models", "count"), [(1, 2), (1, 5), (2, 2), (2, 3), (2, 5), (3, 4)])
def test_few_calls_know_how_little_they_tell(models: int, count: int, noise: float) -> None:
    """The median is within the doubt in about 19 measurements of 20 or more, and within half the range of few calls far less often."""
    generator = torch.Generator().manual_seed(count)
    trials = 1000
    within = ranges = 0
    for times in torch.randn(trials, models, count, generator=generator).mul(noise).add(1).tolist():
        latency = measure._summaries(times)[0]
        within += abs(latency.p50_ms - 1) <= latency.doubt * latency.p50_ms
        ranges += abs(latency.p50_ms - 1) <= (max(times[0]) - min(times[0])) / 2
    assert within / trials > 0.92
    assert count == 5 or ranges / trials < 0.9


def test_one_call_tells_nothing(clock: Any) -> None:
    (latency,) = measure.latencies([lambda: 5.0], CPU, seconds=0, least=1)
    assert latency.runs == 1 and latency.doubt == math.inf
    assert not measure.is_told(latency, latency, 0.1)


@pytest.mark.parametrize(
    ("slow", "fast", "runs", "doubt", "is_clear"),
    [
        (20, 10, 2, 0.1, True),
        (20, 10, 2, 0.4, False),  # the two calls of each differ by too much
        (12, 10, 2, 0.001, False),  # agreement by chance
        (12, 10, 5, 0.001, True),
        (10.5, 10, 1000, 0.001, False),  # near what it is held against, every call counts
        (8, 10, 5, 0.001, True),
    ],
)
def test_few_calls_tell_only_what_is_clear(slow: float, fast: float, runs: int, doubt: float, is_clear: bool) -> None:
    found = [Latency(ms, 0, 0, 0, runs, doubt) for ms in (slow, fast)]
    assert measure.is_clear(*found, 1.01) is is_clear


def test_models_as_fast_as_each_other_are_seldom_told_apart_early() -> None:
    """Calls vary by a tenth: one measurement in a hundred ends early and takes the one for faster; where one is, measurements end soon."""
    generator = torch.Generator().manual_seed(0)
    trials, wrong, rounds = 1000, 0, 0
    for noise in torch.randn(trials, 2, 60, generator=generator).mul(0.1).add(1).clamp(min=0.5).tolist():
        _, is_faster = ended_early(noise)
        wrong += is_faster
        rounds += ended_early([[1.75 * value for value in noise[0]], noise[1]])[0]
    assert wrong / trials <= 0.01
    assert rounds / trials < 3


def ended_early(times: list[list[float]]) -> tuple[int, bool]:
    """Return after how many calls of each a measurement ends early, and whether the second function seems faster then."""
    count = look = 2
    while count <= len(times[0]):
        if count == look:
            found = measure._summaries([column[:count] for column in times])
            if measure.is_clear(found[0], found[1], 1.01):
                return count, found[0].p50_ms > 1.01 * found[1].p50_ms
            look += max(1, count // 2)
        count += 1
    return len(times[0]), False

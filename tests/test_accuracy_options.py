"""The options of accuracy as a user tries them, and what the report says of what came of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import tiacc
from tests.helpers import use_however_fast
from tests.test_guard import backend_with, on_output, stale
from tiacc import measure
from tiacc.backends import base
from tiacc.backends.base import Support
from tiacc.errors import AccuracyError, InvalidArgumentError
from tiacc.guard import Guard
from tiacc.options import Options
from tiacc.samples import resolve_inputs

LIBRARY = torch.library.Library("accuracy_options", "DEF")
"""``accuracy_options::count(x)``: x, times the number of calls so far."""

_calls = [0]


def _count(x: torch.Tensor) -> torch.Tensor:
    _calls[0] += 1
    return x * _calls[0]


LIBRARY.define("count(Tensor x) -> Tensor")
LIBRARY.impl("count", _count, "CompositeExplicitAutograd")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    use_however_fast(monkeypatch)
    monkeypatch.setattr("tiacc.measure.MIN_CALLS", 1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.second(torch.relu(self.first(x))), -1)


X = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))


def optimize(level: int, model: nn.Module | None = None, x: torch.Tensor = X, **options: Any) -> tuple[Any, Any]:
    options = {"backend": "reference", "timing_seconds": 0.05, "half_dtype": "bf16" if level else None, **options}
    traced = torch.jit.trace((model or Net()).eval(), x, check_trace=False)
    return tiacc.optimize(traced, level, "cpu", test_data=[(x,)], **options)


def text_of(report: Any) -> str:
    return " ".join(str(report).split())


@pytest.mark.parametrize("key", ["bfloat16", "bf16", torch.bfloat16])
def test_a_tolerance_may_be_given_by_dtype(key: Any) -> None:
    options = Options(tolerance={key: 2e-2})
    assert options.tolerance_for(torch.bfloat16) == 2e-2 and options.tolerance_for(torch.float16) == 5e-3
    with pytest.raises(InvalidArgumentError, match="int8"):
        Options(tolerance={torch.int8: 1.0})


def test_an_accuracy_check_may_write_into_what_it_is_given() -> None:
    def check(reference: torch.Tensor, candidate: torch.Tensor) -> float:
        return float(reference.sub_(candidate).abs_().max()) + float(candidate.zero_().sum())

    model = torch.jit.script(Net().eval())
    guard = Guard(model, resolve_inputs(None, [(X,)]), torch.device("cpu"), measure.Judge(check))
    guard.run_references()
    wanted = guard.references[0].clone()
    assert guard.compare(model).check == 0
    assert torch.equal(guard.references[0], wanted)


def test_a_complaint_is_about_the_users_own_check() -> None:
    with pytest.raises(AccuracyError) as raised:
        optimize(0, accuracy_check=lambda one, other: 0.5, on_accuracy_failure="raise")
    assert "lossless: what accuracy_check gives, 0.5, is above the tolerance 1e-05" in str(raised.value)
    assert "accuracy_check does not accept the input model itself" in str(raised.value)
    _, report = optimize(0, accuracy_check=lambda one, other: float("nan"))
    assert "what accuracy_check gives, nan, is above" in report.actions[0]
    assert any("does not accept the input model itself" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    ("level", "options", "lost"),
    [
        (0, {"keep_fp32": "softmax"}, {"keep_fp32"}),
        (0, {"half_dtype": "bf16"}, {"half_dtype"}),
        (1, {"keep_fp32": "softmax"}, set()),
        (1, {"keep_fp32": "softmax", "passes": "-remove-dropout"}, set()),
        (1, {"keep_fp32": "softmax", "passes": "cast-half{dtype=bf16}"}, {"keep_fp32"}),
        (1, {"keep_fp32": "softmax", "passes": "cast-half{dtype=bf16,keep_fp32=softmax}"}, set()),
        (1, {"half_dtype": "fp16", "passes": "cast-half{dtype=bf16}"}, {"half_dtype"}),
        (1, {"half_dtype": "bf16", "passes": "-cast-half"}, {"half_dtype"}),
    ],
)
def test_an_option_without_effect_is_told(level: int, options: Any, lost: set[str]) -> None:
    _, report = optimize(level, tolerance=0.1, **options)
    assert {warning.split()[0] for warning in report.warnings if "has no effect" in warning} == lost


def test_a_level_that_came_to_nothing_is_told_with_its_reasons() -> None:
    _, report = optimize(1, keep_fp32="*")
    assert (report.requested_level, report.achieved_level, report.tolerance) == (1, 0, 1e-5)
    assert "half precision: nothing computes in bfloat16: what could, 4 operators, stays in float32" in report.actions
    assert report.precision.operators == report.precision.flops == 0
    text = text_of(report)
    assert "at level 0 (level 1 was asked for)" in text and "2 × aten.linear.default in float32: keep_fp32='*'" in text
    _, report = optimize(1, Integers(), torch.arange(8))
    assert report.achieved_level == 0 and "nothing of the input model computes in float32" in report.actions[0]
    _, report = optimize(1, passes="fold-batch-norm")
    assert report.achieved_level == 0 and "the passes have no cast-half" in report.actions[0]


class Integers(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * 3 + 1) // 2


def test_half_precision_of_the_input_model_is_its_own() -> None:
    for level in (0, 1):
        _, report = optimize(level, Net().bfloat16(), X.bfloat16())
        assert report.segments and (report.achieved_level, report.tolerance) == (level, 1e-2)
        assert "was asked for" not in text_of(report)
    _, report = optimize(0, passes="cast-half{dtype=bf16}")
    assert report.achieved_level == 1 and "level 1 (level 0 was asked for)" in text_of(report)


@pytest.mark.parametrize("backend", ["reference", ()])
def test_the_tolerance_is_that_of_the_models_own_arithmetic(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if not backend:
        monkeypatch.setattr("tiacc.api.choose_backends", lambda settings, device: ((), []))
    _, report = optimize(0, Net().double(), X.double())
    assert report.passes and report.tolerance == 1e-10


def test_lost_numbers_are_called_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base.backends._items, "faulty", backend_with(on_output(0, torch.nan_to_num)))
    x = X.clone()
    x[2] = float("nan")
    _, report = optimize(0, x=x, backend="faulty")
    assert not report.segments
    assert "an output is not finite where the input model's is, or the other way round, which no tolerance allows" in report.actions[0]
    assert "its engine gives NaN, infinity or zeros where torch gives numbers" in report.actions[1]
    assert "inf is" not in text_of(report) and "off by inf" not in text_of(report)


class Unlike(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.accuracy_options.count(super().forward(x))


def test_a_model_that_is_unlike_itself_is_told() -> None:
    model = torch.jit.trace(Unlike().eval(), X, check_trace=False)
    told = "the input model gives other results in another call with the same data"
    _, report = tiacc.optimize(model, 0, "cpu", test_data=[(X,)], backend="reference", timing_seconds=0.05)
    assert report.speedup == 1.0 and any(told in warning for warning in report.warnings), report
    with pytest.raises(AccuracyError, match=told):
        tiacc.optimize(model, 0, "cpu", test_data=[(X,)], backend="reference", on_accuracy_failure="raise")


def test_a_search_that_found_nothing_says_if_it_was_for_lack_of_time() -> None:
    normed = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Linear(32, 4))
    nn.init.normal_(normed[1].running_mean)
    _, report = optimize(1, normed, tolerance=1e-12)
    assert report.actions[0].startswith("half precision: no repair was found; with 2 operators in float32 the error is still "), report
    assert not any("accuracy_budget_seconds" in action for action in report.actions)
    _, report = optimize(1, tolerance=1e-4, accuracy_budget_seconds=0)
    assert "half precision: no repair was found in the 0 s of accuracy_budget_seconds" in report.actions


def test_a_stale_engine_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one item of test data, only a call with other values tells that an engine gives what it gave before."""

    class Sorts(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.sort(torch.tanh(x) * 3)[0])

    class FirstIsStale(backend_with(lambda run: run)):  # type: ignore[misc]
        def supports(self, node: Any) -> Support:
            return Support(False, "no sort") if "sort" in str(node.target) else super().supports(node)

        def load(self, payload: bytes) -> Any:
            engine = super().load(payload)
            if "tanh" in str(engine._function.graph):
                engine.run = stale(engine.run)
            return engine

    monkeypatch.setitem(base.backends._items, "faulty", FirstIsStale)
    output_model, report = optimize(0, Sorts(), backend="faulty")
    assert [segment.outputs for segment in report.segments] == [("float32[8, 4]",)], report.actions
    with torch.no_grad():
        for x in (X, X.flip(0)):
            torch.testing.assert_close(output_model(x), Sorts().eval()(x))

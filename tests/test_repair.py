"""Half precision that goes wrong: which operators are found guilty, and what `optimize` makes of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import tiacc
from tests.helpers import use_however_fast
from tiacc import measure, samples
from tiacc.backends import base
from tiacc.options import Options
from tiacc.planning import plan_of
from tiacc.repair import Repairer

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    use_however_fast(monkeypatch)
    monkeypatch.setattr("tiacc.measure.MIN_CALLS", 1)
    # What the ranges of values tell beforehand is tested elsewhere; here it is what the repair finds without that.
    monkeypatch.setattr("tiacc.ranges.beyond_half", lambda *_: {})


class Peak(nn.Module):
    """Layers of which one, in the middle, computes numbers beyond 65504, and the next brings them back."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())))
        self.peak = nn.Conv2d(8, 8, 1)
        self.peak.weight.data *= 1e4
        self.after = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(torch.sigmoid(self.peak(1000 * self.before(x)) * 1e-5) + x)


def repairer(model: nn.Module, x: torch.Tensor, half: torch.dtype) -> Repairer:
    scripted = torch.jit.trace(model.eval(), x)
    shape = "*".join(map(str, x.shape))
    inputs = samples.resolve_inputs([shape], [(x,)], 0)
    settings = Options.from_fields(None, half_dtype=half)
    plan = plan_of(scripted, inputs, 1, CPU, settings, (base.require("reference"),))
    with torch.no_grad():
        return Repairer(scripted, plan, [(x,)], [scripted(x)], measure.Judge())


def test_only_the_operator_that_overflows_is_kept() -> None:
    search = repairer(Peak(), torch.randn(1, 8, 12, 12), torch.float16)
    assert search.begin() > 0.02
    repair = search.improve(4e-3, 5e-3, 30)
    assert repair.is_found and repair.after <= 4e-3 and repair.half_share > 0.9
    (kept,) = repair.keep.values()
    assert any("lost" in reason for reason in kept.values())
    assert sum("convolution" in name for name in kept) <= 1


def test_contributions_add_up_to_the_error() -> None:
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Linear(48, 48), nn.Tanh())]
    x = torch.randn(64, 48)
    search = repairer(nn.Sequential(*layers), x, torch.bfloat16)
    before = search.begin()
    repair = search.improve(before * 0.7, before * 0.7, 30)
    whole = sum(row.contribution**2 for _, row in repair.table) ** 0.5
    assert 0.5 * before < whole < 2 * before
    assert 0.5 * before < repairer(nn.Sequential(*layers), x, torch.bfloat16).expected() < 2 * before
    assert repair.is_found and repair.after <= 0.7 * before
    assert repair.table == sorted(repair.table, key=lambda item: -item[1].contribution)


class Mixed(Peak):
    """Each row of its result depends on all rows of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x - x.mean(0))


def test_what_one_row_needs_is_what_all_need() -> None:
    torch.manual_seed(1)
    x = torch.randn(6, 8, 12, 12)
    model = Peak()
    whole, part = (repairer(model, x, torch.float16) for _ in range(2))
    assert part.narrow()
    assert part.begin() == pytest.approx(whole.begin(), rel=0.3)
    kept = part.improve(2e-3, 4e-3, 30).keep
    data, reference = [(x,)], [model(x).detach()]
    assert whole.oracle.accuracy(kept, data, reference, measure.Judge()).error < 5e-3


def test_rows_that_depend_on_each_other_are_not_parted() -> None:
    search = repairer(Mixed(), torch.randn(6, 8, 12, 12), torch.float16)
    before = search.begin()
    assert not search.narrow() and search.begin() == before
    assert search.improve(4e-3, 5e-3, 30).is_found


def optimize(model: nn.Module, x: torch.Tensor, **options: Any) -> tuple[Any, Any, torch.jit.ScriptModule]:
    scripted = torch.jit.trace(model.eval(), x)
    output_model, report = tiacc.optimize(
        scripted, 1, 1, ["*".join(map(str, x.shape))], [(x,)], backend="reference", timing_seconds=0.1, **options
    )
    return output_model, report, scripted


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 5], ids=["all data", "one row"])
def test_optimize_repairs_and_tells(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    if rows > 1:
        monkeypatch.setattr("tiacc.mending.RUNS", math.inf)  # as where a call takes long
    x = torch.randn(rows, 8, 12, 12)
    output_model, report, model = optimize(Peak(), x, half_dtype="fp16")
    assert report.achieved_level == 1, report
    assert any("kept in float32" in action for action in report.actions)
    precision = report.precision
    assert precision.half_dtype == "float16" and precision.flops > 0.85 and precision.operators > 0.8
    assert precision.error_before > 5e-3 >= precision.error_after == report.outputs[0].rel_norm
    assert any("lost" in row.reason for row in precision.kept)
    assert {row.node for row in precision.sensitivities if row.is_kept} <= {row.node for row in precision.kept}
    assert "in float32: its numbers are lost in half precision" in " ".join(str(report).split())
    assert tiacc.OptimizedReport.from_dict(report.to_dict()) == report
    for item in (x, torch.randn(rows, 8, 12, 12)):
        assert measure.largest(measure.compare(model(item), output_model(item))) <= 5e-3


def test_no_repair_where_an_error_shall_be_raised() -> None:
    with pytest.raises(tiacc.errors.AccuracyError):
        optimize(Peak(), torch.randn(1, 8, 12, 12), half_dtype="fp16", on_accuracy_failure="raise")


def test_without_time_for_a_repair_the_model_is_lossless_and_the_report_says_why() -> None:
    _, report, _ = optimize(Peak(), torch.randn(1, 8, 12, 12), half_dtype="fp16", accuracy_budget_seconds=0)
    assert report.achieved_level == 0
    assert any("no repair" in action for action in report.actions)


def test_a_repair_that_fails_is_told_and_less_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any) -> Any:
        raise RuntimeError("not enough memory")

    monkeypatch.setattr("tiacc.repair.analyse", no_memory)
    _, report, _ = optimize(Peak(), torch.randn(1, 8, 12, 12), half_dtype="fp16")
    assert report.achieved_level == 0
    assert any("the repair failed: not enough memory" in action for action in report.actions)


@torch.no_grad()
def test_the_users_own_check_decides() -> None:
    x = torch.randn(1, 8, 12, 12)
    seen = []

    def check(reference: torch.Tensor, candidate: torch.Tensor) -> float:
        seen.append(candidate.shape)
        return float((reference - candidate).abs().max())

    _, report, _ = optimize(Peak(), x, half_dtype="fp16", accuracy_check=check, tolerance=0.02)
    assert seen and report.achieved_level == 1 and report.accuracy_check <= 0.02
    with pytest.raises(tiacc.errors.InvalidArgumentError, match="accuracy_check"):
        optimize(Peak(), x, half_dtype="fp16", accuracy_check=lambda one, other: "fine")


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


@pytest.mark.parametrize("form", ["traced", "scripted"])
@pytest.mark.parametrize(("pattern", "kept"), [("blocks.1", 2), ("blocks.*.0", 3), ("blocks.0.2", 1), ("bl*s.2", 2)])
def test_a_module_is_kept_by_its_path(form: str, pattern: str, kept: int) -> None:
    x = torch.randn(8, 32)
    model = Blocks().eval()
    torchscript = torch.jit.script(model) if form == "scripted" else torch.jit.trace(model, x)
    _, report = tiacc.optimize(
        torchscript, 1, 1, ["8*32"], backend="reference", half_dtype="bf16", keep_fp32=[pattern], timing_seconds=0.1, tolerance=0.1
    )
    rows = [row for row in report.precision.kept if row.reason == f"keep_fp32={pattern!r}" and "linear" in row.op]
    assert len(rows) == kept and not any("keep_fp32" in warning for warning in report.warnings)


def test_a_pattern_that_means_nothing_is_told() -> None:
    _, report, _ = optimize(Blocks(), torch.randn(8, 32), half_dtype="bf16", keep_fp32="blocks.7", tolerance=0.1)
    assert any("'blocks.7'" in warning for warning in report.warnings)

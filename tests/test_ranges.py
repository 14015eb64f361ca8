"""Values beyond float16 on the test data: their operators are in float32 from the start."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tiacc
from tests.helpers import use_however_fast
from tiacc import samples
from tiacc.backends import base
from tiacc.options import Options
from tiacc.planning import plan_of
from tiacc.ranges import beyond_half


class Wide(nn.Module):
    """A layer whose values reach far beyond 65504, one whose values are nearly nothing, and two that are as usual."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.large, self.small, self.last = (nn.Linear(16, 16, bias=False) for _ in range(4))
        self.large.weight.data *= 1e3
        self.small.weight.data *= 1e-3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        large = self.large(x * 1e3)
        small = self.small(x * 1e-3)
        return self.last(torch.tanh(large * 1e-6) + small * 1e6)


def found(half: torch.dtype, scale: float = 1.0) -> dict[str, str]:
    x = torch.randn(8, 16) * scale
    model = torch.jit.trace(Wide().eval(), x)
    inputs = samples.resolve_inputs(["8*16"], [(x,)], 0)
    settings = Options.from_fields(None, half_dtype=half)
    plan = plan_of(model, inputs, 1, torch.device("cpu"), settings, (base.require("reference"),))
    return beyond_half(model, plan, inputs.data).get(0, {})


def test_what_does_not_fit_is_found_and_nothing_else() -> None:
    kept = found(torch.float16)
    assert len(kept) == 2, kept
    assert sum("beyond float16" in reason for reason in kept.values()) == 1
    assert sum("are lost in float16" in reason for reason in kept.values()) == 1
    assert all("linear" in name for name in kept)


def test_it_is_the_data_that_decides() -> None:
    assert not any("beyond" in reason for reason in found(torch.float16, 1e-3).values())


def test_bfloat16_has_the_range_of_float32() -> None:
    assert found(torch.bfloat16) == {}


@torch.no_grad()
def test_optimize_keeps_them_and_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    use_however_fast(monkeypatch)
    x = torch.randn(8, 16)
    model = torch.jit.trace(Wide().eval(), x)
    optimized, report = tiacc.optimize(model, 1, 1, ["8*16"], [(x,)], backend="reference", half_dtype="fp16", timing_seconds=0.05)
    assert report.achieved_level == 1 and "do not fit in float16" in report.actions[0], report.actions
    reasons = " ".join(row.reason for row in report.precision.kept)
    assert "beyond float16" in reasons and "are lost in float16" in reasons
    assert torch.linalg.vector_norm(optimized(x) - model(x)) <= 5e-3 * torch.linalg.vector_norm(model(x))

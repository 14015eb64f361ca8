"""Models that cannot be made faster: what `optimize` returns is timed against them, in turn, and is no slower than 0.98."""

from __future__ import annotations

import pytest
import torch

import tiacc
from tests.test_never_slower import MODELS
from tiacc import measure


@pytest.mark.parametrize("name", list(MODELS))
def test_never_slower(benchmark, seconds: float, name: str) -> None:
    """Times of a few microseconds are those of many calls, so that the clock and the loop do not count."""
    torch.set_num_threads(1)
    module, shape = MODELS[name]
    x = torch.randn([int(size) for size in shape.split("*")])
    model = torch.jit.trace(module.eval(), x)
    output_model, report = tiacc.optimize(model, 0, 1, [shape], timing_seconds=min(1.0, seconds))

    def repeated(called):
        def call():
            for _ in range(20):
                called(x)

        return call

    with torch.no_grad():
        baseline, optimized = measure.latencies([repeated(model), repeated(output_model)], torch.device("cpu"), seconds=seconds)
        benchmark.extra_info.update(ratio=baseline.p50_ms / optimized.p50_ms, reported=report.speedup, actions=report.actions)
        benchmark.pedantic(repeated(output_model), rounds=3, warmup_rounds=1)
    assert baseline.p50_ms / optimized.p50_ms >= 0.98

"""The latency of whole models: TorchScript, tiacc at both levels, OpenVINO used directly; timed in turn in one process."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import tiacc
from benchmarks import models
from tiacc import environment, measure

THREADS = 2
NAMES = ("resnet50", "mobilenet_v3_large", "resnest50", "centernet_resnet50")
BATCHES = (1, 8)

LEAST_CALLS = 3
"""How often each is timed at least: eight images through CenterNet take seconds."""


def openvino_direct(model: torch.jit.ScriptModule, example: torch.Tensor) -> Callable[[], Any]:
    """Return a call of the model as OpenVINO converts it, in float32, without a copy on the way in or out."""
    import openvino as ov

    converted = ov.convert_model(model, example_input=example, input=[tuple(example.shape)])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": THREADS}
    compiled = ov.Core().compile_model(converted, "CPU", settings)
    array: np.ndarray = example.numpy()
    return lambda: compiled(array, share_inputs=True, share_outputs=True)


def ceiling() -> tuple[Callable[[], Any], float]:
    """Return a call of what OpenVINO computes fastest in float32, a 3x3 convolution of many channels, and its arithmetic in GFLOP."""
    channels, size = 512, 28
    x = torch.randn(1, channels, size, size)
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    return openvino_direct(models.trace(layer, x), x), gflops(layer, x)


def gflops(model: torch.nn.Module, x: torch.Tensor) -> float:
    """Return the arithmetic of the convolutions and products of a model, a multiplication and an addition counting as two, in GFLOP."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(x)
    return counter.get_total_flops() / 1e9


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", NAMES)
def test_latency(benchmark, seconds: float, name: str, batch: int) -> None:
    """Ratios come from calls in turn, and the errors from the model that a load of the saved bytes gives."""
    entry = models.ZOO[name]
    shape = (batch, 3, entry.size, entry.size)
    torch.set_num_threads(THREADS)
    x = models.example(name, batch)
    eager = models.make(name)
    model = models.trace(eager, x)
    calls: dict[str, Callable[[], Any]] = {"torchscript": lambda: model(x), "openvino": openvino_direct(model, x)}
    info: dict[str, Any] = {"model": name, "batch": batch, "threads": THREADS, "cpu_has_bf16": environment.cpu_has_bf16()}
    calls["ceiling"], info["ceiling_gflop"] = ceiling()
    info["gflop"] = gflops(eager, x)
    with torch.no_grad():
        reference = model(x)
    for level in (0, 1):
        optimized, report = tiacc.optimize(model, level, 1, ["*".join(map(str, shape))], num_threads=THREADS, backend="openvino")
        buffer = io.BytesIO()
        torch.jit.save(optimized, buffer)
        buffer.seek(0)
        loaded = torch.jit.load(buffer)
        with torch.no_grad():
            error = measure.largest(measure.compare(reference, loaded(x)))
        info[f"level{level}_achieved"] = report.achieved_level
        info[f"level{level}_relative_error"] = error
        info[f"level{level}_segments"] = len(report.segments)
        info[f"level{level}_optimize_seconds"] = report.seconds
        calls[f"level{level}"] = lambda loaded=loaded: loaded(x)
        assert error <= (1e-2 if report.achieved_level else 1e-5)
    with torch.no_grad():
        latencies = dict(zip(calls, measure.latencies(list(calls.values()), torch.device("cpu"), seconds, least=LEAST_CALLS)))
        for key, latency in latencies.items():
            info[f"{key}_ms"] = latency.p50_ms
            info[f"{key}_p90_ms"] = latency.p90_ms
            info[f"{key}_runs"] = latency.runs
        benchmark.extra_info.update(info)
        benchmark.pedantic(calls["level0"], rounds=3)

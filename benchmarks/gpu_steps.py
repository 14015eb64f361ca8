"""Where the time of a model goes on a GPU: each step of its engine, beside what its bytes and arithmetic are worth.

``python -m benchmarks.gpu_steps --commit $(git rev-parse --short HEAD) resnet50:1 resnet50:64`` prints a table a model, in which steps
that are alike are one row, and writes ``benchmarks/results/steps-DATE-COMMIT.json``.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks import models
from benchmarks.gpu import DEVICE, distance, flat, host_microseconds, new_record, path_of, python_loop, write
from tiacc import compiler, planning, samples
from tiacc.backends.cudnn import CudnnBackend
from tiacc.backends.cudnn.engine import CudnnEngine
from tiacc.backends.cudnn.profile import StepTime, profile
from tiacc.options import Options
from tiacc.runtime import ops

BANDWIDTH = {"NVIDIA H100 80GB HBM3": 3.0e12, "NVIDIA H200": 4.2e12}
"""Bytes a second that a copy reaches, by GPU."""

RATE = {0: 350e12, 1: 700e12}
"""Operations a second that large products reach, by level: TensorFloat-32 and float16."""


def measure(name: str, batch: int, level: int, cache: Path | None) -> dict[str, Any]:
    """Build the engine of a model, check it, and return what its steps take."""
    model = models.make(name).to(DEVICE)
    inputs = tuple(item.to(DEVICE) for item in models.inputs(name, batch))
    fresh = tuple(item.to(DEVICE) for item in models.inputs(name, batch, seed=1))
    scripted = models.trace(model, *inputs)
    torch.backends.cudnn.allow_tf32 = False
    reference = flat(model(*fresh))
    torch.backends.cudnn.allow_tf32 = True
    begin = time.perf_counter()
    resolved = samples.resolve_inputs(None, [inputs], 0)
    options = Options(cache_dir=cache)
    plan = planning.plan_of(scripted, resolved, level, DEVICE, options, (CudnnBackend(),))
    compiled = compiler.build(compiler.propose(scripted, plan), plan)
    seconds = time.perf_counter() - begin
    outputs = [flat(compiled.module(*fresh)) for _ in range(3)][-1]
    error = distance(outputs, reference)
    in_torch = distance(flat(scripted(*fresh)), reference)
    if len(compiled.engines) != 1:
        raise SystemExit(f"{name} has {len(compiled.engines)} engines: {compiled.warnings}")
    (stitched,) = compiled.engines
    engine = ops.load(stitched.blob, stitched.key).engine
    assert isinstance(engine, CudnnEngine)
    given = tuple(inputs[: len(engine.inputs)])
    steps = profile(engine, given)
    engine.run(given)
    executable = engine.executable(given, torch.cuda.current_stream().cuda_stream)
    engine.run(given)
    return {
        "model": name,
        "batch": batch,
        "level": level,
        "relative_error": error,
        "torchscript_relative_error": in_torch,
        "build_seconds": round(seconds, 1),
        "whole_microseconds": round(whole(engine, given), 1),
        "host_microseconds": {
            "model": host_microseconds(lambda: compiled.module(*inputs)),
            "engine": host_microseconds(lambda: engine.run(given)),
            "launch": host_microseconds(executable.launch, lambda: executable.fill(given)),
            "python_loop": host_microseconds(python_loop),
        },
        "steps": [dataclasses.asdict(step) for step in steps],
    }


def whole(engine: CudnnEngine, inputs: tuple[torch.Tensor, ...]) -> float:
    """Return the time of an engine on the GPU, copies of inputs and outputs included, in microseconds: of calls one behind the other."""
    for _ in range(3):
        engine.run(inputs)
    times = []
    for _ in range(5):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(20_000_000)  # so that the host is ahead
        begin.record()
        for _ in range(20):
            engine.run(inputs)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 50)
    return min(times)


def groups(row: dict[str, Any], device: str) -> list[dict[str, Any]]:
    """Return the steps of a row, those that are alike as one: how many there are, their time and its least in all, the longest first."""
    bandwidth = BANDWIDTH.get(device, 3.0e12)
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for fields in row["steps"]:
        step = StepTime(**fields)
        kind = {"title": step.title, "shape": list(step.shape), "tactic": step.tactic}
        empty = {**kind, "count": 0, "microseconds": 0.0, "floor": 0.0, "error": 0.0}
        group = found.setdefault((step.title, tuple(step.shape), step.tactic), empty)
        group["count"] += 1
        group["microseconds"] += step.microseconds
        group["floor"] += step.floor(bandwidth, RATE[row["level"]])
        group["error"] = max(group["error"], step.relative_error)
    return sorted(found.values(), key=lambda group: -group["microseconds"])


def table(row: dict[str, Any]) -> str:
    """Return a row as a table: the steps that take longest first."""
    found = groups(row, torch.cuda.get_device_name(DEVICE))
    total, least = (sum(group[key] for group in found) for key in ("microseconds", "floor"))
    head = (
        f"== {row['model']} batch {row['batch']} level {row['level']}: whole {row['whole_microseconds']:.0f} us, steps {total:.0f} us, "
        f"floor {least:.0f} us, error {row['relative_error']:.1e} (TorchScript "
        f"{row['torchscript_relative_error']:.1e}), built in {row['build_seconds']:.0f} s, "
        f"host {row['host_microseconds']} us"
    )
    lines = [
        f"{group['count']:3.0f}x {group['microseconds'] / group['count']:7.1f} us  floor {group['floor'] / group['count']:6.1f}  "
        f"{group['title']} {group['shape']} {group['tactic']} error {group['error']:.0e}"
        for group in found
    ]
    return "\n".join([head, *lines])


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+", help="MODEL:BATCH or MODEL:BATCH:LEVEL; level 1 unless told")
    parser.add_argument("--commit", required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--cache", type=Path, help="a folder of tactics")
    parser.add_argument("--verbose", action="store_true")
    told = parser.parse_args()
    warnings.simplefilter("ignore")
    if told.verbose:
        logging.basicConfig(format="%(relativeCreated)d %(name)s %(message)s")
        logging.getLogger("tiacc.backends.cudnn").setLevel(logging.DEBUG)
    record = new_record(told.commit)
    for case in told.cases:
        name, batch, level = (*case.split(":"), "1")[:3]
        with torch.no_grad():
            record["rows"].append(measure(name, int(batch), int(level), told.cache))
        print(table(record["rows"][-1]), flush=True)
        write(record, path_of(record, "steps", told.out))
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

"""Segments that cost more in an engine than in Torch: they are found by timing each by itself, and left in Torch."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from tiacc import measure, models
from tiacc.errors import TiaccError
from tiacc.graph import exporter
from tiacc.runtime import ops

if TYPE_CHECKING:
    from tiacc.backends.base import Engine
    from tiacc.compiler import Compiled
    from tiacc.job import Job, Trial
    from tiacc.report import Latency
    from tiacc.runtime.stitch import StitchedEngine

CALLS = 5
"""How often an engine and the same operators in Torch are called at least."""


def cheaper(job: Job, trial: Trial, file: models.TemporaryModel, seconds: float) -> Trial:
    """Return a trial without the engines that are slower than Torch, if it is faster so; else the trial as it was.

    A single engine is not looked at: the model as a whole is timed anyway.

    Args:
        job: The call of `optimize`.
        trial: A model that is right.
        file: Where the model is written; it has that of the trial that is returned.
        seconds: How long the segments may be timed, all together; each is called `CALLS` times at least.
    """
    if len(trial.compiled.engines) < 2:
        return trial
    slow = slow_segments(trial.compiled, job.timed_item, job.device, seconds)
    if not slow:
        return trial
    again = job.make(dataclasses.replace(trial.attempt, distrusted={**trial.attempt.distrusted, **slow}), file)
    if again is not None and not again.failure:
        again.repair, again.error_before = trial.repair, trial.error_before
        calls = [job.guard.timed(module, job.timed_item) for module in (trial.model, again.model)]
        with torch.no_grad():
            before, after = measure.latencies(calls, job.device, seconds)
        if after.p50_ms < before.p50_ms:
            for (region, index), reason in slow.items():
                job.report.actions.append(f"{trial.attempt.name}: segment {region}.{index} was left in Torch: {reason}")
            return again
    file.write(trial.compiled.module)
    return trial


def slow_segments(compiled: Compiled, item: Sequence[object], device: torch.device, seconds: float) -> dict[tuple[int, int], str]:
    """Return the segments whose engines are slower than Torch on what reaches them, and by how much, by region and index.

    Args:
        compiled: The model.
        item: What it is called with.
        device: Where it runs.
        seconds: How long may be timed, all segments together.
    """
    found = {}
    for row, made, inputs in zip(compiled.segments, compiled.engines, _inputs_of(compiled, item)):
        if inputs is None:
            continue
        try:
            engine, in_torch = _latencies(made, inputs, device, seconds / len(compiled.engines))
        except (TiaccError, RuntimeError, NotImplementedError):  # Torch may lack a kernel: then the engine is needed
            continue
        if engine.p50_ms > in_torch.p50_ms and measure.is_told(engine, in_torch, 1.0):
            found[row.region, row.index] = f"its engine takes {engine.p50_ms:.3g} ms, and Torch {in_torch.p50_ms:.3g} ms"
    return found


def _latencies(
    made: StitchedEngine, inputs: list[torch.Tensor], device: torch.device, seconds: float
) -> list[Latency]:
    in_torch = exporter.to_function(made.subgraph.graph)
    run = torch.ops.tiacc.run_engine.default
    with torch.no_grad():
        return measure.latencies(
            (lambda: run(inputs, made.blob, made.backend, made.key), lambda: in_torch(*inputs)), device, seconds, least=CALLS
        )


def _inputs_of(compiled: Compiled, item: Sequence[object]) -> list[list[torch.Tensor] | None]:
    """Return what each engine is given in a call of the model; None for one that is not called."""
    seen = []
    for made in compiled.engines:
        loaded = ops.load(made.blob, made.key)
        seen.append(_SeenEngine(loaded.engine))
        ops.attach(made.blob, seen[-1], loaded.header.device)
    with contextlib.suppress(Exception):  # it has run before; what was seen until it fails is what is known
        models.call(copy.deepcopy(compiled.module), item)
    for made in compiled.engines:
        ops.load(made.blob, made.key)
    return [engine.seen for engine in seen]


class _SeenEngine:
    """An engine that keeps what it is given.

    Attributes:
        seen: What it was given last.
    """

    def __init__(self, engine: Engine) -> None:
        self.inputs = engine.inputs
        self.outputs = engine.outputs
        self.seen: list[torch.Tensor] | None = None
        self._engine = engine

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the outputs."""
        self.seen = [tensor.detach().clone() for tensor in inputs]
        return self._engine.run(inputs)

    def serialize(self) -> bytes:
        """Refuse: it watches an engine."""
        raise TiaccError("an engine that is being watched is not one to save")

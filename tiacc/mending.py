"""A model whose outputs are off, mended: wrong engines are left out, and operators that half precision does not suit stay in float32."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from tiacc import measure, models
from tiacc.backends.reference import own
from tiacc.errors import AccuracyError, TiaccError
from tiacc.oracle import is_half, run_in_float32
from tiacc.precision import SHOWN, Precision, SensitivityRow
from tiacc.repair import HALF_SHARE, MARGIN, Repairer
from tiacc.report_view import operators_text
from tiacc.runtime import ops, stitch

if TYPE_CHECKING:
    from tiacc.backends.base import BuildSpec, Engine
    from tiacc.compiler import Compiled
    from tiacc.job import Job, Trial

LIMIT = 0.95
"""The part of the tolerance that a repair may use where `MARGIN` would cost too much."""

ENGINE_FAULT = 3.0
"""An error so many times that of the graph itself in half precision is not from half precision."""

MOST_EXCESS = 1.5
"""The most that the error of engines which are within the tolerance is held to be larger than that of the graph itself."""

RUNS = 60
"""How many calls of the input model a search takes as long as, about."""

FOR_A_MARGIN = 0.3
"""The part of the budget that is spent on outputs that are within the tolerance, and near it."""

BUILDS = 3
"""How often a model is built anew at most."""


def mended(job: Job, trial: Trial, file: models.TemporaryModel) -> Trial | None:
    """Return a trial that is right, if one is found within the budget; else the trial as it was.

    Args:
        job: The call of `optimize`.
        trial: An attempt at its model, which may be right.
        file: Where the model is written; it has that of the trial that is returned.
    """
    if trial.failure:
        better = _without_wrong_engines(job, trial, file)
        if better is None or not better.failure:
            return better
        trial = better
    if trial.attempt.level == 1 and trial.error > MARGIN * trial.tolerance and trial.compiled.is_half:
        return _with_more_float32(job, trial, file)
    return trial


def tell(precision: Precision, trial: Trial) -> None:
    """Put into the report what a repair found."""
    if trial.repair is None:
        return
    precision.error_before, precision.error_after = trial.error_before, trial.error
    precision.sensitivities = [
        SensitivityRow(
            row.node,
            row.op,
            row.local,
            row.contribution,
            row.flops,
            row.node in trial.attempt.keep_fp32.get(region, {}),
            row.source,
            region,
        )
        for region, row in trial.repair.table[:SHOWN]
    ]


def _without_wrong_engines(job: Job, trial: Trial, file: models.TemporaryModel) -> Trial | None:
    """Leave the segments in Torch whose engines are off from what torch gives for the same inputs."""
    distrusted = _wrong_engines(trial.compiled, job.guard.calls, trial.tolerance)
    if not distrusted:
        return trial
    job.report.actions.append(f"{trial.attempt.name}: {trial.failure}")
    for (region, index), reason in distrusted.items():
        job.report.actions.append(f"{trial.attempt.name}: segment {region}.{index} was left in Torch: {reason}")
    return job.make(dataclasses.replace(trial.attempt, distrusted=distrusted), file)


def _wrong_engines(compiled: Compiled, data: Sequence[Any], tolerance: float) -> dict[tuple[int, int], str]:
    """Return the segments whose engines are off, and by how much, by the index of the region and that of the segment."""
    found = zip(compiled.segments, checked_engines(compiled, data))
    return {(row.region, row.index): check.complaint(tolerance) for row, check in found if check.complaint(tolerance)}


def checked_engines(compiled: Compiled, data: Sequence[Any]) -> list[CheckedEngine]:
    """Run a model with each engine compared with its graph."""
    checks = []
    for made in compiled.engines:
        assert made.spec is not None
        engine: Engine
        try:
            loaded = ops.loaded(made.blob, made.key)
            engine, device = loaded.engine, loaded.header.device
        except Exception as error:  # noqa: BLE001 - whatever the backend of another package raises
            engine, device = _UnloadableEngine(made.spec, error), made.spec.device.type
        checks.append(CheckedEngine(engine, made))
        ops.attach(made.blob, checks[-1], device)
    module = copy.deepcopy(compiled.module)  # its constants are shared, its state is not
    with contextlib.suppress(Exception):  # what stayed in Torch may fail too; what was seen until then is what is known
        for item in data:
            models.call(module, item)
    return checks


class _UnloadableEngine:
    """Stands for an engine that cannot be loaded: it fails as the load does."""

    def __init__(self, spec: BuildSpec, error: Exception) -> None:
        self.inputs = spec.inputs
        self.outputs = spec.outputs
        self._error = error

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        raise self._error

    def serialize(self) -> bytes:
        raise self._error


class CheckedEngine:
    """An engine that is compared with its graph at each call, and gives what the graph gives.

    Attributes:
        seen: What it was given when it was most wrong, or first.
    """

    def __init__(self, engine: Engine, made: stitch.StitchedEngine) -> None:
        self.inputs = engine.inputs
        self.outputs = engine.outputs
        self._engine = engine
        self._graph = made.subgraph.graph
        self._exact = self._graph if is_half(self._graph) else None
        self._error = 0.0
        self._failure = ""
        self.seen: list[torch.Tensor] = []

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return what the graph gives."""
        with torch.no_grad():
            wanted = own(list(self._graph(*inputs)), inputs)
        before = self._error, self._failure
        try:
            self._judge(inputs, wanted, self._engine.run(inputs))
        except AccuracyError as error:
            self._failure = str(error)
        except Exception as error:  # noqa: BLE001 - whatever an engine may raise
            self._failure = f"its engine fails: {models.reason_of(error)}"
        if not self.seen or (self._error, self._failure) != before:
            self.seen = [tensor.detach().clone() for tensor in inputs]
        return wanted

    def _judge(self, inputs: Sequence[torch.Tensor], wanted: list[torch.Tensor], found: list[torch.Tensor]) -> None:
        error = measure.largest(measure.compare(wanted, found))
        if error <= self._error:
            return
        if self._exact is not None:
            # Two results in half precision may both be right and differ by what both are off.
            with torch.no_grad():
                exact = [value.to(like.dtype) for value, like in zip(run_in_float32(self._exact, inputs), wanted)]
            if measure.largest(measure.compare(exact, found)) <= ENGINE_FAULT * measure.largest(measure.compare(exact, wanted)):
                return
        self._error = error

    def complaint(self, tolerance: float) -> str:
        """Return what is wrong with the engine, or an empty string."""
        if self._failure or self._error <= tolerance:
            return self._failure
        if math.isinf(self._error):
            return "its engine gives NaN, infinity or zeros where torch gives numbers for the same inputs, or the other way round"
        return f"its engine is off by {self._error:.2g} from what torch gives for the same inputs"

    def serialize(self) -> bytes:
        """Refuse: it judges an engine."""
        raise TiaccError("an engine that is being checked is not one to save")


def _with_more_float32(job: Job, trial: Trial, file: models.TemporaryModel) -> Trial:
    """Keep operators in float32 until the outputs are well within the tolerance."""
    name, tolerance = trial.attempt.name, trial.tolerance
    budget = job.settings.accuracy_budget_seconds
    end = time.perf_counter() + (budget if trial.failure else budget * FOR_A_MARGIN)
    try:
        repairer = Repairer(job.model, job.plan(trial.attempt), job.guard.data, job.guard.references, job.guard.judge)
    except TiaccError as error:
        job.report.actions.append(f"{name}: no repair was possible: {error}")
        return trial
    if RUNS * job.guard.seconds > budget:
        repairer.narrow()
    if trial.failure and trial.error > ENGINE_FAULT * repairer.begin() and trial.error > ENGINE_FAULT * repairer.expected():
        return trial  # the graph itself is right in half precision, and by no luck
    best = last = trial
    for _ in range(BUILDS):
        # Engines round at other places than torch does: where they were off more, aim lower.
        excess = _excess(best.error, repairer.repair.after, ENGINE_FAULT if best.failure else MOST_EXCESS)
        try:
            repair = repairer.improve(MARGIN * tolerance / excess, LIMIT * tolerance / excess, end - time.perf_counter())
        except (RuntimeError, NotImplementedError) as error:  # torch may lack a kernel, or the memory for gradients
            job.report.actions.append(f"{name}: the repair failed: {models.reason_of(error)}")
            break
        if repair.after > tolerance:
            if best.failure and time.perf_counter() > end:
                job.report.actions.append(f"{name}: no repair was found in the {budget:g} s of accuracy_budget_seconds")
            elif best.failure:
                kept = operators_text(sum(map(len, repair.keep.values())))
                job.report.actions.append(f"{name}: no repair was found; with {kept} in float32 the error is still {repair.after:.2g}")
            break
        if not repair.keep or repair.keep == last.attempt.keep_fp32:
            break
        if not best.failure and repair.half_share < HALF_SHARE:
            break  # it is within the tolerance: a margin is not worth so much
        kept = operators_text(sum(map(len, repair.keep.values())))
        told = best.failure if best.accuracy is None else best.accuracy.against(tolerance)
        job.report.actions.append(f"{name}: {told}; kept in float32: {kept}")
        again = job.make(dataclasses.replace(trial.attempt, keep_fp32=copy.deepcopy(repair.keep)), file)
        if again is None:
            break
        last = again
        again.repair, again.error_before = repair, trial.error
        if again.error < best.error:
            best = again
        if best.error <= LIMIT * tolerance or time.perf_counter() > end:
            break
    if best is not last:
        file.write(best.compiled.module)
    return best


def _excess(error: float, of_graph: float, most: float) -> float:
    """Return how many times as large the error of engines is as that of the graph itself, from 1 to `most`."""
    if not 0 < of_graph < math.inf or not error < math.inf:
        return 1.0
    return min(max(error / of_graph, 1.0), most)

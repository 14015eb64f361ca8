"""One call of `optimize`: attempts to make a model faster, each checked and timed, until one is right and pays."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tiacc import costs, environment, measure, mending, models, ranges, samples
from tiacc.backends.base import Backend
from tiacc.compiler import Compiled, Plan, Proposal, build, propose
from tiacc.errors import AccuracyError, ExportError, ImportGraphError, InvalidArgumentError, PassError, SpeedupError, TiaccError
from tiacc.guard import Guard
from tiacc.measure import Accuracy
from tiacc.options import Options
from tiacc.planning import half_of, plan_of, without_effect
from tiacc.progress import Progress
from tiacc.repair import Repair
from tiacc.report import DataInfo, Latency, OptimizationResult, OptimizedReport
from tiacc.report_view import operators_text
from tiacc.runtime import buffers
from tiacc.samples import ModelInputs

LEAST_GAIN = 1.01
"""An optimized model that is not at least so many times faster than the input model is not worth having."""

TIMING_SHARE = 0.05
"""The part of the time before it that a measurement takes which tells at once whether a model is faster."""

LONGEST_TIMING = 10.0
"""How long a measurement may take, in seconds, that decides between models about as fast as each other."""

PHASES = {"read": 1, "import": 2, "passes": 3, "build engines": 6, "export": 1, "check": 3, "measure": 2}
"""The phases of a call, and about how their times compare."""


@dataclass(frozen=True)
class Attempt:
    """A way to optimize a model.

    Attributes:
        name: How the report calls it.
        level: 0 or 1.
        backends: The backends it uses.
        keep_fp32: Nodes that stay in float32, and why: by the index of the region, then by name.
        distrusted: Segments that stay in Torch, and why: by the index of the region and that of the segment.
    """

    name: str
    level: int
    backends: tuple[Backend, ...]
    keep_fp32: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    distrusted: Mapping[tuple[int, int], str] = field(default_factory=dict)


@dataclass
class Trial:
    """What came of an attempt.

    Attributes:
        attempt: The attempt.
        compiled: What was built.
        model: The model as a load of the saved file gives it.
        accuracy: How far its outputs are from the input model's; None where they cannot be compared.
        tolerance: The largest error that is accepted.
        failure: Why it is not to be used, or an empty string.
        repair: What keeps operators in float32, if anything does.
        error_before: The error before the repair.
    """

    attempt: Attempt
    compiled: Compiled
    model: torch.jit.ScriptModule
    accuracy: Accuracy | None
    tolerance: float
    failure: str = ""
    repair: Repair | None = None
    error_before: float | None = None

    @property
    def error(self) -> float:
        """The error of the outputs; infinity where they cannot be compared."""
        return math.inf if self.accuracy is None else self.accuracy.error


class Job:
    """One call of `optimize`."""

    def __init__(
        self,
        model: torch.jit.ScriptModule,
        level: int,
        device: torch.device,
        inputs: ModelInputs,
        path: Path | None,
        settings: Options,
        candidates: tuple[Backend, ...],
        bar: Progress,
    ) -> None:
        self.model = model
        self.level = level
        self.device = device
        self.inputs = inputs
        self.path = path
        self.settings = settings
        self.candidates = candidates
        self.bar = bar
        self._began = time.perf_counter()
        shapes, types = samples.describe(inputs.data)
        self.report = OptimizedReport(
            software_environment=environment.software_environment(),
            hardware_environment=environment.hardware_environment(device, settings.target),
            test_data_info=DataInfo(inputs.source, shapes, types),
            requested_level=level,
        )
        software = {item.software: item.version for item in self.report.software_environment}
        self.report.tiacc_version = software.get("tiacc", "")
        if device.type == "cuda" and not settings.target:
            self.model = models.on_device(self.model, device)
        home = device if not settings.target else torch.device("cpu")
        self.guard = Guard(self.model, inputs, home, measure.Judge(settings.accuracy_check))
        self.report.warnings.extend(without_effect(level, device, settings))
        self.timed_item = self.guard.data[_typical(inputs)]
        self._baseline: Latency | None = None

    def run(self) -> torch.jit.ScriptModule:
        """Try the attempts in order, and return the model of the first that is right and faster."""
        self._run_references()
        with models.TemporaryModel(self.path) as file:
            for attempt in self._attempts():
                output_model = self._try(attempt, file)
                if output_model is not None:
                    break
            else:
                output_model = self._keep_input(file)
            self._require_speedup()
            file.keep()
        return output_model

    def _run_references(self) -> None:
        """Run the input model on the test data.

        Raises:
            InvalidArgumentError: It fails. Where that is because a size is baked into it, the message says where.
        """
        try:
            self.guard.run_references()
        except InvalidArgumentError as error:
            if not any(spec.dims for spec in self.inputs.specs):
                raise
            left = propose(self.model, self.plan(Attempt("explain the failure", 0, ()))).imported.left
            culprit = f". The first operator that does not work at all sizes is {left[0].op} at {left[0].source}" if left else ""
            raise InvalidArgumentError(f"{error}{culprit}") from error
        self.report.compared_shapes = self.guard.shapes
        self.report.warnings.extend(self.guard.warnings)

    def _attempts(self) -> list[Attempt]:
        attempts = [Attempt("lossless", 0, self.candidates)]
        if self.level == 1:
            if self._half_is_useful():
                attempts.insert(0, Attempt("half precision", 1, self.candidates))
            else:
                self.report.actions.append(
                    "half precision was not used: this CPU does not compute in bfloat16, and emulating it would be slower and less "
                    "exact; the model computes in float32. Give half_dtype=torch.bfloat16 to have it all the same"
                )
        if self.candidates:
            attempts.append(Attempt("passes alone", 0, ()))
        return attempts

    def _half_is_useful(self) -> bool:
        return self.device.type == "cuda" or self.settings.half_dtype is not None or environment.cpu_has_bf16()

    def _try(self, attempt: Attempt, file: models.TemporaryModel) -> torch.jit.ScriptModule | None:
        """Make, check and time a model; None if it is not to be used, with the reason in the report."""
        report = self.report
        attempt = self.within_range(attempt)
        trial = self.make(attempt, file)
        if trial is not None and self.settings.on_accuracy_failure == "repair":
            trial = mending.mended(self, trial, file)
        if trial is None:
            return None
        if trial.failure:
            self._reject(attempt, trial.failure)
            return None
        if not (trial.compiled.passes or trial.compiled.segments):
            report.actions.append(f"{attempt.name}: not used, it leaves the model as it is")
            return None
        if attempt.level == 1 and not trial.compiled.is_half:
            report.actions.append(f"{attempt.name}: {trial.compiled.why_nothing_is_half}")
        trial = costs.cheaper(self, trial, file, self.settings.timing_seconds or self._short_seconds)
        baseline, optimized = self._time(trial.model)
        if baseline.p50_ms < LEAST_GAIN * optimized.p50_ms:
            report.actions.append(
                f"{attempt.name}: not used, it is not faster ({optimized.p50_ms:.3g} ms against {baseline.p50_ms:.3g} ms)"
            )
            return None
        self._fill(trial, baseline, optimized)
        return trial.model

    def within_range(self, attempt: Attempt) -> Attempt:
        """Return an attempt that leaves those operators in float32 whose values half precision cannot hold on the test data."""
        if attempt.level != 1 or half_of(self.device, self.settings) != torch.float16:
            return attempt
        try:
            keep = ranges.beyond_half(self.model, self.plan(attempt), self.guard.data)
        except (TiaccError, RuntimeError) as error:
            self.report.warnings.append(f"the ranges of values were not looked at: {models.reason_of(error)}")
            return attempt
        count = sum(map(len, keep.values()))
        if count:
            self.report.actions.append(
                f"{attempt.name}: the values of {operators_text(count)} do not fit in float16; kept in float32 from the start"
            )
        return dataclasses.replace(attempt, keep_fp32=keep)

    def make(self, attempt: Attempt, file: models.TemporaryModel) -> Trial | None:
        """Make and check a model; None if there is none, with the reason in the report."""
        try:
            plan = self.plan(attempt)
            compiled = build(self.proposed(plan), plan, self._step)
        except (ImportGraphError, PassError, ExportError) as error:
            self.report.actions.append(f"{attempt.name}: given up, {error}")
            return None
        return self.judged(compiled, attempt, file)

    def proposed(self, plan: Plan) -> Proposal:
        """Return what an attempt would do; what is wrong with the backends goes into the report."""
        proposal = propose(self.model, plan, self._step)
        for name, fault in proposal.faults.items():
            told = f"the backend {name!r} leaves operators in Torch of which it does not say if it takes them: {fault}"
            if told not in self.report.warnings:
                self.report.warnings.append(told)
        return proposal

    def judged(self, compiled: Compiled, attempt: Attempt, file: models.TemporaryModel) -> Trial:
        """Write a model that was built, and compare what a load of the file computes with the input model's outputs."""
        self.bar.start("check")
        arithmetic = self._arithmetic(compiled)
        trial = Trial(attempt, compiled, self._load(compiled, file), None, self.settings.tolerance_for(arithmetic))
        try:
            trial.accuracy = self.guard.compare(trial.model, arithmetic)
        except AccuracyError as error:
            trial.failure = str(error)
            return trial
        if not trial.error <= trial.tolerance:
            trial.failure = trial.accuracy.against(trial.tolerance)
        return trial

    def _load(self, compiled: Compiled, file: models.TemporaryModel) -> torch.jit.ScriptModule:
        """Write a model, and return what a load of the file gives."""
        file.write(compiled.module)
        return file.load(self.device)

    def plan(self, attempt: Attempt) -> Plan:
        """Return what an attempt does to the model."""
        plan = plan_of(self.model, self.inputs, attempt.level, self.device, self.settings, attempt.backends)
        told = {**plan.build_options, "progress": lambda phase, seconds: self.bar.note(phase)}
        return dataclasses.replace(plan, keep_fp32=attempt.keep_fp32, distrusted=attempt.distrusted, build_options=told)

    def _step(self, phase: str) -> None:
        self.bar.start("build engines" if phase.startswith("build") else phase)

    def _arithmetic(self, compiled: Compiled) -> torch.dtype | str:
        """Return the least precise type that a model computes in."""
        if compiled.accepted_half is not None:
            return compiled.accepted_half
        if self.device.type == "cuda" and torch.backends.cudnn.allow_tf32 and not self.settings.target:
            return "tf32"
        types = {dtype for dtype in {*compiled.dtypes, *compiled.input_dtypes} if dtype.is_floating_point}
        return torch.float64 if types == {torch.float64} else torch.float32

    def _reject(self, attempt: Attempt, reason: str) -> None:
        if self.settings.on_accuracy_failure == "raise":
            _, unlike = self._compared_with_itself(self.model)
            raise AccuracyError("; ".join((f"{attempt.name}: {reason}", *unlike)))
        self.report.actions.append(f"{attempt.name}: not used, {reason}")

    @property
    def _short_seconds(self) -> float:
        return TIMING_SHARE * (time.perf_counter() - self._began)

    def _time(self, candidate: torch.jit.ScriptModule) -> tuple[Latency, Latency]:
        """Time a model that was compared against the input model, until it is told which of them is faster, or the time is up."""
        self.bar.start("measure")
        budget = self.settings.timing_seconds
        soonest = time.perf_counter() + (self._short_seconds if budget is None else budget)
        bars = (LEAST_GAIN, self.settings.require_speedup or LEAST_GAIN)

        def is_enough(found: list[Latency]) -> bool:
            return time.perf_counter() >= soonest and all(measure.is_clear(found[0], found[1], bar) for bar in bars)

        with torch.no_grad():
            baseline, optimized = measure.latencies(
                [self.guard.timed(module, self.timed_item) for module in (self.model, candidate)],
                self.device,
                budget or LONGEST_TIMING,
                called=self.guard.calls_before(self.timed_item),
                is_enough=is_enough,
            )
        self._baseline = baseline
        return baseline, optimized

    def _fill(self, trial: Trial, baseline: Latency, optimized: Latency) -> None:
        report = self.report
        assert trial.accuracy is not None
        self._describe(trial.compiled, trial.attempt.level)
        report.baseline_latency, report.optimized_latency = baseline, optimized
        report.optimization_result = OptimizationResult.of(baseline, optimized)
        if self.device.type == "cuda":
            model, candidate = self.guard.fresh(self.model), self.guard.fresh(trial.model)
            report.baseline_peak_bytes = measure.peak_bytes(lambda: models.call(model, self.timed_item), self.device)
            report.optimized_peak_bytes = measure.peak_bytes(lambda: models.call(candidate, self.timed_item), self.device)
            report.optimized_peak_bytes += buffers.held_bytes(self.device)
        if report.precision is not None:
            mending.tell(report.precision, trial)
        self._tell(trial.accuracy, trial.tolerance)

    def _tell(self, accuracy: Accuracy, tolerance: float) -> None:
        report = self.report
        report.outputs, report.accuracy_check, report.tolerance = accuracy.outputs, accuracy.check, tolerance

    def _describe(self, compiled: Compiled, level: int) -> None:
        """Put what was done to the model into the report."""
        report = self.report
        report.achieved_level = compiled.achieved_level(level)
        report.passes, report.segments, report.fallbacks = compiled.passes, compiled.segments, compiled.fallbacks
        report.graph = compiled.graph
        report.precision = compiled.precision
        report.warnings.extend(compiled.warnings)

    def _keep_input(self, file: models.TemporaryModel) -> torch.jit.ScriptModule:
        """Return the input model as it was."""
        report = self.report
        file.write(self.model)
        output_model = file.load(self.device)
        report.actions.append("the input model was kept as it is: speed-up 1.00")
        accuracy, unlike = self._compared_with_itself(output_model)
        report.warnings.extend(unlike)
        latency = self._baseline or self._time_input()
        report.baseline_latency = report.optimized_latency = latency
        report.optimization_result = OptimizationResult.of(latency, latency)
        self._tell(accuracy, self.settings.tolerance_for(torch.float32))
        return output_model

    def _compared_with_itself(self, model: torch.jit.ScriptModule) -> tuple[Accuracy, list[str]]:
        """Return how far the input model is from what it gave before, and what the user should know of that."""
        told = "the input model gives other results in another call with the same data, so that no model can be compared with it"
        if self.settings.accuracy_check is not None:
            told = "accuracy_check does not accept the input model itself, in another call with the same data"
        try:
            accuracy = self.guard.compare(model)
        except AccuracyError as error:
            return Accuracy(), [f"{told}: {error}"]
        tolerance = self.settings.tolerance_for(torch.float32)
        return accuracy, [] if accuracy.error <= tolerance else [f"{told}: {accuracy.against(tolerance)}"]

    def _time_input(self) -> Latency:
        called, seconds = self.guard.calls_before(self.timed_item)[:1], (self.settings.timing_seconds or LONGEST_TIMING) / 4
        with torch.no_grad():
            return measure.latencies((self.guard.timed(self.model, self.timed_item),), self.device, seconds, called=called)[0]

    def _require_speedup(self) -> None:
        wanted = self.settings.require_speedup
        if wanted is not None and (self.report.speedup or 0.0) < wanted:
            raise SpeedupError(
                f"the optimized model is {self.report.speedup or 0:.2f} times as fast as the input model, and require_speedup asks for "
                f"{wanted:g}. {'; '.join(self.report.actions)}"
            )


def _typical(inputs: ModelInputs) -> int:
    """Return the index of the item to time: the first with the shapes that the engines are fastest at."""
    wanted = [spec.profiles[0][1] for spec in inputs.specs]
    for index, item in enumerate(inputs.data):
        if [tuple(tensor.shape) for tensor in models.tensors_of(item)] == wanted:
            return index
    return 0

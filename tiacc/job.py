"""One call of `optimize`: attempts to make a model faster, each checked and timed, until one is right and pays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tiacc import environment, measure, models, samples
from tiacc.backends.base import Backend
from tiacc.compiler import Compiled, Plan, build, propose
from tiacc.errors import AccuracyError, BuildError, ExportError, ImportGraphError, InvalidArgumentError, PassError, SpeedupError
from tiacc.graph import torch_compat
from tiacc.graph.importer import Assumed
from tiacc.options import Options
from tiacc.passes import edits, pipelines
from tiacc.passes.base import Pass
from tiacc.progress import Progress
from tiacc.report import DataInfo, Latency, OptimizationResult, OptimizedReport, OutputError
from tiacc.runtime import ops
from tiacc.samples import ModelInputs
from tiacc.shapes import combined_profiles

LEAST_GAIN = 1.01
"""An optimized model that is not at least so many times faster than the input model is not worth having."""

PHASES = {"read": 1, "import": 2, "passes": 3, "build engines": 6, "export": 1, "check": 3, "measure": 10}
"""The phases of a call, and about how their times compare."""


@dataclass(frozen=True)
class Attempt:
    """A way to optimize a model.

    Attributes:
        name: How the report calls it.
        level: 0 or 1.
        backends: The backends it uses.
    """

    name: str
    level: int
    backends: tuple[Backend, ...]


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
            self.model.to(device)
            self.data = [_moved(item, device) for item in inputs.data]
        else:
            self.data = inputs.data
        self.timed_item = self.data[_typical(inputs)]

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
            self.references = [models.run_checked(self.model, item, index) for index, item in enumerate(self.data)]
        except InvalidArgumentError as error:
            if not any(spec.dims for spec in self.inputs.specs):
                raise
            left = propose(self.model, self._plan(Attempt("explain the failure", 0, ()))).imported.left
            culprit = f". The first operator that does not work at all sizes is {left[0].op} at {left[0].source}" if left else ""
            raise InvalidArgumentError(f"{error}{culprit}") from error

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
        try:
            plan = self._plan(attempt)
            compiled = build(propose(self.model, plan, self._step), plan, self._step)
        except (ImportGraphError, PassError, ExportError) as error:
            report.actions.append(f"{attempt.name}: given up, {error}")
            return None
        self.bar.start("check")
        file.write(compiled.module)
        candidate = file.load()
        if self.device.type == "cuda":
            candidate.to(self.device)
        tolerance = self.settings.tolerance_for(self._arithmetic(compiled))
        try:
            errors = self._compare(candidate)
        except AccuracyError as error:
            self._reject(attempt, str(error))
            return None
        if measure.largest(errors) > tolerance:
            self._reject(attempt, f"the relative error {measure.largest(errors):.2g} is above the tolerance {tolerance:.2g}")
            return None
        baseline, optimized = self._time(candidate)
        if baseline.p50_ms < LEAST_GAIN * optimized.p50_ms:
            report.actions.append(
                f"{attempt.name}: not used, it is not faster ({optimized.p50_ms:.3g} ms against {baseline.p50_ms:.3g} ms)"
            )
            return None
        self._fill(compiled, errors, tolerance, baseline, optimized)
        return candidate

    def _plan(self, attempt: Attempt) -> Plan:
        return plan_of(self.model, self.inputs, attempt.level, self.device, self.settings, attempt.backends)

    def _step(self, phase: str) -> None:
        self.bar.start("build engines" if phase.startswith("build") else phase)

    def _arithmetic(self, compiled: Compiled) -> torch.dtype | str:
        """Return the least precise type that a model computes in."""
        for dtype in (torch.bfloat16, torch.float16):
            if dtype in compiled.dtypes:
                return dtype
        if self.device.type == "cuda" and torch.backends.cudnn.allow_tf32 and not self.settings.target:
            return "tf32"
        return torch.float64 if set(compiled.dtypes) == {torch.float64} else torch.float32

    def _compare(self, candidate: torch.jit.ScriptModule) -> list[OutputError]:
        """Return the largest error of each output over all test data.

        Raises:
            AccuracyError: The outputs differ in more than their numbers, or the candidate fails where the input model does not.
        """
        errors: list[OutputError] = []
        for item, reference in zip(self.data, self.references):
            try:
                outputs = models.call(candidate, item)
            except Exception as error:  # whatever an engine or torch may raise: the model is not used
                raise AccuracyError(f"the optimized model fails where the input model does not: {models.reason_of(error)}") from error
            errors = measure.worst(errors, measure.compare(reference, outputs))
        return errors

    def _reject(self, attempt: Attempt, reason: str) -> None:
        if self.settings.on_accuracy_failure == "raise":
            raise AccuracyError(f"{attempt.name}: {reason}")
        self.report.actions.append(f"{attempt.name}: not used, {reason}")

    def _time(self, candidate: torch.jit.ScriptModule) -> tuple[Latency, Latency]:
        self.bar.start("measure")
        one, other = models.cloned(self.timed_item), models.cloned(self.timed_item)
        with torch.no_grad():
            baseline, optimized = measure.latencies(
                (lambda: self.model(*one), lambda: candidate(*other)), self.device, self.settings.timing_seconds
            )
        return baseline, optimized

    def _fill(
        self, compiled: Compiled, errors: list[OutputError], tolerance: float, baseline: Latency, optimized: Latency
    ) -> None:
        report = self.report
        self._describe(compiled)
        report.baseline_latency, report.optimized_latency = baseline, optimized
        report.optimization_result = OptimizationResult.of(baseline, optimized)
        report.outputs, report.tolerance = errors, tolerance

    def _describe(self, compiled: Compiled) -> None:
        """Put what was done to the model into the report."""
        report = self.report
        report.achieved_level = int(any(dtype in compiled.dtypes for dtype in (torch.float16, torch.bfloat16)))
        report.passes, report.segments, report.fallbacks = compiled.passes, compiled.segments, compiled.fallbacks
        report.graph = compiled.graph
        report.warnings.extend(compiled.warnings)

    def _keep_input(self, file: models.TemporaryModel) -> torch.jit.ScriptModule:
        """Return the input model as it was."""
        report = self.report
        file.write(self.model)
        output_model = file.load()
        report.actions.append("the input model was kept as it is: speed-up 1.00")
        errors = self._compare(output_model)
        item = models.cloned(self.timed_item)
        with torch.no_grad():
            (latency,) = measure.latencies((lambda: self.model(*item),), self.device, self.settings.timing_seconds / 4)
        report.baseline_latency = report.optimized_latency = latency
        report.optimization_result = OptimizationResult.of(latency, latency)
        report.outputs, report.tolerance = errors, self.settings.tolerance_for(torch.float32)
        return output_model

    def _require_speedup(self) -> None:
        wanted = self.settings.require_speedup
        if wanted is not None and (self.report.speedup or 0.0) < wanted:
            raise SpeedupError(
                f"the optimized model is {self.report.speedup or 0:.2f} times as fast as the input model, and require_speedup asks for "
                f"{wanted:g}. {'; '.join(self.report.actions)}"
            )


class AheadOfTimeJob(Job):
    """A job whose engines are for GPUs that are not here: they are built, and not run.

    What can be checked here is: with ``check_network``, each network is evaluated on the CPU by the reference interpreter, inside
    the optimized model, and the outputs are compared with the input model's.
    """

    def run(self) -> torch.jit.ScriptModule:
        """Build the model, check what can be checked, save it."""
        report, settings = self.report, self.settings
        plan = self._plan(Attempt("ahead of time", self.level, self.candidates))
        compiled = build(propose(self.model, plan, self._step), plan, self._step)
        self._describe(compiled)
        targets = ", ".join(settings.target)
        if not compiled.engines:
            raise BuildError(f"nothing of the model can be built for {targets}: {_reasons(compiled)}")
        with models.TemporaryModel(self.path) as file:
            file.write(compiled.module)
            output_model = file.load()
            report.warnings.append(f"the engines were built for {targets} and were not run: there is no such GPU here")
            if compiled.fallbacks:
                report.warnings.append("the operators left in Torch run where the model is moved to; load it with map_location='cuda'")
            if settings.check_network:
                self._check_networks(compiled)
            else:
                report.warnings.append("their numbers were not checked; check_network=True evaluates the networks on the CPU")
            file.keep()
        return output_model

    def _check_networks(self, compiled: Compiled) -> None:
        """Run the model with its networks interpreted, and compare.

        Raises:
            AccuracyError: An output differs by more than the tolerance.
        """
        from tiacc.backends.tensorrt.interpreted import InterpretedEngine

        self.bar.start("check")
        by_name = {backend.name: backend for backend in self.candidates}
        for engine in compiled.engines:
            assert engine.spec is not None
            interpreted = InterpretedEngine.of(by_name[engine.backend], engine.subgraph.graph, engine.spec)
            ops.attach(engine.blob, interpreted, "cpu")
        tolerance = self.settings.tolerance_for(self._arithmetic(compiled))
        self._run_references()
        errors = self._compare(compiled.module)
        self.report.outputs, self.report.tolerance = errors, tolerance
        if measure.largest(errors) > tolerance:
            raise AccuracyError(
                f"the networks, evaluated on the CPU, give a relative error of {measure.largest(errors):.2g}, above the tolerance "
                f"{tolerance:.2g}; nothing was saved. Raise the tolerance, or keep operators in float32 with keep_fp32"
            )
        self.report.warnings.append("their networks were evaluated on the CPU by the reference interpreter; the errors are of that")


def _reasons(compiled: Compiled) -> str:
    found = {f"{row.op}: {reason}" for row in compiled.fallbacks for reason in row.reasons.values()}
    return "; ".join(sorted(found)[:5]) or "it has no operators"


def plan_of(
    model: torch.jit.ScriptModule,
    inputs: ModelInputs,
    level: int,
    device: torch.device,
    settings: Options,
    backends: tuple[Backend, ...],
) -> Plan:
    """Return the plan for an attempt.

    Args:
        model: The model.
        inputs: What it is called with.
        level: 0 or 1.
        device: Where it will run. A GPU that is not here is planned for with shapes on the CPU.
        settings: The user's options.
        backends: In order of priority.
    """
    default_half = torch.float16 if device.type == "cuda" else torch.bfloat16
    half = (settings.half_dtype or default_half) if level == 1 else None
    is_here = device.type == "cpu" or (torch.cuda.is_available() and not settings.target)
    host = device if is_here else torch.device("cpu")
    return Plan(
        inputs=_abstract_inputs(model, inputs, host),
        sizes=_dimension_sizes(inputs),
        pipeline=_pipeline(level, device, half, settings),
        backends=backends,
        device=host,
        built_for=None if is_here else device.type,
        min_segment_nodes=settings.min_segment_nodes,
        keep_methods=settings.keep_methods,
        fuel=settings.fuel,
        instruments=settings.instruments,
        workspace_bytes=settings.workspace_bytes,
        build_options={
            "num_threads": settings.num_threads or torch.get_num_threads(),
            "tuning_seconds": settings.tuning_seconds,
            **({"cache_dir": settings.cache_dir} if settings.cache_dir else {}),
            **({"tf32": _torch_uses_tf32()} if device.type == "cuda" else {}),
            **({"target": settings.target} if settings.target else {}),
        },
    )


def _torch_uses_tf32() -> bool:
    """Return whether torch rounds the inputs of all its float32 products to TensorFloat-32: of convolutions and of matrices."""
    return bool(torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32)


def _pipeline(level: int, device: torch.device, half: torch.dtype | None, settings: Options) -> Pass:
    return edits.choose(settings.passes, lambda: pipelines.pipeline(level, device, half, settings.keep_fp32), settings.stop_after)


def _abstract_inputs(model: torch.jit.ScriptModule, inputs: ModelInputs, device: torch.device) -> tuple[Any, ...]:
    """Return what is known of each argument: the types of tensors, and the values that numbers and the like have in the test data.

    An argument that is not a tensor and not the same in all items is unknown.
    """
    specs = iter(enumerate(inputs.specs))

    def abstract(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            index, spec = next(specs)
            return spec.spec(f"input{index}", device)
        if isinstance(value, (list, tuple)) and models.tensors_of(value):
            return tuple(map(abstract, value))
        if isinstance(value, dict) and models.tensors_of(value):
            return {key: abstract(item) for key, item in value.items()}
        return ...

    known = list(map(abstract, inputs.data[0]))
    for place, argument in enumerate(torch_compat.forward_arguments(model)):
        values = [item[place] if place < len(item) else argument.default_value for item in inputs.data]
        if place >= len(known):
            known.append(...)
        if known[place] is ... and all(_is_assumable(value, argument.type, values[0]) for value in values):
            known[place] = Assumed(values[0])
    return tuple(known)


def _is_assumable(value: Any, declared: torch_compat.Type, first: Any) -> bool:
    """Return whether optimized code can ask if an argument of the declared type has this value, which is that of the first item."""
    if value is None:
        return first is None and declared.kind() == "OptionalType"
    kinds = {bool: "BoolType", int: "IntType", float: "FloatType", str: "StringType"}
    return type(value) is type(first) and kinds.get(type(value)) == declared.kind() and bool(value == first)


def _dimension_sizes(inputs: ModelInputs) -> tuple[dict[str, tuple[int, int, int]], ...]:
    """Return the sizes of each varying dimension, by name, in each profile of the inputs."""
    return tuple(
        {
            f"input{index}_{dim}": (profile.min[index][dim], profile.opt[index][dim], profile.max[index][dim])
            for index, spec in enumerate(inputs.specs)
            for dim in spec.dims
        }
        for profile in combined_profiles(inputs.specs)
    )


def _typical(inputs: ModelInputs) -> int:
    """Return the index of the item to time: the first with the shapes that the engines are fastest at."""
    wanted = [spec.profiles[0][1] for spec in inputs.specs]
    for index, item in enumerate(inputs.data):
        if [tuple(tensor.shape) for tensor in models.tensors_of(item)] == wanted:
            return index
    return 0


def _moved(item: Any, device: torch.device) -> Any:
    if isinstance(item, torch.Tensor):
        return item.to(device)
    if isinstance(item, (list, tuple)):
        return type(item)(_moved(member, device) for member in item)
    if isinstance(item, dict):
        return {key: _moved(member, device) for key, member in item.items()}
    return item



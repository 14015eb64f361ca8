"""`optimize`: a trained TorchScript model in, a faster one and a report out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from tiacc import environment, measure, models, samples
from tiacc.backends.base import Backend, backends, require
from tiacc.compiler import Compiled, Plan, compile_model
from tiacc.errors import AccuracyError, BackendUnavailableError, ImportGraphError, InvalidArgumentError, PassError, SpeedupError, TiaccError
from tiacc.graph import torch_compat
from tiacc.graph.importer import Assumed
from tiacc.options import Options
from tiacc.passes import pipelines
from tiacc.passes.manager import PassManager
from tiacc.progress import Progress, progress
from tiacc.report import DataInfo, Latency, OptimizationResult, OptimizedReport, OutputError
from tiacc.samples import ModelInputs
from tiacc.shapes import combined_profiles

AUTO_BACKENDS: dict[str, tuple[str, ...]] = {"cpu": ("openvino",), "cuda": ("tensorrt", "tensorrt_rtx", "cudnn")}
"""What ``backend="auto"`` means, by device: those of these that are available, in this order."""

LEAST_GAIN = 1.01
"""An optimized model that is not at least so many times faster than the input model is not worth having."""

_PHASES = {"read": 1, "import": 2, "passes": 3, "build engines": 6, "export": 1, "check": 3, "measure": 10}
_DEVICES: dict[Any, str] = {0: "cuda", 1: "cpu", "cuda": "cuda", "gpu": "cuda", "cpu": "cpu"}


def optimize(
    input_model: str | PathLike[str] | torch.jit.ScriptModule | torch.nn.Module,
    optimization_level: int = 0,
    device_type: int | str = 0,
    input_shapes: Any = None,
    test_data: Sequence[Any] | None = None,
    save_path: str | PathLike[str] | None = None,
    *,
    options: Options | None = None,
    **fields: Any,
) -> tuple[torch.jit.ScriptModule, OptimizedReport]:
    """Return a faster model that computes the same, and a report of what was done.

    The input model is not changed. The model that is returned is what a load of the saved file gives: its outputs were compared
    with the input model's, and its latency measured against the input model's, in that form. If it is not right, or not faster,
    less is done, and at last the input model's own arithmetic is returned; the report says so.

    Args:
        input_model: The path of a ``.pt`` or ``.pth`` TorchScript file, a scripted or traced module, or a module, which is traced.
        optimization_level: 0: lossless, the input model's own arithmetic. 1: half precision; float16 on a GPU, bfloat16 on a CPU
            that computes in it.
        device_type: 0 or ``"cuda"``: the GPU. 1 or ``"cpu"``: the CPU.
        input_shapes: The shapes and element types of the inputs; see `tiacc.shapes`. None: those of `test_data`.
        test_data: What to measure and check with: one tuple of arguments a call. None: made up to fit `input_shapes`.
        save_path: Where to save the optimized model, ``.pt`` or ``.pth``; it is loaded with ``import tiacc; torch.jit.load(path)``.
        options: Everything else.
        **fields: Fields of `Options` by name, which go before those of `options`.

    Returns:
        The optimized model and the report.

    Raises:
        InvalidArgumentError: An argument is wrong, or the input model itself fails on inputs of these shapes.
        ImportGraphError: The input model cannot be read.
        BackendUnavailableError: There is no GPU, or a backend asked for cannot be used here.
        AccuracyError: The outputs differ by more than the tolerance, and ``on_accuracy_failure="raise"``.
        SpeedupError: The model is not as much faster as `Options.require_speedup` asks for.
    """
    begin = time.perf_counter()
    settings = Options.from_fields(options, **fields)
    level = _check_level(optimization_level)
    device = _check_device(device_type)
    path = models.check_save_path(save_path)
    candidates, notes = _choose_backends(settings, device)
    with progress(_PHASES, settings.verbose) as bar, measure.threads(settings.num_threads):
        bar.start("read")
        inputs = samples.resolve_inputs(input_shapes, test_data, settings.seed)
        model, model_notes = models.load_model(input_model, inputs.data[0])
        job = _Job(model, level, device, inputs, path, settings, candidates, bar)
        report = job.report
        report.warnings.extend((*model_notes, *inputs.warnings, *notes))
        output_model = job.run()
    report.seconds = time.perf_counter() - begin
    return output_model, report


def _check_level(level: Any) -> int:
    if isinstance(level, bool) or level not in (0, 1):
        raise InvalidArgumentError(f"optimization_level is {level!r}; give 0 (lossless) or 1 (half precision)")
    return int(level)


def _check_device(device_type: Any) -> torch.device:
    name = _DEVICES.get(device_type) if isinstance(device_type, (int, str)) and not isinstance(device_type, bool) else None
    if name is None:
        raise InvalidArgumentError(f"device_type is {device_type!r}; give 0 or 'cuda' for a GPU, 1 or 'cpu' for the CPU")
    if name == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailableError("device_type asks for a GPU, and torch finds none here; give device_type=1 to optimize for the CPU")
    return torch.device(name)


def _choose_backends(settings: Options, device: torch.device) -> tuple[tuple[Backend, ...], list[str]]:
    """Return the backends to use, and what the user should know of those that cannot be."""
    if settings.backends is not None:
        chosen = tuple(require(name) for name in settings.backends)
        for backend in chosen:
            if device.type not in backend.device_types:
                raise InvalidArgumentError(
                    f"the backend {backend.name!r} runs on {' and '.join(backend.device_types)}, and device_type asks for {device.type}"
                )
        return chosen, []
    found: list[Backend] = []
    notes: list[str] = []
    for name in AUTO_BACKENDS[device.type]:
        if name not in backends.names():
            continue
        backend = backends.get(name)()
        support = backend.available()
        if support:
            found.append(backend)
        else:
            notes.append(f"the backend {name!r} was not used: {support.reason}")
    return tuple(found), [] if found else notes


@dataclass(frozen=True)
class _Attempt:
    """A way to optimize a model.

    Attributes:
        name: How the report calls it.
        level: 0 or 1.
        backends: The backends it uses.
    """

    name: str
    level: int
    backends: tuple[Backend, ...]


class _Job:
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
            hardware_environment=environment.hardware_environment(device),
            test_data_info=DataInfo(inputs.source, shapes, types),
            requested_level=level,
        )
        software = {item.software: item.version for item in self.report.software_environment}
        self.report.tiacc_version = software.get("tiacc", "")
        if device.type == "cuda":
            self.model.to(device)
            self.data = [_moved(item, device) for item in inputs.data]
        else:
            self.data = inputs.data
        self.timed_item = self.data[_typical(inputs)]

    def run(self) -> torch.jit.ScriptModule:
        """Try the attempts in order, and return the model of the first that is right and faster."""
        self.references = [models.run_checked(self.model, item, index) for index, item in enumerate(self.data)]
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

    def _attempts(self) -> list[_Attempt]:
        attempts = [_Attempt("lossless", 0, self.candidates)]
        if self.level == 1:
            if self._half_is_useful():
                attempts.insert(0, _Attempt("half precision", 1, self.candidates))
            else:
                self.report.actions.append(
                    "half precision was not used: this CPU does not compute in bfloat16, and emulating it would be slower and less "
                    "exact; the model computes in float32. Give half_dtype=torch.bfloat16 to have it all the same"
                )
        if self.candidates:
            attempts.append(_Attempt("passes alone", 0, ()))
        return attempts

    def _half_is_useful(self) -> bool:
        return self.device.type == "cuda" or self.settings.half_dtype is not None or environment.cpu_has_bf16()

    def _half_dtype(self) -> torch.dtype:
        return self.settings.half_dtype or (torch.float16 if self.device.type == "cuda" else torch.bfloat16)

    def _try(self, attempt: _Attempt, file: models.TemporaryModel) -> torch.jit.ScriptModule | None:
        """Make, check and time a model; None if it is not to be used, with the reason in the report."""
        report = self.report
        try:
            compiled = compile_model(self.model, self._plan(attempt), self._step)
        except (ImportGraphError, PassError) as error:
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

    def _plan(self, attempt: _Attempt) -> Plan:
        half = self._half_dtype() if attempt.level == 1 else None
        return Plan(
            inputs=_abstract_inputs(self.model, self.inputs, self.device),
            sizes=_dimension_sizes(self.inputs),
            pipeline=self._pipeline(attempt.level, half),
            backends=attempt.backends,
            device=self.device,
            min_segment_nodes=self.settings.min_segment_nodes,
            workspace_bytes=self.settings.workspace_bytes,
            build_options={"num_threads": self.settings.num_threads or torch.get_num_threads()},
        )

    def _pipeline(self, level: int, half: torch.dtype | None) -> PassManager:
        chosen = self.settings.passes
        if chosen is None:
            return pipelines.pipeline(level, self.device, half, self.settings.keep_fp32)
        if isinstance(chosen, str):
            return PassManager.parse(chosen)
        return PassManager(tuple(PassManager.parse(item) if isinstance(item, str) else item for item in chosen))

    def _step(self, phase: str) -> None:
        self.bar.start("build engines" if phase.startswith("build") else phase)

    def _arithmetic(self, compiled: Compiled) -> torch.dtype | str:
        """Return the least precise type that a model computes in."""
        for dtype in (torch.bfloat16, torch.float16):
            if dtype in compiled.dtypes:
                return dtype
        if self.device.type == "cuda" and torch.backends.cudnn.allow_tf32:
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
                raise AccuracyError(f"the optimized model fails where the input model does not: {error}") from error
            errors = measure.worst(errors, measure.compare(reference, outputs))
        return errors

    def _reject(self, attempt: _Attempt, reason: str) -> None:
        if self.settings.on_accuracy_failure == "raise":
            raise AccuracyError(f"{attempt.name}: {reason}")
        self.report.actions.append(f"{attempt.name}: not used, {reason}")

    def _time(self, candidate: torch.jit.ScriptModule) -> tuple[Latency, Latency]:
        self.bar.start("measure")
        item = self.timed_item
        with torch.no_grad():
            baseline, optimized = measure.latencies(
                (lambda: self.model(*item), lambda: candidate(*item)), self.device, self.settings.timing_seconds
            )
        return baseline, optimized

    def _fill(
        self, compiled: Compiled, errors: list[OutputError], tolerance: float, baseline: Latency, optimized: Latency
    ) -> None:
        report = self.report
        report.achieved_level = int(any(dtype in compiled.dtypes for dtype in (torch.float16, torch.bfloat16)))
        report.baseline_latency, report.optimized_latency = baseline, optimized
        report.optimization_result = OptimizationResult.of(baseline, optimized)
        report.outputs, report.tolerance = errors, tolerance
        report.passes, report.segments, report.fallbacks = compiled.passes, compiled.segments, compiled.fallbacks
        report.warnings.extend(compiled.warnings)

    def _keep_input(self, file: models.TemporaryModel) -> torch.jit.ScriptModule:
        """Return the input model as it was."""
        report = self.report
        file.write(self.model)
        output_model = file.load()
        report.actions.append("the input model was kept as it is: speed-up 1.00")
        errors = self._compare(output_model)
        with torch.no_grad():
            (latency,) = measure.latencies((lambda: self.model(*self.timed_item),), self.device, self.settings.timing_seconds / 4)
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


__all__ = ["TiaccError", "optimize"]

"""The report of `tiacc.optimize`: what was done to a model, and what came of it.

The first four fields of `OptimizedReport`, with the fields inside them, are those of the original ``tiacc_inference``, whose
values are text as it printed them: ``"10.00 ms"``, ``"228.31"``, ``"2.28"``. The fields after them say more, in numbers;
`SCHEMA_VERSION` counts up whenever one of these changes its meaning or goes away.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
import typing
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tiacc.environment import HardwareEnvironment as HardwareEnvironment
from tiacc.environment import Software as Software
from tiacc.errors import InvalidArgumentError
from tiacc.model_graph import ModelGraph
from tiacc.precision import Precision
from tiacc.report_html import as_frame, as_page
from tiacc.report_view import as_html, as_text

T = TypeVar("T")

SCHEMA_VERSION = 1

NOT_MEASURED = "not measured"
"""What the original's fields say where there is no figure, as when a model was built for a GPU that is not here."""


@dataclass(frozen=True)
class DataInfo:
    """What the model was measured with.

    Attributes:
        test_data_source: ``"user provided"`` or ``"tiacc provided"``.
        test_data_shape: ``"(1, 3, 224, 224)"``; inputs are separated by ``"; "``, calls of different shapes by ``" | "``.
        test_data_type: ``"float32"``; inputs are separated by ``"; "``.
    """

    test_data_source: str
    test_data_shape: str
    test_data_type: str


@dataclass(frozen=True)
class Latency:
    """How long one call takes, in milliseconds.

    Attributes:
        p50_ms: The median.
        p90_ms: What nine calls in ten stay below.
        p99_ms: What ninety-nine in a hundred stay below.
        mean_ms: The mean.
        runs: The number of calls that were timed.
        doubt: How far off the median may be, as a part of it: half of its 95 % confidence interval.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    runs: int
    doubt: float = 0.0

    @property
    def qps(self) -> float:
        """Calls a second, one after the other, at the median."""
        return 1000 / self.p50_ms


@dataclass(frozen=True)
class OptimizationResult:
    """The gain, as text; the times are medians.

    Attributes:
        baseline_time: Of a call of the input model, ``"10.00 ms"``.
        optimized_time: Of a call of the optimized model.
        baseline_qps: Calls a second of the input model, ``"100.00"``.
        optimized_qps: Calls a second of the optimized model.
        speedup: The ratio of the times, ``"2.28"``.
    """

    baseline_time: str = NOT_MEASURED
    optimized_time: str = NOT_MEASURED
    baseline_qps: str = NOT_MEASURED
    optimized_qps: str = NOT_MEASURED
    speedup: str = NOT_MEASURED

    @classmethod
    def of(cls, baseline: Latency | None, optimized: Latency | None) -> OptimizationResult:
        """Return the result of two measurements, either of which may be missing."""
        return cls(
            baseline_time=NOT_MEASURED if baseline is None else f"{baseline.p50_ms:.2f} ms",
            optimized_time=NOT_MEASURED if optimized is None else f"{optimized.p50_ms:.2f} ms",
            baseline_qps=NOT_MEASURED if baseline is None else f"{baseline.qps:.2f}",
            optimized_qps=NOT_MEASURED if optimized is None else f"{optimized.qps:.2f}",
            speedup=NOT_MEASURED if baseline is None or optimized is None else f"{baseline.p50_ms / optimized.p50_ms:.2f}",
        )


@dataclass(frozen=True)
class OutputError:
    """How far an output of the optimized model is from the input model's, at the worst of all test data.

    Attributes:
        name: The output: ``"output"``, or ``"output[1]"`` and so on into structures.
        max_abs: The largest absolute difference.
        max_rel: The largest difference relative to the element, elements near zero being held against the output's scale.
        cosine: The cosine of the angle between the two, 1 when they agree.
        rel_norm: ``‖candidate - reference‖ / ‖reference‖``, which `Options.tolerance` bounds.
        top1: For an output of scores, ``(N, classes)``: the part of the rows whose largest score is that of the same class. None for
            other outputs.
    """

    name: str
    max_abs: float
    max_rel: float
    cosine: float
    rel_norm: float
    top1: float | None = None


@dataclass(frozen=True)
class PassRow:
    """What a pass did to a region.

    Attributes:
        name: The pass.
        changes: The number of rewrites.
        ms: How long it took, in milliseconds.
        region: The index of the region.
        notes: What it left as it was, and why, a line each.
    """

    name: str
    changes: int
    ms: float
    region: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SegmentRow:
    """An engine.

    Attributes:
        index: Its number within the region.
        backend: What built it.
        nodes: The number of operators in it.
        dtype: What it computes in, ``"float32"``, or several types joined by ``"+"``.
        build_ms: How long building took, in milliseconds.
        size_bytes: Its size in the saved model.
        inputs: The types of its inputs, such as ``"float32[1, 3, 224, 224]"``.
        outputs: The types of its outputs.
        region: The index of the region.
        precisions: How many operations the engine itself says to compute in each type: ``{"bf16": 50}``; empty where it cannot say.
        border_bytes: The size of its inputs and outputs together, at the usual sizes of dimensions that vary.
    """

    index: int
    backend: str
    nodes: int
    dtype: str
    build_ms: float
    size_bytes: int
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    region: int = 0
    precisions: dict[str, int] = field(default_factory=dict)
    border_bytes: int = 0


@dataclass(frozen=True)
class FallbackRow:
    """An operator that was left in Torch.

    Attributes:
        op: Its overload: ``"aten.nonzero.default"``.
        node: Its name in the graph.
        reasons: Why each backend refused it.
        source: File and line of the TorchScript source, or an empty string.
        region: The index of the region.
    """

    op: str
    node: str
    reasons: dict[str, str]
    source: str = ""
    region: int = 0


@dataclass
class OptimizedReport:
    """What was done to a model, and what came of it. ``str(report)`` is a readable table; in a notebook it shows itself.

    Attributes:
        software_environment: The libraries, each with its version.
        hardware_environment: Where the model ran.
        test_data_info: What it was measured with.
        optimization_result: The gain.
        schema_version: Of the fields from here on.
        tiacc_version: What wrote the report.
        requested_level: The `optimization_level` that was asked for.
        achieved_level: The level of the model that was returned; 0 where no operator computes in half precision.
        baseline_latency: Of the input model; None where it was not measured.
        optimized_latency: Of the optimized model; None where it was not measured.
        baseline_peak_bytes: The most memory that a call of the input model takes on a GPU, beside weights and inputs; None elsewhere.
        optimized_peak_bytes: As `baseline_peak_bytes`, of the optimized model, with the memory that its engines hold between calls.
        outputs: The error of each output; empty where the model was not run.
        compared_shapes: The shapes of the calls whose outputs were compared, in the form of `DataInfo.test_data_shape`: those of the test
            data, and the min, opt and max shapes that these lack.
        accuracy_check: What `Options.accuracy_check` gave at worst; None without one.
        tolerance: The largest `OutputError.rel_norm`, or result of `accuracy_check`, that was accepted.
        precision: What became of half precision; None at level 0.
        passes: In the order in which they ran.
        segments: The engines.
        fallbacks: The operators left in Torch.
        actions: What was done when accuracy or speed fell short, in order.
        warnings: What the user should know.
        seconds: How long `optimize` took.
        graph: The graph that was built, to look at; None where the input model was kept as it is.
    """

    software_environment: list[Software]
    hardware_environment: HardwareEnvironment
    test_data_info: DataInfo
    optimization_result: OptimizationResult = OptimizationResult()
    schema_version: int = SCHEMA_VERSION
    tiacc_version: str = ""
    requested_level: int = 0
    achieved_level: int = 0
    baseline_latency: Latency | None = None
    optimized_latency: Latency | None = None
    baseline_peak_bytes: int | None = None
    optimized_peak_bytes: int | None = None
    outputs: list[OutputError] = field(default_factory=list)
    compared_shapes: str = ""
    accuracy_check: float | None = None
    tolerance: float | None = None
    precision: Precision | None = None
    passes: list[PassRow] = field(default_factory=list)
    segments: list[SegmentRow] = field(default_factory=list)
    fallbacks: list[FallbackRow] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: float | None = None
    graph: ModelGraph | None = None

    @property
    def speedup(self) -> float | None:
        """The median latency of the input model over that of the optimized one; None where they were not measured."""
        if self.baseline_latency is None or self.optimized_latency is None:
            return None
        return self.baseline_latency.p50_ms / self.optimized_latency.p50_ms

    def __getitem__(self, name: str) -> Any:
        """Return a field as `to_dict` has it: ``report["optimization_result"]["speedup"]``."""
        return self.to_dict()[name]

    def to_dict(self) -> dict[str, Any]:
        """Return the report in dicts, lists, strings and numbers, the original's fields first."""
        return typing.cast("dict[str, Any]", _plain(self))

    def to_json(self, indent: int | None = 2) -> str:
        """Return the report as JSON. Numbers that JSON does not have are strings: ``"nan"``, ``"inf"``, ``"-inf"``."""
        return json.dumps(_finite(self.to_dict()), indent=indent, allow_nan=False, ensure_ascii=False)

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON: either the whole file is there afterwards, or what was there before.

        Raises:
            InvalidArgumentError: The file cannot be written.
        """
        _write(Path(path), self.to_json() + "\n")

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one page to look at, which needs no network: the gain, the graph of the model, passes and errors.

        Raises:
            InvalidArgumentError: The file cannot be written.
        """
        _write(Path(path), as_page(self))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> OptimizedReport:
        """Return the report that `to_dict` or a parsed `to_json` describes.

        Raises:
            InvalidArgumentError: It is no report, or one of another schema version.
        """
        if not isinstance(data, dict):
            raise InvalidArgumentError(f"a report is a dict, not {type(data).__name__}")
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise InvalidArgumentError(f"the report has schema version {version!r}; this tiacc reads {SCHEMA_VERSION}")
        return typing.cast("OptimizedReport", _read(cls, data, "report"))

    def __str__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self) + as_frame(self)


def _write(target: Path, text: str) -> None:
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InvalidArgumentError(f"the report cannot be written to {target}: {error.strerror or error}") from error


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return dict(value) if isinstance(value, dict) else value


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _read(hint: Any, value: Any, where: str) -> Any:
    """Return `value`, made of dicts, lists and scalars, as an object of the type `hint`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _read(arguments[0], value, where)
    if dataclasses.is_dataclass(hint):
        return _read_fields(hint, _expect(dict, value, where), where)
    if origin in (list, tuple):
        items = (_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(_expect(list, value, where)))
        return origin(items)
    if origin is dict:
        return {key: _read(arguments[1], item, f"{where}[{key!r}]") for key, item in _expect(dict, value, where).items()}
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            raise InvalidArgumentError(f"{where} is {value!r}, not a number") from None
    return _expect(hint, value, where)


def _read_fields(cls: Any, data: dict[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(cls)
    unknown = sorted(data.keys() - hints.keys())
    if unknown:
        raise InvalidArgumentError(f"{where} has the unknown fields {', '.join(unknown)}")
    missing = [
        item.name
        for item in dataclasses.fields(cls)
        if item.name not in data and item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InvalidArgumentError(f"{where} lacks the fields {', '.join(missing)}")
    return cls(**{name: _read(hints[name], item, f"{where}.{name}") for name, item in data.items()})


def _expect(kind: type[T], value: Any, where: str) -> T:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InvalidArgumentError(f"{where} is {type(value).__name__}, not {kind.__name__}")
    return value

"""The options of `tiacc.optimize`, all in one place.

Each field of `Options` is also a keyword of `optimize`: ``optimize(..., require_speedup=1.5)`` is short for
``optimize(..., options=Options(require_speedup=1.5))``.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch

from tiacc.errors import InvalidArgumentError
from tiacc.passes.base import Instrument
from tiacc.passes.edits import PipelineEdits

DEFAULT_TOLERANCE: dict[str, float] = {
    "float64": 1e-10,
    "float32": 1e-5,
    "tf32": 5e-3,
    "float16": 5e-3,
    "bfloat16": 1e-2,
}
"""The largest relative error of an output, ``‖candidate - reference‖ / ‖reference‖``, by the optimized model's arithmetic.

The bounds of the half types are a few times what a deep convolutional network shows, which is about the rounding error of the
type (2⁻¹¹ and 2⁻⁸); TensorFloat-32 rounds like float16. Source: IEEE 754 unit roundoff.
"""

HALF_TYPES: dict[str, torch.dtype] = {
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}
"""How the element types of half precision may be written."""


@dataclass(frozen=True)
class Options:
    """How `tiacc.optimize` goes about its work. Every field has a default that suits most models.

    Where a field holds a tuple of names, one string with commas between them will do; dtypes and paths may be strings too.

    Attributes:
        backend: The names of the backends to use, the first having priority: ``"openvino"``, ``("tensorrt", "cudnn")``.
            ``"auto"``: those of the device that are available, in tiacc's order.
        half_dtype: The element type of half precision, used by level 1: `torch.float16` or `torch.bfloat16`, or their names.
            None: float16 on a GPU, bfloat16 on a CPU.
        keep_fp32: What level 1 leaves in float32: operators (``"aten.softmax.int"``, or ``"softmax"`` for all overloads),
            nodes, or module paths, with ``*`` for any text.
        passes: The pipeline instead of tiacc's own: passes or their names in a sequence, or as one text,
            ``"fold-batch-norm, cast-half{dtype=bf16}"``. Or tiacc's own with changes:
            ``tiacc.passes.default().before("cast-half", my_pass)``, as text ``"+my-pass before cast-half"``; see
            `tiacc.passes.edits`. None: the default pipeline of the level.
        stop_after: The name of a pass, behind whose last run no further pass runs. None: all run.
        fuel: The number of rewrites that passes may make, all together, to bisect which one breaks a model. None: any.
        instruments: What watches the passes run; see `tiacc.passes.instruments`.
        tolerance: The largest relative error of an output: one number, or a table like `DEFAULT_TOLERANCE`, which gives the
            values that it lacks; its keys may be dtypes, too. None: that table.
        on_accuracy_failure: What happens when an output is off by more: ``"repair"`` keeps the guilty operators in float32,
            then in Torch, and tells in the report; ``"raise"`` raises `AccuracyError`.
        accuracy_check: How far the outputs of the optimized model are from the input model's, as the user counts it: called as
            ``accuracy_check(reference, candidate)`` with what the two models return for one item of the test data, it returns a
            number that `tolerance` bounds in place of the relative error; 0 is no error, NaN is never accepted.
        accuracy_budget_seconds: How long may be looked for the operators that half precision must leave in float32.
        require_speedup: The least speed-up; a smaller one raises `SpeedupError`. None: any is accepted, and reported.
        min_segment_nodes: The fewest operators of a segment; smaller ones stay in Torch.
        keep_methods: Methods that ``forward`` calls and that shall be methods of the optimized model too. Others that it does not
            call are always kept.
        workspace_bytes: The most scratch memory that an engine may use.
        target: GPUs to build for instead of the one here, by compute capability: ``("sm80", "sm89")``. Engines are then built
            ahead of time, by ``backend="tensorrt_rtx"``, and not run. Empty: this machine.
        check_network: With `target`, whether to evaluate the engines' networks on the CPU and compare the outputs with the model's.
        neutral_names: Whether to name the layers of TensorRT engines by number. An engine holds the names of its layers, which tell
            operators and modules, in clear text.
        tuning_seconds: The time that the choice of kernels may take, all segments together. 0: they are chosen by rule.
        timing_seconds: The time that measuring the latency of both models takes, unless the medians are stable before. None: until it
            is clear whether the model is fast enough, 10 s at most.
        num_threads: The CPU threads that models are measured with and engines may use. None: as many as torch uses.
        seed: Where made-up test data come from.
        cache_dir: A directory where tuning results are kept between calls. None: they are not kept.
        verbose: Whether to show progress on stderr. None: when it is a terminal.
    """

    backend: str | tuple[str, ...] = "auto"
    half_dtype: torch.dtype | None = None
    keep_fp32: tuple[str, ...] = ()
    passes: str | PipelineEdits | Sequence[Any] | None = None
    stop_after: str | None = None
    fuel: int | None = None
    instruments: tuple[Instrument, ...] = ()
    tolerance: Mapping[str, float] | float | None = None
    on_accuracy_failure: Literal["repair", "raise"] = "repair"
    accuracy_check: Callable[[Any, Any], float] | None = None
    accuracy_budget_seconds: float = 60.0
    require_speedup: float | None = None
    min_segment_nodes: int = 1
    keep_methods: tuple[str, ...] = ()
    workspace_bytes: int = 1 << 30
    target: tuple[str, ...] = ()
    check_network: bool = False
    neutral_names: bool = False
    tuning_seconds: float = 60.0
    timing_seconds: float | None = None
    num_threads: int | None = None
    seed: int = 0
    cache_dir: Path | None = None
    verbose: bool | None = None

    def __post_init__(self) -> None:
        for name, normalise in _NORMALISE.items():
            object.__setattr__(self, name, normalise(name, getattr(self, name)))

    @classmethod
    def from_fields(cls, options: Options | None = None, **fields: Any) -> Options:
        """Return options with some fields replaced.

        Args:
            options: What to start from; None for the defaults.
            **fields: The fields that differ.

        Raises:
            InvalidArgumentError: A field is unknown (the message names the closest one) or its value is wrong, or `options` is
                something else.
        """
        if options is None:
            options = cls()
        if not isinstance(options, cls):
            raise InvalidArgumentError(f"options is of type {type(options).__name__}; give tiacc.Options or keyword arguments")
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"the options are {', '.join(known)}"
                raise InvalidArgumentError(f"there is no option {name!r}; {hint}")
        return dataclasses.replace(options, **fields)

    @property
    def backends(self) -> tuple[str, ...] | None:
        """The names of the backends in order of priority; None for ``"auto"``."""
        return None if self.backend == "auto" else (self.backend,) if isinstance(self.backend, str) else self.backend

    def tolerance_for(self, arithmetic: torch.dtype | str) -> float:
        """Return the largest relative error of an output.

        Args:
            arithmetic: The least precise type that the optimized model computes in: a dtype, or ``"tf32"``.

        Raises:
            InvalidArgumentError: No tolerance is known for it.
        """
        name = str(arithmetic).removeprefix("torch.")
        if isinstance(self.tolerance, (int, float)):
            return float(self.tolerance)
        table = {**DEFAULT_TOLERANCE, **(self.tolerance or {})}
        if name not in table:
            raise InvalidArgumentError(f"no tolerance is known for {name}; known are {', '.join(table)}")
        return table[name]


def _names(name: str, value: Any) -> tuple[str, ...]:
    """Names joined with commas, or a sequence of them, none empty → a tuple."""
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, (tuple, list)):
        raise _wrong(name, value, "a string or a sequence of strings")
    for item in items:
        if not isinstance(item, str) or not item.strip():
            raise _wrong(name, value, "a string or a sequence of strings, none empty")
    return tuple(item.strip() for item in items)


def _backend(name: str, value: Any) -> str | tuple[str, ...]:
    items = _names(name, value)
    if not items:
        raise _wrong(name, value, "the name of a backend, several, or 'auto'")
    if "auto" in items and len(items) > 1:
        raise _wrong(name, value, "'auto', or the names of backends, not both")
    if len(set(items)) != len(items):
        raise _wrong(name, value, "the names of different backends")
    return items[0] if len(items) == 1 else items


def _half_dtype(name: str, value: Any) -> torch.dtype | None:
    dtype = HALF_TYPES.get(value) if isinstance(value, str) else value
    if (value is not None and dtype is None) or dtype not in (None, torch.float16, torch.bfloat16):
        raise _wrong(name, value, "torch.float16, torch.bfloat16, 'fp16', 'bf16' or None")
    return dtype


def _passes(name: str, value: Any) -> Any:
    if value is None or isinstance(value, PipelineEdits) or (isinstance(value, str) and value.strip()):
        return value
    if _is_pass(value):
        return (value,)
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise _wrong(
            name,
            value,
            "a text such as 'fold-batch-norm, cast-half', a sequence of passes or their names, changes to tiacc.passes.default(), or None",
        )
    for item in value:
        if not (isinstance(item, str) and item.strip()) and not _is_pass(item):
            raise _wrong(name, value, f"a sequence of passes or their names, of which {item!r} is neither")
    return tuple(value)


def _stop_after(name: str, value: Any) -> str | None:
    if value is not None and not (isinstance(value, str) and value.strip()):
        raise _wrong(name, value, "the name of a pass, or None")
    return value


def _instruments(name: str, value: Any) -> tuple[Instrument, ...]:
    items = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    for item in items:
        if not all(callable(getattr(item, method, None)) for method in ("before", "after")):
            raise _wrong(name, value, f"instruments, which have the methods before and after, and {item!r} has not")
    return items


def _is_pass(value: Any) -> bool:
    return callable(value) or hasattr(value, "pass_class")


def _tolerance(name: str, value: Any) -> Mapping[str, float] | float | None:
    if value is None or not isinstance(value, Mapping):
        return None if value is None else _number(name, value)
    table = {}
    for key, number in value.items():
        word = str(HALF_TYPES.get(key, key)).removeprefix("torch.")
        if word not in DEFAULT_TOLERANCE:
            raise _wrong(name, value, f"a table with the keys {', '.join(DEFAULT_TOLERANCE)}, of which {key!r} is none")
        table[word] = _number(f"{name}[{key!r}]", number)
    return table


def _target(name: str, value: Any) -> tuple[str, ...]:
    items = _names(name, value or ())
    for item in items:
        if not re.fullmatch(r"sm[0-9]{2,3}[af]?", item):
            raise _wrong(name, value, f"compute capabilities such as 'sm89', of which {item!r} is none")
    return items


def _on_accuracy_failure(name: str, value: Any) -> Any:
    if value not in ("repair", "raise"):
        raise _wrong(name, value, "'repair' or 'raise'")
    return value


def _cache_dir(name: str, value: Any) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, (str, PathLike)) or not str(value):
        raise _wrong(name, value, "the path of a directory, or None")
    path = Path(value).expanduser()
    if path.exists() and not path.is_dir():
        raise _wrong(name, value, "the path of a directory, which this is not")
    return path


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, value, "True or False")
    return value


def _function(name: str, value: Any) -> Any:
    if not callable(value):
        raise _wrong(name, value, "a function of the outputs of the two models that returns a number, or None")
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise _wrong(name, value, "a number, at least 0")
    return float(value)


MOST_THREADS = 4096
"""More threads than any machine has; the system refuses far more, to whatever asks next in the process."""


def _positive(name: str, value: Any) -> float:
    number = _number(name, value)
    if number == 0:
        raise _wrong(name, value, "a number greater than 0")
    return number


def _count(low: int, high: int = 2**63 - 1) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _wrong(name, value, f"a whole number, at least {low}" + (f" and at most {high}" if high < 2**63 - 1 else ""))
        return value

    return check


def _optional(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check(name, value)


_NORMALISE: dict[str, Callable[[str, Any], Any]] = {
    "backend": _backend,
    "half_dtype": _half_dtype,
    "keep_fp32": _names,
    "passes": _passes,
    "stop_after": _stop_after,
    "fuel": _optional(_count(0)),
    "instruments": _instruments,
    "tolerance": _tolerance,
    "on_accuracy_failure": _on_accuracy_failure,
    "accuracy_check": _optional(_function),
    "accuracy_budget_seconds": _number,
    "require_speedup": _optional(_positive),
    "min_segment_nodes": _count(1),
    "keep_methods": _names,
    "workspace_bytes": _count(0),
    "target": _target,
    "check_network": _flag,
    "neutral_names": _flag,
    "tuning_seconds": _number,
    "timing_seconds": _optional(_positive),
    "num_threads": _optional(_count(1, MOST_THREADS)),
    "seed": _count(0),
    "cache_dir": _cache_dir,
    "verbose": _optional(_flag),
}
"""What checks each field and puts it into one form: name, value → value."""


def _wrong(name: str, value: Any, wanted: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"the option {name} is {value!r}; it must be {wanted}")

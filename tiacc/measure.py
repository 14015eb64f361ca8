"""How fast a model is, and how far from another: the one place that times, and the one that compares."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from tiacc import models
from tiacc.errors import AccuracyError, InvalidArgumentError
from tiacc.report import Latency, OutputError

WARM_UP_CALLS = 2
"""TorchScript compiles in its first two calls, and an engine on a GPU records a graph in its second; they are never timed."""

FEWEST_CALLS = 2
"""How often each function is timed at least: in turn, there and back, so that a machine that slows down or speeds up counts for both."""

MIN_CALLS = 5
MAX_CALLS = 2000
STABLE_SPREAD = 0.01
"""Timing stops before its budget when the medians of the two halves of every model's calls differ by less than this part."""

FEW_CALLS = 6
"""The range of fewer calls holds the median of all in less than 19 cases of 20."""

USUAL_SPREAD, USUAL_COUNT = 0.1, 2
"""What calls of a model on a machine that does other things vary by, as a part, and how many observations that is taken for: calls so few
may be alike by chance."""

STUDENT = {3: 3.18, 4: 2.78, 6: 2.45, 8: 2.31, 10: 2.23, 12: 2.18, 14: 2.14}
"""Within how many standard errors a mean is in 19 cases of 20, by degrees of freedom. Source: Student's t-distribution."""

FIRST_MARGIN, CLEAR_MARGIN = 0.75, 0.1
"""How far the ratio of two latencies must be from what it is held against to be clear at once, as a part: the first over the number of
calls of each, but no less than the second. Few calls may agree by chance."""

OFTEN_ASKED = 1.25
"""How many times its doubt a ratio must be off to be clear: who asks after every few calls is told by chance more often than once."""

LEAST_SQUARED, MOST_SQUARED = 1e-100, 1e100
"""Between these, numbers are neither so small nor so large that their squares, added up, lose digits in float64."""

SHORT_CALL_MS = 300.0
"""A call that takes less, behind one of another model, is made again, and the second is what counts.

A model in use follows itself. The first call follows another model, whose threads still spin, and whose weights and code fill the caches:
behind TorchScript, ResNet-50 takes 1.15 of its time in OpenVINO, and on a GPU the host is late with the launch.
"""


@dataclass(frozen=True)
class Accuracy:
    """How far the outputs of one model are from another's.

    Attributes:
        outputs: The error of each output.
        check: What the user's own check says; None without one.
    """

    outputs: list[OutputError] = field(default_factory=list)
    check: float | None = None

    @property
    def error(self) -> float:
        """What the tolerance bounds: what the user's own check says, else the largest relative error of an output."""
        return largest(self.outputs) if self.check is None else self.check

    def against(self, tolerance: float) -> str:
        """Return where the error is, above a tolerance or near it, as a sentence."""
        where = f"{'near' if self.error <= tolerance else 'above'} the tolerance {tolerance:.2g}"
        if self.check is not None:
            return f"what accuracy_check gives, {self.check:.2g}, is {where}"
        if math.isfinite(self.error):
            return f"the relative error {self.error:.2g} is {where}"
        if any(math.isinf(output.max_abs) for output in self.outputs):
            return "an output is not finite where the input model's is, or the other way round, which no tolerance allows"
        return "an output is not 0 where all of the input model's is, which no tolerance allows"

    def worst(self, other: Accuracy) -> Accuracy:
        """Return the larger of each error of two."""
        checks = [item.check for item in (self, other) if item.check is not None]
        # A NaN is no better than any number.
        check = next((value for value in checks if math.isnan(value)), max(checks)) if checks else None
        return Accuracy(worst(self.outputs, other.outputs), check)


@dataclass(frozen=True)
class Judge:
    """Says how far the outputs of one model are from another's.

    Attributes:
        check: The user's own measure of that, `Options.accuracy_check`; None for the relative error of each output.
    """

    check: Callable[[Any, Any], float] | None = None

    def __call__(self, reference: Any, candidate: Any) -> Accuracy:
        """Compare what the input model returned with what another did.

        Raises:
            AccuracyError: The two differ in structure, shape or dtype, or in a value that is no number.
            InvalidArgumentError: The user's own check raises, or returns something that is no number.
        """
        outputs = compare(reference, candidate)
        if self.check is None:
            return Accuracy(outputs)
        try:
            found = self.check(models.cloned(reference), models.cloned(candidate))  # which it may write into
            return Accuracy(outputs, float(found))
        except Exception as error:  # the user's function may raise anything
            raise InvalidArgumentError(
                f"the option accuracy_check, called with the outputs of the input model and of an optimized one, fails: "
                f"{type(error).__name__}: {error}; it must return a number, 0 for no error"
            ) from error


def compare(reference: Any, candidate: Any, name: str = "output") -> list[OutputError]:
    """Return how far each output of one model is from that of another.

    Args:
        reference: What the one returned: a tensor, a number, or lists, tuples and dicts of these.
        candidate: What the other returned.
        name: What the outputs are called.

    Raises:
        AccuracyError: The two differ in structure, shape or dtype, or in a value that is no number.
    """
    if isinstance(reference, torch.Tensor):
        return [_compare_tensors(reference, candidate, name)]
    if isinstance(reference, Mapping):
        if not isinstance(candidate, Mapping) or list(reference) != list(candidate):
            raise AccuracyError(f"{name} is a dict with keys {list(reference)}, and the optimized model returns {_kind(candidate)}")
        return [error for key in reference for error in compare(reference[key], candidate[key], f"{name}[{key!r}]")]
    if isinstance(reference, (list, tuple)):
        if not isinstance(candidate, (list, tuple)) or len(reference) != len(candidate):
            raise AccuracyError(f"{name} has {len(reference)} parts, and the optimized model returns {_kind(candidate)}")
        return [
            error
            for index, (one, other) in enumerate(zip(reference, candidate))
            for error in compare(one, other, f"{name}[{index}]")
        ]
    if reference != candidate and not (_is_nan(reference) and _is_nan(candidate)):
        if not isinstance(reference, (int, float)) or not isinstance(candidate, (int, float)):
            raise AccuracyError(f"{name} is {reference!r}, and the optimized model returns {candidate!r}")
        return [_compare_tensors(torch.tensor(reference), torch.tensor(candidate), name)]
    return []


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _compare_tensors(reference: torch.Tensor, candidate: Any, name: str) -> OutputError:
    if not isinstance(candidate, torch.Tensor):
        raise AccuracyError(f"{name} is a tensor, and the optimized model returns {_kind(candidate)}")
    if reference.shape != candidate.shape or reference.dtype != candidate.dtype:
        raise AccuracyError(
            f"{name} is {reference.dtype} of shape {tuple(reference.shape)}, and the optimized model returns {candidate.dtype} of shape "
            f"{tuple(candidate.shape)}"
        )
    one, other = _numbers_of(reference), _numbers_of(candidate)
    top1 = _top1(one, other) if reference.is_floating_point() else None
    one, other = one.flatten(), other.flatten()
    same = (one == other) | (one.isnan() & other.isnan())
    if bool(same.all()):
        return OutputError(name, 0.0, 0.0, 1.0, 0.0, top1)
    finite = one.isfinite() & other.isfinite()
    if not bool((finite | same).all()):
        return OutputError(name, math.inf, math.inf, 0.0, math.inf, top1)
    one, other = one[finite], other[finite]
    # The square of a number may be none of float64: of very large and very small ones, the norms are of what they are of the largest.
    unit = float(torch.maximum(one.abs(), other.abs()).max())
    unit = 1.0 if LEAST_SQUARED < unit < MOST_SQUARED else unit
    one, other = one / unit, other / unit
    difference = (one - other).abs()
    norm = float(torch.linalg.vector_norm(one))
    scale = norm / math.sqrt(one.numel())
    floor = torch.clamp(one.abs(), min=max(scale, torch.finfo(torch.float64).tiny))
    product = norm * float(torch.linalg.vector_norm(other))
    cosine = float(torch.real(torch.vdot(one, other))) / product if product else 0.0
    return OutputError(
        name,
        max_abs=float(difference.max()) * unit,
        max_rel=float((difference / floor).max()),
        cosine=min(1.0, cosine),
        rel_norm=float(torch.linalg.vector_norm(difference)) / norm if norm else math.inf,
        top1=top1,
    )


def _numbers_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return what a tensor of any layout and type holds, in float64, on the CPU."""
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return tensor.detach().cpu().to(torch.complex128 if tensor.is_complex() else torch.float64)


def _top1(reference: torch.Tensor, candidate: torch.Tensor) -> float | None:
    """Return the part of the rows in which the same column is largest; None for what are no scores of classes."""
    if reference.ndim != 2 or reference.shape[0] == 0 or reference.shape[1] < 2:
        return None
    return float((reference.argmax(1) == candidate.argmax(1)).double().mean())


def worst(first: Sequence[OutputError], second: Sequence[OutputError]) -> list[OutputError]:
    """Return the larger error of each output, of two comparisons; either may be empty."""
    if not first or not second:
        return list(first or second)
    return [
        OutputError(
            one.name,
            max(one.max_abs, other.max_abs),
            max(one.max_rel, other.max_rel),
            min(one.cosine, other.cosine),
            max(one.rel_norm, other.rel_norm),
            min((item.top1 for item in (one, other) if item.top1 is not None), default=None),
        )
        for one, other in zip(first, second)
    ]


def largest(errors: Sequence[OutputError]) -> float:
    """Return the largest relative error of all outputs; 0 when there are none."""
    return max((error.rel_norm for error in errors), default=0.0)


def latencies(
    calls: Sequence[Callable[[], Any]],
    device: torch.device,
    seconds: float,
    *,
    called: Sequence[int] = (),
    least: int | None = None,
    is_enough: Callable[[list[Latency]], bool] = lambda found: False,
) -> list[Latency]:
    """Time several functions in turn, so that whatever else the machine does weighs on all of them alike.

    They are called in turn, there and back, the last first: each warmed up before, which the budget does not count, and short ones twice
    where another came before; until `seconds` have passed, or the medians are stable, or what was found is enough.

    Args:
        calls: What to time.
        device: Where they run; on a GPU the time is between CUDA events.
        seconds: The budget for all of them together, in seconds.
        called: How often each has been called before, which need not be done again to warm it up; empty for never.
        least: How often each is timed at least, unless less is enough; None for `MIN_CALLS`.
        is_enough: Whether what was found so far is; asked after `FEWEST_CALLS` calls of each, then ever more seldom.

    Returns:
        The latency of each, in milliseconds.
    """
    timer = _time_on_gpu if device.type == "cuda" else _time_on_cpu
    times: list[list[float]] = [[] for _ in calls]
    last = None
    cold = [max(WARM_UP_CALLS - count, 0) for count in called or [0] * len(calls)]
    least = MIN_CALLS if least is None else least
    look = FEWEST_CALLS
    end = time.perf_counter() + seconds
    for count in range(1, MAX_CALLS + 1):
        for place in reversed(range(len(calls))) if count % 2 else range(len(calls)):
            if cold[place]:
                began = time.perf_counter()
                for _ in range(cold[place]):
                    timer(calls[place])
                end += time.perf_counter() - began
                cold[place], last = 0, place
            found = timer(calls[place])
            if place != last and found < SHORT_CALL_MS:
                found = timer(calls[place])
            times[place].append(found)
            last = place
        if count >= least and (time.perf_counter() > end or (count >= 40 and count % 20 == 0 and all(map(_is_stable, times)))):
            break
        if count == look:
            if is_enough(_summaries(times)):
                break
            look += max(1, count // 2)
    return _summaries(times)


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Return the most memory that a call takes on a GPU beyond what is allocated before it, of torch's, in bytes."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return torch.cuda.max_memory_allocated(device) - before


def _time_on_cpu(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def _time_on_gpu(call: Callable[[], Any]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def _is_stable(values: Sequence[float]) -> bool:
    half = len(values) // 2
    first, second = statistics.median(values[:half]), statistics.median(values[half:])
    return abs(first - second) <= STABLE_SPREAD * max(first, second)


def _summaries(times: Sequence[Sequence[float]]) -> list[Latency]:
    """Return the latency of each of several functions, which were called as often."""
    few = _doubt_of_few(times) if len(times[0]) < FEW_CALLS else None
    return [_summary(sorted(values), few) for values in times]


def _summary(ordered: Sequence[float], doubt: float | None) -> Latency:
    def percentile(part: float) -> float:
        return ordered[min(len(ordered) - 1, math.ceil(part * len(ordered)) - 1)]

    median = statistics.median(ordered)
    if doubt is None:
        # The ranks between which the median of all calls is, in 19 cases of 20 (the binomial distribution, as a normal one).
        rank = max(0, math.floor(len(ordered) / 2 - 0.98 * math.sqrt(len(ordered))))
        doubt = (ordered[-1 - rank] - ordered[rank]) / 2 / median if median else 0.0
    return Latency(median, percentile(0.9), percentile(0.99), statistics.fmean(ordered), len(ordered), doubt)


def _doubt_of_few(times: Sequence[Sequence[float]]) -> float:
    """Return how far off the median of so few calls may be, as a part of it, of each function.

    They were called in turn, so that what disturbs them is the same part of each: their variances are pooled.
    """
    count = len(times[0])
    told = [values for values in times if count > 1 and any(values)]
    squares = sum((count - 1) * statistics.variance(values) / statistics.fmean(values) ** 2 for values in told)
    freedom = USUAL_COUNT + len(times) * (count - 1)
    spread = math.sqrt((USUAL_COUNT * USUAL_SPREAD**2 + squares) / freedom)
    within = next((within for known, within in reversed(STUDENT.items()) if known <= freedom), math.inf)
    return within * spread / math.sqrt(count)


def is_told(slower: Latency, faster: Latency, ratio: float) -> bool:
    """Return whether measurements tell on which side of `ratio` the ratio of two latencies is, whatever the medians may be off by."""
    return _distance(slower, faster, ratio) > _doubt(slower, faster)


def is_clear(slower: Latency, faster: Latency, ratio: float) -> bool:
    """Return whether a measurement may end early: it tells on which side of `ratio` the latencies are, and they are far from it.

    Of models as fast as each other, whose calls vary by a tenth, one in a hundred passes for faster (`tests/test_measure.py`).
    """
    margin = max(CLEAR_MARGIN, FIRST_MARGIN / slower.runs)
    return _distance(slower, faster, ratio) > max(OFTEN_ASKED * _doubt(slower, faster), margin * ratio)


def _distance(slower: Latency, faster: Latency, ratio: float) -> float:
    return abs(slower.p50_ms / faster.p50_ms - ratio)


def _doubt(slower: Latency, faster: Latency) -> float:
    """Return how far off the ratio of two latencies may be."""
    return math.hypot(slower.doubt, faster.doubt) * slower.p50_ms / faster.p50_ms


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch use `count` CPU threads inside, or as many as before if None."""
    if count is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _kind(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)} parts"
    if isinstance(value, Mapping):
        return f"a dict with keys {list(value)}"
    return f"a {type(value).__name__}"

"""Which tactic each step runs with: measured on this GPU, kept in a file, and in the engine."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tiacc.backends.cudnn import eager, tiles
from tiacc.backends.cudnn.fused import FusedGraph
from tiacc.backends.cudnn.launch import TORCH, Bench, Call, build_ahead
from tiacc.backends.cudnn.naming import key_of, program_key, signature, title
from tiacc.backends.cudnn.program import ConvStep, KernelStep, Program, Step, TorchStep
from tiacc.backends.cudnn.triton_call import TritonCall, compile_ahead
from tiacc.errors import BuildError
from tiacc.graph import torch_compat

_log = logging.getLogger(__name__)

VERSION = 2
REPEATS = 10
"""How often a step is launched in the graph that times it."""

ROUNDS = 4

SLACKS = (0.4, 0.8, 1.6)
"""How many microseconds more a kernel may take that is set up while the one before it ends."""


class TacticCache:
    """Tactics by the steps they are best for, in a file that can be read, merged and deleted.

    Args:
        directory: Where the file is; None for a cache that is not kept.
        environment: What the timings hold for: the GPU and the libraries.
    """

    def __init__(self, directory: Path | None, environment: str) -> None:
        self._path = directory / f"cudnn-tactics-{VERSION}.json" if directory is not None else None
        self._environment = environment
        self._new: dict[str, dict[str, Any]] = {}
        self._known: dict[str, dict[str, Any]] = self._stored().get(environment, {})

    def find(self, step: Step) -> str | None:
        """Return the tactic of a step that was timed before."""
        entry = self._known.get(key_of(step))
        tactic = entry.get("tactic") if isinstance(entry, dict) else None
        return tactic if isinstance(tactic, str) else None

    def add(self, step: Step, timed: list[tuple[float, str]]) -> str:
        """Note how long each tactic of a step takes, in microseconds, and return the best."""
        best, tactic = min(timed)
        self._known[key_of(step)] = self._new[key_of(step)] = {
            "step": signature(step),
            "tactic": tactic,
            "microseconds": round(best, 3),
            "others": {name: round(time, 3) for time, name in sorted(timed) if name != tactic},
        }
        return tactic

    def drop(self, step: Step, tactic: str) -> str | None:
        """Forget a tactic that is wrong in its place, and return the best of the others; None if there is none."""
        entry = self._known.pop(key_of(step), {})
        timed = dict(entry.get("others", {}))
        if entry.get("tactic") != tactic and "tactic" in entry:
            timed[entry["tactic"]] = entry["microseconds"]
        timed.pop(tactic, None)
        if timed:
            return self.add(step, [(time, name) for name, time in timed.items()])
        return TORCH if tactic != TORCH else None

    def own(self, step: Step, slack: float) -> str | None:
        """Return the fastest tactic of a step that is a kernel of ours, if it takes at most so many microseconds more than the best."""
        entry = self._known.get(key_of(step), {})
        if str(entry.get("tactic", "")).startswith("triton"):
            return str(entry["tactic"])
        others = {name: time for name, time in entry.get("others", {}).items() if name.startswith("triton")}
        name = min(others, key=others.__getitem__, default=None)
        return name if name is not None and others[name] <= entry["microseconds"] + slack else None

    def times(self, step: Step) -> dict[str, float]:
        """Return how long each tactic of a step takes that was timed, in microseconds."""
        entry = self._known.get(key_of(step), {})
        return {**entry.get("others", {}), entry["tactic"]: entry["microseconds"]} if "tactic" in entry else {}

    def program(self, program: Program) -> dict[str, str] | None:
        """Return the tactics that were chosen for the steps of a program before, by `key_of`."""
        tactics = self._known.get(program_key(program), {}).get("tactics")
        return tactics if isinstance(tactics, dict) and all(key_of(step) in tactics for step in program.steps) else None

    def add_program(self, program: Program, tactics: dict[str, str]) -> None:
        """Note the tactics that were chosen for the steps of a program, as a whole."""
        chosen = {key: tactics[key] for key in map(key_of, program.steps)}
        entry = {"step": f"a program of {len(program.steps)} steps", "tactics": chosen}
        self._known[program_key(program)] = self._new[program_key(program)] = entry

    def save(self) -> None:
        """Write what was added into the file, beside what others wrote meanwhile."""
        if self._path is None or not self._new:
            return
        stored = self._stored()
        stored.setdefault(self._environment, {}).update(self._new)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self._path.parent, suffix=".json", delete=False, encoding="utf-8") as file:
            json.dump(stored, file, indent=1, sort_keys=True)
        Path(file.name).replace(self._path)
        self._new = {}

    def _stored(self) -> dict[str, dict[str, Any]]:
        """Return the contents of the file; a file that is damaged is as good as none."""
        if self._path is None:
            return {}
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return stored if isinstance(stored, dict) else {}


def choose(program: Program, bench: Bench, cache: TacticCache, seconds: float) -> dict[str, str]:
    """Return the best tactic of each step of a program, by `key_of`.

    The steps are run in order, each with its best tactic, so that each is timed on the numbers that it will get.

    Args:
        program: The steps; its inputs are filled with data.
        bench: Where they are bound.
        cache: What is known already; what is found is added.
        seconds: The time it may take; steps that come later get their first tactic that works.
    """
    end = time.perf_counter() + seconds
    chosen: dict[str, str] = {}
    _compile_ahead(program, bench, cache, seconds)
    _log.debug("compiled, %.1f s left", end - time.perf_counter())
    for step in program.steps:
        key = key_of(step)
        if key not in chosen:
            known = cache.find(step)
            chosen[key] = known if known is not None and _works(bench, step, known) else _measured(step, bench, cache, end)
        bench.bind(step, chosen[key])()
    torch.cuda.synchronize(bench.device)
    _log.debug("tuned, %.1f s left", end - time.perf_counter())
    cache.save()
    return chosen


def overlapping(program: Program, chosen: dict[str, str], cache: TacticCache) -> list[dict[str, str]]:
    """Return other choices for a program that may be faster as a whole: kernels of ours, which overlap, where they cost little more."""
    found: list[dict[str, str]] = []
    for slack in SLACKS:
        choice = {key_of(step): cache.own(step, slack) or chosen[key_of(step)] for step in program.steps}
        if choice != chosen and choice not in found:
            found.append(choice)
    return found


def alike(program: Program, runs: Sequence[range], chosen: dict[str, str], cache: TacticCache) -> dict[str, str] | None:
    """Return a choice by which the kernels of steps that do not depend on each other can be one launch; None if it is the one given.

    Args:
        program: The steps.
        runs: Which of them do not depend on each other; see `together.runs`.
        chosen: The tactics that were chosen, by `key_of`.
        cache: What each tactic takes.
    """
    found = dict(chosen)
    for run in runs:
        steps = [program.steps[place] for place in run]
        tables = [_fastest_by_kind(cache.times(step)) for step in steps]
        kinds = set.intersection(*map(set, tables))
        if kinds:
            best = min(kinds, key=lambda kind: sum(table[kind][0] for table in tables))
            found.update({key_of(step): table[best][1] for step, table in zip(steps, tables)})
    return found if found != chosen else None


def _fastest_by_kind(times: dict[str, float]) -> dict[tuple[int, int], tuple[float, str]]:
    """Return the fastest product of each number of warps and stages, whose sum is not split, with its time."""
    found: dict[tuple[int, int], tuple[float, str]] = {}
    for name, microseconds in times.items():
        kind, _, numbers = name.partition(":")
        if kind == "triton" and numbers.count(",") == tiles.Tile.NUMBERS - 1:
            tile = tiles.Tile.parse([int(number) for number in numbers.split(",")])
            if tile.split == 1:
                place = (tile.warps, tile.stages)
                found[place] = min(found.get(place, (microseconds, name)), (microseconds, name))
    return found


def _works(bench: Bench, step: Step, tactic: str) -> bool:
    try:
        bench.bind(step, tactic)()
    except Exception:  # noqa: BLE001 - whatever cuDNN, Triton or torch raise: the tactic is timed anew
        return False
    return True


def _compile_ahead(program: Program, bench: Bench, cache: TacticCache, seconds: float) -> None:
    """Compile the kernels and plans that will be timed, several at a time: most of the work is done outside of Python."""
    if not seconds:
        return
    jobs: dict[tuple[Any, ...], TritonCall] = {}
    graphs: list[tuple[FusedGraph, list[int]]] = []
    for step in {key_of(step): step for step in program.steps}.values():
        known = cache.find(step)
        tactics = bench.tactics(step) if known is None else [known]
        graph = bench.graph(step) if isinstance(step, ConvStep) else None
        if graph is not None:
            graphs.append((graph, [int(tactic[6:]) for tactic in tactics if tactic.startswith("cudnn:")]))
        for tactic in tactics:
            if tactic.startswith("triton"):
                call = bench.bind(step, tactic)
                if isinstance(call, TritonCall):
                    jobs.setdefault(call.variant(), call)
    begin = time.perf_counter()
    compile_ahead(list(jobs.values()))
    middle = time.perf_counter()
    build_ahead(graphs)
    _log.debug("%d kernels in %.1f s, %d graphs in %.1f s", len(jobs), middle - begin, len(graphs), time.perf_counter() - middle)


def _measured(step: Step, bench: Bench, cache: TacticCache, end: float) -> str:
    """Return the fastest tactic of a step, of those that compute what torch does.

    Raises:
        BuildError: None works.
    """
    timed: list[tuple[float, str]] = []
    failure: Exception | None = None
    candidates = bench.tactics(step)
    wanted = None if isinstance(step, TorchStep) else _computed_by_torch(step, bench)
    for tactic in dict.fromkeys((*candidates, TORCH)):
        if timed and tactic not in candidates:
            break  # torch is the last resort
        try:
            call = bench.bind(step, tactic)
            if wanted is not None and not isinstance(step, TorchStep):
                _require_agreement(step, bench, call, wanted)
            if len(candidates) == 1 or time.perf_counter() > end:
                call()
                if not timed:
                    return tactic
                break
            timed.append((microseconds(call, bench.device), tactic))
        except Exception as error:  # noqa: BLE001 - whatever cuDNN, Triton or torch raise: this tactic is out, others are left
            _log.debug("%s of %s: %s", tactic, title(step), error)
            failure = error
    if not timed:
        raise BuildError(f"no way to run {signature(step)[:200]} works here; the last failed with: {failure}")
    return cache.add(step, timed)


TOLERANCE = {torch.float16: 5e-3, torch.bfloat16: 4e-2, torch.float32: 5e-3}
"""The largest relative error of a step, by the type of its result; float32 may have been rounded to TensorFloat-32 on the way."""


def _computed_by_torch(step: KernelStep, bench: Bench) -> torch.Tensor | None:
    """Return what a step computes by torch alone; None where torch cannot say, or where it is no number."""
    try:
        eager.compute(step, bench.read)
    except RuntimeError:
        return None
    found = bench.read(step.out).to(torch.float32, copy=True)
    return found if step.out.dtype in TOLERANCE and bool(found.isfinite().all()) else None


def _require_agreement(step: KernelStep, bench: Bench, call: Call, wanted: torch.Tensor) -> None:
    """Run a step by a tactic, over numbers that are none.

    Raises:
        BuildError: What it writes is not what torch computes.
    """
    out = bench.read(step.out)
    out.fill_(float("nan"))
    call()
    error = error_of(out, wanted)
    if not error <= TOLERANCE[step.out.dtype]:
        raise BuildError(f"its result is off by {error:.1e}")


def error_of(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the relative error of the whole of a tensor."""
    return float((found.float() - wanted).norm() / wanted.norm().clamp_min(1e-30))


def microseconds(call: Callable[[], None], device: torch.device) -> float:
    """Return the time of a call on the GPU, in microseconds: the least of some replays of a graph with several launches."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # for what the call reads: weights that are being packed, counters being cleared
    with torch.cuda.stream(stream):
        call()
        stream.synchronize()

        def work() -> None:
            for _ in range(REPEATS):
                call()

        graph = torch_compat.recorded(work, stream)
        graph.replay()
        times = []
        for _ in range(ROUNDS):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(float(begin.elapsed_time(end)))
    return min(times) * 1e3 / REPEATS

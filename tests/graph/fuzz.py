"""Random programs through import, passes, partition and export: outputs, arguments, state and exceptions are the original's.

``python -m tests.graph.fuzz 0 5000`` runs the programs of these seeds; a failure prints its seed and source.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import io
import random
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, ClassVar

import torch
from torch import fx

from tests.graph.random_programs import STATE, RandomProgram, random_program
from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.reference import ReferenceBackend
from tiacc.compiler import Plan, build, propose
from tiacc.graph.importer import Assumed
from tiacc.graph.specs import Dim, TensorSpec
from tiacc.models import reason_of
from tiacc.passes.pipelines import pipeline

CPU = torch.device("cpu")

PROGRAMS_A_PROCESS = 200
"""How many programs one process runs: torch never forgets the types of scripted modules."""

TORCH_FAULTS = ("Expected Tensor but got None", "There were no tensor arguments to this function")
"""What is said when torch's interpreter has lost a value: one that a loop in a branch reads, and then ``value + result_of_loop``. The rest
of such a program says nothing."""


class PickyBackend(ReferenceBackend):
    """The reference backend, refusing some operators by the seed, so that graphs fall into many segments."""

    name: ClassVar[str] = "reference"

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def supports(self, node: fx.Node) -> Support:
        if hashlib.sha256(f"{self.seed} {node.target}".encode()).digest()[0] < 48:
            return Support(False, "the test refuses it")
        return super().supports(node) if node.op == "call_function" else SUPPORTED


class ProgramError(AssertionError):
    """A program does something else than it should; the message has its seed and source."""


def check(program: RandomProgram) -> dict[str, int]:
    """Optimize a program and compare it with the original, call by call.

    Returns:
        How many calls raised, and how many operators were imported.

    Raises:
        ProgramError: They differ, or tiacc fails.
    """
    try:
        return _check(program)
    except Exception as error:
        raise ProgramError(f"seed {program.seed}: {_summary(error)}\n{program.source}\n{traceback.format_exc()[-3000:]}") from error


def attempt(seed: int) -> tuple[dict[str, int], str]:
    """Return what `check` counts for the program of a seed, and what it says if it fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return check(random_program(seed)), ""
        except ProgramError as error:
            return {}, str(error)


def _summary(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _check(program: RandomProgram) -> dict[str, int]:
    chance = random.Random(program.seed)
    original = program.make()
    plan = Plan(
        inputs=_abstract_inputs(program, chance),
        sizes=({"batch": (1, 3, 6)},),
        pipeline=pipeline(0, CPU),
        backends=(ReferenceBackend() if chance.random() < 0.5 else PickyBackend(program.seed),),
        device=CPU,
        examples=program.calls[:2] if chance.random() < 0.5 else (),
    )
    proposal = propose(original, plan)
    guarded = sum(bool(region.region.guard) for region in proposal.regions)
    operators = sum(region.region.calls for region in proposal.regions)
    buffer = io.BytesIO()
    torch.jit.save(build(proposal, plan).module, buffer)
    buffer.seek(0)
    optimized = torch.jit.load(buffer)
    raised = 0
    results: list[tuple[Any, Any]] = []
    for args in program.calls:
        one, other = _outcome(original, args), _outcome(optimized, args)
        raised += isinstance(one[0], str)
        if isinstance(one[0], str) and any(text in one[0] for text in TORCH_FAULTS):
            break
        _same("the outcome", one[0], other[0])
        _same("the arguments", one[1], other[1])
        for name in STATE:
            if hasattr(optimized, name):
                _same(f"self.{name}", getattr(original, name), getattr(optimized, name))
        results.append((one[0], other[0]))
    for one, other in results:  # a later call may write into what an earlier one returned, or not
        _same("an earlier result", one, other)
    return {"calls": len(program.calls), "raised": raised, "operators": operators, "regions": len(proposal.regions), "guarded": guarded}


def _abstract_inputs(program: RandomProgram, chance: random.Random) -> tuple[Any, ...]:
    """Return what is declared of the arguments: a batch that varies; of numbers, their first values or nothing."""
    first = program.calls[0]

    def spec(tensors: list[torch.Tensor]) -> TensorSpec:
        sizes = zip(*(tensor.shape for tensor in tensors))
        return TensorSpec(tuple(same[0] if len(set(same)) == 1 else Dim("batch", 1, 3, 6) for same in sizes), tensors[0].dtype)

    numbers = [Assumed(value) if chance.random() < 0.4 else ... for value in first[2:5]]
    items = tuple(spec([call[5][index] for call in program.calls]) for index in range(len(first[5])))
    extra: Any = spec([call[6] for call in program.calls]) if all(call[6] is not None for call in program.calls) else ...
    if first[6] is None:
        extra = Assumed(None) if chance.random() < 0.5 else ...
    return (*(spec([call[place] for call in program.calls]) for place in (0, 1)), *numbers, items, extra)


def _outcome(module: Any, args: tuple[Any, ...]) -> tuple[Any, Any]:
    """Return what a call gives, or what it says when it raises, and what it leaves of its arguments."""
    args = copy.deepcopy(args)
    try:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            return module(*args), args
    except (torch.jit.Error, RuntimeError, IndexError) as error:
        return reason_of(error), args


def _same(what: str, one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        if not isinstance(other, torch.Tensor) or one.dtype != other.dtype or one.shape != other.shape:
            raise AssertionError(f"{what} is {_brief(one)} and became {_brief(other)}")
        if not torch.equal(torch.nan_to_num(one), torch.nan_to_num(other)) or not torch.equal(one.isnan(), other.isnan()):
            raise AssertionError(f"{what} has other numbers: {one.flatten()[:6].tolist()} became {other.flatten()[:6].tolist()}")
    elif isinstance(one, dict):
        if not isinstance(other, dict):
            raise AssertionError(f"{what} is {_brief(one)} and became {_brief(other)}")
        _same(what, list(one), list(other))
        for key in one:
            _same(f"{what}[{key!r}]", one[key], other[key])
    elif isinstance(one, (list, tuple)):
        if type(one) is not type(other) or len(one) != len(other):
            raise AssertionError(f"{what} is {_brief(one)} and became {_brief(other)}")
        for index, (left, right) in enumerate(zip(one, other)):
            _same(f"{what}[{index}]", left, right)
    elif one != other or type(one) is not type(other):
        raise AssertionError(f"{what} is {_brief(one)} and became {_brief(other)}")


def _brief(item: Any) -> str:
    if isinstance(item, torch.Tensor):
        return f"{item.dtype}{list(item.shape)}"
    if isinstance(item, (list, tuple)):
        return f"{type(item).__name__} of {len(item)}"
    return repr(item)


def _attempts(first: int, end: int) -> Iterator[tuple[dict[str, int], str]]:
    """Yield what `attempt` returns for the programs of a range of seeds, which run in other processes, one at a time."""
    for begin in range(first, end, PROGRAMS_A_PROCESS):
        with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            seed = begin
            try:
                while seed < min(begin + PROGRAMS_A_PROCESS, end):
                    yield pool.submit(attempt, seed).result()
                    seed += 1
            except BrokenProcessPool as error:
                raise ProgramError(f"seed {seed}: its process crashed") from error


def main() -> int:
    """Run a range of seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("end", type=int)
    parser.add_argument("--most", type=int, default=10, help="stop after so many failures")
    parser.add_argument("--brief", action="store_true", help="print one line a failure")
    options = parser.parse_args()
    totals: dict[str, int] = {}
    programs = failures = 0
    begin = time.perf_counter()
    for counts, failure in _attempts(options.first, options.end):
        programs += 1
        for name, count in counts.items():
            totals[name] = totals.get(name, 0) + count
        if failure:
            failures += 1
            sys.stdout.write(f"{failure.splitlines()[0][:250] if options.brief else failure}\n")
            sys.stdout.flush()
            if failures >= options.most:
                break
    seconds = time.perf_counter() - begin
    sys.stdout.write(f"{failures} failures in {programs} programs, {seconds:.0f} s; {totals}\n")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())

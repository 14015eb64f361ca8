"""Half precision that went wrong, put right: which operators to keep in float32 so that the outputs are within the tolerance.

The operators are taken in the order of what float32 in them gains for what it costs (`tiacc.sensitivity`). How many of them it takes is
found by bisection, each step being a run of the graph itself in half precision; then those that are not needed after all are let go. When
the order runs out before the error is small enough, the graph as it is by then is analysed again: a value that one operator no longer
rounds may now be rounded where the next reads it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tiacc import batches
from tiacc.compiler import Plan
from tiacc.errors import AccuracyError, TiaccError
from tiacc.measure import Judge
from tiacc.oracle import Keep, Oracle
from tiacc.sensitivity import Sensitivity, analyse

MARGIN = 0.8
"""The part of the tolerance that a repaired model may use on the test data, so that other data are within it too."""

HALF_SHARE = 0.9
"""The part of the arithmetic that should stay in half precision; beyond it, a repair is content with the tolerance itself."""

ROUNDS = 3
"""How often the graph is analysed at most."""

RELEASES = 24
"""How many times at most it is tried to let go of operators that were kept."""


@dataclass
class Repair:
    """What a repair found.

    Attributes:
        keep: What is to stay in float32.
        before: The error of the whole in half precision, as torch computes it.
        after: The error with `keep` in float32.
        table: The sensitivity of each operator before the repair, the largest contributions first, with the index of its region.
        half_share: The part of the arithmetic of the operators in `table` that stays in half precision.
        is_found: Whether `after` is as small as it was asked to be.
    """

    keep: dict[int, dict[str, str]] = field(default_factory=dict)
    before: float = math.inf
    after: float = math.inf
    table: list[tuple[int, Sensitivity]] = field(default_factory=list)
    half_share: float = 1.0
    is_found: bool = False


class Repairer:
    """A search for the operators that must stay in float32.

    It can go on: `improve` with a smaller target starts from what was found before.
    """

    def __init__(
        self, model: torch.jit.ScriptModule, plan: Plan, data: Sequence[Any], references: Sequence[Any], judge: Judge
    ) -> None:
        """Import the model for its own judge.

        Args:
            model: The model.
            plan: The plan of the attempt that went wrong.
            data: The test data.
            references: What the model gives for them.
            judge: What says how far outputs are from them.

        Raises:
            TiaccError: The plan casts nothing, or the model cannot be imported.
        """
        self.oracle = Oracle(model, plan)
        if not self.oracle.regions:
            raise TiaccError("no region of the model can be run by itself")
        self._data = data
        self._references = references
        self._judge = judge
        self.repair = Repair({region: dict(nodes) for region, nodes in plan.keep_fp32.items()})
        self._is_new = True
        self._total = 0

    def begin(self) -> float:
        """Return the error of the whole in half precision, as torch computes it."""
        if self._is_new:
            self.repair.before = self.repair.after = self._error(self.repair.keep)
            self._is_new = False
        return self.repair.before

    def narrow(self) -> bool:
        """Search on one row of each call from now on, the one whose error is most like that of all; return whether that can be done.

        It cannot where a row alone gives something else than among others, nor where the user's own check may want all of them.
        """
        if self._judge.check is not None:
            return False
        data, references = [], []
        try:
            results = self.oracle.results(self.repair.keep, self._data)
            for item, reference, found in zip(self._data, self._references, results):
                count = batches.rows_in(item, reference)
                if not count:
                    return False
                row = batches.typical_row(reference, found, count)
                data.append(batches.row_of(item, row))
                references.append(batches.row_of(reference, row))
        except AccuracyError:
            return False
        self.oracle.use({})
        if not all(batches.stands_alone(self.oracle.run, item, reference) for item, reference in zip(data, references)):
            return False
        self._data, self._references, self._is_new = data, references, True
        self.begin()
        return True

    def expected(self) -> float:
        """Return the error that the whole has on average, of which `begin` is one case: what its operators contribute, added up."""
        return math.hypot(*(row.contribution for _, row in self._analyse(self.repair.keep, 0.0)))

    def improve(self, target: float, limit: float, seconds: float) -> Repair:
        """Keep operators in float32 until the error is at most `target`.

        Args:
            target: The error to aim at.
            limit: The error to be content with when more than `HALF_SHARE` of the arithmetic would have to be float32 for the target.
            seconds: How long it may take.
        """
        end = time.perf_counter() + seconds
        self.begin()
        repair = self.repair
        for _ in range(ROUNDS):
            if repair.after <= target or time.perf_counter() > end:
                break
            rows = self._analyse(repair.keep, (end - time.perf_counter()) / 4)
            if not repair.table:
                repair.table = sorted(rows, key=lambda item: -item[1].contribution)
                self._total = sum(row.flops for _, row in rows)
            order = sorted(rows, key=lambda item: (-item[1].weight, -item[1].local / max(item[1].cost, 1)))
            if not order:
                break
            self._take(order, target, limit, end)
        repair.is_found = repair.after <= limit
        return repair

    def _take(self, order: list[tuple[int, Sensitivity]], target: float, limit: float, end: float) -> None:
        """Keep the shortest beginning of `order` that makes the error small enough, without what it holds in vain."""
        errors: dict[int, float] = {0: self.repair.after}

        def error_of(count: int) -> float:
            if count not in errors:
                errors[count] = self._error(_joined(self.repair.keep, order[:count]))
            return errors[count]

        expected = self._expected(order, target)
        count = _shortest(error_of, len(order), expected, target, end)
        if self._share(order[:count]) > 1 - HALF_SHARE and target < limit:
            count = max(_shortest(error_of, len(order), self._expected(order, limit), limit, end), self._affordable(order, count))
        taken = order[:count]
        if count > 2 * expected and error_of(count) <= limit:
            taken = self._release(taken, max(target, error_of(count)), end)
        self.repair.keep = _joined(self.repair.keep, taken)
        self.repair.after = error_of(count) if len(taken) == count else self._error(self.repair.keep)
        kept = [item for item in self.repair.table if item[1].node in self.repair.keep.get(item[0], {})]
        self.repair.half_share = 1 - self._share(kept)

    def _expected(self, order: list[tuple[int, Sensitivity]], enough: float) -> int:
        """Return how many operators it should take, the squares of what they contribute adding up to that of the error."""
        lost = sum(math.isinf(row.contribution) for _, row in order)
        squares = [row.contribution**2 for _, row in order[lost:]]
        left = sum(squares)
        wanted = left * (enough / self.repair.after) ** 2 if not lost else enough**2
        count = lost
        for square in squares:
            if left <= wanted:
                break
            left -= square
            count += 1
        return max(count, 1)

    def _affordable(self, order: list[tuple[int, Sensitivity]], count: int) -> int:
        """Return how many of the first `count` leave `HALF_SHARE` of the arithmetic in half precision."""
        while count and self._share(order[:count]) > 1 - HALF_SHARE:
            count -= 1
        return count

    def _share(self, rows: Sequence[tuple[int, Sensitivity]]) -> float:
        return sum(row.flops for _, row in rows) / max(self._total, 1)

    def _release(self, taken: list[tuple[int, Sensitivity]], enough: float, end: float) -> list[tuple[int, Sensitivity]]:
        """Let go of runs of operators without which the error stays small enough, the dearest first, in ever shorter runs."""
        taken = sorted(taken, key=lambda item: item[1].weight)
        size, tries = len(taken) // 2, 0
        while size:
            place = 0
            while place < len(taken) and tries < RELEASES and time.perf_counter() < end:
                rest = taken[:place] + taken[place + size :]
                tries += 1
                if self._error(_joined(self.repair.keep, rest)) <= enough:
                    taken = rest
                else:
                    place += size
            size //= 2
        return taken

    def _analyse(self, keep: Keep, seconds: float) -> list[tuple[int, Sensitivity]]:
        """Return the sensitivities of all regions on the item of the test data that goes most wrong."""
        item = self._data[self._worst(keep)]
        self.oracle.use({})
        self.oracle.run(item)
        rows: list[tuple[int, Sensitivity]] = []
        for region in self.oracle.regions:
            half = self.oracle.half(region, keep.get(region.index, {}))
            found = analyse(region.graph, half, region.engine.seen, seconds / len(self.oracle.regions))
            rows.extend((region.index, row) for row in found)
        return rows

    def _worst(self, keep: Keep) -> int:
        errors = [self._error(keep, slice(index, index + 1)) for index in range(len(self._data))] if len(self._data) > 1 else [0.0]
        return errors.index(max(errors))

    def _error(self, keep: Keep, items: slice = slice(None)) -> float:
        try:
            error = self.oracle.accuracy(keep, self._data[items], self._references[items], self._judge).error
            return math.inf if math.isnan(error) else error
        except AccuracyError:
            return math.inf


def _shortest(error_of: Callable[[int], float], length: int, expected: int, enough: float, end: float) -> int:
    """Return about the smallest number for which the error is at most `enough`; `length` where none is found in time.

    Args:
        error_of: The error by the number; it falls, on the whole, as that grows.
        length: The largest number.
        expected: Where to begin to look.
        enough: The error to be found.
        end: When to stop looking, by `time.perf_counter`.
    """
    low, high, probe = 0, length, min(expected, length - 1)
    while high - low > max(1, high // 5) and time.perf_counter() < end:
        if error_of(probe) <= enough:
            high = probe
            probe = max(low + 1, (3 * probe) // 4) if low < probe // 2 else (low + high) // 2
        else:
            low = probe
            probe = min(high - 1, probe + probe // 2 + 1)
    return high


def _joined(keep: Keep, rows: Sequence[tuple[int, Sensitivity]]) -> dict[int, dict[str, str]]:
    joined = {region: dict(nodes) for region, nodes in keep.items()}
    for region, row in rows:
        joined.setdefault(region, {})[row.node] = _reason(row)
    return joined


def _reason(row: Sensitivity) -> str:
    if math.isinf(row.contribution):
        return "its numbers are lost in half precision"
    if row.contribution:
        return f"its rounding adds {row.contribution:.1e} to the error of the outputs"
    return f"the outputs are off when it rounds, by {row.local:.1e} of its own result"


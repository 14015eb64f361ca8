"""Random programs do the same after optimization; `tests.graph.fuzz` has the check, and ``make fuzz`` runs many more."""

from __future__ import annotations

import pytest

from tests.graph.fuzz import attempt
from tests.graph.random_programs import random_program

PROGRAMS, GROUPS = 300, 15
"""How many programs are tried, in how many tests."""


@pytest.mark.parametrize("group", range(GROUPS))
def test_random_programs_do_the_same_after_optimization(group: int) -> None:
    results = [attempt(seed) for seed in range(group, PROGRAMS, GROUPS)]
    failures = [failure for _, failure in results if failure]
    totals = {name: sum(counts.get(name, 0) for counts, _ in results) for name in ("calls", "raised", "operators")}
    assert not failures, "\n\n".join(failures)
    assert totals["operators"] > PROGRAMS / GROUPS
    assert totals["raised"] < totals["calls"] / 4


def test_a_program_is_the_same_twice() -> None:
    one, other = random_program(7), random_program(7)
    assert one.source == other.source
    assert [str(call) for call in one.calls] == [str(call) for call in other.calls]
    assert random_program(8).source != one.source


def test_a_difference_is_told_with_seed_and_source(monkeypatch: pytest.MonkeyPatch) -> None:
    from tiacc.graph import scalars

    monkeypatch.setitem(scalars.FOLDED, "aten::mul", lambda a, b: a * b + 1)
    monkeypatch.setitem(scalars.FOLDED, "aten::add", lambda a, b: a + b + 1)
    failures = {seed: failure for seed in range(60) if (failure := attempt(seed)[1])}
    assert failures, "an importer that adds up wrongly was not found out"
    for seed, failure in failures.items():
        assert failure.startswith(f"seed {seed}: ") and random_program(seed).source in failure

"""Random graphs are right and build; `random_networks` makes them, and runs many more."""

from __future__ import annotations

import pytest

from tests.backends.tensorrt.harness import needs_rtx
from tests.backends.tensorrt.random_networks import apart

pytestmark = needs_rtx


@pytest.mark.parametrize("group", range(2))
def test_a_few(group: int) -> None:
    assert {seed: said for seed in range(group, 20, 2) if (said := apart(seed)) != "right"} == {}


@pytest.mark.slow
@pytest.mark.parametrize("group", range(4))
def test_many(group: int) -> None:
    results = {seed: apart(seed) for seed in range(100 + group, 500, 4)}
    assert {seed: said for seed, said in results.items() if said.startswith("failed")} == {}
    assert list(results.values()).count("right") > 90

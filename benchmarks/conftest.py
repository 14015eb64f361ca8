"""Options of the benchmarks."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    told = "how long the runners of one model are timed in turn; small values only show that they run"
    parser.addoption("--seconds", type=float, default=12.0, help=told)


@pytest.fixture
def seconds(request: pytest.FixtureRequest) -> float:
    """The time for the runners of one model together, in seconds."""
    return float(request.config.getoption("--seconds"))

"""Arithmetic on sizes that vary: its smallest and largest results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.graph.test_importer import assert_same
from tests.graph.test_observer import optimized
from tiacc.graph import specs, torch_compat
from tiacc.graph.specs import Dim, TensorSpec


@pytest.mark.parametrize(
    ("arithmetic", "expected"),
    [
        (lambda n: n, (1, 6)),
        (lambda n: n * 2 + 1, (3, 13)),
        (lambda n: n // 2, (0, 3)),
        (lambda n: n % 3, (0, 2)),
        (lambda n: n - n // 2, (1, 3)),
        (lambda n: n + (-n) % 4, (4, 8)),
        (lambda n: (n - 3) * (n - 3), (0, 9)),
    ],
)
def test_the_range_of_a_size(arithmetic: Callable[[Any], Any], expected: tuple[int, int]) -> None:
    size = specs.symbol_of(specs.new_fake_mode(), Dim("n", 1, 3, 6), {})
    assert torch_compat.size_range(arithmetic(size), {str(size.node.expr): (1, 6)}) == expected


def test_the_range_of_a_size_of_two_dimensions_is_not_too_small() -> None:
    mode, symbols = specs.new_fake_mode(), {}
    n, m = (specs.symbol_of(mode, Dim(name, 1, 3, 6), symbols) for name in "nm")
    ranges = {str(size.node.expr): (1, 6) for size in (n, m)}
    assert torch_compat.size_range(n * m + 1, ranges) == (2, 37)
    low, high = torch_compat.size_range(n * m - n // 2, ranges)
    assert low <= 1 and high >= 33


class TakesARemainder(nn.Module):
    def forward(self, x):
        rest = torch.relu(x)[: x.size(0) % 3]
        x.add_(1)
        return torch.tanh(rest) * 2


def test_an_engine_takes_all_sizes_of_its_inputs() -> None:
    """At the ends of the range of ``n`` its input has one row or none; between them it has two."""
    scripted = torch.jit.script(TakesARemainder())
    loaded, proposal = optimized(scripted, (TensorSpec((Dim("n", 1, 3, 6), 3), torch.float32),), [], n=(1, 3, 6))
    assert len(proposal.regions) == 2
    for count in range(1, 7):
        assert_same(scripted(torch.ones(count, 3)), loaded(torch.ones(count, 3)))

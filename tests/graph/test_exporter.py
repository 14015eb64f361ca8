"""What is exported does what it did: in a branch as outside of one, and in each call as in the first."""

from __future__ import annotations

import copy

import torch
from torch import nn

from tests.graph.test_importer import assert_same, outcome, write_back
from tests.graph.test_observer import optimized
from tests.graph.test_storage import SQUARE, X
from tiacc.graph.importer import Assumed, import_module
from tiacc.graph.specs import Dim, TensorSpec


class Steps(nn.Module):
    """What is behind each loop reads a value that the loop reads too: torch's interpreter would lose it in a branch."""

    def forward(self, x: torch.Tensor, limit: float, steps: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
        first = torch.relu(x) * 2
        result = first
        for _ in range(steps):
            result = result + torch.tanh(first)
        both = torch.cat([first, result])
        total = both
        while bool(total.sum() < limit):
            total = total + both
        return both, total


def test_loops_keep_what_they_read_when_forward_is_put_into_a_branch() -> None:
    scripted = torch.jit.script(Steps())
    result = import_module(copy.deepcopy(scripted), [SQUARE, ..., Assumed(2)])
    loaded = write_back(result)
    assert result.assumptions
    for _ in range(3):  # torch optimizes after the first call
        for steps in (2, 3):
            assert_same(outcome(scripted, (X, 100.0, steps)), outcome(loaded, (X, 100.0, steps)))


class PickedSteps(nn.Module):
    def forward(self, x: torch.Tensor, items: list[torch.Tensor]) -> torch.Tensor:
        first = torch.relu(x[x[:, 0] > 0]) * 2
        result = first
        for item in items:
            result = result + torch.tanh(first) * item
        return torch.cat([first, result])


def test_loops_keep_what_they_read_beside_a_guarded_region() -> None:
    scripted = torch.jit.script(PickedSteps())
    rows = TensorSpec((Dim("n", 1, 3, 6), 3), torch.float32)
    items = [torch.ones(3), torch.ones(3)]
    examples = [(X, items), (X + 3, items)]
    loaded, proposal = optimized(scripted, (rows, (TensorSpec((3,), torch.float32),) * 2), examples, n=(1, 3, 6))
    assert any(item.region.guard for item in proposal.regions)
    with torch.jit.optimized_execution(False):
        for x in (X, X - 10):  # no row is picked of the other: its shape was not seen
            assert_same(outcome(scripted, (x, items)), outcome(loaded, (x, items)))


class ReturnsConstants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("anchors", torch.rand(6, 4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor], list[torch.Tensor]]:
        size = torch.full([4], 2.0)
        parts = [self.anchors.clone()[: x.size(0)], self.anchors * 2]
        return torch.relu(x) + 1, self.anchors.clone(), {"size": size, "same": torch.full([4], 2.0)}, parts


def test_what_depends_on_nothing_is_new_in_each_call() -> None:
    """Freezing computes it once, and the caller may write into what it is given."""
    module = ReturnsConstants().eval()
    loaded = write_back(import_module(torch.jit.script(module), [SQUARE]))
    with torch.no_grad():
        for _ in range(4):  # torch optimizes after the first call
            assert_same(module(X), loaded(X))
            result, anchors, sizes, parts = loaded(X)
            for tensor in (anchors, sizes["size"], *parts):
                tensor.add_(1)
            assert_same(sizes["same"], torch.full([4], 2.0))
            assert_same(result, torch.relu(X) + 1)

"""Writes made functional: what was written is its own memory, laid out as before, and is taken back with the branch that wrote it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.graph.test_importer import assert_same, outcome, write_back
from tiacc.graph.importer import Assumed, import_module
from tiacc.graph.regions import ImportResult
from tiacc.graph.specs import TensorSpec

SQUARE = TensorSpec((3, 3), torch.float32)
X = torch.arange(9.0).reshape(3, 3) - 4
Y = X.flip(0) * 2


def imported(kind: type[nn.Module], inputs: list[Any], *calls: tuple[Any, ...]) -> ImportResult:
    """Import a module, having checked that calls do the same after export."""
    scripted = torch.jit.script(kind().eval())
    result = import_module(copy.deepcopy(scripted), inputs)
    assert result.regions
    loaded = write_back(result)
    for args in calls:
        assert_same(outcome(scripted, args), outcome(loaded, args))
    return result


class WritesInABranchThatStays(nn.Module):
    """The branch is known, and its last statement cannot be imported: what is before that is imported once more, on its own."""

    def forward(self, x: torch.Tensor, seen: list[torch.Tensor], keep: bool) -> torch.Tensor:
        y = torch.relu(x)
        if keep:
            y.diagonal().neg_()
            y.add_(1)
            seen.append(y)
        return y + 1


def test_a_write_is_taken_back_with_its_branch() -> None:
    result = imported(WritesInABranchThatStays, [SQUARE, ..., Assumed(True)], (X, [], True), (X, [], False))
    targets = [node.target for node in result.regions[0].graph.graph.nodes]
    assert targets.count(torch.ops.aten.diagonal_scatter.default) == 1


class Copies(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        copied = torch.tanh(x)
        copied.copy_(y)
        y.add_(1)
        return copied, torch.relu(x) * 2


class CopiesThroughAView(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        copied = torch.tanh(x)
        copied.unsqueeze(0).copy_(y)
        y.add_(1)
        return copied, torch.relu(x) * 2


@pytest.mark.parametrize("kind", [Copies, CopiesThroughAView])
def test_what_is_copied_is_not_what_it_is_copied_from(kind: type[nn.Module]) -> None:
    imported(kind, [SQUARE, SQUARE], (X, Y))


class CopiesARow(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        copied = torch.tanh(x)
        copied.copy_(y[0])
        return copied, copied.view(-1)


class CopiesTurned(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        copied = torch.tanh(x)
        copied.copy_(y.t())
        return copied, copied.view(-1)


class CopiesIntoATurnedView(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        copied = torch.tanh(x)
        copied.t().copy_(y)
        return copied, copied.view(-1)


class CopiesIntoATurnedTensor(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        copied = torch.tanh(x.t())
        copied.copy_(y)
        return copied, copied.t().view(-1)


@pytest.mark.parametrize("kind", [CopiesARow, CopiesTurned, CopiesIntoATurnedView, CopiesIntoATurnedTensor])
def test_a_copy_is_laid_out_as_what_it_is_written_into(kind: type[nn.Module]) -> None:
    result = imported(kind, [SQUARE, SQUARE], (X, Y))
    assert not result.left

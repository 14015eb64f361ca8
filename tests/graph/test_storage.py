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


class WritesThroughAReshape(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x + 1
        z = y.reshape(-1)
        z.mul_(2)
        return y, z.exp() * 2


class WritesThroughAFlatten(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x + 1
        z = torch.flatten(y)
        z[:4].mul_(2)
        return y, z.exp() * 2


class WritesBehindAContiguous(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.relu(x)
        z = y.contiguous()
        y.add_(1)
        return y, z.exp() * 2


class BranchesOnALayout(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x * 2
        if y.is_contiguous():
            return torch.relu(y) + 1, y
        return torch.relu(y) * y.stride(0), y


@pytest.mark.parametrize("kind", [WritesThroughAReshape, WritesThroughAFlatten, WritesBehindAContiguous, BranchesOnALayout])
def test_tensors_may_be_laid_out_otherwise_than_in_the_graph(kind: type[nn.Module]) -> None:
    imported(kind, [SQUARE], (X,), (X.t(),), (X.repeat(1, 2)[:, ::2],))


class WritesThroughAReshapeOfItsOwn(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.mm(x, x)
        y.reshape(-1).mul_(2)
        return torch.relu(y)


def test_a_reshape_of_what_is_always_laid_out_alike_is_a_view() -> None:
    assert not imported(WritesThroughAReshapeOfItsOwn, [SQUARE], (X,), (X.t(),)).left


class WritesIntoWhatItReads(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(x)
        y.add_(y.t())
        return y.exp() * 2


def test_what_torch_refuses_to_read_is_refused() -> None:
    loaded = write_back(import_module(torch.jit.script(WritesIntoWhatItReads()), [SQUARE]))
    with pytest.raises(RuntimeError, match="refer to a single memory location"):
        loaded(X)


class ReturnsAPart(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        y = torch.relu(x)
        a = y[:, :2]
        b = a[1:]
        a.add_(1)
        return y, a, b


class ReturnsAPartOfAPart(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        y = torch.relu(x)
        a = y[:, :2]
        a.add_(1)
        b = a[1:]
        return y, b + 0, b


class ReturnsANumberTwice(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        a = torch.tensor(x.size(0))
        b = a
        b += 1
        return a, torch.relu(x), b


@pytest.mark.parametrize("kind", [ReturnsAPart, ReturnsAPartOfAPart, ReturnsANumberTwice])
def test_results_that_share_memory_still_do(kind: type[nn.Module]) -> None:
    scripted = torch.jit.script(kind().eval())
    loaded = write_back(import_module(copy.deepcopy(scripted), [SQUARE]))
    for model in (scripted, loaded):
        first, _, last = model(X)
        first.zero_()
        assert not last.any() and last.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()

"""0-d tensors that stand for numbers: computed with while importing, and right where they are written into or shared."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.graph.test_importer import assert_same, outcome, write_back
from tiacc.graph.importer import import_module
from tiacc.graph.regions import ImportResult
from tiacc.graph.specs import Dim, TensorSpec


class Multiplied(nn.Module):
    """The number of windows, counted up in place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = torch.tensor(x.size(0))
        same = count.detach()
        y = x.view(int(count), 2, -1)
        count.mul_(2)
        y = y.reshape(int(count), 2, -1).relu()
        return y + same


class Repeated(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        repeats = torch.tensor(x.size(0)) * 2
        return x[:1].relu().repeat_interleave(repeats, 0)


class RepeatedByConstant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("repeats", torch.tensor(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu().repeat_interleave(self.repeats, 0)


class WrittenInBranch(nn.Module):
    """A branch that is imported in part writes into the number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = torch.tensor(x.size(0))
        if x.dim() == 2:
            count.add_(1)
            x = x[x > 0]
        return x * count


class WrittenThroughView(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = torch.tensor(x.size(0))
        row = count.view(1)
        row.add_(1)
        return x.relu() + count


class ViewOfWritten(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = torch.tensor(x.size(0))
        rows = count.expand(2)
        count.add_(1)
        return x.relu() + rows.sum()


class WrittenThroughAlias(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = torch.tensor(x.size(0))
        count.t().add_(1)
        return x.relu() + count


def imported(kind: type[nn.Module], rows: int | Dim) -> tuple[torch.jit.ScriptModule, ImportResult]:
    scripted = torch.jit.script(kind().eval())
    return scripted, import_module(copy.deepcopy(scripted), [TensorSpec((rows, 4), torch.float32)])


@pytest.mark.parametrize("rows", [3, Dim("n", 2, 3, 8)], ids=["a known size", "a size that varies"])
@pytest.mark.parametrize("kind", [Multiplied, Repeated, RepeatedByConstant])
def test_a_number_that_is_a_tensor_is_computed_with(kind: type[nn.Module], rows: int | Dim) -> None:
    scripted, result = imported(kind, rows)
    assert len(result.regions) == 1 and not result.left and not result.fixed
    loaded = write_back(result)
    for count in (3,) if rows == 3 else (2, 3, 8):
        args = (torch.randn(count, 4),)
        assert_same(outcome(scripted, args), outcome(loaded, args))


@pytest.mark.parametrize("rows", [3, Dim("n", 2, 3, 8)], ids=["a known size", "a size that varies"])
@pytest.mark.parametrize("kind", [WrittenInBranch, WrittenThroughView, ViewOfWritten, WrittenThroughAlias])
def test_a_number_that_is_written_into_is_the_new_one(kind: type[nn.Module], rows: int | Dim) -> None:
    scripted, result = imported(kind, rows)
    loaded = write_back(result)
    args = (torch.randn(3, 4),)
    assert_same(outcome(scripted, args), outcome(loaded, args))


class Drawn(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu() + torch.bernoulli(torch.tensor(x.size(0)) / 6)


def test_a_number_is_not_drawn_while_importing() -> None:
    _, result = imported(Drawn, 3)
    assert any(left.op == "aten::bernoulli" for left in result.left)


class Guessed(nn.Module):
    """A number that stays in TorchScript, because of what is written into it later."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = torch.tensor(x.size(0))
        rows = count.expand(2)
        count.add_(int(x.sum() > -100))
        return x.relu() + count + rows.sum()


def test_a_number_that_stays_is_not_taken_for_a_constant() -> None:
    scripted, result = imported(Guessed, 3)
    assert any(left.op == "aten::tensor" for left in result.left)
    args = (torch.randn(3, 4),)
    assert_same(outcome(scripted, args), outcome(write_back(result), args))


class Compared(nn.Module):
    """Lists of sizes that are equal to others always, never, or as it happens."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, str, str]:
        sizes = list(x.shape)
        z = x.relu()
        if sizes == [x.size(0), 4]:
            z = z + 1
        if [x.size(0), 5] == sizes or sizes == [x.size(0)]:
            z = z - 100
        if sizes != [y.size(0), 4]:
            z = z * 2
        if 5 in sizes:
            z = z - 1
        if (x.size(0), 1) == (y.size(0), 1):
            z = z + 5
        return z, f"{x.size(0)} rows", "sizes {}".format(sizes)  # noqa: UP032 - TorchScript has another operator for it


class Checked(nn.Module):
    """What torch's own recurrent modules ask of their state."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = torch.zeros(2, x.size(0), 4)
        if state.size() != (2, x.size(0), 4):
            raise RuntimeError("Expected {}, got {}".format((2, x.size(0), 4), list(state.size())))  # noqa: UP032
        return (x + state).relu()


def test_lists_of_sizes_are_compared_by_what_the_sizes_may_be() -> None:
    scripted = torch.jit.script(Compared().eval())
    specs = [TensorSpec((Dim(name, 1, 3, 8), 4), torch.float32) for name in "nm"]
    loaded = write_back(import_module(copy.deepcopy(scripted), specs))
    for rows in ((1, 1), (3, 3), (3, 5), (5, 3), (5, 5), (8, 1)):
        args = tuple(torch.randn(count, 4) for count in rows)
        assert_same(outcome(scripted, args), outcome(loaded, args))


def test_lists_of_the_same_sizes_are_equal() -> None:
    scripted, result = imported(Checked, Dim("n", 2, 3, 8))
    assert len(result.regions) == 1 and not result.left
    loaded = write_back(result)
    for count in (2, 5, 8):
        args = (torch.randn(count, 4),)
        assert_same(outcome(scripted, args), outcome(loaded, args))

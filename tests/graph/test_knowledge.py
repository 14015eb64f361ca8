"""What is known of tensors holds whenever it is relied on: not of one that gets another shape, or of a constant that is written into."""

from __future__ import annotations

import torch
from torch import nn

from tests.graph.test_importer import assert_same, outcome
from tests.graph.test_observer import optimized
from tests.graph.test_storage import SQUARE, X, imported
from tiacc.graph.importer import import_module
from tiacc.graph.specs import Dim, TensorSpec


class GrowsInALoop(nn.Module):
    def forward(self, x: torch.Tensor, times: int) -> torch.Tensor:
        grown = torch.relu(x).clone()
        total = torch.zeros(1)
        for _ in range(times):
            total = total + torch.tanh(grown.sum(0).sum()) * grown.dim()
            grown.unsqueeze_(0)
        return total


class ResizesWithOut(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
        made = torch.relu(x).sum()
        torch.add(x, 1, out=made)
        return made * 2, made.dim()


def test_a_tensor_that_gets_another_shape_has_none_that_is_known() -> None:
    imported(GrowsInALoop, [SQUARE, ...], (X, 0), (X, 3))
    imported(ResizesWithOut, [SQUARE], (X,))


class GrowsBehindAChoice(nn.Module):
    """The rank of `rows` is not known before it is seen, and is another one when it is asked for."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = x[x[:, 0] > 0]
        rows.unsqueeze_(0)
        first = torch.tanh(rows[0]) * 2
        if rows.dim() == 2:
            first = first + 1
        return first, torch.relu(x)


def test_a_shape_that_was_seen_before_it_changed_is_not_relied_on() -> None:
    scripted = torch.jit.script(GrowsBehindAChoice())
    loaded, _ = optimized(scripted, (SQUARE,), [(X,)])
    assert_same(outcome(scripted, (X,)), outcome(loaded, (X,)))


def test_a_constant_that_is_written_into_is_none() -> None:
    class Counts(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(x) + count
            count.view(-1)[1:].add_(1)
            return torch.tanh(y) + count

    count = torch.zeros(3)
    traced = torch.jit.trace(Counts(), (X,), check_trace=False)
    before = count.clone()
    result = import_module(traced, [SQUARE])
    assert torch.equal(count, before)  # nothing is written while importing
    assert not any(node.op == "get_attr" for region in result.regions for node in region.graph.graph.nodes)


class DoublesANumber(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        number = torch.tensor(x.size(0) // 2)
        number += number
        return torch.tanh(number) + torch.relu(x)


def test_a_tensor_of_a_size_that_is_written_into_is_no_constant() -> None:
    rows = TensorSpec((Dim("n", 1, 3, 6), 3), torch.float32)
    imported(DoublesANumber, [rows], (X,), (X[:1],), (torch.ones(5, 3),))

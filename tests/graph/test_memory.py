"""What shares memory with a tensor when it is written into: as little as is right."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.graph.test_importer import abstract, assert_same, outcome, write_back
from tiacc.graph import torch_compat
from tiacc.graph.importer import import_module


class KeptAfterwards(nn.Module):
    """A mask that is written into where data say, and put into a list when it is done; other lists have nothing of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [x.relu(), x.exp()]
        masks: list[torch.Tensor] = []
        for row in range(int(x[0, 0]) % 3 + 1):
            mask = torch.zeros_like(x)
            view = mask[row]
            view[: int(x[0, 1].abs())] = 1
            masks.append(mask)
        return torch.stack(masks).sum(0) * (parts[0] + parts[1])


class KeptBefore(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        masks: list[torch.Tensor] = []
        mask = torch.zeros_like(x)
        masks.append(mask)
        first = masks[0].relu() + 1
        mask[: int(x[0, 1].abs())] = 1
        return masks[0] * first


class KeptInALoop(nn.Module):
    """The second time the loop is entered the list has what is written into."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        masks: list[torch.Tensor] = []
        mask = torch.zeros_like(x)
        for row in range(int(x[0, 0].abs()) % 3 + 2):
            mask[row % 2, : int(x[0, 1].abs()) + 1] += 1
            masks.append(mask)
        return torch.stack(masks).sum(0)


class OneOfTwo(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros_like(x)
        other = mask
        if bool(x[0, 0] > 100):
            other = x * 2
        row = other[0]
        mask[: int(x[0, 1].abs())] = 1
        return other.exp() + row.exp()


class ViewedBefore(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros_like(x)
        row = mask.view(-1)[1:].unsqueeze(0)
        mask[: int(x[0, 1].abs())] = 1
        return row.exp().sum() + mask[0]


class WrittenTwice(nn.Module):
    """A view made between two writes sees the second."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros_like(x)
        mask[: int(x[0, 1].abs())] = 1
        row = mask[0]
        total = row.exp()
        mask[: int(x[0, 1].abs()) + 1] = 2
        return total + row.exp()


PROGRAMS = [KeptAfterwards, KeptBefore, KeptInALoop, OneOfTwo, ViewedBefore, WrittenTwice]
DATA = [torch.tensor([[first, second, 3.0], [0.5, 1.0, -2.0], [1.0, 0.0, 4.0]]) for first, second in ((2.5, 1.5), (1.0, 2.5))]


@pytest.mark.parametrize("kind", PROGRAMS)
def test_what_shares_memory_with_what_is_written_sees_the_write(kind: type[nn.Module]) -> None:
    scripted = torch.jit.script(kind())
    for examples in ([], [(DATA[0],)]):
        loaded = write_back(import_module(copy.deepcopy(scripted), [abstract(DATA[0])], examples=examples))
        for x in DATA:
            assert_same(outcome(scripted, (x,)), outcome(loaded, (x,)))


@pytest.mark.parametrize(("kind", "is_small"), [(KeptAfterwards, True), (KeptBefore, False), (KeptInALoop, False), (OneOfTwo, False)])
def test_members_of_other_lists_share_nothing_with_what_is_kept_later(kind: type[nn.Module], is_small: bool) -> None:
    graph = torch.jit.script(kind()).inlined_graph
    aliases = torch_compat.Aliases(graph)
    writes = [(node, value) for node in torch_compat.nodes_of(graph) for value in torch_compat.written_values(node)]
    assert writes
    for node, value in writes:
        assert (aliases.when_written(node, value) < aliases.of(value)) == is_small

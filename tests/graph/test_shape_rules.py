"""Tensors made of sizes that vary: the sizes stay free."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.graph.test_storage import imported
from tiacc.graph.specs import Dim, TensorSpec

ROWS = TensorSpec((Dim("n", 1, 3, 6), 3), torch.float32)


class Number(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) + torch.tensor(x.size(0), dtype=torch.float32)


class Quotient(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) + torch.tensor(x.size(0) / 2)


class Numbers(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) * torch.tensor([[x.size(0)], [1]]).sum()


class Condition(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.logical_not(torch.tensor(x.size(0) > 2)) & (x > 0)


@pytest.mark.parametrize("kind", [Number, Quotient, Numbers, Condition])
def test_a_tensor_made_of_a_size_is_imported(kind: Callable[[], nn.Module]) -> None:
    result = imported(kind, [ROWS], *((torch.ones(count, 3),) for count in (1, 3, 6)))
    assert not result.left and not result.fixed


class Comparison(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.relu(x), torch.tensor(x.size(0) - 1) > 0.5


def test_a_comparison_of_a_known_size_can_be_saved() -> None:
    """A ``Scalar`` of TorchScript is no bool."""
    imported(Comparison, [TensorSpec((3, 3), torch.float32)], (torch.ones(3, 3),))

"""The shapes of what torch infers wrongly, or at a cost: sizes stay free, and nothing is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.graph.test_storage import imported
from tiacc.graph import specs
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


LAYERS = [nn.Conv1d(4, 6, 3, 2, 1), nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.ConvTranspose2d(4, 2, 3, 2, 1, 1)]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_the_shape_of_a_traced_convolution_is_not_computed(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 2.14, torch makes zeros and convolves them, unless it is told not to."""
    x = torch.randn(2, 4, 9) if isinstance(layer, nn.Conv1d) else torch.randn(2, 4, 9, 9).to(memory_format=torch.channels_last)
    mode = specs.new_fake_mode()
    monkeypatch.setattr(mode, "allow_fallback_kernels", False)
    graph = torch.fx.Graph()
    given = {"x": x, "weight": layer.weight, "bias": layer.bias}
    for name, value in given.items():
        graph.placeholder(name).meta["val"] = None if value is None else mode.from_tensor(value)
    geometry = (list(layer.stride), list(layer.padding), list(layer.dilation), layer.transposed, list(layer.output_padding), layer.groups)
    node = graph.call_function(torch.ops.aten._convolution.default, (*graph.nodes, *geometry, False, False, True, True))
    found, expected = specs.infer_call(mode, node), layer(x)
    assert found.shape == expected.shape and found.dtype == expected.dtype and found.stride() == expected.stride()

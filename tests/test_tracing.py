"""Modules that are not TorchScript: what is traced gives what the module gives, and the module stays as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tiacc.errors import ImportGraphError, InvalidArgumentError
from tiacc.models import call
from tiacc.tracing import trace


class ByRows(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu() if x.shape[0] > 2 else x * 2


class ByValue(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu() if x.sum() > 0 else x * 2


class ByCalls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.calls


class Counting(nn.Module):
    """Writes into a buffer and into its input."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(1)
        return x.mul_(2) * self.count


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


X = torch.linspace(0, 1, 12).view(3, 4)


@pytest.mark.parametrize(("kind", "data"), [(ByRows, [X, X[:1]]), (ByValue, [X, -X]), (ByCalls, [X, X])])
def test_a_trace_that_gives_something_else_is_refused(kind: type[nn.Module], data: list[torch.Tensor]) -> None:
    with pytest.raises(ImportGraphError, match=r"trace of input_model gives something else.* on item [01] .*torch\.jit\.script"):
        trace(kind(), [(x,) for x in data])


def test_a_module_that_fails_is_named() -> None:
    class Choosy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[0] == 1:
                raise ValueError("one row is not enough")
            return x.relu()

    with pytest.raises(InvalidArgumentError, match=r"input_model fails on item 1 .*one row is not enough"):
        trace(Choosy(), [(X,), (X[:1],)])


def test_neither_the_state_nor_the_data_are_changed() -> None:
    module, x = Counting(), X.clone()
    traced, _ = trace(module, [(x,), (x,)])
    assert module.training and not module.count.any() and torch.equal(x, X)
    for calls in (1, 2, 3):
        torch.testing.assert_close(traced(X.clone()), X * 2 * calls)


def test_random_numbers_are_the_same_in_each_comparison() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    traced, _ = trace(Noisy(), [(X,), (X,)])
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.testing.assert_close(call(traced, (X,)), call(Noisy(), (X,)))


def test_attention_is_traced_as_operators_that_backends_know() -> None:
    module = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1).eval()
    args: tuple[Any, ...] = (torch.randn(2, 5, 16),)
    traced, _ = trace(copy.deepcopy(module), [args])
    assert "transformer_encoder_layer" not in str(traced.inlined_graph) and torch.backends.mha.get_fastpath_enabled()
    torch.testing.assert_close(call(traced, args), call(module, args), rtol=1e-4, atol=1e-5)


def test_why_a_module_cannot_be_traced() -> None:
    class Mixed(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            return {"one": x, "two": (x, x + 1)}

    with pytest.raises(ImportGraphError, match=r"cannot be traced.*must have consistent type"):
        trace(Mixed(), [(X,)])

"""The copy of a user's model that is worked with: it computes what that does, changes nothing of it, and shares what nobody changes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.graph.test_importer import assert_same
from tiacc.models import own_copy

Make = Callable[[nn.Module], torch.jit.ScriptModule]
X = torch.linspace(-1, 1, 12).view(3, 4)


class Tied(nn.Module):
    """Two layers of one weight, and weights of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.blocks = nn.ModuleList([nn.BatchNorm1d(4), nn.PReLU()])
        self.register_buffer("empty", torch.zeros(0, 4))
        self.register_buffer("scale", torch.tensor(1.5))
        self.register_buffer("flags", torch.tensor([True, False, True, True]))
        self.register_buffer("turned", torch.randn(4, 4).t())
        self.register_buffer("spectrum", torch.view_as_complex(torch.randn(4, 2)))
        self.register_buffer("rows", torch.eye(3).to_sparse())
        self.plain = torch.full((4,), 0.5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.second(self.first(x)) * self.scale + self.plain
        for block in self.blocks:
            x = block(x)
        x = torch.mm(self.rows, x @ self.turned) * self.flags
        return torch.cat([x, self.empty]), x * self.spectrum


class Counts(nn.Module):
    """Writes into a buffer that another attribute is a part of."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(4))
        self.last = self.counts[3:]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.counts.add_(1)
        return x + self.last


class Averages(nn.Module):
    """Writes into a buffer through another that is a part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(4))
        self.register_buffer("last", self.counts[3:])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last.add_(1)
        return x + self.counts


class Doubles(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("counts", torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.counts.copy_(self.counts * 2 + 1)
        return x + self.counts


class Packed(nn.Module):
    """Looks at its weight when it is saved, and makes it anew when it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return self.weight * 2, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.weight = state[0] / 2
        self.training = state[1]


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


class CallsPython(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Doubled.apply(x) + 1


def scripted(module: nn.Module) -> torch.jit.ScriptModule:
    return torch.jit.script(module.eval())


def traced(module: nn.Module) -> torch.jit.ScriptModule:
    return torch.jit.trace(module.eval(), X, check_trace=False)


@pytest.mark.parametrize(("make", "kind"), [(scripted, Tied), (traced, Tied), (scripted, Counts), (scripted, Averages), (traced, Doubles)])
def test_a_copy_does_the_same_and_leaves_the_model_alone(make: Make, kind: type[nn.Module]) -> None:
    model = make(kind())
    before = copy.deepcopy(model.state_dict())
    duplicate = own_copy(model)
    found = [duplicate(X) for _ in range(3)]
    for (name, was), now in zip(before.items(), model.state_dict().values(), strict=True):
        assert torch.equal(was.to_dense(), now.to_dense()), name
    assert_same([model(X) for _ in range(3)], found)
    duplicate.train()
    assert not model.training


def test_a_weight_is_copied_where_a_call_may_write_into_it() -> None:
    model = traced(Tied())
    duplicate = own_copy(model)
    for name in ("first", "second"):
        assert getattr(duplicate, name).weight.data_ptr() == model.first.weight.data_ptr()
    assert duplicate.turned.data_ptr() == model.turned.data_ptr()
    assert [name for name, _ in duplicate.named_parameters()] == [name for name, _ in model.named_parameters()]
    model = scripted(Tied())  # BatchNorm has code for training
    duplicate = own_copy(model)
    assert duplicate.first.weight.data_ptr() == duplicate.second.weight.data_ptr() != model.first.weight.data_ptr()
    for model in (scripted(Counts()), scripted(Averages()), traced(Doubles())):
        assert own_copy(model).counts.data_ptr() != model.counts.data_ptr()


def test_a_module_that_says_how_it_is_saved_is_saved_so() -> None:
    model = torch.jit.script(nn.Sequential(nn.Linear(4, 4), Packed()).eval())
    assert_same(model(X), own_copy(model)(X))


def test_a_model_that_cannot_be_saved_is_copied_all_the_same() -> None:
    model = traced(CallsPython())
    with pytest.raises(RuntimeError):
        model.save_to_buffer()
    assert_same(model(X), own_copy(model)(X))

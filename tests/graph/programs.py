"""TorchScript programs that exercise the importer: each a module, what it is called with, and what of it must be imported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tiacc.graph.importer import Assumed


@dataclass(frozen=True)
class Program:
    make: Callable[[], nn.Module]
    calls: tuple[tuple[Any, ...], ...]
    regions: int | None = None
    """The number of regions it is cut into, where that is worth pinning down."""
    assumed: tuple[Assumed, ...] = ()
    """The values of the arguments that the first call leaves out."""


def _x(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout()

    def forward(self, x):
        return self.drop(torch.flatten(self.norm(self.conv(x)).relu_(), 1))


class InPlaceViews(nn.Module):
    def forward(self, x):
        y = x * 2
        view = y[:, 0]
        y[:, 1] += 3
        view.mul_(5)
        y.transpose(0, 1)[0].sub_(1)
        parts = y.split(1, dim=1)
        parts[1].zero_()
        return y, view, parts[0] + parts[1]


class WritesInput(nn.Module):
    def forward(self, x):
        y = x.sin()
        x.add_(1)
        return (y + x).cos()


class StaticBranch(nn.Module):
    def forward(self, x):
        if x.dim() == 4:
            if x.size(1) == 3:
                return x.mean([2, 3])
            raise ValueError("three channels, please")
        return x * 2


class DynamicBranch(nn.Module):
    def forward(self, x):
        y = x.exp() * 2
        if bool(y.sum() > 0):  # noqa: SIM108 - a branch is what is tested
            z = (y + 1).log() * 3
        else:
            z = (y - 1).abs() + 2
        return z.tanh() + y


class Unrolled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])

    def forward(self, x):
        found = []
        for layer in self.layers:
            x = torch.relu(layer(x))
            found.append(x)
        total = torch.zeros_like(x)
        for i in range(x.size(0)):
            total[i] = x[i] * float(i + 1)
        return torch.cat(found, 1), total


class DataLoop(nn.Module):
    def forward(self, x):
        y = (x * 0.5).sigmoid()
        while float(y.sum()) > 1.0:
            y = (y * 0.5 + 0.01) * 0.9
        return y.sqrt() + x


class State(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.memory = torch.zeros(4)

    def forward(self, x, weight: float = 0.5):
        self.memory = self.memory * weight + (x * 2).relu().sum(0)
        self.steps += 1
        if self.steps % 3 == 0:
            return self.memory.exp()
        return (self.memory - 1).tanh()

    @torch.jit.export
    def reset(self):
        self.memory = torch.zeros(4)
        self.steps = 0


class Structures(nn.Module):
    def forward(self, x, pair: tuple[torch.Tensor, torch.Tensor], table: dict[str, torch.Tensor]):
        y = x + pair[0] * table["a"]
        return {"sum": y, "both": y - pair[1]}, [y.relu(), y.tanh()], (x, y.size(0))


class NoInput(nn.Module):
    def forward(self, x):
        i = torch.arange(x.size(1), device=x.device)
        return x + i.to(x.dtype).unsqueeze(0), x


class Sorted(nn.Module):
    def forward(self, x):
        values, order = torch.sort(x * 3, dim=1)
        kept = torch.nonzero(values[0] > 0).flatten()
        return values.index_select(1, kept) * 2, order


class Raises(nn.Module):
    def forward(self, x):
        y = x.abs() + 1
        if bool((y > 2.5).any()):
            raise RuntimeError("too large")
        return y.log()


class Random(nn.Module):
    def forward(self, x):
        return torch.relu(x * 2) + torch.rand_like(x) * 0


class Appends(nn.Module):
    def forward(self, x):
        items = [x + 1, x * 2]
        for _ in range(int(x.sum().abs()) % 3 + 1):
            items.append(items[-1] * 0.5)
        return torch.stack(items).sum(0)


class OptionalArgument(nn.Module):
    def forward(self, x, mask: torch.Tensor | None = None, scale: float = 2.0):
        y = x * scale
        if mask is not None:
            y = y.masked_fill(mask, 0.0)
        return y.softmax(-1)


PROGRAMS: dict[str, Program] = {
    "conv-net": Program(ConvNet, ((_x(2, 3, 8, 8),),), 1),
    "in-place-views": Program(InPlaceViews, ((_x(3, 4),),), 1),
    "writes-input": Program(WritesInput, ((_x(3, 4),),)),
    "static-branch": Program(StaticBranch, ((_x(2, 3, 4, 4),),), 1),
    "dynamic-branch": Program(DynamicBranch, ((_x(3, 4),), (_x(3, 4) - 9,)), 4),
    "unrolled": Program(Unrolled, ((_x(4, 6),),), 1),
    "data-loop": Program(DataLoop, ((_x(3, 4),),)),
    "state": Program(State, tuple((_x(3, 4, seed=seed),) for seed in range(7))),
    "structures": Program(Structures, ((_x(2, 3), (_x(2, 3, seed=1), _x(2, 3, seed=2)), {"a": _x(2, 3, seed=3)}),)),
    "no-input": Program(NoInput, ((_x(2, 5),),), 1),
    "sorted": Program(Sorted, ((_x(2, 5),),)),
    "raises": Program(Raises, ((_x(2, 3) * 0.1,), (_x(2, 3) + 9,))),
    "random": Program(Random, ((_x(2, 3),),)),
    "appends": Program(Appends, ((_x(2, 3),), (_x(2, 3, seed=5) * 4,))),
    "optional-argument": Program(
        OptionalArgument, ((_x(2, 3),), (_x(2, 3), torch.tensor([[True, False, True]]), 0.5)), 1, (Assumed(None), Assumed(2.0))
    ),
}

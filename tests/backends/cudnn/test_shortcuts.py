"""Convolutions that are added up are one step; every tile of its kernel against torch, in Triton's interpreter."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.backends.cudnn.models import subgraph
from tests.backends.cudnn.programs import CPU, error, planned, run
from tiacc.backends.cudnn import eager, kernels, products
from tiacc.backends.cudnn.launch import Bench
from tiacc.backends.cudnn.naming import key_of, title
from tiacc.backends.cudnn.tiles import Tile

TILES = (Tile(16, 16, 16, 4, 2), Tile(32, 32, 32, 4, 2, early=True), Tile(16, 32, 16, 4, 2, split=2), Tile(64, 16, 64, 4, 2, split=3))
X = torch.randn(2, 24, 9, 7, generator=torch.Generator().manual_seed(0))
Sum = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Residual(nn.Module):
    """The end of a bottleneck whose shortcut changes channels and size."""

    def __init__(self, stride: int, deep: int = 40, wide: int = 56, channels: int = 24, *, bias: bool = True) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, deep, 3, stride, 1)
        self.expand, self.shortcut = nn.Conv2d(deep, wide, 1), nn.Conv2d(channels, wide, 1, stride, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.expand(torch.relu(self.reduce(x))) + self.shortcut(x))


class Turned(Residual):
    """The same, summed in the other order."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.shortcut(x) + self.expand(torch.relu(self.reduce(x))))


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [Residual, Turned])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_shortcut_is_part_of_the_sum(stride: int, kind: type[Residual], bias: bool, images: int) -> None:
    model, x = kind(stride, bias=bias).eval(), X[:images]
    program = planned(subgraph(model, [x], 0))
    assert [title(step).split("+add")[0] for step in program.steps] == ["conv3x3", "conv1x1+conv1x1"]
    with torch.no_grad():
        assert error(run(program, [x])[0], model(x)) < 1e-6


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="this runs in Triton's interpreter, on the CPU")
@pytest.mark.parametrize("channels", [(24, 40, 56), (32, 64, 32)], ids=["ragged", "even"])
@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("stride", [1, 2])
def test_its_kernels(stride: int, level: int, channels: tuple[int, int, int]) -> None:
    x = torch.randn(2, channels[0], 8, 8)
    program = planned(subgraph(Residual(stride, *channels[1:], channels[0]).eval(), [x], level))
    seen = 0

    def compute(step, read) -> None:
        nonlocal seen
        eager.compute(step, read)
        if getattr(step, "addend", None) is None:
            return
        out = read(step.out)
        wanted = out.clone()
        for tile in TILES:
            out.fill_(float("nan"))
            Bench(read, {}, CPU).bind(step, f"triton:{tile}")()
            assert error(out.clone(), wanted) < (1e-6, 1e-3)[level], tile
            seen += 1

    run(program, [x], compute)
    assert seen == len(TILES)


def test_one_step_is_told_from_another() -> None:
    programs = [planned(subgraph(Residual(stride, channels=deep).eval(), [X[:, :deep]], 0)) for deep in (24, 20) for stride in (1, 2)]
    assert len({key_of(program.steps[-1]) for program in programs}) == 4


class Two(nn.Module):
    """Two convolutions of two tensors, and what a function makes of them."""

    def __init__(self, join: Callable[..., object], kernel: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(24, 32, kernel, groups=groups), nn.Conv2d(24, 32, kernel)
        self.join = join

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> object:
        return self.join(self.a(x), self.b(y))


@pytest.mark.parametrize(
    "model",
    [
        Two(lambda a, b: (b, a + b)),
        Two(lambda a, b: a * b),
        Two(lambda a, b: a - b),
        Two(lambda a, b: a + torch.relu(b)),
        Two(lambda a, b: torch.relu(a + a * b)),
        Two(lambda a, b: a + b, kernel=3),
        Two(lambda a, b: a + b, groups=2),
    ],
    ids=["returned", "multiplied", "subtracted", "activated", "read twice", "3x3", "grouped"],
)
def test_near_misses_stay(model: Two) -> None:
    inputs = [X, X.flip(0)]
    program = planned(subgraph(model.eval(), inputs, 0))
    assert all(getattr(step, "addend", None) is None for step in program.steps)
    with torch.no_grad():
        wanted = model(*inputs)
    for got, value in zip(run(program, inputs), wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
        assert error(got, value) < 1e-6


@pytest.mark.parametrize("kind", ["conv3x3", "conv1x1+conv1x1"])
def test_a_kernel_asks_for_its_weight_before_it_waits_and_reads_nothing(kind: str) -> None:
    (step,) = (step for step in planned(subgraph(Residual(2).eval(), [X], 1)).steps if title(step).startswith(f"{kind}+add"))
    text, _ = products.product(step, TILES[0])
    lines = [line.strip() for line in kernels.overlapped(text, waits=True, triggers=True, ahead=products.asked_ahead(step)).splitlines()]
    wait = lines.index("tl.extra.cuda.gdc_wait()")
    assert any("prefetch" in line for line in lines[:wait])
    assert not any("tl.load" in line or "tl.store" in line for line in lines[:wait])
    names = {line.split(" = ")[0] for line in text.splitlines() if " = " in line}
    assert not {f"    {line.strip().split(' = ')[0]}" for line in products.asked_ahead(step) if " = " in line} & names

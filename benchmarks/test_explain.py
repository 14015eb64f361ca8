"""`explain` of a large model, from its TorchScript to the report: the time grows with the operators, not with their square."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

import tiacc
from tiacc.explanation import Explanation

LONGEST_SECONDS = 20.0
"""The most CPU time that 20,000 operators may take."""

LARGEST_RATIO = 2.0
"""The most that an operator of 20,000 may cost, against one of 2,000."""

SHAPES = {"a chain": "2*4", "layers": "2*3*8*8"}


class Chain(nn.Module):
    """Activations and sums, one after the other."""

    def __init__(self, operators: int) -> None:
        super().__init__()
        self.steps = operators // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.steps):
            x = torch.relu(x) + x
        return x


class Layers(nn.Module):
    """The same residual block and the same layer of a transformer over and over: convolutions, norms, attention, sizes, views."""

    def __init__(self, operators: int) -> None:
        super().__init__()
        self.steps = operators // 27
        self.stem = nn.Conv2d(3, 16, 1)
        self.convolutions = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(2))
        self.batch_norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(2))
        self.qkv, self.out, self.up, self.down = (nn.Linear(*sizes) for sizes in ((16, 48), (16, 16), (16, 32), (32, 16)))

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu_(self.batch_norms[0](self.convolutions[0](x)))
        return torch.relu(x + nn.functional.dropout(self.batch_norms[1](self.convolutions[1](y)), 0.1, self.training))

    def layer(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.norms[0](x)).view(batch, length, 3, 2, width // 2)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(query @ key.transpose(-2, -1) / (width // 2) ** 0.5, -1)
        x = x + self.out((weights @ value).transpose(1, 2).reshape(batch, length, width))
        return x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for _ in range(self.steps):
            x = self.residual(x)
        batch, channels, height, width = x.shape
        x = x.flatten(2).transpose(1, 2)
        for _ in range(self.steps):
            x = self.layer(x)
        return x.transpose(1, 2).view(batch, channels, height, width)


KINDS = {"a chain": Chain, "layers": Layers}


def traced(kind: str, operators: int) -> torch.jit.ScriptModule:
    torch.manual_seed(0)
    example = torch.randn([int(size) for size in SHAPES[kind].split("*")])
    return torch.jit.trace(KINDS[kind](operators).eval(), example, check_trace=False)


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("kind", list(KINDS))
def test_explain(benchmark, kind: str, level: int) -> None:
    def work(model: torch.jit.ScriptModule) -> Explanation:
        return tiacc.explain(model, [SHAPES[kind]], optimization_level=level, device_type="cpu", backend="openvino")

    work(traced(kind, 200))
    costs = {}
    for size in (2000, 20_000):
        model = traced(kind, size)
        begin = time.process_time()
        found = benchmark.pedantic(work, (model,), rounds=1) if size == 20_000 else work(model)
        costs[size] = (time.process_time() - begin) / size
        assert 0.9 * size < sum(region["operators"] for region in found.regions) < 1.1 * size
    ratio = costs[20_000] / costs[2000]
    benchmark.extra_info.update(kind=kind, level=level, explain_seconds=costs[20_000] * 20_000, explain_ratio=ratio)
    assert ratio <= LARGEST_RATIO
    assert costs[20_000] * 20_000 < LONGEST_SECONDS

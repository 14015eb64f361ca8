"""A zoo of models that half precision is a trap for: each is within the tolerance with only the guilty operators in float32, or refused.

Every model is a small network, most of whose arithmetic is harmless, around one thing that goes wrong in half precision.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import tiacc
from tests.helpers import use_however_fast
from tiacc import environment, measure
from tiacc.backends import base
from tiacc.options import DEFAULT_TOLERANCE

WIDTH = 96


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    use_however_fast(monkeypatch)
    monkeypatch.setattr("tiacc.measure.MIN_CALLS", 1)


@pytest.fixture(autouse=True)
def _one_thread():
    with measure.threads(1):
        yield


def body(layers: int = 4, width: int = WIDTH) -> nn.Sequential:
    return nn.Sequential(*(layer for _ in range(layers) for layer in (nn.Linear(width, width), nn.ReLU())))


class Trap(nn.Module):
    """Harmless layers, the trap, harmless layers."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = body(), body()
        for module in (*self.before, *self.after):
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=(2 / WIDTH) ** 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.trap(self.before(x)))

    def trap(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class HugeLogits(Trap):
    """Logits beyond 65504 before a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Linear(WIDTH, WIDTH)

    def trap(self, x):
        logits = self.logits(x * 1e3) * 1e4
        return torch.softmax(logits / 1e5, -1) * 10


class VarianceOfNearlyEqual(Trap):
    """The variance of large numbers that differ little, as E[x²] - E[x]²."""

    def trap(self, x):
        y = x + 10.0
        variance = (y * y).mean(-1, keepdim=True) - y.mean(-1, keepdim=True) ** 2
        return x / torch.sqrt(variance.clamp(min=1e-3))


class Masked(Trap):
    """Attention with a mask of -1e9, which float16 has not."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.register_buffer("mask", torch.triu(torch.full((8, 8), -1e9), 1))

    def trap(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return torch.softmax(q @ k.transpose(-1, -2) / WIDTH**0.5 + self.mask, -1) @ v


class LargeActivations(Trap):
    """A LayerNorm over activations a hundred thousand times as large as usual."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def trap(self, x):
        return self.norm(self.large(x * 1e3) * 1e3)


class LongSum(Trap):
    """A cumulative sum over 1e5 elements."""

    def trap(self, x):
        steps = x.abs().mean() * torch.ones(100_000)
        return x + torch.cumsum(steps, 0)[-1] * 1e-5


class FocalHead(Trap):
    """A head whose sigmoids are near 1, and the logarithm of what they lack of it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, WIDTH)

    def trap(self, x):
        p = torch.sigmoid(self.head(x) + 6.0)
        return -((1 - p) ** 2) * torch.log(p) * 1e5 + torch.log1p(-p * 0.9999)


class TinyWeights(Trap):
    """Weights of 1e-8, all of them lost in float16, and a factor that makes up for it."""

    def __init__(self) -> None:
        super().__init__()
        self.tiny = nn.Linear(WIDTH, WIDTH, bias=False)
        self.tiny.weight.data *= 1e-7

    def trap(self, x):
        return self.tiny(x) * 1e7


class UnscaledAttention(Trap):
    """Attention without the scale: large dot products, of which the softmax takes differences."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def trap(self, x):
        q, k, v = self.qkv(x * 4).chunk(3, -1)
        return torch.softmax(q @ k.transpose(-1, -2) * 3, -1) @ v


class IndexThroughFloats(Trap):
    """Integers that are computed with as floats, and index a table."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(5000, WIDTH))
        self.register_buffer("places", torch.arange(8, dtype=torch.float32) * 517 + 3)

    def trap(self, x):
        index = (self.places * 1.0 + 2.0).long()
        return x + self.table[index]


class ManyScales(nn.Module):
    """Outputs of very different scale, a small one among them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = body(8)
        self.heads = nn.ModuleList([nn.Linear(WIDTH, 4) for _ in range(3)])

    def forward(self, x):
        y = self.body(x)
        return self.heads[0](y) * 1e6, self.heads[1](y), self.heads[2](y) * 1e-6


class Recurrent(nn.Module):
    """An LSTM over 500 steps."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class NotANumber(Trap):
    """A model that gives NaN for some inputs in float32 already."""

    def trap(self, x):
        mean = x.mean(-1, keepdim=True)
        return x + torch.log((mean > mean.mean()).float() - 0.5)


LOCAL = {
    trap.__name__: trap
    for trap in (
        HugeLogits,
        VarianceOfNearlyEqual,
        Masked,
        LargeActivations,
        LongSum,
        FocalHead,
        TinyWeights,
        UnscaledAttention,
        IndexThroughFloats,
        NotANumber,
    )
}


def optimize(model: nn.Module, x: torch.Tensor, half: torch.dtype, backend: str = "reference", **options: Any) -> tuple[Any, Any, Any]:
    traced = torch.jit.trace(model.eval(), x, check_trace=False)
    shape = "*".join(map(str, x.shape))
    settings = {"backend": backend, "timing_seconds": 0.05, "accuracy_budget_seconds": 20, **options}
    output_model, report = tiacc.optimize(traced, 1, 1, [shape], [(x,)], half_dtype=half, **settings)
    return output_model, report, traced


def assert_right_or_refused(output_model: Any, report: Any, model: Any, x: torch.Tensor, half: torch.dtype) -> None:
    tolerance = DEFAULT_TOLERANCE[str(half).removeprefix("torch.")]
    if report.achieved_level == 0:
        assert any(action.startswith("half precision") for action in report.actions)
        tolerance = DEFAULT_TOLERANCE["float32"]
    assert report.tolerance == tolerance
    with torch.no_grad():
        for item in (x, x.flip(-1)):
            # The second input is fresh: a repair leaves a margin for such.
            allowed = tolerance * (1 if item is x else 1.5)
            assert measure.largest(measure.compare(model(item), output_model(item))) <= allowed, report.actions


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", list(LOCAL))
def test_a_local_trap_costs_only_the_guilty_operators(name: str, half: torch.dtype) -> None:
    torch.manual_seed(len(name))
    model, x = LOCAL[name](), torch.randn(8, WIDTH)
    output_model, report, traced = optimize(model, x, half)
    assert_right_or_refused(output_model, report, traced, x, half)
    assert report.achieved_level == 1, report.actions
    assert report.precision.flops >= FLOPS_IN_HALF.get((name, half), 0.9), report.precision


FLOPS_IN_HALF: dict[tuple[str, torch.dtype], float] = {
    # The trap itself is a tenth of the small network.
    ("TinyWeights", torch.float16): 0.85,
    # Not local: what is large amplifies the rounding of every layer before it, and some of these have to be exact.
    ("HugeLogits", torch.bfloat16): 0.3,
    ("UnscaledAttention", torch.bfloat16): 0.3,
}
"""The least part of the arithmetic in half precision, where that is not nine tenths."""


ENGINE = pytest.mark.skipif(
    not (environment.cpu_has_bf16() and base.backends.get("openvino")().available()), reason="no engine here computes in bfloat16"
)


@ENGINE
@pytest.mark.parametrize("name", list(LOCAL))
def test_a_local_trap_in_an_engine_that_computes_in_bfloat16(name: str) -> None:
    """The same assignment, computed by OpenVINO: the engine itself says what it computes in which type."""
    torch.manual_seed(len(name))
    model, x = LOCAL[name](), torch.randn(8, WIDTH)
    output_model, report, traced = optimize(model, x, torch.bfloat16, "openvino")
    assert_right_or_refused(output_model, report, traced, x, torch.bfloat16)
    assert report.achieved_level == 1, report.actions
    assert report.precision.flops >= FLOPS_IN_HALF.get((name, torch.bfloat16), 0.9), report.precision
    if name == "NotANumber":  # OpenVINO loses a NaN, which is found
        assert not report.segments and any("left in Torch" in action for action in report.actions)
    else:
        (segment,) = report.segments
        assert segment.precisions["bf16"] >= 3


@ENGINE
@pytest.mark.parametrize("name", ["ManyScales", "Recurrent"])
def test_other_traps_in_an_engine_that_computes_in_bfloat16(name: str) -> None:
    torch.manual_seed(0)
    model, x = {"ManyScales": (ManyScales, (8, WIDTH)), "Recurrent": (Recurrent, (1, 500, 8))}[name]
    x = torch.randn(x)
    output_model, report, traced = optimize(model(), x, torch.bfloat16, "openvino")
    assert_right_or_refused(output_model, report, traced, x, torch.bfloat16)
    assert all(error.rel_norm <= report.tolerance for error in report.outputs)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_outputs_of_very_different_scale_are_each_within_the_tolerance(half: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, WIDTH)
    output_model, report, traced = optimize(ManyScales(), x, half)
    assert_right_or_refused(output_model, report, traced, x, half)
    assert len(report.outputs) == 3 and all(error.rel_norm <= report.tolerance for error in report.outputs)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_a_long_recurrence_is_right_or_refused(half: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 500, 8)
    output_model, report, traced = optimize(Recurrent(), x, half)
    assert_right_or_refused(output_model, report, traced, x, half)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_the_traps_bite(half: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the guard some of these models would be wrong: the zoo is worth having."""
    monkeypatch.setattr("tiacc.mending.mended", lambda job, trial, file: trial)
    monkeypatch.setattr("tiacc.ranges.beyond_half", lambda *_: {})
    wrong = 0
    for name in ("HugeLogits", "VarianceOfNearlyEqual", "FocalHead"):
        torch.manual_seed(len(name))
        _, report, _ = optimize(LOCAL[name](), torch.randn(8, WIDTH), half)
        wrong += report.achieved_level == 0
    assert wrong == 3

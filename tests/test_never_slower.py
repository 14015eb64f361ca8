"""Models that cannot be made faster: what is returned is no slower by the report's own measurement, and the report says why."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tiacc
from tiacc import measure
from tiacc.job import LEAST_GAIN


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


MODELS = {
    "a tiny network": (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), "1*4"),
    "one small layer": (nn.Linear(8, 8), "1*8"),
    "one element-wise operator": (nn.ReLU(), "64*64"),
    "the identity": (nn.Identity(), "16*16"),
    "a copy": (Function(torch.clone), "256*256"),
    "a view": (Function(lambda x: x.view(-1)), "16*16"),
    "a transposition and a copy": (Function(lambda x: x.t().contiguous()), "128*128"),
    "a sum": (Function(lambda x: x.sum(-1)), "64*64"),
    "one product of matrices": (Function(lambda x: x @ x), "64*64"),
    "a sort": (Function(lambda x: x.sort(-1)[0]), "32*64"),
}
"""The benchmark of the same name holds them to 0.98 of the input model's speed."""


@pytest.mark.parametrize("name", list(MODELS))
def test_what_cannot_be_faster_is_kept_and_told(name: str) -> None:
    torch.manual_seed(0)
    module, shape = MODELS[name]
    x = torch.randn([int(size) for size in shape.split("*")])
    model = torch.jit.trace(module.eval(), x)
    with measure.threads(1):
        output_model, report = tiacc.optimize(model, 0, 1, [shape], timing_seconds=0.05)
    if report.segments or report.passes:
        assert report.speedup >= LEAST_GAIN
    else:
        assert report.optimization_result.speedup == "1.00"
        *reasons, last = report.actions
        assert "kept as it is: speed-up 1.00" in last
        expected = ("it leaves the model as it is",) if name == "the identity" else ("ms against", "given up")
        assert reasons and all(any(words in reason for words in expected) for reason in reasons), report.actions
        assert name == "the identity" or "ms against" in " ".join(reasons), report.actions
    with torch.no_grad():
        assert measure.largest(measure.compare(model(x), output_model(x))) <= 1e-5

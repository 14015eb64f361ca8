"""An operator that another package defines is taught to TensorRT by that package, with the decorator that tiacc's own converters use."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tiacc
from tests.backends.tensorrt.harness import needs_rtx
from tests.helpers import forget_teaching_later
from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.backends.tensorrt.converters import FLOATS, converts
from tiacc.backends.tensorrt.shaping import Value

LIBRARY = torch.library.Library("outside", "DEF")
"""``outside::soft_clip(x, limit)``: limit · tanh(x / limit)."""

LIBRARY.define("soft_clip(Tensor x, float limit) -> Tensor")
LIBRARY.impl("soft_clip", lambda x, limit: limit * torch.tanh(x / limit), "CompositeExplicitAutograd")
torch.library.register_fake("outside::soft_clip", lambda x, limit: torch.empty_like(x), lib=LIBRARY)


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> torch._ops.OpOverload:
    """Return the operator; what is taught of it is forgotten after the test."""
    forget_teaching_later(monkeypatch)
    return torch.ops.outside.soft_clip.default


def model_of(limit: float) -> torch.jit.ScriptModule:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.outside.soft_clip(self.layer(x), limit)

    return torch.jit.trace(Net().eval(), torch.randn(2, 8))


def teach(operator: torch._ops.OpOverload) -> None:
    def is_positive(view: NodeView) -> Support:
        return SUPPORTED if view.value("limit") > 0 else Support(False, f"the limit {view.value('limit')} is not positive")

    @converts(operator, check=is_positive, dtypes=FLOATS)
    def soft_clip(call: Call) -> Value:
        limit = float(call.number("limit"))
        return call.net.activation("SCALED_TANH", call.tensor("x"), alpha=limit, beta=1 / limit)


@needs_rtx
@pytest.mark.parametrize("level", [0, 1])
def test_a_converter_from_outside_builds_engines(operator: torch._ops.OpOverload, level: int) -> None:
    model = model_of(2.0)
    fields = {"backend": "tensorrt_rtx", "device_type": "cuda"}
    before = tiacc.explain(model, ["2*8"], **fields)
    assert [refusal.reason for refusal in before.refusals] == ["tensorrt_rtx: no converter for outside.soft_clip.default"]
    teach(operator)
    _, report = tiacc.optimize(model, level, input_shapes=["2*8"], target=["sm86"], check_network=True, **fields)
    assert len(report.segments) == 1 and not report.fallbacks
    assert report.outputs[0].rel_norm <= (1e-5 if level == 0 else 5e-3)


@needs_rtx
def test_its_check_refuses_with_its_reason(operator: torch._ops.OpOverload) -> None:
    teach(operator)
    explained = tiacc.explain(model_of(-1.0), ["2*8"], backend="tensorrt_rtx", device_type="cuda")
    assert [refusal.reason for refusal in explained.refusals] == ["tensorrt_rtx: the limit -1.0 is not positive"]

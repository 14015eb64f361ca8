from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import tiacc
from tests.helpers import assert_values_hold, copy_of, run, use_however_fast
from tiacc import measure, samples
from tiacc.backends import base
from tiacc.compiler import propose
from tiacc.options import Options
from tiacc.passes.expand_attention import ATTENTION, LAYER, ExpandAttention
from tiacc.planning import plan_of


class Attends(nn.Module):
    def __init__(self, need_weights: bool = False, other: bool = False, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True, bias=bias)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.2)
        self.need_weights, self.other = need_weights, other

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result, weights = self.attention(x, x * 2 if self.other else x, x, need_weights=self.need_weights)
        return (result, weights) if self.need_weights else (result + x,)


def layer(**options) -> nn.Module:
    torch.manual_seed(1)
    made = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, **options)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made


def traced(model: nn.Module, x: torch.Tensor) -> torch.jit.ScriptModule:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(model.eval(), x, check_trace=False)


def graph_of(model: nn.Module, x: torch.Tensor, shapes=None):
    """Return the graph of a traced model before any pass."""
    shapes = shapes or ["*".join(map(str, x.shape))]
    inputs = samples.resolve_inputs(shapes, None, 0)
    module = traced(model, x)
    plan = plan_of(module, inputs, 0, torch.device("cpu"), Options(passes="eliminate-dead-code"), (base.require("reference"),))
    (region,) = propose(module, plan).regions
    return region.graph


MODELS = {
    "attention": (lambda: Attends(), ATTENTION),
    "layer, normalised after": (lambda: layer(activation="relu"), LAYER),
    "layer, normalised before, gelu": (lambda: layer(activation="gelu", norm_first=True), LAYER),
}


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("shapes", [None, [{"range": ["1*3*32", "2*7*32", "4*9*32"]}]], ids=["fixed", "varying"])
def test_layers_are_expanded(name: str, shapes) -> None:
    make, target = MODELS[name]
    x = torch.randn(2, 7, 32)
    gm = graph_of(make(), x, shapes)
    assert len(gm.graph.find_nodes(op="call_function", target=target)) == 1
    before = copy_of(gm)
    assert ExpandAttention()(gm).changes == 1
    assert not gm.graph.find_nodes(op="call_function", target=target)
    assert len(gm.graph.find_nodes(op="call_function", target=torch.ops.aten.scaled_dot_product_attention.default)) == 1
    for got, wanted in zip(run(gm, [x]), run(before, [x]), strict=True):
        assert got.shape == wanted.shape and measure.largest(measure.compare(wanted, got)) < 1e-6
    assert_values_hold(gm, [x])
    assert ExpandAttention()(gm).changes == 0


@pytest.mark.parametrize("model", [Attends(need_weights=True), Attends(other=True)], ids=["weights are read", "of another tensor"])
def test_others_are_left(model: nn.Module) -> None:
    gm = graph_of(model, torch.randn(2, 7, 32))
    assert ExpandAttention()(gm).changes == 0


@pytest.mark.skipif(not base.backends.get("openvino")().available(), reason="OpenVINO is not installed")
def test_a_transformer_is_one_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    use_however_fast(monkeypatch)
    model = traced(nn.Sequential(layer(), layer(norm_first=True), Attends(), nn.Identity()), torch.randn(2, 7, 32))
    _, report = tiacc.optimize(model, 0, 1, [{"range": ["1*3*32", "2*7*32", "4*9*32"]}], timing_seconds=0.05)
    assert len(report.segments) == 1 and not report.fallbacks, report

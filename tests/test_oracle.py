"""A model's own graph in place of engines."""

from __future__ import annotations

import torch
from torch import nn

from tiacc import samples
from tiacc.backends import base
from tiacc.options import Options
from tiacc.oracle import Oracle
from tiacc.planning import plan_of


class WritesLater(nn.Module):
    """What the first region reads is written into behind it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.layer(x))
        x.mul_(1000)
        return y + x


def test_what_a_region_was_given_is_not_what_is_written_there_later() -> None:
    x = torch.randn(3, 4)
    model = torch.jit.script(WritesLater().eval())
    inputs = samples.resolve_inputs(None, [(x,)], 0)
    settings = Options.from_fields(None, half_dtype=torch.bfloat16)
    oracle = Oracle(model, plan_of(model, inputs, 1, torch.device("cpu"), settings, (base.require("reference"),)))
    oracle.use({})
    with torch.no_grad():
        wanted = model(x.clone())
        assert torch.equal(oracle.run((x,)), wanted)
    first = next(region for region in oracle.regions if any("linear" in node.name for node in region.graph.graph.nodes))
    assert any(torch.equal(tensor, x) for tensor in first.engine.seen)

"""What `explain` says of borders, of what was seen, and of what was assumed."""

from __future__ import annotations

import json

import torch
from torch import nn

import tiacc


class Picked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x, items: list[torch.Tensor], mask: torch.Tensor | None = None):
        y = x + items[0] - items[1]
        if mask is not None:
            y = y * mask
        rows = y[y[:, 0] > 0]
        return self.second(torch.relu(self.first(rows)))


def test_an_explanation_tells_bytes_at_borders_types_that_were_seen_and_forms_that_are_assumed() -> None:
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    scripted = torch.jit.script(Picked().eval())
    found = tiacc.explain(scripted, device_type="cpu", test_data=[(x, [x * 2, x * 0.5], x.abs())], backend="reference")
    first, *_, last = found.segments
    assert first.border_bytes == 4 * 9 * 6 * 4 + 9 * 6 * 4 + 9  # x, two items and the mask; the product, and which rows
    assert found.border_bytes == sum(segment.border_bytes for segment in found.segments)
    assert [region["relies_on_seen_types"] for region in found.regions] == [False, True]
    assert last.nodes == 3
    text = str(found)
    assert f"{found.border_bytes:,} bytes cross their borders" in text
    assert "by types that were seen on the test data" in text
    assert "items=a list of 2" in text and "mask=a tensor" in text
    told = json.loads(found.to_json())
    assert told["assumed"] == {"items": "a list of 2", "mask": "a tensor"}


def test_an_explanation_tells_what_would_be_half_precision_and_why_not_more() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), nn.LogSoftmax(-1)).eval()
    model = torch.jit.trace(net, torch.randn(2, 8))
    found = tiacc.explain(model, ["2*8"], optimization_level=1, keep_fp32=["0"], backend="reference")
    assert found.precision is not None and found.precision.half_dtype == "bfloat16"
    assert 0.4 < found.precision.flops < 0.5
    assert {row.reason for row in found.precision.kept if "linear" in row.op} == {"keep_fp32='0'"}
    text = str(found)
    assert "bfloat16: 25% of the operators and 47.1% of the arithmetic" in text
    assert "1 \N{MULTIPLICATION SIGN} aten.log_softmax.int in float32: exponentials" in text
    assert tiacc.explain(model, ["2*8"], backend="reference").precision is None
    assert json.loads(found.to_json())["precision"]["half_dtype"] == "bfloat16"

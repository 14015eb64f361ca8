"""The values that a model computes on the test data, and those that float16 cannot hold: their operators stay in float32 from the start.

float16 ends at 65504, and below 6e-5 it loses digits. bfloat16 has the range of float32, and needs none of this. One run in float32 is all
it takes; what is wrong for other reasons than the range is left to the repair (`tiacc.repair`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from tiacc.compiler import Plan
from tiacc.graph import specs
from tiacc.oracle import Oracle


def beyond_half(model: torch.jit.ScriptModule, plan: Plan, data: Sequence[Any]) -> dict[int, dict[str, str]]:
    """Return the operators whose values half precision cannot hold, and why, by the index of the region and the name of the node.

    Args:
        model: The model.
        plan: What is to be done with it; its `cast-half` says what would be half precision.
        data: The test data.

    Raises:
        TiaccError: The plan casts nothing, or the model cannot be imported.
    """
    oracle = Oracle(model, plan)
    half = oracle.cast.dtype
    largest: dict[int, dict[str, float]] = {region.index: {} for region in oracle.regions}
    oracle.use({})
    for item in data:
        oracle.run(item)
        for region in oracle.regions:
            with torch.no_grad():
                _Observer(region.graph, largest[region.index]).run(*region.engine.seen)
    found: dict[int, dict[str, str]] = {}
    for region in oracle.regions:
        in_half = {node.name for node in oracle.half(region, {}).graph.nodes if specs.is_tensor(node) and node.meta["val"].dtype == half}
        for name, value in largest[region.index].items():
            reason = _misfit(value, half) if name in in_half else ""
            if reason:
                found.setdefault(region.index, {})[name] = reason
    return found


def _misfit(largest: float, half: torch.dtype) -> str:
    limits, name = torch.finfo(half), str(half).removeprefix("torch.")
    if largest > limits.max:
        return f"its values reach {largest:.2g}, beyond {name}"
    if 0 < largest < limits.smallest_normal:
        return f"its values, {largest:.2g} at most, are lost in {name}"
    return ""


class _Observer(fx.Interpreter):
    """Runs a graph and notes the largest magnitude of the finite values of each floating-point result."""

    def __init__(self, gm: fx.GraphModule, largest: dict[str, float]) -> None:
        super().__init__(gm)
        self._largest = largest

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and note what it gives."""
        value = super().run_node(n)
        if n.op == "call_function" and isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
            magnitude = torch.where(value.isfinite(), value.abs(), 0).max()
            self._largest[n.name] = max(self._largest.get(n.name, 0.0), float(magnitude))
        return value

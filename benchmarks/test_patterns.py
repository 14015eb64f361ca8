"""The search for patterns grows with the nodes, not with their square, and is done once for all rules: they are found by operator."""

from __future__ import annotations

import time

import pytest
import torch
from torch import fx

from tiacc.graph import specs
from tiacc.graph.types import TensorSpec
from tiacc.passes import RewriteRule, RuleSet

aten = torch.ops.aten

LARGEST_RATIO = 2.0
"""The most that a node of 20,000 may cost, against one of 2,000."""

SILU = RewriteRule("fuse-silu", lambda x: x * aten.sigmoid(x), lambda x: aten.silu(x))


def absent(index: int) -> RewriteRule:
    """Return a rule that nearly fits at every sigmoid: its factor is not there."""
    return RewriteRule(f"absent-{index}", lambda x: aten.sigmoid(x * (index + 0.5)), lambda x: aten.tanh(x))


def gates(size: int) -> fx.GraphModule:
    """A chain of x * sigmoid(x), with an absolute value between, of so many nodes."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    while len(graph.nodes) < size:
        x = graph.call_function(aten.mul.Tensor, (x, graph.call_function(aten.sigmoid.default, (x,))))
        x = graph.call_function(aten.abs.default, (x,))
    graph.output((x,))
    return specs.propagate(fx.GraphModule(torch.nn.Module(), graph), [TensorSpec((4,), torch.float32)])


@pytest.mark.parametrize("rules", [1, 50])
def test_search(benchmark, rules: int) -> None:
    """A third of the nodes are found and rewritten, by the last of the rules."""
    pass_ = RuleSet("rules", (*map(absent, range(rules - 1)), SILU)).pass_class()
    costs = {}
    for size in (2000, 20_000):
        gm = gates(size)
        begin = time.process_time()
        changes = (benchmark.pedantic(pass_, (gm,), rounds=1) if size == 20_000 else pass_(gm)).changes
        costs[size] = (time.process_time() - begin) / size * 1e6
        assert changes == sum(node.target is aten.silu.default for node in gm.graph.nodes) >= size // 3 - 1
    benchmark.extra_info.update(rules=rules, search_us_per_node={str(size): cost for size, cost in costs.items()})
    assert costs[20_000] <= LARGEST_RATIO * costs[2000]

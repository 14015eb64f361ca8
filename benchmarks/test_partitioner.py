"""The partitioner's work grows with the nodes, not with their square."""

from __future__ import annotations

import random
import time

import pytest
import torch
from torch import fx

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.partitioner import partition
from tiacc.backends.reference import ReferenceBackend

aten = torch.ops.aten


class Picky(ReferenceBackend):
    """Supports nine nodes in ten."""

    def supports(self, node: fx.Node) -> Support:
        return SUPPORTED if hash(node.name) % 10 else Support(False, "by chance")


def chain(size: int) -> fx.GraphModule:
    """A graph of element-wise operators, each reading one of the last eight values or two."""
    rng = random.Random(size)
    graph = fx.Graph()
    value = torch.empty(1)
    nodes = [graph.placeholder("x")]
    nodes[0].meta["val"] = value
    for _ in range(size):
        first, second = rng.choice(nodes[-8:]), rng.choice(nodes[-8:])
        target, args = (aten.add.Tensor, (first, second)) if rng.random() < 0.4 else (aten.tanh.default, (first,))
        nodes.append(graph.call_function(target, args))
        nodes[-1].meta["val"] = value
    graph.output((nodes[-1],))
    return fx.GraphModule(torch.nn.Module(), graph)


@pytest.mark.parametrize("size", [500, 2000, 5000, 10_000, 20_000])
def test_partition(benchmark, size: int) -> None:
    gm = chain(size)
    backend = Picky()
    proposal = benchmark.pedantic(partition, (gm, [backend]), rounds=3, warmup_rounds=1)
    benchmark.extra_info["microseconds_per_node"] = benchmark.stats.stats.min / size * 1e6
    benchmark.extra_info["segments"] = len(proposal.segments)


def test_time_per_node_stays(benchmark) -> None:
    """A graph ten times as large takes at most 2.5 times as long per node."""
    times = {}
    for size in (2000, 20_000):
        gm, backend = chain(size), Picky()
        begin = time.process_time()
        for _ in range(3):
            partition(gm, [backend])
        times[size] = (time.process_time() - begin) / 3 / size
    benchmark.extra_info["ratio_per_node"] = times[20_000] / times[2000]
    benchmark.pedantic(lambda: None, rounds=1)
    assert times[20_000] <= 2.5 * times[2000]

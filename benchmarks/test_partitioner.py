"""The partitioner's work grows with the nodes, not with their square, whatever the pattern of what a backend supports."""

from __future__ import annotations

import random
import time
import zlib

import pytest
import torch
from torch import fx

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.partitioner import partition
from tiacc.backends.reference import ReferenceBackend

aten = torch.ops.aten

PATTERNS = {
    "most": lambda name: zlib.crc32(name.encode()) % 10 != 0,
    "half": lambda name: zlib.crc32(name.encode()) % 2 != 0,
    "few": lambda name: zlib.crc32(name.encode()) % 10 == 0,
    "runs": lambda name: int("0" + name.rpartition("_")[2].strip("abcdefghijklmnopqrstuvwxyz")) // 100 % 2 == 0,
}
"""Which nodes a backend supports: nine in ten, every other, one in ten at random; or a hundred in a row and then a hundred not."""

LARGEST_RATIO = 2.0
"""The most that a node of 20,000 may cost, against one of 2,000."""


class Picky(ReferenceBackend):
    """Supports the nodes of a pattern; which ones depends on their names alone, and is the same in every process."""

    def __init__(self, pattern: str = "most") -> None:
        self.takes = PATTERNS[pattern]

    def supports(self, node: fx.Node) -> Support:
        return SUPPORTED if self.takes(node.name) else Support(False, "by chance")


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
@pytest.mark.parametrize("pattern", list(PATTERNS))
def test_partition(benchmark, pattern: str, size: int) -> None:
    gm, backend = chain(size), Picky(pattern)
    proposal = benchmark.pedantic(partition, (gm, [backend]), rounds=3, warmup_rounds=1)
    assert proposal.segments and proposal.rejections
    benchmark.extra_info["pattern"], benchmark.extra_info["nodes"] = pattern, size
    benchmark.extra_info["microseconds_per_node"] = benchmark.stats.stats.min / size * 1e6
    benchmark.extra_info["segments"] = len(proposal.segments)


@pytest.mark.parametrize("pattern", list(PATTERNS))
def test_time_per_node_stays(benchmark, pattern: str) -> None:
    """The two sizes take turns, and the best CPU time of each counts: what else the machine does is left out."""
    cases = {size: (chain(size), Picky(pattern)) for size in (2000, 20_000)}
    best = dict.fromkeys(cases, float("inf"))
    for _ in range(5):
        for size, (gm, backend) in cases.items():
            begin = time.process_time()
            partition(gm, [backend])
            best[size] = min(best[size], (time.process_time() - begin) / size)
    ratio = best[20_000] / best[2000]
    benchmark.extra_info["pattern"], benchmark.extra_info["ratio_per_node"] = pattern, ratio
    gm, backend = cases[2000]
    benchmark.pedantic(partition, (gm, [backend]), rounds=1)
    assert ratio <= LARGEST_RATIO

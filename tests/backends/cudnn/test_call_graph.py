"""Whose memory a graph writes into: a stand-in for the driver launches it, and writes where the kernels point."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tiacc.backends.cudnn import call_graph, driver
from tiacc.backends.cudnn.call_graph import CallGraph
from tiacc.graph import torch_compat

CPU = torch.device("cpu")
SOURCES = {1000: 1.0, 2000: 2.0}
"""What the steps leave in two places."""


class Node:
    """A kernel that copies two values: arguments are where to, and where from, of each."""

    function = 5

    def __init__(self, arguments: list[int]) -> None:
        self.arguments = arguments
        self.effective = list(arguments)

    def update(self) -> None:
        self.effective = list(self.arguments)


class Graph:
    def __init__(self, node: Node, exits: Exits) -> None:
        self.node, self.exits = node, exits

    def replay(self) -> None:
        places = {tensor.data_ptr(): tensor for tensor in self.exits.all_made}
        for place in range(0, len(self.node.effective), 2):
            places[self.node.effective[place]].fill_(SOURCES[self.node.effective[place + 1]])


class Exits:
    """Two outputs by one kernel, and one by torch."""

    def __init__(self) -> None:
        self.size_bytes = 24
        self.all_made: list[torch.Tensor] = []
        storages = [SimpleNamespace(data_ptr=lambda place=place: place) for place in SOURCES]
        kernel = SimpleNamespace(function=Node.function, arguments=[0] * 4)
        launch = SimpleNamespace(call=SimpleNamespace(loaded=lambda: kernel))
        self.launches = [(launch, [(0, storages[0]), (2, storages[1])])]

    def make(self) -> list[torch.Tensor]:
        made = [torch.zeros(2) for _ in range(3)]
        self.all_made += made
        return made

    def launch(self, made: list[torch.Tensor], stream: int) -> None:
        """Nothing is recorded here: the stand-in knows what would be."""

    def copy(self, made: list[torch.Tensor]) -> None:
        made[1].fill_(3.0)


@pytest.fixture
def exits(monkeypatch) -> Exits:
    exits = Exits()

    def nodes(graph: Graph, functions: dict[int, int]) -> list[Node]:
        assert functions == {Node.function: 4}
        return [graph.node]

    def recorded(work, stream, *, keep: bool = False) -> Graph:
        work()
        first = exits.all_made
        return Graph(Node([first[0].data_ptr(), 1000, first[2].data_ptr(), 2000]), exits)

    monkeypatch.setattr(torch_compat, "recorded", recorded)
    monkeypatch.setattr(torch_compat, "current_stream", lambda index: 0)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(driver, "kernel_nodes", nodes)
    return exits


@pytest.mark.parametrize("spare_bytes", [24, 23])
def test_each_call_writes_into_tensors_of_its_own(exits, monkeypatch, spare_bytes: int) -> None:
    monkeypatch.setattr(call_graph, "SPARE_BYTES", spare_bytes)
    graph = CallGraph(lambda: None, exits, CPU, with_exits=True)
    results = []
    for _ in range(4):
        made = graph(0)
        assert [tensor.tolist() for tensor in made] == [[1.0, 1.0], [3.0, 3.0], [2.0, 2.0]]
        for tensor in made:
            tensor.fill_(-1.0)  # what the caller does with them is the caller's
        results.append(made)
    assert all((tensor == -1).all() for made in results for tensor in made)
    assert len({tensor.data_ptr() for made in results for tensor in made}) == 12
    assert len(exits.all_made) == 3 * (1 + 4 + (spare_bytes == 24))


def test_a_launch_alone_writes_into_nobodys_tensors(exits) -> None:
    graph = CallGraph(lambda: None, exits, CPU, with_exits=True)
    made = graph(0)
    for tensor in made:
        tensor.fill_(-1.0)
    graph.launch()
    assert all((tensor == -1).all() for tensor in made)


def test_a_kernel_that_is_not_in_the_graph(exits, monkeypatch) -> None:
    monkeypatch.setattr(driver, "kernel_nodes", lambda graph, functions: [Node([1, 2, 3, 4])])
    with pytest.raises(RuntimeError, match="not among the 1"):
        CallGraph(lambda: None, exits, CPU, with_exits=True)

"""Segments are convex and acyclic, every node is run once, every refusal has its reason."""

from __future__ import annotations

import operator
import random

import networkx as nx
import pytest
import torch
from torch import fx

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.cost import that_pay
from tiacc.backends.partitioner import Partition, Segment, partition, without
from tiacc.backends.reference import ReferenceBackend, run_graph
from tiacc.graph import specs
from tiacc.graph.specs import Dim, TensorSpec
from tiacc.runtime import stitch

aten = torch.ops.aten


class Picky(ReferenceBackend):
    """Supports the nodes whose names are in a set."""

    def __init__(self, name: str, names: set[str]) -> None:
        self.name = name
        self.names = names

    def supports(self, node: fx.Node) -> Support:
        return SUPPORTED if node.name in self.names else Support(False, f"{self.name} does not like {node.name}")


def random_graph(size: int, seed: int) -> fx.GraphModule:
    rng = random.Random(seed)
    graph = fx.Graph()
    nodes = [graph.placeholder("x"), graph.placeholder("y")]
    for _ in range(size):
        kind = rng.random()
        if kind < 0.3:
            nodes.append(graph.call_function(aten.add.Tensor, (rng.choice(nodes[-6:]), rng.choice(nodes))))
        elif kind < 0.5:
            parts = graph.call_function(aten.split.Tensor, (rng.choice(nodes[-6:]), 2, 1))
            picked = [graph.call_function(operator.getitem, (parts, i)) for i in (0, 1)]
            nodes.append(graph.call_function(aten.cat.default, (picked, 1)))
        elif kind < 0.6:
            rows = graph.call_function(aten.sym_size.int, (rng.choice(nodes[-6:]), 0))
            twice = graph.call_function(operator.mul, (rows, 2))
            half = graph.call_function(operator.floordiv, (twice, 2))
            nodes.append(graph.call_function(aten.view.default, (rng.choice(nodes[-6:]), [half, 4])))
        else:
            nodes.append(graph.call_function(rng.choice([aten.tanh.default, aten.sin.default]), (rng.choice(nodes[-6:]),)))
    graph.output(tuple(nodes[-3:]))
    gm = fx.GraphModule(torch.nn.Module(), graph)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return specs.propagate(gm, [TensorSpec((Dim("rows", 1, 3, 9), 4), torch.float32)] * 2)


def check(gm: fx.GraphModule, proposal: Partition) -> None:
    group: dict[fx.Node, int] = {}
    for number, item in enumerate(proposal.order):
        for node in item.nodes if isinstance(item, Segment) else (item,):
            assert node not in group, "a node is run once"
            group[node] = number
    assert set(group) == {node for node in gm.graph.nodes if node.op == "call_function"}
    quotient = nx.DiGraph()
    for node in group:
        for before in node.all_input_nodes:
            if before in group and group[before] != group[node] and not specs.is_scalar(node):
                quotient.add_edge(group[before], group[node])
                assert group[before] < group[node] or specs.is_scalar(before)
    assert nx.is_directed_acyclic_graph(quotient)


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs_give_convex_acyclic_segments_that_compute_the_same(seed: int) -> None:
    gm = random_graph(30 + seed, seed)
    rng = random.Random(seed)
    calls = [node.name for node in gm.graph.nodes if node.op == "call_function"]
    backends = [Picky("one", set(rng.sample(calls, len(calls) // 2))), Picky("two", set(rng.sample(calls, len(calls) // 2)))]
    proposal = partition(gm, backends)
    check(gm, proposal)
    inputs = [torch.randn(5, 4), torch.randn(5, 4)]
    expected = run_graph(gm, inputs)
    engines = {
        segment.index: stitch.StitchedEngine(sub, segment.backend, torch.zeros(1, dtype=torch.uint8), str(segment.index))
        for segment, sub in zip(proposal.segments, stitch.extract(gm, proposal))
    }
    stitched = stitch.stitch(gm, proposal, engines)
    actual = Runner(stitched, engines).run(*inputs)
    for one, other in zip(expected, actual, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0)


class Runner(fx.Interpreter):
    """Runs a stitched graph, computing each engine's subgraph in eager torch."""

    def __init__(self, gm: fx.GraphModule, engines: dict[int, stitch.StitchedEngine]) -> None:
        super().__init__(gm)
        self.engines = {engine.key: engine for engine in engines.values()}

    def call_function(self, target, args, kwargs):
        if target is torch.ops.tiacc.run_engine.default:
            inputs, _, backend, key = args
            assert backend == self.engines[key].backend
            return run_graph(self.engines[key].subgraph.graph, inputs)
        return super().call_function(target, args, kwargs)


def test_priority_and_reasons() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    a = graph.call_function(aten.sin.default, (x,))
    b = graph.call_function(aten.cos.default, (a,))
    b.meta["source"] = "model.py:7"
    c = graph.call_function(aten.tan.default, (b,))
    graph.output((c,))
    gm = specs.propagate(fx.GraphModule(torch.nn.Module(), graph), [TensorSpec((2,), torch.float32)])
    proposal = partition(gm, [Picky("one", {a.name}), Picky("two", {a.name, c.name})])
    assert [(segment.backend, segment.nodes) for segment in proposal.segments] == [("one", (a,)), ("two", (c,))]
    (rejection,) = proposal.rejections
    assert rejection.node is b and rejection.source == "model.py:7"
    assert rejection.reasons == {"one": f"one does not like {b.name}", "two": f"two does not like {b.name}"}


def test_an_unsupported_node_that_waits_for_nothing_splits_no_segment() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    a = graph.call_function(aten.sin.default, (x,))
    b = graph.call_function(aten.cos.default, (a,))
    alone = graph.call_function(aten.tan.default, (x,))
    c = graph.call_function(aten.exp.default, (alone,))
    graph.output((graph.call_function(aten.add.Tensor, (b, c)),))
    gm = specs.propagate(fx.GraphModule(torch.nn.Module(), graph), [TensorSpec((2,), torch.float32)])
    names = {node.name for node in gm.graph.nodes if node.op == "call_function"} - {alone.name}
    proposal = partition(gm, [Picky("one", names)])
    assert len(proposal.segments) == 1 and len(proposal.segments[0].nodes) == 4


def test_small_segments_stay_in_torch_and_say_so() -> None:
    gm = random_graph(20, 3)
    calls = [node.name for node in gm.graph.nodes if node.op == "call_function" and not specs.is_scalar(node)]
    proposal = partition(gm, [Picky("one", set(calls[::2]))], min_segment_nodes=10**6)
    assert not proposal.segments
    kept = [rejection for rejection in proposal.rejections if "fewer than" in rejection.reasons.get("one", "")]
    assert {rejection.node.name for rejection in kept} == {name for name in calls[::2] if not name.startswith("getitem")}


def test_a_number_that_is_an_input_of_the_graph_keeps_its_users_out_of_engines() -> None:
    graph = fx.Graph()
    x, rows = graph.placeholder("x"), graph.placeholder("rows")
    y = graph.call_function(aten.view.default, (x, [rows, -1]))
    graph.output((y,))
    gm = specs.propagate(fx.GraphModule(torch.nn.Module(), graph), [TensorSpec((4, 3), torch.float32), 2])
    proposal = partition(gm, [ReferenceBackend()])
    assert not proposal.segments
    assert "rows" in proposal.rejections[0].reasons["reference"]


def test_what_is_left_of_a_segment_computes_the_sizes_that_it_needs() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(aten.exp.default, (x,))
    rows = graph.call_function(operator.mul, (graph.call_function(aten.sym_size.int, (y, 0)), 2))
    graph.output((graph.call_function(aten.relu.default, (graph.call_function(aten.reshape.default, (y, [rows, 2])),)),))
    gm = specs.propagate(fx.GraphModule(torch.nn.Module(), graph), [TensorSpec((Dim("rows", 1, 3, 9), 4), torch.float32)])
    proposal = partition(gm, [ReferenceBackend()])
    assert len(proposal.segments) == 1
    x = torch.randn(5, 4)
    for changed in (proposal, without(proposal, {0: "a test"}), partition(gm, [ReferenceBackend()], min_segment_nodes=10)):
        assert torch.equal(stitch.stitch(gm, changed, {})(x)[0], x.exp().relu().reshape(10, 2))


def test_numbers_that_are_made_of_each_other_are_looked_at_once() -> None:
    """Each is the sum of the two before it: there are more ways through them than there is time."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    one = two = graph.call_function(aten.sym_size.int, (x, 0))
    for _ in range(60):
        one, two = two, graph.call_function(operator.add, (one, two))
    rest = graph.call_function(operator.mod, (two, 7))
    graph.output((graph.call_function(aten.add.Scalar, (x, rest)),))
    gm = specs.propagate(fx.GraphModule(torch.nn.Module(), graph), [TensorSpec((4,), torch.float32)])
    assert len(partition(gm, [ReferenceBackend()]).segments) == 1


class Dear(Picky):
    """Its engines cost 20 µs a call."""

    call_us = 20.0


def handful_beside_products() -> fx.GraphModule:
    """A product of matrices, an operator that no backend takes, two small operators."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    product = graph.call_function(aten.mm.default, (x, x))
    turned = graph.call_function(aten.erfinv.default, (product,))
    graph.output((graph.call_function(aten.tanh.default, (graph.call_function(aten.slice.Tensor, (turned, 0, 0, 2)),)),))
    return specs.propagate(fx.GraphModule(torch.nn.Module(), graph), [TensorSpec((128, 128), torch.float32)])


def test_a_segment_that_takes_less_than_a_call_stays_in_torch_and_says_so() -> None:
    gm = handful_beside_products()
    backends = [Dear("dear", {"mm_default", "slice_tensor", "tanh_default"})]
    before = partition(gm, backends)
    assert len(before.segments) == 2
    (after,) = that_pay([before], backends)
    check(gm, after)
    assert [[node.name for node in segment.nodes] for segment in after.segments] == [["mm_default"]]
    left = {found.node.name: found.reasons["dear"] for found in after.rejections}
    assert list(left) == ["erfinv_default", "slice_tensor", "tanh_default"]
    assert "2 operators takes about 7 µs in Torch" in left["tanh_default"]
    x = torch.rand(128, 128) / 200
    assert torch.equal(stitch.stitch(gm, after, {})(x)[0], run_graph(gm, [x])[0])


def test_small_segments_stay_where_a_call_is_free_or_nothing_pays() -> None:
    gm = handful_beside_products()
    free = [Picky("free", {"mm_default", "slice_tensor", "tanh_default"})]
    assert len(that_pay([partition(gm, free)], free)[0].segments) == 2
    small = [Dear("dear", {"slice_tensor"}), Dear("other", {"erfinv_default"})]
    assert len(that_pay([partition(gm, small)], small)[0].segments) == 2

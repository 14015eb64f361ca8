"""One assignment of precision, computed by every backend: OpenVINO in bfloat16, TensorRT networks and cuDNN programs in float16."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import operator
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.backends.cudnn import programs
from tests.test_precision_traps import LOCAL, WIDTH
from tiacc import environment, measure, ranges, samples
from tiacc.backends import base
from tiacc.backends.base import BuildSpec
from tiacc.graph import specs
from tiacc.options import DEFAULT_TOLERANCE, Options
from tiacc.passes.assign_precision import KEEP, assign
from tiacc.passes.base import PassContext
from tiacc.planning import plan_of
from tiacc.repair import Repairer

CPU = torch.device("cpu")
AIM = {("UnscaledAttention", torch.float16): 0.25}
"""The part of the tolerance that a repair may use, as torch rounds, where it amplifies so much that others may be off three times that."""

HALVES = [torch.float16, torch.bfloat16]


class Case:
    """A model with a trap, what has to stay in float32 of it, and the graph that has the rest in half precision."""

    def __init__(self, name: str, half: torch.dtype) -> None:
        torch.manual_seed(len(name))
        model, self.x = LOCAL[name](), torch.randn(8, WIDTH)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(model.eval(), self.x, check_trace=False)
            self.reference = traced(self.x)
        self.half, self.tolerance = half, DEFAULT_TOLERANCE[str(half).removeprefix("torch.")]
        inputs = samples.resolve_inputs([f"8*{WIDTH}"], [(self.x,)], 0)
        plan = plan_of(traced, inputs, 1, CPU, Options(half_dtype=half), (base.require("reference"),))
        if half == torch.float16:
            plan = dataclasses.replace(plan, keep_fp32=ranges.beyond_half(traced, plan, [(self.x,)]))
        search = Repairer(traced, plan, [(self.x,)], [self.reference], measure.Judge())
        (region,) = search.oracle.regions
        aim = AIM.get((name, half), 0.7) * self.tolerance
        self.keep = search.improve(aim, aim, 20).keep.get(0, {})
        self.wide, self.graph = region.graph, search.oracle.half(region, self.keep)
        self.assignment = assign(specs.copied(self.wide), PassContext(CPU, data={KEEP: self.keep}), half)

    def spec(self, **options: Any) -> BuildSpec:
        inputs = [node for node in self.graph.graph.nodes if node.op == "placeholder"]
        types = [tuple(specs.spec_of(specs.tensor_of(node)) for node in part) for part in (inputs, self.graph.graph.output_node().args[0])]
        return BuildSpec(types[0], types[1], CPU, (), 1 << 30, options)

    def assert_right(self, outputs: Sequence[torch.Tensor]) -> None:
        error = measure.largest(measure.compare(self.reference, outputs[0]))
        assert error <= self.tolerance
        assert error > 0, "nothing was rounded"


case = functools.cache(Case)


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("name", list(LOCAL))
def test_the_graph_computes_in_what_is_assigned(name: str, half: torch.dtype) -> None:
    """Each operator reads and gives the type that it is assigned, the rest are casts; what is kept is what was found to need it."""
    found = case(name, half)
    assigned = {node.name: item for node, item in found.assignment.nodes.items()}
    for node in found.graph.graph.nodes:
        if node.name in assigned and specs.is_tensor(node) and specs.tensor_of(node).is_floating_point():
            given = specs.tensor_of(node).dtype
            assert given == assigned[node.name].value.dtype == assigned[node.name].dtype, node
    assert found.keep.keys() <= found.assignment.kept.keys()
    assert all(found.assignment.kept[node] == reason for node, reason in found.keep.items())
    wide = {node for node, item in found.assignment.nodes.items() if item.dtype == torch.float32} - found.assignment.free
    assert all(found.assignment.nodes[node].reason for node in wide if node.target is not operator.getitem)


@pytest.mark.parametrize("name", list(LOCAL))
def test_cudnn_programs_compute_it_in_float16(name: str) -> None:
    """The program of the cuDNN backend, each step computed by torch."""
    found = case(name, torch.float16)
    program = programs.planned(found.graph)
    found.assert_right(programs.run(program, [found.x]))


@pytest.mark.gpu
@pytest.mark.skipif(not base.backends.get("cudnn")().available(), reason="needs a GPU and cuDNN's frontend")
@pytest.mark.parametrize("name", list(LOCAL))
def test_cudnn_engines_compute_it_in_float16(name: str) -> None:
    """The kernels themselves, launched one by one, and as a graph."""
    found = case(name, torch.float16)
    spec = dataclasses.replace(found.spec(tuning_seconds=5.0), device=torch.device("cuda", torch.cuda.current_device()))
    engine = base.require("cudnn").build(found.graph, spec)
    for _ in range(3):
        found.assert_right([output.cpu() for output in engine.run([found.x.cuda()])])


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize("name", list(LOCAL))
def test_tensorrt_networks_compute_it_in_float16(name: str) -> None:
    """The strongly typed network, evaluated by the reference interpreter."""
    from tiacc.backends.tensorrt.interpreted import InterpretedEngine

    found = case(name, torch.float16)
    backend = base.backends.get("tensorrt_rtx")()
    engine = InterpretedEngine.of(backend, found.graph, found.spec(target=("sm86",)))
    found.assert_right(engine.run([found.x]))


@pytest.mark.skipif(
    not (environment.cpu_has_bf16() and base.backends.get("openvino")().available()), reason="no engine here computes in bfloat16"
)
@pytest.mark.parametrize("name", [name for name in LOCAL if name != "NotANumber"])  # OpenVINO loses a NaN, as the traps show
def test_openvino_engines_compute_it_in_bfloat16(name: str) -> None:
    found = case(name, torch.bfloat16)
    engine = base.require("openvino").build(found.graph, found.spec())
    found.assert_right(engine.run([found.x]))
    assert engine.precisions()["bf16"] >= 3

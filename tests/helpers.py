"""Graphs by hand, runs of them, and what they print: shared by the tests of the packages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import fx

from tiacc import operators
from tiacc.backends.tensorrt import converters
from tiacc.graph import specs
from tiacc.graph.specs import Dim, TensorSpec
from tiacc.registry import Registry


class Sketch:
    """A graph written down node by node::

    sketch = Sketch()
    x = sketch.input("x", 1, 3, Dim("h", 4, 8, 16), 8)
    w = sketch.constant("weight", torch.randn(4, 3, 1, 1))
    gm = sketch.output(sketch.call(aten.conv2d.default, x, w))
    """

    def __init__(self) -> None:
        self.root = torch.nn.Module()
        self.graph = fx.Graph(self.root)
        self.inputs: list[Any] = []

    def input(self, name: str, *shape: int | Dim, dtype: torch.dtype = torch.float32) -> fx.Node:
        self.inputs.append(TensorSpec(shape, dtype))
        return self.graph.placeholder(name)

    def constant(self, name: str, value: torch.Tensor) -> fx.Node:
        self.root.register_buffer(name, value)
        return self.graph.get_attr(name)

    def call(self, target: Any, *args: Any, source: str | None = None, **kwargs: Any) -> fx.Node:
        node = self.graph.call_function(target, args, kwargs)
        if source:
            node.meta["source"] = source
        return node

    def output(self, *nodes: fx.Node) -> fx.GraphModule:
        """Return the finished graph, every node with its value."""
        self.graph.output(nodes)
        return specs.propagate(fx.GraphModule(self.root, self.graph), self.inputs)


def placeholders(gm: fx.GraphModule) -> list[fx.Node]:
    return [node for node in gm.graph.nodes if node.op == "placeholder"]


def random_inputs(gm: fx.GraphModule, which: str = "opt", seed: int = 0) -> list[torch.Tensor]:
    """Return random tensors that fit the placeholders: normal floats, integers in 0..9, at the min, opt or max of each Dim."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for node in placeholders(gm):
        spec = specs.spec_of(specs.tensor_of(node))
        shape = spec.sizes(which)
        if spec.dtype.is_floating_point or spec.dtype.is_complex:
            made.append(torch.randn(shape, generator=generator, dtype=torch.float32).to(spec.dtype))
        else:
            made.append(torch.randint(0, 2 if spec.dtype == torch.bool else 10, shape, generator=generator).to(spec.dtype))
    return made


def run(gm: fx.GraphModule, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(gm(*inputs))


def copy_of(gm: fx.GraphModule) -> fx.GraphModule:
    """Return another graph over the same tensors, to compare with after `gm` has changed."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(gm.graph, {}))
    return fx.GraphModule(gm, graph)


def assert_same(
    actual: fx.GraphModule,
    expected: fx.GraphModule,
    *,
    which: Sequence[str] = ("opt",),
    rtol: float = 1e-5,
    atol: float = 1e-5,
    equal_nan: bool = False,
) -> None:
    """Assert that two graphs give the same shapes, dtypes and (nearly) the same numbers on random inputs."""
    for seed, sizes in enumerate(which):
        inputs = random_inputs(expected, sizes, seed)
        got, want = run(actual, inputs), run(expected, inputs)
        assert len(got) == len(want) > 0
        for a, b in zip(got, want):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            torch.testing.assert_close(a, b, rtol=rtol, atol=atol, equal_nan=equal_nan)


def assert_values_hold(gm: fx.GraphModule, inputs: Sequence[torch.Tensor] | None = None) -> None:
    """Assert that each ``meta["val"]`` has the dtype, rank and (where static) the sizes of what the node really computes."""

    class Check(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            fake = n.meta.get("val")
            if isinstance(value, torch.Tensor):
                assert isinstance(fake, torch.Tensor), n
                assert (fake.dtype, fake.device.type) == (value.dtype, value.device.type), n
                assert specs.spec_of(fake).admits(value.shape), (n, value.shape)
            return value

    with torch.no_grad():
        Check(gm).run(*(random_inputs(gm) if inputs is None else inputs))


def lines(gm: fx.GraphModule) -> list[str]:
    """Return the graph as text, one node a line: ``conv2d = aten.conv2d.default(x, weight)``; constants and inputs left out."""
    made = []
    for node in gm.graph.nodes:
        if node.op == "call_function":
            args = [str(arg) for arg in node.args] + [f"{key}={value}" for key, value in node.kwargs.items()]
            name = str(node.target) if isinstance(node.target, torch._ops.OpOverload) else node.target.__name__
            made.append(f"{node.name} = {name}({', '.join(args)})")
        elif node.op == "output":
            made.append(f"return {', '.join(map(str, node.args[0]))}")
    return made


def state_of(gm: fx.GraphModule) -> dict[str, torch.Tensor]:
    """Return copies of the constants, to compare with later."""
    return {name: tensor.clone() for name, tensor in [*gm.named_buffers(), *gm.named_parameters()]}


def assert_untouched(before: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> None:
    """Assert that tensors are bit for bit what `state_of` saw."""
    for name, was in before.items():
        assert torch.equal(bits(was), bits(tensors[name])), name


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor, so that NaN equals NaN and -0.0 differs from 0.0."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def forget_later(monkeypatch: pytest.MonkeyPatch, registry: Registry[Any]) -> None:
    """Have what is registered from now on forgotten at the end of the test; entry points are read before."""
    registry.names()
    monkeypatch.setattr(registry, "_items", dict(registry._items))


def forget_teaching_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what is said of operators from now on forgotten at the end of the test: converters for TensorRT, and what `teach` was told."""
    monkeypatch.setattr(converters, "_table", converters.all_converters())
    monkeypatch.setattr(operators, "_taught", dict(operators._taught))


def count_calls(work: Callable[[], Any]) -> int:
    """Return how many functions a piece of work calls: a measure of its cost that no clock is needed for."""
    count = 0

    def note(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def use_however_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have optimized models used, and their engines kept, whatever the clock says."""
    monkeypatch.setattr("tiacc.job.LEAST_GAIN", 0.0)
    monkeypatch.setattr("tiacc.costs.slow_segments", lambda *args: {})

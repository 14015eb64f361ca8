"""The graphs that a backend is tried on."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import fx

from tiacc.backends.base import BuildSpec, Profile
from tiacc.graph import specs
from tiacc.graph.types import Dim, TensorSpec

aten = torch.ops.aten


@dataclass(frozen=True)
class Example:
    """A graph to build and inputs to run it on.

    Attributes:
        name: What it stands for.
        graph: The graph; its placeholders have values.
    """

    name: str
    graph: fx.GraphModule

    def spec(self, device: torch.device) -> BuildSpec:
        """Return what to build it for: one profile, from the least to the greatest sizes."""
        placeholders = [node for node in self.graph.graph.nodes if node.op == "placeholder"]
        output = next(node for node in self.graph.graph.nodes if node.op == "output")
        inputs = tuple(specs.spec_of(specs.tensor_of(node)) for node in placeholders)
        outputs = tuple(specs.spec_of(specs.tensor_of(node)) for node in output.args[0])
        low, opt, high = (tuple(spec.sizes(which) for spec in inputs) for which in ("min", "opt", "max"))
        return BuildSpec(inputs, outputs, device, (Profile(low, opt, high),))

    def inputs(self, device: torch.device, which: str = "opt", seed: int = 0) -> list[torch.Tensor]:
        """Return random inputs: normal floats, integers from 0 to 6, bools.

        Args:
            device: Where they live.
            which: ``"min"``, ``"opt"`` or ``"max"`` sizes, or ``"between"``: one more than the least.
            seed: What tells one set from another.
        """
        generator = torch.Generator().manual_seed(seed)
        made = []
        for spec in self.spec(device).inputs:
            shape = _between(spec) if which == "between" else spec.sizes(which)
            if spec.dtype.is_floating_point:
                tensor = torch.randn(shape, generator=generator)
            else:
                tensor = torch.randint(0, 2 if spec.dtype == torch.bool else 7, shape, generator=generator)
            made.append(tensor.to(device, spec.dtype))
        return made


def _between(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(min(size.min + 1, size.max) if isinstance(size, Dim) else size for size in spec.shape)


def _graph(inputs: Sequence[TensorSpec], build: Callable[..., Any], **constants: torch.Tensor) -> fx.GraphModule:
    """Return a graph that `build` writes: it is given a function that writes calls, the placeholders and the constants."""
    root, graph = torch.nn.Module(), fx.Graph()
    placeholders = [graph.placeholder(f"x{index}") for index in range(len(inputs))]
    for name, tensor in constants.items():
        root.register_buffer(name, tensor)
    read = {name: graph.get_attr(name) for name in constants}

    def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return graph.call_function(target, args, kwargs)

    outputs = build(call, *placeholders, **read)
    graph.output(outputs if isinstance(outputs, tuple) else (outputs,))
    return specs.propagate(fx.GraphModule(root, graph), inputs)


def examples(device: torch.device) -> Iterator[Example]:
    """Yield the graphs of the contract, copies of them; a backend builds those of which it supports every node."""
    for example in _examples(device):
        constants = {name: tensor.clone() for name, tensor in example.graph.named_buffers()}
        graph = fx.Graph()
        graph.output(graph.graph_copy(example.graph.graph, {}))
        yield Example(example.name, fx.GraphModule(constants, graph))


@lru_cache(maxsize=4)
def _examples(device: torch.device) -> tuple[Example, ...]:
    return tuple(_make_examples(device))


def _make_examples(device: torch.device) -> Iterator[Example]:
    generator = torch.Generator().manual_seed(7)

    def weight(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).div(shape[-1] ** 0.5).to(device)

    def spec(*shape: int | Dim, dtype: torch.dtype = torch.float32) -> TensorSpec:
        return TensorSpec(shape, dtype, device)

    def perceptron(call: Any, x: fx.Node, w1: fx.Node, b1: fx.Node, w2: fx.Node) -> fx.Node:
        return call(aten.linear.default, call(aten.relu.default, call(aten.linear.default, x, w1, b1)), w2, None)  # type: ignore[no-any-return]

    dense = {"w1": weight(32, 16), "b1": weight(32), "w2": weight(8, 32)}
    yield Example("one operator", _graph([spec(4, 16)], lambda call, x: call(aten.relu.default, x)))
    yield Example("perceptron", _graph([spec(4, 16)], perceptron, **dense))
    yield Example("varying batch", _graph([spec(Dim("b", 1, 4, 9), 16)], perceptron, **dense))

    def convolved(call: Any, x: fx.Node, w: fx.Node, b: fx.Node) -> fx.Node:
        x = call(aten.relu.default, call(aten.conv2d.default, x, w, b, [1, 1], [1, 1]))
        batch, height, width = (call(aten.sym_size.int, x, dim) for dim in (0, 2, 3))
        return call(aten.reshape.default, x, [batch, 6, call(operator.mul, height, width)])  # type: ignore[no-any-return]

    image = spec(Dim("n", 1, 2, 4), 3, Dim("h", 4, 8, 12), Dim("w", 4, 6, 12))
    yield Example("varying image", _graph([image], convolved, w=weight(6, 3, 3, 3), b=weight(6)))
    yield Example(
        "two inputs and outputs",
        _graph(
            [spec(3, 5), spec(3, 5)],
            lambda call, x, y: (call(aten.mul.Tensor, x, y), call(aten.add.Tensor, x, y), call(aten.sum.dim_IntList, x, [1], True)),
        ),
    )
    yield Example("large", _graph([spec(256, 512)], lambda call, x: (call(aten.sigmoid.default, x), call(aten.neg.default, x))))

    def split(call: Any, x: fx.Node) -> tuple[fx.Node, ...]:
        parts = call(aten.split.Tensor, x, 2, 1)
        return tuple(call(operator.getitem, parts, index) for index in (2, 0))

    yield Example("parts", _graph([spec(2, 6)], split))
    yield Example("view of an input", _graph([spec(4, 6)], lambda call, x: call(aten.reshape.default, x, [2, 12])))
    yield Example("a number", _graph([spec(4, 6)], lambda call, x: call(aten.mean.default, x)))

    def embedded(call: Any, ids: fx.Node, mask: fx.Node, table: fx.Node) -> fx.Node:
        masked = call(aten.masked_fill.Scalar, call(aten.embedding.default, table, ids), call(aten.unsqueeze.default, mask, -1), 0.5)
        return call(aten.softmax.int, masked, -1)  # type: ignore[no-any-return]

    length = Dim("t", 1, 5, 8)
    yield Example(
        "indices and a mask",
        _graph([spec(2, length, dtype=torch.int64), spec(2, length, dtype=torch.bool)], embedded, table=weight(7, 6)),
    )
    yield Example(
        "integers and bools",
        _graph(
            [spec(3, 4, dtype=torch.int64), spec(3, 4, dtype=torch.int64)],
            lambda call, x, y: (call(aten.maximum.default, x, y), call(aten.gt.Tensor, x, y)),
        ),
    )
    for dtype in (torch.float16, torch.bfloat16):
        half = {name: tensor.to(dtype) for name, tensor in dense.items()}
        yield Example(f"perceptron in {dtype}", _graph([spec(4, 16, dtype=dtype)], perceptron, **half))


def complex_example(device: torch.device) -> Example:
    """Return a graph that most backends refuse: the angle of complex numbers."""
    inputs = [TensorSpec((2, 2), torch.complex64, device)]
    return Example("angle of complex numbers", _graph(inputs, lambda call, x: call(aten.angle.default, x)))

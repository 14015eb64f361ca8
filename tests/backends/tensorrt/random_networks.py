"""Random graphs of the operators that models are made of, whose values have several readers: what is accepted is right and builds.

They are in float32, in float16, or in half precision but for what is kept, as the passes make them.

``python -m tests.backends.tensorrt.random_networks 0 500`` tries the graphs of these seeds, each in a process of its own: TensorRT has
ended processes. A failure prints its seed; ``--show`` prints the graphs too.
"""

from __future__ import annotations

import argparse
import copy
import math
import operator
import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from tests.backends.tensorrt.harness import assert_close, compile_for, interpret, network_of, rejection, words
from tiacc.backends.tensorrt.flavours import load_flavour
from tiacc.graph import specs
from tiacc.graph.specs import Dim, TensorSpec
from tiacc.passes.pipelines import pipeline

aten = torch.ops.aten

_MOST = 20_000
"""How many elements a value may have."""

_TOLERANCE = {torch.float32: 2e-4, torch.float16: 6e-2}


@dataclass(frozen=True)
class Value:
    """A node, and what it is for the inputs of the graph."""

    node: fx.Node
    data: Tensor


class Generator:
    """Makes the graph of a seed: float32, its inputs ``(2, 4, L, 8)``."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.source = torch.Generator().manual_seed(seed)
        self.graph, self.root = fx.Graph(), torch.nn.Module()
        self.values: list[Value] = []
        self.inputs: list[Tensor] = []

    def make(self) -> tuple[fx.GraphModule, list[Tensor]]:
        """Return a graph, whose outputs are what nobody reads and a few values besides, and its inputs."""
        for index in range(self.random.randint(1, 3)):
            self.inputs.append(torch.randn(2, 4, self.random.choice([6, 6, 8]), 8, generator=self.source))
            self.values.append(Value(self.graph.placeholder(f"x{index}"), self.inputs[-1]))
        inputs = len(self.inputs)
        for _ in range(self.random.randint(3, 15)):
            x = self.pick()
            made = getattr(self, f"_{self.random.choice(_STEPS)}")(x, x.data.dim())
            self.values += [value for value in made or () if value.data.numel() <= _MOST]
        made = self.values[inputs:] or [self.call(aten.relu.default, self.values[0])]
        self.graph.output(tuple(value.node for value in made if not value.node.users or self.random.random() < 0.08))
        return fx.GraphModule(self.root, self.graph), self.inputs

    def pick(self, fits: Callable[[Tensor], bool] = lambda data: True) -> Value:
        """Return a value that fits, recent ones more often."""
        found = [value for value in self.values if fits(value.data)]
        return self.random.choice(found[-4:] if self.random.random() < 0.4 else found)

    def like(self, x: Value) -> Value:
        """Return a value of the same shape."""
        return self.pick(lambda data: data.shape == x.data.shape)

    def call(self, op: Any, *args: Any, **kwargs: Any) -> Value:
        """Call an operator on values, lists of them, and numbers."""

        def mapped(item: Any, name: str) -> Any:
            if isinstance(item, list):
                return [mapped(part, name) for part in item]
            return getattr(item, name) if isinstance(item, Value) else item

        node = self.graph.call_function(op, tuple(mapped(item, "node") for item in args), kwargs)
        return Value(node, op(*(mapped(item, "data") for item in args), **kwargs))

    def weight(self, *shape: int, scale: float | None = None) -> Value:
        """Return a constant."""
        data = torch.randn(shape, generator=self.source) * (1 / math.sqrt(max(4, math.prod(shape[1:]))) if scale is None else scale)
        name = f"weight_{len(self.root._buffers)}"
        self.root.register_buffer(name, data)
        return Value(self.graph.get_attr(name), data)

    # -- steps -----------------------------------------------------------------------------------------------------------------------

    def _scale(self, x: Value, rank: int) -> list[Value]:
        return [self.call(self.random.choice([aten.mul.Scalar, aten.div.Scalar]), x, self.random.choice([0.3, 0.5, 1.7, 8**-0.5]))]

    def _combine(self, x: Value, rank: int) -> list[Value]:
        op = self.random.choice([aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor])
        result = self.call(op, x, self.like(x))
        return [self.call(aten.tanh.default, result) if op is aten.mul.Tensor else result]

    def _activation(self, x: Value, rank: int) -> list[Value]:
        names = words("relu gelu sigmoid tanh silu neg hardswish abs")
        return [self.call(getattr(aten, self.random.choice(names)).default, x)]

    def _norm(self, x: Value, rank: int) -> list[Value] | None:
        width, channels = x.data.shape[-1], x.data.shape[1]
        kind = self.random.choice(words("layer group batch softmax"))
        if kind == "layer":
            return [self.call(aten.layer_norm.default, x, [width], self.weight(width), self.weight(width), 1e-5)]
        if kind == "softmax":
            return [self.call(aten.softmax.int, x, self.random.choice([-1, 1]))]
        if kind == "group":
            if channels % 2:
                return None
            return [self.call(aten.group_norm.default, x, 2, self.weight(channels), self.weight(channels))]
        variance = self.weight(channels)
        variance.data.abs_().add_(0.5)
        operands = (self.weight(channels), self.weight(channels), self.weight(channels), variance)
        return [self.call(aten.batch_norm.default, x, *operands, False, 0.1, 1e-5, False)]

    def _linear(self, x: Value, rank: int) -> list[Value]:
        width = self.random.choice([8, x.data.shape[-1]])
        bias = self.weight(width) if self.random.random() < 0.7 else None
        return [self.call(aten.linear.default, x, self.weight(width, x.data.shape[-1]), bias)]

    def _convolution(self, x: Value, rank: int) -> list[Value] | None:
        if rank != 4:
            return None
        size, channels = self.random.choice([1, 3]), self.random.choice([4, x.data.shape[1]])
        bias = self.weight(channels) if self.random.random() < 0.7 else None
        weight = self.weight(channels, x.data.shape[1], size, size)
        return [self.call(aten.conv2d.default, x, weight, bias, [1, 1], [size // 2] * 2)]

    def _keys(self, x: Value) -> tuple[Value, Value]:
        """Return values that may be the key and value of a query."""
        shape = x.data.shape
        key = self.pick(lambda data: data.dim() == len(shape) and data.shape[:-2] == shape[:-2] and data.shape[-1] == shape[-1])
        return key, self.like(key)

    def _attention(self, x: Value, rank: int) -> list[Value]:
        key, value = self._keys(x)
        kind, mask = self.random.random(), None
        if kind < 0.3:
            mask = self.weight(x.data.shape[-2], key.data.shape[-2], scale=1.0)
        scale = self.random.choice([None, None, 1.0, 0.3])
        return [self.call(aten.scaled_dot_product_attention.default, x, key, value, mask, 0.0, 0.3 < kind < 0.5, scale=scale)]

    def _products(self, x: Value, rank: int) -> list[Value]:
        key, value = self._keys(x)
        query = self.call(aten.mul.Scalar, x, 0.35) if self.random.random() < 0.6 else x
        weights = self.call(aten.softmax.int, self.call(aten.matmul.default, query, self.call(aten.transpose.int, key, -1, -2)), -1)
        read = [item for item in (query, weights) if self.random.random() < 0.3]
        return [*read, self.call(aten.matmul.default, weights, value)]

    def _reduction(self, x: Value, rank: int) -> list[Value]:
        if self.random.random() < 0.3:
            return [self.call(aten.mul.Scalar, self.call(aten.cumsum.default, x, -1), 0.2)]
        return [self.call(self.random.choice([aten.mean.dim, aten.amax.default]), x, [self.random.randrange(1, rank)], True)]

    def _join(self, x: Value, rank: int) -> list[Value]:
        return [self.call(aten.cat.default, [x, self.like(x)], self.random.randrange(1, rank))]

    def _part(self, x: Value, rank: int) -> list[Value] | None:
        width = x.data.shape[-1]
        if self.random.random() < 0.5:
            return [self.call(aten.slice.Tensor, x, -1, 0, width - 1)] if width > 1 else None
        if width % 2:
            return None
        parts = self.graph.call_function(aten.split.Tensor, (x.node, width // 2, -1))
        data = x.data.split(width // 2, -1)
        return [Value(self.graph.call_function(operator.getitem, (parts, index)), part) for index, part in enumerate(data)]

    def _view(self, x: Value, rank: int) -> list[Value]:
        if rank == 3:
            return [self.call(self.random.choice([aten.unsqueeze.default, aten.squeeze.dim]), x, 1)] if x.data.shape[1] > 1 else []
        turned = self.call(aten.permute.default, x, [0, 2, 1, 3])
        kind = self.random.randrange(4)
        if kind == 0:
            return [turned]
        if kind == 1:
            return [self.call(aten.transpose.int, x, -1, -2)]
        if kind == 2:
            return [self.call(aten.flatten.using_ints, x, 1, 2)]
        return [self.call(aten.reshape.default, turned, [-1, x.data.shape[2], x.data.shape[1] * x.data.shape[3]])]

    def _window(self, x: Value, rank: int) -> list[Value] | None:
        if rank != 4:
            return None
        if self.random.random() < 0.4:
            if self.random.random() < 0.5:
                return [self.call(aten.upsample_nearest2d.vec, x, None, [2.0, 2.0])]
            return [self.call(aten.upsample_bilinear2d.vec, x, None, False, [2.0, 2.0])]
        return [self.call(self.random.choice([aten.max_pool2d.default, aten.avg_pool2d.default]), x, [3, 3], [1, 1], [1, 1])]

    def _chosen(self, x: Value, rank: int) -> list[Value]:
        first = self.values[0]  # an input: what is computed may be on the other side of a threshold by a rounding error
        if first.data.shape != x.data.shape:
            return [self.call(aten.clamp.default, x, -1.0, 1.5)]
        return [self.call(aten.where.self, self.call(aten.gt.Scalar, first, 0.1), x, self.like(x))]


_STEPS = words(
    "scale scale scale combine combine combine activation activation norm norm linear linear convolution convolution "
    "attention attention attention attention products reduction join part view view window chosen"
)


def check(seed: int) -> str:
    """Return ``"right"``, or why the graph of a seed is not accepted, or what is wrong with its network."""
    chance, levels = random.Random(-seed), random.Random(f"{seed}")
    with torch.no_grad():
        gm, inputs = Generator(seed).make()
    half = chance.random() < 0.4
    dtype = torch.float16 if half else torch.float32
    batch: Any = Dim("n", 1, 2, 4) if chance.random() < 0.5 else 2
    types = [TensorSpec((batch, *tensor.shape[1:]), dtype) for tensor in inputs]
    gm = specs.propagate(gm.half() if half else gm, types)
    model, tolerance = copy.deepcopy(gm).float(), _TOLERANCE[dtype]
    if not half and levels.random() < 0.5:
        kept = [node.name for node in gm.graph.nodes if levels.random() < 0.3]
        gm, tolerance = pipeline(1, torch.device("cuda"), torch.float16, tuple(kept))(gm).graph, _TOLERANCE[torch.float16]
    elif chance.random() < 0.7:
        gm = pipeline(0, torch.device("cuda"))(gm).graph
    if reason := rejection(gm):
        return f"refused: {reason}"
    try:
        definition = network_of(gm, types)
        cases = [inputs] if batch == 2 else [inputs, [x[:1] for x in inputs], [torch.cat([x, x.flip(1)]) for x in inputs]]
        results = [interpret(definition, [tensor.to(dtype) for tensor in case]) for case in cases]
        for case, got in zip(cases, results):
            with torch.no_grad():
                want = model(*case)
            assert_close([one.float() for one in got], list(want), tolerance)
        compile_for(definition, types)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is a failure of this graph; the others shall be seen too
        return f"failed: {type(error).__name__}: {str(error)[:500]}"
    return "right"


def apart(seed: int) -> str:
    """Return what `check` does, from a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        torch.set_num_threads(1)  # there are no others in a process that was forked
        try:
            os.write(writer, check(seed).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        said = file.read().decode()
    status = os.waitpid(child, 0)[1]
    return said or f"failed: the process ended with {status}"


def main() -> int:
    """Try a range of seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("end", type=int)
    parser.add_argument("--show", action="store_true", help="print the graphs of failures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load_flavour("tensorrt_rtx")
    counts: Counter[str] = Counter()
    for seed in range(options.first, options.end):
        said = apart(seed)
        counts[said.partition(":")[0]] += 1
        if said.startswith("failed"):
            with torch.no_grad():
                code = Generator(seed).make()[0].code if options.show else ""
            sys.stdout.write(f"seed {seed} {said}\n{code}")
            sys.stdout.flush()
    sys.stdout.write(f"{dict(counts)}\n")
    return int(counts["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())

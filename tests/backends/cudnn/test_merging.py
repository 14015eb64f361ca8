from __future__ import annotations

import torch

from tests.backends.cudnn.programs import aten, error, planned, run
from tests.helpers import Sketch, random_inputs
from tiacc.backends.cudnn.engine import static_graph
from tiacc.backends.cudnn.merging import merge_siblings
from tiacc.backends.cudnn.naming import title
from tiacc.backends.reference import run_graph
from tiacc.graph import specs


def merged(gm) -> tuple[int, list[str]]:
    """Merge, check that the results are the same, and return how many layers went and what steps are left."""
    inputs = random_inputs(gm)
    wanted = run_graph(gm, inputs)
    given = [specs.spec_of(specs.tensor_of(node)) for node in gm.graph.nodes if node.op == "placeholder"]
    count = merge_siblings(gm)
    gm = static_graph(gm, given, tuple(tuple(item.shape) for item in inputs))
    program = planned(gm)
    for got, one in zip(run(program, inputs), wanted, strict=True):
        assert error(got, one) < 1e-6
    return count, [title(step) for step in program.steps]


def test_linear_layers_that_are_only_looked_at_are_one() -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 5, 8)
    parts = [
        sketch.call(
            aten.view.default,
            sketch.call(
                aten.linear.default, x, sketch.constant(f"w{size}", torch.randn(size, 8)), sketch.constant(f"b{size}", torch.randn(size))
            ),
            [2, 5, 2, size // 2],
        )
        for size in (8, 16, 4)
    ]
    gm = sketch.output(*(sketch.call(aten.mul.Tensor, part, 2.0) for part in parts))
    assert merged(gm) == (2, ["conv1x1+add", "mul", "mul", "mul"])


def test_convolutions_with_the_same_work_behind_them_are_one() -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 8, 6, 6)
    weights = [sketch.constant(f"w{index}", torch.randn(8, 8, 3, 3)) for index in range(2)]
    ends = [sketch.call(aten.relu.default, sketch.call(aten.conv2d.default, x, weight, None, [1, 1], [1, 1])) for weight in weights]
    heads = [sketch.constant(f"h{index}", torch.randn(4, 8, 1, 1)) for index in range(2)]
    gm = sketch.output(*(sketch.call(aten.conv2d.default, end, head) for end, head in zip(ends, heads)))
    assert merged(gm) == (1, ["conv3x3+relu", "conv1x1", "conv1x1"])


def test_near_misses_stay() -> None:
    sketch = Sketch()
    x, y = sketch.input("x", 2, 8, 6, 6), sketch.input("y", 2, 8, 6, 6)
    weights = [sketch.constant(f"w{index}", torch.randn(8, 8, 1, 1)) for index in range(2)]
    bias = sketch.constant("bias", torch.randn(8))

    def conv(source, weight, bias=None):
        return sketch.call(aten.conv2d.default, source, weight, bias)

    other_input = [sketch.call(aten.relu.default, conv(source, weight)) for source, weight in zip((x, y), weights)]
    other_work = [sketch.call(op, conv(x, weight)) for op, weight in zip((aten.sigmoid.default, aten.tanh.default), weights)]
    one_bias = [sketch.call(aten.silu.default, conv(x, weights[0])), sketch.call(aten.silu.default, conv(x, weights[1], bias))]
    gm = sketch.output(*other_input, *other_work, *one_bias)
    assert merged(gm)[0] == 0

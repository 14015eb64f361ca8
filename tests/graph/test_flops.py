"""Arithmetic of operators, counted by hand: two operations for each multiplication and addition of a product."""

from __future__ import annotations

import math
import operator
from typing import Any

import pytest
import torch

from tests.helpers import Dim, Sketch
from tiacc.graph import specs, torch_compat
from tiacc.graph.flops import elements_of, flops_of

aten = torch.ops.aten

PRODUCTS: dict[str, tuple[Any, list[tuple[int, ...]], tuple[Any, ...], int]] = {
    "mm": (aten.mm.default, [(4, 5), (5, 6)], (), 4 * 5 * 6),
    "addmm": (aten.addmm.default, [(6,), (4, 5), (5, 6)], (), 4 * 5 * 6),
    "bmm": (aten.bmm.default, [(3, 4, 5), (3, 5, 6)], (), 3 * 4 * 5 * 6),
    "addbmm": (aten.addbmm.default, [(4, 6), (3, 4, 5), (3, 5, 6)], (), 3 * 4 * 5 * 6),
    "baddbmm": (aten.baddbmm.default, [(3, 4, 6), (3, 4, 5), (3, 5, 6)], (), 3 * 4 * 5 * 6),
    "mv": (aten.mv.default, [(4, 5), (5,)], (), 4 * 5),
    "addmv": (aten.addmv.default, [(4,), (4, 5), (5,)], (), 4 * 5),
    "dot": (aten.dot.default, [(5,), (5,)], (), 5),
    "matmul of a matrix and a vector": (aten.matmul.default, [(4, 5), (5,)], (), 4 * 5),
    "matmul of matrices and a vector": (aten.matmul.default, [(3, 4, 5), (5,)], (), 3 * 4 * 5),
    "linear of a vector": (aten.linear.default, [(5,), (4, 5)], (), 4 * 5),
    "a convolution in groups": (aten.conv2d.default, [(2, 4, 6, 6), (8, 2, 3, 3)], (None, [1, 1], [0, 0], [1, 1], 2), 2 * 8 * 16 * 2 * 9),
    "a convolution as traces have it": (
        aten._convolution.default,
        [(2, 4, 6, 6), (8, 2, 3, 3)],
        (None, [1, 1], [0, 0], [1, 1], False, [0, 0], 2, False, False, True, True),
        2 * 8 * 16 * 2 * 9,
    ),
    "a transposed convolution": (aten.conv_transpose2d.input, [(1, 4, 5, 5), (4, 6, 2, 2)], (None, [2, 2]), 25 * 4 * 6 * 4),
    "a bilinear form": (aten.bilinear.default, [(5, 7, 3), (5, 7, 4), (6, 3, 4)], (), 5 * 7 * 6 * 3 * 4),
    "distances of few points": (aten.cdist.default, [(2, 5, 3), (1, 7, 3)], (), 2 * 5 * 7 * 3),
    "distances of many points": (aten.cdist.default, [(50, 3), (70, 3)], (), 50 * 70 * 3),
    "attention": (aten.scaled_dot_product_attention.default, [(2, 3, 7, 8)] * 3, (), 2 * 2 * 3 * 7 * 7 * 8),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name: str) -> None:
    target, shapes, rest, multiplications = PRODUCTS[name]
    sketch = Sketch()
    node = sketch.call(target, *(sketch.input(f"x{place}", *shape) for place, shape in enumerate(shapes)), *rest)
    sketch.output(node)
    assert flops_of(node) == 2 * multiplications


def test_all_else_is_an_operation_for_each_element_at_the_usual_size() -> None:
    sketch = Sketch()
    x = sketch.input("x", Dim("n", 1, 3, 8), 5)
    node = sketch.call(aten.exp.default, x)
    parts = sketch.call(aten.split.Tensor, sketch.input("y", 4, 6), 2)
    sketch.output(node, *sketch_parts(sketch, parts))
    assert flops_of(node) == elements_of(node) == math.prod((3, 5))
    assert elements_of(parts) == 24 and flops_of(x) == 0


def test_products_that_take_a_number_which_varies_with_the_sizes() -> None:
    sketch = Sketch()
    x = sketch.input("x", 1, 2, Dim("n", 1, 7, 9), 8)
    scale = sketch.call(operator.truediv, 1, sketch.call(aten.sym_size.int, x, 2))
    attended = sketch.call(aten.scaled_dot_product_attention.default, x, x, x, scale=scale)
    rows = sketch.call(aten.addmm.default, sketch.input("y", 6), sketch.input("a", 4, 5), sketch.input("b", 5, 6), alpha=scale)
    sketch.output(attended, rows)
    assert flops_of(attended) == 2 * 2 * (2 * 7 * 7 * 8)
    assert flops_of(rows) == 2 * 4 * 5 * 6


def test_asking_does_not_fix_a_size() -> None:
    sketch = Sketch()
    x = sketch.input("x", Dim("n", 1, 7, 9), 5)
    number = sketch.call(operator.truediv, sketch.call(aten.sym_size.int, x, 0), 2)
    filled = sketch.call(aten.full.default, [4], number, dtype=torch.float32)
    mode = specs.fake_mode_of(sketch.output(filled))
    torch_compat.forget_guards(mode)
    assert flops_of(filled) == 4
    assert mode.shape_env is not None and not mode.shape_env.guards


def sketch_parts(sketch: Sketch, parts: Any) -> list[Any]:
    return [sketch.call(operator.getitem, parts, place) for place in range(2)]

"""What is remembered of an operator is what it gives: real calls tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from tests.helpers import Sketch
from tiacc.graph import specs, torch_compat
from tiacc.graph.result_types import ResultTypes
from tiacc.graph.specs import Dim

aten = torch.ops.aten

CALLS: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "an activation": (aten.relu.default, (torch.randn(2, 3),), {}),
    "channels last": (aten.relu.default, (torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),), {}),
    "transposed": (aten.exp.default, (torch.randn(2, 3).t(),), {}),
    "expanded": (aten.neg.default, (torch.randn(1, 3).expand(4, 3),), {}),
    "broadcast": (aten.add.Tensor, (torch.randn(2, 3), torch.randn(3)), {"alpha": 2}),
    "promoted": (aten.mul.Tensor, (torch.arange(3), torch.randn(3)), {}),
    "one dtype": (aten.add.Tensor, (torch.arange(3), 1), {}),
    "another dtype": (aten.add.Tensor, (torch.arange(3), 1.0), {}),
    "a bool": (aten.add.Tensor, (torch.tensor([True]), True), {}),
    "a convolution": (aten.conv2d.default, (torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3), None, [2, 2], [1, 1]), {}),
    "two results": (aten.max.dim, (torch.randn(2, 3), 1), {}),
    "a list": (aten.unsafe_chunk.default, (torch.randn(4, 6), 3, 1), {}),
    "given a list": (aten.cat.default, ([torch.randn(2, 3), torch.randn(4, 3)],), {}),
    "a view": (aten.view.default, (torch.randn(2, 6), [3, 4]), {}),
    "views": (aten.split.Tensor, (torch.randn(4, 6), 2), {}),
    "its argument": (aten.to.dtype, (torch.randn(2), torch.float32), {}),
    "a conversion": (aten.to.dtype, (torch.randn(2), torch.float16), {}),
    "a copy or none": (aten.reshape.default, (torch.randn(2, 6).t(), [12]), {}),
    "made": (aten.arange.default, (5,), {"dtype": torch.float32, "device": torch.device("cpu")}),
    "empty": (aten.zeros.default, ([0, 3],), {}),
    "complex": (aten.conj.default, (torch.randn(3, dtype=torch.complex64),), {}),
}


def form(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return list(map(form, value))
    return value.shape, value.stride(), value.dtype, value.device, value.storage_offset(), value.is_conj()


def tensors(value: Any) -> list[torch.Tensor]:
    return [item for part in value for item in tensors(part)] if isinstance(value, (list, tuple)) else [value]


def sharing(result: Any, args: Any) -> list[bool]:
    """Return which results share memory with which arguments and which other results."""
    given = [item for item in tensors(args) if isinstance(item, torch.Tensor)]
    made = tensors(result)
    return [torch_compat.shares_memory(one, other) for place, one in enumerate(made) for other in (*given, *made[:place])]


@pytest.mark.parametrize("name", CALLS)
def test_what_comes_again_is_what_a_real_call_gives(name: str) -> None:
    target, args, kwargs = CALLS[name]
    real = target(*args, **kwargs)
    mode = specs.new_fake_mode()
    graph = fx.Graph()

    def constant(value: Any) -> Any:
        if isinstance(value, list):
            return list(map(constant, value))
        if not isinstance(value, torch.Tensor):
            return value
        node = graph.placeholder("x")
        node.meta["val"] = torch_compat.fake_constant(mode, value)
        return node

    operands = tuple(map(constant, args))
    fakes = fx.map_arg(operands, lambda node: node.meta["val"])
    for _ in range(3):
        found = specs.infer_call(mode, graph.call_function(target, operands, kwargs))
        assert form(found) == form(real)
        assert sharing(found, fakes) == sharing(real, args)


class Counted:
    """Something to call, and how often it was."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.count = function, 0

    def __call__(self, *args: Any) -> Any:
        self.count += 1
        return self.function(*args)


def fakes(*types: tuple[tuple[int | Dim, ...], torch.dtype]) -> tuple[Any, list[torch.Tensor]]:
    sketch = Sketch()
    nodes = [sketch.input(f"x{place}", *shape, dtype=dtype) for place, (shape, dtype) in enumerate(types)]
    gm = sketch.output(*nodes)
    return specs.fake_mode_of(gm), [node.meta["val"] for node in nodes]


def times_inferred(function: Callable[..., Any], mode: Any, *calls: tuple[Any, ...]) -> int:
    types, counted = ResultTypes(), Counted(function)
    for args in calls:
        with mode:
            types.call(mode, function, args, {}, lambda args=args: counted(*args))
    return counted.count


def test_the_same_types_are_inferred_once_and_others_anew() -> None:
    mode, (x, y, z) = fakes(((2, 3), torch.float32), ((2, 3), torch.float32), ((2, 4), torch.float32))
    assert times_inferred(torch.relu, mode, (x,), (y,), (x,)) == 1
    assert times_inferred(torch.relu, mode, (x,), (z,), (y,)) == 2
    assert times_inferred(torch.add, mode, (x, 1), (x, 1.0), (x, True), (y, 1)) == 3
    assert times_inferred(lambda x: torch.max(x, 1)[0], mode, (x,), (y,)) == 1


def test_what_types_do_not_tell_is_inferred_each_time() -> None:
    mode, (x, varying, complex_) = fakes(((2, 3), torch.float32), ((Dim("n", 1, 3, 8), 3), torch.float32), ((2, 3), torch.complex64))
    assert times_inferred(lambda x: x, mode, (x,), (x,)) == 2
    assert times_inferred(lambda x: x.relu()[:1], mode, (x,), (x,)) == 2  # a part of new memory
    assert times_inferred(lambda x: list(x.relu().split(1)), mode, (x,), (x,)) == 2  # which they share
    assert times_inferred(lambda x: [y := x.relu(), y.view(6)], mode, (x,), (x,)) == 2  # all of which they share
    assert times_inferred(torch.relu, mode, (varying,), (varying,)) == 2
    assert times_inferred(torch.conj, mode, (complex_,), (complex_,)) == 2
    assert times_inferred(torch.relu, mode, (torch.ones(2),)) == 1


def test_a_view_is_one_of_the_argument_that_it_was_one_of() -> None:
    mode, (x, y, z) = fakes(*[((2, 3), torch.float32)] * 3)
    assert times_inferred(lambda x: x.t(), mode, (x,), (y,)) == 1
    types = ResultTypes()
    with mode:
        calls = [(x, y), (y, z), (z, z), (x, y)]
        found = [types.call(mode, "second", call, {}, lambda call=call: call[1][1:]) for call in calls]
    assert [[torch_compat.shares_memory(view, one) for one in (x, y, z)] for view in found] == [
        [False, True, False],
        [False, False, True],
        [False, False, True],
        [False, True, False],
    ]
    assert {(view.shape, view.storage_offset()) for view in found} == {((2 - 1, 3), 3)}


def test_a_view_of_one_of_two_that_share_memory_is_not_remembered() -> None:
    """It is not seen of which."""
    mode, (x, y) = fakes(((3, 3), torch.float32), ((3, 3), torch.float32))
    types = ResultTypes()
    with mode:
        types.call(mode, "second", (x, x), {}, lambda: x[1:])
        found = types.call(mode, "second", (x, y), {}, lambda: y[1:])
    assert torch_compat.shares_memory(found, y) and not torch_compat.shares_memory(found, x)


def test_where_a_tensor_begins_in_its_memory_counts() -> None:
    mode, (x,) = fakes(((4, 3), torch.float32))
    with mode:
        parts = [x[:2], x[2:]]
    assert times_inferred(lambda x: x[1:], mode, *((part,) for part in (*parts, *parts))) == 2

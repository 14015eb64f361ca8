"""How much arithmetic an operator is: what a choice of precision costs."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from tiacc.graph import arguments, specs, torch_compat
from tiacc.graph.shape_rules import SHAPE_RULES

aten = torch.ops.aten

_RECURRENT = frozenset({aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input})


def _of_vectors(matrix: torch.Size, vector: torch.Size, *_: Any, **__: Any) -> int:
    """Each number of a matrix, or of the first of two vectors, meets one of a vector once."""
    return 2 * matrix.numel()


def _of_sum_of_products(sum_: torch.Size, first: torch.Size, second: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * first.numel() * second[-1]


def _of_three(first: torch.Size, second: torch.Size, third: torch.Size, *expanded: Any, **_: Any) -> int:
    """Three tensors, each with new dimensions where it is told, meet as they are broadcast."""
    shapes = [list(shape) for shape in (first, second, third)]
    for shape, places in zip(shapes, expanded):
        for place in places:
            shape.insert(place, 1)
    met: torch.Size = torch.broadcast_shapes(*shapes)
    return 2 * met.numel()


def _of_distances(first: torch.Size, second: torch.Size, *_: Any, out_shape: torch.Size, **__: Any) -> int:
    """Each number of a point meets its like in another point once."""
    return 2 * out_shape.numel() * first[-1]


_MORE = {
    aten.mv: _of_vectors,
    aten.dot: _of_vectors,
    aten.vdot: _of_vectors,
    aten.addmv: lambda sum_, matrix, vector, *_, **__: _of_vectors(matrix, vector),
    aten.addbmm: _of_sum_of_products,
    aten._trilinear: _of_three,
    aten._cdist_forward: _of_distances,
    aten._euclidean_dist: _of_distances,
}
"""What torch's own counter does not know, by the shapes of their operands."""

_COUNTED_BY_RULE = frozenset({aten._convolution.default, aten._convolution.deprecated})
"""The operators that take no tensors without data before torch 2.14, where their shape rules call one that does the same."""


def flops_of(node: fx.Node) -> int:
    """Return the floating-point operations of a call at the sizes that the engines are fastest at.

    Of products of matrices and convolutions they are counted, two for each multiplication and addition; of any other operator there
    is one for each element that it gives.
    """
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return 0
    if node.target in _RECURRENT:
        return _of_recurrent(node)
    return _counted(node.target, _form(node.args), _form(node.kwargs)) or elements_of(node)


class _Tensor(NamedTuple):
    """What stands for a tensor among arguments."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@lru_cache(maxsize=4096)  # a deep model has the same layers over and over
def _counted(target: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: tuple[tuple[str, Any], ...]) -> int:
    """Return what torch counts of a call of an operator on tensors without data; 0 where it counts nothing."""
    function = SHAPE_RULES[target] if target in _COUNTED_BY_RULE else target
    try:
        with FlopCounterMode(display=False, custom_mapping=_MORE) as counter:
            function(*_on_meta(args), **{name: _on_meta(value) for name, value in kwargs})
        return int(counter.get_total_flops())
    except Exception:  # noqa: BLE001 - an operator need not have a kernel without data
        return 0


def elements_of(node: fx.Node) -> int:
    """Return the number of elements of the tensors that a node gives, at the sizes that the engines are fastest at."""
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else (value,)
    return sum(torch.Size(_sizes(item)).numel() for item in values if isinstance(item, torch.Tensor))


def _of_recurrent(node: fx.Node) -> int:
    """Each weight matrix meets each step of each sequence once."""
    bound = arguments.bound(node)
    steps = torch.Size(_sizes(bound["input"].meta["val"])[:2]).numel()
    return 2 * steps * sum(elements_of(weight) for weight in bound["params"] if weight.meta["val"].ndim == 2)


def _form(value: Any) -> Any:
    """Return arguments of a node in a form that is equal for equal ones; sizes that vary are those to be fastest at."""
    if isinstance(value, fx.Node):
        return _form(value.meta["val"])
    if isinstance(value, torch.Tensor):
        return _Tensor(_sizes(value), value.dtype)
    if isinstance(value, (list, tuple)):
        return tuple(map(_form, value))
    if isinstance(value, dict):
        return tuple((name, _form(item)) for name, item in value.items())
    return torch_compat.usual_number(value) if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)) else value


def _on_meta(form: Any) -> Any:
    """Return arguments with a tensor without data for each that stands for one."""
    if isinstance(form, _Tensor):
        return torch.empty(form.shape, dtype=form.dtype, device="meta")
    return tuple(map(_on_meta, form)) if isinstance(form, tuple) else form


def _sizes(tensor: torch.Tensor) -> tuple[int, ...]:
    return specs.spec_of(tensor).sizes("opt")

"""How much arithmetic an operator is: what a choice of precision costs."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from tiacc.graph import arguments, specs, torch_compat

aten = torch.ops.aten

_RECURRENT = frozenset({aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input})


def _of_vectors(matrix: torch.Size, vector: torch.Size, *_: Any, **__: Any) -> int:
    """Each number of a matrix, or of the first of two vectors, meets one of a vector once."""
    return 2 * matrix.numel()


def _of_sum_of_products(sum_: torch.Size, first: torch.Size, second: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * first.numel() * second[-1]


_MORE = {
    aten.mv: _of_vectors,
    aten.dot: _of_vectors,
    aten.vdot: _of_vectors,
    aten.addmv: lambda sum_, matrix, vector, *_, **__: _of_vectors(matrix, vector),
    aten.addbmm: _of_sum_of_products,
}
"""The products that torch's own counter does not know, by the shapes of their operands."""


def flops_of(node: fx.Node) -> int:
    """Return the floating-point operations of a call at the sizes that the engines are fastest at.

    Of products of matrices and convolutions they are counted, two for each multiplication and addition; of any other operator there
    is one for each element that it gives.
    """
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return 0
    if node.target in _RECURRENT:
        return _of_recurrent(node)
    try:
        with FlopCounterMode(display=False, custom_mapping=_MORE) as counter:
            node.target(*_on_meta(node.args), **_on_meta(node.kwargs))
        counted = int(counter.get_total_flops())
    except Exception:  # noqa: BLE001 - an operator need not have a kernel without data
        counted = 0
    return counted or elements_of(node)


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


def _on_meta(value: Any) -> Any:
    """Return arguments without data and of known sizes in place of the nodes in `value`."""

    def stand_in(node: fx.Node) -> Any:
        known = node.meta["val"]
        if isinstance(known, (list, tuple)):
            return type(known)(map(_stand_in, known))
        return _stand_in(known)

    return fx.map_arg(value, stand_in)


def _stand_in(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.empty(_sizes(value), dtype=value.dtype, device="meta")
    return torch_compat.symbol_bounds(value).opt if isinstance(value, torch.SymInt) else value


def _sizes(tensor: torch.Tensor) -> tuple[int, ...]:
    return specs.spec_of(tensor).sizes("opt")

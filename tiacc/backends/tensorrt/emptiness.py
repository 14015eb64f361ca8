"""Nodes about nothing: tensors without elements, which TensorRT's layers treat each in its own way, and which need no layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from tiacc.graph import specs


def empty_results(node: fx.Node) -> list[Any]:
    """Return the value of a node that has no elements, or that is made from tensors of which none has an element.

    Args:
        node: A node that calls an operator.

    Returns:
        A list of one item, the value, known now: a `torch.Tensor`, or a list of them; an empty list for all other nodes.
    """
    result = node.meta["val"]
    if isinstance(result, torch.Tensor) and _is_static(result) and _is_empty(result):
        return [torch.empty([_number(size) for size in result.shape], dtype=result.dtype)]
    sources = node.all_input_nodes
    fakes = [source.meta["val"] for source in sources]
    if not fakes or not all(isinstance(fake, torch.Tensor) and _is_static(fake) and _is_empty(fake) for fake in fakes):
        return []
    values = {
        source: torch.empty([_number(size) for size in fake.shape], dtype=fake.dtype) for source, fake in zip(sources, fakes)
    }
    args = fx.map_arg(node.args, values.__getitem__)
    kwargs = {name: value for name, value in node.kwargs.items() if not isinstance(value, torch.device)}
    return [node.target(*_on_cpu(args), **fx.map_arg(kwargs, values.__getitem__))]  # type: ignore[operator]


def _on_cpu(args: Any) -> Any:
    return tuple(torch.device("cpu") if isinstance(arg, torch.device) else arg for arg in args)


def _number(size: Any) -> int:
    number = specs.dim_of(size)
    return number if isinstance(number, int) else number.min


def _is_static(fake: torch.Tensor) -> bool:
    return all(isinstance(specs.dim_of(size), int) for size in fake.shape)


def _is_empty(fake: torch.Tensor) -> bool:
    return any(_number(size) == 0 for size in fake.shape)

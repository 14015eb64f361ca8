"""The form of a region's graph, as a table of rules, one a line; `verify` checks a graph against all of them.

``PassContext(instruments=(VerifyInstrument(verify),))`` checks after each pass.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import fx

from tiacc.errors import ImportGraphError
from tiacc.graph import specs, torch_compat

Rule: TypeAlias = Callable[[fx.GraphModule, fx.Node], bool]

_OPS = frozenset({"placeholder", "get_attr", "call_function", "output"})


def verify(gm: fx.GraphModule) -> None:
    """Check that a graph has the form that passes and backends rely on.

    Args:
        gm: A region's graph.

    Raises:
        ImportGraphError: It has not. The message names the node, its source line and the rule, for each breach.
    """
    gm.graph.lint()
    breaches = list(_breaches(gm))
    if breaches:
        raise ImportGraphError(f"this graph breaks the form of a region's graph: {'; '.join(breaches[:10])}")


def _breaches(gm: fx.GraphModule) -> Iterator[str]:
    for node in gm.graph.nodes:
        for rule, holds in _RULES:
            if not holds(gm, node):
                yield f"{node.name} = {node.target}{specs.where(node)}: {rule}"
                break


def _is_known_op(gm: fx.GraphModule, node: fx.Node) -> bool:
    return node.op in _OPS


def _has_value(gm: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "output" or "val" in node.meta


def _is_known_call(gm: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_function" or node.target is operator.getitem or node.target in specs.SCALAR_FUNCTIONS:
        return True
    return isinstance(node.target, torch._ops.OpOverload)


def _is_functional(gm: fx.GraphModule, node: fx.Node) -> bool:
    return not isinstance(node.target, torch._ops.OpOverload) or not torch_compat.written_arguments(node.target)


def _picks_from_parts(gm: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_function" or node.target is not operator.getitem:
        return True
    source, place = node.args
    parts = source.meta.get("val") if isinstance(source, fx.Node) else None
    return isinstance(parts, (list, tuple)) and isinstance(place, int) and 0 <= place < len(parts)


def _fits_schema(gm: fx.GraphModule, node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    arguments = node.target._schema.arguments
    positional = sum(not argument.kwarg_only for argument in arguments)
    named = {argument.name for argument in arguments}
    given = {argument.name for argument in arguments[: len(node.args)]} | set(node.kwargs)
    lacking = [argument for argument in arguments if not argument.has_default_value() and argument.name not in given]
    return len(node.args) <= positional and set(node.kwargs) <= named and not lacking


def _reads_a_tensor(gm: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "get_attr":
        return True
    try:
        value: Any = specs.fetch_attr(gm, str(node.target))
    except AttributeError:
        return False
    known = node.meta.get("val")
    same = isinstance(known, torch.Tensor) and known.dtype == getattr(value, "dtype", None) and known.shape == value.shape
    return isinstance(value, torch.Tensor) and not value.requires_grad and same


def _returns_a_flat_tuple(gm: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "output":
        return True
    (results,) = node.args
    return isinstance(results, tuple) and all(isinstance(item, fx.Node) for item in results)


_RULES: tuple[tuple[str, Rule], ...] = (
    ("a node is a placeholder, a get_attr, a call_function or the output", _is_known_op),
    ("a node has its value in meta['val']", _has_value),
    ("a call is of an operator, of getitem, or of arithmetic on sizes", _is_known_call),
    ("an operator writes into none of its arguments", _is_functional),
    ("a call has the arguments of its schema", _fits_schema),
    ("getitem picks a part that there is from an operator with several results", _picks_from_parts),
    ("a get_attr reads a tensor of the graph, without gradient, of the dtype and shape in its value", _reads_a_tensor),
    ("the output is a flat tuple of nodes", _returns_a_flat_tuple),
)

"""The arguments of a node by the names of its operator's schema.

A call may give a trailing default or leave it out, and give an argument by position or by name. Code that reads ``args[3]``
is wrong for one of the spellings; `bound` gives all of them as one::

    aten.conv2d(x, w, None, [2, 2])  →  {"input": x, "weight": w, "bias": None, "stride": [2, 2], "padding": [0, 0], ...}
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from tiacc.graph import torch_compat


def bound(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of `node` by schema name, in schema order, with the schema's defaults filled in.

    Args:
        node: A ``call_function`` node whose target is an operator overload.

    Returns:
        A new dictionary. The values are nodes, numbers, lists and so on, as they stand in the node.

    Raises:
        TypeError: The target is no operator overload, or the arguments do not fit its schema.
    """
    parameters = torch_compat.parameters(_overload(node))
    args, kwargs = node.args, node.kwargs
    if len(args) > len(parameters):
        raise _misfit(node, f"takes {len(parameters)} arguments and was given {len(args)}")
    result: dict[str, Any] = {}
    for parameter, value in zip(parameters, args):
        if parameter.is_keyword_only:
            raise _misfit(node, f"takes {parameter.name!r} by keyword only")
        result[parameter.name] = value
    used = 0
    for parameter in parameters[len(args) :]:
        if parameter.name in kwargs:
            result[parameter.name] = kwargs[parameter.name]
            used += 1
        elif parameter.has_default:
            default = parameter.default
            result[parameter.name] = list(default) if isinstance(default, list) else default
        else:
            raise _misfit(node, f"was not given {parameter.name!r}")
    if used != len(kwargs):
        positional = {parameter.name for parameter in parameters[: len(args)]}
        surplus = [name for name in kwargs if name not in result or name in positional]
        raise _misfit(node, f"has no use for the keyword arguments {surplus}")
    return result


def rebind(node: fx.Node, /, **changes: Any) -> None:
    """Set arguments of `node` by schema name, in place. ``meta["val"]`` is left as it is.

    Positional parameters stay positional; those left out before the last one that is set are filled with their defaults.

    Args:
        node: A ``call_function`` node whose target is an operator overload.
        **changes: The new values; a parameter called ``self`` is set by ``rebind(node, **{"self": value})``.

    Raises:
        TypeError: A name is not in the schema, or see `bound`.
    """
    parameters = torch_compat.parameters(_overload(node))
    values = bound(node)
    unknown = [name for name in changes if name not in values]
    if unknown:
        raise _misfit(node, f"has no parameters {unknown}; it has {list(values)}")
    values.update(changes)
    positional = [parameter.name for parameter in parameters if not parameter.is_keyword_only]
    given = {*changes, *node.kwargs, *positional[: len(node.args)]}
    count = max((index + 1 for index, name in enumerate(positional) if name in given), default=0)
    keywords = [parameter.name for parameter in parameters if parameter.is_keyword_only and parameter.name in given]
    node.args = tuple(values[name] for name in positional[:count])
    node.kwargs = {name: values[name] for name in keywords}


def _overload(node: fx.Node) -> torch._ops.OpOverload:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        raise TypeError(f"{node.name} = {node.target} ({node.op}) calls no operator overload, so its arguments have no names")
    return node.target


def _misfit(node: fx.Node, why: str) -> TypeError:
    return TypeError(f"{node.name} = {node.target} {why}")

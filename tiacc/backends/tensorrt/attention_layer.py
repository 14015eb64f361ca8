"""Where TensorRT's attention layer may stand: RTX 1.7.1 cannot build it among some of the layers that it would take in."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from tiacc.backends.tensorrt.call import Call
from tiacc.backends.tensorrt.conversion import Conversion

aten = torch.ops.aten

_SCALING = frozenset({aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.scaled_dot_product_attention.default})
"""Operators that may multiply a tensor by a number."""

_JOINING = frozenset({aten.cat.default, aten.concat.default, aten.concatenate.default, aten.hstack.default, aten.vstack.default,
                      aten.dstack.default, aten.column_stack.default})  # fmt: skip
"""Operators that may join tensors as they are."""

_VIEWS = frozenset(
    {
        aten.alias.default,
        aten.clone.default,
        aten.contiguous.default,
        aten.detach.default,
        aten.expand.default,
        aten.flatten.using_ints,
        aten.mT.default,
        aten.numpy_T.default,
        aten.movedim.int,
        aten.movedim.intlist,
        aten.permute.default,
        aten.reshape.default,
        aten.reshape_as.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.swapaxes.default,
        aten.swapdims.default,
        aten.t.default,
        aten.transpose.int,
        aten.unflatten.int,
        aten.unsqueeze.default,
        aten._unsafe_view.default,
        aten.view.default,
        aten.view_as.default,
    }
)
"""Operators that give all elements of their first argument in another shape or order."""


def is_alone(call: Call) -> bool:
    """Return whether an attention layer may stand where a node does.

    A tensor times a number becomes part of the layer that it is the query or key of, through views too. RTX 1.7.1 fails where that
    product is read once more, even as the value of the same layer, and the process ends where it is read by another attention layer. It
    also fails to join the result with what the layer reads, and with the result of another one. A query, key or value that was widened
    from half precision ends the process, or fails.
    """
    net, node = call.net, call.node
    if any(user.target in _JOINING for user in node.users):
        return False
    operands = [_source(call.args[name]) for name in ("query", "key", "value")]
    if any(_is_widened(net, operand) for operand in operands):
        return False
    query, key, _ = operands
    if any(reader.target in _SCALING for reader in _readers(query) if reader is not node):  # perhaps by the same number
        return False
    return not _is_shared_multiple(net, query) and not _is_shared_multiple(net, key)


def _source(node: fx.Node) -> fx.Node:
    """Return what a node is a view of."""
    while node.target in _VIEWS:
        node = node.args[0]  # type: ignore[assignment]
    return node


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """Yield what reads a node or a view of it, once for each time that it does."""
    for user in node.users:
        if user.target in _VIEWS:
            yield from _readers(user)
        else:
            read: list[fx.Node] = []
            fx.map_arg((user.args, user.kwargs), read.append)
            yield from [user] * read.count(node)


def _is_shared_multiple(net: Conversion, node: fx.Node) -> bool:
    """Return whether a value is a multiple that is read more than once, or a multiple of one."""
    source = _source(node)
    if not _is_multiple(net, source):
        return False
    return len(list(_readers(source))) > 1 or any(_is_shared_multiple(net, item) for item in source.all_input_nodes)


def _is_multiple(net: Conversion, node: fx.Node) -> bool:
    value = net.resolve(node)
    return not isinstance(value, torch.Tensor) and getattr(value, "name", None) in net.multiples


def _is_widened(net: Conversion, node: fx.Node) -> bool:
    """Return whether a value, or what it is a multiple of, has a wider floating-point type than what it was made from."""
    source = _source(node)
    if any(_width(item) < _width(source) for item in source.all_input_nodes if _width(item)):
        return True
    return _is_multiple(net, source) and any(_is_widened(net, item) for item in source.all_input_nodes)


def _width(node: fx.Node) -> int:
    """Return how many bytes an element of a floating-point tensor takes; 0 for anything else."""
    value = node.meta.get("val")
    return value.dtype.itemsize if isinstance(value, torch.Tensor) and value.is_floating_point() else 0

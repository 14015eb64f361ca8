"""Which values integer inputs may have that say where something is: torch checks them, OpenVINO reads zeros instead."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from tiacc.backends.openvino.lowering import name_of
from tiacc.graph import arguments, specs

INTEGERS = (torch.int64, torch.int32)

SAME = (
    "alias.default clone.default contiguous.default detach.default view.default reshape.default reshape_as.default view_as.default "
    "flatten.using_ints unflatten.int squeeze.default squeeze.dim squeeze.dims unsqueeze.default permute.default transpose.int t.default "
    "expand.default expand_as.default broadcast_to.default lift_fresh.default lift_fresh_copy.default resolve_neg.default "
    "resolve_conj.default to.dtype to.device to.other to.dtype_layout type_as.default _to_copy.default"
)
"""The operators whose results are all of the values of their first argument."""

_SAME = frozenset(SAME.split())

_ALONG = {
    "take_along_dim.default": "indices",
    **dict.fromkeys(
        ("index_select.default", "gather.default", "scatter.src", "scatter.value", "scatter_add.default", "index_add.default"), "index"
    ),
}
"""The operators that index `self` along `dim`, and what that by which they do is called."""


def input_ranges(gm: fx.GraphModule) -> tuple[tuple[int, int] | None, ...]:
    """Return, for each placeholder, the least and the greatest of its values that torch takes; None where it takes all.

    They follow from what is indexed by the input itself, or by a view or copy of it, where that has a fixed size.
    """
    ranges: dict[fx.Node, tuple[int, int]] = {}
    for node in gm.graph.nodes:
        for index, low, high in _indices_of(node) if node.op == "call_function" else ():
            source = _source_of(index)
            if source.op == "placeholder":
                known = ranges.get(source, (low, high))
                ranges[source] = (max(known[0], low), min(known[1], high))
    return tuple(ranges.get(node) for node in gm.graph.find_nodes(op="placeholder"))


def _indices_of(node: fx.Node) -> Iterator[tuple[fx.Node, int, int]]:
    """Yield what a node indexes by, with the least and the greatest value of each that torch takes."""
    name = name_of(node)
    if name not in _ALONG and name not in ("embedding.default", "index.Tensor", "index_put.default", "one_hot.default"):
        return
    given = arguments.bound(node)
    if name == "one_hot.default":
        found = [(given["self"], given["num_classes"], 0)]
    elif name == "embedding.default":
        found = [(given["indices"], specs.tensor_of(given["weight"]).shape[0], 0)]
    elif name in _ALONG:
        dim, shape = given["dim"], specs.tensor_of(given["self"]).shape
        found = [(given[_ALONG[name]], shape[dim], 0)] if dim is not None and shape else []
    else:
        shape = specs.tensor_of(given["self"]).shape
        found = [(index, size, -size) for index, size in zip(given["indices"], shape) if isinstance(size, int)]
    for index, size, low in found:
        if isinstance(index, fx.Node) and isinstance(size, int) and size > 0 and specs.tensor_of(index).dtype in INTEGERS:
            yield index, low, size - 1


def _source_of(node: fx.Node) -> fx.Node:
    """Return what holds all of the values of a node, further up."""
    while node.op == "call_function" and name_of(node) in _SAME:
        source = node.args[0]
        if not isinstance(source, fx.Node) or specs.tensor_of(source).dtype not in INTEGERS:
            break
        node = source
    return node

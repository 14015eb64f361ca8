"""Layers that read one input, as one layer: its result is cut into theirs, and a cut costs nothing.

before: ``q = linear(x, wq)``, ``k = linear(x, wk)``                after: ``both = linear(x, cat(wq, wk))``, ``q = both[..., :n]`` …
before: ``a = relu(conv(x, wa))``, ``b = relu(conv(x, wb))``        after: ``both = relu(conv(x, cat(wa, wb)))``, ``a = both[:, :n]`` …

The work behind the layers is done by the layer, so they are merged only where it is the same for all, or where there is none.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import fx

from tiacc.backends.cudnn.views import VIEWS
from tiacc.graph import arguments
from tiacc.passes import rewrite

aten = torch.ops.aten

_UNARY = ("relu", "sigmoid", "tanh", "silu", "gelu", "hardswish", "hardsigmoid", "leaky_relu")
UNARY = frozenset(getattr(aten, name).default for name in _UNARY)
"""What may be done to the results before they are cut."""

LAYERS = {
    aten.linear.default: -1,
    **dict.fromkeys((aten.conv1d.default, aten.conv2d.default, aten.convolution.default, aten._convolution.default), 1),
}
"""The layers that are merged, and the dimension in which their results are put side by side."""


def merge_siblings(gm: fx.GraphModule) -> int:
    """Merge the layers of a graph that can be, in place; new nodes have no types yet. Return how many were merged away."""
    families: dict[Hashable, list[fx.Node]] = {}
    for node in gm.graph.nodes:
        if node.op == "call_function" and node.target in LAYERS:
            kind = _kind(node)
            if kind is not None:
                families.setdefault(kind, []).append(node)
    merged = 0
    for siblings in families.values():
        if len(siblings) > 1:
            _merge(gm, siblings)
            merged += len(siblings) - 1
    if merged:
        gm.graph.lint()
        gm.recompile()
    return merged


def _kind(node: fx.Node) -> Hashable | None:
    """Return what layers must have in common to be merged; None for one that stays alone."""
    args = arguments.bound(node)
    weight, bias = rewrite.constant_of(args["weight"]), rewrite.constant_of(args["bias"])
    if weight is None or (args["bias"] is not None and bias is None) or args.get("groups", 1) != 1 or args.get("transposed"):
        return None
    behind = _work_behind(node)
    if behind is None:
        return None
    geometry = [(name, str(value)) for name, value in args.items() if name not in ("input", "weight", "bias")]
    return (args["input"], node.target, weight.dtype, tuple(weight.shape[1:]), bias is None, tuple(geometry), behind)


def _work_behind(node: fx.Node) -> Hashable | None:
    """Return what is done to a result before anything else: nothing, or one operation; None where it is more than one can share."""
    if all(user.target in VIEWS for user in node.users):
        return ()
    (user,) = node.users if len(node.users) == 1 else (None,)
    if user is None or user.target not in UNARY or user.args[0] is not node:
        return None
    return (user.target, str(user.args[1:]), str(user.kwargs))


def _merge(gm: fx.GraphModule, siblings: Sequence[fx.Node]) -> None:
    first = siblings[0]
    layer_op, behind = first.target, _work_behind(first)
    assert isinstance(layer_op, torch._ops.OpOverload)
    ends = [next(iter(node.users)) for node in siblings] if behind else list(siblings)
    weights = _constants(siblings, "weight")
    given = arguments.bound(first)
    for kind, parts in (("weight", weights), ("bias", _constants(siblings, "bias"))):
        if parts:
            given[kind] = rewrite.add_constant(first, f"merged_{kind}", torch.cat(parts))
    with gm.graph.inserting_before(first):
        layer = gm.graph.call_function(layer_op, tuple(given.values()))
        if behind:
            unary = ends[0].target
            assert isinstance(unary, torch._ops.OpOverload)
            layer = gm.graph.call_function(unary, (layer, *ends[0].args[1:]), ends[0].kwargs)
        begin = 0
        for end, weight in zip(ends, weights):
            count = weight.shape[0]
            end.replace_all_uses_with(gm.graph.call_function(aten.slice.Tensor, (layer, LAYERS[layer_op], begin, begin + count)))
            begin += count
    for old in dict.fromkeys((*ends, *siblings)):
        gm.graph.erase_node(old)


def _constants(nodes: Sequence[fx.Node], name: str) -> list[torch.Tensor]:
    """Return the weights, or biases, of layers; an empty list where they have none."""
    found = [rewrite.constant_of(arguments.bound(node)[name]) for node in nodes]
    return [data for data in found if data is not None]

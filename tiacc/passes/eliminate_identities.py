"""Take out calls that give what they are given.

::

    mul(x, 1), div(x, 1), sub(x, 0), pow(x, 1)       →  x, where no type or shape changes
    to(x, its own dtype), contiguous(x), detach(x)   →  x, where it is so laid out already
    clone(x), cat([x]), repeat(x, [1, 1])            →  x, where nobody can tell
    cat([x, empty, y]), slice_scatter(x, empty)      →  cat([x, y]), x
    reshape, expand, slice, squeeze to the shape x has, permute by (0, 1, 2), transpose(x, 1, 1)   →  x
    permute(permute(x)), transpose(transpose(x))     →  x, or one permute
    reshape(reshape(x)), reshape(flatten(x))         →  one reshape
    relu(relu(x)), neg(neg(x)), to(to(x, wider), its own dtype)   →  relu(x), x, x

Exactly the same numbers: ``x + 0`` stays for floating-point x, since it turns -0.0 into 0.0; ``x - 0`` and ``x + (-0.0)`` go. Shapes
count as equal if they are so for every size of a varying dimension.

Without a copy in between, a tensor may be laid out differently: every ``view`` of the graph becomes ``reshape``, which does not mind.
Where an operator does mind (``as_strided`` and the like), and where what the graph returns may be laid out by it, calls that may change
the layout stay. What is contiguous in a graph need not be when it runs: the caller's tensors may be laid out in any way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import fx

from tiacc.graph import arguments, torch_compat
from tiacc.graph.layouts import MAY_COPY, OWN_LAYOUT, READ_LAYOUT
from tiacc.passes import rewrite
from tiacc.passes.base import Pass, PassContext, PassResult, register

aten = torch.ops.aten

LARGEST_NEUTRAL = 1 << 16
"""The size, in elements, up to which a constant is searched for anything but ones or zeros."""

RESHAPES = frozenset(
    {
        aten._unsafe_view.default,
        aten.flatten.using_ints,
        aten.reshape.default,
        aten.reshape_as.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.unflatten.int,
        aten.unsqueeze.default,
        aten.view.default,
        aten.view_as.default,
    }
)
"""The operators that keep the order of the elements, and their number."""

LAYING_OUT = frozenset({aten.contiguous.default, aten.cat.default, aten.repeat.default, aten.tile.default})
"""The operators whose result may be laid out in another way than what they are given."""

IMAGES = (4, 5)
"""Of so many dimensions are tensors whose channels may come last; a `cat` of others is always contiguous."""

CONVERSIONS = (aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other, aten.type_as.default)
"""The operators that give their input itself where it is of the type asked for, else a new tensor."""


@register
@dataclass(frozen=True)
class EliminateIdentities(Pass):
    """Takes out calls that give what they are given."""

    name: ClassVar[str] = "eliminate-identities"

    def apply(self, gm: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Take them out; each call that goes, or that is merged with the one before it, counts as one change."""
        return PassResult(gm, eliminate_identities(gm, ctx))


Rule: TypeAlias = Callable[[fx.Node, dict[str, Any]], "fx.Node | None"]
"""``rule(node, its arguments by name)`` returns the node that `node` gives the value of, or None."""

SHARING: dict[Any, Rule] = {}
"""The rules for calls whose result is their input itself or a view of it."""

COPYING: dict[Any, Rule] = {}
"""The rules for calls whose result is a new tensor."""


def eliminate_identities(gm: fx.GraphModule, ctx: PassContext) -> int:
    """Replace the calls of `gm` that give what they are given, and merge those that undo each other; return how many."""
    memory = rewrite.Memory(gm)
    returned = set(rewrite.returned_nodes(gm))
    layout_matters = any(node.target in READ_LAYOUT for node in gm.graph.nodes)
    laying_out = None if layout_matters else _laying_out_results(gm)
    changes, is_looser = 0, False
    for node in gm.graph.nodes:
        rule = SHARING.get(node.target) or COPYING.get(node.target)
        if rule is None:
            continue
        is_free = laying_out is not None and node not in laying_out
        value = rule(node, arguments.bound(node))
        while value is None and _merge(node, ctx, is_free=is_free):
            changes += 1
            is_looser |= node.target is aten.cat.default
            value = (SHARING.get(node.target) or COPYING[node.target])(node, arguments.bound(node))
        if value is None:
            continue
        copies = node.target in COPYING or (node.target in CONVERSIONS and value not in node.all_input_nodes)
        loosens = copies or node.target is aten.contiguous.default
        if loosens and not is_free and (layout_matters or _may_lay_out(node) or not _same_layout(node, value)):
            continue
        if value.op == "placeholder" and node in returned:
            continue
        if copies and not memory.may_replace(node, value):
            continue
        if ctx.spend():
            sources = node.all_input_nodes
            rewrite.replace(node, value)
            _erase_unread(sources)
            changes += 1
            is_looser |= loosens
    if is_looser:
        for target in (aten.view.default, aten._unsafe_view.default):
            for node in gm.graph.find_nodes(op="call_function", target=target):
                node.target = aten.reshape.default
    return changes


def _laying_out_results(gm: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes by whose layout that of what the graph returns may be told."""
    found: set[fx.Node] = set()
    pending = list(rewrite.returned_nodes(gm))
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            if node.target not in OWN_LAYOUT:
                pending.extend(node.all_input_nodes)
    return found


def _may_lay_out(node: fx.Node) -> bool:
    """Return whether a call may give another layout than that of its input, where that is not the one that the graph has."""
    memory_format = node.kwargs.get("memory_format") if node.target not in LAYING_OUT else torch.contiguous_format
    return memory_format not in (None, torch.preserve_format)


def _merge(node: fx.Node, ctx: PassContext, *, is_free: bool) -> bool:
    """Let a reshape or permutation of another one start from where that starts, and a `cat` have no empty parts; return whether it did.

    Args:
        node: The call.
        ctx: What counts the changes.
        is_free: Whether its result may be laid out in another way.
    """
    if node.target is aten.cat.default:
        return (_drop_empty_parts if is_free or node.meta["val"].dim() not in IMAGES else _copy_only_part)(node, ctx)
    inner = node.args[0] if node.args else None
    if not isinstance(inner, fx.Node):
        return False
    if node.target in (aten.reshape.default, aten.view.default, aten._unsafe_view.default) and inner.target in RESHAPES:
        source = arguments.bound(inner)["self"]
        if _is_copied(source, inner) or not ctx.spend():
            return False
        shape = arguments.bound(node)["shape" if node.target is aten.reshape.default else "size"]
        node.target, node.args, node.kwargs = aten.reshape.default, (source, shape), {}
        _erase_unread([inner])
        return True
    outer_order, inner_order = _order(node), _order(inner)
    if outer_order is None or inner_order is None or len(inner.users) > 1 or not ctx.spend():
        return False
    order = [inner_order[place] for place in outer_order]
    node.target, node.args, node.kwargs = aten.permute.default, (arguments.bound(inner)["self"], order), {}
    _erase_unread([inner])
    return True


def _is_copied(source: fx.Node, reshaped: fx.Node) -> bool:
    """Return whether a reshape has to copy what it is given: without it, the next one might give a view, laid out otherwise."""
    return reshaped.target in MAY_COPY and not torch_compat.shares_memory(reshaped.meta["val"], source.meta["val"])


def _parts_of(node: fx.Node) -> tuple[list[fx.Node], list[fx.Node]]:
    """Return what a `cat` joins, as far as that is known, and those parts of it that are not empty."""
    tensors = arguments.bound(node)["tensors"]
    parts = list(tensors) if isinstance(tensors, (list, tuple)) else []
    return parts, [item for item in parts if not _is_empty(item)]


def _drop_empty_parts(node: fx.Node, ctx: PassContext) -> bool:
    tensors, kept = _parts_of(node)
    has_its_type = any(item.meta["val"].dtype == node.meta["val"].dtype for item in kept)
    if not has_its_type or len(kept) == len(tensors) or not ctx.spend():
        return False
    node.args, node.kwargs = (kept, arguments.bound(node)["dim"]), {}
    _erase_unread(item for item in tensors if item not in kept)
    return True


def _copy_only_part(node: fx.Node, ctx: PassContext) -> bool:
    """Have a `cat` of one image and empty parts copy the image: one of these that is no image makes the result contiguous."""
    tensors, kept = _parts_of(node)
    if len(kept) != 1 or kept[0].meta["val"].dtype != node.meta["val"].dtype:
        return False
    if all(item.meta["val"].dim() in IMAGES for item in tensors) or not ctx.spend():
        return False
    node.target, node.args, node.kwargs = aten.clone.default, (kept[0],), {"memory_format": torch.contiguous_format}
    _erase_unread(item for item in tensors if item is not kept[0])
    return True


def _is_empty(node: fx.Node) -> bool:
    """Return whether a tensor has no elements, whatever the sizes that vary."""
    return any(isinstance(size, int) and size == 0 for size in node.meta["val"].shape)


def _erase_unread(nodes: Iterable[fx.Node]) -> None:
    for node in nodes:
        if not node.users and rewrite.is_pure(node):
            node.graph.erase_node(node)


def _rule(table: dict[Any, Rule], *targets: Any) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        table.update(dict.fromkeys(targets, rule))
        return rule

    return add


def _if_same_type(node: fx.Node, value: object) -> fx.Node | None:
    if isinstance(value, fx.Node) and rewrite.same_type(node.meta.get("val"), value.meta.get("val")):
        return value
    return None


def _same_layout(node: fx.Node, value: fx.Node) -> bool:
    return rewrite.same_layout(node.meta["val"], value.meta["val"])


def _is_all(operand: object, number: float, *, is_negative: bool = False) -> bool:
    """Return whether an operand is a number, or a small constant of nothing else, and zero of the given sign if it is zero."""
    if isinstance(operand, fx.Node):
        tensor = rewrite.constant_of(operand)
        if tensor is None or not 0 < tensor.numel() <= LARGEST_NEUTRAL or tensor.is_quantized or tensor.is_complex():
            return False
    elif isinstance(operand, (int, float)):
        tensor = torch.tensor(operand)
    else:
        return False
    if not bool((tensor == number).all()):
        return False
    return number != 0 or not tensor.is_floating_point() or bool((torch.signbit(tensor) == is_negative).all())


def _is_real(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and not value.is_complex()


@_rule(COPYING, aten.mul.Tensor, aten.mul.Scalar)
def _times_one(node: fx.Node, bound: dict[str, Any]) -> fx.Node | None:
    first, second = bound["self"], bound["other"]
    for value, factor in ((first, second), (second, first)):
        if _is_real(node) and _if_same_type(node, value) and _is_all(factor, 1):
            return value  # type: ignore[no-any-return]
    return None


@_rule(COPYING, aten.div.Tensor, aten.div.Scalar)
def _over_one(node: fx.Node, bound: dict[str, Any]) -> fx.Node | None:
    return _if_same_type(node, bound["self"]) if _is_real(node) and _is_all(bound["other"], 1) else None


@_rule(COPYING, aten.pow.Tensor_Scalar)
def _to_the_one(node: fx.Node, bound: dict[str, Any]) -> fx.Node | None:
    return _if_same_type(node, bound["self"]) if _is_real(node) and _is_all(bound["exponent"], 1) else None


@_rule(COPYING, aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar)
def _plus_zero(node: fx.Node, bound: dict[str, Any]) -> fx.Node | None:
    value = _if_same_type(node, bound["self"])
    if value is None or not _is_real(node) or bound["alpha"] != 1:
        return None
    is_sum = node.target in (aten.add.Tensor, aten.add.Scalar)
    if not value.meta["val"].is_floating_point():
        return value if _is_all(bound["other"], 0) or _is_all(bound["other"], 0, is_negative=True) else None
    # -0.0 + 0 is 0.0, so only the zero that keeps the sign will do. An integer 0 becomes 0.0.
    return value if _is_all(bound["other"], 0, is_negative=is_sum) and (not is_sum or _is_float(bound["other"])) else None


def _is_float(operand: object) -> bool:
    tensor = rewrite.constant_of(operand)
    return isinstance(operand, float) if tensor is None else tensor.is_floating_point()


@_rule(SHARING, *CONVERSIONS)
@_rule(COPYING, aten._to_copy.default, aten.clone.default)
def _to_what_it_is(node: fx.Node, bound: dict[str, Any]) -> fx.Node | None:
    source = bound["self"]
    if bound.get("copy") or not _is_kept(bound.get("memory_format"), node, source):
        return None
    return _if_same_type(node, source) or _round_trip(node, source)


def _is_kept(memory_format: torch.memory_format | None, node: fx.Node, source: fx.Node) -> bool:
    """Return whether a conversion to a memory format changes nothing."""
    if memory_format in (None, torch.preserve_format):
        return True
    value, given = node.meta.get("val"), source.meta.get("val")
    return isinstance(value, torch.Tensor) and isinstance(given, torch.Tensor) and rewrite.same_layout(value, given)


def _round_trip(node: fx.Node, source: fx.Node) -> fx.Node | None:
    """Return x for ``to(to(x, wider), dtype of x)``."""
    if source.op != "call_function" or source.target not in (aten.to.dtype, aten._to_copy.default):
        return None
    inner = arguments.bound(source)
    value = _if_same_type(node, inner["self"])
    if value is None or not _is_kept(inner["memory_format"], source, value):
        return None
    return value if rewrite.is_lossless(value.meta["val"].dtype, source.meta["val"].dtype) else None


@_rule(SHARING, aten.contiguous.default)
def _contiguous(node: fx.Node, bound: dict[str, Any]) -> fx.Node | None:
    value = _if_same_type(node, bound["self"])
    return value if value is not None and _same_layout(node, value) else None


@_rule(
    SHARING,
    *RESHAPES,
    aten.alias.default,
    aten.broadcast_to.default,
    aten.detach.default,
    aten.expand.default,
    aten.expand_as.default,
    aten.lift_fresh.default,
    aten.narrow.default,
)
def _same_shape(node: fx.Node, bound: dict[str, Any]) -> fx.Node | None:
    return _if_same_type(node, bound["self"])


@_rule(COPYING, aten.repeat.default, aten.tile.default, aten.lift_fresh_copy.default)
def _same_shape_copied(node: fx.Node, bound: dict[str, Any]) -> fx.Node | None:
    return _if_same_type(node, bound["self"])


@_rule(SHARING, aten.slice.Tensor)
def _whole(node: fx.Node, bound: dict[str, Any]) -> fx.Node | None:
    return _if_same_type(node, bound["self"]) if bound["step"] == 1 else None


@_rule(COPYING, aten.cat.default)
def _cat_of_one(node: fx.Node, bound: dict[str, Any]) -> fx.Node | None:
    tensors = bound["tensors"]
    return _if_same_type(node, tensors[0]) if isinstance(tensors, (list, tuple)) and len(tensors) == 1 else None


@_rule(COPYING, aten.slice_scatter.default)
def _nothing_scattered(node: fx.Node, bound: dict[str, Any]) -> fx.Node | None:
    return _if_same_type(node, bound["self"]) if _is_empty(bound["src"]) else None


@_rule(SHARING, aten.permute.default, aten.transpose.int, aten.t.default)
def _unmoved(node: fx.Node, bound: dict[str, Any]) -> fx.Node | None:
    order = _order(node)
    source = bound["self"]
    if order == sorted(order or ()):
        return source  # type: ignore[no-any-return]
    inner = _order(source)
    if order and inner and all(inner[place] == index for index, place in enumerate(order)):
        return arguments.bound(source)["self"]  # type: ignore[no-any-return]
    return None


def _order(node: object) -> list[int] | None:
    """Return, for each dimension of a permuted tensor, which one of its source that is; None if `node` is no permutation."""
    if not isinstance(node, fx.Node) or node.target not in (aten.permute.default, aten.transpose.int, aten.t.default):
        return None
    bound = arguments.bound(node)
    rank = bound["self"].meta["val"].ndim
    if node.target is aten.permute.default:
        return [dim % rank for dim in bound["dims"]]
    order = list(range(rank))
    if node.target is aten.t.default:
        return order[::-1]
    if rank:
        first, second = bound["dim0"] % rank, bound["dim1"] % rank
        order[first], order[second] = order[second], order[first]
    return order


@_rule(
    COPYING,
    aten.abs.default,
    aten.ceil.default,
    aten.floor.default,
    aten.relu.default,
    aten.relu6.default,
    aten.round.default,
    aten.trunc.default,
)
def _done_already(node: fx.Node, bound: dict[str, Any]) -> fx.Node | None:
    return _if_same_type(node, bound["self"]) if bound["self"].target is node.target else None


@_rule(COPYING, aten.neg.default)
def _negated_twice(node: fx.Node, bound: dict[str, Any]) -> fx.Node | None:
    inner = bound["self"]
    return _if_same_type(node, inner.args[0]) if inner.target is node.target else None

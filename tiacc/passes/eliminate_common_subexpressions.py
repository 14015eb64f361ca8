"""Compute once what is computed twice.

::

    add(relu(x), relu(x))             →  r = relu(x); add(r, r)
    conv2d(x, w), conv2d(x, w, None)  →  one of them: the same arguments, however they are written
    constants a, b with equal bytes   →  one of them
    add(x, y), add(y, x)              →  one of them

Calls that draw random numbers are never merged. Two tensors that are both returned are not either, since the caller may write into
one of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from tiacc.graph import arguments
from tiacc.passes import rewrite
from tiacc.passes.base import Pass, PassContext, PassResult, register

aten = torch.ops.aten

COMMUTATIVE = frozenset(
    {
        aten.add.Tensor,
        aten.bitwise_and.Tensor,
        aten.bitwise_or.Tensor,
        aten.bitwise_xor.Tensor,
        aten.eq.Tensor,
        aten.logical_and.default,
        aten.logical_or.default,
        aten.logical_xor.default,
        aten.mul.Tensor,
        aten.ne.Tensor,
    }
)
"""The operators whose first two arguments may change places (``add`` where ``alpha`` is 1). ``maximum`` and ``minimum`` are none: of
-0.0 and 0.0 they may give either, by the order."""


@register
@dataclass(frozen=True)
class EliminateCommonSubexpressions(Pass):
    """Merges calls and constants that are equal."""

    name: ClassVar[str] = "eliminate-common-subexpressions"

    def apply(self, gm: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Merge them; each node that goes counts as one change."""
        return PassResult(gm, eliminate_common_subexpressions(gm, ctx))


def eliminate_common_subexpressions(gm: fx.GraphModule, ctx: PassContext) -> int:
    """Replace each node of `gm` by an equal one before it, where there is one; return how many."""
    memory = rewrite.Memory(gm)
    constants = _constant_keys(gm)
    first: dict[Hashable, fx.Node] = {}
    alone: dict[Hashable, fx.Node | None] = {}
    changes = 0
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            key = constants.get(node)
            if key is None:
                continue
        else:
            if not rewrite.is_pure(node) or node.target in rewrite.UNINITIALISED:
                continue
            # Most calls are of an operator that no other call gives the same tensors: their other arguments need not be read.
            rough = node.target, frozenset(node.all_input_nodes)
            other = alone.setdefault(rough, node)
            if other is node:
                continue
            if other is not None:
                first.setdefault(_call_key(other), other)
                alone[rough] = None
            key = _call_key(node)
        known = first.setdefault(key, node)
        if known is node or (node.target in COMMUTATIVE and not rewrite.same_layout(node.meta["val"], known.meta["val"])):
            continue  # a sum is laid out as its first operand
        if memory.may_replace(node, known) and ctx.spend():
            rewrite.replace(node, known)
            changes += 1
    return changes


def _call_key(node: fx.Node) -> Hashable:
    """Return what two equal calls have in common."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.target, _frozen(node.args), _frozen(tuple(node.kwargs.items()))
    bound = arguments.bound(node)
    values = [_frozen(value) for value in bound.values()]
    if node.target in COMMUTATIVE and bound.get("alpha", 1) == 1:
        values[:2] = sorted(values[:2], key=hash)
    return node.target, tuple(values)


def _frozen(value: Any) -> Hashable:
    """Return a hashable copy of an argument, in which 1, 1.0 and True differ, as do 0.0 and -0.0."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_frozen, value))
    if isinstance(value, dict):
        return tuple((name, _frozen(item)) for name, item in value.items())
    if isinstance(value, slice):
        return slice, _frozen((value.start, value.stop, value.step))
    if isinstance(value, float):
        return float, value.hex()
    if isinstance(value, (bool, int, complex)):
        return type(value), repr(value)
    return value  # type: ignore[no-any-return]


def _constant_keys(gm: fx.GraphModule) -> dict[fx.Node, Hashable]:
    """Return, for each constant, what it has in common with equal ones. Only those whose types and first numbers agree are read."""
    alike: dict[Hashable, list[tuple[fx.Node, torch.Tensor]]] = {}
    for node in gm.graph.find_nodes(op="get_attr"):
        tensor = rewrite.constant_of(node)
        if tensor is None or tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
            continue
        corner = tensor[tuple(slice(0, 2) for _ in tensor.shape)]
        key = tensor.dtype, tensor.device, tensor.shape, tensor.stride(), _bytes(corner).tobytes()
        alike.setdefault(key, []).append((node, tensor))
    keys: dict[fx.Node, Hashable] = {}
    for kind, members in alike.items():
        places = {(tensor.data_ptr(), tensor.is_conj(), tensor.is_neg()) for _, tensor in members}
        for node, tensor in members:
            keys[node] = kind, None if len(places) == 1 else hashlib.blake2b(_bytes(tensor)).digest()
    return keys


def _bytes(tensor: torch.Tensor) -> Any:
    """Return the bytes of a tensor as a numpy array."""
    plain = tensor.resolve_conj().resolve_neg().contiguous().cpu()
    return plain.reshape(-1).view(torch.uint8).numpy()

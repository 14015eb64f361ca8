"""Compute what depends on constants alone, once.

::

    linear(x, t(mul(w, 0.5)))   →  linear(x, t_folded)
    add(x, arange(8))           →  add(x, arange_folded)
    expand(x, [size(w, 0), 4])  →  expand(x, [16, 4])
    new_zeros(x, [8, 8])        →  zeros_folded, as all that is told by shapes and element types: what fills, and what is empty

Left as they are: random draws and uninitialised memory; what the graph returns, since the caller gets a new tensor on every call and
may write into it; and results so large that folding them would trade arithmetic for memory, such as ``zeros(10000, 10000)``: a
result is folded if it is no larger than the constants it is made of, or no larger than `limit_bytes`, and all that is gained in size
beyond the constants is no more than `growth_bytes`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from tiacc.graph import arguments
from tiacc.passes import rewrite
from tiacc.passes.base import Pass, PassContext, PassResult, register

aten = torch.ops.aten

_UNKNOWN = object()

_FILLED: dict[Any, int] = {
    aten.zeros_like.default: 0,
    aten.new_zeros.default: 0,
    aten.ones_like.default: 1,
    aten.new_ones.default: 1,
}
_FILLED_WITH: dict[Any, str] = {
    aten.full_like.default: "fill_value",
    aten.new_full.default: "fill_value",
    aten.fill.Scalar: "value",
    aten.fill.Tensor: "value",
}
"""The operators that fill a tensor of some shape, and with what: a number, or an argument."""


@register
@dataclass(frozen=True)
class FoldConstants(Pass):
    """Computes what depends on constants alone.

    Attributes:
        limit_bytes: The size up to which a result may be larger than what it is made of.
        growth_bytes: How much larger all results together may be than what they are made of.
    """

    name: ClassVar[str] = "fold-constants"

    limit_bytes: int = 1 << 20
    growth_bytes: int = 64 << 20

    def apply(self, gm: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Compute them; each call that goes counts as one change."""
        return PassResult(gm, fold_constants(gm, ctx, self.limit_bytes, self.growth_bytes))


def fold_constants(gm: fx.GraphModule, ctx: PassContext, limit_bytes: int, growth_bytes: int) -> int:
    """Replace what `gm` computes of constants by new constants and numbers; return how many calls went."""
    foldable = _foldable(gm, limit_bytes, growth_bytes)
    for node, value in _evaluate(foldable).items():
        if ctx.spend():
            _put(node, value)
    changes = 0
    for node in reversed(foldable):
        if not node.users:
            gm.graph.erase_node(node)
            changes += 1
    return changes


def _foldable(gm: fx.GraphModule, limit_bytes: int, growth_bytes: int) -> dict[fx.Node, None]:
    """Return the calls that depend on constants alone and are small enough, in order."""
    memory = rewrite.Memory(gm)
    foldable: dict[fx.Node, None] = {}
    growth = 0
    for node in gm.graph.nodes:
        if not rewrite.is_pure(node) or node.target in rewrite.UNINITIALISED or memory.is_returned(node):
            continue
        if not _is_number(node.meta.get("val")):
            sources = _sources(node)
            if not all(source in foldable or rewrite.constant_of(source) is not None for source in sources):
                continue
            size = _bytes_of(node)
            if size is None:
                continue
            excess = max(size - sum(_bytes_of(source) or 0 for source in sources), 0)
            if excess and (size > limit_bytes or growth + excess > growth_bytes):
                continue
            growth += excess
        foldable[node] = None
    return foldable


def _sources(node: fx.Node) -> list[fx.Node]:
    """Return the nodes whose values that of `node` depends on; of the others it reads no more than the type."""
    if not _is_static(node.meta.get("val")):
        return node.all_input_nodes
    if node.meta["val"].numel() == 0 or node.target in _FILLED:
        return []
    if node.target in _FILLED_WITH:
        value = arguments.bound(node)[_FILLED_WITH[node.target]]
        return [value] if isinstance(value, fx.Node) else []
    return node.all_input_nodes


def _is_static(value: Any) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and not value.is_quantized
        and all(isinstance(size, int) for size in (*value.shape, *value.stride()))
    )


def _evaluate(foldable: dict[fx.Node, None]) -> dict[fx.Node, Any]:
    """Compute nodes in order; return the values that nodes elsewhere read. The others are let go when their last reader has run."""
    values: dict[fx.Node, Any] = {}
    wanted: dict[fx.Node, Any] = {}
    readers = {node: sum(user in foldable for user in node.users) for node in foldable}
    unread = dict(readers)
    for node in foldable:
        value = _compute(node, values)
        if value is not _UNKNOWN:
            if readers[node]:
                values[node] = value
            if readers[node] < len(node.users) and _is_as_promised(value, node.meta.get("val")):
                wanted[node] = value
        for source in node.all_input_nodes:
            if source in foldable:
                unread[source] -= 1
                if not unread[source]:
                    values.pop(source, None)
    return wanted


def _compute(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """Return what `node` gives, or `_UNKNOWN`."""
    if _is_number(node.meta.get("val")):
        return node.meta["val"]

    def read(source: fx.Node) -> Any:
        return values[source] if source in values else rewrite.constant_of(source)

    sources = _sources(node)
    if any(source.op != "get_attr" and source not in values for source in sources):
        return _UNKNOWN
    try:
        if sources != node.all_input_nodes:
            return _filled(node, read)
        args, kwargs = fx.map_arg((node.args, node.kwargs), read)
        with torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception:  # noqa: BLE001 - an operator that fails here fails in the model too: it stays, to do so there
        return _UNKNOWN


def _filled(node: fx.Node, read: Callable[[fx.Node], Any]) -> torch.Tensor:
    """Return what `node` gives, told by its type and what fills it."""
    fake = node.meta["val"]
    value = _FILLED.get(node.target, 0)
    if fake.numel() and node.target in _FILLED_WITH:
        value = arguments.bound(node)[_FILLED_WITH[node.target]]
        value = read(value) if isinstance(value, fx.Node) else value
    return torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=fake.device).fill_(value)


def _put(node: fx.Node, value: Any) -> None:
    """Let the readers of `node` read a constant or number instead."""
    if isinstance(value, torch.Tensor):
        fake = node.meta["val"]
        same = value.device == fake.device and rewrite.same_layout(value, fake)
        constant = rewrite.add_constant(node, f"{node.name}_folded", value, val=fake if same else None)
        node.replace_all_uses_with(constant)
        return
    for user in list(node.users):
        user.args, user.kwargs = fx.map_arg((user.args, user.kwargs), lambda source: value if source is node else source)


def _is_as_promised(value: Any, promised: Any) -> bool:
    """Return whether a computed value can stand for one of the given fake value: a number, or a tensor of its type."""
    return _is_number(value) or rewrite.same_type(value, promised)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, bool, complex))


def _bytes_of(node: fx.Node) -> int | None:
    """Return the size of what `node` gives, in bytes; None if it is not known, or not made of plain tensors."""
    value = node.meta.get("val")
    if _is_number(value):
        return 0
    tensors = value if isinstance(value, (list, tuple)) else [value]
    total = 0
    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_quantized:
            return None
        count = tensor.numel()
        if not isinstance(count, int) or tensor.device.type == "meta":
            return None
        total += count * tensor.element_size()
    return total

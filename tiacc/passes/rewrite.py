"""The steps that rewrites are made of: what a node may be replaced by, and how.

Nodes that these functions make carry the source line of the node they stand for and, where the caller knows it, their value; a value
that is not given is inferred when the pass is done. No weight is ever written into: a changed one is a new constant.
"""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx

from tiacc.graph import arguments, specs, torch_compat

aten = torch.ops.aten

NUMBERS = (int, float, complex, torch.SymInt, torch.SymFloat, torch.SymBool)
"""The types of the values that are no tensors: ``bool`` is an ``int``."""

UNINITIALISED = frozenset(
    {
        aten.empty.memory_format,
        aten.empty_like.default,
        aten.empty_permuted.default,
        aten.empty_strided.default,
        aten.new_empty.default,
        aten.new_empty_strided.default,
    }
)
"""The operators whose results are whatever was in memory."""

WRITES_STATISTICS_IF = {
    aten.batch_norm.default: "training",
    aten.cudnn_batch_norm.default: "training",
    aten.instance_norm.default: "use_input_stats",
    aten.native_batch_norm.default: "training",
}
"""The operators that write into their running statistics when this argument is true, which their schemas do not tell."""


def constant_of(node: object) -> torch.Tensor | None:
    """Return the tensor that a ``get_attr`` node reads; None for anything else."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    gm = node.graph.owning_module
    value = specs.fetch_attr(gm, str(node.target)) if gm is not None else None
    return value.detach() if isinstance(value, torch.Tensor) else None


def add_constant(anchor: fx.Node, name: str, tensor: torch.Tensor, *, val: torch.Tensor | None = None) -> fx.Node:
    """Register a tensor with the module that owns a graph, under a name that is free, and return a node that reads it.

    Args:
        anchor: The node before which to put the new one.
        name: What to call it: letters, digits and ``_``; other characters become ``_``.
        tensor: The constant; it is kept, not copied.
        val: Its fake value if that is known: one of the same shape, strides, dtype and device.

    Raises:
        ValueError: The graph belongs to no module.
    """
    gm = anchor.graph.owning_module
    if gm is None:
        raise ValueError(f"the graph of {anchor.name} belongs to no module, so it cannot have constants")
    free = _free_name(gm, re.sub(r"\W", "_", name))
    gm.register_buffer(free, tensor.detach())
    with anchor.graph.inserting_before(anchor):
        node = anchor.graph.get_attr(free)
    node.meta["val"] = torch_compat.fake_constant(specs.fake_mode_of(gm), tensor) if val is None else val
    return node


def _free_name(gm: fx.GraphModule, stem: str) -> str:
    """Return `stem`, or the first of ``stem_1``, ``stem_2``… that was never taken: a weight of many layers gives many new ones."""
    taken: dict[str, int] = gm.meta.setdefault("names_taken", {})
    for count in itertools.count(taken.get(stem, 0)):
        name = f"{stem}_{count}" if count else stem
        if not hasattr(gm, name):
            taken[stem] = count + 1
            return name
    raise AssertionError("unreachable")


def add_call(
    anchor: fx.Node,
    target: Any,
    *args: Any,
    like: fx.Node | None = None,
    val: Any = None,
    **kwargs: Any,
) -> fx.Node:
    """Add a call before `anchor` and return its node.

    Args:
        anchor: The node before which to put the new one.
        target: The operator overload or scalar function to call.
        *args: Its positional arguments.
        like: The node that the new one stands for, whose source line and module path it takes; `anchor` if not given.
        val: Its value, where known.
        **kwargs: Its keyword-only arguments.
    """
    with anchor.graph.inserting_before(anchor):
        node = anchor.graph.call_function(target, args, kwargs)
    known = (like or anchor).meta
    node.meta.update((key, known[key]) for key in ("source", "path") if known.get(key))
    if val is not None:
        node.meta["val"] = val
    return node


def replace(node: fx.Node, value: fx.Node) -> None:
    """Let everyone who reads `node` read `value`, and erase `node`."""
    node.replace_all_uses_with(value)
    node.graph.erase_node(node)


def single_user(node: fx.Node) -> fx.Node | None:
    """Return the one node that reads `node`, if there is one and no other."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def returned_nodes(gm: fx.GraphModule) -> tuple[fx.Node, ...]:
    """Return the nodes that the graph returns, in order."""
    return tuple(gm.graph.output_node().all_input_nodes)


def is_pure(node: fx.Node) -> bool:
    """Return whether a call always gives the same for the same, and does nothing else: no random numbers, no write, no check."""
    if node.op != "call_function":
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.target is operator.getitem or node.target in specs.SCALAR_FUNCTIONS
    if torch_compat.has_effect(node.target):
        return False
    switch = WRITES_STATISTICS_IF.get(node.target)
    if switch is None and not torch_compat.may_be_random(node.target):
        return True
    bound = arguments.bound(node)
    if switch is not None and bound[switch] and bound["running_mean"] is not None:
        return False
    return not torch_compat.is_random(node.target, list(bound.values()))


def same_type(first: Any, second: Any) -> bool:
    """Return whether two values are tensors of one shape (for every size declared), dtype and device."""
    return (
        isinstance(first, torch.Tensor)
        and isinstance(second, torch.Tensor)
        and first.dtype == second.dtype
        and first.device == second.device
        and same_sizes(first.shape, second.shape)
    )


def is_finite(tensor: torch.Tensor) -> bool:
    """Return whether a floating-point tensor holds neither infinities nor NaN; reads it once."""
    if not tensor.numel():
        return True
    low, high = torch.aminmax(tensor.detach())
    return bool(low.isfinite() & high.isfinite())


def is_lossless(narrow: torch.dtype, wide: torch.dtype) -> bool:
    """Return whether every number of one dtype is a number of another."""
    if narrow == wide or narrow == torch.bool:
        return True
    if narrow.is_complex or wide.is_complex or torch.bool in (narrow, wide):
        return False
    if not narrow.is_floating_point:
        low, high = torch.iinfo(narrow).min, torch.iinfo(narrow).max
        if wide.is_floating_point:
            return high <= 2 / torch.finfo(wide).eps
        return torch.iinfo(wide).min <= low and high <= torch.iinfo(wide).max
    if not wide.is_floating_point:
        return False
    small, large = torch.finfo(narrow), torch.finfo(wide)
    return large.eps <= small.eps and large.max >= small.max and large.smallest_normal <= small.smallest_normal


def same_layout(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Return whether two tensors have the same strides."""
    return same_sizes(first.stride(), second.stride())


def same_sizes(first: Sequence[int | torch.SymInt], second: Sequence[int | torch.SymInt]) -> bool:
    """Return whether two lists of sizes are the same numbers or expressions."""
    return len(first) == len(second) and all(map(torch_compat.same_size, first, second))


class Memory:
    """Which tensors of a graph may share memory with what it returns.

    The caller of a graph may write into what it is given. So a tensor that was new on every call has to stay new: it may not become
    an input, a constant or another returned tensor just because the numbers are the same.

    Args:
        gm: The graph. It may be rewritten meanwhile, as long as each replacement is asked for with `may_replace`.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self._returned: set[fx.Node] = set()
        self._mark(returned_nodes(gm))

    def is_returned(self, node: fx.Node) -> bool:
        """Return whether what the graph returns may share the memory of `node`."""
        return node in self._returned

    def may_replace(self, node: fx.Node, value: fx.Node) -> bool:
        """Return whether readers of `node` may read `value` in its place, though that is other memory; if so, take it as done."""
        if node not in self._returned:
            return True
        roots = _roots(value)
        if any(root.op != "call_function" or root in self._returned for root in roots):
            return False
        self._mark((value,))
        return True

    def _mark(self, nodes: Iterable[fx.Node]) -> None:
        stack = list(nodes)
        while stack:
            node = stack.pop()
            if node not in self._returned:
                self._returned.add(node)
                stack.extend(_sources(node))


def _sources(node: fx.Node) -> Sequence[fx.Node]:
    """Return the nodes whose memory the value of `node` may be."""
    if node.op != "call_function":
        return ()
    if isinstance(node.target, torch._ops.OpOverload):
        if not torch_compat.may_alias(node.target):
            return ()
    elif node.target is not operator.getitem:
        return ()
    return [source for source in node.all_input_nodes if not isinstance(source.meta.get("val"), NUMBERS)]


def _roots(node: fx.Node) -> set[fx.Node]:
    """Return the nodes that made the memory in which the value of `node` may be."""
    roots, seen, stack = set(), {node}, [node]
    while stack:
        sources = _sources(current := stack.pop())
        if not sources:
            roots.add(current)
        for source in sources:
            if source not in seen:
                seen.add(source)
                stack.append(source)
    return roots

"""Drop what nobody reads.

::

    x → relu → (returned)            x → relu → (returned)
    └─→ neg → (nobody)        →
    constant w → (nobody)

A call is dropped only if computing it does nothing but give a result; random draws stay, for they move the generator on. Inputs stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from tiacc.passes import rewrite
from tiacc.passes.base import Pass, PassContext, PassResult, register


@register
@dataclass(frozen=True)
class EliminateDeadCode(Pass):
    """Drops calls, constants and numbers that nobody reads."""

    name: ClassVar[str] = "eliminate-dead-code"

    def apply(self, gm: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Drop them; each node and each tensor of the module counts as one change."""
        return PassResult(gm, eliminate_dead_code(gm, ctx))


def eliminate_dead_code(gm: fx.GraphModule, ctx: PassContext) -> int:
    """Erase unread nodes, last first, then the tensors of the module that no node reads; return how many."""
    changes = 0
    for node in reversed(gm.graph.nodes):
        if not node.users and (node.op == "get_attr" or rewrite.is_pure(node)) and ctx.spend():
            gm.graph.erase_node(node)
            changes += 1
    return changes + _drop_unread_tensors(gm, ctx)


def _drop_unread_tensors(gm: fx.GraphModule, ctx: PassContext) -> int:
    read = {str(node.target) for node in gm.graph.find_nodes(op="get_attr")}
    changes = 0
    for path, module in gm.named_modules():
        for name in [*module._buffers, *module._parameters]:
            if (f"{path}.{name}" if path else name) not in read and ctx.spend():
                delattr(module, name)
                changes += 1
    return changes

"""Take out dropout that does nothing.

::

    dropout(x, p, train=False)             →  x
    dropout(x, 0.0, train=True)            →  x
    native_dropout(x, p, train=False)[0]   →  x

The same for ``feature_dropout``, ``alpha_dropout``, ``feature_alpha_dropout``. One that is on (`train` and 0 < `p`) is left.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from tiacc.graph import arguments
from tiacc.passes import rewrite
from tiacc.passes.base import Pass, PassContext, PassResult, register

aten = torch.ops.aten

DROPOUTS = (
    aten.dropout.default,
    aten.dropout_.default,
    aten.feature_dropout.default,
    aten.feature_dropout_.default,
    aten.alpha_dropout.default,
    aten.alpha_dropout_.default,
    aten.feature_alpha_dropout.default,
    aten.feature_alpha_dropout_.default,
)
"""Those that return one tensor; when off they return their input itself."""


@register
@dataclass(frozen=True)
class RemoveDropout(Pass):
    """Takes out dropout in evaluation mode."""

    name: ClassVar[str] = "remove-dropout"

    def apply(self, gm: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Replace each by its input; each counts as one change."""
        return PassResult(gm, remove_dropout(gm, ctx))


def remove_dropout(gm: fx.GraphModule, ctx: PassContext) -> int:
    """Replace the dropouts of `gm` that do nothing by their inputs; return how many."""
    changes = 0
    for target in DROPOUTS:
        for node in gm.graph.find_nodes(op="call_function", target=target):
            if _is_off(node) and ctx.spend():
                rewrite.replace(node, arguments.bound(node)["input"])
                changes += 1
    memory = rewrite.Memory(gm)
    for node in gm.graph.find_nodes(op="call_function", target=aten.native_dropout.default):
        picks = list(node.users)
        source = arguments.bound(node)["input"]
        if (
            _is_off(node)
            and all(pick.target is operator.getitem and pick.args[1] == 0 for pick in picks)
            and all(memory.may_replace(pick, source) for pick in picks)
            and ctx.spend()
        ):
            for pick in picks:
                rewrite.replace(pick, source)
            gm.graph.erase_node(node)
            changes += 1
    return changes


def _is_off(node: fx.Node) -> bool:
    bound = arguments.bound(node)
    # native_dropout takes `train=None` for true.
    return bound["train"] is False or (isinstance(bound["p"], (int, float)) and bound["p"] == 0 and bound["train"] is not None)

"""Say operators that other packages define in aten operators, where no backend has a converter for them.

::

    x → acme::soft_clip(2.0) → y            x → div(2.0) → tanh → mul(2.0) → y

How is what `tiacc.operators.teach` was told. A backend that converts an operator itself is left it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from tiacc import operators
from tiacc.passes.base import Pass, PassContext, PassResult, register
from tiacc.passes.rules import apply_rules

BACKENDS = "backends"
"""Where the context has the backends that the graph is for, in order of priority."""


@register
@dataclass(frozen=True)
class ExpandOperators(Pass):
    """Writes operators of other packages in aten operators where no backend converts them."""

    name: ClassVar[str] = "expand-operators"
    after: ClassVar[tuple[str, ...]] = ("cast-half",)

    def apply(self, gm: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Expand them; each operator counts as one change. Which were left, and why, is in ``ctx.data`` under the name of the pass."""
        rules = operators.rules(ctx.data.get(BACKENDS, ()))
        return PassResult(gm, apply_rules(rules, gm, ctx, ctx.data.setdefault(self.name, [])))

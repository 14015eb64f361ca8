"""What tiacc does to a graph before a backend sees it: passes, and what runs them.

All that the author of a pass needs is here by name::

    from tiacc.passes import RewriteRule, register

    @register
    def fuse_silu(gm, ctx): ...

and `default` is the pipeline to put it in, ``optimize(..., passes=tiacc.passes.default().before("cast-half", fuse_silu))``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiacc.passes.base import Pass as Pass
    from tiacc.passes.base import PassContext as PassContext
    from tiacc.passes.base import PassResult as PassResult
    from tiacc.passes.base import register as register
    from tiacc.passes.edits import default as default
    from tiacc.passes.manager import PassManager as PassManager
    from tiacc.passes.patterns import Match as Match
    from tiacc.passes.patterns import any_of as any_of
    from tiacc.passes.patterns import is_constant as is_constant
    from tiacc.passes.patterns import is_number as is_number
    from tiacc.passes.patterns import named as named
    from tiacc.passes.rules import RewriteRule as RewriteRule
    from tiacc.passes.rules import RuleSet as RuleSet

_LAZY = {
    "Pass": "base",
    "PassContext": "base",
    "PassResult": "base",
    "register": "base",
    "default": "edits",
    "PassManager": "manager",
    "Match": "patterns",
    "any_of": "patterns",
    "is_constant": "patterns",
    "is_number": "patterns",
    "named": "patterns",
    "RewriteRule": "rules",
    "RuleSet": "rules",
}

__all__ = [
    "Match",
    "Pass",
    "PassContext",
    "PassManager",
    "PassResult",
    "RewriteRule",
    "RuleSet",
    "any_of",
    "default",
    "is_constant",
    "is_number",
    "named",
    "register",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(f"tiacc.passes.{_LAZY[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

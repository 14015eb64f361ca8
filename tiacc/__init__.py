"""tiacc: inference acceleration for TorchScript models.

    output_model, report = tiacc.optimize(input_model, optimization_level=1, device_type=1, input_shapes=["1*3*224*224"])

Importing this package registers the operator that optimized models call; all else is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tiacc import errors as errors
from tiacc.errors import TiaccError as TiaccError
from tiacc.runtime import ops as _ops  # noqa: F401 - registers tiacc::run_engine

if TYPE_CHECKING:
    from tiacc import backends as backends
    from tiacc import debug as debug
    from tiacc import operators as operators
    from tiacc import passes as passes
    from tiacc.api import explain as explain
    from tiacc.api import optimize as optimize
    from tiacc.explanation import Explanation as Explanation
    from tiacc.options import Options as Options
    from tiacc.report import OptimizedReport as OptimizedReport

_LAZY = {
    "optimize": "tiacc.api",
    "explain": "tiacc.api",
    "Explanation": "tiacc.explanation",
    "Options": "tiacc.options",
    "OptimizedReport": "tiacc.report",
}

_MODULES = ("backends", "debug", "operators", "passes")

__all__ = ["Explanation", "OptimizedReport", "Options", "TiaccError", "errors", "explain", "optimize"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"tiacc.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_MODULES})

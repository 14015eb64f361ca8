"""Operators that torch has under several names, so that everything behind the importer knows one of them."""

from __future__ import annotations

from typing import Any

import torch

_NAMES = {
    "absolute": "abs",
    "arccos": "acos",
    "arccosh": "acosh",
    "arcsin": "asin",
    "arcsinh": "asinh",
    "arctan": "atan",
    "arctan2": "atan2",
    "arctanh": "atanh",
    "clip": "clamp",
    "concat": "cat",
    "concatenate": "cat",
    "divide": "div",
    "fix": "trunc",
    "ger": "outer",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "linalg_matmul": "matmul",
    "moveaxis": "movedim",
    "multiply": "mul",
    "negative": "neg",
    "not_equal": "ne",
    "special_erf": "erf",
    "special_erfc": "erfc",
    "special_expit": "sigmoid",
    "special_expm1": "expm1",
    "special_log1p": "log1p",
    "special_logit": "logit",
    "special_sinc": "sinc",
    "special_softmax": "softmax",
    "special_xlogy": "xlogy",
    "subtract": "sub",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "true_divide": "div",
}


def _same_call(alias: torch._ops.OpOverload, other: torch._ops.OpOverload) -> bool:
    """Return whether two overloads take the same arguments in the same order."""

    def form(overload: torch._ops.OpOverload) -> list[tuple[str, bool, Any]]:
        return [(str(item.type), item.kwarg_only, item.default_value) for item in overload._schema.arguments]

    return form(alias) == form(other)


def _overloads(name: str) -> list[torch._ops.OpOverload]:
    packet = getattr(torch.ops.aten, name)
    return [getattr(packet, overload) for overload in packet.overloads()]


def _table() -> dict[Any, Any]:
    table = {}
    for alias, name in _NAMES.items():
        for overload in _overloads(alias):
            match = next((other for other in _overloads(name) if _same_call(overload, other)), None)
            if match is not None:
                table[overload] = match
    return table


_TABLE = _table()


def usual(target: Any) -> Any:
    """Return the overload that does what `target` does under the usual name; `target` itself where it has that."""
    return _TABLE.get(target, target)

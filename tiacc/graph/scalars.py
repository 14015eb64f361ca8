"""What TorchScript computes with numbers, strings and containers, done while importing.

Where every operand is known the result is a constant. Arithmetic on sizes that vary stays in the graph, as a call of one of
`specs.SCALAR_FUNCTIONS`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch

SYMBOLIC: dict[str, Callable[..., Any]] = {
    "aten::add": operator.add,
    "aten::sub": operator.sub,
    "aten::mul": operator.mul,
    "aten::div": operator.truediv,
    "aten::floordiv": operator.floordiv,
    "aten::floor_divide": operator.floordiv,
    "aten::remainder": operator.mod,
    "aten::neg": operator.neg,
    "aten::eq": operator.eq,
    "aten::ne": operator.ne,
    "aten::lt": operator.lt,
    "aten::le": operator.le,
    "aten::gt": operator.gt,
    "aten::ge": operator.ge,
    "aten::Int": torch.sym_int,
    "aten::Float": torch.sym_float,
    "aten::floor": math.floor,
    "aten::ceil": math.ceil,
    "prim::max": torch.sym_max,
    "prim::min": torch.sym_min,
}
"""The operators that may stay in a graph when an operand is a size that varies."""

OF_INTEGERS = frozenset({"aten::floordiv", "aten::floor_divide", "aten::remainder"})
"""Those of them that torch knows of symbolic integers alone."""

COMPARISONS = frozenset({operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge})

PASSED_THROUGH = frozenset({"prim::unchecked_cast", "aten::IntImplicit", "aten::FloatImplicit", "aten::ScalarImplicit"})
"""The operators whose result is their operand when that is a number."""


def _slice(items: Any, start: int | None = None, end: int | None = None, step: int = 1) -> Any:
    return items[slice(start, end, step)]


def _get(container: Any, key: Any) -> Any:
    return container[key]


def _make_range(*args: int) -> list[int]:
    return list(range(*args))


CONTAINER_READS: dict[str, Callable[..., Any]] = {
    "aten::__getitem__": _get,
    "prim::TupleIndex": _get,
    "aten::len": len,
    "aten::slice": _slice,
    "aten::list": list,
    "aten::copy": lambda items: items.copy(),
    "aten::add": lambda a, b: a + b,
    "aten::mul": lambda a, b: a * b,
    "aten::keys": lambda table: list(table.keys()),
    "aten::values": lambda table: list(table.values()),
    "aten::items": lambda table: [tuple(item) for item in table.items()],
    "aten::get": lambda table, key, default=None: table.get(key, default),
    "aten::__contains__": lambda items, item: item in items,
    "aten::__range_length": lambda low, high, step: len(range(low, high, step)),
    "aten::__derive_index": lambda index, start, step: start + index * step,
    "prim::range": _make_range,
}
"""The operators that read a list, tuple or dict; their results may be new containers of the same members."""


def _set(container: Any, key: Any, item: Any) -> Any:
    container[key] = item
    return container


def _call(name: str) -> Callable[..., Any]:
    def change(container: Any, *args: Any) -> Any:
        getattr(container, name)(*args)
        return container

    return change


CONTAINER_WRITES: dict[str, Callable[..., Any]] = {
    "aten::append": _call("append"),
    "aten::extend": _call("extend"),
    "aten::insert": _call("insert"),
    "aten::pop": lambda container, *args: container.pop(*args),
    "aten::reverse": _call("reverse"),
    "aten::clear": _call("clear"),
    "aten::_set_item": _set,
    "aten::update": _call("update"),
}
"""The operators that change a list or dict in place."""


def _floor_divide(a: float, b: float) -> float:
    return a // b if isinstance(a, int) and isinstance(b, int) else float(math.floor(a / b))


def _remainder(a: float, b: float) -> float:
    return a % b if isinstance(a, int) and isinstance(b, int) else math.fmod(b + math.fmod(a, b), b)


def _text(item: Any) -> str:
    """Return what TorchScript writes for a value, where that is what Python writes: it has ``2.`` for 2.0."""
    if isinstance(item, list) and all(isinstance(member, int) for member in item):
        return str(item)
    if item is not None and not isinstance(item, (str, int, torch.device)):
        raise TypeError(f"the text of a {type(item).__name__} is left to TorchScript")
    return str(item)


def _format(pattern: str, *args: Any) -> str:
    """Put texts in the places of ``{}``; nothing else in a pattern means anything to TorchScript."""
    first, *others = pattern.split("{}")
    return first + "".join(_text(arg) + other for arg, other in zip(args, others, strict=True))


def _power(base: Any, exponent: Any) -> Any:
    """Raise a number to a power, which of a negative one to a fraction is NaN."""
    result = base**exponent
    return result if isinstance(base, complex) or isinstance(exponent, complex) or not isinstance(result, complex) else math.nan


FOLDED: dict[str, Callable[..., Any]] = {
    "aten::__is__": operator.is_,
    "aten::__isnot__": operator.is_not,
    "aten::__not__": operator.not_,
    "aten::__and__": lambda a, b: a and b if isinstance(a, bool) else a & b,
    "aten::__or__": lambda a, b: a or b if isinstance(a, bool) else a | b,
    "aten::__xor__": operator.xor,
    "aten::Bool": bool,
    "aten::Int": int,
    "aten::Float": float,
    "aten::str": _text,
    "aten::format": _format,
    "aten::add": operator.add,
    "aten::sub": operator.sub,
    "aten::mul": operator.mul,
    "aten::div": operator.truediv,
    "aten::floordiv": _floor_divide,
    "aten::remainder": _remainder,
    "aten::pow": _power,
    "aten::neg": operator.neg,
    "aten::abs": abs,
    "prim::abs": abs,
    "aten::eq": operator.eq,
    "aten::ne": operator.ne,
    "aten::lt": operator.lt,
    "aten::le": operator.le,
    "aten::gt": operator.gt,
    "aten::ge": operator.ge,
    "aten::floor": math.floor,
    "aten::ceil": math.ceil,
    "aten::sqrt": math.sqrt,
    "aten::log": math.log,
    "aten::exp": math.exp,
    "aten::round": lambda number: type(number)(round(number)),
    "prim::max": lambda a, b=None: max(a) if b is None else a if a > b else b,  # of NaN and a number the second, as in C++
    "prim::min": lambda a, b=None: min(a) if b is None else a if a < b else b,
}
"""The operators on numbers and strings that fold when every operand is known."""

"""Every private name of torch that tiacc's graph code touches, and what differs between torch 2.11 and 2.14."""

from __future__ import annotations

from typing import Any, NamedTuple

import sympy
import torch
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StrictMinMaxConstraint
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy


class SymbolBounds(NamedTuple):
    """The range of a symbolic size, in elements."""

    expression: str
    min: int
    opt: int
    max: int


UNBOUNDED = 2**31 - 1
"""The largest size that a dimension without an upper bound is taken to have."""


def new_symbol(env: ShapeEnv, name: str, low: int, hint: int, high: int) -> torch.SymInt:
    """Return a new symbolic size, between `low` and `high`, whose usual size is `hint`; `name` appears in messages."""
    source = ConstantSource(name)
    symbol = env.create_symbol(
        hint,
        source,
        dynamic_dim=DimDynamic.DYNAMIC,
        constraint_dim=StrictMinMaxConstraint(vr=ValueRanges(low, high), warn_only=False),
        do_not_specialize_zero_one=True,
    )
    env.var_to_range[symbol] = ValueRanges(low, high)
    _declared_ranges(env)[symbol] = ValueRanges(low, high)
    return env.create_symintnode(symbol, hint=hint, source=source)  # type: ignore[return-value]


def _declared_ranges(env: ShapeEnv) -> dict[sympy.Symbol, Any]:
    """Return the range of each symbol as it was made. The environment narrows its own by guards that do not bind: ``size > 1``."""
    return env.__dict__.setdefault("_tiacc_declared_ranges", {})  # type: ignore[no-any-return]


def symbol_bounds(size: torch.SymInt) -> SymbolBounds:
    """Return what is known of a symbolic size."""
    node = size.node
    expression = node.expr
    bounds = bound_sympy(expression, {**node.shape_env.var_to_range, **_declared_ranges(node.shape_env)})
    low = max(0, int(bounds.lower)) if bounds.lower.is_finite else 0
    high = int(bounds.upper) if bounds.upper.is_finite and bounds.upper < UNBOUNDED else UNBOUNDED
    return SymbolBounds(str(expression), low, int(node.hint), high)


def evaluate_size(size: int | torch.SymInt, symbols: dict[str, int]) -> int:
    """Return the number that a symbolic size is when the symbols of its expression have the given values."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs({symbol: symbols[str(symbol)] for symbol in expression.free_symbols}))


def free_symbols(size: int | torch.SymInt) -> frozenset[str]:
    """Return the names of the symbols in the expression of a size."""
    if isinstance(size, int):
        return frozenset()
    return frozenset(str(symbol) for symbol in size.node.expr.free_symbols)


def fixed_symbols(env: ShapeEnv) -> dict[str, int]:
    """Return the symbols that some operator turned out to need at one size, each with that size."""
    return {str(symbol): int(value) for symbol, value in env.replacements.items() if isinstance(value, sympy.Integer)}


def fake_constant(mode: FakeTensorMode, tensor: torch.Tensor) -> torch.Tensor:
    """Return a fake tensor of the static shape, strides and dtype of a real one, without copying data."""
    return mode.from_tensor(tensor.detach(), static_shapes=True)

"""Symbolic sizes and fake tensors: torch's private names for them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import sympy
import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StrictMinMaxConstraint
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy


class SymbolBounds(NamedTuple):
    """The range of a symbolic size, in elements."""

    expression: str
    min: int
    opt: int
    max: int


_FAKE_LOG = logging.getLogger("torch._subclasses.fake_tensor")

UNBOUNDED = 2**31 - 1
"""The largest size that a dimension without an upper bound is taken to have."""


_MOST_SIZES_TRIED = 1024


class _Declared(NamedTuple):
    """What a symbol was made with."""

    range: Any
    opt: int


def new_symbol(env: ShapeEnv, name: str, low: int, opt: int, high: int) -> torch.SymInt:
    """Return a new symbolic size between `low` and `high`, usually `opt`; `name` appears in messages.

    torch is told neither the range nor a hint of 1: it would take a size that is 1 in the example for one that is always 1, and
    narrow ``1..2`` by a guard ``size > 1``, which binds nobody, to the constant 2.
    """
    source = ConstantSource(name)
    hint = opt if opt > 1 else max(high, 2)
    symbol = env.create_symbol(
        hint,
        source,
        dynamic_dim=DimDynamic.DYNAMIC,
        constraint_dim=StrictMinMaxConstraint(vr=ValueRanges(0, UNBOUNDED), warn_only=False),
        do_not_specialize_zero_one=True,
    )
    env.var_to_range[symbol] = ValueRanges(0, UNBOUNDED)
    _declared(env)[symbol] = _Declared(ValueRanges(low, high), opt)
    return env.create_symintnode(symbol, hint=hint, source=source)  # type: ignore[return-value]


def _declared(env: ShapeEnv) -> dict[sympy.Symbol, _Declared]:
    """Return what the symbols of an environment were made with."""
    return env.__dict__.setdefault("_tiacc_declared", {})  # type: ignore[no-any-return]


def _declared_ranges(env: ShapeEnv) -> dict[sympy.Symbol, Any]:
    return {symbol: declared.range for symbol, declared in _declared(env).items()}


def symbol_bounds(size: torch.SymInt) -> SymbolBounds:
    """Return what is known of a symbolic size."""
    node: Any = size.node
    known: dict[sympy.Expr, SymbolBounds] = node.shape_env.__dict__.setdefault("_tiacc_bounds", {})
    if node.expr not in known:  # what is known of a symbol is said where it is made
        low, high = _size_limits(bound_sympy(node.expr, {**node.shape_env.var_to_range, **_declared_ranges(node.shape_env)}))
        known[node.expr] = SymbolBounds(str(node.expr), low, int(usual_number(size)), high)
    return known[node.expr]


def usual_number(number: torch.SymInt | torch.SymFloat | torch.SymBool) -> float:
    """Return what a symbolic number is at the sizes to be fastest at; adds no guard."""
    node: Any = number.node
    found = node.expr.subs({symbol: declared.opt for symbol, declared in _declared(node.shape_env).items()})
    value = node.hint if found.free_symbols else found
    return float(value) if isinstance(number, torch.SymFloat) else int(bool(value)) if isinstance(number, torch.SymBool) else int(value)


def _size_limits(bounds: Any) -> tuple[int, int]:
    low = max(0, int(bounds.lower)) if bounds.lower.is_finite else 0
    return low, int(bounds.upper) if bounds.upper.is_finite and bounds.upper < UNBOUNDED else UNBOUNDED


def limits_of(number: int | torch.SymInt) -> tuple[int, int]:
    """Return the smallest and the largest value of arithmetic on sizes, which may be negative; `UNBOUNDED` stands for no limit."""
    if isinstance(number, int):
        return number, number
    node: Any = number.node
    found = bound_sympy(node.expr, {**node.shape_env.var_to_range, **_declared_ranges(node.shape_env)})
    low = int(found.lower) if found.lower.is_finite and found.lower > -UNBOUNDED else -UNBOUNDED
    return low, int(found.upper) if found.upper.is_finite and found.upper < UNBOUNDED else UNBOUNDED


def evaluate_size(size: int | torch.SymInt, symbols: dict[str, int]) -> int:
    """Return the number that a symbolic size is when the symbols of its expression have the given values."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs({symbol: symbols[str(symbol)] for symbol in expression.free_symbols}))


def size_range(size: int | torch.SymInt, ranges: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """Return the smallest and the largest number that a symbolic size is while the symbols of its expression are in the given ranges.

    It need not be at the ends of these that it is so: ``n % 3``. Where it is costly to tell, the range is a wider one.
    """
    if isinstance(size, int):
        return size, size
    expression = size.node.expr
    return _range_of(expression, tuple((symbol, ranges[str(symbol)]) for symbol in sorted(expression.free_symbols, key=str)))


@lru_cache(maxsize=4096)
def _range_of(expression: sympy.Expr, ranges: tuple[tuple[sympy.Symbol, tuple[int, int]], ...]) -> tuple[int, int]:
    bounds = bound_sympy(expression, {symbol: ValueRanges(*limits) for symbol, limits in ranges})
    if {bounds.lower, bounds.upper} == {expression.subs({symbol: limits[end] for symbol, limits in ranges}) for end in (0, 1)}:
        return int(bounds.lower), int(bounds.upper)
    if len(ranges) == 1:
        ((symbol, (low, high)),) = ranges
        if high - low < _MOST_SIZES_TRIED:
            numbers = [int(expression.subs(symbol, number)) for number in range(low, high + 1)]
            return min(numbers), max(numbers)
    return _size_limits(bounds)


def evaluate_number(number: Any, symbols: dict[str, int]) -> Any:
    """Return what a symbolic number or condition is when the symbols of its expression have the given values."""
    expression = number.node.expr
    value = expression.subs({symbol: symbols[str(symbol)] for symbol in expression.free_symbols})
    return bool(value) if isinstance(number, torch.SymBool) else float(value)


def sample_sizes(mode: FakeTensorMode) -> list[dict[str, int]]:
    """Return sets of sizes of the symbols of a mode, by name: the smallest, the largest, and some in between."""
    assert mode.shape_env is not None
    declared = _declared(mode.shape_env)
    ranges = {str(symbol): (int(made.range.lower), made.opt, int(made.range.upper)) for symbol, made in declared.items()}
    points = [
        {name: low for name, (low, _, _) in ranges.items()},
        {name: high for name, (_, _, high) in ranges.items()},
        {name: (low + opt) // 2 for name, (low, opt, _) in ranges.items()},
        {name: min(opt + 1, high) for name, (_, opt, high) in ranges.items()},
    ]
    return [point for index, point in enumerate(points) if point and point not in points[:index]]


def forget_guards(mode: FakeTensorMode) -> None:
    """Forget the conditions that torch concluded from the example sizes: other sizes do not meet them."""
    env = mode.shape_env
    assert env is not None
    if not env.guards:
        return
    env.guards.clear()
    env.axioms.clear()
    for symbol in _declared(env):
        if symbol not in env.replacements:
            env.var_to_range[symbol] = ValueRanges(0, UNBOUNDED)
    env._maybe_evaluate_static.cache_clear()


def free_symbols(size: int | torch.SymInt) -> frozenset[str]:
    """Return the names of the symbols in the expression of a size."""
    if isinstance(size, int):
        return frozenset()
    return frozenset(str(symbol) for symbol in size.node.expr.free_symbols)


def decide(condition: bool | torch.SymBool) -> bool | None:
    """Return whether a condition on sizes holds for every size declared, or None when that depends on the size."""
    if isinstance(condition, bool):
        return condition
    node: Any = condition.node
    bounds = bound_sympy(node.expr, {**node.shape_env.var_to_range, **_declared_ranges(node.shape_env)})
    return bool(bounds.lower) if bounds.lower == bounds.upper else None


def same_size(first: int | torch.SymInt, second: int | torch.SymInt) -> bool:
    """Return whether two sizes are the same number or the same expression; adds no guard."""
    if isinstance(first, int) or isinstance(second, int):
        return isinstance(first, int) and isinstance(second, int) and first == second
    return bool(first.node.expr == second.node.expr)


def replaced_symbols(mode: FakeTensorMode) -> int:
    """Return how many symbols of a fake mode turned out to be numbers, or equal to others."""
    assert mode.shape_env is not None
    return len(mode.shape_env.replacements)


def fixed_symbols_of(mode: FakeTensorMode) -> dict[str, int]:
    """Return the symbols of a fake mode that some operator turned out to need at one size, each with that size."""
    assert mode.shape_env is not None
    return fixed_symbols(mode.shape_env) if mode.shape_env.replacements else {}


def fixed_symbols(env: ShapeEnv) -> dict[str, int]:
    """Return the symbols that some operator turned out to need at one size, each with that size."""
    return {str(symbol): int(value) for symbol, value in env.replacements.items() if isinstance(value, sympy.Integer)}


def fake_constant(mode: FakeTensorMode, tensor: torch.Tensor) -> torch.Tensor:
    """Return a fake tensor of the static shape, strides and dtype of a real one, without copying data."""
    plain = _plain_type(tensor.detach())
    if plain is not None and plain.fills_memory:  # as weights do
        return fake_of(mode, plain)
    return mode.from_tensor(tensor.detach(), static_shapes=True)


def without_data(mode: FakeTensorMode, tensor: torch.Tensor) -> torch.Tensor:
    """Return a fake tensor as it is, and one like a real tensor."""
    return tensor if is_fake(tensor) else fake_constant(mode, tensor)


class PlainType(NamedTuple):
    """All there is to know of a fake tensor, where this is all.

    Attributes:
        shape: Sizes in elements.
        stride: Steps in elements.
        dtype: The element type.
        device: Where it would live.
        offset: Where it begins in its memory, in elements.
        memory_bytes: The size of that memory.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    offset: int = 0
    memory_bytes: int = 0

    @property
    def fills_memory(self) -> bool:
        """Whether its memory begins with its first element and ends with its last."""
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride)) if 0 not in self.shape else -1
        return self.offset == 0 and self.memory_bytes == (last + 1) * self.dtype.itemsize


_PLAIN_TYPE = "_tiacc_plain_type"
"""The attribute of a fake tensor that keeps its type: fake tensors are not changed, and each is asked for as often as it is read."""

_ATTRIBUTES = "_tiacc_attributes"
"""The attribute of a mode that keeps, by device, the attributes that its fake tensors begin with."""


def plain_type(tensor: torch.Tensor) -> PlainType | None:
    """Return the type of a fake tensor; None for a real one, one of symbolic sizes, and one that is more than its type tells."""
    if not isinstance(tensor, FakeTensor) or tensor.constant is not None:
        return None
    known = tensor.__dict__
    if _PLAIN_TYPE not in known:
        known[_PLAIN_TYPE] = _plain_type(tensor)
    return known[_PLAIN_TYPE]  # type: ignore[no-any-return]


def _plain_type(tensor: torch.Tensor) -> PlainType | None:
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_complex():
        return None
    shape, stride, offset, memory_bytes = tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), tensor.untyped_storage().nbytes()
    is_symbolic = any(type(number) is not int for number in (*shape, *stride, offset, memory_bytes))
    if is_symbolic or tensor.is_neg() or tensor.requires_grad:
        return None
    return PlainType(shape, stride, tensor.dtype, tensor.device, int(offset), memory_bytes)


def fake_of(mode: FakeTensorMode, plain: PlainType) -> torch.Tensor:
    """Return a new fake tensor that fills memory of its own, many times faster than by an operator."""
    return _of_type(mode, torch.empty_strided(plain.shape, plain.stride, dtype=plain.dtype, device="meta"), plain)


def fake_view(mode: FakeTensorMode, plain: PlainType, base: torch.Tensor) -> torch.Tensor:
    """Return a new fake tensor in the memory of another, many times faster than by an operator."""
    elements = torch.empty(0, dtype=plain.dtype, device="meta")
    elements.set_(base.untyped_storage(), plain.offset, plain.shape, plain.stride)
    return _of_type(mode, elements, plain)


def _of_type(mode: FakeTensorMode, elements: torch.Tensor, plain: PlainType) -> torch.Tensor:
    made = _new(mode, elements, plain.device)
    made.__dict__[_PLAIN_TYPE] = plain
    return made


def _new(mode: FakeTensorMode, elements: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a new fake tensor; its attributes, of which the constructor sets twenty one by one, are those of the first on the device."""
    known = mode.__dict__.setdefault(_ATTRIBUTES, {})
    attributes = known.get(device)
    if attributes is None:
        first = FakeTensor(mode, elements, device)
        known[device] = dict(first.__dict__)
        return first
    made = torch.Tensor._make_subclass(FakeTensor, elements, False, dispatch_device=True, device_for_backend_keys=device)
    torch._C._set_throw_on_mutable_data_ptr(made)
    made.__dict__.update(attributes)
    return made


def fake_as(mode: FakeTensorMode, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a fake tensor like another but for its dtype, many times faster than by converting it."""
    return _new(mode, torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device="meta"), tensor.device)


def is_fake(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is one without data."""
    return isinstance(tensor, FakeTensor)


def new_shape_env() -> ShapeEnv:
    """Return an environment for symbolic sizes in which a size that depends on data is an error."""
    return ShapeEnv(
        specialize_zero_one=False,
        duck_shape=False,
        allow_scalar_outputs=False,
        allow_dynamic_output_shape_ops=False,
    )


@contextmanager
def inference(mode: FakeTensorMode) -> Iterator[None]:
    """Infer shapes inside. Where sizes are symbolic, torch's Python kernels come first: those in C++ fix some of the sizes."""
    assert mode.shape_env is not None
    _FAKE_LOG.disabled = True  # what fails here fails often, and is told in other words
    with mode, torch.no_grad():
        if _declared(mode.shape_env):
            with enable_python_dispatcher():
                yield
        else:
            yield

"""Every private name of torch that tiacc's graph code touches, and what differs between torch 2.11 and 2.14."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import sympy
import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StrictMinMaxConstraint
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

from tiacc.errors import ImportGraphError

_TAKES_DTYPE, _TAKES_MEMORY_FORMAT, _TAKES_LAYOUT = "ScalarType", "MemoryFormat", "Layout"

_DTYPES = {
    0: torch.uint8,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.int64,
    5: torch.float16,
    6: torch.float32,
    7: torch.float64,
    8: torch.complex32,
    9: torch.complex64,
    10: torch.complex128,
    11: torch.bool,
    12: torch.qint8,
    13: torch.quint8,
    14: torch.qint32,
    15: torch.bfloat16,
}
_DTYPE_NUMBERS = {dtype: number for number, dtype in _DTYPES.items()}
_MEMORY_FORMATS = {
    0: torch.contiguous_format,
    1: torch.preserve_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
}
_MEMORY_FORMAT_NUMBERS = {format_: number for number, format_ in _MEMORY_FORMATS.items()}


Graph: TypeAlias = Any
"""A `torch._C.Graph`. torch's own stubs of its intermediate representation lack most of the methods, so these types are aliases."""
Block: TypeAlias = Any
"""A `torch._C.Block`."""
Node: TypeAlias = Any
"""A `torch._C.Node`."""
Value: TypeAlias = Any
"""A `torch._C.Value`."""
Type: TypeAlias = Any
"""A `torch._C.Type`: the type of a TorchScript value."""
Function: TypeAlias = Any
"""A `torch.jit.ScriptFunction`."""


class SymbolBounds(NamedTuple):
    """The range of a symbolic size, in elements."""

    expression: str
    min: int
    opt: int
    max: int


UNBOUNDED = 2**31 - 1
"""The largest size that a dimension without an upper bound is taken to have."""


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
    expression = node.expr
    bounds = bound_sympy(expression, {**node.shape_env.var_to_range, **_declared_ranges(node.shape_env)})
    low = max(0, int(bounds.lower)) if bounds.lower.is_finite else 0
    high = int(bounds.upper) if bounds.upper.is_finite and bounds.upper < UNBOUNDED else UNBOUNDED
    opts = {symbol: declared.opt for symbol, declared in _declared(node.shape_env).items()}
    opt = expression.subs(opts)
    return SymbolBounds(str(expression), low, int(opt) if opt.is_number else int(node.hint), high)


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


def fixed_symbols_of(mode: FakeTensorMode) -> dict[str, int]:
    """Return the symbols of a fake mode that some operator turned out to need at one size, each with that size."""
    assert mode.shape_env is not None
    return fixed_symbols(mode.shape_env) if mode.shape_env.replacements else {}


def fixed_symbols(env: ShapeEnv) -> dict[str, int]:
    """Return the symbols that some operator turned out to need at one size, each with that size."""
    return {str(symbol): int(value) for symbol, value in env.replacements.items() if isinstance(value, sympy.Integer)}


def fake_constant(mode: FakeTensorMode, tensor: torch.Tensor) -> torch.Tensor:
    """Return a fake tensor of the static shape, strides and dtype of a real one, without copying data."""
    return mode.from_tensor(tensor.detach(), static_shapes=True)


class Parameter(NamedTuple):
    """One parameter of an operator, as its schema declares it."""

    name: str
    is_keyword_only: bool
    has_default: bool
    default: Any
    type: str


@functools.cache
def parameters(op: torch._ops.OpOverload) -> tuple[Parameter, ...]:
    """Return the parameters of an operator in order; defaults of enum type are the torch objects (``torch.contiguous_format``)."""
    return tuple(
        Parameter(
            argument.name,
            argument.kwarg_only,
            argument.has_default_value(),
            _default(argument),
            str(argument.real_type),
        )
        for argument in op._schema.arguments
    )


def _default(argument: Any) -> Any:
    value = argument.default_value
    kind = str(argument.real_type)
    # A schema holds the default of an enum as its number. These two are the only numbers that occur.
    if isinstance(value, int) and "ScalarType" in kind:
        return {4: torch.int64}[value]
    if isinstance(value, int) and "MemoryFormat" in kind:
        return {0: torch.contiguous_format}[value]
    return value


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
    with mode, torch.no_grad():
        if _declared(mode.shape_env):
            with enable_python_dispatcher():
                yield
        else:
            yield


def is_fake(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is one without data."""
    return isinstance(tensor, FakeTensor)


# -- TorchScript modules and graphs ----------------------------------------------------------------------------------------------


def frozen_copy(
    module: torch.jit.ScriptModule, keep_methods: Sequence[str] = ()
) -> tuple[torch.jit.ScriptModule, tuple[str, ...], tuple[str, ...]]:
    """Return a copy of a scripted module in evaluation mode, inlined, its parameters turned into constants of its graphs.

    Besides ``forward`` the copy has the methods that ``forward`` does not call. A method that it does call is a part of it: kept as a
    method of its own as well, it would keep a second copy of its weights in the file; only those in `keep_methods` are.

    Returns:
        The copy, the names of its methods besides ``forward``, and the names of those left out.

    Raises:
        ImportGraphError: torch cannot copy or freeze it.
    """
    try:
        duplicate = copy.deepcopy(module)
        if any(getattr(child, "training", False) for child in duplicate.modules()):  # a frozen module has no such attribute
            duplicate.eval()
        helpers = _called_methods(duplicate._c, "forward") - set(keep_methods)
        others = [name for name in duplicate._c._method_names() if name != "forward" and not name.startswith("__")]
        kept = [name for name in others if name not in helpers]
        frozen = torch._C._freeze_module(duplicate._c, kept, True, False)
    except RuntimeError as error:
        raise ImportGraphError(f"torch cannot freeze the model: {str(error).splitlines()[0]}") from error
    dropped = tuple(name for name in others if name in helpers and not name.startswith("_"))
    return torch.jit._recursive.wrap_cpp_module(frozen), tuple(kept), dropped


def _called_methods(module: torch._C.ScriptModule, method: str) -> set[str]:
    """Return the methods of a module that one of its methods calls on it, directly or through others."""
    found: set[str] = set()
    pending = [method]
    while pending:
        graph: Graph = module._get_method(pending.pop()).graph
        own = next(iter(graph.inputs())).unique()
        for node in graph.findAllNodes("prim::CallMethod"):
            name = node.s("name")
            if next(iter(node.inputs())).unique() == own and name not in found:
                found.add(name)
                pending.append(name)
    return found


def forward_graph(module: torch.jit.ScriptModule) -> Graph:
    """Return the live graph of ``forward``: an edit of it is an edit of the module."""
    return module._c._get_method("forward").graph


def forward_arguments(module: torch.jit.ScriptModule) -> list[torch._C.Argument]:
    """Return the arguments of ``forward`` as its schema has them, without ``self``."""
    return list(module._c._get_method("forward").schema.arguments)[1:]


_TORCH_FOLDER = str(Path(torch.__file__).parent)
_PLACES = (
    re.compile(r'File "([^"]+)", line (\d+)'),  # a scripted module
    re.compile(r"^(\S.*?)\((\d+)\): ", re.MULTILINE),  # a traced module: the Python stack, innermost first
    re.compile(r'^([^\s:"]+\.py):(\d+)', re.MULTILINE),  # a module loaded from a file
)


def source_of(node: Node) -> str:
    """Return ``FILE:LINE`` of the source of a TorchScript node, the first outside of torch itself; an empty string if unknown."""
    text = node.sourceRange()
    for pattern in _PLACES:
        places = pattern.findall(text)
        if places:
            file, line = next((place for place in places if not place[0].startswith(_TORCH_FOLDER)), places[0])
            return f"{file}:{line}"
    return ""


def constant_of(value: Value) -> Any:
    """Return what a ``prim::Constant`` holds; tensors are detached."""
    item = value.toIValue()
    return item.detach() if isinstance(item, torch.Tensor) else item


def splice_branch(node: Node, taken: int) -> list[Node]:
    """Replace a ``prim::If`` by the nodes of one of its blocks; return these in order."""
    block = list(node.blocks())[taken]
    inner = list(block.nodes())
    for moved in inner:
        moved.moveBefore(node)
    for value, result in zip(node.outputs(), block.outputs()):
        value.replaceAllUsesWith(result)
    node.destroy()
    return inner


class Aliases:
    """Which values of a TorchScript graph may share memory; computed on first use."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._names: dict[int, frozenset[int]] = {}
        self._database: Any = None

    def _load(self) -> Any:
        if self._database is None:
            self._database = self._graph.alias_db()
        return self._database

    def has_writers(self, value: Value) -> bool:
        """Return whether some node may write into the memory of `value`."""
        return bool(self._load().has_writers(value))

    def of(self, value: Value) -> frozenset[int]:
        """Return the unique numbers of the values that may share memory with `value`, itself included."""
        name = value.unique()
        if name not in self._names:
            database = self._load()
            self._names[name] = frozenset(
                other.unique() for other in _tensor_values(self._graph) if database.may_contain_alias(value, other)
            ) | {name}
        return self._names[name]


def _tensor_values(graph: Graph) -> list[Value]:
    values = list(graph.inputs())
    blocks = [graph.return_node().owningBlock()]
    while blocks:
        block = blocks.pop()
        for node in block.nodes():
            if node.kind() != "prim::Constant":
                values.extend(node.outputs())
            for inner in node.blocks():
                values.extend(inner.inputs())
                blocks.append(inner)
    return values


_RESHAPING_WRITES = frozenset(
    f"aten::{name}_"
    for name in ("resize", "resize_as", "set", "t", "transpose", "swapaxes", "swapdims", "squeeze", "unsqueeze", "as_strided")
)


def reshaped_values(node: Node) -> list[Value]:
    """Return the values whose shape a node changes in place."""
    return [next(iter(node.inputs()))] if node.kind() in _RESHAPING_WRITES else []


# -- operators -------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _overload(schema_text: str) -> torch._ops.OpOverload | None:
    schema = torch._C.parse_schema(schema_text)
    namespace, _, name = schema.name.partition("::")
    packet = getattr(getattr(torch.ops, namespace), name, None)
    overload = getattr(packet, schema.overload_name or "default", None)
    return overload if isinstance(overload, torch._ops.OpOverload) else None


def overload_of(node: Node) -> torch._ops.OpOverload | None:
    """Return the operator that a TorchScript node calls, or None when it is a construct of the language."""
    text = node.schema()
    return None if text == "(no schema)" else _overload(text)


_RANDOM_IF = {
    **{f"aten::{kind}dropout{end}": "train" for kind in ("", "feature_", "alpha_", "feature_alpha_") for end in ("", "_")},
    **dict.fromkeys(("aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu"), "train"),
    "aten::scaled_dot_product_attention": "dropout_p",
}
"""The operators that are tagged as random and are so only when this argument is not false or zero."""


def is_random(overload: torch._ops.OpOverload, arguments: list[Any]) -> bool:
    """Return whether a call draws random numbers; dropout in evaluation mode does not."""
    if torch.Tag.nondeterministic_seeded not in overload.tags and overload._schema.name not in _RANDOM_IF:
        return False
    switch = _RANDOM_IF.get(overload._schema.name)
    for argument, value in zip(overload._schema.arguments, arguments):
        if argument.name == switch:
            return bool(value)
    return switch is None


@lru_cache(maxsize=4096)
def written_arguments(overload: torch._ops.OpOverload) -> tuple[int, ...]:
    """Return the places of the arguments that an operator writes into."""
    return tuple(
        place
        for place, argument in enumerate(overload._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


@lru_cache(maxsize=4096)
def functional_twin(overload: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """Return the operator that computes what an in-place one writes: ``add_.Tensor`` → ``add.Tensor``."""
    namespace, _, name = overload._schema.name.partition("::")
    if not name.endswith("_") or name.endswith("__"):
        twin_name = f"__{name.strip('_')[1:]}__" if name.startswith("__i") else ""
    else:
        twin_name = {"zero_": "zeros_like", "squeeze_": "", "unsqueeze_": "", "t_": "", "transpose_": ""}.get(name, name[:-1])
    packet = getattr(getattr(torch.ops, namespace), twin_name, None) if twin_name else None
    twin = getattr(packet, overload._schema.overload_name or "default", None)
    return twin if isinstance(twin, torch._ops.OpOverload) else None


def bind(overload: torch._ops.OpOverload, values: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split the inputs of a TorchScript node into positional and keyword-only arguments.

    Numbers that stand for a dtype, memory format or layout become those; keyword-only arguments at their default are left out.
    """
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    for argument, value in zip(overload._schema.arguments, values):
        value = _named(value, str(argument.real_type))
        if not argument.kwarg_only:
            positional.append(value)
        elif not argument.has_default_value() or type(value) is not type(argument.default_value) or value != argument.default_value:
            keywords[argument.name] = value
    return tuple(positional), keywords


def _named(value: Any, type_name: str) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        if _TAKES_DTYPE in type_name:
            return _DTYPES[value]
        if _TAKES_MEMORY_FORMAT in type_name:
            return _MEMORY_FORMATS[value]
        if _TAKES_LAYOUT in type_name:
            return torch.strided if value == 0 else value
    return value


def dtype_number(dtype: torch.dtype) -> int:
    """Return the number by which TorchScript knows a dtype."""
    return _DTYPE_NUMBERS[dtype]


def shares_memory(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Return whether two tensors, fake or real, are views of the same memory."""
    return bool(torch._C._is_alias_of(first, second))  # type: ignore[attr-defined]


def try_fake(node: Node, arguments: list[Any], mode: FakeTensorMode) -> Any:
    """Return the fake result of a TorchScript node on fake or known arguments, or None where torch cannot tell."""
    overload = overload_of(node)
    if overload is None:
        return None
    positional, keywords = bind(overload, arguments)
    try:
        with inference(mode):
            return overload(*positional, **keywords)
    except Exception:  # noqa: BLE001 - any failure means that the result is not known before the model runs
        return None


def memory_format_number(memory_format: torch.memory_format) -> int:
    """Return the number by which TorchScript knows a memory format."""
    return _MEMORY_FORMAT_NUMBERS[memory_format]


def function_of(graph: Graph) -> Function:
    """Return a function whose code is `graph`."""
    torch._C._jit_pass_lint(graph)
    return torch._C._create_function_from_graph("forward", graph)


def same_size(first: int | torch.SymInt, second: int | torch.SymInt) -> bool:
    """Return whether two sizes are the same number or the same expression; adds no guard."""
    if isinstance(first, int) or isinstance(second, int):
        return isinstance(first, int) and isinstance(second, int) and first == second
    return bool(first.node.expr == second.node.expr)


_ALIASING = frozenset(
    {"aten::type_as", "aten::broadcast_tensors", "aten::meshgrid", "aten::_unsafe_view", "aten::pad", "aten::einsum"}
    | {f"aten::atleast_{rank}d" for rank in (1, 2, 3)}
)
"""The operators that may return their argument, or a view of it, without saying so in their schema."""


@lru_cache(maxsize=4096)
def may_alias(overload: torch._ops.OpOverload) -> bool:
    """Return whether the result of an operator may share the memory of an argument."""
    schema = overload._schema
    return (
        schema.name in _ALIASING
        or torch.Tag.maybe_aliasing_or_mutating in overload.tags
        or any(returned.alias_info is not None for returned in schema.returns)
    )


@lru_cache(maxsize=4096)
def has_effect(overload: torch._ops.OpOverload) -> bool:
    """Return whether an operator does more than compute its results: it writes into an argument, or checks and returns nothing."""
    return bool(overload._schema.is_mutable) or not overload._schema.returns


def fake_as(mode: FakeTensorMode, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a fake tensor like another but for its dtype, many times faster than by converting it."""
    elements = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device="meta")
    return FakeTensor(mode, elements, tensor.device)

"""Operators and their schemas: torch's private names for them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tiacc.graph.torch_compat.scripts import Graph, Node, Type, inputs_of
from tiacc.graph.torch_compat.symbols import inference

_TAKES_DTYPE, _TAKES_MEMORY_FORMAT, _TAKES_LAYOUT = "ScalarType", "MemoryFormat", "Layout"

TAKES_NUMBERS = frozenset(getattr(torch.ops.aten, name).Tensor for name in ("add", "sub", "mul", "div"))
"""The operators whose second operand torch's executor takes for a number where it is a 0-d constant of the code, whatever its type.

Source: torch/csrc/jit/passes/canonicalize_graph_fuser_ops.cpp.
"""

_DTYPE_NAMES = """
    uint8 int8 int16 int32 int64 float16 float32 float64 complex32 complex64 complex128 bool qint8 quint8 qint32 bfloat16
    quint4x2 quint2x4 bits1x8 bits2x4 bits4x2 bits8 bits16 float8_e5m2 float8_e4m3fn float8_e5m2fnuz float8_e4m3fnuz
    uint16 uint32 uint64 uint1 uint2 uint3 uint4 uint5 uint6 uint7 int1 int2 int3 int4 int5 int6 int7 float8_e8m0fnu
"""
"""The dtypes in the order of their numbers in TorchScript."""

_DTYPES = {number: getattr(torch, name) for number, name in enumerate(_DTYPE_NAMES.split())}
_DTYPE_NUMBERS = {dtype: number for number, dtype in _DTYPES.items()}

_MEMORY_FORMATS = {
    0: torch.contiguous_format,
    1: torch.preserve_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
}
_MEMORY_FORMAT_NUMBERS = {format_: number for number, format_ in _MEMORY_FORMATS.items()}


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


_FLOATS = frozenset({"Half", "BFloat16", "Float", "Double"})


def is_same_in_a_file(graph: Graph) -> bool:
    """Return whether inlined code computes the same when it was saved and loaded, with inputs of the types that it was traced with.

    A trace keeps Python numbers in 0-d tensors that are marked as numbers, and a file loses the mark: then they promote as tensors do,
    except where torch's executor takes them for numbers all the same.
    """
    for node in graph.findAllNodes("prim::Constant"):
        value = node.output()
        if value.type().kind() == "TensorType" and isinstance(number := value.toIValue(), (int, float)):
            for use in value.uses():
                if use.offset == 1 and overload_of(use.user) in TAKES_NUMBERS:
                    continue
                beside = [other.type() for place, other in enumerate(inputs_of(use.user)) if place != use.offset]
                if not all(_promotes_alike(number, type_) for type_ in beside if type_.kind() == "TensorType"):
                    return False
    return True


def _promotes_alike(number: float, beside: Type) -> bool:
    """Return whether a tensor of some type has the same one beside a number and beside that as a 0-d tensor."""
    dtype, rank = beside.scalarType(), beside.dim()
    if dtype is None or rank is None:
        return False
    if isinstance(number, float):
        return dtype == "Double" or (dtype in _FLOATS and rank > 0)
    return rank > 0 or dtype in {"Bool", "Long", *_FLOATS}


_RANDOM_IF = {
    **{f"aten::{kind}dropout{end}": "train" for kind in ("", "feature_", "alpha_", "feature_alpha_") for end in ("", "_")},
    **dict.fromkeys(("aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu"), "train"),
    "aten::scaled_dot_product_attention": "dropout_p",
}
"""The operators that are tagged as random and are so only when this argument is not false or zero."""


@lru_cache(maxsize=4096)
def may_be_random(overload: torch._ops.OpOverload) -> bool:
    """Return whether there are calls of an operator that draw random numbers."""
    return torch.Tag.nondeterministic_seeded in overload.tags or overload._schema.name in _RANDOM_IF


def is_random(overload: torch._ops.OpOverload, arguments: list[Any]) -> bool:
    """Return whether a call draws random numbers; dropout in evaluation mode does not."""
    if not may_be_random(overload):
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
def makes_tensors(overload: torch._ops.OpOverload) -> bool:
    """Return whether a result of an operator is a tensor, or a list of tensors."""
    return any("Tensor" in str(returned.type) for returned in overload._schema.returns)


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
    for (argument, type_name), value in zip(_typed_arguments(overload), values):
        value = _named(value, type_name)
        if not argument.kwarg_only:
            positional.append(value)
        elif not argument.has_default_value() or type(value) is not type(argument.default_value) or value != argument.default_value:
            keywords[argument.name] = value
    return tuple(positional), keywords


@lru_cache(maxsize=4096)
def _typed_arguments(overload: torch._ops.OpOverload) -> tuple[tuple[torch._C.Argument, str], ...]:
    return tuple((argument, str(argument.real_type)) for argument in overload._schema.arguments)


def _named(value: Any, type_name: str) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        if _TAKES_DTYPE in type_name:
            return _DTYPES.get(value, value)
        if _TAKES_MEMORY_FORMAT in type_name:
            return _MEMORY_FORMATS[value]
        if _TAKES_LAYOUT in type_name:
            return torch.strided if value == 0 else value
    return value


def dtype_number(dtype: torch.dtype) -> int:
    """Return the number by which TorchScript knows a dtype."""
    return _DTYPE_NUMBERS[dtype]


def memory_format_number(memory_format: torch.memory_format) -> int:
    """Return the number by which TorchScript knows a memory format."""
    return _MEMORY_FORMAT_NUMBERS[memory_format]


def shares_memory(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Return whether two tensors, fake or real, are views of the same memory."""
    return bool(torch._C._is_alias_of(first, second))  # type: ignore[attr-defined]


def try_fake(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], mode: FakeTensorMode) -> Any:
    """Return the fake result of an operator, or of its shape rule, on fake or known arguments, or None where torch cannot tell."""
    try:
        with inference(mode):
            return function(*args, **kwargs)
    except Exception:  # noqa: BLE001 - any failure means that the result is not known before the model runs
        return None


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

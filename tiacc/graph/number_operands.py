"""0-d constants as numbers, where an operator computes the same with either.

A trace keeps each Python number that stands for a tensor, as the 9.8 of ``x / 9.8``, in a 0-d tensor of float64 or int64. Within the
process that tensor is marked as a number, and the importer sees the number; a file has lost the mark. Then two rules hold:

1. torch's executor takes a 0-d constant that is the second operand of `add`, `sub`, `mul` or `div` for a number, whatever its type.
2. Anywhere else it is a tensor. Beside one with dimensions, of its category or a higher one, it promotes nothing; the operator then gives
   the same with a number in its place, or with the constant in the type that it computes in.

Source: `torch_compat.TAKES_NUMBERS`; the rules of type promotion in torch's documentation of `torch.dtype`.
"""

from __future__ import annotations

from typing import Any

import torch

from tiacc.graph import torch_compat
from tiacc.graph.region_builder import RegionBuilder
from tiacc.graph.storage import TensorRef

aten = torch.ops.aten

_KINDS = frozenset(overload._schema.name for overload in torch_compat.TAKES_NUMBERS)


def _table() -> dict[Any, dict[int, tuple[tuple[int, ...], Any]]]:
    table: dict[Any, dict[int, tuple[tuple[int, ...], Any]]] = {}
    for name in ("eq", "ne", "lt", "le", "gt", "ge", "remainder", "fmod", "bitwise_and", "bitwise_or", "bitwise_xor", "rsub"):
        packet = getattr(aten, name)
        table[packet.Tensor] = {0: ((1,), None), 1: ((0,), packet.Scalar)}
    for overload in (*torch_compat.TAKES_NUMBERS, aten.div.Tensor_mode, aten.floor_divide.default):
        table[overload] = {0: ((1,), None), 1: ((0,), overload)}
    for overload in (aten.pow.Tensor_Tensor, aten.maximum.default, aten.minimum.default, aten.atan2.default):
        table[overload] = {0: ((1,), None), 1: ((0,), None)}
    table[aten.clamp.Tensor] = {1: ((0, 2), None), 2: ((0, 1), None)}
    table[aten.clamp_min.Tensor] = {1: ((0,), aten.clamp_min.default)}
    table[aten.clamp_max.Tensor] = {1: ((0,), aten.clamp_max.default)}
    table[aten.copy.default] = {1: ((0,), None)}
    table[aten.masked_fill.Tensor] = {2: ((0,), aten.masked_fill.Scalar)}
    table[aten.where.self] = {1: ((2,), aten.where.ScalarSelf), 2: ((1,), aten.where.ScalarOther)}
    return table


_TABLE = _table()
"""By operator and place: the places of the operands that a constant is promoted with, and the overload that takes a number instead."""


def taken_for_numbers(node: torch_compat.Node, args: list[Any], builder: RegionBuilder) -> list[Any]:
    """Return the inputs of a node with the number in the place of a constant that torch's executor takes for one."""
    if node.kind() not in _KINDS or torch_compat.overload_of(node) not in torch_compat.TAKES_NUMBERS:
        return args
    constant = _constant(args[1], builder)
    if constant is None or constant.dtype == torch.bool or constant.is_complex():  # which the executor fails on
        return args
    if not torch_compat.is_literal(torch_compat.inputs_of(node)[1]):
        return args
    return [args[0], constant.item(), *args[2:]]


def as_numbers(overload: torch._ops.OpOverload, args: list[Any], builder: RegionBuilder) -> tuple[torch._ops.OpOverload, list[Any]]:
    """Return an operator and its arguments with a number in the place of a 0-d constant of float64 or int64.

    Where it takes none, the constant is one of the type that it computes in. So is a number that a trace has where TorchScript has no
    number.
    """
    args = list(args)
    for place, (beside, with_number) in _TABLE.get(overload, {}).items():
        item, others = args[place], [args[index].value for index in beside if isinstance(args[index], TensorRef)]
        if not others:
            continue
        if isinstance(item, (int, float)) and not isinstance(item, bool) and with_number is None:
            dtype: torch.dtype | None = torch.result_type(others[0], item)
            args[place] = builder.constant(torch.tensor(item, dtype=dtype, device=others[0].device), "number")
            continue
        constant = _constant(item, builder)
        dtype = None if constant is None else _unpromoted(constant, others)
        if constant is None or dtype is None:
            continue
        if with_number is not None:
            args[place] = (constant if constant.device.type == "cpu" else constant.to(dtype)).item()  # a kernel of the CPU rounds it itself
            return with_number, args
        if constant.dtype != dtype:
            args[place] = builder.constant(constant.to(dtype), "number")
    return overload, args


def _constant(item: Any, builder: RegionBuilder) -> torch.Tensor | None:
    return builder.constant_behind(item) if isinstance(item, TensorRef) and not item.value.dim() else None


def _unpromoted(constant: torch.Tensor, others: list[torch.Tensor]) -> torch.dtype | None:
    """Return the type that an operator computes in, if that is the same where a constant is a number and where it is a tensor."""
    others = [other for other in others if other.dim()] or others
    if constant.dtype not in {torch.float64, torch.int64} or len({other.dtype for other in others}) != 1:
        return None
    beside = others[0].dtype
    dtype = torch.result_type(others[0], constant)
    if dtype != beside and not (beside == torch.bool and constant.dtype == torch.int64):
        return None
    rounded = constant.to(dtype)
    is_held = rounded.isinf() == constant.isinf() and not constant.isnan() if dtype.is_floating_point else rounded == constant
    return dtype if is_held else None

"""Which operators the TensorRT backend converts, and how.

A converter is registered for one or more overloads::

    @converts(torch.ops.aten.relu.default)
    def relu(call: Call) -> Value:
        return call.net.activation("RELU", call.tensor("self"))

Its optional check answers, from the node alone, whether it can; what passes the check must build. Each module of this package
is a family; all are imported when the table is first used. Other packages add to the table with the same decorator.
"""

from __future__ import annotations

import functools
import importlib
import operator
import pkgutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.partitioner import numbers_of
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.graph import specs

FLOATS: frozenset[torch.dtype] = frozenset({torch.float32, torch.float16, torch.bfloat16})
INTEGERS: frozenset[torch.dtype] = frozenset({torch.int32, torch.int64})
NUMBERS: frozenset[torch.dtype] = FLOATS | INTEGERS
ALL: frozenset[torch.dtype] = NUMBERS | {torch.bool}
BYTES: frozenset[torch.dtype] = frozenset({torch.uint8, torch.int8})

Check = Callable[[NodeView], Support]
Convert = Callable[[Call], Any]


@dataclass(frozen=True)
class Converter:
    """One way to convert some overloads.

    Attributes:
        convert: Adds the layers and returns the value of the node.
        check: Answers whether it can, from the node alone.
        dtypes: The types that its tensor arguments may have.
        results: The types that its results may have.
        symbolic: The names of the arguments that may be sizes known only when the engine runs.
        needs: The capability that the flavour must have, or an empty string.
    """

    convert: Convert
    check: Check | None
    dtypes: frozenset[torch.dtype]
    results: frozenset[torch.dtype]
    symbolic: frozenset[str]
    needs: str


_table: dict[torch._ops.OpOverload, Converter] = {}


def converts(
    *overloads: torch._ops.OpOverload,
    check: Check | None = None,
    dtypes: Collection[torch.dtype] = ALL,
    results: Collection[torch.dtype] = ALL,
    symbolic: Collection[str] = (),
    needs: str = "",
) -> Callable[[Convert], Convert]:
    """Return a decorator that registers a converter for `overloads`; the arguments are the fields of `Converter`."""

    def register(convert: Convert) -> Convert:
        converter = Converter(convert, check, frozenset(dtypes), frozenset(results), frozenset(symbolic), needs)
        _table.update(dict.fromkeys(overloads, converter))
        return convert

    return register


@functools.cache
def _load() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def converter_of(target: Any) -> Converter | None:
    """Return the converter of an overload, if there is one."""
    _load()
    return _table.get(target)


def all_converters() -> dict[torch._ops.OpOverload, Converter]:
    """Return the table, by overload."""
    _load()
    return dict(_table)


def supports(node: fx.Node, has: Callable[[str], bool] = lambda capability: True) -> Support:
    """Return whether a ``call_function`` node can be converted.

    Args:
        node: The node.
        has: Tells whether the flavour has a capability.
    """
    if node.target is operator.getitem:
        source = node.args[0]
        return supports(source, has) if isinstance(source, fx.Node) else Support(False, "it picks from what is no node")
    if specs.is_scalar(node):
        return SUPPORTED
    converter = converter_of(node.target)
    if converter is None:
        return Support(False, f"no converter for {node.target}")
    if converter.needs and not has(converter.needs):
        return Support(False, f"{node.target} needs the layer {converter.needs!r}, which this TensorRT does not have")
    for reason in (*_type_problems(node, converter), *_symbol_problems(node, converter), *_size_problems(node)):
        return Support(False, reason)
    return converter.check(NodeView(node)) if converter.check is not None else SUPPORTED


def _type_problems(node: fx.Node, converter: Converter) -> Iterator[str]:
    results = node.meta["val"]
    for fake in results if isinstance(results, (list, tuple)) else (results,):
        if not isinstance(fake, torch.Tensor):
            yield f"its result is {type(fake).__name__}, not a tensor"
        else:
            yield from _tensor_problems("result", fake, converter.results)
    for source in node.all_input_nodes:
        fake = source.meta["val"]
        if isinstance(fake, torch.Tensor):
            is_wide_number = source.op == "get_attr" and fake.dim() == 0 and fake.dtype == torch.float64
            if not is_wide_number or torch.float32 not in converter.dtypes:
                yield from _tensor_problems(f"input {source.name}", fake, converter.dtypes)


def _size_problems(node: fx.Node) -> Iterator[str]:
    """Yield what hinders the sizes that a node takes: the tensors that they are sizes of become inputs of the network too."""
    for number in numbers_of([node]):
        for source in filter(specs.is_tensor, number.all_input_nodes):
            dtype = source.meta["val"].dtype
            if dtype not in ALL | BYTES:
                yield f"it takes a size of {source.name}, which is {str(dtype).removeprefix('torch.')}"


def _tensor_problems(what: str, fake: torch.Tensor, dtypes: Collection[torch.dtype]) -> Iterator[str]:
    if fake.dtype not in dtypes:
        yield f"its {what} is {str(fake.dtype).removeprefix('torch.')}"
    if fake.layout != torch.strided:
        yield f"its {what} is {fake.layout}"
    if not all(isinstance(specs.dim_of(size), int) for size in fake.shape) and any(str(size) == "0" for size in fake.shape):
        yield f"its {what} has no elements, and sizes that vary"
    if fake.dim() > 8:
        yield f"its {what} has {fake.dim()} dimensions, TensorRT has at most 8"


def _symbol_problems(node: fx.Node, converter: Converter) -> Iterator[str]:
    for name, value in NodeView(node).args.items():
        if name in converter.symbolic:
            continue
        found: list[fx.Node] = []
        fx.map_arg(value, found.append)
        for source in found:
            known = source.meta["val"]
            if isinstance(known, (torch.SymInt, torch.SymFloat, torch.SymBool)) and not str(known).lstrip("-").isdigit():
                yield f"its argument {name!r} depends on a dynamic size"

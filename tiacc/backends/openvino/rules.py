"""What a node must be like for OpenVINO to compute it as torch does: the form of a rule, and the judge."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.openvino import bounds, dtypes
from tiacc.backends.openvino.lowering import name_of
from tiacc.graph import arguments, specs

FLOATS = frozenset({torch.float32, torch.float16, torch.bfloat16})
INTEGERS = frozenset({torch.int64, torch.int32})
BOOL = frozenset({torch.bool})
SMALL_INTEGERS = frozenset({torch.uint8, torch.int8, torch.int16})
NUMBERS = FLOATS | INTEGERS
EVERYTHING = NUMBERS | BOOL | SMALL_INTEGERS

RANK_LIMIT = 6
"""The most dimensions that a tensor may have, unless a rule says otherwise; not every kernel of OpenVINO takes more."""

_INDEX_ARGUMENTS = frozenset({"index", "indices"})
_MASK_ARGUMENTS = frozenset({"mask", "condition"})
_VALUES = frozenset({"other", "value", "fill_value", "min", "max"})


@dataclass(frozen=True)
class Call:
    """A node to judge.

    Attributes:
        node: The node.
        name: The operator, ``"relu.default"``.
        given: Its arguments by the names of the schema.
        results: What it computes.
    """

    node: fx.Node
    name: str
    given: dict[str, Any]
    results: tuple[torch.Tensor, ...]

    def tensor(self, name: str) -> torch.Tensor | None:
        """Return the tensor that is given as `name`, or None where there is none."""
        item = self.given.get(name)
        return item.meta["val"] if isinstance(item, fx.Node) and specs.is_tensor(item) else None

    @property
    def first(self) -> torch.Tensor:
        """The first tensor among the arguments."""
        return next(tensor for _, tensor in self.tensors())

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors among the arguments, those in lists included, each with the name of its argument."""
        for name, item in self.given.items():
            for member in item if isinstance(item, (list, tuple)) else (item,):
                if isinstance(member, fx.Node) and specs.is_tensor(member):
                    yield name, member.meta["val"]


Check: TypeAlias = Callable[[Call], str]
"""Returns why a node is not supported, or an empty string."""


@dataclass(frozen=True)
class Rule:
    """What OpenVINO takes of some operators.

    Attributes:
        area: The heading they stand under in the support matrix.
        names: The operators, without ``aten``.
        dtypes: The element types of their tensors.
        result_dtypes: The element types of their results.
        computed: The arguments that may be numbers computed from sizes at run time; all others must be known.
        limit: The magnitude below which integers come out right (`tiacc.backends.openvino.bounds`).
        check: What else must hold.
        note: What the check demands, for the support matrix.
        ranks: The most dimensions that its tensors may have.
    """

    area: str
    names: tuple[str, ...]
    dtypes: frozenset[torch.dtype]
    result_dtypes: frozenset[torch.dtype]
    computed: frozenset[str] = frozenset()
    limit: int = bounds.EXACT
    check: Check | None = None
    note: str = ""
    ranks: int = RANK_LIMIT


def judge(node: fx.Node) -> Support:
    """Return whether OpenVINO computes a node as torch does, and if not, why."""
    from tiacc.backends.openvino.table import TABLE

    name = name_of(node)
    rule = TABLE.get(name)
    if rule is None:
        return Support(False, f"no converter for {node.target}")
    value = node.meta.get("val")
    results = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not all(isinstance(item, torch.Tensor) for item in results):
        return Support(False, f"{node.target}: its result is not a tensor")
    try:
        call = Call(node, name, arguments.bound(node), results)
    except TypeError as error:
        return Support(False, f"{node.target}: {error}")
    reason = (
        _complaint_on_tensors(call, rule)
        or _complaint_on_numbers(call, rule)
        or (rule.check(call) if rule.check else "")
        or integer_complaint(node, bounds.Analysis(lambda _: bounds.SMALL))
    )
    return Support(False, f"{node.target}: {reason}") if reason else SUPPORTED


def _complaint_on_tensors(call: Call, rule: Rule) -> str:
    for name, tensor in [*call.tensors(), *(("result", tensor) for tensor in call.results)]:
        if tensor.device.type != "cpu":
            return f"{name} is on {tensor.device}, and OpenVINO runs on the CPU"
        if tensor.layout != torch.strided or tensor.is_quantized:
            return f"{name} is a {tensor.layout} tensor"
        if tensor.dtype not in _dtypes_of(name, rule):
            return f"{name} is {_name(tensor.dtype)}{_why_not(tensor.dtype)}"
        if tensor.dim() > rule.ranks:
            return f"{name} has {tensor.dim()} dimensions, more than {rule.ranks}"
        if any(least(size) == 0 for size in tensor.shape):
            return f"{name} may be empty"
    return ""


def least(size: int | torch.SymInt) -> int:
    """Return the least that a size may be."""
    dim = specs.dim_of(size)
    return dim.min if isinstance(dim, specs.Dim) else dim


def _dtypes_of(name: str, rule: Rule) -> frozenset[torch.dtype]:
    if name in _INDEX_ARGUMENTS:
        return INTEGERS | BOOL if name == "indices" else INTEGERS
    if name in _MASK_ARGUMENTS:
        return BOOL
    return rule.result_dtypes if name == "result" else rule.dtypes


def _why_not(dtype: torch.dtype) -> str:
    if dtype == torch.float64:
        return ", and OpenVINO computes float64 in float32"
    if dtype.is_complex:
        return ", and OpenVINO has no complex numbers"
    return "" if dtype in dtypes.NAMES else ", a type that OpenVINO lacks"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _complaint_on_numbers(call: Call, rule: Rule) -> str:
    for name, item in call.given.items():
        if name in rule.computed:
            continue
        for member in item if isinstance(item, (list, tuple)) else (item,):
            if isinstance(member, fx.Node) and not specs.is_tensor(member):
                return f"{name} is computed from sizes at run time"
    return ""


def integer_complaint(node: fx.Node, analysis: bounds.Analysis) -> str:
    """Return why the integers that a node computes with may come out wrong, or an empty string."""
    from tiacc.backends.openvino.table import TABLE

    if not any(map(_holds_integers, (node, *node.all_input_nodes))):
        return ""
    rule = TABLE.get(name_of(node))
    if rule is None or node.target is operator.getitem:
        return ""
    given = arguments.bound(node)
    operands = [
        member
        for name, item in given.items()
        if name not in _INDEX_ARGUMENTS
        for member in (item if isinstance(item, (list, tuple)) else (item,))
        if (isinstance(member, fx.Node) and specs.is_tensor(member) and _holds_integers(member))
    ]
    has_integers = bool(operands) or _holds_integers(node)
    numbers = [item for name, item in given.items() if name in _VALUES and isinstance(item, int)] if has_integers else []
    for item in (*operands, *numbers, *([node] if _holds_integers(node) else [])):
        interval = analysis.of(item)
        if not interval.within(rule.limit):
            return (
                f"integers up to {interval.magnitude:.3g} in magnitude, and OpenVINO computes them exactly up to {rule.limit}"
            )
    return ""


def _holds_integers(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype in INTEGERS

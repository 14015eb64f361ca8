"""What became of half precision: how much of a model computes in it, what stays in float32 and why. A part of the report."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import fx

from tiacc.graph import specs
from tiacc.graph.flops import flops_of
from tiacc.passes.cast_half import CastReport
from tiacc.passes.precision_policy import CONVERT, op_name

SHOWN = 40
"""The number of operators in the table of sensitivities."""

_CASTS = frozenset(CONVERT.split())


@dataclass(frozen=True)
class KeptRow:
    """An operator that computes in float32 beside others in half precision.

    Attributes:
        node: Its name in the graph.
        op: Its overload: ``"aten.exp.default"``.
        reason: Why it does.
        source: File and line of the TorchScript source, or an empty string.
        region: The index of the region.
    """

    node: str
    op: str
    reason: str
    source: str = ""
    region: int = 0


@dataclass(frozen=True)
class SensitivityRow:
    """What rounding to half precision does to an operator.

    Attributes:
        node: Its name in the graph.
        op: Its overload.
        local: The relative error of its own result, for inputs as they come in half precision; infinity where numbers are lost.
        contribution: The error of the outputs that comes from it, relative to their norms; infinity where numbers are lost.
        flops: Its arithmetic, in operations.
        is_kept: Whether it was kept in float32.
        source: File and line of the TorchScript source, or an empty string.
        region: The index of the region.
    """

    node: str
    op: str
    local: float
    contribution: float
    flops: int
    is_kept: bool
    source: str = ""
    region: int = 0


@dataclass
class Precision:
    """How much of a model computes in half precision, and how that came about.

    Attributes:
        half_dtype: The element type of half precision: ``"bfloat16"``.
        operators: The part of the floating-point operators that compute in it, casts not counted, 0 to 1.
        flops: The part of the floating-point arithmetic that is done in it, 0 to 1.
        casts: The number of conversions that it takes.
        kept: The operators in float32.
        sensitivities: The operators whose rounding does most to the outputs; empty where no repair was tried.
        error_before: The error of the outputs before the repair; None without one.
        error_after: The error of the outputs after the repair; None without one.
    """

    half_dtype: str
    operators: float = 0.0
    flops: float = 0.0
    casts: int = 0
    kept: list[KeptRow] = field(default_factory=list)
    sensitivities: list[SensitivityRow] = field(default_factory=list)
    error_before: float | None = None
    error_after: float | None = None

    @property
    def share(self) -> str:
        """How much computes in half precision, as a sentence."""
        return f"{self.operators:.0%} of the operators and {self.flops:.1%} of the arithmetic, with {self.casts} casts"

    @property
    def reasons(self) -> list[str]:
        """What is in float32 and why, a sentence for each kind of operator and reason, the most frequent first."""
        counts = Counter((row.op, row.reason) for row in self.kept)
        return [f"{count} \N{MULTIPLICATION SIGN} {op} in float32: {reason}" for (op, reason), count in counts.most_common()]


def precision_of(regions: Iterable[tuple[int, fx.GraphModule, CastReport | None]]) -> tuple[Precision | None, list[str]]:
    """Return what `cast-half` made of the regions of a model, and what of `keep_fp32` means nothing in any of them.

    Args:
        regions: The index of each, its graph after the passes, and what the pass says of it.
    """
    precision: Precision | None = None
    unmatched: list[set[str]] = []
    operators = flops = half_operators = half_flops = 0
    for index, gm, casts in regions:
        if casts is None:
            continue
        precision = precision or Precision(str(casts.dtype).removeprefix("torch."))
        precision.casts += casts.casts
        unmatched.append(set(casts.unmatched))
        for node in gm.graph.nodes:
            dtypes = _float_dtypes(node)
            if not dtypes:
                continue
            work = flops_of(node)
            operators, flops = operators + 1, flops + work
            if casts.dtype in dtypes:
                half_operators, half_flops = half_operators + 1, half_flops + work
            elif node.name in casts.kept:
                source = str(node.meta.get("source", ""))
                precision.kept.append(KeptRow(node.name, str(node.target), casts.kept[node.name], source, index))
    if precision is None:
        return None, []
    precision.operators = half_operators / max(operators, 1)
    precision.flops = half_flops / max(flops, 1)
    return precision, sorted(set.intersection(*unmatched))


def _float_dtypes(node: fx.Node) -> set[torch.dtype]:
    """Return the floating-point types of what an operator computes; nothing for a cast, or for what computes nothing."""
    if node.op != "call_function" or node.target is operator.getitem or specs.is_scalar(node) or op_name(node) in _CASTS:
        return set()
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else (value,)
    return {item.dtype for item in values if isinstance(item, torch.Tensor) and item.is_floating_point()}

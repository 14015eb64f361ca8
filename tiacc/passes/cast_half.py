"""Compute in half precision what can be, and cast where the two meet.

::

    x → conv2d → relu → exp → (returned)
    x → to(half) → conv2d, its weight half → relu → to(float32) → exp → (returned)

Each operator computes in what `tiacc.passes.assign_precision` assigns it: convolutions and matrix products in half precision, element-wise
arithmetic in the widest type that reaches it, exponentials and sums in float32. A value is cast at most once to a dtype, right where
it is made, or before the reshapes that follow; a cast that undoes a lossless one takes what was there before. Constants are cast here,
into new ones, the weights of a layer so that their errors cancel (`tiacc.passes.rounding`). Inputs and outputs of the graph keep their
dtypes, and so does all that is not float32: integers, float64, what the model computes in half precision already.

A constant that half precision cannot hold keeps its reader in float32: one that overflows, whose numbers are lost (a relative error
of the whole beyond `precision_policy.LOSS`), or that holds whole numbers that would be rounded, such as positions.
"""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import fx

from tiacc.graph import arguments, specs, torch_compat
from tiacc.passes import precision_policy, rewrite, rounding
from tiacc.passes.assign_precision import Assigned, assign, float_dtypes
from tiacc.passes.base import Pass, PassContext, PassResult, register
from tiacc.passes.precision_policy import Kind

aten = torch.ops.aten


@register
@dataclass(frozen=True)
class CastHalf(Pass):
    """Computes in half precision what can be.

    Leaves ``ctx.data["cast-half"]``, the `CastReport`. What ``ctx.data["keep-fp32"]`` names, a node and why, stays in float32 too.

    Attributes:
        dtype: The dtype of half precision, `torch.float16` or `torch.bfloat16`.
        keep_fp32: What stays in float32, each with ``*`` and ``?`` for any text: operators (``"softmax"``, ``"aten.softmax"``,
            ``"aten.softmax.int"``, ``"aten::softmax"``), names of nodes, paths of modules.
    """

    name: ClassVar[str] = "cast-half"
    after: ClassVar[tuple[str, ...]] = ("fold-constants", "fold-batch-norm")

    dtype: torch.dtype = torch.float16
    keep_fp32: tuple[str, ...] = ()

    def apply(self, gm: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Cast; each new cast, new constant and conversion made explicit counts as one change."""
        report = cast_half(gm, ctx, self.dtype, self.keep_fp32)
        ctx.data[self.name] = report
        return PassResult(gm, report.changes)


@dataclass
class CastReport:
    """What `cast-half` did.

    Attributes:
        dtype: The dtype of half precision.
        half: The number of nodes that compute in it.
        kept: Why each other node that computes in float32 does, by the name of the node.
        casts: The number of casts in the graph.
        constants: The number of constants that were cast.
        unmatched: The items of `keep_fp32` that no node matches.
        changes: The number of changes to the graph.
    """

    dtype: torch.dtype
    half: int = 0
    kept: dict[str, str] = field(default_factory=dict)
    casts: int = 0
    constants: int = 0
    unmatched: tuple[str, ...] = ()
    changes: int = 0

    @property
    def reasons(self) -> dict[str, int]:
        """How many nodes are kept for each reason, the most frequent first."""
        return dict(Counter(self.kept.values()).most_common())


def cast_half(gm: fx.GraphModule, ctx: PassContext, dtype: torch.dtype, keep_fp32: tuple[str, ...]) -> CastReport:
    """Let the nodes of `gm` compute in `dtype` that can."""
    return _Caster(gm, ctx, dtype, keep_fp32).run()


class _Caster:
    """One run of the pass."""

    def __init__(self, gm: fx.GraphModule, ctx: PassContext, half: torch.dtype, keep_fp32: tuple[str, ...]) -> None:
        self.gm = gm
        self.mode = specs.fake_mode_of(gm)
        self.assignment = assign(gm, ctx, half, keep_fp32)
        self.half = half
        self.report = CastReport(half, kept=self.assignment.kept, unmatched=self.assignment.unmatched)
        self._casts: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}

    def run(self) -> CastReport:
        """Do all there is to do."""
        for node, assigned in self.assignment.nodes.items():
            self._visit(node, assigned)
        self._restore_outputs()
        return self.report

    def _visit(self, node: fx.Node, assigned: Assigned) -> None:
        is_half = assigned.dtype == self.half
        if assigned.kind is Kind.CONVERT:
            self._convert(node)
            self.report.half += is_half
        elif assigned.kind is Kind.KEEP and precision_policy.op_name(node) in precision_policy.READ_SHAPE_ONLY:
            self._pin_dtype(node)
        elif node.target is not operator.getitem:
            self._read(node, assigned.dtype)
            self.report.half += is_half
        node.meta["val"] = assigned.value

    def _convert(self, node: fx.Node) -> None:
        bound = arguments.bound(node)
        source, other = bound["self"], bound.get("other")
        if other is not None and other in self.assignment.was_float and self.half in _float_dtypes(other):
            # What it converts to was float32 and is no longer.
            value = node.meta["val"]
            rest = [bound[name] for name in ("non_blocking", "copy", "memory_format") if name in bound]
            node.target, node.args, node.kwargs = aten.to.device, (source, value.device, value.dtype, *rest), {}
            self.report.changes += 1

    def _pin_dtype(self, node: fx.Node) -> None:
        """Let a node that takes its dtype from a tensor, and nothing else, go on making float32."""
        bound = arguments.bound(node)
        if bound["dtype"] is None and node in self.assignment.was_float and self.half in _float_dtypes(bound["self"]):
            arguments.rebind(node, dtype=torch.float32)
            self.report.changes += 1

    def _read(self, node: fx.Node, dtype: torch.dtype) -> None:
        """Let a node read its floating-point inputs in `dtype`."""
        casts: dict[str, dict[fx.Node, fx.Node]] = {}
        for name, source in self.assignment.float_arguments(node):
            wanted = self.assignment.dtype_of_argument(node, name, source, dtype)
            if wanted not in _float_dtypes(source):
                casts.setdefault(name, {})[source] = self._cast(source, wanted)
        if casts:
            bound = arguments.bound(node)
            arguments.rebind(node, **{name: _replaced(bound[name], table) for name, table in casts.items()})

    def _cast(self, source: fx.Node, dtype: torch.dtype) -> fx.Node:
        """Return the node that gives `source` in another dtype; a new one if there is none yet."""
        known = self._casts.get((source, dtype))
        if known is not None:
            return known
        self.report.changes += 1
        cast = _undone(source, dtype)
        if cast is None:
            cast = self._new_constant(source, dtype) if source.op == "get_attr" else self._new_cast(source, dtype)
        self._casts[source, dtype] = cast
        return cast

    def _new_constant(self, source: fx.Node, dtype: torch.dtype) -> fx.Node:
        self.report.constants += 1
        return rewrite.add_constant(source, f"{source.target}_{_SUFFIXES[dtype]}", rounding.rounded(source, dtype))

    def _new_cast(self, source: fx.Node, dtype: torch.dtype) -> fx.Node:
        anchor = source.next
        while anchor.op == "placeholder":
            anchor = anchor.next
        cast = rewrite.add_call(anchor, aten.to.dtype, source, dtype, like=source)
        cast.meta["val"] = torch_compat.fake_as(self.mode, source.meta["val"], dtype)
        self.report.casts += 1
        return cast

    def _restore_outputs(self) -> None:
        output, was_float = self.gm.graph.output_node(), self.assignment.was_float
        returned = output.args[0]
        restored = fx.map_arg(
            returned,
            lambda node: self._cast(node, torch.float32) if node in was_float and self.half in _float_dtypes(node) else node,
        )
        if list(restored) != list(returned):  # type: ignore[arg-type]
            output.args = (restored,)
            specs.infer(self.gm, output)


_SUFFIXES = {torch.float16: "fp16", torch.bfloat16: "bf16"}


def _replaced(value: Any, table: dict[fx.Node, fx.Node]) -> Any:
    return fx.map_arg(value, lambda node: table.get(node, node))


def _undone(source: fx.Node, dtype: torch.dtype) -> fx.Node | None:
    """Return what `source` was converted from without loss, if that had the given dtype."""
    if source.op != "call_function" or source.target not in (aten.to.dtype, aten._to_copy.default):
        return None
    origin = arguments.bound(source)["self"]
    value, before = source.meta["val"], origin.meta["val"]
    is_same = before.dtype == dtype and before.device == value.device and rewrite.same_layout(before, value)
    return origin if is_same and rewrite.is_lossless(dtype, value.dtype) else None


def _float_dtypes(node: fx.Node) -> set[torch.dtype]:
    """Return the dtypes of the floating-point tensors that a node gives."""
    return float_dtypes(node.meta.get("val"))

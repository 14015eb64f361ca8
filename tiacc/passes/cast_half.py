"""Compute in half precision what can be, and cast where the two meet.

::

    x → conv2d → relu → exp → (returned)
    x → to(half) → conv2d, its weight half → relu → to(float32) → exp → (returned)

Each operator runs as `tiacc.passes.precision_policy` says: convolutions and matrix products in half precision, element-wise
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
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import fx

from tiacc.errors import ImportGraphError
from tiacc.graph import arguments, specs, torch_compat
from tiacc.graph.module_paths import paths_of
from tiacc.passes import precision_policy, rewrite, rounding
from tiacc.passes.base import Pass, PassContext, PassResult, register
from tiacc.passes.precision_policy import Kind, Policy

aten = torch.ops.aten

KEEP = "keep-fp32"
"""Where `PassContext.data` has the nodes that are to stay in float32: why each does, by its name."""


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
    """One run of the pass.

    Attributes:
        was_float: The nodes that gave float32 tensors before the run.
        free: Those of them that are to be had in half precision at no loss that counts, and so widen nothing.
        policies: The policy of each call that reads or gives float32 tensors.
        wants_half: The moves all of whose readers compute in half precision, so that a cast is better done before them.
    """

    def __init__(self, gm: fx.GraphModule, ctx: PassContext, half: torch.dtype, keep_fp32: tuple[str, ...]) -> None:
        self.gm = gm
        self.mode = specs.fake_mode_of(gm)
        self.ctx = ctx
        self.half = half
        self.keep_fp32 = keep_fp32
        self.kept: Mapping[str, str] = ctx.data.get(KEEP, {})
        self.report = CastReport(half)
        self.nodes = list(gm.graph.nodes)
        self.was_float = {node for node in self.nodes if _float_dtypes(node) == {torch.float32}}
        self.free: set[fx.Node] = set()
        self.policies: dict[fx.Node, Policy] = {}
        self.wants_half: set[fx.Node] = set()
        self._casts: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}
        self._misfits: dict[fx.Node, str] = {}

    def run(self) -> CastReport:
        """Do all there is to do."""
        self._classify()
        self._find_moves_below_a_cast()
        for node in self.nodes:
            if node in self.policies:
                self._visit(node)
        self._restore_outputs()
        return self.report

    # What each node is to be -------------------------------------------------------------------------------------------

    def _classify(self) -> None:
        matched: set[str] = set()
        paths = paths_of(self.gm) if self.keep_fp32 else {}
        for node in self.nodes:
            if node.op == "get_attr" and node in self.was_float and not self._misfit(node):
                self.free.add(node)
            if node.op != "call_function" or _is_number(node):
                continue
            if node not in self.was_float and self.was_float.isdisjoint(node.all_input_nodes):
                continue
            patterns = [pattern for pattern in self.keep_fp32 if precision_policy.matches(node, pattern, paths.get(node, ""))]
            matched.update(patterns)
            self.policies[node] = self._policy(node, patterns)
            is_told = bool(patterns) or node.name in self.kept
            if not is_told and node in self.was_float and precision_policy.is_exact(node, self.half, self.free):
                self.free.add(node)
        self.report.unmatched = tuple(pattern for pattern in self.keep_fp32 if pattern not in matched)

    def _policy(self, node: fx.Node, patterns: list[str]) -> Policy:
        if patterns:
            return Policy(Kind.KEEP, f"keep_fp32={patterns[0]!r}")
        if node.name in self.kept:
            return Policy(Kind.KEEP, self.kept[node.name])
        if node.target is operator.getitem:
            return Policy(Kind.MOVE)
        if isinstance(node.meta["val"], (list, tuple)) and any(user.target is not operator.getitem for user in node.users):
            return Policy(Kind.KEEP, "its results are read as a list")
        policy = precision_policy.policy_of(node, self.half)
        if policy.kind is Kind.COMPUTE:
            for name, source in self._float_arguments(node):
                if source.op == "get_attr" and not _is_loose(node, name) and self._misfit(source):
                    return Policy(Kind.KEEP, self._misfit(source))
        return policy

    def _find_moves_below_a_cast(self) -> None:
        for node in reversed(self.nodes):
            if node in self.was_float and node in self.policies and self.policies[node].kind is Kind.MOVE:
                readers = [user for user in node.users if not _is_number(user)]
                if readers and all(self._casts_to_half(user, node) for user in readers):
                    self.wants_half.add(node)

    def _casts_to_half(self, user: fx.Node, node: fx.Node) -> bool:
        if user in self.wants_half:
            return True
        policy = self.policies.get(user)
        return policy is not None and policy.kind is Kind.COMPUTE and not any(
            source is node and _is_loose(user, name) for name, source in self._float_arguments(user)
        )

    def _followed(self, node: fx.Node) -> str:
        """Return why a node that follows its inputs is to be float32; an empty string if it is to be half."""
        sources = [source for _, source in self._float_arguments(node)]
        for source in sources:
            if source.op == "get_attr" and self._misfit(source):
                return self._misfit(source)
        if node in self.wants_half:
            return ""
        solid = [source for source in sources if source not in self.free]
        solid = [source for source in solid if _rank(source)] or solid
        if solid:
            return "it follows a float32 value" if any(torch.float32 in _float_dtypes(source) for source in solid) else ""
        return "" if any(source.op == "get_attr" and _rank(source) for source in sources) else "it follows a float32 value"

    # The rewriting -----------------------------------------------------------------------------------------------------

    def _visit(self, node: fx.Node) -> None:
        kind, reason = self.policies[node].kind, self.policies[node].reason
        if node.target is operator.getitem:
            self._pick(node)
            return
        if kind is Kind.CONVERT:
            self._convert(node)
            return
        if kind is Kind.KEEP and precision_policy.op_name(node) in precision_policy.READ_SHAPE_ONLY:
            self._pin_dtype(node)
            return
        if kind in (Kind.FOLLOW, Kind.MOVE):
            reason = self._followed(node)
        if not reason and not self.ctx.spend():
            reason = "there was no fuel left"
        if not reason:
            reason = self._compute_in_half(node)
        if reason:
            self._read(node, torch.float32)
            if node not in self.free:
                self.report.kept[node.name] = reason

    def _compute_in_half(self, node: fx.Node) -> str:
        """Let a node read half precision; return why it cannot, or an empty string."""
        args, kwargs, before, changes = node.args, node.kwargs, node.meta["val"], self.report.changes
        made = self._read(node, self.half)
        if node in self.was_float and any(self.half in _float_dtypes(source) for source in node.all_input_nodes):
            try:
                self._infer_half(node)
            except ImportGraphError:
                node.args, node.kwargs, node.meta["val"] = args, kwargs, before
                self._forget(made)
                self.report.changes = changes
                return f"the operator does not take {self.half}"
        self.report.half += 1
        return ""

    def _infer_half(self, node: fx.Node) -> None:
        value = node.meta["val"]
        if self.policies[node].kind is Kind.COMPUTE or not isinstance(value, torch.Tensor):
            specs.infer(self.gm, node)
        else:
            node.meta["val"] = torch_compat.fake_as(self.mode, value, self.half)

    def _pick(self, node: fx.Node) -> None:
        values = node.args[0].meta["val"]  # type: ignore[union-attr]
        node.meta["val"] = values[node.args[1]]

    def _convert(self, node: fx.Node) -> None:
        bound = arguments.bound(node)
        source, other = bound["self"], bound.get("other")
        if other is not None and other in self.was_float and self.half in _float_dtypes(other):
            # What it converts to was float32 and is no longer.
            value = node.meta["val"]
            rest = [bound[name] for name in ("non_blocking", "copy", "memory_format") if name in bound]
            node.target, node.args, node.kwargs = aten.to.device, (source, value.device, value.dtype, *rest), {}
            self.report.changes += 1
        elif other is None and bound.get("dtype") is None and source in self.was_float and self.half in _float_dtypes(source):
            specs.infer(self.gm, node)
            self.report.half += 1
            return
        if node in self.was_float and node not in self.free:
            self.report.kept[node.name] = "the model asks for torch.float32"

    def _pin_dtype(self, node: fx.Node) -> None:
        """Let a node that takes its dtype from a tensor, and nothing else, go on making float32."""
        bound = arguments.bound(node)
        if bound["dtype"] is None and node in self.was_float and self.half in _float_dtypes(bound["self"]):
            arguments.rebind(node, dtype=torch.float32)
            self.report.changes += 1

    def _read(self, node: fx.Node, dtype: torch.dtype) -> list[fx.Node]:
        """Let a node read its floating-point inputs in `dtype`; return the nodes made for that."""
        made: list[fx.Node] = []
        casts: dict[str, dict[fx.Node, fx.Node]] = {}
        for name, source in self._float_arguments(node):
            wanted = self._dtype_of_argument(node, name, source, dtype)
            if wanted not in _float_dtypes(source):
                casts.setdefault(name, {})[source] = self._cast(source, wanted, made)
        if casts:
            bound = arguments.bound(node)
            arguments.rebind(node, **{name: _replaced(bound[name], table) for name, table in casts.items()})
        return made

    def _float_arguments(self, node: fx.Node) -> list[tuple[str, fx.Node]]:
        """Return the inputs of a call that were float32, each with the name of its parameter."""
        return [
            (name, item)
            for name, value in arguments.bound(node).items()
            for item in (value if isinstance(value, (list, tuple)) else (value,))
            if isinstance(item, fx.Node) and item in self.was_float
        ]

    def _dtype_of_argument(self, node: fx.Node, name: str, source: fx.Node, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype in which a node that computes in `dtype` reads one of its inputs."""
        if dtype == torch.float32:
            return dtype
        cast = precision_policy.CAST_ARGUMENTS.get(precision_policy.op_name(node))
        if cast is not None and name not in cast:
            return torch.float32
        if _is_loose(node, name) and source not in self.free:
            (dtype,) = _float_dtypes(source)
        return dtype

    def _cast(self, source: fx.Node, dtype: torch.dtype, made: list[fx.Node]) -> fx.Node:
        """Return the node that gives `source` in another dtype; a new one if there is none yet."""
        known = self._casts.get((source, dtype))
        if known is not None:
            return known
        self.report.changes += 1
        cast = _undone(source, dtype)
        if cast is None:
            cast = self._new_constant(source, dtype) if source.op == "get_attr" else self._new_cast(source, dtype)
            made.append(cast)
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

    def _forget(self, made: list[fx.Node]) -> None:
        """Take back casts that were made for a node which does not read them after all."""
        for cast in made:
            if cast.op == "get_attr":
                self.report.constants -= 1
                delattr(self.gm, str(cast.target))
            else:
                self.report.casts -= 1
            self.gm.graph.erase_node(cast)
        self._casts = {key: cast for key, cast in self._casts.items() if cast not in made}

    def _restore_outputs(self) -> None:
        output = self.gm.graph.output_node()
        returned = output.args[0]
        restored = fx.map_arg(
            returned,
            lambda node: self._cast(node, torch.float32, []) if node in self.was_float and self.half in _float_dtypes(node) else node,
        )
        if list(restored) != list(returned):  # type: ignore[arg-type]
            output.args = (restored,)
            specs.infer(self.gm, output)

    def _misfit(self, node: fx.Node) -> str:
        """Return why a constant cannot be had in half precision, or an empty string."""
        if node not in self._misfits:
            tensor = rewrite.constant_of(node)
            assert tensor is not None
            reason = precision_policy.constant_misfit(tensor, self.half)
            self._misfits[node] = reason and f"its constant {node.target} {reason}"
        return self._misfits[node]


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


def _is_loose(node: fx.Node, name: str) -> bool:
    return name in precision_policy.LOOSE_ARGUMENTS.get(precision_policy.op_name(node), ())


def _float_dtypes(node: fx.Node) -> set[torch.dtype]:
    """Return the dtypes of the floating-point tensors that a node gives."""
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else (value,)
    return {item.dtype for item in values if isinstance(item, torch.Tensor) and item.is_floating_point()}


def _is_number(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), rewrite.NUMBERS)


def _rank(node: fx.Node) -> int:
    value = node.meta["val"]
    return value.ndim if isinstance(value, torch.Tensor) else 1

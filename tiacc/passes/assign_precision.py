"""Which nodes compute in half precision, and why the others do not: the one decision that `cast-half` realises for every backend.

Three things decide, in this order: what the user keeps in float32 (``keep_fp32``: operators, nodes, modules), what was found to need it
(values on the test data that half precision cannot hold, `tiacc.ranges`; what a repair keeps, `tiacc.repair`), and the policy of the
operator (`tiacc.passes.precision_policy`), constants that half precision cannot hold among it. An operator that follows its inputs is
assigned the widest type that these were assigned.

Nothing is changed here: an assignment says of each node in which type it reads its inputs and what it then gives.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from tiacc.errors import ImportGraphError
from tiacc.graph import arguments, specs, torch_compat
from tiacc.graph.module_paths import paths_of
from tiacc.passes import precision_policy, rewrite
from tiacc.passes.base import PassContext
from tiacc.passes.precision_policy import Kind, Policy

KEEP = "keep-fp32"
"""Where `PassContext.data` has the nodes that are to stay in float32: why each does, by its name."""


@dataclass(frozen=True)
class Assigned:
    """What a node is to do.

    Attributes:
        dtype: The type in which it computes: it reads its floating-point inputs in it.
        reason: Why it is not half precision; empty where it is, or where there is nothing to say.
        value: What it gives then, as ``meta["val"]`` has it.
        kind: The class of its operator.
    """

    dtype: torch.dtype
    reason: str
    value: Any
    kind: Kind


@dataclass
class Assignment:
    """The type of each node that reads or gives float32.

    Attributes:
        half: The dtype of half precision.
        nodes: What each is to do, in the order of the graph.
        was_float: The nodes that give float32 tensors now.
        free: Those of them that are to be had in half precision at no loss that counts, and so widen nothing.
        misfits: Why a constant cannot be had in half precision, by its node.
        unmatched: The items of ``keep_fp32`` that no node matches.
    """

    half: torch.dtype
    nodes: dict[fx.Node, Assigned] = field(default_factory=dict)
    was_float: set[fx.Node] = field(default_factory=set)
    free: set[fx.Node] = field(default_factory=set)
    misfits: dict[fx.Node, str] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()

    @property
    def kept(self) -> dict[str, str]:
        """Why each node that computes in float32 does, by its name."""
        return {node.name: item.reason for node, item in self.nodes.items() if item.reason}

    def float_arguments(self, node: fx.Node) -> list[tuple[str, fx.Node]]:
        """Return the inputs of a call that were float32, each with the name of its parameter."""
        return [
            (name, item)
            for name, value in arguments.bound(node).items()
            for item in (value if isinstance(value, (list, tuple)) else (value,))
            if isinstance(item, fx.Node) and item in self.was_float
        ]

    def dtype_of_argument(self, node: fx.Node, name: str, source: fx.Node, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype in which a node that computes in `dtype` reads one of its inputs."""
        if dtype == torch.float32:
            return dtype
        cast = precision_policy.CAST_ARGUMENTS.get(precision_policy.op_name(node))
        if cast is not None and name not in cast:
            return torch.float32
        if is_loose(node, name) and source not in self.free:
            (dtype,) = float_dtypes(self.value_of(source))
        return dtype

    def value_of(self, node: fx.Node) -> Any:
        """Return what a node gives, once it is as it is to be."""
        return self.nodes[node].value if node in self.nodes else node.meta["val"]


def assign(gm: fx.GraphModule, ctx: PassContext, half: torch.dtype, keep_fp32: tuple[str, ...] = ()) -> Assignment:
    """Decide for each node of a graph what it computes in.

    Args:
        gm: A graph with types; it is not changed.
        ctx: ``ctx.data["keep-fp32"]`` has more nodes that stay in float32, each with the reason. A node in half precision costs a unit of
            fuel, beside those that only pick a result of another or convert.
        half: `torch.float16` or `torch.bfloat16`.
        keep_fp32: What stays in float32, as `tiacc.passes.cast_half.CastHalf` describes it.
    """
    return _Assigner(gm, ctx, half, keep_fp32).run()


class _Assigner:
    """One decision.

    Attributes:
        policies: The policy of each call that reads or gives float32 tensors.
        wants_half: The moves all of whose readers compute in half precision, so that a cast is better done before them.
        float_arguments: What `Assignment.float_arguments` says of each call that was looked at; the graph stays as it is.
        value_as: What a node gives, converted; asked for when it is decided what that is.
    """

    def __init__(self, gm: fx.GraphModule, ctx: PassContext, half: torch.dtype, keep_fp32: tuple[str, ...]) -> None:
        self.gm = gm
        self.mode = specs.fake_mode_of(gm)
        self.ctx = ctx
        self.half = half
        self.keep_fp32 = keep_fp32
        self.found: Mapping[str, str] = ctx.data.get(KEEP, {})
        self.nodes = list(gm.graph.nodes)
        self.made = Assignment(half, was_float={node for node in self.nodes if float_dtypes(node.meta.get("val")) == {torch.float32}})
        self.policies: dict[fx.Node, Policy] = {}
        self.wants_half: set[fx.Node] = set()
        self.float_arguments = functools.cache(self.made.float_arguments)
        self.value_as = functools.cache(lambda node, dtype: torch_compat.fake_as(self.mode, self.made.value_of(node), dtype))

    def run(self) -> Assignment:
        """Do all there is to do."""
        self._classify()
        self._keep_positions()
        self._find_moves_below_a_cast()
        for node, policy in self.policies.items():
            self.made.nodes[node] = self._assigned(node, policy)
        return self.made

    def _classify(self) -> None:
        made, matched = self.made, set[str]()
        paths = paths_of(self.gm) if self.keep_fp32 else {}
        for node in self.nodes:
            if node.op == "get_attr" and node in made.was_float and not self._misfit(node):
                made.free.add(node)
            if node.op != "call_function" or is_number(node):
                continue
            if node not in made.was_float and made.was_float.isdisjoint(node.all_input_nodes):
                continue
            patterns = [pattern for pattern in self.keep_fp32 if precision_policy.matches(node, pattern, paths.get(node, ""))]
            matched.update(patterns)
            self.policies[node] = self._policy(node, patterns)
            is_told = bool(patterns) or node.name in self.found
            if not is_told and node in made.was_float and precision_policy.is_exact(node, self.half, made.free):
                made.free.add(node)
        made.unmatched = tuple(pattern for pattern in self.keep_fp32 if pattern not in matched)

    def _policy(self, node: fx.Node, patterns: list[str]) -> Policy:
        if patterns:
            return Policy(Kind.KEEP, f"keep_fp32={patterns[0]!r}")
        if node.name in self.found:
            return Policy(Kind.KEEP, self.found[node.name])
        if node.target is operator.getitem:
            return Policy(Kind.MOVE)
        if isinstance(node.meta["val"], (list, tuple)) and any(user.target is not operator.getitem for user in node.users):
            return Policy(Kind.KEEP, "its results are read as a list")
        policy = precision_policy.policy_of(node, self.half)
        if policy.kind is Kind.COMPUTE:
            for name, source in self.float_arguments(node):
                if source.op == "get_attr" and not is_loose(node, name) and self._misfit(source):
                    return Policy(Kind.KEEP, self._misfit(source))
        return policy

    def _keep_positions(self) -> None:
        """Keep in float32 what computes where images are sampled, up to the layers of the model before it."""
        stack = [grid for node in self.policies if (grid := precision_policy.positions_of(node)) is not None]
        seen: set[fx.Node] = set()
        while stack:
            node = stack.pop()
            if node in seen or node not in self.policies:
                continue
            seen.add(node)
            kind = self.policies[node].kind
            if kind is Kind.COMPUTE and not precision_policy.is_small_product(node):
                continue
            sources = [source for source in node.all_input_nodes if source in self.made.was_float]
            if kind in (Kind.COMPUTE, Kind.FOLLOW, Kind.MOVE):
                self.made.free.discard(node)
                if precision_policy.is_arithmetic(node) or any(source.op == "get_attr" for source in sources):
                    self.policies[node] = Policy(Kind.KEEP, precision_policy.POSITION)
            stack += sources

    def _find_moves_below_a_cast(self) -> None:
        for node in reversed(self.nodes):
            if node in self.made.was_float and node in self.policies and self.policies[node].kind is Kind.MOVE:
                readers = [user for user in node.users if not is_number(user)]
                if readers and all(self._casts_to_half(user, node) for user in readers):
                    self.wants_half.add(node)

    def _casts_to_half(self, user: fx.Node, node: fx.Node) -> bool:
        if user in self.wants_half:
            return True
        policy = self.policies.get(user)
        return policy is not None and policy.kind is Kind.COMPUTE and not any(
            source is node and is_loose(user, name) for name, source in self.float_arguments(user)
        )

    def _assigned(self, node: fx.Node, policy: Policy) -> Assigned:
        kind, reason = policy.kind, policy.reason
        if node.target is operator.getitem:
            value = self.made.value_of(node.args[0])[node.args[1]]  # type: ignore[arg-type]
            return Assigned(_dtype_of(value), "", value, kind)
        if kind is Kind.CONVERT:
            return self._converted(node)
        if kind is Kind.KEEP and precision_policy.op_name(node) in precision_policy.READ_SHAPE_ONLY:
            return Assigned(torch.float32, "", node.meta["val"], kind)
        if kind in (Kind.FOLLOW, Kind.MOVE):
            reason = self._followed(node)
        if not reason and not self.ctx.spend():
            reason = "there was no fuel left"
        if not reason:
            try:
                return Assigned(self.half, "", self._value_in_half(node, kind), kind)
            except ImportGraphError:
                reason = f"the operator does not take {self.half}"
        return Assigned(torch.float32, "" if node in self.made.free else reason, node.meta["val"], kind)

    def _converted(self, node: fx.Node) -> Assigned:
        bound = arguments.bound(node)
        source, other, value = bound["self"], bound.get("other"), node.meta["val"]
        is_half = source in self.made.was_float and self.half in float_dtypes(self.made.value_of(source))
        if other is None and bound.get("dtype") is None and is_half:  # to another device, say: it keeps the type of its input
            return Assigned(self.half, "", torch_compat.fake_as(self.mode, value, self.half), Kind.CONVERT)
        is_asked = node in self.made.was_float and node not in self.made.free
        return Assigned(_dtype_of(value), "the model asks for torch.float32" if is_asked else "", value, Kind.CONVERT)

    def _followed(self, node: fx.Node) -> str:
        """Return why a node that follows its inputs is to be float32; an empty string if it is to be half."""
        sources = [source for _, source in self.float_arguments(node)]
        for source in sources:
            if source.op == "get_attr" and self._misfit(source):
                return self._misfit(source)
        if node in self.wants_half:
            return ""
        solid = [source for source in sources if source not in self.made.free]
        solid = [source for source in solid if _rank(source)] or solid
        if solid:
            is_wide = any(torch.float32 in float_dtypes(self.made.value_of(source)) for source in solid)
            return "it follows a float32 value" if is_wide else ""
        return "" if any(source.op == "get_attr" and _rank(source) for source in sources) else "it follows a float32 value"

    def _value_in_half(self, node: fx.Node, kind: Kind) -> Any:
        """Return what a node gives when it computes in half precision.

        Raises:
            ImportGraphError: The operator does not take it.
        """
        made, value = self.made, node.meta["val"]
        given = {source: made.value_of(source) for source in node.all_input_nodes}
        for name, source in self.float_arguments(node):
            wanted = made.dtype_of_argument(node, name, source, self.half)
            if wanted not in float_dtypes(given[source]):
                given[source] = self.value_as(source, wanted)
        if node not in made.was_float or not any(self.half in float_dtypes(item) for item in given.values()):
            return value
        if kind is Kind.COMPUTE or not isinstance(value, torch.Tensor):
            return specs.result_of(self.mode, node, given.__getitem__)
        return torch_compat.fake_as(self.mode, value, self.half)

    def _misfit(self, node: fx.Node) -> str:
        """Return why a constant cannot be had in half precision, or an empty string."""
        misfits = self.made.misfits
        if node not in misfits:
            tensor = rewrite.constant_of(node)
            assert tensor is not None
            reason = precision_policy.constant_misfit(tensor, self.half)
            misfits[node] = reason and f"its constant {node.target} {reason}"
        return misfits[node]


def float_dtypes(value: Any) -> set[torch.dtype]:
    """Return the dtypes of the floating-point tensors in what a node gives."""
    if isinstance(value, torch.Tensor):
        dtype = value.dtype
        return {dtype} if dtype.is_floating_point else set()
    values = value if isinstance(value, (list, tuple)) else ()
    return {item.dtype for item in values if isinstance(item, torch.Tensor) and item.dtype.is_floating_point}


def is_loose(node: fx.Node, name: str) -> bool:
    """Return whether an argument may be float32 where the others are half."""
    return name in precision_policy.LOOSE_ARGUMENTS.get(precision_policy.op_name(node), ())


def is_number(node: fx.Node) -> bool:
    """Return whether a node gives a number, and no tensor."""
    return isinstance(node.meta.get("val"), rewrite.NUMBERS)


def _dtype_of(value: Any) -> torch.dtype:
    return value.dtype if isinstance(value, torch.Tensor) else torch.float32


def _rank(node: fx.Node) -> int:
    value = node.meta["val"]
    return value.ndim if isinstance(value, torch.Tensor) else 1

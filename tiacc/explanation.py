"""What would be done with a model, and why not more."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import fx

from tiacc.compiler import Plan, propose
from tiacc.graph import specs, torch_compat
from tiacc.graph.assumptions import Form
from tiacc.precision import Precision, precision_of
from tiacc.report import PassRow
from tiacc.runtime import stitch


@dataclass(frozen=True)
class ExplainedSegment:
    """A segment that would be built.

    Attributes:
        index: Its number within the region.
        region: The index of the region.
        backend: What would build it.
        nodes: The number of operators in it.
        inputs: The types of its inputs.
        outputs: The types of its outputs.
        border_bytes: The size of its inputs and outputs together, at the usual sizes of dimensions that vary.
    """

    index: int
    region: int
    backend: str
    nodes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    border_bytes: int = 0


@dataclass(frozen=True)
class Refusal:
    """Operators of one kind that would stay in Torch for one reason.

    Attributes:
        op: ``"aten.nonzero.default"``, or ``"prim::Loop"`` for what is not imported.
        reason: Why, by backend; or why the importer leaves it.
        count: How many there are.
        sources: Their lines of TorchScript source, each once.
        joins: How many segments would become one if they were supported.
    """

    op: str
    reason: str
    count: int
    sources: tuple[str, ...]
    joins: int


@dataclass(frozen=True)
class Explanation:
    """What `tiacc.explain` found.

    Attributes:
        regions: The number of operators in each region, where it is, and whether it holds for types that were only seen on the
            test data: ``{"index": 0, "path": "forward", "operators": 175, "relies_on_seen_types": False}``.
        segments: What would be built.
        refusals: What would stay in Torch, the most frequent first.
        passes: What the passes changed.
        assumed: The arguments of ``forward`` that the optimized code would assume to have one value.
        precision: How much would compute in half precision, and why the rest would not, as the policy of operators and ``keep_fp32`` have
            it: what values on the test data and a repair add is known only to `optimize`. None at level 0.
    """

    regions: tuple[dict[str, Any], ...]
    segments: tuple[ExplainedSegment, ...]
    refusals: tuple[Refusal, ...]
    passes: tuple[PassRow, ...]
    assumed: dict[str, Any]
    precision: Precision | None = None

    @classmethod
    def of(cls, model: torch.jit.ScriptModule, plan: Plan) -> Explanation:
        """Import a model, run the passes and partition it, as `plan` says."""
        proposal = propose(model, plan)
        regions, segments = [], []
        groups: dict[tuple[str, str], list[tuple[str, int]]] = {}
        for left in proposal.imported.left:
            groups.setdefault((left.op, left.reason), []).append((left.source, 0))
        for item in proposal.regions:
            row = {"index": item.region.index, "path": item.region.path, "operators": _operators(item.graph)}
            regions.append({**row, "relies_on_seen_types": bool(item.region.guard)})
            owner = {node: segment.index for segment in item.partition.segments for node in segment.nodes}
            for segment, border in zip(item.partition.segments, stitch.borders(item.graph, item.partition, item.partition.segments)):
                segments.append(
                    ExplainedSegment(
                        segment.index,
                        item.region.index,
                        segment.backend,
                        len(segment.nodes),
                        tuple(str(specs.spec_of(specs.tensor_of(node))) for node in border.inputs),
                        tuple(str(specs.spec_of(specs.tensor_of(node))) for node in border.outputs),
                        border.border_bytes,
                    )
                )
            for found in item.partition.rejections:
                reason = "; ".join(f"{backend}: {why}" for backend, why in found.reasons.items()) or "no backend can be used"
                beside = {owner[node] for node in (*found.node.all_input_nodes, *found.node.users) if node in owner}
                groups.setdefault((str(found.node.target), reason), []).append((found.source, len(beside)))
        refusals = [
            Refusal(op, reason, len(rows), tuple(sorted({source for source, _ in rows if source})), max(count for _, count in rows))
            for (op, reason), rows in groups.items()
        ]
        refusals.sort(key=lambda refusal: (-refusal.count, refusal.op))
        names = [argument.name for argument in torch_compat.forward_arguments(proposal.imported.module)]
        assumed = {names[place]: value for place, value in proposal.imported.assumptions.items()}
        precision, _ = precision_of((item.region.index, item.graph, item.casts) for item in proposal.regions)
        return cls(tuple(regions), tuple(segments), tuple(refusals), proposal.passes, assumed, precision)

    @property
    def border_bytes(self) -> int:
        """The size of the inputs and outputs of all segments, at the usual sizes of dimensions that vary."""
        return sum(segment.border_bytes for segment in self.segments)

    def to_dict(self) -> dict[str, Any]:
        """Return it in dicts, lists, strings and numbers."""
        assumed = {name: repr(value) if isinstance(value, Form) else value for name, value in self.assumed.items()}
        return {**asdict(self), "assumed": assumed}

    def to_json(self, indent: int | None = 2) -> str:
        """Return it as JSON."""
        return json.dumps(self.to_dict(), indent=indent, default=str)

    def __str__(self) -> str:
        inside = sum(segment.nodes for segment in self.segments)
        total = sum(region["operators"] for region in self.regions)
        counts = f"{_count(len(self.segments), 'segment')}, {_count(len(self.regions), 'region')}"
        lines = [f"{inside} of {total} imported operators in {counts}; {self.border_bytes:,} bytes cross their borders"]
        for region in self.regions:
            seen = ", by types that were seen on the test data" if region.get("relies_on_seen_types") else ""
            lines.append(f"  region {region['index']} ({region['path']}): {_count(region['operators'], 'operator')}{seen}")
        for segment in self.segments:
            types = f"({', '.join(segment.inputs)}) → ({', '.join(segment.outputs)})"
            lines.append(f"  segment {segment.region}.{segment.index}: {_count(segment.nodes, 'operator')} in {segment.backend}, {types}")
        if self.refusals:
            lines.append("left in Torch:")
        for refusal in self.refusals:
            joins = f"; would join {refusal.joins} segments" if refusal.joins > 1 else ""
            where = f" (at {', '.join(refusal.sources[:3])}{', …' if len(refusal.sources) > 3 else ''})" if refusal.sources else ""
            lines.append(f"  {refusal.count} × {refusal.op}: {refusal.reason}{joins}{where}")
        if self.precision is not None:
            lines.append(f"{self.precision.half_dtype}: {self.precision.share}")
            lines.extend(f"  {reason}" for reason in self.precision.reasons)
        changes = Counter[str]()
        for row in self.passes:
            changes[row.name] += row.changes
        if changes:
            lines.append("passes: " + ", ".join(f"{name} {count}" for name, count in changes.items()))
        if self.assumed:
            told = ", ".join(f"{name}={value!r}" for name, value in self.assumed.items())
            lines.append(f"assumed: {told}; for other values the original code would run")
        return "\n".join(lines)


def _operators(gm: fx.GraphModule) -> int:
    return sum(node.op == "call_function" and not specs.is_scalar(node) for node in gm.graph.nodes)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"

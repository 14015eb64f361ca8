"""One attempt at a model: `propose` imports it, runs the passes and partitions it; `build` makes engines and a new model of that."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import fx

from tiacc.backends import cost, partitioner
from tiacc.backends.base import Backend, BuildSpec, Profile
from tiacc.errors import BuildError, InvalidArgumentError
from tiacc.graph import exporter, importer, specs, torch_compat
from tiacc.graph.regions import ImportResult, Region
from tiacc.model_graph import GraphNode, ModelGraph, nodes_of
from tiacc.passes.assign_precision import KEEP
from tiacc.passes.base import Fuel, Instrument, Pass, PassContext
from tiacc.passes.cast_half import CastReport
from tiacc.passes.expand_operators import BACKENDS
from tiacc.passes.instruments import TimingInstrument
from tiacc.precision import Precision, precision_of
from tiacc.report import FallbackRow, PassRow, SegmentRow
from tiacc.report_view import operators_text
from tiacc.runtime import blob as envelope
from tiacc.runtime import stitch

Step: TypeAlias = Callable[[str], None]
"""What is told the name of each phase as it begins."""


@dataclass(frozen=True)
class Plan:
    """What to do to a model.

    Attributes:
        inputs: What is known of each argument of ``forward``; see `importer.import_module`.
        sizes: The size of each varying dimension in each profile: ``{name: (min, opt, max)}``.
        pipeline: The passes.
        backends: In order of priority.
        device: Where the model will run.
        built_for: The device type that engines are for, where that is not the type of `device`.
        min_segment_nodes: Segments of fewer operators stay in Torch.
        workspace_bytes: For engines.
        build_options: For backends.
        keep_methods: Methods to keep that ``forward`` calls.
        examples: Arguments to run the model on, where shapes cannot be told without, on `device`.
        fuel: The number of rewrites that passes may make; None for any.
        instruments: What watches the passes.
        keep_fp32: Nodes that stay in float32, and why: by the index of the region, then by name.
        distrusted: Segments that stay in Torch, and why: by the index of the region and that of the segment.
    """

    inputs: tuple[Any, ...]
    sizes: tuple[dict[str, tuple[int, int, int]], ...]
    pipeline: Pass
    backends: tuple[Backend, ...]
    device: torch.device
    built_for: str | None = None
    min_segment_nodes: int = 1
    workspace_bytes: int = 1 << 30
    build_options: dict[str, Any] = field(default_factory=dict)
    keep_methods: tuple[str, ...] = ()
    examples: tuple[tuple[Any, ...], ...] = ()
    fuel: int | None = None
    instruments: tuple[Instrument, ...] = ()
    keep_fp32: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    distrusted: Mapping[tuple[int, int], str] = field(default_factory=dict)


@dataclass
class Compiled:
    """What came of an attempt.

    Attributes:
        module: The optimized model.
        engines: The engines in it.
        passes: One row a pass and region.
        segments: One row an engine.
        fallbacks: What stayed in Torch.
        warnings: Remarks for the report.
        dtypes: The number of operators by the dtype they compute in, those in engines.
        graph: What was built, for the report.
        precision: What became of half precision; None where the passes cast nothing.
        input_dtypes: The types of the values that the input model computes.
    """

    module: torch.jit.ScriptModule
    engines: list[stitch.StitchedEngine] = field(default_factory=list)
    passes: list[PassRow] = field(default_factory=list)
    segments: list[SegmentRow] = field(default_factory=list)
    fallbacks: list[FallbackRow] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    dtypes: dict[torch.dtype, int] = field(default_factory=dict)
    graph: ModelGraph = field(default_factory=ModelGraph)
    precision: Precision | None = None
    input_dtypes: frozenset[torch.dtype] = frozenset()

    @property
    def accepted_half(self) -> torch.dtype | None:
        """The least precise type of half precision that the model or `cast-half` asks for; another pass may not bring one in."""
        asked = set(self.input_dtypes)
        if self.precision is not None and self.precision.operators:
            asked.add(getattr(torch, self.precision.half_dtype))
        return next((dtype for dtype in (torch.bfloat16, torch.float16) if dtype in asked), None)

    @property
    def why_nothing_is_half(self) -> str:
        """Why nothing of the model computes in half precision where it was to."""
        if self.precision is None:
            return "nothing computes in half precision: the passes have no cast-half"
        count = len(self.precision.kept)
        why = f"what could, {operators_text(count)}, stays in float32" if count else "nothing of the input model computes in float32"
        return f"nothing computes in {self.precision.half_dtype}: {why}"

    @property
    def is_half(self) -> bool:
        """Whether anything computes in half precision."""
        return self.half_dtype is not None

    def achieved_level(self, level: int) -> int:
        """Return the optimization level that came of the one asked for; what the input model computes in is none of ours at level 0."""
        return int(self.is_half and (level == 1 or self.half_dtype not in self.input_dtypes))

    @property
    def half_dtype(self) -> torch.dtype | None:
        """The least precise of the types of half precision that engines, or operators left in Torch after a cast, compute in."""
        used = {dtype for dtype in (torch.bfloat16, torch.float16) if dtype in self.dtypes}
        if self.precision is not None and self.precision.operators:
            used.add(getattr(torch, self.precision.half_dtype))
        return next((dtype for dtype in (torch.bfloat16, torch.float16) if dtype in used), None)


@dataclass(frozen=True)
class RegionProposal:
    """What is to be done with a region.

    Attributes:
        region: The region as it was imported.
        graph: Its graph after the passes.
        partition: Which backend shall run which nodes of it.
        casts: What was put into half precision, if anything was.
    """

    region: Region
    graph: fx.GraphModule
    partition: partitioner.Partition
    casts: CastReport | None = None


@dataclass(frozen=True)
class Proposal:
    """What is to be done with a model; nothing has been built yet.

    Attributes:
        imported: The copy of the model, and what of it was not imported.
        regions: One a region, in program order.
        passes: One row a pass and region.
        dtypes: The types of the values that the model computes, before the passes.
    """

    imported: ImportResult
    regions: tuple[RegionProposal, ...]
    passes: tuple[PassRow, ...]
    dtypes: frozenset[torch.dtype] = frozenset()

    @property
    def faults(self) -> dict[str, str]:
        """What was wrong with the first answer that a backend did not give as it should, by its name."""
        return {name: fault for item in reversed(self.regions) for name, fault in item.partition.faults.items()}


def propose(module: torch.jit.ScriptModule, plan: Plan, step: Step = lambda phase: None) -> Proposal:
    """Import a model, run the passes over its regions, and partition them.

    Args:
        module: The model; it is not changed.
        plan: What to do.
        step: Called with the name of each phase as it begins.

    Raises:
        InvalidArgumentError: A dimension is declared as varying and the model has baked one size of it in.
        ImportGraphError: The model cannot be copied.
        PassError: A pass failed.
    """
    step("import")
    imported = importer.import_module(module, plan.inputs, plan.keep_methods, plan.examples)
    _refuse_fixed_dims(imported)
    proposals: list[RegionProposal] = []
    rows: list[PassRow] = []
    dtypes: set[torch.dtype] = set()
    step("passes")
    fuel = None if plan.fuel is None else Fuel(plan.fuel)
    for region in imported.regions:
        timing = TimingInstrument()
        dtypes.update(specs.tensor_of(node).dtype for node in region.graph.graph.nodes if specs.is_tensor(node))
        data = {KEEP: plan.keep_fp32.get(region.index, {}), BACKENDS: plan.backends}
        ctx = PassContext(plan.device, fuel, (timing, *plan.instruments), data)
        gm = plan.pipeline(region.graph, ctx).graph
        rows.extend(PassRow(row.name, row.changes, row.ms, region.index, _notes(ctx.data.get(row.name))) for row in timing.totals())
        partition = partitioner.partition(gm, plan.backends, min_segment_nodes=plan.min_segment_nodes)
        proposals.append(RegionProposal(region, gm, partition, ctx.data.get("cast-half")))
    partitions = cost.that_pay([item.partition for item in proposals], plan.backends)
    paying = tuple(replace(item, partition=partition) for item, partition in zip(proposals, partitions))
    return Proposal(imported, paying, tuple(rows), frozenset(dtypes))


def _notes(found: Any) -> tuple[str, ...]:
    """Return what a pass says of what it left, as lines of text: it may have put lines in its context, or reasons by node."""
    if isinstance(found, Mapping):
        return tuple(f"{name}: {reason}" for name, reason in found.items() if isinstance(reason, str))
    return tuple(line for line in found if isinstance(line, str)) if isinstance(found, list) else ()


def build(proposal: Proposal, plan: Plan, step: Step = lambda phase: None) -> Compiled:
    """Build the engines of a proposal and put them into its copy of the model.

    Raises:
        ExportError: The result cannot be written as TorchScript.
    """
    imported = proposal.imported
    compiled = Compiled(imported.module, passes=list(proposal.passes), fallbacks=fallbacks_of(proposal), input_dtypes=proposal.dtypes)
    if imported.dropped_methods:
        compiled.warnings.append(
            f"the methods {', '.join(imported.dropped_methods)} are parts of forward and are not methods of the optimized model; "
            f"keep_methods keeps them, with a second copy of their weights"
        )
    checked: set[tuple[int, tuple[int | str, ...]]] = set()
    replacements = []
    drawn: list[GraphNode] = []
    for item in proposal.regions:
        engines = _build_engines(item, imported, plan, compiled, step)
        graph = stitch.stitch(item.graph, item.partition, engines) if engines else item.graph
        if item.region.guard and not engines:
            continue  # a choice costs more than passes alone are worth
        replacements.append((item.region, graph))
        drawn.extend(nodes_of(item.graph, item.partition, item.region.index, engines, len(drawn)))
        if item.region.path == "forward" and not item.region.guard:
            checked |= _inputs_of_engines(item, engines)
    compiled.graph = ModelGraph.of(drawn)
    compiled.precision, unmatched = precision_of((item.region.index, item.graph, item.casts) for item in proposal.regions)
    compiled.warnings.extend(f"keep_fp32 has {pattern!r}, which means no operator, node or module of the model" for pattern in unmatched)
    step("export")
    exporter.replace_regions(imported.module, replacements)
    _add_input_check(imported, checked)
    if imported.assumptions and imported.original is not None:
        exporter.guard(torch_compat.forward_graph(imported.module), imported.original, imported.assumptions)
        names = [argument.name for argument in torch_compat.forward_arguments(imported.module)]
        told = ", ".join(f"{names[place]}={value!r}" for place, value in imported.assumptions.items())
        compiled.warnings.append(f"the optimized code runs for {told}, as in the test data; for other values the original code runs")
    return compiled


def fallbacks_of(proposal: Proposal) -> list[FallbackRow]:
    """Return what a proposal leaves in Torch: first what was not imported, then what no backend takes."""
    rows = [FallbackRow(left.op, "", {"importer": left.reason}, left.source, region=-1) for left in proposal.imported.left]
    for item in proposal.regions:
        rows.extend(
            FallbackRow(str(found.node.target), found.node.name, found.reasons, found.source, item.region.index)
            for found in item.partition.rejections
        )
    return rows


def _refuse_fixed_dims(imported: ImportResult) -> None:
    if imported.fixed:
        found = "; ".join(f"{dim.name} is fixed at {dim.size} by {dim.where}" for dim in imported.fixed)
        raise InvalidArgumentError(
            f"input_shapes lets dimensions vary that the model computes with as constants: {found}. Give these one size, or script the "
            f"model, or trace it so that it reads the size from its input"
        )


def _build_engines(
    item: RegionProposal, imported: ImportResult, plan: Plan, compiled: Compiled, step: Step
) -> dict[int, stitch.StitchedEngine]:
    """Build the engines of a region; a segment whose build fails stays in Torch, with the reason in the report."""
    engines: dict[int, stitch.StitchedEngine] = {}
    by_name = {backend.name: backend for backend in plan.backends}
    for segment, subgraph in zip(item.partition.segments, stitch.extract(item.graph, item.partition)):
        step(f"build {segment.backend}")
        left = plan.distrusted.get((item.region.index, segment.index), "")
        if not left:
            try:
                engine, row = _build(by_name[segment.backend], segment, subgraph, imported, plan, item.region.index)
            except Exception as error:  # noqa: BLE001 - whatever the backend of another package raises
                left = f"its segment could not be built: {'' if isinstance(error, BuildError) else f'{type(error).__name__}: '}{error}"
        if left:
            reasons = {segment.backend: left}
            compiled.fallbacks.extend(
                FallbackRow(str(node.target), node.name, reasons, node.meta.get("source", ""), item.region.index)
                for node in segment.nodes
            )
            compiled.warnings.append(f"a segment of {len(segment.nodes)} operators stays in Torch: {left}")
            continue
        engines[segment.index] = engine
        compiled.engines.append(engine)
        compiled.segments.append(row)
        for dtype, count in _dtypes(segment).items():
            compiled.dtypes[dtype] = compiled.dtypes.get(dtype, 0) + count
    return engines


def _inputs_of_engines(
    item: RegionProposal, engines: dict[int, stitch.StitchedEngine]
) -> set[tuple[int, tuple[int | str, ...]]]:
    """Return the inputs of a region that engines read: the unique numbers of TorchScript values, each with a path."""
    placeholders = [node for node in item.graph.graph.nodes if node.op == "placeholder"]
    names = {node: (read.value.unique(), read.path) for node, read in zip(placeholders, item.region.inputs)}
    return {names[node] for engine in engines.values() for node in engine.subgraph.inputs if node in names}


def _build(
    backend: Backend,
    segment: partitioner.Segment,
    subgraph: stitch.Subgraph,
    imported: ImportResult,
    plan: Plan,
    region: int,
) -> tuple[stitch.StitchedEngine, SegmentRow]:
    """Build a segment's engine and put it into its envelope.

    Raises:
        BuildError: The backend fails.
    """
    inputs = tuple(specs.spec_of(specs.tensor_of(node)) for node in subgraph.inputs)
    outputs = tuple(specs.spec_of(specs.tensor_of(node)) for node in subgraph.outputs)
    profiles = tuple(_profile(subgraph.inputs, imported.symbols, {**sizes, **imported.observed_sizes}) for sizes in plan.sizes)
    profiles = tuple(dict.fromkeys(profiles))
    spec = BuildSpec(inputs, outputs, torch.device(plan.built_for or plan.device), profiles, plan.workspace_bytes, plan.build_options)
    begin = time.perf_counter()
    engine = backend.build(subgraph.graph, spec)
    build_ms = (time.perf_counter() - begin) * 1e3
    blob = envelope.pack(
        engine.serialize(),
        backend=backend.name,
        backend_version=backend.version(),
        device=torch.device(plan.built_for or plan.device),
        inputs=inputs,
        outputs=outputs,
        profiles=profiles,
    )
    precisions = getattr(engine, "precisions", None)
    row = SegmentRow(
        index=segment.index,
        backend=backend.name,
        nodes=sum(node.op == "call_function" for node in segment.nodes),
        dtype="+".join(sorted(str(dtype).removeprefix("torch.") for dtype in _dtypes(segment))),
        build_ms=build_ms,
        size_bytes=blob.numel(),
        inputs=tuple(map(str, inputs)),
        outputs=tuple(map(str, outputs)),
        region=region,
        precisions=precisions() if callable(precisions) else {},
        border_bytes=subgraph.border_bytes,
    )
    return stitch.StitchedEngine(subgraph, backend.name, blob, envelope.key_of(blob), spec), row


def _profile(inputs: Sequence[fx.Node], symbols: dict[str, str], sizes: dict[str, tuple[int, int, int]]) -> Profile:
    """Return the shapes of a segment's inputs when the model's own inputs have the sizes of a profile."""
    shapes = [specs.tensor_of(node).shape for node in inputs]
    usual = {symbol: sizes[name][1] for symbol, name in symbols.items()}
    ranges = {symbol: (sizes[name][0], sizes[name][2]) for symbol, name in symbols.items()}
    low, high = (tuple(tuple(torch_compat.size_range(size, ranges)[end] for size in shape) for shape in shapes) for end in (0, 1))
    return Profile(low, tuple(tuple(torch_compat.evaluate_size(size, usual) for size in shape) for shape in shapes), high)


def _dtypes(segment: partitioner.Segment) -> dict[torch.dtype, int]:
    """Count the floating-point operators of a segment by dtype; those of a segment without any, by their integer types."""
    counts: dict[torch.dtype, int] = {}
    for node in segment.nodes:
        if specs.is_tensor(node):
            dtype = specs.tensor_of(node).dtype
            counts[dtype] = counts.get(dtype, 0) + 1
    floating = {dtype: count for dtype, count in counts.items() if dtype.is_floating_point}
    return floating or counts


def _add_input_check(imported: ImportResult, checked: set[tuple[int, tuple[int | str, ...]]]) -> None:
    """Have ``forward`` check those tensors that no engine checks: what was folded for their shapes holds for no others."""
    wanted = [(read, spec) for read, spec in imported.arguments if (read.value.unique(), read.path) not in checked]
    if wanted and imported.regions:
        text = json.dumps([envelope.spec_to_json(spec) for _, spec in wanted])
        graph = torch_compat.forward_graph(imported.module)
        exporter.call_first(graph, "tiacc::check_inputs", [read for read, _ in wanted], text)

"""One attempt at a model: import, passes, partition, build, stitch, export."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from tiacc.backends import partitioner
from tiacc.backends.base import Backend, BuildSpec, Profile
from tiacc.errors import BuildError, InvalidArgumentError
from tiacc.graph import exporter, importer, specs, torch_compat
from tiacc.graph.regions import ImportResult, Region
from tiacc.graph.types import TensorSpec
from tiacc.passes.base import Pass, PassContext
from tiacc.passes.instruments import TimingInstrument
from tiacc.report import FallbackRow, PassRow, SegmentRow
from tiacc.runtime import blob as envelope
from tiacc.runtime import stitch


@dataclass(frozen=True)
class Plan:
    """What to do to a model.

    Attributes:
        inputs: What is known of each argument of ``forward``; see `importer.import_module`.
        sizes: The size of each varying dimension in each profile: ``{name: (min, opt, max)}``.
        pipeline: The passes.
        backends: In order of priority.
        device: Where the model will run.
        min_segment_nodes: Segments of fewer operators stay in Torch.
        workspace_bytes: For engines.
        build_options: For backends.
        keep_methods: Methods to keep that ``forward`` calls.
    """

    inputs: tuple[Any, ...]
    sizes: tuple[dict[str, tuple[int, int, int]], ...]
    pipeline: Pass
    backends: tuple[Backend, ...]
    device: torch.device
    min_segment_nodes: int = 1
    workspace_bytes: int = 1 << 30
    build_options: dict[str, Any] = field(default_factory=dict)
    keep_methods: tuple[str, ...] = ()


@dataclass
class Compiled:
    """What came of an attempt.

    Attributes:
        module: The optimized model.
        passes: One row a pass and region.
        segments: One row an engine.
        fallbacks: What stayed in Torch.
        warnings: Remarks for the report.
        dtypes: The number of operators by the dtype they compute in, those in engines.
    """

    module: torch.jit.ScriptModule
    passes: list[PassRow] = field(default_factory=list)
    segments: list[SegmentRow] = field(default_factory=list)
    fallbacks: list[FallbackRow] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    dtypes: dict[torch.dtype, int] = field(default_factory=dict)


def compile_model(module: torch.jit.ScriptModule, plan: Plan, step: Callable[[str], None] = lambda phase: None) -> Compiled:
    """Make an optimized copy of a model.

    Args:
        module: The model; it is not changed.
        plan: What to do.
        step: Called with the name of each phase as it begins.

    Raises:
        InvalidArgumentError: A dimension is declared as varying and the model has baked one size of it in.
        ImportGraphError: The model cannot be copied.
        PassError: A pass failed.
        ExportError: The result cannot be written as TorchScript.
    """
    step("import")
    imported = importer.import_module(module, plan.inputs, plan.keep_methods)
    _refuse_fixed_dims(imported)
    compiled = Compiled(imported.module)
    if imported.dropped_methods:
        compiled.warnings.append(
            f"the methods {', '.join(imported.dropped_methods)} are parts of forward and are not methods of the optimized model"
        )
    compiled.fallbacks.extend(
        FallbackRow(left.op, "", {"importer": left.reason}, left.source, region=-1) for left in imported.left
    )
    checked: set[int] = set()
    replacements = []
    for region in imported.regions:
        graph, checked_here = _compile_region(region, imported, plan, compiled, step)
        replacements.append((region, graph))
        checked |= checked_here
    step("export")
    exporter.replace_regions(imported.module, replacements)
    _add_input_check(imported, plan, checked)
    if imported.assumptions and imported.original is not None:
        exporter.guard(torch_compat.forward_graph(imported.module), imported.original, imported.assumptions)
        names = [argument.name for argument in torch_compat.forward_arguments(imported.module)]
        told = ", ".join(f"{names[place]}={value!r}" for place, value in imported.assumptions.items())
        compiled.warnings.append(f"the optimized code runs for {told}, as in the test data; for other values the original code runs")
    return compiled


def _refuse_fixed_dims(imported: ImportResult) -> None:
    if imported.fixed:
        found = "; ".join(f"{dim.name} is fixed at {dim.size} by {dim.where}" for dim in imported.fixed)
        raise InvalidArgumentError(
            f"input_shapes lets dimensions vary that the model computes with as constants: {found}. Give these one size, or script the "
            f"model, or trace it so that it reads the size from its input"
        )


def _compile_region(
    region: Region, imported: ImportResult, plan: Plan, compiled: Compiled, step: Callable[[str], None]
) -> tuple[fx.GraphModule, set[int]]:
    """Return the code to put in a region's place, and the unique numbers of the model's inputs that its engines check."""
    step("passes")
    timing = TimingInstrument()
    result = plan.pipeline(region.graph, PassContext(device=plan.device, instruments=(timing,)))
    gm = result.graph
    compiled.passes.extend(PassRow(row.name, row.changes, row.ms, region.index) for row in timing.totals())
    step("partition")
    partition = partitioner.partition(gm, plan.backends, min_segment_nodes=plan.min_segment_nodes)
    for rejection in partition.rejections:
        compiled.fallbacks.append(
            FallbackRow(str(rejection.node.target), rejection.node.name, rejection.reasons, rejection.source, region.index)
        )
    engines: dict[int, stitch.StitchedEngine] = {}
    by_name = {backend.name: backend for backend in plan.backends}
    for segment, subgraph in zip(partition.segments, stitch.extract(gm, partition)):
        step(f"build {segment.backend}")
        try:
            engine, row = _build(by_name[segment.backend], segment, subgraph, imported, plan, region.index)
        except BuildError as error:
            for node in segment.nodes:
                reasons = {segment.backend: f"its segment could not be built: {error}"}
                compiled.fallbacks.append(
                    FallbackRow(str(node.target), node.name, reasons, node.meta.get("source", ""), region.index)
                )
            compiled.warnings.append(f"a segment of {len(segment.nodes)} operators stays in Torch: {error}")
            continue
        engines[segment.index] = engine
        compiled.segments.append(row)
        for dtype, count in _dtypes(segment).items():
            compiled.dtypes[dtype] = compiled.dtypes.get(dtype, 0) + count
    stitched = stitch.stitch(gm, partition, engines) if engines else gm
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    names = {node: value.unique() for node, value in zip(placeholders, region.inputs)}
    inputs = {names[node] for engine in engines.values() for node in engine.subgraph.inputs if node in names}
    return stitched, inputs if region.path == "forward" else set()


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
    profiles = tuple(_profile(subgraph.inputs, imported.symbols, sizes) for sizes in plan.sizes)
    profiles = tuple(dict.fromkeys(profiles))
    spec = BuildSpec(inputs, outputs, plan.device, profiles, plan.workspace_bytes, plan.build_options)
    begin = time.perf_counter()
    engine = backend.build(subgraph.graph, spec)
    build_ms = (time.perf_counter() - begin) * 1e3
    blob = envelope.pack(
        engine.serialize(),
        backend=backend.name,
        backend_version=backend.version(),
        device=plan.device,
        inputs=inputs,
        outputs=outputs,
        profiles=profiles,
    )
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
    )
    return stitch.StitchedEngine(subgraph, backend.name, blob, envelope.key_of(blob)), row


def _profile(inputs: Sequence[fx.Node], symbols: dict[str, str], sizes: dict[str, tuple[int, int, int]]) -> Profile:
    """Return the shapes of a segment's inputs when the model's own inputs have the sizes of a profile."""
    shapes: list[tuple[tuple[int, ...], ...]] = []
    for place in range(3):
        values = {symbol: sizes[name][place] for symbol, name in symbols.items()}
        shapes.append(
            tuple(tuple(torch_compat.evaluate_size(size, values) for size in specs.tensor_of(node).shape) for node in inputs)
        )
    low, opt, high = shapes
    return Profile(_elementwise(min, low, high), opt, _elementwise(max, low, high))


def _elementwise(
    choose: Callable[[int, int], int], first: tuple[tuple[int, ...], ...], second: tuple[tuple[int, ...], ...]
) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(choose, one, other)) for one, other in zip(first, second))


def _dtypes(segment: partitioner.Segment) -> dict[torch.dtype, int]:
    """Count the floating-point operators of a segment by dtype; those of a segment without any, by their integer types."""
    counts: dict[torch.dtype, int] = {}
    for node in segment.nodes:
        if specs.is_tensor(node):
            dtype = specs.tensor_of(node).dtype
            counts[dtype] = counts.get(dtype, 0) + 1
    floating = {dtype: count for dtype, count in counts.items() if dtype.is_floating_point}
    return floating or counts


def _add_input_check(imported: ImportResult, plan: Plan, checked: set[int]) -> None:
    """Have ``forward`` check those tensors that no engine checks: what was folded for their shapes holds for no others."""
    graph = torch_compat.forward_graph(imported.module)
    arguments = list(graph.inputs())[1:]
    wanted = [
        (value, spec)
        for value, spec in zip(arguments, plan.inputs)
        if isinstance(spec, TensorSpec) and value.unique() not in checked
    ]
    if wanted and imported.regions:
        text = json.dumps([envelope.spec_to_json(spec) for _, spec in wanted])
        exporter.call_first(graph, "tiacc::check_inputs", [value for value, _ in wanted], text)

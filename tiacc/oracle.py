"""A model's own graph as the judge of precision: its regions run node by node in torch, in float32 or as `cast-half` would have them.

An engine is judged by what the same graph gives in torch; so what half precision costs is known before anything is built, and is not
mistaken for what a backend does wrong.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from tiacc import models
from tiacc.backends import partitioner
from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.reference import own
from tiacc.compiler import Plan, propose
from tiacc.errors import AccuracyError, TiaccError
from tiacc.graph import exporter, specs, torch_compat
from tiacc.graph.types import Dim, TensorSpec
from tiacc.measure import Accuracy, Judge
from tiacc.passes.assign_precision import KEEP
from tiacc.passes.base import Pass, PassContext, PassResult
from tiacc.passes.cast_half import CastHalf
from tiacc.passes.pipelines import HALF_DTYPES
from tiacc.runtime import blob as envelope
from tiacc.runtime import ops, stitch

Keep = Mapping[int, Mapping[str, str]]
"""What stays in float32, and why: by the index of the region, then by the name of the node."""


@dataclass(frozen=True)
class OracleRegion:
    """A region as it is before anything is cast.

    Attributes:
        index: Its number in the model.
        graph: Its graph in float32.
        engine: What runs in its place.
    """

    index: int
    graph: fx.GraphModule
    engine: GraphEngine


class Oracle:
    """A copy of a model whose regions run in eager torch.

    Attributes:
        regions: Those that `cast-half` would change.
        cast: The pass as the plan has it.
    """

    def __init__(self, model: torch.jit.ScriptModule, plan: Plan) -> None:
        """Import a model as a plan says, up to the cast.

        Raises:
            TiaccError: It cannot be done; the plan may have no `cast-half`, too.
        """
        taken = _BeforeCast()
        proposal = propose(model, dataclasses.replace(plan, backends=(), keep_fp32={}, instruments=(taken,)))
        if taken.cast is None or len(taken.graphs) != len(proposal.regions):
            raise TiaccError("the pipeline does not cast every region to half precision once")
        self.cast = taken.cast
        self._device = plan.device
        self.regions: list[OracleRegion] = []
        replacements = []
        for item, graph in zip(proposal.regions, taken.graphs):
            made = _as_one_call(item.region.index, graph, plan.device)
            if made is not None:
                self.regions.append(made[0])
            replacements.append((item.region, made[1] if made else graph))
        self._module = proposal.imported.module
        exporter.replace_regions(self._module, replacements)

    def use(self, graphs: Mapping[int, fx.GraphModule]) -> None:
        """Run these graphs in place of the regions of these indices, and the others in float32."""
        for region in self.regions:
            region.engine.graph = graphs.get(region.index, region.graph)

    def halves(self, keep: Keep) -> dict[int, fx.GraphModule]:
        """Return the graph of each region in half precision but for what is to be kept."""
        return {region.index: self.half(region, keep.get(region.index, {})) for region in self.regions}

    def half(self, region: OracleRegion, kept: Mapping[str, str]) -> fx.GraphModule:
        """Return the graph of a region in half precision but for what is to be kept."""
        return self.cast(specs.copied(region.graph), PassContext(self._device, data={KEEP: dict(kept)})).graph

    def run(self, item: Sequence[Any]) -> Any:
        """Run the model, in the state that it begins in; each region's engine then has its inputs."""
        return models.call(copy.deepcopy(self._module), item)

    def results(self, keep: Keep, data: Sequence[Any]) -> Iterator[Any]:
        """Yield the outputs for each item of the data with all but `keep` in half precision.

        Raises:
            AccuracyError: The graph fails in half precision.
        """
        self.use(self.halves(keep))
        module = copy.deepcopy(self._module)
        try:
            for item in data:
                yield models.call(module, item)
        except Exception as error:  # an operator may refuse half precision on this device
            raise AccuracyError(f"torch cannot run the graph in half precision here: {models.reason_of(error)}") from error

    def accuracy(self, keep: Keep, data: Sequence[Any], references: Sequence[Any], judge: Judge) -> Accuracy:
        """Return how far the outputs are from those of the input model with all but `keep` in half precision.

        Raises:
            AccuracyError: They differ in more than their numbers, or the graph fails in half precision.
        """
        accuracy = Accuracy()
        for reference, outputs in zip(references, self.results(keep, data), strict=True):
            accuracy = accuracy.worst(judge(reference, outputs))
        return accuracy


class GraphEngine:
    """A graph that stands where an engine would.

    Attributes:
        graph: What is run.
        seen: What it was given last, as it was: the model may write into it later.
    """

    def __init__(self, graph: fx.GraphModule, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.graph = graph
        self.seen: list[torch.Tensor] = []

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the outputs node by node."""
        self.seen = [tensor.detach().clone() for tensor in inputs]
        with torch.no_grad():
            return own(list(self.graph(*inputs)), inputs)

    def serialize(self) -> bytes:
        """Refuse: it judges, and is not one to save."""
        raise TiaccError("a graph that judges an engine is not one to save")


class _BeforeCast:
    """Takes a copy of each region's graph as `cast-half` is given it."""

    def __init__(self) -> None:
        self.graphs: list[fx.GraphModule] = []
        self.cast: CastHalf | None = None

    def before(self, pass_: Pass, gm: fx.GraphModule) -> None:
        if isinstance(pass_, CastHalf):
            self.cast = pass_
            self.graphs.append(specs.copied(gm))

    def after(self, pass_: Pass, result: PassResult, seconds: float) -> None:
        """Do nothing."""


class _AnyBackend:
    """Takes every operator, so that a region is one segment."""

    name = "reference"
    device_types = ("cpu", "cuda")

    def supports(self, node: fx.Node) -> Support:
        return SUPPORTED


def _as_one_call(index: int, graph: fx.GraphModule, device: torch.device) -> tuple[OracleRegion, fx.GraphModule] | None:
    """Return a region, and the graph that calls its engine; None where it has none that tensors alone go into."""
    partition = partitioner.partition(graph, (_AnyBackend(),))  # type: ignore[arg-type]
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    if len(partition.segments) != 1 or not all(map(specs.is_tensor, inputs)):
        return None
    (subgraph,) = stitch.extract(graph, partition)
    if not all(map(specs.is_tensor, (*subgraph.inputs, *subgraph.outputs))):
        return None
    types = tuple(_of_any_size(specs.spec_of(specs.tensor_of(node))) for node in subgraph.inputs)
    results = tuple(specs.spec_of(specs.tensor_of(node)) for node in subgraph.outputs)
    engine = GraphEngine(subgraph.graph, types, results)
    blob = envelope.pack(
        index.to_bytes(4, "little"), backend="reference", backend_version="", device=device, inputs=types, outputs=results, profiles=()
    )
    ops.attach(blob, engine, device.type)
    call = stitch.stitch(graph, partition, {0: stitch.StitchedEngine(subgraph, "reference", blob, envelope.key_of(blob))})
    return OracleRegion(index, subgraph.graph, engine), call


def _of_any_size(spec: TensorSpec) -> TensorSpec:
    """Return a type that takes tensors of all sizes: a graph that runs node by node may be given fewer rows than it was made for."""
    return dataclasses.replace(spec, shape=tuple(Dim(f"size{place}", 0, 1, torch_compat.UNBOUNDED) for place in range(len(spec.shape))))


def is_half(gm: fx.GraphModule) -> bool:
    """Return whether a graph computes anything in half precision."""
    return any(specs.is_tensor(node) and specs.tensor_of(node).dtype in HALF_DTYPES for node in gm.graph.nodes)


def run_in_float32(gm: fx.GraphModule, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Compute the outputs of a graph with float32 in place of half precision everywhere, its constants as they are."""
    values: dict[fx.Node, Any] = {}
    given = iter(inputs)
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            values[node] = _float32(next(given))
        elif node.op == "get_attr":
            values[node] = _float32(specs.fetch_attr(gm, str(node.target)))
        elif node.op == "call_function":
            args, kwargs = (fx.map_arg(_float32(part), values.__getitem__) for part in (node.args, node.kwargs))
            values[node] = _float32(node.target(*args, **kwargs))
        else:
            return [values[item] for item in node.args[0]]
    return []


def _float32(value: Any) -> Any:
    """Return tensors and dtypes of half precision as float32, in tuples and lists too; anything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype in HALF_DTYPES else value
    if isinstance(value, (list, tuple)):
        return type(value)(map(_float32, value))
    if isinstance(value, dict):
        return {key: _float32(item) for key, item in value.items()}
    return torch.float32 if isinstance(value, torch.dtype) and value in HALF_DTYPES else value

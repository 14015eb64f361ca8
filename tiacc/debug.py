"""What makes a model wrong: `bisect` finds the rewrite of a pass, or the smallest run of operators in an engine, and writes it down.

The passes come first: the model is run in torch with fewer and fewer rewrites (their fuel), until the one is found without which the
outputs are right. If all of them are right, each engine is compared with its own graph, and the wrong one is cut down from both ends.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import fx

from tiacc import api, measure, mending, models, samples
from tiacc.backends import partitioner
from tiacc.backends.base import Backend, BuildSpec, Profile
from tiacc.backends.reference import own
from tiacc.compiler import Compiled, Plan, build, propose
from tiacc.errors import BuildError, TiaccError
from tiacc.graph import exporter, specs
from tiacc.options import Options
from tiacc.passes.manager import PassManager
from tiacc.planning import half_of, plan_of
from tiacc.runtime import modes, stitch


@dataclass(frozen=True)
class Finding:
    """What makes a model wrong.

    Attributes:
        kind: ``"pass"``, ``"engine"``, or ``"nothing"`` where the outputs are within the tolerance.
        culprit: The name of the pass or of the backend; empty for nothing.
        error: The error of the outputs with it.
        fuel: The number of rewrites with which the outputs are wrong, and with one less right; None where it is no rewrite, or where the
            pass does not count its rewrites.
        nodes: The operators of the smallest part of an engine that is wrong.
        directory: Where the reproduction was written: ``python DIRECTORY/reproduce.py``; None where none was asked for.
    """

    kind: str
    culprit: str = ""
    error: float = 0.0
    fuel: int | None = None
    nodes: tuple[str, ...] = ()
    directory: Path | None = None

    def __str__(self) -> str:
        if self.kind == "nothing":
            return f"nothing is wrong: the error of the outputs is {self.error:.2g}"
        if self.kind == "pass":
            where = "" if self.fuel is None else f", rewrite {self.fuel} of all"
            text = f"the pass {self.culprit}{where}: the error of the outputs is {self.error:.2g}"
        else:
            text = f"the engine of {self.culprit} is off by {self.error:.2g}, from these operators on: {', '.join(self.nodes)}"
        return text if self.directory is None else f"{text}; python {self.directory / 'reproduce.py'} shows it"


@modes.all_off()
def bisect(
    input_model: str | PathLike[str] | torch.jit.ScriptModule | torch.nn.Module,
    input_shapes: Any = None,
    *,
    optimization_level: int = 0,
    device_type: int | str = 1,
    test_data: Sequence[Any] | None = None,
    directory: str | PathLike[str] | None = None,
    options: Options | None = None,
    **fields: Any,
) -> Finding:
    """Find what makes an optimized model wrong: the rewrite of a pass, or the smallest part of an engine.

    Args:
        input_model: As for `optimize`.
        input_shapes: As for `optimize`.
        optimization_level: As for `optimize`.
        device_type: As for `optimize`.
        test_data: As for `optimize`.
        directory: Where to write a reproduction that runs by itself. None: nowhere.
        options: As for `optimize`; `Options.tolerance` says what is wrong.
        **fields: As for `optimize`.

    Raises:
        InvalidArgumentError: An argument is wrong, or the input model itself fails.
        ImportGraphError: The input model cannot be read.
        BackendUnavailableError: A backend asked for cannot be used here.
    """
    settings = Options.from_fields(options, **fields)
    level = api.check_level(optimization_level)
    device = api.check_device(device_type, settings)
    candidates, _ = api.choose_backends(settings, device)
    inputs = samples.resolve_inputs(input_shapes, test_data, settings.seed)
    model, _ = models.load_model(input_model, inputs.data)
    tolerance = settings.tolerance_for(half_of(device, settings) if level else torch.float32)
    plan = plan_of(model, inputs, level, device, settings, candidates)
    data = [models.moved(item, device) for item in inputs.data]
    if device.type == "cuda":
        model = models.on_device(model, device)
    return _find(model, plan, data, tolerance, None if directory is None else Path(directory))


def _find(
    model: torch.jit.ScriptModule,
    plan: Plan,
    data: Sequence[Any],
    tolerance: float,
    directory: Path | None = None,
) -> Finding:
    """Find what makes a model wrong.

    Args:
        model: The input model.
        plan: What is done to it.
        data: What it is called with: a tuple of arguments a call.
        tolerance: The largest relative error of an output that is right.
        directory: Where to write a reproduction; made if it is not there. None: nowhere.

    Raises:
        TiaccError: The model cannot be imported.
    """
    original = copy.deepcopy(model)
    references = [models.run_checked(original, item, index) for index, item in enumerate(data)]

    def error_of(passes: Plan) -> float:
        try:
            compiled = build(propose(model, passes), passes)
        except TiaccError:
            return math.inf
        return _error(compiled.module, data, references)

    in_torch = dataclasses.replace(plan, backends=())
    if error_of(in_torch) > tolerance:
        return _wrong_pass(model, in_torch, error_of, data, tolerance, directory)
    proposal = propose(model, plan)
    compiled = build(proposal, plan)
    for place, check in enumerate(mending.checked_engines(compiled, data)):
        if check.complaint(tolerance):
            return _wrong_engine(compiled, place, check, plan, tolerance, directory)
    return Finding("nothing", error=_error(compiled.module, data, references))


def _error(module: torch.jit.ScriptModule, data: Sequence[Any], references: Sequence[Any]) -> float:
    module = copy.deepcopy(module)
    try:
        errors = (measure.largest(measure.compare(wanted, models.call(module, item))) for item, wanted in zip(data, references))
        return max(errors, default=0.0)
    except Exception:  # noqa: BLE001 - whatever a wrong rewrite makes torch raise: the outputs are wrong
        return math.inf


def _wrong_pass(
    model: torch.jit.ScriptModule,
    plan: Plan,
    error_of: Callable[[Plan], float],
    data: Sequence[Any],
    tolerance: float,
    directory: Path | None,
) -> Finding:
    def with_fuel(fuel: int) -> Plan:
        return dataclasses.replace(plan, fuel=fuel)

    if error_of(with_fuel(0)) > tolerance:  # a pass that does not ask for fuel
        passes = list(plan.pipeline.leaves()) if isinstance(plan.pipeline, PassManager) else [plan.pipeline]
        for count in range(1, len(passes) + 1):
            shorter = dataclasses.replace(plan, pipeline=PassManager(tuple(passes[:count])))
            error = error_of(shorter)
            if error > tolerance:
                _write_pass(model, plan, data, None, directory)
                return Finding("pass", passes[count - 1].name, error, directory=directory)
        _write_pass(model, plan, data, None, directory)
        return Finding("pass", str(plan.pipeline), error_of(plan), directory=directory)
    low, high = 0, 1
    while error_of(with_fuel(high)) <= tolerance:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if error_of(with_fuel(middle)) > tolerance else (middle, high)
    _write_pass(model, plan, data, high, directory)
    return Finding("pass", _pass_of(model, with_fuel(low), with_fuel(high)), error_of(with_fuel(high)), high, directory=directory)


def _pass_of(model: torch.jit.ScriptModule, right: Plan, wrong: Plan) -> str:
    """Return the first pass that does more with the fuel of `wrong`."""
    before, after = ([(row.name, row.changes) for row in propose(model, plan).passes] for plan in (right, wrong))
    return next((name for index, (name, changes) in enumerate(after) if index >= len(before) or before[index][1] != changes), "")


def _wrong_engine(
    compiled: Compiled, place: int, check: mending.CheckedEngine, plan: Plan, tolerance: float, directory: Path | None
) -> Finding:
    engine = compiled.engines[place]
    backend = next(item for item in plan.backends if item.name == engine.backend)
    gm = engine.subgraph.graph
    values: dict[str, Any] = {}

    class Run(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            values[n.name] = super().run_node(n)
            return values[n.name]

    with torch.no_grad():
        Run(gm).run(*check.seen)
    nodes = [node for node in gm.graph.nodes if node.op == "call_function" and not specs.is_scalar(node)]

    def error_of(first: int, last: int) -> float:
        part = _part(gm, engine.backend, nodes[first:last])
        return _error_of_part(part, backend, [values[node.name] for node in part.inputs], plan)

    first, last = 0, len(nodes)
    if error_of(first, last) > tolerance:
        last = _search(lambda count: error_of(0, count) > tolerance, last)
        first = last - _search(lambda count: error_of(last - count, last) > tolerance, last)
    part = _part(gm, engine.backend, nodes[first:last])
    inputs = [values[node.name] for node in part.inputs]
    if directory is not None:
        _write_engine(part, inputs, engine.backend, plan, tolerance, directory)
    names = tuple(f"{node.name} = {node.target}{specs.where(node)}" for node in nodes[first:last])
    return Finding("engine", engine.backend, _error_of_part(part, backend, inputs, plan), nodes=names, directory=directory)


def _search(is_wrong: Callable[[int], bool], length: int) -> int:
    """Return the smallest number, up to `length`, for which it is wrong, as if it were so for all larger ones."""
    low, high = 0, length
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_wrong(middle) else (middle, high)
    return high


def _part(gm: fx.GraphModule, backend: str, nodes: Sequence[fx.Node]) -> stitch.Subgraph:
    segment = partitioner.Segment(0, backend, tuple(nodes))
    (part,) = stitch.extract(gm, partitioner.Partition((segment,), (), (segment,)))
    return part


def _error_of_part(part: stitch.Subgraph, backend: Backend, inputs: list[torch.Tensor], plan: Plan) -> float:
    """Return how far an engine of a part is from its graph; 0 where none can be built, infinity where it fails."""
    types = tuple(specs.spec_of(specs.tensor_of(node)) for node in part.inputs)
    results = tuple(specs.spec_of(specs.tensor_of(node)) for node in part.outputs)
    shapes = tuple(tuple(tensor.shape) for tensor in inputs)
    spec = BuildSpec(types, results, plan.device, (Profile(shapes, shapes, shapes),), plan.workspace_bytes, plan.build_options)
    with torch.no_grad():
        wanted = own(list(part.graph(*inputs)), inputs)
    try:
        engine = backend.load(backend.build(part.graph, spec).serialize())
    except BuildError:
        return 0.0
    try:
        return measure.largest(measure.compare(wanted, engine.run(inputs)))
    except Exception:  # noqa: BLE001 - whatever an engine may raise
        return math.inf


_REPRODUCE_ENGINE = '''"""{nodes} operators that {backend} computes wrong; written by tiacc.debug."""

from pathlib import Path

import torch

import tiacc

HERE = Path(__file__).parent
model = torch.jit.load(HERE / "model.pt")
data = [tuple(torch.load(HERE / "data.pth"))]
# Raises tiacc.errors.AccuracyError for as long as the engine is wrong.
tiacc.optimize(
    model,
    0,
    {device!r},
    test_data=data,
    backend={backend!r},
    passes="eliminate-dead-code",
    tolerance={tolerance!r},
    on_accuracy_failure="raise",
    timing_seconds=0.1,
)
'''

_REPRODUCE_PASS = '''"""A rewrite that makes a model wrong; written by tiacc.debug. Passes of your own must be registered."""

from pathlib import Path

import torch

import tiacc

HERE = Path(__file__).parent
model = torch.jit.load(HERE / "model.pt")
data = [tuple(item) for item in torch.load(HERE / "data.pth")]
# Raises tiacc.errors.AccuracyError for as long as the rewrite is wrong.
tiacc.optimize(
    model,
    0,
    {device!r},
    test_data=data,
    backend="reference",
    passes={passes!r},
    fuel={fuel!r},
    on_accuracy_failure="raise",
    timing_seconds=0.1,
)
'''


def _write_engine(
    part: stitch.Subgraph, inputs: list[torch.Tensor], backend: str, plan: Plan, tolerance: float, directory: Path
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    exporter.to_function(part.graph).save(str(directory / "model.pt"))
    torch.save([tensor.detach().clone() for tensor in inputs], directory / "data.pth")
    count = sum(node.op == "call_function" for node in part.graph.graph.nodes)
    text = _REPRODUCE_ENGINE.format(nodes=count, backend=backend, device=plan.device.type, tolerance=tolerance)
    (directory / "reproduce.py").write_text(text, encoding="utf-8")


def _write_pass(
    model: torch.jit.ScriptModule, plan: Plan, data: Sequence[Any], fuel: int | None, directory: Path | None
) -> None:
    if directory is None:
        return
    directory.mkdir(parents=True, exist_ok=True)
    torch.jit.save(model, str(directory / "model.pt"))
    torch.save([models.cloned(item) for item in data], directory / "data.pth")
    text = _REPRODUCE_PASS.format(device=plan.device.type, passes=str(plan.pipeline), fuel=fuel)
    (directory / "reproduce.py").write_text(text, encoding="utf-8")

"""What makes a model wrong: `bisect` finds the rewrite of a pass, or the smallest run of operators in an engine, and writes it down.

The passes come first: the model is run in torch with fewer and fewer rewrites (their fuel), until the one is found without which the
outputs are right. If all of them are right, each engine is compared with its own graph, and the wrong one is cut down from both ends.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
from tiacc.errors import AccuracyError, BuildError, ExportError, PassError
from tiacc.graph import exporter, specs
from tiacc.guard import Guard
from tiacc.options import Options
from tiacc.passes.base import Pass, PassResult
from tiacc.passes.manager import PassManager
from tiacc.planning import half_of, plan_of
from tiacc.runtime import modes, stitch
from tiacc.samples import ModelInputs

MOST_FUEL = 1 << 32
"""More rewrites than any pipeline makes."""


@dataclass(frozen=True)
class Finding:
    """What makes a model wrong.

    Attributes:
        kind: ``"pass"``, ``"engine"``, or ``"nothing"`` where no pass and no engine by itself is off by more than the tolerance.
        culprit: The name of the pass or of the backend; empty for nothing.
        error: The error of the outputs with it; infinity where it fails.
        fuel: The number of rewrites with which the outputs are wrong, and with one less right; None where it is no rewrite, or where the
            pass does not count its rewrites.
        nodes: The operators of the smallest part of an engine that is wrong.
        directory: Where the reproduction was written: ``python DIRECTORY/reproduce.py``; None where none was asked for.
        failure: What else is to be said: how it fails, or that all together are off by more than the tolerance; or an empty string.
    """

    kind: str
    culprit: str = ""
    error: float = 0.0
    fuel: int | None = None
    nodes: tuple[str, ...] = ()
    directory: Path | None = None
    failure: str = ""

    def __str__(self) -> str:
        told = f"the error of the outputs is {self.error:.2g}"
        if self.kind == "nothing":
            return f"{self.failure or 'nothing is wrong'}: {told}"
        if self.kind == "pass":
            where = "" if self.fuel is None else f", rewrite {self.fuel} of all"
            text = f"the pass {self.culprit}{where}: {self.failure or told}"
        else:
            off = self.failure or f"it is off by {self.error:.2g}"
            text = f"the engine of {self.culprit}: {off}, from these operators on: {', '.join(self.nodes)}"
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
        options: As for `optimize`; `Options.tolerance`, and `Options.accuracy_check` for the outputs of the model, say what is wrong.
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
    arithmetic = half_of(device, settings) if level else torch.float32
    plan = plan_of(model, inputs, level, device, settings, candidates)
    if device.type == "cuda":
        model = models.on_device(model, device)
    guard = Guard(model, inputs, device, measure.Judge(settings.accuracy_check))
    guard.run_references()
    path = None if directory is None else Path(directory)
    return _Search(model, plan, inputs, guard, arithmetic, settings.tolerance_for(arithmetic), path).find()


@dataclass
class _Search:
    """A search for what makes a model wrong.

    Attributes:
        model: The input model.
        plan: What is done to it.
        inputs: What the user calls it with.
        guard: What it gives, and for what.
        arithmetic: The least precise type that it is to compute in.
        tolerance: The largest error that is right.
        directory: Where to write a reproduction; made if it is not there. None: nowhere.
    """

    model: torch.jit.ScriptModule
    plan: Plan
    inputs: ModelInputs
    guard: Guard
    arithmetic: torch.dtype
    tolerance: float
    directory: Path | None
    _failure: str = field(default="", init=False)

    def find(self) -> Finding:
        """Find it.

        Raises:
            TiaccError: The model cannot be imported.
        """
        unlike = self._error(self.model)
        if unlike > self.tolerance:
            return Finding("nothing", error=unlike, failure="the input model gives other results in another call with the same data")
        in_torch = dataclasses.replace(self.plan, backends=())
        if self._error_of(in_torch) > self.tolerance:
            return self._wrong_pass(in_torch)
        compiled = build(propose(self.model, self.plan), self.plan)
        error = self._error(compiled.module)  # before its engines are watched
        for place, check in enumerate(mending.checked_engines(compiled, self.guard.calls)):
            if check.complaint(self.tolerance):
                return _wrong_engine(compiled, place, check, self.plan, self.tolerance, self.directory)
        told = "no pass and no engine by itself is off by more than the tolerance, and all together are"
        return Finding("nothing", error=error, failure=told if error > self.tolerance else "")

    def _error(self, module: torch.jit.ScriptModule) -> float:
        try:
            return self.guard.compare(module, self.arithmetic).error
        except AccuracyError as error:
            self._failure = str(error)
            return math.inf

    def _error_of(self, plan: Plan) -> float:
        """Return the error of the outputs when a plan is done; infinity where that fails, or gives NaN."""
        self._failure = ""
        try:
            error = self._error(build(propose(self.model, plan), plan).module)
        except (PassError, ExportError) as failure:
            self._failure = str(failure)
            return math.inf
        return math.inf if math.isnan(error) else error

    def _wrong_pass(self, plan: Plan) -> Finding:
        def with_fuel(fuel: int) -> Plan:
            return dataclasses.replace(plan, fuel=fuel)

        if self._error_of(with_fuel(0)) > self.tolerance:  # a pass that does not ask for fuel
            passes = list(plan.pipeline.leaves()) if isinstance(plan.pipeline, PassManager) else [plan.pipeline]
            for count in range(1, len(passes) + 1):
                error = self._error_of(dataclasses.replace(plan, pipeline=PassManager(tuple(passes[:count]))))
                if error > self.tolerance:
                    return self._found(passes[count - 1].name, error, None)
            return self._found(str(plan.pipeline), self._error_of(plan), None)
        low, high = 0, 1
        while high < MOST_FUEL and self._error_of(with_fuel(high)) <= self.tolerance:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._error_of(with_fuel(middle)) > self.tolerance else (middle, high)
        name = _pass_of(self.model, with_fuel(low), with_fuel(high))
        return self._found(name, self._error_of(with_fuel(high)), high)

    def _found(self, name: str, error: float, fuel: int | None) -> Finding:
        if self.directory is not None:
            # What the user's own check says is not in the script: half of what the outputs are off is too much for it.
            own = self.guard.judge.check is not None
            self._write_pass(fuel, self._relative_error(fuel) / 2 if own else self.tolerance)
        return Finding("pass", name, error, fuel, directory=self.directory, failure=self._failure)

    def _relative_error(self, fuel: int | None) -> float:
        judge, failure = self.guard.judge, self._failure
        self.guard.judge = measure.Judge()
        error = self._error_of(dataclasses.replace(self.plan, backends=(), fuel=fuel))
        self.guard.judge, self._failure = judge, failure
        return error if math.isfinite(error) else 1.0

    def _write_pass(self, fuel: int | None, tolerance: float) -> None:
        assert self.directory is not None
        self.directory.mkdir(parents=True, exist_ok=True)
        torch.jit.save(self.model, str(self.directory / "model.pt"))
        torch.save([models.moved(item, self.plan.device) for item in self.inputs.data], self.directory / "data.pth")
        text = _REPRODUCE_PASS.format(
            device=self.plan.device.type,
            shapes=[spec.entry for spec in self.inputs.specs],
            passes=str(self.plan.pipeline),
            fuel=fuel,
            tolerance=tolerance,
        )
        (self.directory / "reproduce.py").write_text(text, encoding="utf-8")


class _LastPass:
    """Notes which pass ran last.

    Attributes:
        name: Its name.
    """

    def __init__(self) -> None:
        self.name = ""

    def before(self, pass_: Pass, gm: fx.GraphModule) -> None:
        self.name = pass_.name

    def after(self, pass_: Pass, result: PassResult, seconds: float) -> None:
        """Do nothing."""


def _pass_of(model: torch.jit.ScriptModule, right: Plan, wrong: Plan) -> str:
    """Return the pass that fails with the fuel of `wrong`, or else the first that does more."""
    last = _LastPass()
    before = [(row.name, row.changes) for row in propose(model, right).passes]
    try:
        after = [
            (row.name, row.changes)
            for row in propose(model, dataclasses.replace(wrong, instruments=(*wrong.instruments, last))).passes
        ]
    except PassError:
        return last.name
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
    error = _error_of_part(part, backend, inputs, plan)
    told = check.complaint(tolerance) if math.isinf(error) or error <= tolerance else ""
    return Finding("engine", engine.backend, error, nodes=names, directory=directory, failure=told)


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
_, report = tiacc.optimize(
    model,
    0,
    {device!r},
    {shapes!r},
    data,
    backend="reference",
    passes={passes!r},
    fuel={fuel!r},
    tolerance={tolerance!r},
    on_accuracy_failure="raise",
    timing_seconds=0.1,
)
failures = [action for action in report.actions if "given up" in action]
if failures:
    raise SystemExit(failures[0])
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

"""torch's own operator samples as graphs of one node, and what a backend makes of them."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from tiacc.backends.base import Backend, BuildSpec
from tiacc.errors import ImportGraphError, InvalidArgumentError
from tiacc.graph import importer, specs, torch_compat
from tiacc.graph.types import Dim, Profile, TensorSpec
from tiacc.passes.rewrite import UNINITIALISED

WEIGHTS = frozenset({"weight", "bias", "running_mean", "running_var", "params"})
"""The arguments that are constants in a model."""

DTYPES = frozenset(
    {torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}
    | {torch.bool}
)


@lru_cache(maxsize=1)
def operator_database() -> list[Any]:
    """Return torch's OpInfo entries."""
    from torch.testing._internal.common_methods_invocations import op_db

    return list(op_db)


@dataclass
class Case:
    """One call of one operator.

    Attributes:
        target: The operator.
        label: What tells it from others: the operator and its arguments.
        gm: A graph of this call alone.
        inputs: Tensors for its placeholders.
        expected: What torch computes.
    """

    target: Any
    label: str
    gm: fx.GraphModule
    inputs: list[torch.Tensor]
    expected: list[torch.Tensor]

    @property
    def node(self) -> fx.Node:
        return next(node for node in self.gm.graph.nodes if node.op == "call_function")


@dataclass
class Outcome:
    """What became of the cases: a count by status, and the messages of those that failed."""

    counts: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    overloads: set[str] = field(default_factory=set)

    def add(self, status: str, message: str = "") -> None:
        self.counts[status] = self.counts.get(status, 0) + 1
        if status == "refused":
            self.refusals[message] = self.refusals.get(message, 0) + 1
        elif status != "passed":
            self.failures.append(f"{status}: {message}")


def cases_of(op: Any, dtype: torch.dtype, limit: int, seen: set[str]) -> Iterator[Case]:
    """Yield the calls that the first samples of an operator make, each kind once."""
    torch.manual_seed(0)
    for sample in [sample for sample, _ in zip(op.sample_inputs("cpu", dtype, requires_grad=False), range(limit))]:
        flat, structure = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
        places = [place for place, item in enumerate(flat) if isinstance(item, torch.Tensor)]
        tensors = [flat[place] for place in places]
        if all(tensor.layout == torch.strided and tensor.dtype in DTYPES for tensor in tensors):
            yield from _traced_cases(op, flat, structure, places, tensors, seen)


def _traced_cases(
    op: Any, flat: list[Any], structure: Any, places: list[int], tensors: list[torch.Tensor], seen: set[str]
) -> Iterator[Case]:
    class Sampled(torch.nn.Module):
        def forward(self, *given: torch.Tensor) -> Any:
            items = list(flat)
            for place, tensor in zip(places, given):
                items[place] = tensor
            first, args, kwargs = pytree.tree_unflatten(items, structure)
            result = op.op(first, *args, **kwargs)
            return result if isinstance(result, torch.Tensor) else tuple(pytree.tree_flatten(result)[0])

    try:
        traced = torch.jit.trace(Sampled(), tuple(tensor.clone() for tensor in tensors), check_trace=False)
        result = importer.import_module(traced, [TensorSpec(tuple(tensor.shape), tensor.dtype) for tensor in tensors])
    except (RuntimeError, ValueError, TypeError, AttributeError, ImportGraphError):
        return  # not every sample can be traced
    arguments = [value.debugName() for value in list(result.module.graph.inputs())[1:]]
    for region in result.regions:
        names = [read.value.debugName() for read in region.inputs]
        if all(name in arguments for name in names):
            yield from _node_cases(region.graph, [tensors[arguments.index(name)].clone() for name in names], seen)


class _Recorder(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.values[n] = super().run_node(n)
        return self.values[n]


def _node_cases(gm: fx.GraphModule, inputs: list[torch.Tensor], seen: set[str]) -> Iterator[Case]:
    recorder = _Recorder(gm)
    with torch.no_grad():
        recorder.run(*inputs)
    for node in gm.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload) or specs.is_scalar(node):
            continue
        value = recorder.values[node]
        results = list(value) if isinstance(value, (list, tuple)) else [value]
        if all(isinstance(item, torch.Tensor) for item in results):
            case = case_of_node(node, recorder.values, results)
            if case.label not in seen:
                seen.add(case.label)
                yield case


def case_of_node(node: fx.Node, values: dict[fx.Node, Any], expected: list[torch.Tensor], constants: bool = False) -> Case:
    """Return a graph of one node on the values that it was given.

    Args:
        node: The node.
        values: The value of each node before it.
        expected: Its results.
        constants: Make weights constants of the graph instead of inputs.
    """
    root, graph = torch.nn.Module(), fx.Graph()
    inputs: list[torch.Tensor] = []
    copies: dict[fx.Node, Any] = {}
    weights = {item for name, argument in _named(node) if name in WEIGHTS for item in _nodes_in(argument)} if constants else set()

    def copy(item: fx.Node) -> Any:
        value = values[item]
        if not isinstance(value, torch.Tensor):
            return value
        if item not in copies:
            if item in weights:
                root.register_buffer(f"w{len(copies)}", value.clone())
                copies[item] = graph.get_attr(f"w{len(copies)}")
            else:
                copies[item] = graph.placeholder(f"x{len(inputs)}")
                inputs.append(value)
        return copies[item]

    args, kwargs = fx.map_arg(node.args, copy), fx.map_arg(node.kwargs, copy)
    call = graph.call_function(node.target, args, kwargs)  # type: ignore[arg-type]
    label = f"{node.target}{_describe(args, values, copies)}{_describe(kwargs, values, copies) if kwargs else ''}"
    is_many = isinstance(values[node], (list, tuple)) if node in values else len(expected) > 1
    outputs = [graph.call_function(operator.getitem, (call, place)) for place in range(len(expected))] if is_many else [call]
    graph.output(tuple(outputs))
    gm = fx.GraphModule(root, graph)
    specs.propagate(gm, [TensorSpec(tuple(tensor.shape), tensor.dtype) for tensor in inputs])
    return Case(node.target, label, gm, inputs, [tensor.detach().clone() for tensor in expected])


def _named(node: fx.Node) -> Iterator[tuple[str, Any]]:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    yield from zip(names, node.args)
    yield from node.kwargs.items()


def _nodes_in(argument: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(argument, found.append)
    return found


def _describe(arguments: Any, values: dict[fx.Node, Any], copies: dict[fx.Node, Any]) -> str:
    tensors = {copied: values[item] for item, copied in copies.items()}
    return str(fx.map_arg(arguments, lambda item: fx.Proxy(item) if item not in tensors else _text(tensors[item])))


class _text(str):
    def __new__(cls, tensor: torch.Tensor) -> _text:
        return super().__new__(cls, f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}")

    def __repr__(self) -> str:
        return str(self)


def with_constant_weights(case: Case) -> Case | None:
    """Return the same call with its weights as constants; None where it has none."""
    node = case.node
    if not any(name in WEIGHTS and _nodes_in(argument) for name, argument in _named(node)):
        return None
    placeholders = [item for item in case.gm.graph.nodes if item.op == "placeholder"]
    values: dict[fx.Node, Any] = dict(zip(placeholders, case.inputs))
    values[node] = case.expected if isinstance(node.meta["val"], (list, tuple)) else case.expected[0]
    constant = case_of_node(node, values, case.expected, constants=True)
    return constant if constant.inputs else None


def with_varying_sizes(case: Case) -> Case | None:
    """Return the same call on sizes that vary, the same size being the same `Dim`; None where torch then fixes them again."""
    inputs = [
        TensorSpec(tuple(Dim(f"s{size}", 1, size, 2 * size) if size > 1 else size for size in tensor.shape), tensor.dtype)
        for tensor in case.inputs
    ]
    if not any(spec.is_dynamic for spec in inputs):
        return None
    graph = fx.Graph()
    graph.output(graph.graph_copy(case.gm.graph, {}))
    gm = fx.GraphModule(case.gm, graph)
    try:
        specs.propagate(gm, inputs)
    except ImportGraphError:
        return None
    if torch_compat.fixed_symbols_of(specs.fake_mode_of(gm)):
        return None
    return Case(case.target, f"{case.label} of sizes that vary", gm, case.inputs, case.expected)


def resized(case: Case) -> list[torch.Tensor] | None:
    """Return inputs of another size for a case whose sizes vary; None where torch refuses the call on them."""
    generator = torch.Generator().manual_seed(1)
    inputs = []
    for tensor in case.inputs:
        shape = [size + 1 if size > 1 else size for size in tensor.shape]
        if tensor.dtype.is_floating_point:
            made = torch.randn(shape, generator=generator).to(tensor.dtype)
            made = made.abs() + 0.1 if tensor.numel() and bool((tensor > 0).all()) else made
        else:
            flat = tensor.reshape(-1)
            made = flat[torch.randint(0, max(flat.numel(), 1), shape, generator=generator)]
        inputs.append(made)
    try:
        with torch.no_grad():
            case.gm(*inputs)
    except (RuntimeError, IndexError):
        return None
    return inputs


def spec_of(case: Case) -> BuildSpec:
    """Return what to build a case for."""
    placeholders = [node for node in case.gm.graph.nodes if node.op == "placeholder"]
    output = next(node for node in case.gm.graph.nodes if node.op == "output")
    inputs = tuple(specs.spec_of(node.meta["val"]) for node in placeholders)
    outputs = tuple(specs.spec_of(node.meta["val"]) for node in output.args[0])
    sizes = {which: tuple(spec.sizes(which) for spec in inputs) for which in ("min", "opt", "max")}
    return BuildSpec(inputs, outputs, torch.device("cpu"), (Profile(**sizes),), options={"num_threads": 1})


def try_case(backend: Backend, case: Case, outcome: Outcome) -> bool:
    """Run a case through a backend, note what became of it, and return whether it was supported."""
    support = backend.supports(case.node)
    if not support:
        outcome.add("refused", support.reason)
        return False
    outcome.overloads.add(str(case.target))
    try:
        engine = backend.build(case.gm, spec_of(case))
    except Exception as error:  # noqa: BLE001 - any failure to build what is supported is a finding
        outcome.add("not built", f"{case.label}: {str(error)[:300]}")
        return True
    inputs_and_expected = [(case.inputs, case.expected)]
    if "vary" in case.label:
        other = resized(case)
        if other is not None:
            with torch.no_grad():
                inputs_and_expected.append((other, list(case.gm(*other))))
    complaint = ""
    for inputs, expected in inputs_and_expected:
        try:
            actual = engine.run(inputs)
        except InvalidArgumentError as error:  # an integer that the backend says it cannot compute with
            outcome.add("refused", f"{case.target}: {str(error)[:60]}")
            return True
        except Exception as error:  # noqa: BLE001 - as above
            outcome.add("not run", f"{case.label}: {str(error)[:300]}")
            return True
        complaint = complaint or compare(case, actual, expected, inputs)
    outcome.add("wrong" if complaint else "passed", f"{case.label}: {complaint}")
    return True


TOLERANCES = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""The relative error allowed; the absolute one is a tenth of it times the largest magnitude of the expected result, or of 0.1."""


def compare(case: Case, actual: list[torch.Tensor], expected: list[torch.Tensor], inputs: list[torch.Tensor]) -> str:
    """Return how the results differ, or an empty string."""
    if len(actual) != len(expected):
        return f"{len(actual)} results, not {len(expected)}"
    name = str(case.target)
    for place, (got, want) in enumerate(zip(actual, expected)):
        if (got.dtype, got.shape) != (want.dtype, want.shape):
            return f"result {place} is {got.dtype}{list(got.shape)}, not {want.dtype}{list(want.shape)}"
        if case.target in UNINITIALISED:
            continue  # whatever was in memory
        if _is_order(name, place):
            continue  # the order of equal elements is anyone's; what is at the indices is compared below
        if not want.numel():
            continue
        if not want.dtype.is_floating_point:
            different = got != want
        else:
            finite = want[want.isfinite()].double()
            rtol = TOLERANCES[want.dtype]
            scale = max(float(finite.abs().max()) if finite.numel() else 1.0, 0.1)
            different = ~torch.isclose(got.double(), want.double(), rtol=rtol, atol=0.1 * rtol * scale, equal_nan=True)
        if different.any():
            return f"result {place} has {got[different][:3].tolist()} for {want[different][:3].tolist()} ({int(different.sum())} wrong)"
    return _compare_order(name, case, actual, expected, inputs)


def _is_order(name: str, place: int) -> bool:
    return ("argsort" in name and place == 0) or (place == 1 and any(word in name for word in ("sort", "topk", "max.dim", "min.dim")))


def _compare_order(name: str, case: Case, actual: list[torch.Tensor], expected: list[torch.Tensor], inputs: list[torch.Tensor]) -> str:
    place = next((place for place in range(len(actual)) if _is_order(name, place)), None)
    if place is None:
        return ""
    arguments = dict(_named(case.node))
    dim = arguments.get("dim", -1)
    dim = dim if isinstance(dim, int) else -1
    got, want = actual[place], expected[place]
    if arguments.get("keepdim") is False or (got.dim() < inputs[0].dim()):
        got, want = got.unsqueeze(dim), want.unsqueeze(dim)
    if ((got < 0) | (got >= inputs[0].shape[dim])).any():
        return "an index beyond the end"
    if not torch.equal(inputs[0].gather(dim, got), inputs[0].gather(dim, want)):
        return f"result {place} points at other values"
    return ""

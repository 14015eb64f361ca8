"""What the rounding of each operator does to the outputs of a model: a table, in time linear in the operators.

Every operator is computed twice on what reaches it when the model runs in half precision: as `cast-half` would have it, and in float32.
The difference, δ, is the error that this operator adds. What it does to the outputs follows from derivatives: for random v of the
size of the outputs, v·J·δ, where v·J is the gradient of v·outputs at the operator, is on average (of its square) the norm of the error
at the outputs. One run and a few gradients tell it of all operators at once, and, errors of half precision being small, the
contributions add up to the error of the whole.

Where numbers are lost altogether, to an overflow or to a sum that eats its terms, derivatives tell nothing: the operator itself is
guilty, and the run goes on behind it with what float32 gives.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from tiacc.graph import specs
from tiacc.graph.flops import elements_of, flops_of

MIN_DIRECTIONS, MAX_DIRECTIONS = 2, 8
"""The number of random directions in which the error of the outputs is looked at; eight tell a contribution to about a quarter."""

LOST = 0.25
"""An operator whose own error is at least this part of its result has lost it."""

FLOPS_PER_ELEMENT = 64
"""What reading or writing an element costs in float32, in operations that take as long: memory is slower than arithmetic."""


@dataclass(frozen=True)
class Sensitivity:
    """What rounding does to an operator, and what that does to the outputs.

    Attributes:
        node: Its name in the graph.
        op: Its overload.
        local: The relative error of its own result, ``‖δ‖ / ‖result‖``; infinity where the numbers are lost.
        contribution: The error of the outputs that comes from it, relative to their norms; infinity where the numbers are lost.
        flops: Its arithmetic.
        cost: What computing it in float32 costs, in operations: its arithmetic, and the memory it moves.
        source: Its line of TorchScript source, or an empty string.
    """

    node: str
    op: str
    local: float
    contribution: float
    flops: int
    cost: int
    source: str = ""

    @property
    def weight(self) -> float:
        """What is gained by float32 for what it costs; the operators to keep in float32 first have most."""
        if math.isinf(self.contribution):
            return math.inf
        return self.contribution**2 / max(self.cost, 1)


def analyse(graph: fx.GraphModule, half: fx.GraphModule, inputs: Sequence[torch.Tensor], seconds: float) -> list[Sensitivity]:
    """Return the sensitivity of each operator that `half` computes in half precision, in the order of the graph.

    Args:
        graph: A graph in float32.
        half: The same graph after `cast-half`: the nodes have the same names.
        inputs: What the graph is given.
        seconds: How long the gradients may take; at least `MIN_DIRECTIONS` are computed.
    """
    wide = _Wide(graph, inputs)
    errors = _own_errors(graph, half, wide.values, inputs)
    contributions = wide.contributions({node: error.delta for node, error in errors.items() if error.delta is not None}, seconds)
    found: dict[fx.Node, tuple[float, float]] = {}
    for node, error in errors.items():
        share = math.inf if error.delta is None else contributions.get(node, 0.0)
        operator_ = node.args[0] if node.target is operator.getitem else node
        assert isinstance(operator_, fx.Node)
        local, whole = found.get(operator_, (0.0, 0.0))
        found[operator_] = max(local, error.local), math.hypot(whole, share)
    return [_row(node, local, whole) for node, (local, whole) in found.items()]


def _row(node: fx.Node, local: float, contribution: float) -> Sensitivity:
    flops = flops_of(node)
    moved = elements_of(node) + sum(map(elements_of, node.all_input_nodes))
    return Sensitivity(
        node=node.name,
        op=str(node.target),
        local=local,
        contribution=contribution,
        flops=flops,
        cost=flops + FLOPS_PER_ELEMENT * moved,
        source=str(node.meta.get("source", "")),
    )


@dataclass
class _Error:
    """An operator's own error: δ, or None where the numbers are lost, and its size relative to the result."""

    delta: torch.Tensor | None
    local: float


def _own_errors(
    graph: fx.GraphModule, half: fx.GraphModule, wide: dict[fx.Node, Any], inputs: Sequence[torch.Tensor]
) -> dict[fx.Node, _Error]:
    """Return the error that each operator adds to what reaches it in half precision."""
    names = {node.name: node for node in graph.graph.nodes}
    values: dict[fx.Node, Any] = {}  # of the nodes of `half`
    reached: dict[fx.Node, Any] = {}  # the same for the nodes of `graph`, in float32
    parts: dict[fx.Node, Any] = {}  # what operators of several results give in float32 for what reaches them
    errors: dict[fx.Node, _Error] = {}

    def read(source: fx.Node) -> Any:
        return wide[source] if source.op == "get_attr" else reached[source]

    last = _last_reads(half)
    given = iter(inputs)
    with torch.no_grad():
        for node in half.graph.nodes:
            twin = names.get(node.name)
            if node.op == "placeholder":
                values[node] = next(given)
            elif node.op == "get_attr":
                values[node] = specs.fetch_attr(half, str(node.target))
            elif node.op == "call_function":
                values[node] = _call(node, values.__getitem__)
            else:
                break
            if twin is None or twin.op == "get_attr":
                continue
            if isinstance(values[node], (list, tuple)):
                parts[twin] = _call(twin, read)  # what its error is shows where one of them is picked
            elif node.op == "call_function" and _is_half(values[node]) and isinstance(wide[twin], torch.Tensor):
                result = _call(twin, parts.__getitem__ if twin.target is operator.getitem and twin.args[0] in parts else read)
                error = _error_of(values[node].to(result.dtype), result)
                if error.local:
                    errors[twin] = error
                if error.delta is None:
                    values[node] = _nearest(wide[twin], values[node].dtype)
            reached[twin] = _widened(values[node], wide[twin])
            for done in last.get(node, ()):
                values.pop(done, None)
    return errors


def _error_of(half: torch.Tensor, wide: torch.Tensor) -> _Error:
    same = (half == wide) | (half.isnan() & wide.isnan())
    delta = torch.where(same, torch.zeros((), dtype=wide.dtype, device=wide.device), half - wide)
    if not bool(delta.isfinite().all()):
        return _Error(None, math.inf)
    norm = float(torch.linalg.vector_norm(torch.where(wide.isfinite(), wide, 0)))
    size = float(torch.linalg.vector_norm(delta))
    local = size / norm if norm else math.inf if size else 0.0
    return _Error(None if local > LOST else delta, local)


class _Wide:
    """A run in float32 whose results can be differentiated.

    Attributes:
        values: What each node gave.
    """

    def __init__(self, graph: fx.GraphModule, inputs: Sequence[torch.Tensor]) -> None:
        self.values: dict[fx.Node, Any] = {}
        self.outputs: list[torch.Tensor] = []
        given = iter(inputs)
        with torch.enable_grad():
            for node in graph.graph.nodes:
                if node.op == "placeholder":
                    self.values[node] = _leaf(next(given).detach())
                elif node.op == "get_attr":
                    self.values[node] = specs.fetch_attr(graph, str(node.target)).detach()
                elif node.op == "call_function":
                    self.values[node] = _leaf(_call(node, self.values.__getitem__))
                else:
                    self.outputs = [self.values[item] for item in node.args[0] if isinstance(item, fx.Node)]

    def contributions(self, deltas: dict[fx.Node, torch.Tensor], seconds: float) -> dict[fx.Node, float]:
        """Return what an error of each node does to the outputs, relative to their norms; nothing where torch has no derivatives."""
        outputs = [output for output in self.outputs if isinstance(output, torch.Tensor) and output.requires_grad]
        if not outputs:
            return {}
        found: dict[fx.Node, list[float]] = {node: [] for node in deltas}
        hooks = [
            self.values[node].register_hook(_projection(delta, found[node]))
            for node, delta in deltas.items()
            if self.values[node].requires_grad
        ]
        end = time.perf_counter() + seconds
        generator = torch.Generator().manual_seed(0)
        try:
            for count in range(1, MAX_DIRECTIONS + 1):
                directions = [_direction(output.detach(), generator) for output in outputs]
                torch.autograd.backward(outputs, directions, retain_graph=True, inputs=self._leaves())
                if count >= MIN_DIRECTIONS and time.perf_counter() > end:
                    break
        except RuntimeError:  # an operator has no derivative
            return {}
        finally:
            for hook in hooks:
                hook.remove()
        return {node: math.sqrt(sum(value**2 for value in values) / count) for node, values in found.items()}

    def _leaves(self) -> list[torch.Tensor]:
        return [value for value in self.values.values() if isinstance(value, torch.Tensor) and value.is_leaf and value.requires_grad]


def _leaf(value: Any) -> Any:
    """Return a value that gradients reach, if it is a tensor that can be differentiated."""
    if isinstance(value, torch.Tensor) and value.is_floating_point() and not value.requires_grad:
        return value.detach().requires_grad_()
    return value


def _projection(delta: torch.Tensor, found: list[float]) -> Callable[[torch.Tensor], None]:
    def project(gradient: torch.Tensor) -> None:
        product = float((gradient * delta).sum())
        found.append(product if math.isfinite(product) else 0.0)

    return project


def _direction(output: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return a random vector in which an error has the length of its part of the output's norm, on average."""
    finite = output.isfinite()
    norm = float(torch.linalg.vector_norm(torch.where(finite, output, 0)))
    random = torch.randn(output.shape, generator=generator).to(output)
    return torch.where(finite, random / norm if norm else torch.zeros_like(random), 0)


def _call(node: fx.Node, value_of: Callable[[fx.Node], Any]) -> Any:
    return node.target(*fx.map_arg(node.args, value_of), **fx.map_arg(node.kwargs, value_of))  # type: ignore[operator]


def _is_half(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16)


def _widened(value: Any, like: Any) -> Any:
    if isinstance(value, torch.Tensor) and isinstance(like, torch.Tensor):
        return value.to(like.dtype)
    if isinstance(value, (list, tuple)):
        return type(value)(map(_widened, value, like))
    return value


def _nearest(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what float32 gives in half precision, its largest number where there is no larger one."""
    limit = torch.finfo(dtype).max
    return torch.where(value.isfinite(), value.clamp(-limit, limit), value).to(dtype)


def _last_reads(graph: fx.GraphModule) -> dict[fx.Node, list[fx.Node]]:
    """Return the nodes that are read last by each node."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        for source in node.all_input_nodes:
            last[source] = node
    reads: dict[fx.Node, list[fx.Node]] = {}
    for source, reader in last.items():
        reads.setdefault(reader, []).append(source)
    return reads

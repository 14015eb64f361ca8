"""Builds a network from a graph, interprets it, and compares it with eager torch."""

from __future__ import annotations

import importlib.util
import operator
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import fx

from tiacc.backends.base import BuildSpec
from tiacc.backends.tensorrt import builder, converters
from tiacc.backends.tensorrt.flavours import load_flavour
from tiacc.graph import specs
from tiacc.graph.specs import Dim, TensorSpec

needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")


def words(text: str) -> list[str]:
    """Return the words of a text."""
    return text.split()


TOLERANCE = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def graph_of(function: Callable[..., Any], count: int) -> fx.GraphModule:
    """Trace a function of `count` tensors over aten overloads called by name (``torch.ops.aten.relu.default(x)``)."""
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    result = function(*[fx.Proxy(graph.placeholder(f"x{index}"), tracer) for index in range(count)])
    items = result if isinstance(result, (tuple, list)) else (result,)
    graph.output(tuple(item.node for item in items))
    return fx.GraphModule(torch.nn.Module(), graph)


def one_node(op: Any, *args: Any, **kwargs: Any) -> tuple[fx.GraphModule, list[torch.Tensor]]:
    """Return a graph that calls `op` once, and its inputs.

    Each tensor in the arguments is an input, except a `torch.nn.Parameter`, which is a constant. A result that is a list or
    tuple is picked apart by `operator.getitem`.
    """
    graph, root = fx.Graph(), torch.nn.Module()
    tensors: list[torch.Tensor] = []
    _map_tensors((args, kwargs), lambda tensor: tensors.append(tensor) if all(t is not tensor for t in tensors) else None)
    inputs = [tensor for tensor in tensors if not isinstance(tensor, torch.nn.Parameter)]
    nodes = {id(tensor): graph.placeholder(f"x{index}") for index, tensor in enumerate(inputs)}
    for index, tensor in enumerate(tensors):
        if isinstance(tensor, torch.nn.Parameter):
            root.register_buffer(f"constant_{index}", tensor.detach())
            nodes[id(tensor)] = graph.get_attr(f"constant_{index}")
    placed_args, placed_kwargs = _map_tensors((args, kwargs), lambda tensor: nodes[id(tensor)])
    call = graph.call_function(op, placed_args, placed_kwargs)
    with torch.no_grad():
        result = op(*args, **kwargs)
    if isinstance(result, (list, tuple)):
        graph.output(tuple(graph.call_function(operator.getitem, (call, index)) for index in range(len(result))))
    else:
        graph.output((call,))
    return fx.GraphModule(root, graph), inputs


def _map_tensors(value: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_map_tensors(item, function) for item in value)
    if isinstance(value, dict):
        return {key: _map_tensors(item, function) for key, item in value.items()}
    return value


def spec_of(tensor: torch.Tensor, dynamic: Sequence[int] = (), prefix: str = "d") -> TensorSpec:
    """Return the spec of an example, with the dimensions of `dynamic` ranging from 1 to twice the example's."""
    sizes = enumerate(tensor.shape)
    shape = tuple(Dim(f"{prefix}{axis}", 1, size, 2 * size) if axis in dynamic else size for axis, size in sizes)
    return TensorSpec(shape, tensor.dtype)


def rejection(gm: fx.GraphModule) -> str:
    """Return why the first unsupported node of `gm` is refused, or an empty string."""
    flavour = load_flavour("tensorrt_rtx")
    for node in gm.graph.nodes:
        if node.op == "call_function":
            answer = converters.supports(node, flavour.has)
            if not answer:
                return answer.reason or "no reason given"
    return ""


def network_of(gm: fx.GraphModule, inputs: Sequence[TensorSpec]) -> builder.NetworkDefinition:
    return builder.build_network(load_flavour("tensorrt_rtx"), gm, inputs)


def interpret(definition: builder.NetworkDefinition, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    from tiacc.backends.tensorrt.interpreter import NetworkInterpreter

    feeds = dict(zip(definition.inputs, inputs))
    run = NetworkInterpreter(definition.flavour.module, definition.network, constants=definition.constants).run(feeds)
    return [run[name] for name in definition.outputs]


def compile_for(definition: builder.NetworkDefinition, inputs: Sequence[TensorSpec], target: str = "sm86") -> builder.Plan:
    spec = BuildSpec(tuple(inputs), (), torch.device("cpu"))
    return builder.build_plan(definition, builder.profiles_of(spec), 1 << 30, builder.BuildOptions(target=(target,)))


def assert_close(got: Sequence[torch.Tensor], want: Sequence[torch.Tensor], tolerance: float | None = None) -> None:
    """Compare outputs: dtypes, shapes, where NaN and infinities are, and the rest relative to the largest of each output."""
    assert len(got) == len(want)
    for a, b in zip(got, want):
        assert a.dtype == b.dtype, f"{a.dtype} instead of {b.dtype}"
        assert tuple(a.shape) == tuple(b.shape), f"{tuple(a.shape)} instead of {tuple(b.shape)}"
        if not b.dtype.is_floating_point:
            assert torch.equal(a, b), f"{(a != b).sum()} of {b.numel()} differ"
            continue
        finite = torch.isfinite(b)
        assert torch.equal(torch.isnan(a), torch.isnan(b)), "NaN in other places"
        assert torch.equal(a[~finite & ~torch.isnan(b)], b[~finite & ~torch.isnan(b)]), "infinities differ"
        if finite.any():
            difference = (a[finite].double() - b[finite].double()).abs().max().item()
            scale = b[finite].double().abs().max().item()
            limit = (TOLERANCE[b.dtype] if tolerance is None else tolerance) * (scale + 1e-6)
            assert difference <= limit, f"max error {difference:.3g}, allowed {limit:.3g}"


def check_graph(
    gm: fx.GraphModule,
    inputs: Sequence[torch.Tensor],
    *,
    dynamic: Sequence[Sequence[int]] | None = None,
    others: Sequence[Sequence[torch.Tensor]] = (),
    compile: bool = False,
    tolerance: float | None = None,
) -> builder.NetworkDefinition:
    """Build a network from `gm`, interpret it on `inputs` and `others`, and compare with `gm` itself.

    Args:
        gm: The graph.
        inputs: One example an input.
        dynamic: For each input, the dimensions that vary; the same dimension of two inputs has the same size.
        others: Further inputs, of other sizes.
        compile: Build an engine for sm86 too.
        tolerance: Relative to the largest element; by dtype when None.
    """
    dynamic = dynamic or [()] * len(inputs)
    types = [spec_of(tensor, axes) for tensor, axes in zip(inputs, dynamic)]
    specs.propagate(gm, types)
    assert rejection(gm) == ""
    definition = network_of(gm, types)
    for case in (inputs, *others):
        with torch.no_grad():
            want = gm(*case)
        assert_close(interpret(definition, case), want, tolerance)
    if compile:
        assert len(compile_for(definition, types).data) > 64
    return definition


def check(
    op: Any, *args: Any, compile: bool = False, tolerance: float | None = None, **kwargs: Any
) -> builder.NetworkDefinition:
    """Check one operator on the given arguments with static shapes; a `torch.nn.Parameter` is a constant."""
    gm, inputs = one_node(op, *args, **kwargs)
    return check_graph(gm, inputs, compile=compile, tolerance=tolerance)


def refused(op: Any, *args: Any, **kwargs: Any) -> str:
    """Return the reason for which a call is refused; an empty string when it is not."""
    gm, inputs = one_node(op, *args, **kwargs)
    specs.propagate(gm, [spec_of(tensor) for tensor in inputs])
    return rejection(gm)


def check_dynamic(
    op: Any, args: Sequence[Any], dynamic: Sequence[Sequence[int]], *others: Sequence[torch.Tensor], compile: bool = False
) -> builder.NetworkDefinition:
    """Check one operator with dimensions that vary, on the arguments and on inputs of other sizes.

    Args:
        op: The overload.
        args: Its arguments; a `torch.nn.Parameter` is a constant, other tensors are inputs.
        dynamic: For each input, the dimensions that vary.
        *others: Further inputs.
        compile: Build an engine for sm86 too.
    """
    gm, inputs = one_node(op, *args)
    return check_graph(gm, inputs, dynamic=dynamic, others=others, compile=compile)


def check_varying(function: Callable[[Any], Any]) -> builder.NetworkDefinition:
    """Check a function of one tensor ``(N, 3, L)`` with N and L that vary, at three sizes; it must compile too."""
    others = [[torch.randn(1, 3, 4)], [torch.randn(4, 3, 9)]]
    return check_graph(graph_of(function, 1), [torch.randn(2, 3, 6)], dynamic=[(0, 2)], others=others, compile=True)

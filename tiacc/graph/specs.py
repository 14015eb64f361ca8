"""What is known of each value of a graph before it runs: shape, dtype, device.

Every node of a region's graph carries ``meta["val"]``: a fake tensor (shape and dtype without data; a dimension that varies is a
`torch.SymInt`), a number, or a list or tuple of these. `infer` fills it in for one node, `update` for those of a graph that lack it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from tiacc.errors import ImportGraphError
from tiacc.graph import torch_compat
from tiacc.graph.result_types import ResultTypes
from tiacc.graph.shape_rules import SHAPE_RULES
from tiacc.graph.types import Dim as Dim
from tiacc.graph.types import Shape as Shape
from tiacc.graph.types import TensorSpec as TensorSpec

SCALAR_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset(
    {
        operator.add,
        operator.sub,
        operator.mul,
        operator.floordiv,
        operator.truediv,
        operator.mod,
        operator.neg,
        operator.eq,
        operator.ne,
        operator.lt,
        operator.le,
        operator.gt,
        operator.ge,
        torch.sym_int,
        torch.sym_float,
        torch.sym_max,
        torch.sym_min,
        math.floor,
        math.ceil,
        torch.ops.aten.sym_size.int,
    }
)
"""The call targets besides aten overloads and `operator.getitem`: arithmetic on the sizes of tensors. They cost nothing at run time."""


def new_fake_mode() -> FakeTensorMode:
    """Return a mode in which a result whose size depends on data is an error."""
    return FakeTensorMode(shape_env=torch_compat.new_shape_env(), allow_non_fake_inputs=True)


def fake_mode_of(gm: fx.GraphModule) -> FakeTensorMode:
    """Return the mode in which the values of `gm` live; made on first use."""
    mode = gm.meta.get("fake_mode")
    if mode is None:
        for node in gm.graph.nodes:
            value = node.meta.get("val")
            if isinstance(value, FakeTensor):
                mode = value.fake_mode
                break
        else:
            mode = new_fake_mode()
        gm.meta["fake_mode"] = mode
    assert isinstance(mode, FakeTensorMode)
    return mode


def copied(gm: fx.GraphModule) -> fx.GraphModule:
    """Return another graph over the same tensors, whose nodes have the same names and values."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(gm.graph, {}))
    copy = fx.GraphModule(gm, graph)
    copy.meta["fake_mode"] = fake_mode_of(gm)
    return copy


def fetch_attr(gm: fx.GraphModule, name: str) -> Any:
    """Return the attribute of `gm` that a ``get_attr`` node of target `name` reads."""
    value: Any = gm
    for part in name.split("."):
        value = getattr(value, part)
    return value


def infer(gm: fx.GraphModule, node: fx.Node) -> Any:
    """Compute ``node.meta["val"]`` from the values of its inputs, store and return it.

    Raises:
        ImportGraphError: The operator refuses inputs of these shapes or dtypes, or the size of its result depends on data.
    """
    mode = fake_mode_of(gm)
    if node.op == "get_attr":
        value = fetch_attr(gm, str(node.target))
        if isinstance(value, torch.Tensor):
            value = torch_compat.fake_constant(mode, value)
    elif node.op == "call_function":
        value = infer_call(mode, node)
    elif node.op == "output":
        value = fx.map_arg(node.args[0], lambda n: n.meta["val"])
    else:
        raise ImportGraphError(f"{node.op} node {node.name} has no value of its own; set meta['val'] where it is made")
    node.meta["val"] = value
    return value


def infer_call(mode: FakeTensorMode, node: fx.Node) -> Any:
    """Compute ``meta["val"]`` of a ``call_function`` node in the given mode, store and return it.

    Raises:
        ImportGraphError: As `infer`.
    """
    node.meta["val"] = result_of(mode, node, lambda n: n.meta["val"])
    return node.meta["val"]


def result_of(mode: FakeTensorMode, node: fx.Node, value_of: Callable[[fx.Node], Any]) -> Any:
    """Return what a ``call_function`` node gives where its inputs are what `value_of` says; nothing is stored.

    Raises:
        ImportGraphError: As `infer`.
    """
    args: Any = fx.map_arg(node.args, value_of)
    kwargs: Any = fx.map_arg(node.kwargs, value_of)

    def infer_anew() -> Any:
        with torch_compat.inference(mode):
            return SHAPE_RULES.get(node.target, node.target)(*args, **kwargs)  # type: ignore[operator]

    try:
        return _known_types(mode).call(mode, node.target, args, kwargs, infer_anew)
    except Exception as error:  # operators raise RuntimeError, TypeError, IndexError and others
        raise ImportGraphError(
            f"the shape of {node.name} = {node.target} cannot be inferred{where(node)}: {type(error).__name__}: {error}"
        ) from error


def _known_types(mode: FakeTensorMode) -> ResultTypes:
    return mode.__dict__.setdefault("_tiacc_result_types", ResultTypes())  # type: ignore[no-any-return]


def update(gm: fx.GraphModule, *, everything: bool = False) -> fx.GraphModule:
    """Infer the value of each node of `gm` that has none yet.

    Args:
        gm: A graph whose placeholders have values.
        everything: Infer the others again too, as after a change of dtype.
    """
    for node in gm.graph.nodes:
        if node.op != "placeholder" and (everything or "val" not in node.meta):
            infer(gm, node)
    return gm


def propagate(gm: fx.GraphModule, inputs: Sequence[TensorSpec | torch.Tensor | int | float | bool]) -> fx.GraphModule:
    """Give every node of `gm` its value, from the types of the placeholders.

    Args:
        gm: A graph over aten overloads.
        inputs: One spec (or example tensor, or number) for each placeholder, in order. Dims of one name are one symbol.
    """
    mode = gm.meta["fake_mode"] = new_fake_mode()
    symbols: dict[str, torch.SymInt] = {}
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(placeholders, inputs, strict=True):
        if isinstance(spec, torch.Tensor):
            spec = TensorSpec(tuple(spec.shape), spec.dtype, spec.device)
        node.meta["val"] = fake_tensor(mode, spec, symbols) if isinstance(spec, TensorSpec) else spec
    return update(gm, everything=True)


def fake_tensor(mode: FakeTensorMode, spec: TensorSpec, symbols: dict[str, torch.SymInt]) -> torch.Tensor:
    """Return a contiguous fake tensor of type `spec`.

    Args:
        mode: Where it shall live.
        spec: Its type.
        symbols: The symbol of each named `Dim` so far; new ones are added.
    """
    sizes = [symbol_of(mode, size, symbols) if isinstance(size, Dim) else size for size in spec.shape]
    with mode:
        return torch.empty(sizes, dtype=spec.dtype, device=spec.device)


def symbol_of(mode: FakeTensorMode, dim: Dim, symbols: dict[str, torch.SymInt]) -> torch.SymInt:
    """Return the symbol of a dimension in `symbols`, where it is added if it is new."""
    assert mode.shape_env is not None
    if dim.name not in symbols:
        symbols[dim.name] = torch_compat.new_symbol(mode.shape_env, dim.name, dim.min, dim.opt, dim.max)
    return symbols[dim.name]


def spec_of(value: torch.Tensor) -> TensorSpec:
    """Return the type of a tensor, fake or real."""
    return TensorSpec(tuple(dim_of(size) for size in value.shape), value.dtype, value.device)


def dim_of(size: int | torch.SymInt) -> int | Dim:
    """Return a size as a number, or as the `Dim` that its symbolic expression ranges over."""
    if isinstance(size, int):
        return size
    bounds = torch_compat.symbol_bounds(size)
    if bounds.min == bounds.max:
        return bounds.min
    return Dim(bounds.expression, bounds.min, bounds.opt, bounds.max)


def tensor_of(node: fx.Node) -> torch.Tensor:
    """Return the fake tensor that `node` computes.

    Raises:
        TypeError: Its value is not one tensor.
    """
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{node.name} is {type(value).__name__}, not a tensor")
    return value


def is_tensor(node: fx.Node) -> bool:
    """Return whether `node` computes one tensor."""
    return isinstance(node.meta.get("val"), torch.Tensor)


def is_scalar(node: fx.Node) -> bool:
    """Return whether `node` is arithmetic on sizes: a number, symbolic or not, that costs nothing to compute."""
    return node.op == "call_function" and node.target in SCALAR_FUNCTIONS


def where(node: fx.Node) -> str:
    """Return ``" at FILE:LINE"`` of the TorchScript source of `node`, or an empty string."""
    source = node.meta.get("source")
    return f" at {source}" if source else ""

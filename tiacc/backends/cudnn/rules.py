"""How the operators that are neither views nor element-wise are planned, one function a kind.

A rule takes the planner, the node and its arguments by name, and returns the value of the node; None where torch shall compute it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import fx

from tiacc.backends.cudnn import attention, product_rules
from tiacc.backends.cudnn.body import COPY, Body
from tiacc.backends.cudnn.layouts import FLOATS, channels_last_strides, contiguous_strides, strides_like
from tiacc.backends.cudnn.lazy import Anchor, Expression, Lazy, Node, flatten
from tiacc.backends.cudnn.planner import Planner, pair, shape_of
from tiacc.backends.cudnn.program import PoolStep, ReduceStep, Ref, RowStep, Step
from tiacc.graph import specs

aten = torch.ops.aten

Rule: TypeAlias = "Callable[[Planner, fx.Node, dict[str, Any]], Any]"

ROW_LIMIT = 8192
"""The longest row, in elements, that a kernel holds in registers."""


SMALL = 4
"""A sum of at most so many slices is written out."""


# -- windows ----------------------------------------------------------------------------------------------------------------------------


def _pool(planner: Planner, node: fx.Node, args: dict[str, Any], kind: str, divisor: str | int) -> Lazy | None:
    source = args["self"]
    if len(shape_of(source)) != 4 or specs.tensor_of(source).dtype not in FLOATS:
        return None
    kernel = pair(args["kernel_size"])
    x = planner.channels_last(source)
    step = PoolStep(
        out=x,
        x=x,
        kind=kind,
        kernel=kernel,
        stride=pair(args["stride"]) if args["stride"] else kernel,
        padding=pair(args["padding"]),
        dilation=pair(args.get("dilation", 1), 1),
        divisor=divisor,
        body=COPY,
        operands=(),
    )

    def emit(out: Ref, body: Body, operands: tuple[Ref, ...]) -> Step:
        return dataclasses.replace(step, out=out, body=body, operands=operands)

    return Lazy(Anchor(shape_of(node), emit, strides=channels_last_strides), shape_of(node), specs.tensor_of(node).dtype)


def _max_pool(planner: Planner, node: fx.Node, args: dict[str, Any]) -> Any:
    if node.target is aten.max_pool2d_with_indices.default:
        if any(user.args[1] != 0 for user in node.users):
            return None
        # the indices are not read: only the first result is made
        return [_pool_of(planner, node, args), None]
    return _pool(planner, node, args, "max", "inside")


def _pool_of(planner: Planner, node: fx.Node, args: dict[str, Any]) -> Any:
    fake = node.meta["val"][0]
    stand_in = fx.Node(node.graph, node.name, "call_function", node.target, (), {})
    stand_in.meta["val"] = fake
    lazy = _pool(planner, stand_in, args, "max", "inside")
    if lazy is None:
        raise NotImplementedError("a pooling of this rank or type")
    return planner.store(lazy, name=node.name)


def _avg_pool(planner: Planner, node: fx.Node, args: dict[str, Any]) -> Lazy | None:
    divisor = args["divisor_override"] or ("window" if args["count_include_pad"] else "inside")
    return _pool(planner, node, args, "avg", divisor)


def _adaptive_avg_pool(planner: Planner, node: fx.Node, args: dict[str, Any]) -> Lazy | None:
    source, out = args["self"], shape_of(node)
    if out[-1] == out[-2] == 1:
        found: Lazy | None = _reduce(planner, node, source, (len(out) - 2, len(out) - 1), "mean", keepdim=True)
        return found
    shape = shape_of(source)
    if len(shape) == 4 and shape[2] % out[2] == 0 and shape[3] % out[3] == 0:
        kernel = (shape[2] // out[2], shape[3] // out[3])
        return _pool(planner, node, {"self": source, "kernel_size": kernel, "stride": kernel, "padding": 0}, "avg", "window")
    return None


# -- reductions -------------------------------------------------------------------------------------------------------------------------


def _prologue(planner: Planner, source: fx.Node) -> tuple[Body, tuple[Ref, ...], tuple[int, ...]] | None:
    """Return how the elements of a value are computed where they are read: its waiting element-wise work, or the value itself."""
    if specs.tensor_of(source).dtype not in FLOATS:
        return None
    shape = shape_of(source)
    value = planner.values[source]
    if isinstance(value, Lazy):
        flat = flatten(value.expression, shape)
        if flat.anchor is None and len(source.users) == 1:
            return flat.body, flat.operands, shape
    return COPY, (planner.realize(source),), shape


def _reduce(planner: Planner, node: fx.Node, source: fx.Node, dims: tuple[int, ...], kind: str, *, keepdim: bool) -> Any:
    found = _prologue(planner, source)
    dtype = specs.tensor_of(node).dtype
    if found is None or dtype not in FLOATS:
        return None
    prologue, inputs, shape = found
    if kind in ("sum", "mean") and len(dims) == 1 and shape[dims[0]] <= SMALL:
        return _small_sum(planner, node, source, dims[0], kind, keepdim)
    kept = tuple(1 if dim in dims else size for dim, size in enumerate(shape))
    if not math.prod(shape) or not shape:
        return None

    def emit(out: Ref, body: Body, operands: tuple[Ref, ...]) -> Step:
        return ReduceStep(out, inputs, prologue, dims, kind, body, operands)

    lazy = Lazy(Anchor(kept, emit, strides=channels_last_strides if len(kept) == 4 else contiguous_strides), kept, dtype)
    if keepdim:
        return lazy
    ref = planner.store(lazy, name=node.name)
    return ref.like(ref.meta().reshape(shape_of(node)))


def _small_sum(planner: Planner, node: fx.Node, source: fx.Node, dim: int, kind: str, keepdim: bool) -> Lazy:
    """The sum of a few slices is element-wise arithmetic on them."""
    shape = shape_of(source)
    expression = planner.expression(source, shape) if planner.anchor(source) is None else planner.realize(source)

    def sliced(part: Expression, index: int) -> Expression:
        if isinstance(part, Ref):
            view = part.expanded(shape)
            meta = view.meta().narrow(dim, index, 1)
            return view.like(meta if keepdim else meta.squeeze(dim))
        if isinstance(part, Node):
            return Node(part.op, tuple(sliced(arg, index) for arg in part.args))
        return part

    total = sliced(expression, 0)
    for index in range(1, shape[dim]):
        total = Node("add", (total, sliced(expression, index)))
    if kind == "mean":
        total = Node("mul", (total, 1.0 / shape[dim]))
    return Lazy(total, shape_of(node), specs.tensor_of(node).dtype)


def _reduction(kind: str) -> Rule:
    def rule(planner: Planner, node: fx.Node, args: dict[str, Any]) -> Any:
        source = args["self"]
        rank = len(shape_of(source))
        given = args.get("dim")
        dims = range(rank) if given is None or given == [] else given if isinstance(given, (list, tuple)) else [given]
        return _reduce(planner, node, source, tuple(sorted(dim % rank for dim in dims)), kind, keepdim=bool(args.get("keepdim")))

    return rule


def _row(
    planner: Planner, node: fx.Node, source: fx.Node, dims: tuple[int, ...], kind: str, eps: float = 0.0
) -> Lazy | None:
    found = _prologue(planner, source)
    dtype = specs.tensor_of(node).dtype
    shape = shape_of(source)
    if found is None or dtype not in FLOATS or not 0 < math.prod(shape[dim] for dim in dims) <= ROW_LIMIT or not math.prod(shape):
        return None
    prologue, inputs, _ = found

    def emit(out: Ref, body: Body, operands: tuple[Ref, ...]) -> Step:
        return RowStep(out, inputs, prologue, dims, kind, eps, body, operands)

    return Lazy(Anchor(shape, emit, strides=lambda sizes: strides_like(inputs, sizes)), shape, dtype)


def _softmax(kind: str) -> Rule:
    def rule(planner: Planner, node: fx.Node, args: dict[str, Any]) -> Lazy | None:
        rank = len(shape_of(args["self"]))
        return _row(planner, node, args["self"], (args["dim"] % rank,), kind) if rank else None

    return rule


def _layer_norm(planner: Planner, node: fx.Node, args: dict[str, Any]) -> Lazy | None:
    weight, bias = planner.constant_of(args["weight"]), planner.constant_of(args["bias"])
    if (args["weight"] is not None and weight is None) or (args["bias"] is not None and bias is None):
        return None
    rank, count = len(shape_of(args["input"])), len(args["normalized_shape"])
    lazy = _row(planner, node, args["input"], tuple(range(rank - count, rank)), "layer_norm", float(args["eps"]))
    if lazy is None:
        return None
    if weight is not None:
        lazy.expression = Node("mul", (lazy.expression, planner.constant(weight, f"{node.name}_weight")))
    if bias is not None:
        lazy.expression = Node("add", (lazy.expression, planner.constant(bias, f"{node.name}_bias")))
    return lazy


def _batch_norm(planner: Planner, node: fx.Node, args: dict[str, Any]) -> Lazy | None:
    """A normalisation by constants that could not be folded is a product and a sum."""
    source = args["input"]
    names = ("running_mean", "running_var", "weight", "bias")
    data = {name: planner.constant_of(args[name]) for name in names}
    if args.get("training") or data["running_mean"] is None or data["running_var"] is None:
        return None
    if any(args[name] is not None and data[name] is None for name in names) or specs.tensor_of(source).dtype not in FLOATS:
        return None
    scale = (data["running_var"].double() + args["eps"]).rsqrt()
    if data["weight"] is not None:
        scale = scale * data["weight"].double()
    shift = -data["running_mean"].double() * scale
    if data["bias"] is not None:
        shift = shift + data["bias"].double()
    shape = shape_of(node)
    channels = (1, -1, *(1 for _ in shape[2:]))
    planner.keep_one_anchor([source], shape)
    factor = planner.constant(scale.float().reshape(channels), f"{node.name}_scale")
    value = Node("mul", (planner.expression(source, shape), factor))
    value = Node("add", (value, planner.constant(shift.float().reshape(channels), f"{node.name}_shift")))
    return Lazy(value, shape, specs.tensor_of(node).dtype)


# -- joining ----------------------------------------------------------------------------------------------------------------------------


def _cat(planner: Planner, node: fx.Node, args: dict[str, Any]) -> Ref | None:
    """The parts are stored where they belong; those that are in memory already are copied there."""
    fake = specs.tensor_of(node)
    sources = [part for part in args["tensors"] if math.prod(shape_of(part))]
    if fake.dtype not in FLOATS or any(specs.tensor_of(part).dtype != fake.dtype for part in sources):
        return None
    shape, rank = shape_of(node), fake.dim()
    dim = args["dim"] % rank
    out = planner.new(shape, fake.dtype, channels_last_strides(shape) if rank == 4 else contiguous_strides(shape), node.name)
    begin = 0
    for part in sources:
        size = shape_of(part)[dim]
        place = out.like(out.meta().narrow(dim, begin, size))
        value = planner.values[part]
        is_new = isinstance(value, Lazy) and len(part.users) == 1
        planner.store(value if is_new else Lazy(planner.realize(part), shape_of(part), fake.dtype), out=place)
        begin += size
    return out


RULES: dict[Any, Rule] = {
    **dict.fromkeys(
        (
            aten.conv1d.default,
            aten.conv2d.default,
            aten.conv_transpose1d.default,
            aten.conv_transpose2d.input,
            aten.convolution.default,
            aten._convolution.default,
        ),
        product_rules.convolution,
    ),
    aten.linear.default: product_rules.linear,
    aten.addmm.default: product_rules.addmm,
    aten.mm.default: product_rules.mm,
    aten.matmul.default: product_rules.mm,
    aten.max_pool2d.default: _max_pool,
    aten.max_pool2d_with_indices.default: _max_pool,
    aten.avg_pool2d.default: _avg_pool,
    aten.adaptive_avg_pool2d.default: _adaptive_avg_pool,
    aten._adaptive_avg_pool2d.default: _adaptive_avg_pool,
    aten.mean.dim: _reduction("mean"),
    aten.mean.default: _reduction("mean"),
    aten.sum.dim_IntList: _reduction("sum"),
    aten.sum.default: _reduction("sum"),
    aten.amax.default: _reduction("max"),
    aten.amin.default: _reduction("min"),
    aten.softmax.int: _softmax("softmax"),
    aten._softmax.default: _softmax("softmax"),
    aten.log_softmax.int: _softmax("log_softmax"),
    aten.layer_norm.default: _layer_norm,
    aten.batch_norm.default: _batch_norm,
    aten._native_batch_norm_legit_no_training.default: lambda planner, node, args: None,
    aten.cat.default: _cat,
    aten.scaled_dot_product_attention.default: attention.attention,
}
"""The rule of each operator."""

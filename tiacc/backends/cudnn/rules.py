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

from tiacc.backends.cudnn.body import COPY, Body
from tiacc.backends.cudnn.lazy import Anchor, Expression, Lazy, Node, flatten
from tiacc.backends.cudnn.planner import FLOATS, Planner, channels_last_strides, contiguous_strides, strides_like
from tiacc.backends.cudnn.program import ConvStep, PoolStep, ReduceStep, Ref, RowStep, Step
from tiacc.graph import specs

aten = torch.ops.aten

Rule: TypeAlias = "Callable[[Planner, fx.Node, dict[str, Any]], Any]"

ROW_LIMIT = 8192
"""The longest row, in elements, that a kernel holds in registers."""


SMALL = 4
"""A sum of at most so many slices is written out."""


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(map(int, specs.tensor_of(node).shape))


def _pair(value: Any, default: int = 0) -> tuple[int, int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if not values:
        values = [default]
    return (int(values[0]), int(values[-1]))


# -- convolutions and matrix products --------------------------------------------------------------------------------------------------


def _convolution(planner: Planner, node: fx.Node, args: dict[str, Any]) -> Lazy | Ref | None:
    """2-D convolutions, transposed ones too; 1-D ones as images of one row."""
    source, weight_node = args["input"], args["weight"]
    rank = len(_shape(source)) - 2
    weight = planner.constant_of(weight_node)
    name = str(node.target)
    transposed = bool(args.get("transposed", "transpose" in name))
    if rank not in (1, 2) or weight is None or len(_shape(source)) != weight.dim() or isinstance(args["padding"], str):
        return None
    if specs.tensor_of(node).dtype not in FLOATS or specs.tensor_of(source).dtype != weight.dtype:
        return None
    bias = args["bias"]
    if bias is not None and planner.constant_of(bias) is None:
        return None
    stride, padding, dilation = _pair(args["stride"], 1), _pair(args["padding"]), _pair(args["dilation"], 1)
    if rank == 1:
        stride, padding, dilation = (1, stride[1]), (0, padding[1]), (1, dilation[1])
        weight = weight.unsqueeze(2)
        ref = _image_of_rows(planner, source)
    else:
        ref = planner.image(source)
    shape = _shape(node)
    image = shape if rank == 2 else (shape[0], shape[1], 1, shape[2])
    step = ConvStep(
        out=ref,
        x=ref,
        weight=planner.constant(weight.contiguous(), f"{node.name}_weight"),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=int(args["groups"]),
        transposed=transposed,
        body=COPY,
        operands=(),
        tf32=planner.tf32[0],
    )
    value: Expression = _conv_anchor(planner, step, image)
    if bias is not None:
        data = planner.constant_of(bias)
        assert data is not None
        value = Node("add", (value, planner.constant(data.reshape(1, -1, 1, 1), f"{node.name}_bias")))
    lazy = Lazy(value, image, specs.tensor_of(node).dtype)
    if rank == 2:
        return lazy
    planned = planner.store(lazy, name=node.name)
    return planned.like(planned.meta().squeeze(2))


def _image_of_rows(planner: Planner, node: fx.Node) -> Ref:
    """Return a sequence ``(N, C, L)`` as an image ``(N, C, 1, L)`` with channels next to each other."""
    ref = planner.realize(node)
    return planner.as_laid_out(ref.like(ref.meta().unsqueeze(2)), channels_last_strides)


def _conv_anchor(planner: Planner, step: ConvStep, shape: tuple[int, ...]) -> Anchor:
    def emit(out: Ref, body: Body, operands: tuple[Ref, ...]) -> Step:
        return dataclasses.replace(step, out=out, body=body, operands=operands)

    def takes(ref: Ref) -> bool:
        return operand_kind(ref) is not None

    return Anchor(shape, emit, takes, channels_last_strides, lambda out: operand_kind(out) == "full")


def operand_kind(ref: Ref) -> str | None:
    """Return how an operand, expanded to ``(N, C, H, W)``, is read beside the result of a convolution; None if it is not.

    ``"scalar"``: one number. ``"channel"``: one for each channel. ``"image"``: one for each image and channel. ``"full"``: one for each
    element, with channels next to each other and rows one after the other.
    """
    images, channels, height, width = ref.shape
    strides = tuple(0 if size == 1 else stride for size, stride in zip(ref.shape, ref.strides))
    n, c, h, w = strides
    if c not in (0, 1) or ref.dtype not in FLOATS | {torch.bool}:
        return None
    if not n and not h and not w:
        return "channel" if c else "scalar"
    if channels > 1 and c != 1:
        return None
    if not h and not w:
        return "image"
    pixel = w if width > 1 else h if height > 1 else n
    is_dense = (height == 1 or h == pixel * width) and (images == 1 or n == pixel * width * height)
    return "full" if pixel >= channels and is_dense else None


def _linear(planner: Planner, node: fx.Node, args: dict[str, Any]) -> Lazy | None:
    return _product(planner, node, args["input"], args["weight"], args["bias"], is_transposed=True)


def _addmm(planner: Planner, node: fx.Node, args: dict[str, Any]) -> Lazy | None:
    if args["alpha"] != 1 or args["beta"] != 1:
        return None
    return _product(planner, node, args["mat1"], args["mat2"], args["self"], is_transposed=False)


def _mm(planner: Planner, node: fx.Node, args: dict[str, Any]) -> Lazy | None:
    other = args.get("mat2", args.get("other"))
    return _product(planner, node, args["self"], other, None, is_transposed=False)


def _product(
    planner: Planner, node: fx.Node, source: fx.Node, weight_node: Any, bias_node: Any, *, is_transposed: bool
) -> Lazy | None:
    """A matrix product with a constant, as a 1×1 convolution over an image ``(1, K, rows, 1)``.

    Between steps a product has its own shape; the anchor is told the image's.
    """
    weight = planner.constant_of(weight_node)
    dtype = specs.tensor_of(node).dtype
    shape = _shape(source)
    if weight is None or weight.dim() != 2 or len(shape) < 2 or dtype not in FLOATS or weight.dtype != dtype or specs.tensor_of(source).dtype != dtype:
        return None
    bias = planner.constant_of(bias_node) if bias_node is not None else None
    if bias_node is not None and (bias is None or bias.dim() != 1):
        return None
    if not is_transposed:
        weight = weight.t()
    rows, depth, width = math.prod(shape[:-1]), shape[-1], int(weight.shape[0])
    if not rows or not depth or not width:
        return None
    x = planner.realize(source)
    if not _is_matrix(x):
        x = planner.as_laid_out(x, contiguous_strides)
    image = _as_image(x)
    step = ConvStep(
        out=image,
        x=image,
        weight=planner.constant(weight.contiguous().reshape(width, depth, 1, 1), f"{node.name}_weight"),
        stride=(1, 1),
        padding=(0, 0),
        dilation=(1, 1),
        groups=1,
        transposed=False,
        body=COPY,
        operands=(),
        tf32=planner.tf32[1],
    )
    result = (*shape[:-1], width)

    def emit(out: Ref, body: Body, operands: tuple[Ref, ...]) -> Step:
        return dataclasses.replace(step, out=_as_image(out), body=body, operands=tuple(map(_as_image, operands)))

    def takes(ref: Ref) -> bool:
        return _is_matrix(ref) and operand_kind(_as_image(ref)) is not None

    value: Expression = Anchor(result, emit, takes, contiguous_strides, _is_matrix)
    if bias is not None:
        value = Node("add", (value, planner.constant(bias, f"{node.name}_bias")))
    return Lazy(value, result, dtype)


def _is_matrix(ref: Ref) -> bool:
    """Return whether a tensor ``(…, K)`` is a matrix whose rows are equally far apart, or broadcast to one."""
    strides = [0 if size == 1 else stride for size, stride in zip(ref.shape, ref.strides)]
    if ref.shape[-1] > 1 and strides[-1] not in (0, 1):
        return False
    leading = [(size, stride) for size, stride in zip(ref.shape[:-1], strides[:-1]) if size > 1]
    if all(not stride for _, stride in leading):
        return True
    return strides[-1] == 1 and all(outer[1] == inner[1] * inner[0] for outer, inner in zip(leading, leading[1:]))


def _as_image(ref: Ref) -> Ref:
    """Return a tensor ``(…, K)`` as an image ``(1, K, rows, 1)``."""
    rows = math.prod(ref.shape[:-1])
    strides = [stride for size, stride in zip(ref.shape[:-1], ref.strides[:-1]) if size > 1]
    row = strides[-1] if strides else ref.shape[-1]
    return Ref(ref.buffer, (1, ref.shape[-1], rows, 1), (row * rows, ref.strides[-1] if ref.shape[-1] > 1 else 1, row, row), ref.offset)


# -- windows ----------------------------------------------------------------------------------------------------------------------------


def _pool(planner: Planner, node: fx.Node, args: dict[str, Any], kind: str, divisor: str | int) -> Lazy | None:
    source = args["self"]
    if len(_shape(source)) != 4 or specs.tensor_of(source).dtype not in FLOATS:
        return None
    kernel = _pair(args["kernel_size"])
    x = planner.channels_last(source)
    step = PoolStep(
        out=x,
        x=x,
        kind=kind,
        kernel=kernel,
        stride=_pair(args["stride"]) if args["stride"] else kernel,
        padding=_pair(args["padding"]),
        dilation=_pair(args.get("dilation", 1), 1),
        divisor=divisor,
        body=COPY,
        operands=(),
    )

    def emit(out: Ref, body: Body, operands: tuple[Ref, ...]) -> Step:
        return dataclasses.replace(step, out=out, body=body, operands=operands)

    return Lazy(Anchor(_shape(node), emit, strides=channels_last_strides), _shape(node), specs.tensor_of(node).dtype)


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
    source, out = args["self"], _shape(node)
    if out[-1] == out[-2] == 1:
        found: Lazy | None = _reduce(planner, node, source, (len(out) - 2, len(out) - 1), "mean", keepdim=True)
        return found
    shape = _shape(source)
    if len(shape) == 4 and shape[2] % out[2] == 0 and shape[3] % out[3] == 0:
        kernel = (shape[2] // out[2], shape[3] // out[3])
        return _pool(planner, node, {"self": source, "kernel_size": kernel, "stride": kernel, "padding": 0}, "avg", "window")
    return None


# -- reductions -------------------------------------------------------------------------------------------------------------------------


def _prologue(planner: Planner, source: fx.Node) -> tuple[Body, tuple[Ref, ...], tuple[int, ...]] | None:
    """Return how the elements of a value are computed where they are read: its waiting element-wise work, or the value itself."""
    if specs.tensor_of(source).dtype not in FLOATS:
        return None
    shape = _shape(source)
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
    return ref.like(ref.meta().reshape(_shape(node)))


def _small_sum(planner: Planner, node: fx.Node, source: fx.Node, dim: int, kind: str, keepdim: bool) -> Lazy:
    """The sum of a few slices is element-wise arithmetic on them."""
    shape = _shape(source)
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
    return Lazy(total, _shape(node), specs.tensor_of(node).dtype)


def _reduction(kind: str) -> Rule:
    def rule(planner: Planner, node: fx.Node, args: dict[str, Any]) -> Any:
        source = args["self"]
        rank = len(_shape(source))
        given = args.get("dim")
        dims = range(rank) if given is None or given == [] else given if isinstance(given, (list, tuple)) else [given]
        return _reduce(planner, node, source, tuple(sorted(dim % rank for dim in dims)), kind, keepdim=bool(args.get("keepdim")))

    return rule


def _row(
    planner: Planner, node: fx.Node, source: fx.Node, dims: tuple[int, ...], kind: str, eps: float = 0.0
) -> Lazy | None:
    found = _prologue(planner, source)
    dtype = specs.tensor_of(node).dtype
    shape = _shape(source)
    if found is None or dtype not in FLOATS or not 0 < math.prod(shape[dim] for dim in dims) <= ROW_LIMIT or not math.prod(shape):
        return None
    prologue, inputs, _ = found

    def emit(out: Ref, body: Body, operands: tuple[Ref, ...]) -> Step:
        return RowStep(out, inputs, prologue, dims, kind, eps, body, operands)

    return Lazy(Anchor(shape, emit, strides=lambda sizes: strides_like(inputs, sizes)), shape, dtype)


def _softmax(kind: str) -> Rule:
    def rule(planner: Planner, node: fx.Node, args: dict[str, Any]) -> Lazy | None:
        rank = len(_shape(args["self"]))
        return _row(planner, node, args["self"], (args["dim"] % rank,), kind) if rank else None

    return rule


def _layer_norm(planner: Planner, node: fx.Node, args: dict[str, Any]) -> Lazy | None:
    weight, bias = planner.constant_of(args["weight"]), planner.constant_of(args["bias"])
    if (args["weight"] is not None and weight is None) or (args["bias"] is not None and bias is None):
        return None
    rank, count = len(_shape(args["input"])), len(args["normalized_shape"])
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
    shape = _shape(node)
    channels = (1, -1, *(1 for _ in shape[2:]))
    planner.keep_one_anchor([source], shape)
    value = Node("mul", (planner.expression(source, shape), planner.constant(scale.float().reshape(channels), f"{node.name}_scale")))
    return Lazy(Node("add", (value, planner.constant(shift.float().reshape(channels), f"{node.name}_shift"))), shape, specs.tensor_of(node).dtype)


# -- joining ----------------------------------------------------------------------------------------------------------------------------


def _cat(planner: Planner, node: fx.Node, args: dict[str, Any]) -> Ref | None:
    """The parts are stored where they belong; those that are in memory already are copied there."""
    fake = specs.tensor_of(node)
    sources = [part for part in args["tensors"] if math.prod(_shape(part))]
    if fake.dtype not in FLOATS or any(specs.tensor_of(part).dtype != fake.dtype for part in sources):
        return None
    shape, rank = _shape(node), fake.dim()
    dim = args["dim"] % rank
    out = planner.new(shape, fake.dtype, channels_last_strides(shape) if rank == 4 else contiguous_strides(shape), node.name)
    begin = 0
    for part in sources:
        size = _shape(part)[dim]
        place = out.like(out.meta().narrow(dim, begin, size))
        value = planner.values[part]
        is_new = isinstance(value, Lazy) and len(part.users) == 1
        planner.store(value if is_new else Lazy(planner.realize(part), _shape(part), fake.dtype), out=place)
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
        _convolution,
    ),
    aten.linear.default: _linear,
    aten.addmm.default: _addmm,
    aten.mm.default: _mm,
    aten.matmul.default: _mm,
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
}
"""The rule of each operator."""

"""How convolutions and matrix products are planned."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import fx

from tiacc.backends.cudnn import folding
from tiacc.backends.cudnn.body import COPY, Body
from tiacc.backends.cudnn.layouts import FLOATS, as_image, channels_last_strides, contiguous_strides, is_matrix, operand_kind
from tiacc.backends.cudnn.lazy import Anchor, Expression, Lazy, Node
from tiacc.backends.cudnn.planner import Planner, pair, shape_of
from tiacc.backends.cudnn.program import ConvStep, Ref, Step
from tiacc.backends.cudnn.waiting_views import Turn, permutation, viewed
from tiacc.graph import specs


def convolution(planner: Planner, node: fx.Node, args: dict[str, Any]) -> Lazy | Ref | None:
    """2-D convolutions, transposed ones too; 1-D ones as images of one row."""
    source, weight_node = args["input"], args["weight"]
    rank = len(shape_of(source)) - 2
    weight = planner.constant_of(weight_node)
    name = str(node.target)
    transposed = bool(args.get("transposed", "transpose" in name))
    if rank not in (1, 2) or weight is None or len(shape_of(source)) != weight.dim() or isinstance(args["padding"], str):
        return None
    if specs.tensor_of(node).dtype not in FLOATS or specs.tensor_of(source).dtype != weight.dtype:
        return None
    bias = args["bias"]
    if bias is not None and planner.constant_of(bias) is None:
        return None
    stride, padding, dilation = pair(args["stride"], 1), pair(args["padding"]), pair(args["dilation"], 1)
    if rank == 1:
        stride, padding, dilation = (1, stride[1]), (0, padding[1]), (1, dilation[1])
        weight = weight.unsqueeze(2)
        ref = _image_of_rows(planner, source)
    else:
        folded = _folded(planner, source, weight, stride, padding, dilation) if not transposed and args["groups"] == 1 else None
        if folded is not None:
            ref, weight, padding = folded
            stride = (1, 1)
        else:
            ref = planner.image(source)
    shape = shape_of(node)
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


def _folded(
    planner: Planner, source: fx.Node, weight: torch.Tensor, stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> tuple[Ref, torch.Tensor, tuple[int, int]] | None:
    """Return the input of a network folded by the stride of its first layer, and the weight and padding that go with it."""
    _, channels, height, width = shape_of(source)
    fold = stride[0]
    if stride != (fold, fold) or fold == 1 or dilation != (1, 1) or channels > folding.CHANNELS or height % fold or width % fold:
        return None
    ref = planner.fold_input(source, fold)
    return None if ref is None else (ref, *folding.weight(weight, fold, padding))


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


def linear(planner: Planner, node: fx.Node, args: dict[str, Any]) -> Lazy | None:
    """A matrix product with the transpose of a constant."""
    return _product(planner, node, args["input"], args["weight"], args["bias"], is_transposed=True)


def addmm(planner: Planner, node: fx.Node, args: dict[str, Any]) -> Lazy | None:
    """A matrix product with a constant, and a sum."""
    if args["alpha"] != 1 or args["beta"] != 1:
        return None
    return _product(planner, node, args["mat1"], args["mat2"], args["self"], is_transposed=False)


def mm(planner: Planner, node: fx.Node, args: dict[str, Any]) -> Lazy | None:
    """A matrix product with a constant."""
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
    shape = shape_of(source)
    if weight is None or weight.dim() != 2 or len(shape) < 2 or dtype not in FLOATS:
        return None
    if weight.dtype != dtype or specs.tensor_of(source).dtype != dtype:
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
    turn = None
    if not is_matrix(x):
        turn = _row_order(x)
        x = x.like(turn.forth(x.meta())) if turn is not None else planner.as_laid_out(x, contiguous_strides)
    image = as_image(x)
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
    result = (*x.shape[:-1], width)

    def emit(out: Ref, body: Body, operands: tuple[Ref, ...]) -> Step:
        return dataclasses.replace(step, out=as_image(out), body=body, operands=tuple(map(as_image, operands)))

    def takes(ref: Ref) -> bool:
        return is_matrix(ref) and operand_kind(as_image(ref)) is not None

    value: Expression = Anchor(result, emit, takes, contiguous_strides, is_matrix)
    if bias is not None:
        value = Node("add", (value, planner.constant(bias, f"{node.name}_bias")))
    lazy = Lazy(value, result, dtype)
    return lazy if turn is None else viewed(lazy, Turn((*shape[:-1], width), turn.back, turn.forth))


def _row_order(x: Ref) -> Turn | None:
    """Return the order of the leading dimensions in which the rows of a tensor are equally far apart; None where there is none."""
    order = sorted(range(len(x.shape) - 1), key=lambda dim: -x.strides[dim] if x.shape[dim] > 1 else 0)
    turn = permutation([*order, len(x.shape) - 1], x.shape)
    return turn if is_matrix(x.like(turn.forth(x.meta()))) else None

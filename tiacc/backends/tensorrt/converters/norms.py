"""Norms of vectors and matrices, and distances made of them. They are computed in float32, as torch sums them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.backends.tensorrt.conversion import Conversion
from tiacc.backends.tensorrt.converters import FLOATS, converts
from tiacc.backends.tensorrt.converters.reduction import reduced
from tiacc.backends.tensorrt.extents import axes_of
from tiacc.backends.tensorrt.layers import Tensor
from tiacc.backends.tensorrt.shaping import Value

aten = torch.ops.aten


def norm_of(net: Conversion, value: Tensor, order: float, axes: Sequence[int], keepdim: bool = False) -> Tensor:
    """Return (Σ |x|ᵖ)^(1/p) over some dimensions; the largest or smallest |x| for p = ±∞, and how many x are not 0 for p = 0."""
    if order == 2:
        return net.unary("SQRT", reduced(net, "SUM", net.binary("PROD", value, value), axes, keepdim))
    size = net.unary("ABS", value)
    if order in (1, math.inf, -math.inf):
        return reduced(net, {1: "SUM", math.inf: "MAX", -math.inf: "MIN"}[order], size, axes, keepdim)
    if order == 0:
        is_set = net.logical_not(net.binary("EQUAL", value, 0.0))
        return reduced(net, "SUM", net.cast(is_set, net.dtype(value)), axes, keepdim)
    return net.binary("POW", reduced(net, "SUM", net.binary("POW", size, float(order)), axes, keepdim), 1 / order)


def _norm(call: Call, order: float | None, axes: Sequence[int]) -> Value:
    value = call.tensor("self", torch.float32)
    return call.net.cast(norm_of(call.net, value, 2 if order is None else order, axes, bool(call.args.get("keepdim"))), call.dtype)


def _all_axes(view: NodeView) -> list[int]:
    return axes_of(view) if "dim" in view.args else list(range(view.fake("self").dim()))


@converts(
    aten.norm.Scalar, aten.norm.ScalarOpt_dim, aten.norm.ScalarOpt_dim_dtype, aten.norm.ScalarOpt_dtype, dtypes=FLOATS
)
def norm(call: Call) -> Value:
    """A norm of vectors."""
    return _norm(call, call.number("p"), _all_axes(call))


@converts(aten.linalg_vector_norm.default, dtypes=FLOATS)
def vector_norm(call: Call) -> Value:
    """A norm of vectors."""
    return _norm(call, call.number("ord"), _all_axes(call))


@converts(aten.frobenius_norm.dim, dtypes=FLOATS)
def frobenius_norm(call: Call) -> Value:
    """The root of the sum of the squares."""
    return _norm(call, 2, _all_axes(call))


def _matrix_check(view: NodeView) -> Support:
    order, dim = view.value("ord"), view.value("dim")
    rank = view.fake("self").dim()
    count = rank if dim is None else len(dim) if isinstance(dim, (list, tuple)) else 1
    if order is None or order == "fro" or (count == 1 and not isinstance(order, str)):
        return SUPPORTED
    return SUPPORTED if order in (1, -1, math.inf, -math.inf) else Support(False, f"the matrix norm {order!r} needs singular values")


@converts(
    aten.linalg_norm.default,
    aten.linalg_norm.ord_str,
    aten.linalg_matrix_norm.default,
    aten.linalg_matrix_norm.str_ord,
    dtypes=FLOATS,
    check=_matrix_check,
)
def matrix_norm(call: Call) -> Value:
    """A norm of vectors or matrices: the root of the squares' sum, or the largest or smallest sum of a row or column."""
    order, dims = call.number("ord"), call.args["dim"]
    axes = _all_axes(call)
    if order in (None, "fro") or len(axes) == 1:
        return _norm(call, None if order == "fro" else order, axes)
    net, keepdim = call.net, bool(call.args["keepdim"])
    rows, columns = (dim % call.fake("self").dim() for dim in (dims or (0, 1)))
    summed, compared = (rows, columns) if abs(order) == 1 else (columns, rows)
    sums = net.reduce("SUM", net.unary("ABS", call.tensor("self", torch.float32)), (summed,), keepdim=True)
    found = net.reduce("MAX" if order > 0 else "MIN", sums, (compared,), keepdim=True)
    return net.cast(found if keepdim else net.squeeze(found, [rows, columns]), call.dtype)


# -- distances --------------------------------------------------------------------------------------------------------------------


@converts(aten.dist.default, dtypes=FLOATS)
def dist(call: Call) -> Value:
    """The norm of a difference."""
    net = call.net
    difference = net.binary("SUB", call.operand("self"), call.operand("other"), torch.float32)
    return net.cast(norm_of(net, difference, call.number("p"), range(net.rank(difference))), call.dtype)


@converts(aten.pairwise_distance.default, dtypes=FLOATS)
def pairwise_distance(call: Call) -> Value:
    """The norms of the differences of vectors, each difference raised by eps."""
    net = call.net
    difference = net.binary("SUB", call.operand("x1"), call.operand("x2"), torch.float32)
    shifted = net.binary("SUM", difference, float(call.number("eps")))
    axis = net.rank(shifted) - 1
    return net.cast(norm_of(net, shifted, call.number("p"), [axis], bool(call.number("keepdim"))), call.dtype)


@converts(aten.cosine_similarity.default, dtypes=FLOATS)
def cosine_similarity(call: Call) -> Value:
    """x₁ · x₂ / (max(‖x₁‖, ε) · max(‖x₂‖, ε)) along a dimension."""
    net = call.net
    first, second = net.align(call.operand("x1"), call.operand("x2"), dtype=torch.float32)
    axis = call.number("dim") % max(net.rank(first), 1)
    eps = float(call.number("eps"))
    if net.rank(first):  # both are broadcast along the dimension before their lengths are taken
        sizes = [net.shape(value) for value in (first, second)]
        count = sizes[1][axis] if isinstance(sizes[0][axis], int) and sizes[0][axis] == 1 else sizes[0][axis]
        first, second = (
            net.expand(value, [count if place == axis else size for place, size in enumerate(shape)])
            for value, shape in zip((first, second), sizes)
        )
    units = [
        net.binary("DIV", value, net.binary("MAX", norm_of(net, value, 2, [axis], keepdim=True), eps))
        for value in (first, second)
    ]
    return net.cast(reduced(net, "SUM", net.binary("PROD", *units), (axis,)), call.dtype)


@converts(aten.cdist.default, dtypes=FLOATS)
def cdist(call: Call) -> Value:
    """The distances of all pairs of two sets of vectors."""
    net = call.net
    first = net.unsqueeze(call.tensor("x1", torch.float32), [-2])
    second = net.unsqueeze(call.tensor("x2", torch.float32), [-3])
    difference = net.binary("SUB", first, second)
    return net.cast(norm_of(net, difference, call.number("p"), [net.rank(difference) - 1]), call.dtype)

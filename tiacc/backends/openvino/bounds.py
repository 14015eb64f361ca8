"""How large the integers of a graph can get.

OpenVINO's CPU kernels hold integers in 32 bits, and compute comparisons, quotients, sums and clamps of them in float32. So an
operator on integers is supported where its values are known to stay below 2**31, or below 2**24 where float32 is between. What is
known comes from the graph: constants, sizes, indices, results of comparisons. Of an integer input of the graph nothing is known; it
is taken to be below `SMALL`, and the engine checks it in each call (against a wider limit if the subgraph allows, `input_limits`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from tiacc.backends.openvino.lowering import name_of
from tiacc.graph import arguments, specs
from tiacc.graph.types import Dim

EXACT = 2**31 - 1
"""The largest magnitude of an integer in 32 bits."""
FLOATED = 2**24
"""The largest magnitude up to which float32 holds every integer."""
SMALL = 2**20
"""The magnitude that integer inputs are taken to have; more than any vocabulary."""

_VISIT_LIMIT = 256


@dataclass(frozen=True)
class Interval:
    """What an integer can be.

    Attributes:
        low: The least value.
        high: The greatest value.
        is_certain: Whether it follows from the graph alone, without the limit on inputs.
    """

    low: float
    high: float
    is_certain: bool = True

    @property
    def magnitude(self) -> float:
        """The largest absolute value."""
        return max(-self.low, self.high)

    def within(self, limit: float) -> bool:
        """Return whether every value is at most `limit` in magnitude."""
        return self.magnitude <= limit


UNKNOWN = Interval(-math.inf, math.inf)

_RANGES = {
    torch.bool: Interval(0, 1),
    torch.uint8: Interval(0, 255),
    torch.int8: Interval(-128, 127),
    torch.int16: Interval(-(2**15), 2**15 - 1),
}
_NOT_VALUES = frozenset({"index", "indices", "mask", "condition", "dim", "dims", "boundaries", "sorted_sequence"})
_NUMBERS_THAT_ARE_VALUES = frozenset({"value", "other", "fill_value", "min", "max", "start", "end", "self"})


class Analysis:
    """The intervals of the nodes of one graph."""

    def __init__(self, limit_of: Callable[[fx.Node], int], visit_limit: float = _VISIT_LIMIT) -> None:
        """Begin an analysis.

        Args:
            limit_of: The magnitude that a node of unknown values is taken to have.
            visit_limit: After so many nodes, values count as unbounded.
        """
        self._limit_of = limit_of
        self._visits_left = visit_limit
        self._known: dict[fx.Node, Interval] = {}

    def of(self, item: Any) -> Interval:
        """Return the interval of a node's values, or of a number or a list of numbers and nodes."""
        if isinstance(item, (list, tuple)):
            return hull([self.of(member) for member in item])
        if not isinstance(item, fx.Node):
            return Interval(item, item) if isinstance(item, (int, float)) else Interval(0, 0)
        if item not in self._known:
            if self._visits_left <= 0:
                return UNKNOWN
            self._visits_left -= 1
            self._known[item] = self._infer(item)
        return self._known[item]

    def _infer(self, node: fx.Node) -> Interval:
        value = node.meta.get("val")
        if isinstance(value, (int, torch.SymInt)):
            size = specs.dim_of(value) if isinstance(value, torch.SymInt) else value
            return Interval(size.min, size.max) if isinstance(size, Dim) else Interval(size, size)
        if node.target is operator.getitem:
            return self._infer_item(*node.args)  # type: ignore[arg-type]
        if not isinstance(value, torch.Tensor):
            return UNKNOWN
        limit = self._limit_of(node)
        leaf = _RANGES.get(value.dtype, Interval(-limit, limit, is_certain=False))
        if node.op == "get_attr":
            return _range_of_constant(node) or leaf
        rule = _TRANSFERS.get(name_of(node))
        if node.op != "call_function" or rule is None or value.dtype in _RANGES:
            return leaf
        found = rule(self, node, arguments.bound(node))
        return found if found.is_certain else hull([found, leaf])

    def _infer_item(self, source: fx.Node, index: int) -> Interval:
        value = source.meta["val"][index]
        if name_of(source) in _INDEX_RESULTS and index == 1:
            given = arguments.bound(source)
            return Interval(0, _greatest_size(source, given, given.get("dim", -1)) - 1)
        if value.dtype in _RANGES:
            return _RANGES[value.dtype]
        return self.values_of(arguments.bound(source))

    def values_of(self, given: dict[str, Any]) -> Interval:
        """Return the hull of the arguments that are values: neither indices nor masks nor sizes."""
        found = [self.of(item) for name, item in given.items() if name not in _NOT_VALUES and _is_value(name, item)]
        return hull(found) if found else UNKNOWN


def hull(intervals: Sequence[Interval]) -> Interval:
    """Return the least interval that holds all of `intervals`."""
    if not intervals:
        return Interval(0, 0)
    return Interval(
        min(item.low for item in intervals), max(item.high for item in intervals), all(item.is_certain for item in intervals)
    )


def input_limits(gm: fx.GraphModule) -> tuple[int, ...]:
    """Return, for each placeholder, the largest magnitude that its integers may have; 0 where there is no limit.

    It is the widest of `EXACT`, `FLOATED` and `SMALL` with which all that is computed stays exact.
    """
    from tiacc.backends.openvino.rules import integer_complaint

    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    integers = [node for node in placeholders if specs.is_tensor(node) and specs.tensor_of(node).dtype in (torch.int64, torch.int32)]
    limits = dict.fromkeys(integers, SMALL)

    def is_exact() -> bool:
        analysis = Analysis(lambda node: limits.get(node, SMALL), math.inf)
        return not any(integer_complaint(node, analysis) for node in gm.graph.nodes if node.op == "call_function")

    for node in integers:
        for limit in (EXACT, FLOATED):
            limits[node] = limit
            if is_exact():
                break
        else:
            limits[node] = SMALL
    return tuple(
        0 if node not in limits or (limits[node] == EXACT and specs.tensor_of(node).dtype == torch.int32) else limits[node]
        for node in placeholders
    )


def _is_value(name: str, item: Any) -> bool:
    if isinstance(item, (list, tuple)):
        return any(isinstance(member, fx.Node) and specs.is_tensor(member) for member in item)
    if isinstance(item, fx.Node) and specs.is_tensor(item):
        return True
    return name in _NUMBERS_THAT_ARE_VALUES and item is not None and not isinstance(item, bool)


def _range_of_constant(node: fx.Node) -> Interval | None:
    module = node.graph.owning_module
    if module is None:
        return None
    tensor = specs.fetch_attr(module, str(node.target))
    if tensor.dtype.is_floating_point or tensor.is_complex() or not tensor.numel():
        return None
    low, high = torch.aminmax(tensor.to(torch.int64))
    return Interval(int(low), int(high))


def _greatest_size(node: fx.Node, given: dict[str, Any], dims: Any) -> float:
    """Return the greatest number of elements along `dims` of an operator's first tensor; all of them for None."""
    shape = specs.spec_of(specs.tensor_of(given["self"])).sizes("max")
    if dims is None or dims == []:
        return math.prod(shape)
    chosen = [dims] if isinstance(dims, int) else dims
    return math.prod(shape[dim] for dim in chosen) if shape else 1


# -- how operators change intervals ------------------------------------------------------------------------------------------------

_Transfer = Callable[[Analysis, fx.Node, "dict[str, Any]"], Interval]


def _scaled(item: Interval, factor: float) -> Interval:
    bounds = (item.low * factor, item.high * factor)
    return Interval(min(bounds), max(bounds), item.is_certain)


def _moved(analysis: Analysis, node: fx.Node, given: dict[str, Any]) -> Interval:
    return analysis.values_of(given)


def _added(sign: int, *, is_reversed: bool = False) -> _Transfer:
    def transfer(analysis: Analysis, node: fx.Node, given: dict[str, Any]) -> Interval:
        alpha = given.get("alpha", 1)
        if not isinstance(alpha, (int, float)):
            return UNKNOWN
        first, second = analysis.of(given["self"]), analysis.of(given["other"])
        if is_reversed:
            first, second = second, _scaled(first, alpha)
        else:
            second = _scaled(second, alpha)
        second = _scaled(second, sign)
        return Interval(first.low + second.low, first.high + second.high, first.is_certain and second.is_certain)

    return transfer


def _multiplied(analysis: Analysis, node: fx.Node, given: dict[str, Any]) -> Interval:
    first, second = analysis.of(given["self"]), analysis.of(given["other"])
    products = [a * b if a and b else 0 for a in (first.low, first.high) for b in (second.low, second.high)]
    return Interval(min(products), max(products), first.is_certain and second.is_certain)


def _negated(analysis: Analysis, node: fx.Node, given: dict[str, Any]) -> Interval:
    return _scaled(analysis.of(given["self"]), -1)


def _absolute(analysis: Analysis, node: fx.Node, given: dict[str, Any]) -> Interval:
    item = analysis.of(given["self"])
    return Interval(0, item.magnitude, item.is_certain)


def _complement(analysis: Analysis, node: fx.Node, given: dict[str, Any]) -> Interval:
    item = analysis.of(given["self"])
    return Interval(-item.high - 1, -item.low - 1, item.is_certain)


def _divided(analysis: Analysis, node: fx.Node, given: dict[str, Any]) -> Interval:
    item = analysis.of(given["self"])
    return Interval(-item.magnitude, item.magnitude, item.is_certain)


def _modulo(analysis: Analysis, node: fx.Node, given: dict[str, Any]) -> Interval:
    divisor = analysis.of(given["other"])
    if "remainder" in name_of(node):  # it has the sign of the divisor
        return Interval(min(0, divisor.low + 1), max(0, divisor.high - 1), divisor.is_certain)
    return Interval(-divisor.magnitude + 1, divisor.magnitude - 1, divisor.is_certain)


def _clamped(analysis: Analysis, node: fx.Node, given: dict[str, Any]) -> Interval:
    item, low, high = analysis.of(given["self"]), given.get("min"), given.get("max")
    if any(isinstance(end, fx.Node) for end in (low, high)):
        return hull([item, analysis.of(low), analysis.of(high)])
    ends = [(-math.inf if low is None else low), (math.inf if high is None else high)]
    clamped = [min(max(end, ends[0]), ends[1]) for end in (item.low, item.high)]
    return Interval(clamped[0], clamped[1], item.is_certain or (low is not None and high is not None))


def _summed(analysis: Analysis, node: fx.Node, given: dict[str, Any]) -> Interval:
    count = _greatest_size(node, given, given.get("dim"))
    item = analysis.of(given["self"])
    return hull([_scaled(item, count), Interval(0, 0)])


def _accumulated(analysis: Analysis, node: fx.Node, given: dict[str, Any]) -> Interval:
    item = analysis.of(given["self"])
    return hull([item, _scaled(item, _greatest_size(node, given, given["dim"]))])


def _index(analysis: Analysis, node: fx.Node, given: dict[str, Any]) -> Interval:
    return Interval(0, _greatest_size(node, given, given.get("dim")) - 1)


def _counted(analysis: Analysis, node: fx.Node, given: dict[str, Any]) -> Interval:
    return Interval(0, _greatest_size(node, given, given.get("dim")))


def _bucket(analysis: Analysis, node: fx.Node, given: dict[str, Any]) -> Interval:
    edges = given["boundaries"] if "boundaries" in given else given["sorted_sequence"]
    return Interval(0, specs.spec_of(specs.tensor_of(edges)).sizes("max")[-1])


def _bits(analysis: Analysis, node: fx.Node, given: dict[str, Any]) -> Interval:
    item = hull([analysis.of(given["self"]), analysis.of(given["other"])])
    if not item.within(EXACT):
        return UNKNOWN
    bound = 2 ** int(item.magnitude).bit_length()
    return Interval(-bound if item.low < 0 else 0, bound, item.is_certain)


def _converted(analysis: Analysis, node: fx.Node, given: dict[str, Any]) -> Interval:
    if specs.tensor_of(given["self"]).dtype.is_floating_point:
        return Interval(-EXACT, EXACT)  # to what OpenVINO clips it
    return analysis.of(given["self"])


def _filled(analysis: Analysis, node: fx.Node, given: dict[str, Any]) -> Interval:
    return analysis.of(next(given[name] for name in ("fill_value", "value", "s") if name in given))


def _zero_or_one(analysis: Analysis, node: fx.Node, given: dict[str, Any]) -> Interval:
    return Interval(0, 1)


def _sign(analysis: Analysis, node: fx.Node, given: dict[str, Any]) -> Interval:
    return Interval(-1, 1)


def _counting(analysis: Analysis, node: fx.Node, given: dict[str, Any]) -> Interval:
    return hull([analysis.of(given.get("start", 0)), analysis.of(given["end"])])


def _table(entries: dict[str, _Transfer]) -> dict[str, _Transfer]:
    return {name: transfer for names, transfer in entries.items() for name in names.split()}


_INDEX_RESULTS = frozenset({"max.dim", "min.dim", "sort.default", "sort.stable", "topk.default", "kthvalue.default"})

MOVES = (
    "alias.default clone.default contiguous.default detach.default view.default reshape.default reshape_as.default view_as.default "
    "flatten.using_ints unflatten.int squeeze.default squeeze.dim squeeze.dims unsqueeze.default permute.default transpose.int "
    "t.default numpy_T.default mT.default movedim.intlist movedim.int swapaxes.default swapdims.default expand.default "
    "expand_as.default broadcast_to.default cat.default concat.default concatenate.default stack.default hstack.default "
    "vstack.default dstack.default column_stack.default slice.Tensor select.int narrow.default index_select.default gather.default "
    "take_along_dim.default flip.default fliplr.default flipud.default roll.default rot90.default repeat.default tile.default "
    "repeat_interleave.self_int tril.default triu.default constant_pad_nd.default pad.default where.self where.ScalarSelf "
    "where.ScalarOther where.Scalar masked_fill.Scalar masked_fill.Tensor pixel_shuffle.default pixel_unshuffle.default "
    "unfold.default index.Tensor embedding.default dropout.default feature_dropout.default ravel.default positive.default "
    "select_scatter.default slice_scatter.default scatter.src scatter.value index_put.default index_copy.default "
    "atleast_1d.default atleast_2d.default atleast_3d.default lift_fresh.default lift_fresh_copy.default resolve_neg.default "
    "resolve_conj.default maximum.default minimum.default max.other min.other amax.default amin.default max.default min.default "
    "floor.default ceil.default round.default trunc.default new_full.default im2col.default as_strided.default "
    "channel_shuffle.default"
)
"""The operators whose results are some of the values that they are given."""

_TRANSFERS: dict[str, _Transfer] = _table(
    {
        MOVES: _moved,
        "add.Tensor add.Scalar": _added(1),
        "sub.Tensor sub.Scalar": _added(-1),
        "rsub.Tensor rsub.Scalar": _added(-1, is_reversed=True),
        "mul.Tensor mul.Scalar": _multiplied,
        "neg.default": _negated,
        "abs.default": _absolute,
        "bitwise_not.default": _complement,
        "floor_divide.default floor_divide.Scalar div.Tensor_mode div.Scalar_mode": _divided,
        "remainder.Tensor remainder.Scalar fmod.Tensor fmod.Scalar": _modulo,
        "clamp.default clamp.Tensor clamp_min.default clamp_max.default clamp_min.Tensor clamp_max.Tensor relu.default": _clamped,
        "sum.default sum.dim_IntList": _summed,
        "cumsum.default": _accumulated,
        "argmax.default argmin.default argsort.default argsort.stable": _index,
        "count_nonzero.default count_nonzero.dim_IntList": _counted,
        "bucketize.Tensor searchsorted.Tensor": _bucket,
        "bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor bitwise_and.Scalar bitwise_or.Scalar bitwise_xor.Scalar "
        "__and__.Tensor __or__.Tensor __and__.Scalar __or__.Scalar": _bits,
        "to.dtype to.device to.other to.dtype_layout type_as.default _to_copy.default": _converted,
        "full.default full_like.default fill.Scalar fill.Tensor scalar_tensor.default": _filled,
        "zeros.default ones.default zeros_like.default ones_like.default new_zeros.default new_ones.default one_hot.default eye.default "
        "eye.m empty.memory_format empty_like.default new_empty.default": _zero_or_one,
        "sign.default sgn.default": _sign,
        "arange.default arange.start arange.start_step": _counting,
    }
)

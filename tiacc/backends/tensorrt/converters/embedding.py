"""Embeddings: rows of a table by index, one by one or in bags."""

from __future__ import annotations

import itertools
import math

import torch

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.backends.tensorrt.converters import converts
from tiacc.backends.tensorrt.converters.indexing import gathered
from tiacc.backends.tensorrt.extents import cut
from tiacc.backends.tensorrt.shaping import Value
from tiacc.graph.specs import fetch_attr

aten = torch.ops.aten

BAGS = 256
"""The most bags that are cut out one by one, where their sizes differ."""


@converts(aten.embedding.default, symbolic=("padding_idx",))
def embedding(call: Call) -> Value:
    """Rows of a table by index."""
    return gathered(call.net, call.operand("weight"), call.operand("indices"), 0)


def _borders(view: NodeView) -> list[int]:
    """Return where bags begin, and where the last one ends."""
    node = view.args["offsets"]
    offsets = [int(offset) for offset in fetch_attr(node.graph.owning_module, str(node.target)).tolist()]
    return offsets if view.value("include_last_offset") else [*offsets, int(view.fake("indices").shape[0])]


def _bag_check(view: NodeView) -> Support:
    if any(view.is_used(index) for index in (1, 2, 3)):
        return Support(False, "the maps of embedding_bag, which serve its gradient, are used")
    if not view.is_constant("offsets") or not view.is_static("indices"):
        return Support(False, "embedding_bag with bags that are known only when the engine runs")
    if view.args.get("padding_idx") not in (None, -1):
        return Support(False, "embedding_bag with a padding index")
    borders = _borders(view)
    if len(set(_counts(borders))) > 1 and len(borders) > BAGS:
        return Support(False, f"embedding_bag of more than {BAGS} bags of different sizes")
    return SUPPORTED


def _counts(borders: list[int]) -> list[int]:
    return [end - start for start, end in itertools.pairwise(borders)]


@converts(
    aten.embedding_bag.default,
    aten.embedding_bag.padding_idx,
    aten._embedding_bag.default,
    aten._embedding_bag_forward_only.default,
    check=_bag_check,
)
def embedding_bag(call: Call) -> list[Value | None]:
    """Sums, means or maxima of rows of a table, bag by bag; zeros for an empty bag."""
    net, dtype = call.net, call.dtype
    rows: Value = gathered(net, call.operand("weight"), call.operand("indices"), 0)
    if call.args["per_sample_weights"] is not None:
        rows = net.binary("PROD", rows, net.unsqueeze(call.tensor("per_sample_weights", dtype), [1]))
    kind = ("SUM", "AVG", "MAX")[call.number("mode")]
    borders = _borders(call)
    counts, width = _counts(borders), int(net.shape(rows)[1])  # type: ignore[arg-type]
    if len(set(counts)) == 1 and counts[0]:
        used = cut(net, rows, 0, borders[0], math.prod((len(counts), counts[0])))
        return [net.reduce(kind, net.reshape(used, (len(counts), counts[0], width)), (1,)), None, None, None]
    bags = [
        net.reduce(kind, cut(net, rows, 0, start, count), (0,), keepdim=True) if count else torch.zeros(1, width, dtype=dtype)
        for start, count in zip(borders, counts)
    ]
    return [net.concat(bags, 0), None, None, None]

"""The types of tensors that a model's graph does not tell: seen while the model runs on examples.

Behind an operator whose result depends on data, or that the importer does not follow, nothing is known of shapes. A copy of the model is
run with a recorder behind every node, and what was seen is taken for what will be: a size that was the same in all runs is that size,
one that varied is a `Dim`. Regions that rely on it check it when they run, and keep the original code for when it is not so.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from tiacc.graph import torch_compat
from tiacc.graph.types import Dim, TensorSpec

EXAMPLES = 4
"""How many examples a model is run on."""

MARGIN = 4
"""How many times as large as any that was seen a size that varies may be."""

_library = torch.library.Library("tiacc", "FRAGMENT")
_library.define("observe(Tensor value, int index) -> ()", alias_analysis="CONSERVATIVE")


@dataclass
class _Record:
    """What was seen of one value, in the order of the runs."""

    dtypes: set[torch.dtype] = field(default_factory=set)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    devices: set[torch.device] = field(default_factory=set)
    is_odd: bool = False


_records: dict[int, _Record] = {}
_lock = threading.Lock()
"""Held while a model is observed: models of several threads take turns."""


def _observe(value: torch.Tensor | None, index: int) -> None:
    record = _records.setdefault(index, _Record())
    if value is None:  # a tensor that is not there, such as the weights that attention was not asked for
        record.is_odd = True
        return
    record.is_odd = record.is_odd or value.layout != torch.strided or value.is_quantized or value.requires_grad
    record.dtypes.add(value.dtype)
    record.devices.add(value.device)
    record.shapes.append(tuple(value.shape))


_library.impl("observe", _observe, "CompositeExplicitAutograd")


def observable(graph: torch_compat.Graph) -> list[torch_compat.Value]:
    """Return the values of a graph whose types can be seen, in an order that is the same for all copies of the graph."""
    found: list[torch_compat.Value] = []
    without_value = torch_compat.uninitialised_values(graph)
    for node in torch_compat.nodes_of(graph):
        if node.kind() != "prim::Constant":
            found.extend(value for value in torch_compat.outputs_of(node) if value.type().kind() == "TensorType")
        for block in torch_compat.blocks_of(node):
            found.extend(value for value in block.inputs() if value.type().kind() == "TensorType")
    return [value for value in found if value.unique() not in without_value]


def observe(module: torch.jit.ScriptModule, examples: Sequence[tuple[Any, ...]]) -> tuple[dict[int, TensorSpec], dict[str, Dim]]:
    """Run a model on examples and return what is seen.

    Args:
        module: A private copy of the model; it is of no use afterwards.
        examples: Arguments, one tuple a call. What the model changes in them stays changed.

    Returns:
        The type of each value that was seen and has one dtype, device and rank, by its place in `observable`; and the dimensions in
        these types, by name. Sizes that were the same as each other in all runs are one dimension.
    """
    graph = torch_compat.forward_graph(module)
    for index, value in enumerate(observable(graph)):
        torch_compat.insert_behind(graph, value, "tiacc::observe", index)
    with _lock, torch.no_grad(), torch.random.fork_rng():
        _records.clear()
        for example in examples[:EXAMPLES]:
            with suppress(Exception):  # a model may raise anything; what was seen until then was seen
                module(*example)
        records = dict(_records)
        _records.clear()
    dims: dict[tuple[int, ...], Dim] = {}
    found: dict[int, TensorSpec] = {}
    for index, record in records.items():
        ranks = {len(shape) for shape in record.shapes}
        if record.is_odd or len(record.dtypes) > 1 or len(record.devices) > 1 or len(ranks) > 1:
            continue
        sizes = [_size(seen, dims) for seen in zip(*record.shapes)]
        if all(size is not None for size in sizes):
            found[index] = TensorSpec(tuple(sizes), *record.dtypes, *record.devices)  # type: ignore[arg-type]
    return found, {dim.name: dim for dim in dims.values()}


def _size(seen: tuple[int, ...], dims: dict[tuple[int, ...], Dim]) -> int | Dim | None:
    """Return a size that was seen in all runs as a number or a dimension; None if it cannot be either."""
    if len(set(seen)) == 1:
        return seen[0] or None
    if seen not in dims:
        largest = max(seen)
        dims[seen] = Dim(f"observed{len(dims)}", 1, max(1, sorted(seen)[len(seen) // 2]), MARGIN * largest)
    return dims[seen]

"""TorchScript → fx: cut a model into regions.

The importer walks the TorchScript graph as an interpreter would, on abstract values: a tensor is a node of the region being built,
with its shape and dtype inferred at once; numbers, strings and containers that are known are Python objects. So sizes, ranks, dtypes
and ``is None`` tests fold as they are met, conditions on them pick their branch, short loops unroll, and in-place operators become
functional (`tiacc.graph.storage`). A node that cannot be followed ends the region and stays in TorchScript as it is, and the next
region begins behind it. What is inside the blocks of a branch or loop that stays is imported in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tiacc.graph import specs, torch_compat
from tiacc.graph.node_importer import MARK_SPLICE, NodeImporter, RestartError
from tiacc.graph.region_builder import UNKNOWN, Knowledge, RegionBuilder, unmark
from tiacc.graph.regions import ImportResult, Left, Region
from tiacc.graph.specs import TensorSpec
from tiacc.graph.storage import CannotImportError


@dataclass(frozen=True)
class Assumed:
    """An argument of ``forward`` that is assumed to have one value: the regions hold for that value only.

    Attributes:
        value: A number, a string, or None.
    """

    value: Any


def import_module(module: torch.jit.ScriptModule, inputs: Sequence[Any], keep_methods: Sequence[str] = ()) -> ImportResult:
    """Cut the ``forward`` of a model into regions.

    Args:
        module: The model. It is not changed; the regions belong to a copy (`ImportResult.module`).
        inputs: What is known of each argument of ``forward``: a `TensorSpec`, an `Assumed` value, or lists, tuples and dicts of
            these. Missing trailing ones, and ``...``, are unknown.
        keep_methods: Methods that ``forward`` calls and that shall be kept as methods too.

    Raises:
        ImportGraphError: The model cannot be copied.
    """
    copy, _, dropped = torch_compat.frozen_copy(module, keep_methods)
    importer = _Importer(copy, inputs, dropped)
    result = None
    while result is None:
        result = importer.attempt()
    return result


class _Importer:
    def __init__(self, module: torch.jit.ScriptModule, inputs: Sequence[Any], dropped_methods: tuple[str, ...]) -> None:
        self.module = module
        self.dropped_methods = dropped_methods
        self.inputs = inputs
        self.ts_graph = torch_compat.forward_graph(module)
        self.original = self.ts_graph.copy()
        self.aliases = torch_compat.Aliases(self.ts_graph)
        self.shared_writes: set[int] = set()
        self.regions: list[Region] = []

    def attempt(self) -> ImportResult | None:
        """Import the model; None when that has to begin again, with what was learnt."""
        self.regions = []
        try:
            return self._run()
        except RestartError:
            return None
        finally:
            for region in self.regions:
                for node in region.nodes:
                    unmark(node)

    def _run(self) -> ImportResult:
        self.knowledge = Knowledge(specs.new_fake_mode(), self.aliases)
        self.symbols: dict[str, torch.SymInt] = {}
        self.left: list[Left] = []
        self.builder: RegionBuilder | None = None
        arguments = list(self.ts_graph.inputs())[1:]
        for index, (value, given) in enumerate(zip(arguments, self.inputs)):
            if isinstance(given, Assumed):
                self.knowledge.assumed[value.unique()] = (index, given.value)
            if given is not ...:
                self.knowledge.values[value.unique()] = self._abstract(given)
        self.knowledge.symbol_names = {str(symbol.node.expr): name for name, symbol in self.symbols.items()}
        self._import_block(self.ts_graph.return_node().owningBlock(), "forward")
        return ImportResult(
            self.module,
            self.regions,
            self.left,
            list(self.knowledge.fixed.values()),
            self.knowledge.symbol_names,
            self.dropped_methods,
            self.knowledge.assumptions,
            self.original,
        )

    def _abstract(self, given: Any) -> Any:
        if isinstance(given, Assumed):
            return given.value
        if isinstance(given, TensorSpec):
            return specs.fake_tensor(self.knowledge.mode, given, self.symbols)
        if isinstance(given, (list, tuple)):
            return tuple(map(self._abstract, given))
        if isinstance(given, dict):
            return {key: self._abstract(item) for key, item in given.items()}
        return given

    def _import_block(self, block: torch_compat.Block, path: str) -> None:
        """Cut a block into regions; what is in none is left as it is."""
        queue = list(block.nodes())[::-1]
        while queue:
            node = queue.pop()
            if node.kind() == "prim::Constant":
                self.knowledge.learn_constant(node)
                continue
            if node.hasAttribute(MARK_SPLICE):
                queue.extend(torch_compat.splice_branch(node, node.i(MARK_SPLICE))[::-1])
                continue
            if self.builder is None:
                self.builder = RegionBuilder(self.knowledge)
            try:
                NodeImporter(self.builder, self.shared_writes).import_node(node)
            except CannotImportError as error:
                self._close_region(path)
                self._leave(node, str(error), path)
            else:
                self.builder.nodes.append(node)
        self._close_region(path)

    def _leave(self, node: torch_compat.Node, reason: str, path: str) -> None:
        """Leave a node in TorchScript; import what is in its blocks, and note what is known of its results."""
        kind = node.kind()
        blocks = list(node.blocks())
        self.left.append(Left(kind, reason, torch_compat.source_of(node)))
        for number, block in enumerate(blocks):
            part = ("then", "else")[number] if kind == "prim::If" else "body"
            self._import_block(block, f"{path}/{kind.removeprefix('prim::').lower()}:{len(self.left)}/{part}")
        if kind == "prim::If":
            for value, *branches in zip(node.outputs(), *(block.outputs() for block in blocks)):
                merged = _merge(*(self.knowledge.values.get(branch.unique(), UNKNOWN) for branch in branches))
                if merged is not UNKNOWN:
                    self.knowledge.values[value.unique()] = merged
        elif not blocks:
            self._guess_results(node)
        for value in torch_compat.reshaped_values(node):
            for name in self.aliases.of(value):
                self.knowledge.values.pop(name, None)

    def _guess_results(self, node: torch_compat.Node) -> None:
        """Infer what a node that stays in TorchScript gives, where its inputs are known."""
        outputs = list(node.outputs())
        arguments = [self.knowledge.values.get(value.unique(), UNKNOWN) for value in node.inputs()]
        if any(argument is UNKNOWN for argument in arguments) or not outputs:
            return
        kind = node.kind()
        if kind in {"prim::TupleUnpack", "prim::ListUnpack"}:
            self.knowledge.values.update(zip((value.unique() for value in outputs), arguments[0]))
        elif kind in {"aten::__getitem__", "prim::TupleIndex"}:
            self.knowledge.values[outputs[0].unique()] = arguments[0][arguments[1]]
        elif kind in {"prim::unchecked_cast", "prim::TupleConstruct", "prim::ListConstruct"}:
            self.knowledge.values[outputs[0].unique()] = arguments[0] if kind == "prim::unchecked_cast" else tuple(arguments)
        elif kind.startswith("prim::"):
            return
        else:
            result = torch_compat.try_fake(node, arguments, self.knowledge.mode)
            results = result if isinstance(result, tuple) else (result,)
            for value, item in zip(outputs, results):
                if isinstance(item, torch.Tensor):
                    self.knowledge.values[value.unique()] = item

    def _close_region(self, path: str) -> None:
        builder, self.builder = self.builder, None
        if builder is not None and builder.nodes:
            region = builder.close(len(self.regions), path)
            if region is not None:
                self.regions.append(region)


def _merge(first: Any, second: Any = UNKNOWN) -> Any:
    """Return what is known of a value that is one of two."""
    if all(isinstance(item, torch.Tensor) and torch_compat.is_fake(item) for item in (first, second)):
        same = first.dtype == second.dtype and first.device == second.device and list(first.shape) == list(second.shape)
        return first if same else UNKNOWN
    if isinstance(first, (int, float, str, type(None))) and type(first) is type(second) and first == second:
        return first
    return UNKNOWN

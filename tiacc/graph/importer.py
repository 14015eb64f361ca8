"""TorchScript → fx: cut a model into regions.

The importer walks the TorchScript graph as an interpreter would, on abstract values: a tensor is a node of the region being built,
with its shape and dtype inferred at once; numbers, strings and containers that are known are Python objects. So sizes, ranks, dtypes
and ``is None`` tests fold as they are met, conditions on them pick their branch, short loops unroll, and in-place operators become
functional (`tiacc.graph.storage`). A node that cannot be followed ends the region and stays in TorchScript as it is, and the next
region begins behind it. What is inside the blocks of a branch or loop that stays is imported in the same way.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from tiacc.graph import observer, specs, torch_compat
from tiacc.graph.assumptions import UNKNOWN, form_of, leaves, usable
from tiacc.graph.assumptions import Assumed as Assumed
from tiacc.graph.knowledge import Facts, Knowledge
from tiacc.graph.node_importer import MARK_LEAVE, NodeImporter, SpliceError
from tiacc.graph.region_builder import NOT_KNOWN, RegionBuilder, unmark
from tiacc.graph.regions import ImportResult, Left, Region, RegionInput
from tiacc.graph.shape_rules import SHAPE_RULES
from tiacc.graph.size_samples import SizeSamples
from tiacc.graph.specs import Dim, TensorSpec
from tiacc.graph.storage import CannotImportError, NeedsGuardError

MARK_OPAQUE = "tiacc_opaque"
"""The attribute of a node that stays in TorchScript and whose results are not to be guessed."""


def import_module(
    module: torch.jit.ScriptModule,
    inputs: Sequence[Any],
    keep_methods: Sequence[str] = (),
    examples: Sequence[tuple[Any, ...]] = (),
) -> ImportResult:
    """Cut the ``forward`` of a model into regions.

    Args:
        module: The model. It is not changed; the regions belong to a copy (`ImportResult.module`).
        inputs: What is known of each argument of ``forward``: a `TensorSpec`, an `Assumed` value, or lists, tuples and dicts of
            these. Missing trailing ones, and ``...``, are unknown.
        keep_methods: Methods that ``forward`` calls and that shall be kept as methods too.
        examples: Arguments to run the model on, one tuple a call, where shapes cannot be told without; see `tiacc.graph.observer`.

    Raises:
        ImportGraphError: The model cannot be copied.
    """
    frozen, _, dropped = torch_compat.frozen_copy(module, keep_methods)
    importer = _Importer(frozen, inputs, dropped)
    result = importer.run()
    if examples and any(item.reason == NOT_KNOWN for item in result.left):
        importer.look(torch_compat.frozen_copy(module, keep_methods)[0], copy.deepcopy(list(examples)))
        result = importer.run()
    return result


class _Importer:
    def __init__(self, module: torch.jit.ScriptModule, inputs: Sequence[Any], dropped_methods: tuple[str, ...]) -> None:
        self.module = module
        self.dropped_methods = dropped_methods
        self.inputs = inputs
        self.ts_graph = torch_compat.forward_graph(module)
        self.original = self.ts_graph.copy()
        self.aliases = torch_compat.Aliases(self.ts_graph)
        self.facts = Facts()
        self.regions: list[Region] = []
        self.observable = [value.unique() for value in observer.observable(self.ts_graph)]
        self.observed: dict[int, TensorSpec] = {}
        self.observed_dims: dict[str, Dim] = {}

    def look(self, twin: torch.jit.ScriptModule, examples: Sequence[tuple[Any, ...]]) -> None:
        """Run another copy of the model on examples, and note the types of tensors."""
        seen, self.observed_dims = observer.observe(twin, examples)
        reshaped = self.aliases.reshaped
        self.observed = {self.observable[place]: spec for place, spec in seen.items() if self.observable[place] not in reshaped}
        self.facts.shared_writes.clear()  # writes that were left may be imported now

    def run(self) -> ImportResult:
        """Import the model."""
        while (result := self.attempt()) is None:
            pass
        return result

    def attempt(self) -> ImportResult | None:
        """Import the model; None when that has to begin again, with what was learnt."""
        self.regions = []
        self.facts.must_restart = False
        result = self._run()
        for region in self.regions:
            for node in region.nodes:
                unmark(node)
        if self.facts.must_restart:
            return None
        for mark in (MARK_LEAVE, MARK_OPAQUE):
            torch_compat.remove_attribute(self.ts_graph, mark)
        return result

    def _run(self) -> ImportResult:
        self.knowledge = Knowledge(specs.new_fake_mode(), self.aliases)
        self.knowledge.assumptions, self.knowledge.shared_writes = self.facts.assumptions, self.facts.shared_writes
        self.symbols: dict[str, torch.SymInt] = {}
        self.left: list[Left] = []
        self.builder: RegionBuilder | None = None
        arguments = list(self.ts_graph.inputs())[1:]
        for index, (value, given) in enumerate(zip(arguments, self.inputs)):
            known = usable(given, value.type())
            if isinstance(known, Assumed):
                self.knowledge.assumed[value.unique()] = (index, known.value)
            elif (form := form_of(known, value.type())) is not None:
                self.knowledge.assumed[value.unique()] = (index, form)
            self.knowledge.learn(value, self._abstract(known))
        for dim in self.observed_dims.values():
            specs.symbol_of(self.knowledge.mode, dim, self.symbols)
        self.knowledge.observed, self.knowledge.symbols = self.observed, self.symbols
        self.knowledge.observed_dims = frozenset(self.observed_dims)
        self.knowledge.samples = SizeSamples(self.knowledge.mode, torch_compat.sample_sizes(self.knowledge.mode))
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
            self._relied_on(),
            {name: (dim.min, dim.opt, dim.max) for name, dim in self.observed_dims.items()},
        )

    def _abstract(self, known: Any) -> Any:
        if isinstance(known, Assumed):
            return known.value
        if isinstance(known, TensorSpec):
            return specs.fake_tensor(self.knowledge.mode, known, self.symbols)
        if isinstance(known, (list, tuple)):
            return type(known)(map(self._abstract, known))
        if isinstance(known, dict):
            return {key: self._abstract(item) for key, item in known.items()}
        return known

    def _relied_on(self) -> list[tuple[RegionInput, TensorSpec]]:
        """Return the tensors among the arguments whose types the regions may rely on."""
        found: list[tuple[RegionInput, TensorSpec]] = []
        for index, (value, given) in enumerate(zip(list(self.ts_graph.inputs())[1:], self.inputs)):
            if value.unique() not in self.knowledge.assumed or index in self.knowledge.assumptions:
                found.extend((RegionInput(value, path), spec) for path, spec in leaves(usable(given, value.type())))
        return found

    def _import_block(self, block: torch_compat.Block, path: str) -> None:
        """Cut a block into regions; what is in none is left as it is."""
        queue = list(block.nodes())[::-1]
        while queue:
            node = queue.pop()
            if node.kind() == "prim::Constant":
                self.knowledge.learn_constant(node)
                continue
            if self.builder is None:
                self.builder = RegionBuilder(self.knowledge)
            reason = ""
            try:
                NodeImporter(self.builder, self.facts).import_node(node)
            except NeedsGuardError:
                self._close_region(path)
                self.builder = RegionBuilder(self.knowledge, is_guarded=True)
                queue.append(node)
            except SpliceError as error:
                if self.facts.must_restart:  # what decided the condition may not hold, and the graph is the next attempt's too
                    self._close_region(path)
                    return
                queue.extend(torch_compat.splice_branch(node, error.block)[::-1])
            except CannotImportError as error:
                reason = str(error)
            else:
                self.builder.nodes.append(node)
            if reason:
                self._close_region(path)
                self._leave(node, reason, path)
        self._close_region(path)

    def _leave(self, node: torch_compat.Node, reason: str, path: str) -> None:
        """Leave a node in TorchScript; import what is in its blocks, and note what is known of its results."""
        kind = node.kind()
        blocks = torch_compat.blocks_of(node)
        for value in torch_compat.written_values(node):
            self.facts.share(node, value, self.aliases)
        self.left.append(Left(kind, reason, torch_compat.source_of(node)))
        for number, block in enumerate(blocks):
            part = ("then", "else")[number] if kind == "prim::If" else "body"
            self._import_block(block, f"{path}/{kind.removeprefix('prim::').lower()}:{len(self.left)}/{part}")
        if kind == "prim::If":
            for value, *branches in zip(torch_compat.outputs_of(node), *(block.outputs() for block in blocks)):
                merged = _merge(*map(self.knowledge.recall, branches))
                if merged is not UNKNOWN:
                    self.knowledge.learn(value, merged)
        elif not blocks:
            self._guess_results(node)

    def _guess_results(self, node: torch_compat.Node) -> None:
        """Infer what a node that stays in TorchScript gives, where its inputs are known."""
        outputs = torch_compat.outputs_of(node)
        arguments = list(map(self.knowledge.recall, torch_compat.inputs_of(node)))
        if any(argument is UNKNOWN for argument in arguments) or not outputs:
            return
        kind = node.kind()
        if kind in {"prim::TupleUnpack", "prim::ListUnpack"}:
            if len(arguments[0]) == len(outputs):
                for value, item in zip(outputs, arguments[0]):
                    self.knowledge.learn(value, item)
        elif kind in {"aten::__getitem__", "prim::TupleIndex"}:
            if isinstance(arguments[1], (int, str)):
                try:
                    self.knowledge.learn(outputs[0], arguments[0][arguments[1]])
                except LookupError:  # the model will raise
                    return
        elif kind == "prim::unchecked_cast":
            self.knowledge.learn(outputs[0], arguments[0])
        elif kind in {"prim::TupleConstruct", "prim::ListConstruct"}:
            self.knowledge.learn(outputs[0], tuple(arguments) if kind == "prim::TupleConstruct" else arguments)
        elif kind.startswith("prim::"):
            return
        else:
            self._guess_call(node, arguments)

    def _guess_call(self, node: torch_compat.Node, arguments: list[Any]) -> None:
        overload = torch_compat.overload_of(node)
        if overload is None or not torch_compat.makes_tensors(overload) or node.hasAttribute(MARK_OPAQUE):
            return
        mode = self.knowledge.mode
        known = tree_map_only(torch.Tensor, partial(torch_compat.without_data, mode), arguments)  # the call may write into them
        args, kwargs = torch_compat.bind(overload, known)
        function = SHAPE_RULES.get(overload, overload)
        before = torch_compat.replaced_symbols(mode)
        result = torch_compat.try_fake(function, args, kwargs, mode)
        torch_compat.forget_guards(mode)
        if torch_compat.replaced_symbols(mode) > before:  # the guess has cost a size its freedom
            node.i_(MARK_OPAQUE, 1)
            self.facts.must_restart = True
        elif result is not None and self.knowledge.samples.contradicts(function, args, kwargs, result) is None:
            results = result if isinstance(result, tuple) else (result,)
            for value, item in zip(torch_compat.outputs_of(node), results):
                if isinstance(item, torch.Tensor) and torch_compat.is_fake(item):
                    self.knowledge.learn(value, item)

    def _close_region(self, path: str) -> None:
        builder, self.builder = self.builder, None
        if builder is not None and builder.nodes:
            region = builder.close(len(self.regions), path)
            if region is not None:
                self.regions.append(region)


def _merge(first: Any, second: Any = UNKNOWN) -> Any:
    """Return what is known of a value that is one of two."""
    if all(isinstance(item, torch.Tensor) and torch_compat.is_fake(item) for item in (first, second)):
        same = first.dtype == second.dtype and first.device == second.device and first.dim() == second.dim()
        same = same and all(map(torch_compat.same_size, first.shape, second.shape))
        return first if same else UNKNOWN
    if isinstance(first, (int, float, str, type(None))) and type(first) is type(second) and first == second:
        return first
    return UNKNOWN

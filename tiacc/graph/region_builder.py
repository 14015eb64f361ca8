"""The region that the importer is building: its graph, and the abstract values of the TorchScript values in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from tiacc.errors import ImportGraphError
from tiacc.graph import specs, torch_compat
from tiacc.graph.assumptions import UNKNOWN as UNKNOWN
from tiacc.graph.knowledge import Knowledge
from tiacc.graph.module_paths import ModulePaths
from tiacc.graph.regions import UNINITIALISED, FixedDim, OutputIndex, Region, RegionInput, RegionOutput
from tiacc.graph.specs import TensorSpec
from tiacc.graph.storage import CannotImportError, NeedsGuardError, Storage, TensorRef, whole

aten = torch.ops.aten

_MARK = "tiacc_region"

NOT_KNOWN = "the type of one of its inputs is not known before the model runs"


@dataclass(eq=False)
class NumberTensor:
    """A 0-d tensor made of a number, as traced code makes of a size before it computes with it.

    Attributes:
        number: What it holds now: a number, or an fx node for one that depends on sizes.
        dtype: Its element type.
        has_views: Whether another tensor may share its memory, so that neither can be written into here.
    """

    number: Any
    dtype: torch.dtype
    has_views: bool = False


class RegionBuilder:
    """A region in the making.

    An abstract value is a `TensorRef`; a `NumberTensor`; an fx node, for a number that depends on sizes; a number, string or None;
    or a list, tuple or dict of abstract values.

    Attributes:
        nodes: The TorchScript nodes imported so far.
        env: The abstract values of the TorchScript values in it, by unique number.
        source: The source line of the node being imported.
        path: The module that it belongs to.
        paths: What tells that of a node.
        is_guarded: Whether it may rely on the types that tensors were seen to have; nothing is then known of what it computes.
    """

    def __init__(self, knowledge: Knowledge, *, is_guarded: bool = False) -> None:
        self.knowledge = knowledge
        self.is_guarded = is_guarded
        self.nodes: list[torch_compat.Node] = []
        self.env: dict[int, Any] = {}
        self.source = ""
        self.path = ""
        self.paths = ModulePaths()
        self._graph = fx.Graph()
        self._constants = torch.nn.Module()
        self._inputs: dict[fx.Node, RegionInput] = {}
        self._last_placeholder: fx.Node | None = None
        self._own_containers: dict[int, Any] = {}
        self._undo: list[Callable[[], None]] = []

    @property
    def size(self) -> int:
        """How many nodes its graph has."""
        return len(self._graph.nodes)

    def read(self, value: torch_compat.Value) -> Any:
        """Return the abstract value of a TorchScript value in the current region."""
        name = value.unique()
        if name in self.env:
            return self.env[name]
        item = self.knowledge.recall(value)
        if item is UNKNOWN:
            if name not in self.knowledge.observed:
                raise CannotImportError(NOT_KNOWN)
            if not self.is_guarded:
                raise NeedsGuardError("it relies on a type that was seen")
            item = specs.fake_tensor(self.knowledge.mode, self.knowledge.observed[name], self.knowledge.symbols)
        if isinstance(item, torch.Tensor):
            is_external = torch_compat.is_fake(item)
            item = whole(self._placeholder(value, item), is_external=True) if is_external else self.constant(item, _identifier(value))
        elif isinstance(item, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            item = self._placeholder(value, item)
        elif isinstance(item, (list, tuple, dict)):
            item = self._members(item, value)
        self.env[name] = item
        return item

    def _members(self, item: Any, value: torch_compat.Value, path: tuple[int | str, ...] = ()) -> Any:
        """Return a container made outside of the region: its tensors become inputs, those that are constant stay so."""
        if item is UNKNOWN:
            raise CannotImportError("one of its inputs is a container in which something is not known before the model runs")
        if isinstance(item, torch.Tensor):
            if not torch_compat.is_fake(item):
                return self.constant(item, _identifier(value))
            return whole(self._placeholder(value, item, path), is_external=True)
        if isinstance(item, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return self._placeholder(value, item, path)
        if not isinstance(item, (list, tuple, dict)):
            return item
        if path and has_tensors(item) and not isinstance(item, tuple):
            raise CannotImportError("one of its inputs is a list or dictionary in a container made outside of the region")
        if isinstance(item, dict):
            return {key: self._members(part, value, (*path, key)) for key, part in item.items()}
        return type(item)(self._members(part, value, (*path, index)) for index, part in enumerate(item))

    def _placeholder(self, value: torch_compat.Value, item: Any, path: tuple[int | str, ...] = ()) -> fx.Node:
        with self._graph.inserting_after(self._last_placeholder):
            node = self._graph.placeholder("_".join(map(str, (_identifier(value), *path))))
        self._last_placeholder = node
        node.meta["val"] = item
        node.meta["ts_value"] = value.unique()
        self._inputs[node] = RegionInput(value, path)
        return node

    def constant(self, tensor: torch.Tensor, name: str) -> TensorRef:
        """Return the ref of a constant, under a name like `name`."""
        while hasattr(self._constants, name):
            name += "_"
        self._constants.register_buffer(name, tensor)
        node = self._graph.get_attr(name)
        node.meta["val"] = torch_compat.fake_constant(self.knowledge.mode, tensor)
        return whole(node, is_external=True)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Add a call to the region's graph and infer its value."""
        node = self._graph.call_function(target, args, kwargs)
        node.meta["source"] = self.source
        node.meta["path"] = self.path
        self.knowledge.samples.prepare(node)
        before, free = torch_compat.replaced_symbols(self.knowledge.mode), self._freedom()
        try:
            specs.infer_call(self.knowledge.mode, node)
            reason = self.knowledge.samples.contradiction(node)
        except ImportGraphError as error:
            reason = _first_line(error.__cause__ or error)
        torch_compat.forget_guards(self.knowledge.mode)
        after = torch_compat.replaced_symbols(self.knowledge.mode)
        if reason is not None:
            self._graph.erase_node(node)
            if after > before:
                self.knowledge.taint()
            raise CannotImportError(reason)
        if after > before and self._freedom() != free:
            self._graph.erase_node(node)
            self.knowledge.taint()
            raise CannotImportError("with the sizes that were seen it works at one size of a dimension that varies")
        if after > before:
            self._note_fixed(f"{target} at {self.source}")
        return node

    def _freedom(self) -> tuple[int, int]:
        """Return how many sizes that differ are declared to vary, and how many were seen to: a guarded region must not change that."""
        if not self.is_guarded:
            return 0, 0
        names = {name: torch_compat.free_symbols(symbol) for name, symbol in self.knowledge.symbols.items()}
        seen = self.knowledge.observed_dims
        return len({found for name, found in names.items() if found and name not in seen}), sum(bool(names[name]) for name in seen)

    def _note_fixed(self, where: str) -> None:
        for symbol, size in torch_compat.fixed_symbols_of(self.knowledge.mode).items():
            dim = self.knowledge.symbol_names.get(symbol, symbol)
            self.knowledge.fixed.setdefault(dim, FixedDim(dim, size, where))

    def as_node(self, item: NumberTensor) -> fx.Node:
        """Return the node of a 0-d tensor made of a number."""
        number = int(item.number) if isinstance(item.number, bool) else item.number  # a bool is no `Scalar` in TorchScript
        return self.call(aten.scalar_tensor.default, number, dtype=item.dtype)

    def lower(self, item: Any) -> Any:
        """Turn an abstract value into an argument of an fx node."""
        if isinstance(item, TensorRef):
            return item.read(self.call)
        if isinstance(item, NumberTensor):
            return self.as_node(item)
        if isinstance(item, (list, tuple)):
            return [self.lower(member) for member in item]
        if item is UNINITIALISED:
            raise CannotImportError("it reads a variable that has no value")
        if isinstance(item, torch.ScriptObject):
            raise CannotImportError("it takes an object, and a graph holds tensors and numbers only")
        return item

    def constant_behind(self, ref: TensorRef) -> torch.Tensor | None:
        """Return the constant that a tensor is, or None."""
        node = ref.storage.node
        return getattr(self._constants, str(node.target)) if node.op == "get_attr" and ref.parent is None else None

    def own(self, item: Any) -> Any:
        """Note that a list or dict was made in this region, so that it may be changed there; return it."""
        if isinstance(item, (list, dict)):
            self._own_containers[id(item)] = item
        return item

    def owns(self, item: Any) -> bool:
        """Return whether a list or dict was made in this region."""
        return id(item) in self._own_containers

    def note_write(self, storage: Storage) -> None:
        """Note that a storage is about to be written into."""
        node, version = storage.node, storage.version

        def undo() -> None:
            storage.node, storage.version = node, version

        self._undo.append(undo)

    def write_number(self, tensor: NumberTensor, number: Any) -> None:
        """Replace what a 0-d tensor holds."""
        before = tensor.number

        def undo() -> None:
            tensor.number = before

        self._undo.append(undo)
        tensor.number = number

    def note_change(self, container: Any) -> None:
        """Note that a list or dict is about to be changed."""
        before = container.copy()

        def undo() -> None:
            container.clear()
            container.extend(before) if isinstance(container, list) else container.update(before)

        self._undo.append(undo)

    def undo_mark(self) -> int:
        """Return what `undo` goes back to."""
        return len(self._undo)

    def undo(self, mark: int) -> None:
        """Take back all writes since `undo_mark`."""
        while len(self._undo) > mark:
            self._undo.pop()()

    def close(self, index: int, path: str) -> Region | None:
        """Finish the region; None when nothing in it computes a tensor. What is known of its values is noted.

        Args:
            index: Its number.
            path: Where its block is.
        """
        for node in self.nodes:
            _mark(node, index)
        flat: dict[fx.Node, int] = {}
        self._templates: dict[int, Any] = {}
        outputs = []
        for node in self.nodes:
            for value in torch_compat.outputs_of(node):
                item = self.env.get(value.unique(), UNKNOWN)
                if any(not _is_marked(use.user, index) for use in value.uses()):
                    outputs.append(RegionOutput(value, self._template(item, flat)))
                known = self._forget_nodes(item)
                if not self.is_guarded:
                    self.knowledge.learn(value, known)
        self._graph.output(tuple(flat))
        self._graph.eliminate_dead_code()
        if not any(node.op == "call_function" and not specs.is_scalar(node) for node in self._graph.nodes):
            self.release()
            return None
        for node in self._graph.find_nodes(op="placeholder"):
            if not node.users:
                self._graph.erase_node(node)
        gm = torch_compat.graph_module(self._constants, self._graph)
        gm.meta["fake_mode"] = self.knowledge.mode
        inputs = tuple(self._inputs[node] for node in gm.graph.find_nodes(op="placeholder"))
        guard = tuple(map(self._guard_of, gm.graph.find_nodes(op="placeholder"))) if self.is_guarded else ()
        return Region(index, gm, inputs, tuple(outputs), self.nodes, path, guard)

    def _guard_of(self, node: fx.Node) -> TensorSpec | None:
        return specs.spec_of(specs.tensor_of(node)) if specs.is_tensor(node) else None

    def release(self) -> None:
        """Remove the attribute by which the region's TorchScript nodes are told from others."""
        for node in self.nodes:
            unmark(node)

    def _template(self, item: Any, flat: dict[fx.Node, int]) -> Any:
        """Express a value in terms of the region's outputs, adding those it needs."""
        if isinstance(item, TensorRef):
            return OutputIndex(flat.setdefault(item.read_in_place(self.call), len(flat)))
        if isinstance(item, NumberTensor):
            if id(item) not in self._templates:  # one tensor in two places is one there too
                self._templates[id(item)] = OutputIndex(flat.setdefault(self.as_node(item), len(flat)))
            return self._templates[id(item)]
        if isinstance(item, fx.Node):
            return OutputIndex(flat.setdefault(item, len(flat)))
        if isinstance(item, tuple):
            return tuple(self._template(member, flat) for member in item)
        if isinstance(item, (list, dict)):
            if id(item) not in self._templates:  # one list in two places is one list there too
                members = {key: self._template(member, flat) for key, member in item.items()} if isinstance(item, dict) else None
                self._templates[id(item)] = members if members is not None else [self._template(member, flat) for member in item]
            return self._templates[id(item)]
        return item

    def _forget_nodes(self, item: Any) -> Any:
        """Return what stays known of a value after its region: shapes and constants, no nodes."""
        if isinstance(item, TensorRef):
            return item.value
        if isinstance(item, NumberTensor):
            return torch_compat.fake_of(self.knowledge.mode, torch_compat.PlainType((), (), item.dtype, torch.device("cpu")))
        if isinstance(item, fx.Node):
            return item.meta["val"]
        if item is UNINITIALISED:
            return UNKNOWN
        if isinstance(item, (list, tuple)):
            return type(item)(map(self._forget_nodes, item))
        if isinstance(item, dict):
            return {key: self._forget_nodes(member) for key, member in item.items()}
        return item


def _mark(node: torch_compat.Node, index: int) -> None:
    node.i_(_MARK, index)
    for block in torch_compat.blocks_of(node):
        for inner in block.nodes():
            _mark(inner, index)
        block.returnNode().i_(_MARK, index)


def unmark(node: torch_compat.Node) -> None:
    """Remove what `RegionBuilder.close` marks the nodes of a region with."""
    node.removeAttribute(_MARK)
    for block in torch_compat.blocks_of(node):
        for inner in block.nodes():
            unmark(inner)
        block.returnNode().removeAttribute(_MARK)


def _is_marked(node: torch_compat.Node, index: int) -> bool:
    return bool(node.hasAttribute(_MARK) and node.i(_MARK) == index)


def has_tensors(item: Any) -> bool:
    """Return whether an abstract value is a tensor, or a container with one in it."""
    if isinstance(item, (list, tuple)):
        return any(map(has_tensors, item))
    if isinstance(item, dict):
        return any(map(has_tensors, item.values()))
    return isinstance(item, (TensorRef, NumberTensor, torch.Tensor))


def _identifier(value: torch_compat.Value) -> str:
    name = value.debugName().removeprefix("self.").replace(".", "_")
    return name if name.isidentifier() else f"v_{name}"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]

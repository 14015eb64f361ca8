"""TorchScript → fx: cut a model into regions.

The importer walks the TorchScript graph as an interpreter would, on abstract values: a tensor is a node of the region being built,
with its shape and dtype inferred at once; numbers, strings and containers that are known are Python objects. So sizes, ranks, dtypes
and ``is None`` tests fold as they are met, conditions on them pick their branch, short loops unroll, and in-place operators become
functional (`tiacc.graph.storage`). A node that cannot be followed ends the region and stays in TorchScript as it is, and the next
region begins behind it. What is inside the blocks of a branch or loop that stays is imported in the same way.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from tiacc.errors import ImportGraphError
from tiacc.graph import scalars, specs, torch_compat
from tiacc.graph.regions import FixedDim, ImportResult, Left, OutputIndex, Region, RegionOutput
from tiacc.graph.specs import TensorSpec
from tiacc.graph.storage import CannotImportError, TensorRef, pieces, view_of, whole

aten = torch.ops.aten

LOOP_LIMIT = 512
"""Loops of more iterations than this are not unrolled."""

_SPLITS = frozenset(
    {aten.split.Tensor, aten.split.sizes, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int}
    | {aten.tensor_split.sections, aten.tensor_split.indices}
)
_MARK_REGION, _MARK_KEEP, _MARK_SPLICE = "tiacc_region", "tiacc_keep", "tiacc_splice"


@dataclass(frozen=True)
class Assumed:
    """An argument of ``forward`` that is assumed to have one value: the regions hold for that value only.

    Attributes:
        value: A number, a string, or None.
    """

    value: Any


@dataclass(frozen=True)
class NumberTensor:
    """A 0-d tensor made of a number, as traced code makes of a size before it computes with it."""

    number: Any
    dtype: torch.dtype


class _RestartError(Exception):
    """A branch or loop turned out not to be importable as a whole; it is marked, and the import begins again."""


@dataclass
class _OpenRegion:
    """The region being built."""

    graph: fx.Graph = field(default_factory=fx.Graph)
    constants: torch.nn.Module = field(default_factory=torch.nn.Module)
    env: dict[int, Any] = field(default_factory=dict)
    own_lists: dict[int, Any] = field(default_factory=dict)
    inputs: dict[int, torch_compat.Value] = field(default_factory=dict)
    nodes: list[torch_compat.Node] = field(default_factory=list)
    last_placeholder: fx.Node | None = None
    source: str = ""


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
        self.shared_writes: list[torch_compat.Value] = []
        self.shared_write_names: set[int] = set()

    def attempt(self) -> ImportResult | None:
        """Import the model; None when that has to begin again, with what was learnt."""
        try:
            return self._run()
        except _RestartError:
            return None
        finally:
            for region in self.regions:
                for node in region.nodes:
                    _unmark(node)

    def _run(self) -> ImportResult:
        self.mode = specs.new_fake_mode()
        self.symbols: dict[str, torch.SymInt] = {}
        self.known: dict[int, Any] = {}
        self.regions: list[Region] = []
        self.left: list[Left] = []
        self.fixed: dict[str, FixedDim] = {}
        self.depth = 0
        self.region: _OpenRegion | None = None
        self.assumed: dict[int, tuple[int, Any]] = {}
        self.assumptions: dict[int, Any] = {}
        arguments = list(self.ts_graph.inputs())[1:]
        for index, (value, given) in enumerate(zip(arguments, self.inputs)):
            if isinstance(given, Assumed):
                self.assumed[value.unique()] = (index, given.value)
            if given is not ...:
                self.known[value.unique()] = self._abstract(given)
        self.symbol_names = {str(symbol.node.expr): name for name, symbol in self.symbols.items()}
        self._import_block(self.ts_graph.return_node().owningBlock(), "forward")
        return ImportResult(
            self.module,
            self.regions,
            self.left,
            list(self.fixed.values()),
            self.symbol_names,
            self.dropped_methods,
            self.assumptions,
            self.original,
        )

    def _abstract(self, given: Any) -> Any:
        if isinstance(given, Assumed):
            return given.value
        if isinstance(given, TensorSpec):
            return specs.fake_tensor(self.mode, given, self.symbols)
        if isinstance(given, (list, tuple)):
            return tuple(map(self._abstract, given))
        if isinstance(given, dict):
            return {key: self._abstract(item) for key, item in given.items()}
        return given

    # -- blocks ----------------------------------------------------------------------------------------------------------------

    def _import_block(self, block: torch_compat.Block, path: str) -> None:
        """Cut a block into regions; what is in none is left as it is."""
        queue = list(block.nodes())[::-1]
        while queue:
            node = queue.pop()
            if node.kind() == "prim::Constant":
                self._learn_constant(node)
                continue
            if node.hasAttribute(_MARK_SPLICE):
                queue.extend(torch_compat.splice_branch(node, node.i(_MARK_SPLICE))[::-1])
                continue
            if self.region is None:
                self.region = _OpenRegion()
            try:
                self._import_node(node)
            except CannotImportError as error:
                self._close_region(path)
                self._leave(node, str(error), path)
            else:
                self.region.nodes.append(node)
        self._close_region(path)

    def _import_nested(self, block: torch_compat.Block, arguments: Iterable[Any]) -> list[Any]:
        """Import a block as part of the current region, all or nothing, and return its results."""
        region = self._open()
        for value, argument in zip(block.inputs(), arguments):
            region.env[value.unique()] = argument
        self.depth += 1
        try:
            for node in block.nodes():
                if node.kind() == "prim::Constant":
                    self._learn_constant(node)
                else:
                    self._import_node(node)
            return [self._read_value(value) for value in block.outputs()]
        finally:
            self.depth -= 1

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
                merged = _merge(*(self.known.get(branch.unique(), _UNKNOWN) for branch in branches))
                if merged is not _UNKNOWN:
                    self.known[value.unique()] = merged
        elif not blocks:
            self._guess_results(node)
        for value in torch_compat.reshaped_values(node):
            for name in self.aliases.of(value):
                self.known.pop(name, None)

    def _guess_results(self, node: torch_compat.Node) -> None:
        """Infer what a node that stays in TorchScript gives, where its inputs are known."""
        outputs = list(node.outputs())
        arguments = [self.known.get(value.unique(), _UNKNOWN) for value in node.inputs()]
        if any(argument is _UNKNOWN for argument in arguments) or not outputs:
            return
        kind = node.kind()
        if kind in {"prim::TupleUnpack", "prim::ListUnpack"}:
            self.known.update(zip((value.unique() for value in outputs), arguments[0]))
        elif kind in {"aten::__getitem__", "prim::TupleIndex"}:
            self.known[outputs[0].unique()] = arguments[0][arguments[1]]
        elif kind in {"prim::unchecked_cast", "prim::TupleConstruct", "prim::ListConstruct"}:
            self.known[outputs[0].unique()] = arguments[0] if kind == "prim::unchecked_cast" else tuple(arguments)
        elif kind.startswith("prim::"):
            return
        else:
            result = torch_compat.try_fake(node, arguments, self.mode)
            results = result if isinstance(result, tuple) else (result,)
            for value, item in zip(outputs, results):
                if isinstance(item, torch.Tensor):
                    self.known[value.unique()] = item

    def _learn_constant(self, node: torch_compat.Node) -> None:
        value = node.output()
        self.known[value.unique()] = torch_compat.constant_of(value)

    # -- regions ---------------------------------------------------------------------------------------------------------------

    def _open(self) -> _OpenRegion:
        assert self.region is not None
        return self.region

    def _close_region(self, path: str) -> None:
        region, self.region = self.region, None
        if region is None or not region.nodes:
            return
        index = len(self.regions)
        for node in region.nodes:
            _mark(node, index)
        self.region = region
        flat: dict[fx.Node, int] = {}
        outputs = []
        for node in region.nodes:
            for value in node.outputs():
                item = region.env.get(value.unique(), _UNKNOWN)
                if any(not _is_marked(use.user, index) for use in value.uses()):
                    outputs.append(RegionOutput(value, self._template(item, flat)))
                known = self._forget_nodes(item)
                if known is not _UNKNOWN and not (isinstance(known, (list, dict)) and self.aliases.has_writers(value)):
                    self.known[value.unique()] = known
        self.region = None
        region.graph.output(tuple(flat))
        region.graph.eliminate_dead_code()
        if not any(node.op == "call_function" and not specs.is_scalar(node) for node in region.graph.nodes):
            for node in region.nodes:
                _unmark(node)
            return
        gm = fx.GraphModule(region.constants, region.graph)
        gm.meta["fake_mode"] = self.mode
        placeholders = {node.meta["ts_value"] for node in gm.graph.nodes if node.op == "placeholder"}
        for node in gm.graph.nodes:
            if node.op == "placeholder" and not node.users:
                placeholders.discard(node.meta["ts_value"])
                gm.graph.erase_node(node)
        gm.recompile()
        inputs = tuple(value for name, value in region.inputs.items() if name in placeholders)
        self.regions.append(Region(index, gm, inputs, tuple(outputs), region.nodes, path))

    def _template(self, item: Any, flat: dict[fx.Node, int]) -> Any:
        """Express a value in terms of the region's outputs, adding those it needs."""
        if isinstance(item, TensorRef):
            return OutputIndex(flat.setdefault(item.read(self._call), len(flat)))
        if isinstance(item, NumberTensor):
            return OutputIndex(flat.setdefault(self._as_node(item), len(flat)))
        if isinstance(item, fx.Node):
            return OutputIndex(flat.setdefault(item, len(flat)))
        if isinstance(item, (list, tuple)):
            return type(item)(self._template(member, flat) for member in item)
        if isinstance(item, dict):
            return {key: self._template(member, flat) for key, member in item.items()}
        return item

    def _forget_nodes(self, item: Any) -> Any:
        """Return what stays known of a value after its region: shapes and constants, no nodes."""
        if isinstance(item, TensorRef):
            return item.value
        if isinstance(item, NumberTensor):
            with self.mode:
                return torch.empty((), dtype=item.dtype)
        if isinstance(item, fx.Node):
            return item.meta["val"]
        if isinstance(item, (list, tuple)):
            return type(item)(map(self._forget_nodes, item))
        if isinstance(item, dict):
            return {key: self._forget_nodes(member) for key, member in item.items()}
        return item

    # -- values ----------------------------------------------------------------------------------------------------------------

    def _read_value(self, value: torch_compat.Value) -> Any:
        """Return the abstract value of a TorchScript value in the current region."""
        region = self._open()
        name = value.unique()
        if name in region.env:
            return region.env[name]
        if name not in self.known:
            raise CannotImportError("the type of one of its inputs is not known before the model runs")
        item = self.known[name]
        if name in self.assumed:
            index, assumed = self.assumed[name]
            self.assumptions[index] = assumed
        if isinstance(item, torch.Tensor):
            is_external = torch_compat.is_fake(item)
            item = whole(self._placeholder(value, item), is_external=True) if is_external else self._constant(item, value)
        elif isinstance(item, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            item = self._placeholder(value, item)
        elif _has_tensors(item):
            raise CannotImportError("one of its inputs is a container made outside of the region")
        region.env[name] = item
        return item

    def _placeholder(self, value: torch_compat.Value, item: Any) -> fx.Node:
        region = self._open()
        with region.graph.inserting_after(region.last_placeholder):
            if region.last_placeholder is None and len(region.graph.nodes):
                with region.graph.inserting_before(next(iter(region.graph.nodes))):
                    node = region.graph.placeholder(_identifier(value))
            else:
                node = region.graph.placeholder(_identifier(value))
        region.last_placeholder = node
        node.meta["val"] = item
        node.meta["ts_value"] = value.unique()
        region.inputs[value.unique()] = value
        return node

    def _constant(self, tensor: torch.Tensor, value: torch_compat.Value) -> TensorRef:
        region = self._open()
        name = _identifier(value)
        while hasattr(region.constants, name):
            name += "_"
        region.constants.register_buffer(name, tensor)
        node = region.graph.get_attr(name)
        node.meta["val"] = torch_compat.fake_constant(self.mode, tensor)
        return whole(node, is_external=True)

    def _call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Add a call to the region's graph and infer its value."""
        region = self._open()
        node = region.graph.call_function(target, args, kwargs)
        node.meta["source"] = region.source
        before = len(torch_compat.fixed_symbols_of(self.mode))
        try:
            specs.infer_call(self.mode, node)
        except ImportGraphError as error:
            region.graph.erase_node(node)
            raise CannotImportError(_first_line(error.__cause__ or error)) from error
        fixed = torch_compat.fixed_symbols_of(self.mode)
        if len(fixed) > before:
            for symbol, size in fixed.items():
                dim = self.symbol_names.get(symbol, symbol)
                self.fixed.setdefault(dim, FixedDim(dim, size, f"{target} at {region.source}"))
        return node

    def _as_node(self, item: NumberTensor) -> fx.Node:
        return self._call(aten.scalar_tensor.default, item.number, dtype=item.dtype)

    def _lower(self, item: Any) -> Any:
        """Turn an abstract value into an argument of an fx node."""
        if isinstance(item, TensorRef):
            return item.read(self._call)
        if isinstance(item, NumberTensor):
            return self._as_node(item)
        if isinstance(item, (list, tuple)):
            return [self._lower(member) for member in item]
        return item

    # -- nodes -----------------------------------------------------------------------------------------------------------------

    def _import_node(self, node: torch_compat.Node) -> None:
        """Import one node into the current region.

        Raises:
            CannotImportError: It stays in TorchScript.
        """
        region = self._open()
        kind = node.kind()
        if not self.depth:
            region.source = torch_compat.source_of(node)
        outputs = list(node.outputs())
        if any(output.unique() in self.shared_write_names for output in outputs):
            raise CannotImportError("its result shares memory with a tensor that is written into")
        handler = _HANDLERS.get(kind)
        results = handler(self, node) if handler else self._import_operator(node)
        for output, item in zip(outputs, results, strict=True):
            region.env[output.unique()] = item

    def _import_if(self, node: torch_compat.Node) -> list[Any]:
        condition = self._read_value(node.input())
        if isinstance(condition, fx.Node):
            condition = torch_compat.decide(condition.meta["val"])
        if not isinstance(condition, bool):
            raise CannotImportError("its condition depends on the input")
        if node.hasAttribute(_MARK_KEEP):
            raise CannotImportError("a part of it cannot be imported")
        taken = 0 if condition else 1
        try:
            return self._import_nested(list(node.blocks())[taken], ())
        except CannotImportError as error:
            if self.depth:
                raise
            node.i_(_MARK_SPLICE, taken)
            raise _RestartError from error

    def _import_loop(self, node: torch_compat.Node) -> list[Any]:
        if node.hasAttribute(_MARK_KEEP):
            raise CannotImportError("a part of it cannot be imported")
        count, condition, *carried = [self._read_value(value) for value in node.inputs()]
        if not isinstance(count, int) or (count > LOOP_LIMIT and condition is True):
            raise CannotImportError("the number of its iterations depends on the input, or is large")
        body = next(iter(node.blocks()))
        try:
            for step in range(min(count, LOOP_LIMIT + 1)):
                if condition is False:
                    break
                if condition is not True or step == LOOP_LIMIT:
                    raise CannotImportError("the number of its iterations depends on the input, or is large")
                condition, *carried = self._import_nested(body, (step, *carried))
        except CannotImportError as error:
            if self.depth:
                raise
            node.i_(_MARK_KEEP, 1)
            raise _RestartError from error
        return carried

    def _import_operator(self, node: torch_compat.Node) -> list[Any]:
        kind = node.kind()
        args = [self._read_value(value) for value in node.inputs()]
        number = self._import_scalar(node, kind, args)
        if number is not _UNKNOWN:
            return [number]
        overload = torch_compat.overload_of(node)
        if overload is None:
            raise CannotImportError("it is not an operator that the importer knows")
        if torch_compat.is_random(overload, args):
            raise CannotImportError("it draws random numbers")
        written = torch_compat.written_arguments(overload)
        if written:
            return [self._import_write(node, overload, args, written)]
        return self._import_call(node, overload, args)

    def _import_scalar(self, node: torch_compat.Node, kind: str, args: list[Any]) -> Any:
        """Import a computation with numbers or containers; `_UNKNOWN` when it is one with tensors."""
        first = args[0] if args else None
        if kind in scalars.PASSED_THROUGH and not isinstance(first, (TensorRef, NumberTensor)):
            return first
        if kind in {"prim::unchecked_cast", "aten::detach"} and isinstance(first, (TensorRef, NumberTensor)):
            return first
        if isinstance(first, (list, tuple, dict)) and kind in scalars.CONTAINER_WRITES:
            if id(first) not in self._open().own_lists:
                raise CannotImportError("it changes a container that other code can see")
            return self._evaluate(scalars.CONTAINER_WRITES[kind], args)
        in_container = isinstance(first, (list, tuple, dict, str))
        if kind in scalars.CONTAINER_READS and (in_container or kind in {"aten::__derive_index", "aten::__range_length"}):
            if kind == "aten::slice" and not in_container:
                return _UNKNOWN
            if any(isinstance(arg, fx.Node) for arg in args[1:]):
                raise CannotImportError("its index depends on the input")
            return self._own(self._evaluate(scalars.CONTAINER_READS[kind], args))
        if any(isinstance(arg, NumberTensor) for arg in args):
            return self._import_number_tensor(node, kind, args)
        if any(isinstance(arg, TensorRef) for arg in args) or _has_tensors(args):
            if kind in {"aten::__is__", "aten::__isnot__"}:
                return (args[0] is args[1]) == (kind == "aten::__is__")
            return _UNKNOWN
        if any(isinstance(arg, fx.Node) for arg in args):
            return self._import_symbolic(kind, args)
        if kind in scalars.FOLDED:
            return self._evaluate(scalars.FOLDED[kind], args)
        return _UNKNOWN

    def _import_symbolic(self, kind: str, args: list[Any]) -> Any:
        function = scalars.SYMBOLIC.get(kind)
        if function is None or any(isinstance(arg, (list, tuple)) for arg in args):
            return _UNKNOWN
        node = self._call(function, *args)
        value = node.meta["val"]
        known = torch_compat.decide(value) if isinstance(value, (bool, torch.SymBool)) else value
        return node if known is None or isinstance(known, (torch.SymInt, torch.SymFloat)) else known

    def _import_number_tensor(self, node: torch_compat.Node, kind: str, args: list[Any]) -> Any:
        """Compute on the numbers behind 0-d tensors, where the operator is integer arithmetic; `_UNKNOWN` otherwise."""
        numbers = [arg.number if isinstance(arg, NumberTensor) else self._number_behind(arg) for arg in args]
        if kind in {"aten::Int", "aten::ScalarImplicit", "aten::IntImplicit", "aten::item", "aten::FloatImplicit", "aten::Float"}:
            wanted = "aten::Float" if kind in {"aten::Float", "aten::FloatImplicit"} else "aten::Int"
            number = numbers[0]
            if wanted == "aten::Float" or not _is_integer(number):
                return self._scalar(wanted, [number])
            return number
        if all(isinstance(number, (int, float, str)) or number is None for number in numbers):
            return self._evaluate_number_tensor(node, args)
        if kind == "aten::rsub" and len(numbers) == 3:
            kind, numbers = "aten::sub", [numbers[1], numbers[0], numbers[2]]
        if kind in {"aten::add", "aten::sub"} and len(numbers) == 3 and numbers.pop() != 1:
            return _UNKNOWN
        if kind == "aten::div" and len(numbers) == 3:
            rounding = numbers.pop()
            if rounding != "floor" and not (rounding == "trunc" and all(map(_is_natural, numbers))):
                return _UNKNOWN
            kind = "aten::floordiv"
        arithmetic = {"aten::add", "aten::sub", "aten::mul", "aten::floordiv", "aten::floor_divide", "aten::remainder", "aten::neg"}
        if kind not in arithmetic or not all(map(_is_integer, numbers)):
            return _UNKNOWN
        return NumberTensor(self._scalar("aten::floordiv" if kind == "aten::floor_divide" else kind, numbers), torch.int64)

    def _evaluate_number_tensor(self, node: torch_compat.Node, args: list[Any]) -> Any:
        """Compute an operator on 0-d tensors whose numbers are all known, as torch does; `_UNKNOWN` where that gives none."""
        overload = torch_compat.overload_of(node)
        if overload is None or torch_compat.written_arguments(overload):
            return _UNKNOWN
        tensors = [torch.tensor(arg.number, dtype=arg.dtype) if isinstance(arg, NumberTensor) else arg for arg in args]
        tensors = [self._constant_behind(arg) if isinstance(arg, TensorRef) else arg for arg in tensors]
        positional, keywords = torch_compat.bind(overload, tensors)
        result = self._evaluate(lambda: overload(*positional, **keywords), [])
        if isinstance(result, torch.Tensor) and not result.dim() and not result.is_complex():
            return NumberTensor(result.item(), result.dtype)
        return result if isinstance(result, (int, float, bool)) else _UNKNOWN

    def _constant_behind(self, ref: TensorRef) -> Any:
        return getattr(self._open().constants, str(ref.storage.node.target))

    def _number_behind(self, item: Any) -> Any:
        """Return the integer that a constant 0-d tensor holds; anything else as it is."""
        if not isinstance(item, TensorRef) or item.storage.node.op != "get_attr" or item.value.dim() or item.parent:
            return item
        constant = self._constant_behind(item)
        return constant.item() if constant.dtype in {torch.int64, torch.int32} else item

    def _scalar(self, kind: str, numbers: list[Any]) -> Any:
        if any(isinstance(number, fx.Node) for number in numbers):
            return self._import_symbolic(kind, numbers)
        return self._evaluate(scalars.FOLDED[kind], numbers)

    def _evaluate(self, function: Any, args: list[Any]) -> Any:
        try:
            return function(*args)
        except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CannotImportError(f"it fails on what is known of its input: {type(error).__name__}: {error}") from error

    def _own(self, item: Any) -> Any:
        """Note that a list or dict was made in this region, so that it may be changed there."""
        if isinstance(item, (list, dict)):
            self._open().own_lists[id(item)] = item
        return item

    def _import_call(self, node: torch_compat.Node, overload: torch._ops.OpOverload, args: list[Any]) -> list[Any]:
        """Import an operator that writes nothing."""
        positional, keywords = torch_compat.bind(overload, [self._lower(arg) for arg in args])
        call = self._call(overload, *positional, **keywords)
        bases = [arg for arg in args if isinstance(arg, TensorRef)]
        value = call.meta["val"]
        if isinstance(value, torch.Tensor):
            for base in bases:
                if torch_compat.shares_memory(value, base.value):
                    if base is not args[0]:
                        return [TensorRef(base.storage, base, (None, (), {}), call, base.storage.version)]
                    return [view_of(base, call, overload, positional[1:], keywords)]
            return [whole(call)]
        if isinstance(value, (list, tuple)):
            parts = [self._call(operator.getitem, call, index) for index in range(len(value))]
            returns_list = len(list(node.outputs())) == 1
            if overload in _SPLITS and bases:
                refs = pieces(overload, bases[0], parts, _dim_of(overload, positional, keywords))
            else:
                refs = [whole(part) for part in parts]
                for ref, base in ((ref, base) for ref in refs for base in bases):
                    if torch_compat.shares_memory(ref.value, base.value):
                        ref.storage, ref.parent, ref.view = base.storage, base, (None, (), {})
            return [self._own(refs)] if returns_list else list(refs)
        if isinstance(value, (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)):
            return [call if not isinstance(value, (int, float, bool)) else value]
        raise CannotImportError(f"its result is a {type(value).__name__}")

    def _import_write(
        self, node: torch_compat.Node, overload: torch._ops.OpOverload, args: list[Any], written: tuple[int, ...]
    ) -> TensorRef:
        """Import an in-place operator as its functional twin."""
        target = args[0]
        if written != (0,) or not isinstance(target, TensorRef):
            raise CannotImportError("it writes into an argument other than its first")
        if target.storage.is_external:
            self._share(next(iter(node.inputs())))
            raise CannotImportError("it writes into memory that other code can see")
        before = target.read(self._call)
        twin = torch_compat.functional_twin(overload)
        lowered = [before, *(self._lower(arg) for arg in args[1:])]
        if overload is aten.copy_.default:
            new = lowered[1]
        elif twin is None:
            raise CannotImportError("it writes in place and has no functional form")
        else:
            positional, keywords = torch_compat.bind(twin, lowered)
            new = self._call(twin, *positional, **keywords)
        target.write(self._fit(new, before), self._call)
        return target

    def _fit(self, new: fx.Node, before: fx.Node) -> fx.Node:
        """Give a value the dtype and shape of the tensor that it is written into."""
        old_value, value = before.meta["val"], new.meta["val"]
        if value.dtype != old_value.dtype:
            new = self._call(aten.to.dtype, new, old_value.dtype)
        if list(value.shape) != list(old_value.shape):
            if len(value.shape) > len(old_value.shape):
                raise CannotImportError("it changes the shape of a tensor in place")
            new = self._call(aten.expand_as.default, new, before)
        return new

    def _share(self, value: torch_compat.Value) -> None:
        """Note that a tensor is written into where other code can see it: every tensor that may share its memory stays real."""
        names = self.aliases.of(value)
        if names <= self.shared_write_names:
            return
        self.shared_write_names |= names
        raise _RestartError

    # -- prim nodes ------------------------------------------------------------------------------------------------------------

    def _import_list(self, node: torch_compat.Node) -> list[Any]:
        return [self._own([self._read_value(value) for value in node.inputs()])]

    def _import_tuple(self, node: torch_compat.Node) -> list[Any]:
        return [tuple(self._read_value(value) for value in node.inputs())]

    def _import_dict(self, node: torch_compat.Node) -> list[Any]:
        items = [self._read_value(value) for value in node.inputs()]
        if any(isinstance(key, (TensorRef, fx.Node, NumberTensor)) for key in items[::2]):
            raise CannotImportError("the keys of its dictionary depend on the input")
        return [self._own(dict(zip(items[::2], items[1::2])))]

    def _import_unpack(self, node: torch_compat.Node) -> list[Any]:
        members = self._read_value(node.input())
        if not isinstance(members, (list, tuple)) or len(members) != len(list(node.outputs())):
            raise CannotImportError("it unpacks a container of another length")
        return list(members)

    def _import_uninitialized(self, node: torch_compat.Node) -> list[Any]:
        return [None]

    def _import_size(self, node: torch_compat.Node) -> list[Any]:
        tensor, *rest = [self._read_value(value) for value in node.inputs()]
        if isinstance(tensor, NumberTensor):
            return [self._own([])]
        if not isinstance(tensor, TensorRef):
            raise CannotImportError("its input is not a tensor of known shape")
        if rest:
            if not isinstance(rest[0], int) or not -tensor.value.dim() <= rest[0] < max(tensor.value.dim(), 1):
                raise CannotImportError("it asks for a dimension that the tensor does not have")
            return [self._size(tensor, rest[0])]
        return [self._own([self._size(tensor, dim) for dim in range(tensor.value.dim())])]

    def _size(self, tensor: TensorRef, dim: int) -> Any:
        size = tensor.value.shape[dim]
        return size if isinstance(size, int) else self._call(aten.sym_size.int, tensor.read(self._call), dim % tensor.value.dim())

    def _import_tensor_property(self, node: torch_compat.Node) -> list[Any]:
        tensor = self._read_value(node.input())
        kind = node.kind()
        if kind == "prim::type" and isinstance(tensor, torch.device):
            return [tensor.type]
        if isinstance(tensor, NumberTensor):
            tensor = whole(self._as_node(tensor))
        if kind == "aten::len" and isinstance(tensor, (list, tuple, dict, str)):
            return [len(tensor)]
        if not isinstance(tensor, TensorRef):
            raise CannotImportError("its input is not a tensor of known type")
        value = tensor.value
        if kind == "aten::numel":
            total: Any = 1
            for dim in range(value.dim()):
                total = self._scalar("aten::mul", [total, self._size(tensor, dim)])
            return [total]
        if kind == "aten::len":
            return [self._size(tensor, 0)]
        return [_PROPERTIES[kind](value)]

    def _import_number_to_tensor(self, node: torch_compat.Node) -> list[Any]:
        number = self._read_value(node.input())
        number_type = type(number.meta["val"] if isinstance(number, fx.Node) else number)
        dtype = {int: torch.int64, torch.SymInt: torch.int64, bool: torch.bool}.get(number_type)
        if dtype is None:
            raise CannotImportError("it makes a tensor of a number that is not an integer")
        return [NumberTensor(number, dtype)]

    def _refuse(self, node: torch_compat.Node) -> list[Any]:
        raise CannotImportError(_REFUSALS[node.kind()])


_UNKNOWN: Any = object()

_PROPERTIES: dict[str, Any] = {
    "aten::dim": lambda value: value.dim(),
    "prim::type": lambda value: value.device.type,
    "prim::dtype": lambda value: torch_compat.dtype_number(value.dtype),
    "prim::device": lambda value: value.device,
    "prim::layout": lambda value: 0,
    "prim::is_cuda": lambda value: value.device.type == "cuda",
    "prim::is_sparse": lambda value: False,
    "prim::is_quantized": lambda value: value.is_quantized,
    "prim::requires_grad": lambda value: False,
    "aten::is_floating_point": lambda value: value.is_floating_point(),
    "aten::is_complex": lambda value: value.is_complex(),
    "aten::element_size": lambda value: value.element_size(),
}

_REFUSALS = {
    "prim::RaiseException": "it raises an exception",
    "prim::SetAttr": "it writes an attribute of the module",
    "prim::GetAttr": "it reads an attribute of the module that is written elsewhere",
    "prim::Print": "it prints",
    "prim::CallMethod": "it calls a method through an interface",
    "prim::CallFunction": "it calls a function that could not be inlined",
    "prim::Enter": "it enters a context manager",
    "prim::Exit": "it leaves a context manager",
    "prim::fork": "it starts an asynchronous task",
    "aten::wait": "it waits for an asynchronous task",
    "prim::CreateObject": "it makes an object of a scripted class",
}

_HANDLERS: dict[str, Any] = {
    "prim::If": _Importer._import_if,
    "prim::Loop": _Importer._import_loop,
    "prim::ListConstruct": _Importer._import_list,
    "prim::TupleConstruct": _Importer._import_tuple,
    "prim::DictConstruct": _Importer._import_dict,
    "prim::Uninitialized": _Importer._import_uninitialized,
    "prim::ListUnpack": _Importer._import_unpack,
    "prim::TupleUnpack": _Importer._import_unpack,
    "prim::NumToTensor": _Importer._import_number_to_tensor,
    "aten::size": _Importer._import_size,
    "aten::sym_size": _Importer._import_size,
    "aten::numel": _Importer._import_tensor_property,
    "aten::len": _Importer._import_tensor_property,
    **dict.fromkeys(_PROPERTIES, _Importer._import_tensor_property),
    **dict.fromkeys(_REFUSALS, _Importer._refuse),
}


def _mark(node: torch_compat.Node, index: int) -> None:
    node.i_(_MARK_REGION, index)
    for block in node.blocks():
        for inner in block.nodes():
            _mark(inner, index)
        block.returnNode().i_(_MARK_REGION, index)


def _unmark(node: torch_compat.Node) -> None:
    node.removeAttribute(_MARK_REGION)
    for block in node.blocks():
        for inner in block.nodes():
            _unmark(inner)
        block.returnNode().removeAttribute(_MARK_REGION)


def _is_marked(node: torch_compat.Node, index: int) -> bool:
    return bool(node.hasAttribute(_MARK_REGION) and node.i(_MARK_REGION) == index)


def _is_integer(item: Any) -> bool:
    if isinstance(item, fx.Node):
        return isinstance(item.meta["val"], (int, torch.SymInt))
    return isinstance(item, int)


def _is_natural(item: Any) -> bool:
    """Return whether a number is an integer that is never negative."""
    if isinstance(item, fx.Node):
        value = item.meta["val"]
        return isinstance(value, torch.SymInt) and torch_compat.decide(value >= 0) is True
    return isinstance(item, int) and item >= 0


def _has_tensors(item: Any) -> bool:
    if isinstance(item, (list, tuple)):
        return any(map(_has_tensors, item))
    if isinstance(item, dict):
        return any(map(_has_tensors, item.values()))
    return isinstance(item, (TensorRef, NumberTensor, torch.Tensor))


def _merge(first: Any, second: Any = _UNKNOWN) -> Any:
    """Return what is known of a value that is one of two."""
    if all(isinstance(item, torch.Tensor) and torch_compat.is_fake(item) for item in (first, second)):
        same = first.dtype == second.dtype and first.device == second.device and list(first.shape) == list(second.shape)
        return first if same else _UNKNOWN
    if isinstance(first, (int, float, str, type(None))) and type(first) is type(second) and first == second:
        return first
    return _UNKNOWN


def _dim_of(overload: torch._ops.OpOverload, positional: Sequence[Any], keywords: dict[str, Any]) -> int:
    for place, argument in enumerate(overload._schema.arguments):
        if argument.name == "dim":
            default: Any = argument.default_value
            return int(keywords.get("dim", positional[place] if place < len(positional) else default))
    return 0


def _identifier(value: torch_compat.Value) -> str:
    name = value.debugName().removeprefix("self.").replace(".", "_")
    return name if name.isidentifier() else f"v_{name}"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]

"""What each TorchScript node does, on the abstract values of a region being built."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx

from tiacc.graph import torch_compat
from tiacc.graph.aliases import usual
from tiacc.graph.knowledge import Facts
from tiacc.graph.layouts import MAY_COPY, OWN_LAYOUT, TELL_LAYOUT
from tiacc.graph.number_importer import NumberImporter
from tiacc.graph.number_operands import as_numbers, taken_for_numbers
from tiacc.graph.region_builder import UNKNOWN, NumberTensor, RegionBuilder, has_tensors
from tiacc.graph.regions import UNINITIALISED
from tiacc.graph.storage import CannotImportError, NeedsGuardError, TensorRef, overlaps, part_of, pieces, view_of, whole

aten = torch.ops.aten

LOOP_LIMIT = 512
"""Loops of more iterations than this are not unrolled."""

MOST_UNROLLED = 1024
"""A loop that comes to more operators than this is not unrolled: backends take long to build so many, and little is gained."""

MARK_LEAVE = "tiacc_leave"
"""The attribute of a node that is not to be tried again: the reason why it stays in TorchScript."""

_SPLITS = frozenset(
    {aten.split.Tensor, aten.split.sizes, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int}
    | {aten.tensor_split.sections, aten.tensor_split.indices}
    | {aten.unsafe_chunk.default, aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default}
)


class SpliceError(Exception):
    """A branch whose condition is known cannot be imported as a whole: its block shall stand in its place.

    Attributes:
        block: Which of its blocks.
    """

    def __init__(self, block: int) -> None:
        super().__init__(block)
        self.block = block


class NodeImporter(NumberImporter):
    """Imports nodes into a region.

    Args:
        builder: The region.
        facts: What was learnt in earlier attempts at the model; what is found is added.
    """

    def __init__(self, builder: RegionBuilder, facts: Facts) -> None:
        super().__init__(builder)
        self.facts = facts
        self.depth = 0

    def import_node(self, node: torch_compat.Node) -> None:
        """Import one node into the current region.

        Raises:
            CannotImportError: It stays in TorchScript.
            SpliceError: It is a branch; its block shall be imported in its place.
        """
        if node.hasAttribute(MARK_LEAVE):
            raise CannotImportError(node.s(MARK_LEAVE))
        kind = node.kind()
        if not self.depth:
            self.builder.source = torch_compat.source_of(node)
            self.builder.path = self.builder.paths.path_of(node)
        outputs = torch_compat.outputs_of(node)
        if any(output.unique() in self.facts.shared_writes for output in outputs):
            raise CannotImportError("its result shares memory with a tensor that is written into")
        handler = _HANDLERS.get(kind)
        try:
            results = handler(self, node) if handler else self._import_operator(node)
        except CannotImportError as error:
            if self.builder.knowledge.take_taint():
                node.s_(MARK_LEAVE, str(error))
                self.facts.must_restart = True
            raise
        if not outputs:  # what a write into a dictionary gives has no name
            return
        for output, item in zip(outputs, results, strict=True):
            self.builder.env[output.unique()] = float(item) if _is_int(item) and output.type().kind() == "FloatType" else item

    def _import_nested(self, block: torch_compat.Block, arguments: Iterable[Any]) -> list[Any]:
        """Import a block as part of the current region, all or nothing, and return its results."""
        for value, argument in zip(block.inputs(), arguments):
            self.builder.env[value.unique()] = argument
        self.depth += 1
        try:
            for node in block.nodes():
                if node.kind() == "prim::Constant":
                    self.builder.knowledge.learn_constant(node)
                else:
                    self.import_node(node)
            return [self.builder.read(value) for value in block.outputs()]
        finally:
            self.depth -= 1

    def _import_if(self, node: torch_compat.Node) -> list[Any]:
        condition = self.builder.read(node.input())
        if isinstance(condition, fx.Node):
            condition = torch_compat.decide(condition.meta["val"])
        if not isinstance(condition, bool):
            raise CannotImportError("its condition depends on the input")
        taken = 0 if condition else 1
        mark = self.builder.undo_mark()
        try:
            return self._import_nested(torch_compat.blocks_of(node)[taken], ())
        except CannotImportError as error:
            if self.depth:
                raise
            self.builder.undo(mark)
            if isinstance(error, NeedsGuardError):
                raise
            raise SpliceError(taken) from error

    def _import_loop(self, node: torch_compat.Node) -> list[Any]:
        count, condition, *carried = [self.builder.read(value) for value in torch_compat.inputs_of(node)]
        if not isinstance(count, int) or (count > LOOP_LIMIT and condition is True):
            raise CannotImportError("the number of its iterations depends on the input, or is large")
        (body,) = torch_compat.blocks_of(node)
        mark, size = self.builder.undo_mark(), self.builder.size
        try:
            for step in range(min(count, LOOP_LIMIT + 1)):
                if self.builder.size > size + MOST_UNROLLED:
                    raise CannotImportError(f"it comes to more than {MOST_UNROLLED} operators")
                if condition is False:
                    break
                if condition is not True or step == LOOP_LIMIT:
                    raise CannotImportError("the number of its iterations depends on the input, or is large")
                condition, *carried = self._import_nested(body, (step, *carried))
        except CannotImportError as error:
            if self.depth:
                raise
            self.builder.undo(mark)
            if isinstance(error, NeedsGuardError):
                raise
            reason = f"a part of it cannot be imported: {error}"
            node.s_(MARK_LEAVE, reason)
            raise CannotImportError(reason) from error
        return carried

    def _import_operator(self, node: torch_compat.Node) -> list[Any]:
        kind = node.kind()
        args = taken_for_numbers(node, [self.builder.read(value) for value in torch_compat.inputs_of(node)], self.builder)
        number = self._import_scalar(node, kind, args)
        if number is not UNKNOWN:
            return [number]
        overload = torch_compat.overload_of(node)
        if overload is None or (kind.startswith("prim::") and not args):  # what it gives is an attribute of the node
            raise CannotImportError("it is not an operator that the importer knows")
        overload, args = as_numbers(usual(overload), args, self.builder)
        if overload is aten.repeat_interleave.self_Tensor:
            repeats = args[1].number if isinstance(args[1], NumberTensor) else self._number_behind(args[1])
            if not isinstance(repeats, TensorRef):  # one number for all
                overload, args[1] = aten.repeat_interleave.self_int, repeats
        if any(isinstance(arg, fx.Node) for arg in args) and not has_tensors(args) and not torch_compat.makes_tensors(overload):
            raise CannotImportError("it computes with a size that varies in a way that the importer does not know")
        if torch_compat.is_random(overload, args):
            raise CannotImportError("it draws random numbers")
        written = torch_compat.written_arguments(overload)
        if written:
            return [self._import_write(node, overload, args, written)]
        return self._import_call(node, overload, args)

    def _import_call(self, node: torch_compat.Node, overload: torch._ops.OpOverload, args: list[Any]) -> list[Any]:
        """Import an operator that writes nothing."""
        if overload in TELL_LAYOUT and isinstance(args[0], TensorRef) and not _is_laid_out_by_itself(args[0]):
            raise CannotImportError("it depends on how a tensor is laid out, which is known when the model runs")
        values = [self.builder.lower(arg) for arg in args]
        positional, keywords = torch_compat.bind(overload, values)
        call = self.builder.call(overload, *positional, **keywords)
        pairs = [pair for new, arg in zip(values, args) for pair in (zip(arg, new) if isinstance(arg, list) else [(arg, new)])]
        bases = [arg for arg, _ in pairs if isinstance(arg, TensorRef)]
        lowered = [new for arg, new in pairs if isinstance(arg, TensorRef)]
        numbers = [arg for arg, _ in pairs if isinstance(arg, NumberTensor)] if torch_compat.may_alias(overload) else []
        for number in numbers:
            number.has_views = True
        value = call.meta["val"]
        if isinstance(value, torch.Tensor):
            for base, argument in zip(bases, lowered):
                if torch_compat.may_alias(overload) and not (
                    self.builder.knowledge.samples.shares_as_promised(call, argument) and _shares_in_any_layout(overload, base, value)
                ):
                    return [part_of(base, call)]  # a view at some sizes or of some layouts, and a copy at others
                if torch_compat.shares_memory(value, base.value):
                    if base is not args[0]:
                        return [part_of(base, call)]
                    return [view_of(base, call, overload, positional[1:], keywords)]
            return [self._alone(call, numbers)]
        if isinstance(value, (list, tuple)):
            parts = [self.builder.call(operator.getitem, call, index) for index in range(len(value))]
            returns_list = node.outputsSize() == 1
            if overload in _SPLITS and bases:
                refs = pieces(overload, bases[0], parts, _dim_of(overload, positional, keywords))
            else:
                refs = [self._result(part, bases, numbers) for part in parts]
            return [self.builder.own(refs)] if returns_list else list(refs)
        if isinstance(value, (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)):
            return [call if not isinstance(value, (int, float, bool)) else value]
        raise CannotImportError(f"its result is a {type(value).__name__}")

    def _result(self, part: fx.Node, bases: Sequence[TensorRef], numbers: Sequence[NumberTensor]) -> TensorRef:
        """Return the ref of one of several results."""
        base = next((base for base in bases if torch_compat.shares_memory(part.meta["val"], base.value)), None)
        return self._alone(part, numbers) if base is None else part_of(base, part)

    def _alone(self, node: fx.Node, numbers: Sequence[NumberTensor]) -> TensorRef:
        """Return the ref of a result that is a view of no tensor, unless it is one of `numbers`: it cannot be written into then."""
        ref = whole(node)
        ref.storage.has_lasting_parts = bool(numbers)
        return ref

    def _import_write(
        self, node: torch_compat.Node, overload: torch._ops.OpOverload, args: list[Any], written: tuple[int, ...]
    ) -> TensorRef:
        """Import an in-place operator as its functional twin."""
        target = args[0]
        if written != (0,) or not isinstance(target, TensorRef):
            raise CannotImportError("it writes into an argument other than its first")
        if target.storage.is_external:
            self.facts.share(node, next(iter(node.inputs())), self.builder.knowledge.aliases)
            raise CannotImportError("it writes into memory that other code can see")
        if any(isinstance(arg, TensorRef) and overlaps(target, arg) for arg in args[1:]):
            raise CannotImportError("it reads a part of the memory that it writes into")
        before = target.read(self.builder.call)
        twin = torch_compat.functional_twin(overload)
        if twin is not None:
            twin, args = as_numbers(usual(twin), args, self.builder)
        lowered = [before, *(self.builder.lower(arg) for arg in args[1:])]
        if overload is aten.copy_.default:
            new = self.builder.call(aten.clone.default, self._fit(lowered[1], before))
        elif twin is None:
            raise CannotImportError("it writes in place and has no functional form")
        else:
            positional, keywords = torch_compat.bind(twin, lowered)
            new = self.builder.call(twin, *positional, **keywords)
            if not torch.can_cast(new.meta["val"].dtype, before.meta["val"].dtype):
                raise CannotImportError("the dtype of its result cannot be written into its input")
        self.builder.note_write(target.storage)
        target.write(self._fit(new, before), self.builder.call)
        return target

    def _fit(self, new: fx.Node, before: fx.Node) -> fx.Node:
        """Give a value the dtype and shape of the tensor that it is written into."""
        old_value, value = before.meta["val"], new.meta["val"]
        if value.dtype != old_value.dtype:
            new = self.builder.call(aten.to.dtype, new, old_value.dtype)
        if value.dim() != old_value.dim() or not all(map(torch_compat.same_size, value.shape, old_value.shape)):
            if value.dim() > old_value.dim():
                raise CannotImportError("it changes the shape of a tensor in place")
            new = self.builder.call(aten.expand_as.default, new, before)
        return new

    # -- prim nodes ------------------------------------------------------------------------------------------------------------

    def _import_list(self, node: torch_compat.Node) -> list[Any]:
        return [self.builder.own([self.builder.read(value) for value in torch_compat.inputs_of(node)])]

    def _import_tuple(self, node: torch_compat.Node) -> list[Any]:
        return [tuple(self.builder.read(value) for value in torch_compat.inputs_of(node))]

    def _import_dict(self, node: torch_compat.Node) -> list[Any]:
        items = [self.builder.read(value) for value in torch_compat.inputs_of(node)]
        return [self._new_dict(zip(items[::2], items[1::2]))]

    def _import_dict_of(self, node: torch_compat.Node) -> list[Any]:
        """Import ``dict()``, of nothing, of pairs or of another."""
        items: Any = next((self.builder.read(value) for value in torch_compat.inputs_of(node)), ())
        return [self._new_dict(items.items() if isinstance(items, dict) else items)]

    def _new_dict(self, pairs: Iterable[tuple[Any, Any]]) -> Any:
        items = dict(pairs)
        for key in items:
            self._check_key(key)
        return self.builder.own(items)

    def _import_unpack(self, node: torch_compat.Node) -> list[Any]:
        members = self.builder.read(node.input())
        if not isinstance(members, (list, tuple)) or len(members) != node.outputsSize():
            raise CannotImportError("it unpacks a container of another length")
        return list(members)

    def _import_uninitialized(self, node: torch_compat.Node) -> list[Any]:
        return [UNINITIALISED]

    def _import_size(self, node: torch_compat.Node) -> list[Any]:
        tensor, *rest = [self.builder.read(value) for value in torch_compat.inputs_of(node)]
        if isinstance(tensor, NumberTensor):
            return [self.builder.own([])]
        if not isinstance(tensor, TensorRef):
            raise CannotImportError("its input is not a tensor of known shape")
        if rest:
            if not isinstance(rest[0], int) or not -tensor.value.dim() <= rest[0] < tensor.value.dim():
                raise CannotImportError("it asks for a dimension that the tensor does not have")
            return [self._size(tensor, rest[0])]
        return [self.builder.own([self._size(tensor, dim) for dim in range(tensor.value.dim())])]

    def _size(self, tensor: TensorRef, dim: int) -> Any:
        size = tensor.value.shape[dim]
        if isinstance(size, int):
            return size
        return self.builder.call(aten.sym_size.int, tensor.read(self.builder.call), dim % tensor.value.dim())

    def _import_tensor_property(self, node: torch_compat.Node) -> list[Any]:
        tensor = self.builder.read(node.input())
        kind = node.kind()
        if kind == "prim::type" and isinstance(tensor, torch.device):
            return [tensor.type]
        if isinstance(tensor, NumberTensor):
            tensor = whole(self.builder.as_node(tensor))
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
            if not value.dim():
                raise CannotImportError("it asks for the length of a tensor without dimensions")
            return [self._size(tensor, 0)]
        return [_PROPERTIES[kind](value)]

    def _import_number_to_tensor(self, node: torch_compat.Node) -> list[Any]:
        number = self.builder.read(node.input())
        number_type = type(number.meta["val"] if isinstance(number, fx.Node) else number)
        dtype = {int: torch.int64, torch.SymInt: torch.int64, bool: torch.bool}.get(number_type)
        if dtype is None:
            raise CannotImportError("it makes a tensor of a number that is not an integer")
        return [NumberTensor(number, dtype)]

    def _refuse(self, node: torch_compat.Node) -> list[Any]:
        raise CannotImportError(_REFUSALS[node.kind()])


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
    "prim::PythonOp": "it calls a function of Python",
    "prim::CreateObject": "it makes an object of a scripted class",
}

_HANDLERS: dict[str, Any] = {
    "prim::If": NodeImporter._import_if,
    "prim::Loop": NodeImporter._import_loop,
    "prim::ListConstruct": NodeImporter._import_list,
    "prim::TupleConstruct": NodeImporter._import_tuple,
    "prim::DictConstruct": NodeImporter._import_dict,
    "aten::dict": NodeImporter._import_dict_of,
    "prim::Uninitialized": NodeImporter._import_uninitialized,
    "prim::ListUnpack": NodeImporter._import_unpack,
    "prim::TupleUnpack": NodeImporter._import_unpack,
    "prim::NumToTensor": NodeImporter._import_number_to_tensor,
    "aten::size": NodeImporter._import_size,
    "aten::sym_size": NodeImporter._import_size,
    "aten::numel": NodeImporter._import_tensor_property,
    "aten::len": NodeImporter._import_tensor_property,
    **dict.fromkeys(_PROPERTIES, NodeImporter._import_tensor_property),
    **dict.fromkeys(_REFUSALS, NodeImporter._refuse),
}


def _is_int(item: Any) -> bool:
    return isinstance(item, int) and not isinstance(item, bool)


def _is_laid_out_by_itself(ref: TensorRef) -> bool:
    """Return whether a tensor is laid out in the same way however the caller's tensors are."""
    node = ref.storage.node
    return node.op == "get_attr" or node.target in OWN_LAYOUT


def _shares_in_any_layout(overload: torch._ops.OpOverload, base: TensorRef, value: torch.Tensor) -> bool:
    """Return whether what an operator gives shares memory with `base`, or does not, in whatever way the caller's tensors are laid out."""
    if overload not in MAY_COPY and overload is not aten.contiguous.default:
        return True
    has_same_shape = base.value.dim() == value.dim() and all(map(torch_compat.same_size, base.value.shape, value.shape))
    return _is_laid_out_by_itself(base) or (has_same_shape and overload in MAY_COPY)


def _dim_of(overload: torch._ops.OpOverload, positional: Sequence[Any], keywords: dict[str, Any]) -> int:
    for place, argument in enumerate(overload._schema.arguments):
        if argument.name == "dim":
            default: Any = argument.default_value
            return int(keywords.get("dim", positional[place] if place < len(positional) else default))
    return 0

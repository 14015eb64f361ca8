"""What TorchScript nodes compute with numbers, strings and containers, and with 0-d tensors that stand for numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from tiacc.graph import scalars, torch_compat
from tiacc.graph.region_builder import UNKNOWN, NumberTensor, RegionBuilder, has_tensors
from tiacc.graph.storage import CannotImportError, TensorRef


class NumberImporter:
    """Imports computations with numbers into a region.

    Args:
        builder: The region.
    """

    def __init__(self, builder: RegionBuilder) -> None:
        self.builder = builder

    def _import_scalar(self, node: torch_compat.Node, kind: str, args: list[Any]) -> Any:
        """Import a computation with numbers or containers; `UNKNOWN` when it is one with tensors."""
        first = args[0] if args else None
        if kind in scalars.PASSED_THROUGH and not isinstance(first, (TensorRef, NumberTensor)):
            return first
        if kind in {"prim::unchecked_cast", "aten::detach"} and isinstance(first, (TensorRef, NumberTensor)):
            return first
        if isinstance(first, (list, tuple, dict)) and kind in scalars.CONTAINER_WRITES:
            if not self.builder.owns(first):
                raise CannotImportError("it changes a container that other code can see")
            if kind == "aten::_set_item":
                self._check_key(args[1])
            self.builder.note_change(first)
            return self._evaluate(scalars.CONTAINER_WRITES[kind], args)
        in_container = isinstance(first, (list, tuple, dict, str))
        if kind in scalars.CONTAINER_READS and (in_container or kind in {"aten::__derive_index", "aten::__range_length"}):
            if kind == "aten::slice" and not in_container:
                return UNKNOWN
            if any(isinstance(arg, fx.Node) for arg in args[1:]):
                raise CannotImportError("its index depends on the input")
            if kind == "aten::__contains__" and isinstance(first, (list, tuple)):
                return self._contains(first, args[1])
            return self.builder.own(self._evaluate(scalars.CONTAINER_READS[kind], args))
        if any(isinstance(arg, NumberTensor) for arg in args):
            return self._import_number_tensor(node, kind, args)
        if any(isinstance(arg, TensorRef) for arg in args) or has_tensors(args):
            if kind in {"aten::__is__", "aten::__isnot__"}:
                return (args[0] is args[1]) == (kind == "aten::__is__")
            return UNKNOWN
        if kind == "aten::tensor" and args[1:] == [None, None, False] and _is_integer(first) and not isinstance(first, bool):
            return NumberTensor(first, torch.int64)
        if any(isinstance(arg, fx.Node) for arg in args):
            return self._import_symbolic(kind, args)
        if kind in scalars.FOLDED and kind not in {"aten::__is__", "aten::__isnot__"} and any(map(_varies, args)):
            return self._import_varying_list(kind, args)
        if kind in scalars.FOLDED:
            return self._evaluate(scalars.FOLDED[kind], args)
        return UNKNOWN

    def _import_varying_list(self, kind: str, args: list[Any]) -> bool:
        is_equal = self._are_equal(*args) if kind in {"aten::eq", "aten::ne"} else None
        if is_equal is None:
            raise CannotImportError("it computes with a list of sizes that vary in a way that the importer does not know")
        return is_equal == (kind == "aten::eq")

    def _are_equal(self, one: Any, other: Any) -> bool | None:
        """Return whether two numbers, or lists of numbers, are equal; None where that depends on sizes that vary."""
        if not isinstance(one, (list, tuple)) or not isinstance(other, (list, tuple)):
            result = self._scalar("aten::eq", [one, other])
            return result if isinstance(result, bool) else None
        found = {self._are_equal(*pair) for pair in zip(one, other)} if len(one) == len(other) else {False}
        return False if False in found else None if None in found else True

    def _contains(self, items: Any, wanted: Any) -> bool:
        if has_tensors(items) or has_tensors(wanted):
            raise CannotImportError("it looks for a tensor")
        found = {self._are_equal(item, wanted) for item in items}
        if None in found and True not in found:
            raise CannotImportError("what it finds depends on the input")
        return True in found

    def _check_key(self, key: Any) -> None:
        if isinstance(key, (TensorRef, fx.Node, NumberTensor)):
            raise CannotImportError("the keys of its dictionary, or its index, depend on the input")

    def _import_symbolic(self, kind: str, args: list[Any]) -> Any:
        function = scalars.SYMBOLIC.get(kind)
        if function is None or any(isinstance(arg, (list, tuple)) for arg in args):
            return UNKNOWN
        if kind in scalars.OF_INTEGERS and not all(map(_is_integer, args)):
            return UNKNOWN
        node = self.builder.call(function, *args)
        value = node.meta["val"]
        known = torch_compat.decide(value) if isinstance(value, (bool, torch.SymBool)) else value
        return node if known is None or isinstance(known, (torch.SymInt, torch.SymFloat)) else known

    def _import_number_tensor(self, node: torch_compat.Node, kind: str, args: list[Any]) -> Any:
        """Compute on the numbers behind 0-d tensors, where the operator is integer arithmetic; `UNKNOWN` otherwise."""
        numbers = [arg.number if isinstance(arg, NumberTensor) else self._number_behind(arg) for arg in args]
        overload = torch_compat.overload_of(node)
        if overload is not None and torch_compat.written_arguments(overload):
            return self._write_number(overload, kind, args, numbers)
        if kind in {"aten::Int", "aten::ScalarImplicit", "aten::IntImplicit", "aten::item", "aten::FloatImplicit", "aten::Float"}:
            wanted = "aten::Float" if kind in {"aten::Float", "aten::FloatImplicit"} else "aten::Int"
            number = numbers[0]
            if wanted == "aten::Float" or not _is_integer(number):
                return self._scalar(wanted, [number])
            return number
        return self._compute_number(overload, kind, args, numbers)

    def _write_number(self, overload: torch._ops.OpOverload, kind: str, args: list[Any], numbers: list[Any]) -> Any:
        """Compute an in-place operator on a 0-d tensor that stands for a number; `UNKNOWN` where that is not possible."""
        target, twin = args[0], torch_compat.functional_twin(overload)
        if not isinstance(target, NumberTensor) or target.has_views or twin is None or torch_compat.written_arguments(overload) != (0,):
            return UNKNOWN
        result = self._compute_number(twin, kind.removesuffix("_"), args, numbers)
        if not isinstance(result, NumberTensor) or result.dtype != target.dtype:
            return UNKNOWN
        self.builder.write_number(target, result.number)
        return target

    def _compute_number(self, overload: torch._ops.OpOverload | None, kind: str, args: list[Any], numbers: list[Any]) -> Any:
        if all(isinstance(number, (int, float, str)) or number is None for number in numbers):
            return UNKNOWN if overload is None else self._evaluate_number_tensor(overload, args)
        if kind == "aten::rsub" and len(numbers) == 3:
            kind, numbers = "aten::sub", [numbers[1], numbers[0], numbers[2]]
        if kind in {"aten::add", "aten::sub"} and len(numbers) == 3 and numbers.pop() != 1:
            return UNKNOWN
        if kind == "aten::div" and len(numbers) == 3:
            rounding = numbers.pop()
            if rounding != "floor" and not (rounding == "trunc" and all(map(_is_natural, numbers))):
                return UNKNOWN
            kind = "aten::floordiv"
        arithmetic = {"aten::add", "aten::sub", "aten::mul", "aten::floordiv", "aten::floor_divide", "aten::remainder", "aten::neg"}
        if kind not in arithmetic or not all(map(_is_integer, numbers)):
            return UNKNOWN
        return NumberTensor(self._scalar("aten::floordiv" if kind == "aten::floor_divide" else kind, numbers), torch.int64)

    def _evaluate_number_tensor(self, overload: torch._ops.OpOverload, args: list[Any]) -> Any:
        """Compute an operator on 0-d tensors whose numbers are all known, as torch does; `UNKNOWN` where that gives none."""
        if torch_compat.is_random(overload, args):
            return UNKNOWN
        tensors = [torch.tensor(arg.number, dtype=arg.dtype) if isinstance(arg, NumberTensor) else arg for arg in args]
        tensors = [self.builder.constant_behind(arg) if isinstance(arg, TensorRef) else arg for arg in tensors]
        positional, keywords = torch_compat.bind(overload, tensors)
        result = self._evaluate(lambda: overload(*positional, **keywords), [])
        if not isinstance(result, torch.Tensor):
            return result if isinstance(result, (int, float, bool)) else UNKNOWN
        if result.dim() or result.is_complex():
            return UNKNOWN
        for arg, tensor in zip(args, tensors):
            if isinstance(tensor, torch.Tensor) and torch_compat.shares_memory(result, tensor):
                return arg if isinstance(arg, NumberTensor) and arg.dtype == result.dtype else UNKNOWN
        return NumberTensor(result.item(), result.dtype)

    def _number_behind(self, item: Any) -> Any:
        """Return the integer that a constant 0-d tensor holds; anything else as it is."""
        if not isinstance(item, TensorRef) or item.value.dim():
            return item
        constant = self.builder.constant_behind(item)
        return constant.item() if constant is not None and constant.dtype in {torch.int64, torch.int32} else item

    def _scalar(self, kind: str, numbers: list[Any]) -> Any:
        if any(isinstance(number, fx.Node) for number in numbers):
            return self._import_symbolic(kind, numbers)
        return self._evaluate(scalars.FOLDED[kind], numbers)

    def _evaluate(self, function: Any, args: list[Any]) -> Any:
        try:
            result = function(*args)
        except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CannotImportError(f"it fails on what is known of its input: {type(error).__name__}: {error}") from error
        if isinstance(result, int) and not -(2**63) <= result < 2**63:
            raise CannotImportError("its result does not fit in 64 bits")
        return result


def _varies(item: Any) -> bool:
    """Return whether a container holds a number that depends on sizes."""
    if isinstance(item, dict):
        return any(map(_varies, item.values()))
    if isinstance(item, (list, tuple)):
        return any(isinstance(member, fx.Node) or _varies(member) for member in item)
    return False


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

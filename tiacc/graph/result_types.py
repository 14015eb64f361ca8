"""The types of results, remembered: what an operator gives for arguments of some types it gives for all others of these types.

A deep model has the same layers over and over, and torch takes a tenth of a millisecond to infer a result. What is remembered is told by
types and numbers alone: of tensors whose sizes are numbers, and of results that have memory of their own or are views of one argument.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tiacc.graph import torch_compat

_PLAIN = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format)


class _CannotTellError(Exception):
    """Types do not tell a value, or not all of it."""


@dataclass(frozen=True)
class _Result:
    """What is remembered of a tensor.

    Attributes:
        type: Its type.
        base: The place among the tensors in the arguments of the one that it is a view of; None where it is new.
    """

    type: torch_compat.PlainType
    base: int | None


class ResultTypes:
    """What calls gave in one fake mode."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Any] = {}

    def call(
        self, mode: FakeTensorMode, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], infer: Callable[[], Any]
    ) -> Any:
        """Return what ``function(*args, **kwargs)`` gives: new tensors of the types that are known, else what `infer` returns.

        Args:
            mode: The mode of all tensors.
            function: What depends on nothing but its arguments.
            args: Fake tensors, numbers, lists of these, and what else a call may be given.
            kwargs: As `args`.
            infer: Makes the call.
        """
        if function is operator.getitem:
            return args[0][args[1]]
        given: list[torch.Tensor] = []
        try:
            key = function, _form(args, given), *((name, _form(value, given)) for name, value in kwargs.items())
        except _CannotTellError:
            return infer()
        known = self._known.get(key)
        if known is not None:
            return _made(mode, known, given)
        result = infer()
        with suppress(_CannotTellError):
            self._known[key] = _remembered(result, given, _tensors(result))
        return result


def _form(value: Any, given: list[torch.Tensor]) -> Hashable:
    """Return what two arguments have in common that may stand for each other; 1, 1.0 and True may not. Tensors are added to `given`."""
    if isinstance(value, torch.Tensor):
        plain = torch_compat.plain_type(value)
        if plain is not None:
            given.append(value)
            return plain
    elif isinstance(value, (list, tuple)):
        return tuple([_form(item, given) for item in value])
    elif isinstance(value, _PLAIN):
        return type(value), value
    raise _CannotTellError


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return [value] if isinstance(value, torch.Tensor) else []


def _remembered(result: Any, given: list[torch.Tensor], results: list[torch.Tensor]) -> Any:
    """Return a result with what is remembered of each tensor in its place."""
    if type(result) in (list, tuple):
        return type(result)(_remembered(item, given, results) for item in result)
    plain = torch_compat.plain_type(result) if isinstance(result, torch.Tensor) else None
    if plain is None or any(result is tensor for tensor in given):
        raise _CannotTellError
    bases = [place for place, tensor in enumerate(given) if torch_compat.shares_memory(result, tensor)]
    if len(bases) == 1:
        return _Result(plain, bases[0])
    is_alone = not any(other is not result and torch_compat.shares_memory(result, other) for other in results)
    if bases or not is_alone or not plain.fills_memory:
        raise _CannotTellError
    return _Result(plain, None)


def _made(mode: FakeTensorMode, known: Any, given: list[torch.Tensor]) -> Any:
    if not isinstance(known, _Result):
        return type(known)(_made(mode, item, given) for item in known)
    if known.base is None:
        return torch_compat.fake_of(mode, known.type)
    return torch_compat.fake_view(mode, known.type, given[known.base])

"""The types of results, remembered: what an operator gives for arguments of some types it gives for all others of these types.

A deep model has the same layers over and over, and torch takes a tenth of a millisecond to infer a result. What is remembered is told by
types and numbers alone: of tensors whose sizes are numbers, and of results that share memory with nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tiacc.graph import torch_compat

_PLAIN = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format)


class _CannotTellError(Exception):
    """Types do not tell a value, or not all of it."""


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
        try:
            key = function, tuple(map(_form, args)), tuple((name, _form(value)) for name, value in kwargs.items())
        except _CannotTellError:
            return infer()
        known = self._known.get(key)
        if known is not None:
            return _made(mode, known)
        result = infer()
        try:
            types = _types(result)
        except _CannotTellError:
            return result
        if _is_new(_tensors(result), _tensors((*args, *kwargs.values()))):
            self._known[key] = types
        return result


def _form(value: Any) -> Hashable:
    """Return what two arguments have in common that may stand for each other; 1, 1.0 and True may not."""
    if isinstance(value, torch.Tensor):
        plain = torch_compat.plain_type(value)
        if plain is not None:
            return plain
    elif isinstance(value, (list, tuple)):
        return tuple(map(_form, value))
    elif isinstance(value, _PLAIN):
        return type(value), value
    raise _CannotTellError


def _types(result: Any) -> Any:
    """Return a result with the type of each tensor in its place."""
    if type(result) in (list, tuple):
        return type(result)(map(_types, result))
    plain = torch_compat.plain_type(result) if isinstance(result, torch.Tensor) and torch_compat.fills_its_memory(result) else None
    if plain is None:
        raise _CannotTellError
    return plain


def _made(mode: FakeTensorMode, types: Any) -> Any:
    if isinstance(types, torch_compat.PlainType):
        return torch_compat.fake_of(mode, types)
    return type(types)(_made(mode, item) for item in types)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return [value] if isinstance(value, torch.Tensor) else []


def _is_new(results: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    """Return whether results share memory with none of some other tensors, and with none of themselves."""
    return not any(
        torch_compat.shares_memory(result, other) for place, result in enumerate(results) for other in (*others, *results[:place])
    )

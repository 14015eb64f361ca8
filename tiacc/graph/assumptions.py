"""What the regions of a model rely on in the arguments of ``forward``, beyond the types that TorchScript knows.

A list may have any length, a dictionary any keys, and an optional tensor may be None. The regions are made for one form of these, and
the optimized code runs where an argument has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tiacc.graph import torch_compat
from tiacc.graph.types import TensorSpec


@dataclass(frozen=True)
class Assumed:
    """An argument of ``forward`` that is assumed to have one value: the regions hold for that value only.

    Attributes:
        value: A number, a string, or None.
    """

    value: Any


@dataclass(frozen=True)
class Form:
    """The form that an argument is assumed to have.

    Attributes:
        keys: The keys of a dictionary, in order; the length of a list; None for a tensor that might have been None.
    """

    keys: tuple[int | str, ...] | int | None

    def __repr__(self) -> str:
        if self.keys is None:
            return "a tensor"
        if isinstance(self.keys, int):
            return f"a list of {self.keys}"
        return f"a dictionary with the keys {', '.join(map(repr, self.keys))}"


UNKNOWN: Any = object()
"""What is known of a value of which nothing is."""


def form_of(given: Any, declared: torch_compat.Type) -> Form | None:
    """Return the form that an argument of a declared type is assumed to have when `given` is known of it; None if its type says it."""
    kind = declared.kind()
    if isinstance(given, TensorSpec):
        return Form(None) if kind == "OptionalType" else None
    if isinstance(given, dict):
        return Form(tuple(given))
    return Form(len(given)) if isinstance(given, (list, tuple)) and kind == "ListType" else None


def usable(given: Any, declared: torch_compat.Type, *, is_outermost: bool = True) -> Any:
    """Return what of `given`, which is known of an argument, can be relied on.

    A list, dictionary or optional tensor inside of another container has a form that is not looked into; neither has a
    container that may be None.
    """
    kind = declared.kind()
    if given is ... or isinstance(given, Assumed):
        return UNKNOWN if given is ... else given
    if isinstance(given, TensorSpec):
        return given if kind == "TensorType" or (kind == "OptionalType" and is_outermost) else UNKNOWN
    if isinstance(given, dict):
        if kind != "DictType" or not is_outermost:
            return UNKNOWN
        return {key: usable(item, declared.getValueType(), is_outermost=False) for key, item in given.items()}
    if isinstance(given, (list, tuple)):
        if kind == "ListType" and is_outermost:
            return [usable(item, declared.getElementType(), is_outermost=False) for item in given]
        if kind == "TupleType" and len(declared.elements()) == len(given):
            return tuple(usable(item, type_, is_outermost=False) for item, type_ in zip(given, declared.elements()))
        return UNKNOWN
    return given


def leaves(given: Any, path: tuple[int | str, ...] = ()) -> list[tuple[tuple[int | str, ...], TensorSpec]]:
    """Return the tensors in what is known of an argument, each with its path."""
    if isinstance(given, TensorSpec):
        return [(path, given)]
    if isinstance(given, dict):
        return [leaf for key, item in given.items() for leaf in leaves(item, (*path, key))]
    if isinstance(given, (list, tuple)):
        return [leaf for index, item in enumerate(given) for leaf in leaves(item, (*path, index))]
    return []

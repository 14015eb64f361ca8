"""Passes written as text: ``fold-constants{limit_bytes=4096}, cast-half{dtype=bf16, keep_fp32=softmax|layer_norm}``.

    pipeline := item (',' item)*
    item     := name ['{' option (',' option)* '}'] | '(' pipeline ')' ['*' count]
    option   := field '=' value ('|' value)*
    value    := bare word or "quoted string"

A pass's options are the fields of its dataclass; the type of a field says how its text is read. ``|`` separates the items of a
tuple.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Iterable
from typing import Any

import torch

from tiacc.errors import InvalidArgumentError

DTYPES: dict[str, torch.dtype] = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp64": torch.float64,
    "half": torch.float16,
    "float": torch.float32,
    "double": torch.float64,
} | {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
"""The spellings of a dtype; the first one of a dtype is what `format_value` writes."""

_BOOLS = {"true": True, "false": False}
_BARE = re.compile(r"[^\s,{}()=|\"]+")
_TOKEN = re.compile(r"\s*(?:(?P<quoted>\"(?:[^\"\\]|\\.)*\")|(?P<mark>[,{}()=|])|(?P<bare>[^\s,{}()=|\"]+))")


@dataclasses.dataclass(frozen=True)
class Word:
    """One token of the text.

    Attributes:
        text: The word, without quotes; or the punctuation mark.
        is_mark: Whether it is punctuation.
        position: Where it starts in the text, in characters.
    """

    text: str
    is_mark: bool
    position: int


def words(text: str) -> list[Word]:
    """Split the text of a pipeline into words and marks.

    Raises:
        InvalidArgumentError: A quote is not closed.
    """
    result = []
    position = 0
    end = len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            raise InvalidArgumentError(f"pipeline text {text!r}: the quote at character {position} is not closed")
        kind = match.lastgroup or ""
        word = match.group(kind)
        try:
            result.append(Word(json.loads(word) if kind == "quoted" else word, kind == "mark", match.start(kind)))
        except ValueError as error:
            raise InvalidArgumentError(f"pipeline text {text!r}: {word} is not a quoted string ({error})") from error
        position = match.end()
    return result


def format_value(value: Any) -> str:
    """Return the text of an option's value, as `parse_value` reads it."""
    if isinstance(value, tuple):
        return "|".join(map(format_value, value))
    if isinstance(value, torch.dtype):
        return next((name for name, dtype in DTYPES.items() if dtype == value), str(value).removeprefix("torch."))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value if _BARE.fullmatch(value) else json.dumps(value)
    return str(value)


def parse_value(kind: Any, texts: list[str]) -> Any:
    """Return the value of an option of type `kind` from its text.

    Args:
        kind: ``int``, ``float``, ``bool``, ``str``, `torch.dtype`, ``tuple`` of one of these, or one of these ``| None``.
        texts: The items between the ``|`` marks.

    Raises:
        InvalidArgumentError: The text is no such value.
    """
    origin = typing.get_origin(kind)
    if origin is tuple:
        item = typing.get_args(kind)[0]
        return tuple(parse_value(item, [text]) for text in texts)
    if origin in (typing.Union, types.UnionType):
        if texts == ["None"]:
            return None
        return parse_value(next(item for item in typing.get_args(kind) if item is not type(None)), texts)
    if len(texts) != 1:
        raise InvalidArgumentError(f"one value is expected, not {len(texts)} ({'|'.join(texts)})")
    text = texts[0]
    if kind is str:
        return text
    if kind is bool:
        return _look_up(_BOOLS, text.lower(), "true or false")
    if kind is torch.dtype:
        return _look_up(DTYPES, text.lower().removeprefix("torch."), f"one of {', '.join(DTYPES)}")
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError as error:
            raise InvalidArgumentError(f"{text!r} is not {'a whole number' if kind is int else 'a number'}") from error
    raise InvalidArgumentError(f"an option of type {kind} cannot be written as text; make the pass in Python")


def parse_options(cls: type, options: Iterable[tuple[str, list[str]]]) -> dict[str, Any]:
    """Return the keyword arguments of a dataclass from the names and texts of its options.

    Raises:
        InvalidArgumentError: An option is unknown, given twice, or its text does not fit its type.
    """
    kinds = typing.get_type_hints(cls)
    known = [item.name for item in dataclasses.fields(cls) if item.init]
    result: dict[str, Any] = {}
    for name, texts in options:
        if name not in known:
            raise InvalidArgumentError(f"there is no option {name!r}; the options are {', '.join(known) or 'none'}")
        if name in result:
            raise InvalidArgumentError(f"the option {name!r} is given twice")
        try:
            result[name] = parse_value(kinds[name], texts)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"option {name!r}: {error}") from error
    return result


def _look_up(table: dict[str, Any], text: str, expected: str) -> Any:
    if text not in table:
        raise InvalidArgumentError(f"{text!r} is not {expected}")
    return table[text]

"""The `input_shapes` grammar: what the inputs of a model look like, as a user types it.

`parse_input_shapes` turns a list with one entry an input into `InputSpec`s. The forms of an entry::

    '1*3*224*224'                        one shape; blanks are ignored; 'scalar' is a tensor without dimensions
    (1, 3, 224, 224)                     the same as Python writes it; also a list of integers or a torch.Size
    ['1*3*224*224']                      the same, in a list of one
    {'separate': [shape, shape, ...]}    each of these shapes; the original's spelling 'seperate' is known too
    {'range': [min, max]}                every shape from min to max, fastest at max
    {'range': [min, opt, max]}           every shape from min to max, fastest at opt
    {'int': ENTRY}                       another element type than float32 for any of the above: nested like this,
    {'range,int': [min, max]}            or joined with a comma, in either order

The element types are those of `ELEMENT_TYPES`; note that ``int`` is `torch.int32`, as an int is in C, and ``long`` is
`torch.int64`, which the token ids and indices of PyTorch models usually are. A model with a single input may be given its entry
without the list round it.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, TypeAlias, TypeGuard, get_args

import torch

from tiacc.errors import InvalidArgumentError
from tiacc.graph.types import Dim, Profile, TensorSpec

Sizes: TypeAlias = tuple[int, ...]
"""A shape in numbers, in elements."""

Kind: TypeAlias = Literal["fixed", "separate", "range"]

ELEMENT_TYPES: dict[str, torch.dtype] = {
    "float": torch.float32,
    "half": torch.float16,
    "int": torch.int32,
    "long": torch.int64,
    "bool": torch.bool,
    "double": torch.float64,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
}
"""The element types by the words of the grammar. Of several words for one type, tiacc itself writes the first."""

GRAMMAR = """\
input_shapes is a list with one entry an input; an entry is
  '1*3*224*224'                                a shape: sizes joined by *; 'scalar' for a tensor without dimensions
  {'separate': ['1*3*224*224', '8*3*224*224']} each of these shapes
  {'range': ['1*3*224*224', '8*3*512*512']}    every shape from min to max; [min, opt, max] to be fastest at opt
  {'long': '1*128'}, {'range,half': [...]}     another element type than float: half, int, long, bool, double, uint8"""
"""The grammar in brief, as error messages show it."""

MAX_SIZE = 2**31 - 1
"""The largest size of a dimension: what a signed integer of 32 bits holds, and what an unbounded dimension is taken to have."""

MAX_ELEMENTS = 2**34
"""The most elements of an input, 64 GiB of float32: more is a slip of the keyboard, and would be allocated as test data."""

MAX_RANK = 64
"""The most dimensions of a tensor. Source: torch keeps sets of dimensions in 64 bits (ATen, WrapDimUtilsMulti.h)."""

_KINDS = {"separate": "separate", "seperate": "separate", "range": "range"}
_NAMES = {dtype: word for word, dtype in reversed(ELEMENT_TYPES.items())}


@dataclass(frozen=True)
class InputSpec:
    """The shapes and the element type that one input of a model can have.

    Attributes:
        kind: ``"fixed"``: the one shape in `shapes`. ``"separate"``: any shape in `shapes`. ``"range"``: any shape between a
            smallest and a largest one; `shapes` is ``(min, opt, max)``.
        shapes: In elements.
        dtype: The element type.
    """

    kind: Kind
    shapes: tuple[Sizes, ...]
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InvalidArgumentError(f"the kind of an input is 'fixed', 'separate' or 'range', not {self.kind!r}")
        if self.dtype not in _NAMES:
            raise InvalidArgumentError(f"inputs of type {self.dtype} are not supported; use one of {', '.join(ELEMENT_TYPES)}")
        wanted = {"fixed": 1, "range": 3}.get(self.kind, max(1, len(self.shapes)))
        if len(self.shapes) != wanted:
            raise InvalidArgumentError(f"{self.kind!r} takes {wanted} shape{'s'[: wanted > 1]}, not {len(self.shapes)}")
        for shape in self.shapes:
            _check_sizes(shape)
            if len(shape) != len(self.shapes[0]):
                raise InvalidArgumentError(
                    f"the shapes of one input have the same number of dimensions, but {_text(self.shapes[0])} has "
                    f"{len(self.shapes[0])} and {_text(shape)} has {len(shape)}"
                )
        if self.kind == "range":
            _check_order(*self.shapes)

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.shapes[0])

    @property
    def profiles(self) -> tuple[tuple[Sizes, Sizes, Sizes], ...]:
        """``(min, opt, max)``: one for a fixed shape or a range, one a shape for ``"separate"``."""
        if self.kind == "range":
            low, opt, high = self.shapes
            return ((low, opt, high),)
        return tuple((shape, shape, shape) for shape in self.shapes)

    @property
    def dims(self) -> dict[int, tuple[int, int, int]]:
        """The dimensions that vary: index → ``(min, opt, max)``. Separate shapes have the one with the most elements as opt."""
        opt = self.shapes[1] if self.kind == "range" else max(self.shapes, key=math.prod)
        return {
            index: (min(sizes), opt[index], max(sizes)) for index, sizes in enumerate(zip(*self.shapes)) if len(set(sizes)) > 1
        }

    def spec(self, name: str, device: torch.device | str = "cpu") -> TensorSpec:
        """Return the type of the input called `name`; the dimension of index i, when it varies, is called ``"{name}_{i}"``."""
        dims = self.dims
        shape = tuple(Dim(f"{name}_{i}", *dims[i]) if i in dims else size for i, size in enumerate(self.shapes[0]))
        return TensorSpec(shape, self.dtype, torch.device(device))

    def admits(self, shape: Sequence[int]) -> bool:
        """Return whether the input may have this shape."""
        sizes = tuple(shape)
        if self.kind != "range":
            return sizes in self.shapes
        low, _, high = self.shapes
        return len(sizes) == self.rank and all(a <= size <= b for a, size, b in zip(low, sizes, high))

    @property
    def entry(self) -> str | dict[str, Any]:
        """The entry of `input_shapes` that says this; `parse_input_shapes` reads it back as an equal spec."""
        texts = [_text(shape) for shape in self.shapes]
        word = _NAMES[self.dtype]
        if self.kind == "fixed":
            return texts[0] if word == "float" else {word: texts[0]}
        return {self.kind if word == "float" else f"{self.kind},{word}": texts}

    def __str__(self) -> str:
        return repr(self.entry)


def parse_input_shapes(input_shapes: Any) -> tuple[InputSpec, ...]:
    """Read the `input_shapes` argument of `tiacc.optimize`.

    Args:
        input_shapes: As the module describes it.

    Returns:
        One spec an input, in order.

    Raises:
        InvalidArgumentError: It is none of the forms. The message quotes the entry, says what is wrong and shows the grammar.
    """
    specs = tuple(_read(index, entry) for index, entry in enumerate(_entries(input_shapes)))
    _check_counts(specs)
    return specs


def combined_profiles(specs: Sequence[InputSpec]) -> tuple[Profile, ...]:
    """Return the shape sets that the inputs of a model can have together.

    The k-th separate shapes of all inputs belong together; an input with a fixed shape or a range has it in each. Sets that
    occur twice are given once.

    Args:
        specs: The inputs, as `parse_input_shapes` returns them.
    """
    columns = [spec.profiles for spec in specs]
    count = max(map(len, columns), default=1)
    rows = [[column[k if len(column) > 1 else 0] for column in columns] for k in range(count)]
    found = [Profile(*(tuple(profile[i] for profile in row) for i in range(3))) for row in rows]
    return tuple(dict.fromkeys(found))


def element_type_name(dtype: torch.dtype) -> str:
    """Return the grammar's word for an element type, or torch's own name for one that the grammar lacks."""
    return _NAMES.get(dtype, str(dtype).removeprefix("torch."))


def _entries(input_shapes: Any) -> list[Any]:
    """Return the entries of the list, with what the short forms for a single input leave out put back."""
    if isinstance(input_shapes, (str, Mapping, torch.Size)):
        return [input_shapes]
    if not isinstance(input_shapes, (list, tuple)):
        raise _refusal(f"input_shapes is {_quote(input_shapes)}, of type {type(input_shapes).__name__}")
    if not input_shapes:
        raise _refusal(f"input_shapes is {input_shapes!r}, but a model to be optimized has at least one input tensor")
    return [input_shapes] if _is_shape(input_shapes) else list(input_shapes)


def _read(index: int, entry: Any) -> InputSpec:
    try:
        return _parse_entry(entry, kind=None, dtype=None)
    except InvalidArgumentError as error:
        raise _refusal(f"input_shapes[{index}] = {_quote(entry)}: {error}") from None


def _parse_entry(entry: Any, kind: Kind | None, dtype: torch.dtype | None) -> InputSpec:
    """Read an entry, or what a key of one maps to; `kind` and `dtype` are what the keys round it said."""
    if isinstance(entry, Mapping):
        key, value = _only_item(entry)
        kind, dtype = _parse_key(key, kind, dtype)
        return _parse_entry(value, kind, dtype)
    if kind is None:
        return InputSpec("fixed", (_parse_shape(_unwrapped(entry)),), dtype or torch.float32)
    if not isinstance(entry, (list, tuple)) or _is_shape(entry):
        raise InvalidArgumentError(f"{kind!r} takes a list of shapes, not {_quote(entry)}")
    shapes = tuple(_parse_shape(shape) for shape in entry)
    if kind == "range":
        if len(shapes) not in (2, 3):
            raise InvalidArgumentError(f"'range' takes [min, max] or [min, opt, max], not {len(shapes)} shapes")
        shapes = (shapes[0], shapes[1], shapes[-1])  # without an opt, max is it
    elif not shapes:
        raise InvalidArgumentError("'separate' takes at least one shape")
    return InputSpec(kind, shapes, dtype or torch.float32)


def _only_item(entry: Mapping[Any, Any]) -> tuple[Any, Any]:
    if len(entry) != 1:
        raise InvalidArgumentError(f"a dict has one key, such as 'range' or 'range,int', not {len(entry)}")
    return next(iter(entry.items()))


def _parse_key(key: Any, kind: Kind | None, dtype: torch.dtype | None) -> tuple[Kind | None, torch.dtype | None]:
    """Add what a key such as ``"range,int"`` says to what is known already."""
    if not isinstance(key, str):
        raise InvalidArgumentError(f"a key is a string such as 'range' or 'int', not {_quote(key)}")
    for word in (word.strip() for word in key.split(",")):
        if word in _KINDS:
            if kind is not None:
                raise InvalidArgumentError(f"{word!r} comes after {kind!r}; an input has one of 'separate' and 'range', once")
            kind = _KINDS[word]  # type: ignore[assignment]
        elif word in ELEMENT_TYPES:
            if dtype is not None:
                raise InvalidArgumentError(f"the element type {word!r} comes after {element_type_name(dtype)!r}; give one")
            dtype = ELEMENT_TYPES[word]
        else:
            close = difflib.get_close_matches(word.lower(), [*_KINDS, *ELEMENT_TYPES], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise InvalidArgumentError(f"{word!r} in the key {key!r} is neither 'separate', 'range' nor an element type{hint}")
    return kind, dtype


def _unwrapped(entry: Any) -> Any:
    """Return the shape in a list of one shape."""
    if not isinstance(entry, (list, tuple)) or _is_shape(entry):
        return entry
    if len(entry) != 1:
        what = "an empty list" if not entry else f"a list of {len(entry)}"
        raise InvalidArgumentError(
            f"{what} is not one shape; several shapes of an input are {{'separate': [...]}}, several inputs are several entries"
        )
    return entry[0]


def _parse_shape(shape: Any) -> Sizes:
    """Read a string or a sequence of integers."""
    if isinstance(shape, str):
        return _parse_text(shape)
    if _is_shape(shape):
        return tuple(int(size) for size in shape)
    if isinstance(shape, torch.Tensor):
        raise InvalidArgumentError("a tensor is no shape; give example tensors as test_data")
    raise InvalidArgumentError(f"a shape is a string such as '1*3*224*224', not {_quote(shape)}")


def _parse_text(text: str) -> Sizes:
    if text.strip() == "scalar":
        return ()
    if not text.strip():
        raise InvalidArgumentError("the shape is empty; a tensor without dimensions is 'scalar'")
    return tuple(_parse_size(part.strip(), text) for part in text.split("*"))


def _parse_size(part: str, text: str) -> int:
    if re.fullmatch(r"[0-9]+", part):
        if len(part) > 2 * len(str(MAX_SIZE)):  # Python itself refuses to read a number of thousands of digits
            raise InvalidArgumentError(f"a size has {len(part)} digits; the largest is {MAX_SIZE}")
        return int(part)
    if not part:
        raise InvalidArgumentError(f"the shape {_quote(text)} lacks a number beside a *")
    if part in ("-1", "?", "None"):
        raise InvalidArgumentError(f"{part!r} is no size; a size that varies is given by its limits, {{'range': [min, max]}}")
    if re.fullmatch(r"[0-9]+(\s*[xX,; ]\s*[0-9]+)+", part):
        raise InvalidArgumentError(f"the sizes in {_quote(text)} are to be joined by *")
    raise InvalidArgumentError(f"{_quote(part)} in {_quote(text)} is no size; a size is a whole number of elements, at least 1")


def _is_shape(value: Any) -> TypeGuard[Sequence[int]]:
    """Return whether `value` is a shape as Python writes it: a list or tuple of integers. An empty list is not, but () is."""
    if not isinstance(value, (list, tuple)) or not value:
        return isinstance(value, tuple)
    return all(isinstance(size, Integral) and not isinstance(size, bool) for size in value)


def _check_sizes(shape: Sizes) -> None:
    if len(shape) > MAX_RANK:
        raise InvalidArgumentError(f"a shape has {len(shape)} dimensions; a tensor has at most {MAX_RANK}")
    for size in shape:
        if size < 1:
            raise InvalidArgumentError(
                f"the shape {_text(shape)} has the size {size}; sizes are at least 1: an empty tensor has nothing to speed up"
            )
        if size > MAX_SIZE:
            raise InvalidArgumentError(f"the shape {_text(shape)} has the size {size}; the largest is {MAX_SIZE}")
    if math.prod(shape) > MAX_ELEMENTS:
        raise InvalidArgumentError(f"the shape {_text(shape)} has {math.prod(shape):,} elements; the most is {MAX_ELEMENTS:,}")


def _check_order(low: Sizes, opt: Sizes, high: Sizes) -> None:
    for index, (a, b, c) in enumerate(zip(low, opt, high)):
        if a > c:
            raise InvalidArgumentError(f"the smallest size of dimension {index} is {a}, more than the largest, {c}")
        if not a <= b <= c:
            raise InvalidArgumentError(f"the opt size of dimension {index} is {b}, not between {a} and {c}")


def _check_counts(specs: Sequence[InputSpec]) -> None:
    counts = {index: len(spec.shapes) for index, spec in enumerate(specs) if spec.kind == "separate"}
    if len(set(counts.values())) > 1:
        told = " and ".join(f"input_shapes[{index}] has {count}" for index, count in counts.items())
        raise _refusal(f"the k-th separate shapes of all inputs belong together, so there must be as many of each, but {told}")


def _refusal(what: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{what}\n{GRAMMAR}")


def _text(shape: Sizes) -> str:
    return "*".join(map(str, shape)) or "scalar"


def _quote(value: Any, limit: int = 120) -> str:
    """Return `value` as Python writes it, cut to `limit` characters."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."



"""Test data: the inputs that a model is measured and checked with, made up or the user's own.

An item of test data is what one call of the model takes: a tuple of arguments. Each tensor in it is an input, counted through
nested tuples, lists and dicts in the order in which they are written, and is described by one `InputSpec`; other arguments
(numbers, strings, None) are passed on as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from tiacc import models
from tiacc.errors import InvalidArgumentError
from tiacc.shapes import GRAMMAR, InputSpec, Sizes, combined_profiles, element_type_name, parse_input_shapes

Item: TypeAlias = tuple[Any, ...]
"""The positional arguments of one call."""

Source: TypeAlias = Literal["user provided", "tiacc provided"]

_FORM = "test_data is a list with one tuple of tensors a call: [(x1, y1), (x2, y2)]"


@dataclass(frozen=True)
class ModelInputs:
    """What a model is called with.

    Attributes:
        specs: One an input tensor.
        data: One item a call; at least one.
        source: Who provided the data, as the report says it.
        warnings: What is odd about the data, a sentence each.
    """

    specs: tuple[InputSpec, ...]
    data: list[Item]
    source: Source
    warnings: tuple[str, ...] = ()


def resolve_inputs(input_shapes: Any = None, test_data: Any = None, seed: int = 0) -> ModelInputs:
    """Read the arguments `input_shapes` and `test_data` of `tiacc.optimize`, one of which may be None.

    Args:
        input_shapes: See `tiacc.shapes`; None to take the shapes of `test_data`.
        test_data: One tuple of tensors a call; None to make data that fits `input_shapes`.
        seed: Where the made data come from.

    Raises:
        InvalidArgumentError: One is malformed, they contradict each other, or both are None.
    """
    if test_data is None:
        if input_shapes is None:
            raise InvalidArgumentError(f"input_shapes and test_data are both None; give one of them\n{GRAMMAR}")
        specs = parse_input_shapes(input_shapes)
        return ModelInputs(specs, [*make_test_data(specs, seed)], "tiacc provided")
    specs = specs_from_data(test_data) if input_shapes is None else parse_input_shapes(input_shapes)
    data = check_test_data(test_data, specs)
    return ModelInputs(specs, data, "user provided", tuple(oddities(data)))


def make_test_data(specs: Sequence[InputSpec], seed: int = 0) -> list[tuple[Tensor, ...]]:
    """Make random inputs: an item each for the min, opt and max of a range and for each of the separate shapes.

    Floating-point numbers are from a normal distribution with mean 0 and deviation 1. Integers are 0 and 1, which are valid as
    token ids of any vocabulary, as segment ids, masks and indices alike; those of uint8 are 0 to 255, as in images. A row of
    integers or booleans never begins with 0, for a mask that is 0 in a whole row makes a softmax NaN; the last row, when
    longer than one, ends with 0.

    Args:
        specs: One an input.
        seed: The same seed and specs give the same data. The global random state is neither read nor changed.

    Returns:
        Contiguous CPU tensors.
    """
    generator = torch.Generator().manual_seed(seed)
    calls = dict.fromkeys(shapes for profile in combined_profiles(specs) for shapes in (profile.min, profile.opt, profile.max))
    return [tuple(_random(shape, spec.dtype, generator) for shape, spec in zip(shapes, specs, strict=True)) for shapes in calls]


def at_other_shapes(inputs: ModelInputs) -> list[Item]:
    """Return an item at each min, opt and max of the shapes that no item of the data has.

    Each is the first item of the data, whose tensors are cut and repeated to their new sizes: so the numbers are the user's, and what
    is an index stays one of those that occur.
    """
    wanted = dict.fromkeys(
        shapes for profile in combined_profiles(inputs.specs) for shapes in (profile.min, profile.opt, profile.max)
    )
    known = {shapes_of(item) for item in inputs.data}
    return [_resized(inputs.data[0], iter(shapes)) for shapes in wanted if shapes not in known]


def shapes_of(item: Item) -> tuple[Sizes, ...]:
    """Return the shape of each tensor of an item, in order."""
    return tuple(tuple(tensor.shape) for _, tensor in _leaves(0, item))


def _resized(value: Any, shapes: Iterator[Sizes]) -> Any:
    """Return a copy of an item whose tensors have the next of the shapes each."""

    def resized(tensor: Tensor) -> Tensor:
        for place, size in enumerate(next(shapes)):
            if size != tensor.shape[place]:
                tensor = tensor.index_select(place, torch.arange(size, device=tensor.device) % max(tensor.shape[place], 1))
        return tensor

    return models.mapped(value, resized)


def check_test_data(test_data: Any, specs: Sequence[InputSpec]) -> list[Item]:
    """Check that test data are what the model's inputs are said to be.

    Args:
        test_data: A list with an item a call. An item is a tuple or list of arguments; a lone tensor
            is an item with one input.
        specs: One an input.

    Returns:
        The items, each a tuple; the tensors are the user's own.

    Raises:
        InvalidArgumentError: It is no such list, or a tensor has another shape or dtype than its spec says. The message names
            item and input, and what was expected and what was found.
    """
    items = _items(test_data)
    profiles = combined_profiles(specs)
    fixed = {profile.min for profile in profiles if profile.is_static}
    ranges = [profile for profile in profiles if not profile.is_static]
    for index, item in enumerate(items):
        leaves = _leaves(index, item)
        if len(leaves) != len(specs):
            raise InvalidArgumentError(
                f"test_data[{index}] has {_count(len(leaves), 'tensor')}, but input_shapes has {_count(len(specs), 'entry')}; "
                f"both are one an input.{_hint_at_one_call(items, specs)} {_FORM}"
            )
        for (where, tensor), spec in zip(leaves, specs):
            _check_tensor(where, tensor, spec)
        shapes = tuple(tuple(tensor.shape) for _, tensor in leaves)
        if shapes not in fixed and not any(profile.admits(shapes) for profile in ranges):
            raise InvalidArgumentError(
                f"test_data[{index}] has the shapes {', '.join(map(str, shapes))}: separate shapes of their inputs, "
                f"but not at the same position; the k-th separate shapes of all inputs belong together"
            )
    return items


def specs_from_data(test_data: Any) -> tuple[InputSpec, ...]:
    """Take the specs of a model's inputs from test data.

    Args:
        test_data: As `check_test_data` describes it.

    Returns:
        One spec an input tensor: the fixed shape that it has in every item, or each of its shapes as separate ones.

    Raises:
        InvalidArgumentError: The items differ in more than sizes, or a tensor cannot be an input.
    """
    calls = [_leaves(index, item) for index, item in enumerate(_items(test_data))]
    first = calls[0]
    if not first:
        raise InvalidArgumentError(f"test_data[0] has no tensor in it. {_FORM}")
    for index, leaves in enumerate(calls):
        if len(leaves) != len(first):
            raise InvalidArgumentError(
                f"test_data[{index}] has {_count(len(leaves), 'tensor')} and test_data[0] has {len(first)}; "
                f"every call takes as many"
            )
        for (where, tensor), (where_first, tensor_first) in zip(leaves, first):
            if tensor.dtype != tensor_first.dtype:
                raise InvalidArgumentError(
                    f"{where} is {tensor.dtype}, but {where_first} is {tensor_first.dtype}; give them one dtype"
                )
    rows = dict.fromkeys(tuple(tuple(tensor.shape) for _, tensor in leaves) for leaves in calls)
    return tuple(_spec_of(where, tensor.dtype, shapes) for (where, tensor), shapes in zip(first, zip(*rows)))


def oddities(data: Sequence[Item]) -> list[str]:
    """Return a sentence for each tensor whose values make measurements worth little: not finite, or all zero."""
    found = []
    for index, item in enumerate(data):
        for where, tensor in _leaves(index, item):
            if tensor.is_floating_point() and not tensor.isfinite().all():
                found.append(f"{where} contains NaN or infinity: what does not hand these on as the input model does is not used")
            elif tensor.is_floating_point() and not tensor.any():
                found.append(f"{where} is all zeros, which hides errors; real data would say more")
    return found


def describe(data: Sequence[Item]) -> tuple[str, str]:
    """Return the shapes and the element types as the report's `test_data_info` shows them: ``("(1, 3, 8, 8)", "float32")``.

    Inputs are separated by ``"; "``, and items of different shapes by ``" | "``.
    """
    calls = [[tensor for _, tensor in _leaves(index, item)] for index, item in enumerate(data)]
    shapes = dict.fromkeys("; ".join(str(tuple(tensor.shape)) for tensor in tensors) for tensors in calls)
    return " | ".join(shapes), "; ".join(str(tensor.dtype).removeprefix("torch.") for tensor in calls[0])


def _random(shape: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    if dtype.is_floating_point:
        wide = dtype if dtype == torch.float64 else torch.float32
        return torch.randn(shape, dtype=wide, generator=generator).to(dtype)
    tensor = torch.randint(0, 256 if dtype == torch.uint8 else 2, shape, dtype=torch.int64, generator=generator)
    rows = tensor.view(-1, shape[-1] if shape else 1)
    rows[:, 0].clamp_(min=1)
    if rows.shape[1] > 1:
        rows[-1, -1] = 0
    return tensor.to(dtype)


def _items(test_data: Any) -> list[Item]:
    """Return the items as tuples."""
    if isinstance(test_data, Tensor):
        raise InvalidArgumentError(f"test_data is a tensor; write [(x,)] for one call. {_FORM}")
    if isinstance(test_data, tuple):
        raise InvalidArgumentError(f"test_data is a tuple; write [(...)], with a list round it, for one call. {_FORM}")
    if not isinstance(test_data, list):
        raise InvalidArgumentError(f"test_data is of type {type(test_data).__name__}. {_FORM}")
    if not test_data:
        raise InvalidArgumentError(f"test_data is an empty list; give None to have data made. {_FORM}")
    return [_item(index, item) for index, item in enumerate(test_data)]


def _item(index: int, item: Any) -> Item:
    if isinstance(item, Tensor):
        return (item,)
    if isinstance(item, (tuple, list)):
        return tuple(item)
    hint = "; for a model that takes a dict, write ({...},)" if isinstance(item, Mapping) else ""
    raise InvalidArgumentError(f"test_data[{index}] is of type {type(item).__name__}{hint}. {_FORM}")


def _leaves(index: int, item: Item) -> list[tuple[str, Tensor]]:
    """Return the tensors of an item, each with where it is."""
    return list(_walk(f"test_data[{index}]", item))


def _walk(where: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        _check_dense(where, value)
        yield where, value
    elif isinstance(value, (tuple, list)):
        for index, element in enumerate(value):
            yield from _walk(f"{where}[{index}]", element)
    elif isinstance(value, Mapping):
        for key, element in value.items():
            yield from _walk(f"{where}[{key!r}]", element)
    elif value is not None and not isinstance(value, (bool, int, float, complex, str, torch.device, torch.dtype)):
        how = "; torch.from_numpy makes a tensor of it" if type(value).__module__ == "numpy" else ""
        raise InvalidArgumentError(
            f"{where} is of type {type(value).__name__}, which TorchScript models cannot take{how}. {_FORM}"
        )


def _check_tensor(where: str, tensor: Tensor, spec: InputSpec) -> None:
    if tensor.dtype != spec.dtype:
        word = element_type_name(tensor.dtype)
        key = word if spec.kind == "fixed" else f"{spec.kind},{word}"
        raise InvalidArgumentError(
            f"{where} is {tensor.dtype}, but input_shapes says {spec}, which is {spec.dtype}; write {{{key!r}: ...}} there, "
            f"or convert the data"
        )
    if len(tensor.shape) != spec.rank:
        raise InvalidArgumentError(
            f"{where} has {_count(tensor.dim(), 'dimension')}, shape {tuple(tensor.shape)}, but input_shapes says {spec}, "
            f"which has {spec.rank}"
        )
    if not spec.admits(tensor.shape):
        raise InvalidArgumentError(f"{where} has the shape {tuple(tensor.shape)}, which is not in input_shapes, {spec}")


def _check_dense(where: str, tensor: Tensor) -> None:
    if tensor.is_meta:
        raise InvalidArgumentError(f"{where} is a meta tensor, which has no data; give a real one")
    if tensor.layout != torch.strided or tensor.is_nested:
        raise InvalidArgumentError(f"{where} is {'nested' if tensor.is_nested else tensor.layout}; tiacc takes dense tensors")


def _spec_of(where: str, dtype: torch.dtype, shapes: tuple[Sizes, ...]) -> InputSpec:
    try:
        return InputSpec("fixed", shapes[:1], dtype) if len(set(shapes)) == 1 else InputSpec("separate", shapes, dtype)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{where} cannot be an input: {error}") from None


def _hint_at_one_call(items: Sequence[Item], specs: Sequence[InputSpec]) -> str:
    """Say how to write one call with several inputs, when several calls with one look like that slip."""
    if len(items) == len(specs) and all(len(item) == 1 for item in items):
        return " A list of tensors is a call each; one call with all is [(x, y)]."
    return ""


def _count(number: int, what: str) -> str:
    if number == 1:
        return f"1 {what}"
    return f"{number} {what[:-1]}ies" if what.endswith("y") else f"{number} {what}s"

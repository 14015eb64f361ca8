"""Shapes in a network: reading them, computing with them, and the layers that change them, static or not."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tiacc.backends.tensorrt.flavours import Flavour
from tiacc.backends.tensorrt.layers import Layers, Messages, Tensor
from tiacc.backends.tensorrt.sizes import Number, Scalar, Size, is_same, is_static, product

Value = Any
"""A tensor of the network, or a `torch.Tensor` known now, which becomes a constant when a layer needs it."""


class Shaping(Layers):
    """A network under construction, with shapes.

    Attributes:
        scalars_by_key: The tensor of each size by its expression, so that each is computed once.
    """

    def __init__(self, flavour: Flavour, network: Any, messages: Messages, *, has_neutral_names: bool = False) -> None:
        super().__init__(flavour, network, messages, has_neutral_names=has_neutral_names)
        self.scalars_by_key: dict[str, Tensor] = {}
        self._fakes: dict[str, torch.Tensor] = {}
        self._shapes: dict[str, Tensor] = {}
        self._shape_tensors: dict[tuple[Any, ...], Tensor] = {}

    # -- reading -------------------------------------------------------------------------------------------------------------

    def remember(self, tensor: Tensor, fake: torch.Tensor) -> None:
        """Note what is known of the shape of a tensor beyond what TensorRT knows."""
        self._fakes[tensor.name] = fake

    def shape(self, value: Value) -> tuple[Size, ...]:
        """Return the shape of a value: numbers where they are known, scalars where they are not."""
        if isinstance(value, torch.Tensor):
            return tuple(value.shape)
        fake = self._fakes.get(value.name)
        result: list[Size] = []
        for axis, size in enumerate(tuple(value.shape)):
            key = f"{value.name}[{axis}]"  # a size of one tensor is one number, even where the graph knows nothing of it
            if size < 0 and fake is not None:
                key = str(fake.shape[axis])
                if key.lstrip("-").isdigit():
                    size = int(key)
            result.append(Scalar(self, self._reader(value, axis), key=key) if size < 0 else size)
        return tuple(result)

    def rank(self, value: Value) -> int:
        """Return the number of dimensions of a value."""
        return len(value.shape)

    def _reader(self, tensor: Tensor, axis: int) -> Callable[[], Tensor]:
        def read() -> Tensor:
            if tensor.name not in self._shapes:
                self._shapes[tensor.name] = self.add("shape", tensor)
            return self.add("slice", self._shapes[tensor.name], (axis,), (1,), (1,))

        return read

    # -- scalars -------------------------------------------------------------------------------------------------------------

    def compute(self, function: Callable[..., Any], *numbers: Number, key: str | None = None) -> Any:
        """Apply a scalar function (`specs.SCALAR_FUNCTIONS`) to numbers, now if all of them are known, else in the engine.

        Args:
            function: The function.
            *numbers: Its arguments.
            key: The expression of the result, if it has one.
        """
        if is_static(numbers):
            return function(*numbers)
        dtype = _result_dtype(function, numbers)
        return Scalar(self, lambda: self._compute(function, numbers, dtype), dtype, key)

    def _compute(self, function: Callable[..., Any], numbers: Sequence[Number], dtype: torch.dtype) -> Tensor:
        is_float = torch.float32 in (dtype, *map(_dtype_of, numbers))
        a, *rest = (self.scalar_tensor(number, torch.float32 if is_float else torch.int64) for number in numbers)
        if function in _COMPARISONS:
            kind, is_negated = _COMPARISONS[function]
            result = self._elementwise(a, rest[0], kind)
            return self.add("unary", result, self.trt.UnaryOperation.NOT) if is_negated else result
        if function is operator.neg:
            return self.add("unary", a, self.trt.UnaryOperation.NEG)
        if function is operator.mod:
            return self._elementwise(a, self._elementwise(self._elementwise(a, rest[0], "FLOOR_DIV"), rest[0], "PROD"), "SUB")
        if function in (torch.sym_int, torch.sym_float):
            return self.cast(a, dtype)
        return self._elementwise(a, rest[0], _ARITHMETIC[function])

    def _elementwise(self, a: Tensor, b: Tensor, kind: str) -> Tensor:
        return self.add("elementwise", a, b, getattr(self.trt.ElementWiseOperation, kind))

    def scalar_tensor(self, number: Number, dtype: torch.dtype = torch.int64) -> Tensor:
        """Return a number as a tensor of shape ``(1,)``."""
        if isinstance(number, Scalar):
            return self.cast(number.tensor, dtype)
        return self.constant(number, dtype, rank=1)

    def shape_tensor(self, sizes: Sequence[Size]) -> Tensor:
        """Return sizes as an int64 tensor of shape ``(len(sizes),)``."""
        if is_static(sizes):
            return self.constant(torch.tensor(list(sizes), dtype=torch.int64))
        key = tuple(size.key if isinstance(size, Scalar) else size for size in sizes)
        if None in key:
            return self._joined(sizes)
        if key not in self._shape_tensors:
            self._shape_tensors[key] = self._joined(sizes)
        return self._shape_tensors[key]

    def _joined(self, sizes: Sequence[Size]) -> Tensor:
        parts: list[Tensor] = []
        known: list[int] = []
        for size in (*sizes, None):
            if isinstance(size, int):
                known.append(size)
                continue
            if known:
                parts.append(self.constant(torch.tensor(known, dtype=torch.int64)))
                known = []
            if size is not None:
                parts.append(size.tensor)
        return parts[0] if len(parts) == 1 else self.add("concatenation", parts, axis=0)

    # -- layers --------------------------------------------------------------------------------------------------------------

    def tensor(self, value: Value | Number, dtype: torch.dtype | None = None, rank: int | None = None) -> Tensor:
        """Return a value or number as a tensor of the network, converted to `dtype` and raised to `rank` where given."""
        if isinstance(value, Scalar):
            value = self.reshape(value.tensor, ())
        if isinstance(value, (torch.Tensor, int, float)):
            return self.constant(value, dtype, rank)
        if dtype is not None:
            value = self.cast(value, dtype)
        return value if rank is None else self.raise_rank(value, rank)

    def raise_rank(self, value: Value, rank: int) -> Value:
        """Give a value `rank` dimensions by adding leading ones of size 1."""
        missing = rank - self.rank(value)
        return value if missing <= 0 else self.unsqueeze(value, range(missing))

    def reshape(self, value: Value, sizes: Sequence[Size]) -> Value:
        """Reshape a value; one of `sizes` may be -1."""
        if isinstance(value, torch.Tensor) and is_static(sizes):
            return value.reshape(tuple(sizes))  # type: ignore[arg-type]
        tensor = self.tensor(value)
        current = self.shape(tensor)
        sizes = self._resolve(current, sizes)
        if len(sizes) == len(current) and all(map(is_same, sizes, current)):
            return tensor
        if is_static(sizes):
            return self.add("shuffle", tensor, reshape_dims=tuple(sizes), zero_is_placeholder=False)
        kept = [isinstance(size, Scalar) and is_same(size, now) for size, now in zip(sizes, current)]
        kept += [False] * (len(sizes) - len(kept))
        known = [size for size in sizes if isinstance(size, int)]
        if len(sizes) - len(known) - sum(kept) + known.count(-1) <= 1 and 0 not in known:
            dims = tuple(0 if keep else -1 if isinstance(size, Scalar) else size for size, keep in zip(sizes, kept))
            return self.add("shuffle", tensor, reshape_dims=dims, zero_is_placeholder=True)
        return self.add("shuffle", tensor, inputs={1: self.shape_tensor(sizes)}, zero_is_placeholder=False)

    def _resolve(self, current: Sequence[Size], sizes: Sequence[Size]) -> tuple[Size, ...]:
        """Replace a -1 where the other sizes are known."""
        places = [axis for axis, size in enumerate(sizes) if isinstance(size, int) and size == -1]
        if not places or not is_static(current) or not is_static(sizes):
            return tuple(sizes)
        rest = product([size for axis, size in enumerate(sizes) if axis != places[0]])
        return tuple(product(current) // rest if axis == places[0] and rest else size for axis, size in enumerate(sizes))

    def unsqueeze(self, value: Value, axes: Sequence[int]) -> Value:
        """Add dimensions of size 1, so that they stand at `axes` of the result."""
        rank = self.rank(value) + len(axes)
        places = sorted(axis % rank for axis in axes)
        sizes: list[Size] = list(self.shape(value))
        for place in places:
            sizes.insert(place, 1)
        if isinstance(value, torch.Tensor) or sum(isinstance(size, Scalar) for size in sizes) <= 1:
            return self.reshape(value, sizes)
        return self.add("unsqueeze", value, self.constant(torch.tensor(places, dtype=torch.int64)))

    def squeeze(self, value: Value, axes: Sequence[int]) -> Value:
        """Drop dimensions, which must have size 1."""
        places = {axis % self.rank(value) for axis in axes}
        if not places:
            return value
        sizes = [size for axis, size in enumerate(self.shape(value)) if axis not in places]
        if isinstance(value, torch.Tensor) or sum(isinstance(size, Scalar) for size in sizes) <= 1:
            return self.reshape(value, sizes)
        return self.add("squeeze", value, self.constant(torch.tensor(sorted(places), dtype=torch.int64)))

    def permute(self, value: Value, order: Sequence[int]) -> Value:
        """Reorder the dimensions: dimension i of the result is dimension ``order[i]`` of `value`."""
        order = [axis % len(order) for axis in order]
        if order == list(range(len(order))):
            return value
        if isinstance(value, torch.Tensor):
            return value.permute(order)
        return self.add("shuffle", value, first_transpose=self.trt.Permutation(order))

    def transpose(self, value: Value, first: int, second: int) -> Value:
        """Swap two dimensions."""
        order = list(range(self.rank(value)))
        order[first], order[second] = order[second], order[first]
        return self.permute(value, order)

    def expand(self, value: Value, sizes: Sequence[Size]) -> Value:
        """Repeat dimensions of size 1, and add leading ones, so that the shape is `sizes`; -1 keeps a size."""
        if isinstance(value, torch.Tensor) and is_static(sizes):
            return value.expand(tuple(sizes))  # type: ignore[arg-type]
        tensor = self.raise_rank(self.tensor(value), len(sizes))
        current = self.shape(tensor)
        wanted = [now if isinstance(size, int) and size == -1 else size for size, now in zip(sizes, current)]
        if all(map(is_same, wanted, current)):
            return tensor
        strides = [0 if isinstance(now, int) and now == 1 else 1 for now in current]
        return self.slice(tensor, [0] * len(wanted), wanted, strides)

    def slice(
        self,
        value: Value,
        starts: Sequence[Size],
        sizes: Sequence[Size],
        strides: Sequence[Size],
        mode: str = "STRICT_BOUNDS",
        fill: Number | None = None,
    ) -> Tensor:
        """Cut a block out of a value.

        Args:
            value: The value, of rank n.
            starts: The first index along each dimension, n of them, at least 0 except in modes that go beyond the borders.
            sizes: The number of elements to take along each dimension.
            strides: The steps.
            mode: ``"STRICT_BOUNDS"``, ``"FILL"``, ``"CLAMP"``, ``"REFLECT"`` or ``"WRAP"``.
            fill: The number beyond the borders in mode ``"FILL"``.
        """
        tensor = self.tensor(value)
        inputs: dict[int, Tensor] = {}
        static: list[tuple[int, ...]] = []
        attributes: dict[str, Any] = {"mode": getattr(self.trt.SampleMode, mode)}
        whole = [
            is_same(start, 0) and is_same(stride, 1) and is_same(size, now)
            for start, size, stride, now in zip(starts, sizes, strides, self.shape(tensor))
        ]
        if not is_static(sizes) and any(whole):  # dimensions that stay as they are need no numbers from the engine
            axes = [axis for axis, is_whole in enumerate(whole) if not is_whole]
            if not axes:
                return tensor
            starts, sizes, strides = ([numbers[axis] for axis in axes] for numbers in (starts, sizes, strides))
            attributes["axes"] = tuple(axes)
        for index, numbers in enumerate((starts, sizes, strides), 1):
            if is_static(numbers):
                static.append(tuple(numbers))  # type: ignore[arg-type]
            else:
                inputs[index] = self.shape_tensor(numbers)
                static.append((0,) * len(numbers))
        if fill is not None:
            inputs[4] = self.reshape(self.tensor(fill, self.dtype(tensor)), ())
        return self.add("slice", tensor, *static, inputs=inputs, **attributes)

    def concat(self, values: Sequence[Value], axis: int) -> Tensor:
        """Join values of one dtype along a dimension."""
        tensors = [self.tensor(value) for value in values]
        return tensors[0] if len(tensors) == 1 else self.add("concatenation", tensors, axis=axis % self.rank(tensors[0]))

    def align(self, *values: Value | Number, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Return values as tensors of one rank, and of one dtype if given, so that an elementwise layer broadcasts them."""
        rank = max((len(value.shape) for value in values if hasattr(value, "shape")), default=0)
        return [self.tensor(value, dtype, rank) for value in values]


_COMPARISONS: dict[Callable[..., Any], tuple[str, bool]] = {
    operator.eq: ("EQUAL", False),
    operator.ne: ("EQUAL", True),
    operator.lt: ("LESS", False),
    operator.le: ("GREATER", True),
    operator.gt: ("GREATER", False),
    operator.ge: ("LESS", True),
}

_ARITHMETIC: dict[Callable[..., Any], str] = {
    operator.add: "SUM",
    operator.sub: "SUB",
    operator.mul: "PROD",
    operator.floordiv: "FLOOR_DIV",
    operator.truediv: "DIV",
    torch.sym_max: "MAX",
    torch.sym_min: "MIN",
}


def _dtype_of(number: Number) -> torch.dtype:
    if isinstance(number, Scalar):
        return number.dtype
    return torch.float32 if isinstance(number, float) else torch.int64


def _result_dtype(function: Callable[..., Any], numbers: Sequence[Number]) -> torch.dtype:
    if function in _COMPARISONS:
        return torch.bool
    if function in (operator.truediv, torch.sym_float):
        return torch.float32
    if function is torch.sym_int:
        return torch.int64
    return torch.float32 if any(_dtype_of(number) == torch.float32 for number in numbers) else torch.int64

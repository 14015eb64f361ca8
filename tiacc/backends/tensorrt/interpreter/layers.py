"""The table from layer type to the function that evaluates it, and what such a function is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tiacc.backends.tensorrt.interpreter.dtypes import ARITHMETIC, weights_to_tensor
from tiacc.backends.tensorrt.interpreter.errors import InterpretationError, UnsupportedLayerError

Evaluator = Callable[["LayerCall"], "Tensor | Sequence[Tensor]"]


@dataclass(frozen=True)
class Evaluation:
    """How a layer type is evaluated.

    Attributes:
        function: From a `LayerCall` to the layer's output, or its outputs in order.
        is_arithmetic: Whether floating inputs and weights are widened to the compute dtype and the outputs rounded
            back. False for layers that only move, select or count values, and for those that see to their own
            precision.
    """

    function: Evaluator
    is_arithmetic: bool


_EVALUATIONS: dict[str, Evaluation] = {}
_REFUSALS: dict[str, str] = {}


def evaluates(*kinds: str, arithmetic: bool = True) -> Callable[[Evaluator], Evaluator]:
    """Return a decorator that makes a function the evaluator of layer types, named as in ``trt.LayerType``."""

    def add(function: Evaluator) -> Evaluator:
        for kind in kinds:
            _EVALUATIONS[kind] = Evaluation(function, arithmetic)
        return function

    return add


def refuses(kinds: Sequence[str], reason: str) -> None:
    """Say why layer types are not evaluated."""
    _REFUSALS.update(dict.fromkeys(kinds, reason))


def evaluation_of(kind: str, name: str) -> Evaluation:
    """Return how a layer type is evaluated.

    Raises:
        UnsupportedLayerError: It is not; the message names the layer `name` and says why.
    """
    found = _EVALUATIONS.get(kind)
    if found is None:
        reason = _REFUSALS.get(kind, "no evaluator for this layer type")
        raise UnsupportedLayerError(f"layer {name!r} ({kind}) cannot be evaluated: {reason}")
    return found


def supported_kinds() -> tuple[str, ...]:
    """Return the layer types that are evaluated by functions of the table, in alphabetical order."""
    return tuple(sorted(_EVALUATIONS))


def refused_kinds() -> dict[str, str]:
    """Return the layer types that are known and not evaluated, each with the reason."""
    return dict(_REFUSALS)


@dataclass(frozen=True)
class LayerCall:
    """One evaluation of one layer.

    Attributes:
        trt: The ``tensorrt`` or ``tensorrt_rtx`` module.
        layer: The layer as its own class (``IShuffleLayer``, ...), for its attributes.
        kind: Its type, as in ``trt.LayerType``.
        name: Its name.
        inputs: Its inputs by index; None where one is not connected. Of an arithmetic layer, floating ones are in the
            compute dtype.
        output_shapes: What the network declares of its outputs, -1 for a dynamic dimension; None for an unused one.
        output_dtypes: The same of their dtypes.
        compute_dtype: The dtype that arithmetic is done in, or None for the tensors' own.
        constants: Values of weights by layer name, ahead of what the network itself says.
        generator: The source of random fills.
    """

    trt: Any
    layer: Any
    kind: str
    name: str
    inputs: tuple[Tensor | None, ...]
    output_shapes: tuple[tuple[int, ...] | None, ...]
    output_dtypes: tuple[torch.dtype | None, ...]
    compute_dtype: torch.dtype | None
    constants: Mapping[str, Tensor]
    generator: torch.Generator

    def optional(self, index: int) -> Tensor | None:
        """Return an input, or None where it is not connected."""
        return self.inputs[index] if index < len(self.inputs) else None

    def input(self, index: int = 0) -> Tensor:
        """Return an input that the layer cannot do without.

        Raises:
            InterpretationError: It is not connected.
        """
        value = self.optional(index)
        if value is None:
            raise InterpretationError(f"input {index} is not connected")
        return value

    def ints(self, index: int, attribute: str | None = None) -> list[int] | None:
        """Return the integers that an input holds or, where it is not connected, those of an attribute (None if unset)."""
        value = self.optional(index)
        if value is not None:
            return [int(item) for item in value.reshape(-1).tolist()]
        dims = getattr(self.layer, attribute) if attribute is not None else None
        return None if dims is None else [int(item) for item in dims]

    @property
    def output_dtype(self) -> torch.dtype:
        """The declared dtype of the first output."""
        dtype = self.output_dtypes[0]
        if dtype is None:
            raise InterpretationError("the first output is not connected")
        return dtype

    def weights(self, attribute: str) -> Tensor | None:
        """Return the flat values of a weights attribute, or None where it is empty.

        They are looked for in the constants under ``"<layer name>.<attribute>"``, then ``"<layer name>"`` for the main
        weights of the layer (``weights`` or ``kernel``), then in the network.
        """
        value = self.constants.get(f"{self.name}.{attribute}")
        if value is None and attribute in ("weights", "kernel"):
            value = self.constants.get(self.name)
        if value is None:
            value = weights_to_tensor(getattr(self.layer, attribute))
        value = value.detach().cpu().reshape(-1)
        return self.widen(value) if value.numel() else None

    def widen(self, value: Tensor) -> Tensor:
        """Return a floating value in the compute dtype, any other as it is."""
        if self.compute_dtype is None or value.dtype not in ARITHMETIC:
            return value
        return value.to(self.compute_dtype)

    def unsupported(self, reason: str) -> UnsupportedLayerError:
        """Return the error that says why this layer's settings are not evaluated."""
        return UnsupportedLayerError(f"layer {self.name!r} ({self.kind}) cannot be evaluated: {reason}")


def axes_of_mask(mask: int, rank: int) -> list[int]:
    """Return the axes whose bits are set."""
    return [axis for axis in range(rank) if mask >> axis & 1]


def normal_axis(axis: int, rank: int) -> int:
    """Return an axis counted from the front.

    Raises:
        InterpretationError: There is no such axis.
    """
    if not -rank <= axis < rank:
        raise InterpretationError(f"axis {axis} is out of range for rank {rank}")
    return axis % rank


def is_arithmetic_float(value: Tensor) -> bool:
    """Return whether a value is of a floating dtype that layers compute in."""
    return value.dtype in ARITHMETIC

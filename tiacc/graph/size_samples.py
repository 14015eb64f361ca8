"""A check on symbolic shapes: they are compared with those that operators give at some real sizes.

torch infers a symbolic shape with the help of an example: where an operator behaves differently for other sizes, such as ``x[:4]``
for an ``x`` of fewer rows, the inferred shape holds for sizes like the example's alone. So each operator is also inferred at the smallest,
at the largest and at a middle size of every dimension, and where a shape differs from the symbolic one the operator is not imported.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from tiacc.graph import torch_compat
from tiacc.graph.result_types import ResultTypes
from tiacc.graph.shape_rules import SHAPE_RULES


class SizeSamples:
    """The values of nodes at some sizes of the dimensions that vary.

    A set of sizes at which an operator fails is let go: the model itself fails at it.

    Args:
        mode: Where the fake tensors live.
        points: Sets of sizes: the size of each symbol by its name.
    """

    def __init__(self, mode: FakeTensorMode, points: Sequence[dict[str, int]]) -> None:
        self._mode = mode
        self._points = list(points)
        self._values: list[dict[fx.Node, Any]] = [{} for _ in self._points]
        self._sizes: dict[tuple[Any, int], int] = {}
        self._types = ResultTypes()

    def prepare(self, node: fx.Node) -> None:
        """Find what the arguments of a call are at each set of sizes: inferring the call may make one size the only one."""
        for index in range(len(self._points)):
            with contextlib.suppress(Exception):  # what cannot be found is told by `contradiction`
                self._concrete((node.args, node.kwargs), index)

    def contradiction(self, node: fx.Node) -> str | None:
        """Infer a call at each set of sizes; return how that differs from ``node.meta["val"]``, or None."""
        return self.contradicts(SHAPE_RULES.get(node.target, node.target), node.args, node.kwargs, node.meta["val"], node)

    def contradicts(
        self, function: Any, args: Sequence[Any], kwargs: dict[str, Any], promised: Any, node: fx.Node | None = None
    ) -> str | None:
        """Call a function at each set of sizes; return how what it gives differs from `promised`, or None.

        Args:
            function: What to call.
            args: Its arguments: nodes, symbolic values, or anything else.
            kwargs: As `args`.
            promised: The symbolic result.
            node: The node whose value that is, if there is one.
        """
        for index, point in reversed(list(enumerate(self._points))):
            try:
                value = self._call(function, self._concrete(args, index), self._concrete(kwargs, index))
            except Exception:  # noqa: BLE001 - the model fails at these sizes, whatever it raises
                del self._points[index], self._values[index]
                self._sizes.clear()
                continue
            found = self._difference(promised, value, index)
            if found:
                sizes = ", ".join(f"{name}={size}" for name, size in point.items())
                return f"{found} at {sizes}"
            if node is not None:
                self._values[index][node] = value
        return None

    def _call(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        def infer() -> Any:
            with self._mode, torch.no_grad():
                return function(*args, **kwargs)

        return self._types.call(self._mode, function, args, kwargs, infer)

    def shares_as_promised(self, result: fx.Node, argument: fx.Node) -> bool:
        """Return whether a result shares the memory of an argument at every set of sizes, or at none, as their symbolic forms say."""
        promised = torch_compat.shares_memory(result.meta["val"], argument.meta["val"])
        for index, values in enumerate(self._values):
            if result in values and torch_compat.shares_memory(values[result], self._value(argument, index)) is not promised:
                return False
        return True

    def _value(self, node: fx.Node, index: int) -> Any:
        values = self._values[index]
        if node not in values:
            values[node] = self._concrete(node.meta["val"], index)
        return values[node]

    def _concrete(self, value: Any, index: int) -> Any:
        """Return what a symbolic value, or a node, is at a set of sizes."""
        if isinstance(value, fx.Node):
            return self._value(value, index)
        if isinstance(value, torch.Tensor):
            if all(isinstance(size, int) for size in value.shape):
                return value
            with self._mode:
                return torch.empty([self._size(size, index) for size in value.shape], dtype=value.dtype, device=value.device)
        if isinstance(value, torch.SymInt):
            return self._size(value, index)
        if isinstance(value, (torch.SymFloat, torch.SymBool)):
            return torch_compat.evaluate_number(value, self._points[index])
        if isinstance(value, (list, tuple)):
            return [self._concrete(item, index) for item in value]
        if isinstance(value, dict):
            return {key: self._concrete(item, index) for key, item in value.items()}
        return value

    def _size(self, size: int | torch.SymInt, index: int) -> int:
        if isinstance(size, int):
            return size
        key = (size.node.expr, index)
        if key not in self._sizes:
            self._sizes[key] = torch_compat.evaluate_size(size, self._points[index])
        return self._sizes[key]

    def _difference(self, promised: Any, found: Any, index: int) -> str:
        """Return how a value at a set of sizes is not what its symbolic form says, or an empty string."""
        if isinstance(found, torch.Tensor):
            if not isinstance(promised, torch.Tensor) or promised.dim() != found.dim():
                return f"it has the shape {list(found.shape)}"
            same = all(self._size(size, index) == actual for size, actual in zip(promised.shape, found.shape))
            return "" if same else f"it has the shape {list(found.shape)}"
        if isinstance(found, (list, tuple)):
            if not isinstance(promised, (list, tuple)) or len(promised) != len(found):
                return f"it has {len(found)} results"
            return next(filter(None, (self._difference(one, other, index) for one, other in zip(promised, found))), "")
        if isinstance(found, (int, float, bool)) and not isinstance(promised, torch.Tensor):
            return "" if self._concrete(promised, index) == found else f"it is {found}"
        return ""

"""Calls of operators with a converter: the tables ``CASES`` of the test modules beside this one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import fx

from tests.backends.tensorrt import harness
from tiacc.errors import ImportGraphError
from tiacc.graph import specs


@dataclass(frozen=True, eq=False)
class Case:
    """One call of one operator.

    Attributes:
        op: The overload.
        args: Its arguments; a `torch.nn.Parameter` is a constant, other tensors are inputs.
        kwargs: Its keyword arguments.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def graph(self) -> tuple[fx.GraphModule, list[specs.TensorSpec]]:
        """Return the call as a graph with values, and the types of its inputs."""
        gm, inputs = harness.one_node(self.op, *self.args, **self.kwargs)
        types = [harness.spec_of(tensor) for tensor in inputs]
        return specs.propagate(gm, types), types

    def varying(self) -> tuple[fx.GraphModule, list[specs.TensorSpec], list[torch.Tensor]] | None:
        """Return the call with its dimensions varying, those of one size together, and the types and inputs.

        Sizes of 1, and those that the operator fixes (the channels of constant weights), stay as they are. None where no dimension
        varies then, or torch itself does not know the shape of the result.
        """
        gm, inputs = harness.one_node(self.op, *self.args, **self.kwargs)
        fixed = {0, 1}
        while True:
            types = [
                specs.TensorSpec(
                    tuple(size if size in fixed else specs.Dim(f"s{size}", 1, size, 2 * size) for size in tensor.shape), tensor.dtype
                )
                for tensor in inputs
            ]
            if not any(spec.is_dynamic for spec in types):
                return None
            try:
                specs.propagate(gm, types)
            except ImportGraphError:
                return None
            shapes = [node.meta["val"].shape for node in gm.graph.find_nodes(op="placeholder")]
            known = {int(str(size)) for shape in shapes for size in shape if str(size).isdigit()}
            if known <= fixed:
                return gm, types, inputs
            fixed |= known

    def __str__(self) -> str:
        shapes = [tuple(arg.shape) if isinstance(arg, torch.Tensor) else arg for arg in self.args]
        return f"{self.op}{shapes}".replace(" ", "")[:120]


def case(op: Any, *args: Any, **kwargs: Any) -> Case:
    """Return a `Case`."""
    return Case(op, args, kwargs)


@cache
def modules() -> tuple[str, ...]:
    """Return the names of the test modules of this package."""
    return tuple(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.name.startswith("test_"))


def all_cases() -> Iterator[Case]:
    """Yield the cases of all test modules of this package."""
    for name in modules():
        module = importlib.import_module(f"tests.backends.tensorrt.{name}")
        yield from getattr(module, "CASES", ())

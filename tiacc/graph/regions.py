"""A region: a run of side-effect-free tensor code in a block of a TorchScript graph, lifted out as an fx graph.

A region knows what it reads and what it computes in terms of the TorchScript graph it came from, so that new code can be put back in
its place, with everything around it (control flow, attribute writes, raises, other methods) exactly as it was.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from tiacc.graph import torch_compat
from tiacc.graph.types import TensorSpec


@dataclass(frozen=True)
class OutputIndex:
    """In a `RegionOutput.template`: the place of the n-th output of the region's graph."""

    index: int


UNINITIALISED: Any = object()
"""The abstract value of a variable that a branch left without one, and in a `RegionOutput.template` what stands for it."""


@dataclass(frozen=True)
class RegionInput:
    """A value that a region reads.

    Attributes:
        value: The value in the TorchScript graph.
        path: Where the input is in that value: nothing when it is the value itself, else indices and keys, outermost first.
    """

    value: torch_compat.Value
    path: tuple[int | str, ...] = ()


@dataclass(frozen=True)
class RegionOutput:
    """A value that a region computes and others read.

    Attributes:
        value: The value in the TorchScript graph.
        template: How it is made of the outputs of the region's graph: an `OutputIndex`, a constant, or a list, tuple or dict of
            templates.
    """

    value: torch_compat.Value
    template: Any


@dataclass
class Region:
    """A run of TorchScript nodes and the fx graph that computes the same.

    Attributes:
        index: Its number in the model, in program order.
        graph: The functional graph over aten overloads; its output is a flat tuple.
        inputs: What the placeholders stand for, in order.
        outputs: The values that the rest of the program reads.
        nodes: The TorchScript nodes that the region replaces, in program order.
        path: Where its block is: ``"forward"``, ``"forward/if:12/then"``.
        guard: The types of the inputs that it was made for, where some were only seen and are not certain: None for one that is
            not a tensor. Empty when all are certain.
    """

    index: int
    graph: fx.GraphModule
    inputs: tuple[RegionInput, ...]
    outputs: tuple[RegionOutput, ...]
    nodes: list[torch_compat.Node]
    path: str
    guard: tuple[TensorSpec | None, ...] = ()

    @property
    def calls(self) -> int:
        """The number of operators that compute tensors."""
        return sum(node.op == "call_function" for node in self.graph.graph.nodes)


@dataclass(frozen=True)
class Left:
    """A TorchScript node that is in no region.

    Attributes:
        op: Its kind: ``"aten::nonzero"``, ``"prim::Loop"``.
        reason: Why it was left.
        source: The line of source it came from, or an empty string.
    """

    op: str
    reason: str
    source: str = ""


@dataclass
class ImportResult:
    """What the importer made of a model.

    Attributes:
        module: A private copy of the model, in evaluation mode and with its constants inlined, which the regions belong to.
        regions: The regions, in program order.
        left: The nodes that are in none.
        fixed: Dimensions declared as varying that an operator needs at one size: the dimension's name, its size, the operator.
        symbols: The name of the `Dim` behind each symbol in the shapes of the regions' graphs.
        dropped_methods: Methods of the model that are part of its ``forward`` and not kept as methods of their own.
        assumptions: What the regions rely on in the arguments of ``forward``, by place: a value, or a `Form`.
        original: The graph of ``forward`` before anything was done to it.
        arguments: The tensors among the arguments of ``forward`` whose types the regions may rely on.
        observed_sizes: The smallest, usual and largest size of each dimension that was seen to vary, by name.
    """

    module: torch.jit.ScriptModule
    regions: list[Region]
    left: list[Left]
    fixed: list[FixedDim] = field(default_factory=list)
    symbols: dict[str, str] = field(default_factory=dict)
    dropped_methods: tuple[str, ...] = ()
    assumptions: dict[int, Any] = field(default_factory=dict)
    original: torch_compat.Graph | None = None
    arguments: list[tuple[RegionInput, TensorSpec]] = field(default_factory=list)
    observed_sizes: dict[str, tuple[int, int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class FixedDim:
    """A dimension that the caller declares as varying and the model computes with as if it were constant.

    Attributes:
        name: The name of the `Dim`.
        size: The size that is baked in, in elements.
        where: The operator and its source line.
    """

    name: str
    size: int
    where: str

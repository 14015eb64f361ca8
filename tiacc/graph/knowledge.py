"""What the importer knows of a model: from one region to the next, and from one attempt to the next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tiacc.graph import torch_compat
from tiacc.graph.assumptions import UNKNOWN
from tiacc.graph.regions import FixedDim
from tiacc.graph.size_samples import SizeSamples
from tiacc.graph.specs import TensorSpec


@dataclass
class Facts:
    """What an attempt at a model learns that an earlier step of it should have known.

    Attributes:
        shared_writes: The TorchScript values, by unique number, that may share memory with one that is written into where other code
            can see it.
        assumptions: The arguments of ``forward``, by place, that something relied on having the value that was assumed.
        must_restart: Whether the attempt has to be made again.
    """

    shared_writes: set[int] = field(default_factory=set)
    assumptions: dict[int, Any] = field(default_factory=dict)
    must_restart: bool = False

    def share(self, node: torch_compat.Node, value: torch_compat.Value, aliases: torch_compat.Aliases) -> None:
        """Note that a node writes into a tensor where other code can see it: every tensor that may share its memory stays real."""
        names = aliases.when_written(node, value)
        if not names <= self.shared_writes:
            self.shared_writes |= names
            self.must_restart = True


@dataclass
class Knowledge:
    """What is known across the regions of a model.

    Attributes:
        mode: Where the fake tensors live.
        aliases: Which TorchScript values may share memory.
        symbol_names: The name of the `Dim` behind each symbol.
        values: What is known of TorchScript values outside of the region being built, by unique number: fake tensors (real ones for
            constants), numbers, containers of these.
        assumed: The place of each argument of ``forward`` of which something is assumed, and what, by unique number.
        assumptions: Those of them that something relied on, by place.
        fixed: The dimensions that an operator turned out to need at one size, by name.
        samples: What checks symbolic shapes.
        observed: The types that tensors were seen to have, by unique number; a region that relies on one is guarded.
        observed_dims: The names of the dimensions in these.
        symbols: The symbol of each named `Dim`.
        shared_writes: As those of `Facts`.
    """

    mode: FakeTensorMode
    aliases: torch_compat.Aliases
    symbol_names: dict[str, str] = field(default_factory=dict)
    values: dict[int, Any] = field(default_factory=dict)
    assumed: dict[int, tuple[int, Any]] = field(default_factory=dict)
    assumptions: dict[int, Any] = field(default_factory=dict)
    fixed: dict[str, FixedDim] = field(default_factory=dict)
    observed: dict[int, TensorSpec] = field(default_factory=dict)
    observed_dims: frozenset[str] = frozenset()
    symbols: dict[str, torch.SymInt] = field(default_factory=dict)
    shared_writes: set[int] = field(default_factory=set)
    samples: SizeSamples = field(init=False)
    _is_tainted: bool = False

    def __post_init__(self) -> None:
        self.samples = SizeSamples(self.mode, ())

    def learn(self, value: torch_compat.Value, item: Any) -> None:
        """Note what is known of a value: nothing of a container that some code may change, or of a tensor whose shape it may change."""
        if item is UNKNOWN or value.unique() in self.aliases.reshaped:
            return
        if not (isinstance(item, (list, dict)) and self.aliases.has_writers(value)):
            self.values[value.unique()] = item

    def recall(self, value: torch_compat.Value) -> Any:
        """Return what is known of a value, `UNKNOWN` where nothing is. What is assumed of it is relied on from now on."""
        name = value.unique()
        if name in self.assumed:
            index, assumed = self.assumed[name]
            self.assumptions[index] = assumed
        return self.values.get(name, UNKNOWN)

    def taint(self) -> None:
        """Note that a failed inference has left its mark on the symbols of the mode."""
        self._is_tainted = True

    def take_taint(self) -> bool:
        """Return whether that happened since this was asked last."""
        was, self._is_tainted = self._is_tainted, False
        return was

    def learn_constant(self, node: torch_compat.Node) -> None:
        """Note the value of a ``prim::Constant``; of a tensor that is written into, which is none, only the type."""
        value = node.output()
        item = torch_compat.constant_of(value)
        is_written = value.unique() in self.shared_writes
        self.values[value.unique()] = torch_compat.fake_constant(self.mode, item) if is_written else item

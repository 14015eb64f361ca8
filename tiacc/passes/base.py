"""What a pass is.

A pass is a frozen dataclass whose fields are its options. Its `apply` does one rewrite on a graph and says how many changes it
made; calling the pass wraps that in the checks of the contract::

    requires(gm) → apply(gm) → lint, infer what is new → ensures(gm) → recompile

A pass never times, dumps or verifies itself: the instruments of the `PassContext` do, called by the `PassManager` that runs it.
The smallest pass is three lines round a function that does the work; `tiacc.passes.eliminate_dead_code` is the template.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar, final

import torch
from torch import fx

from tiacc.errors import PassError, PostconditionError, PreconditionError, TiaccError
from tiacc.graph import specs
from tiacc.passes import option_text
from tiacc.registry import Registry

P = TypeVar("P", bound="type[Pass]")

passes: Registry[type[Pass]] = Registry("pass", "tiacc.passes")
"""The registered passes by name."""


@dataclass(frozen=True)
class PassContext:
    """What a pass may know beside the graph.

    Attributes:
        device: Where the model will run.
        fuel: The number of rewrites that may still be done, or None for no limit; see `spend`.
        instruments: What watches the passes that a `PassManager` runs.
        data: What passes found out beside their rewrites, for later passes and for the report, by pass name.
    """

    device: torch.device = torch.device("cpu")  # noqa: RUF009 - devices are immutable
    fuel: Fuel | None = None
    instruments: tuple[Instrument, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)

    def spend(self) -> bool:
        """Ask for one rewrite; false when there is no fuel left for it. A pass that makes many rewrites asks before each."""
        return self.fuel is None or self.fuel.spend()


class Instrument(Protocol):
    """Something that watches passes run, one after the other: a timer, a dumper, a verifier.

    A pass manager that is run by another is not reported, its passes are.
    """

    def before(self, pass_: Pass, gm: fx.GraphModule) -> None:
        """See the graph that `pass_` is about to be given."""
        ...

    def after(self, pass_: Pass, result: PassResult, seconds: float) -> None:
        """See what `pass_` made of it, and how long that took, checks included."""
        ...


@dataclass
class Fuel:
    """A number of rewrites, used up one at a time, to bisect which of them broke a model."""

    left: int

    def spend(self) -> bool:
        """Take one; false when none is left."""
        if self.left <= 0:
            return False
        self.left -= 1
        return True


@dataclass(frozen=True)
class PassResult:
    """What a pass did.

    Attributes:
        graph: The graph that results; the same object, changed in place, is the usual case.
        changes: The number of rewrites. 0 means that the graph is identical.
    """

    graph: fx.GraphModule
    changes: int


@dataclass(frozen=True)
class Pass(ABC):
    """One rewrite of a graph; a subclass is a frozen dataclass with the options as fields.

    Class attributes:
        name: The name it is registered under, a verb and its object: ``"fold-batch-norm"``.
        after: Names of passes that may not come later than this one.
        before: Names of passes that may not come earlier than this one.
    """

    name: ClassVar[str]
    after: ClassVar[tuple[str, ...]] = ()
    before: ClassVar[tuple[str, ...]] = ()

    def requires(self, gm: fx.GraphModule) -> None:  # noqa: B027 - most passes require nothing
        """Check the graph before the pass.

        Raises:
            PreconditionError: It is not in the form that `apply` relies on.
        """

    @abstractmethod
    def apply(self, gm: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Rewrite `gm` and count the changes. New nodes need no ``meta["val"]``; weights are replaced, never written into."""

    def ensures(self, gm: fx.GraphModule) -> None:  # noqa: B027 - most passes ensure nothing
        """Check the graph after the pass.

        Raises:
            PostconditionError: It is not in the form that the pass promises.
        """

    @final
    def __call__(self, gm: fx.GraphModule, ctx: PassContext | None = None) -> PassResult:
        """Run the pass with its checks.

        Raises:
            PreconditionError: `requires` refuses the graph.
            PostconditionError: `ensures` refuses the result, or the result is malformed.
            PassError: The pass raised something that is not a `TiaccError`.
        """
        result = self.run(gm, ctx or PassContext())
        if result.changes:
            result.graph.recompile()
        return result

    @final
    def run(self, gm: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Do what calling the pass does, without the ``recompile``, which costs more than most passes: a manager does it once.

        Raises:
            TiaccError: As `__call__`.
        """
        self.requires(gm)
        try:
            result = self.apply(gm, ctx)
        except TiaccError:
            raise
        except Exception as error:
            raise PassError(f"pass {self.name} failed: {type(error).__name__}: {error}") from error
        if result.changes:
            try:
                result.graph.graph.lint()
                specs.update(result.graph)
            except Exception as error:
                raise PostconditionError(f"pass {self.name} left a malformed graph: {error}") from error
        self.ensures(result.graph)
        return result

    def __str__(self) -> str:
        """Return the pass as `PassManager.parse` reads it: its name, and the options that differ from their defaults."""
        options = [
            f"{item.name}={option_text.format_value(getattr(self, item.name))}"
            for item in dataclasses.fields(self)
            if getattr(self, item.name) != _default_of(item)
        ]
        return f"{self.name}{{{', '.join(options)}}}" if options else self.name


def _default_of(item: dataclasses.Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default


def register(cls: P) -> P:
    """Register a pass class under its ``name``."""
    passes.register(cls.name)(cls)
    return cls


def refuse(pass_: Pass, node: fx.Node, why: str) -> PreconditionError:
    """Return the error by which `pass_` refuses a graph because of `node`."""
    return PreconditionError(f"pass {pass_.name} cannot run: {node.name} = {node.target}{specs.where(node)} {why}")

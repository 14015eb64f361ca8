"""What a pass is.

A pass is a frozen dataclass whose fields are its options. Its `apply` does one rewrite on a graph and says how many changes it
made; calling the pass wraps that in the checks of the contract::

    requires(gm) → apply(gm) → lint, infer what is new → ensures(gm) → recompile

A pass never times, dumps or verifies itself: the instruments of the `PassContext` do, called by the `PassManager` that runs it.
The smallest pass is three lines round a function that does the work; `tiacc.passes.eliminate_dead_code` is the template.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar, final

import torch
from torch import fx

from tiacc.errors import InvalidArgumentError, PassError, PostconditionError, TiaccError
from tiacc.graph import specs
from tiacc.passes import option_text
from tiacc.registry import Registry

T = TypeVar("T")


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
        except Exception as error:  # whatever the author of the pass did not foresee: the message names the pass
            raise PassError(f"pass {self.name} failed: {type(error).__name__}: {error}") from error
        if result.changes:
            try:
                result.graph.graph.lint()
                specs.update(result.graph)
            except Exception as error:  # fx raises RuntimeError, AssertionError and others for a graph that is malformed
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


@dataclass(frozen=True)
class _FunctionPass(Pass):
    """A pass that is a function of the graph and the context, and of the options by name."""

    function: ClassVar[Callable[..., int]]

    def apply(self, gm: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Call the function."""
        options = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        changes = self.function(gm, ctx, **options)
        if isinstance(changes, bool) or not isinstance(changes, int):
            raise PassError(f"pass {self.name} returned {changes!r}; it returns the number of its changes")
        return PassResult(gm, changes)


def pass_class(item: Any) -> type[Pass]:
    """Return the pass class that `item` is or stands for.

    Args:
        item: A pass class; a function ``f(gm, ctx) -> int`` that rewrites the graph and returns the number of changes, whose
            keyword-only arguments are options and whose name gives that of the pass (``fuse_silu``: ``"fuse-silu"``); or a
            `tiacc.passes.rules.RewriteRule`.

    Raises:
        InvalidArgumentError: It is something else.
    """
    if isinstance(item, type) and issubclass(item, Pass):
        return item
    made = getattr(item, "pass_class", None)
    if isinstance(made, type) and issubclass(made, Pass):
        return made
    if not inspect.isfunction(item):
        what = "class that is no Pass" if isinstance(item, type) else type(item).__name__
        raise InvalidArgumentError(f"{item!r} is no pass ({what}); a pass is a Pass class, a function f(gm, ctx) -> int, or a RewriteRule")
    known: type[Pass] | None = item.__dict__.get("_tiacc_pass")
    if known is None:
        known = _class_of(item)
        item.__dict__["_tiacc_pass"] = known
    return known


def _class_of(function: Any) -> type[Pass]:
    """Return a pass class whose fields are the keyword-only arguments of a function."""
    parameters = list(inspect.signature(function).parameters.values())
    options = [item for item in parameters if item.kind is item.KEYWORD_ONLY]
    if len(parameters) - len(options) != 2 or any(item.default is item.empty for item in options) or function.__name__ == "<lambda>":
        raise InvalidArgumentError(
            f"the function {function.__qualname__} is no pass: a pass has a name, takes (gm, ctx), and has options only by keyword "
            f"and with defaults"
        )
    # The options' alone: the graph's may name what only a type checker sees.
    types = {item.name: function.__annotations__.get(item.name, type(item.default)) for item in options}
    annotated = type("Options", (), {"__annotations__": types})
    try:
        hints = typing.get_type_hints(annotated, function.__globals__)
    except NameError as error:
        raise InvalidArgumentError(f"the type of an option of {function.__qualname__} cannot be read: {error}") from error
    for item in options:
        if item.default.__hash__ is None:
            raise InvalidArgumentError(
                f"the option {item.name!r} of {function.__qualname__} has a {type(item.default).__name__} for a default, which could be "
                f"changed; give it a tuple"
            )
    made = dataclasses.make_dataclass(
        "".join(word.capitalize() for word in function.__name__.split("_")),
        [(item.name, hints[item.name], item.default) for item in options],
        bases=(_FunctionPass,),
        frozen=True,
        namespace={
            "name": function.__name__.strip("_").replace("_", "-"),
            "function": staticmethod(function),
            "__module__": function.__module__,
            "__doc__": function.__doc__,
        },
    )
    made.__qualname__ = function.__qualname__
    return typing.cast("type[Pass]", made)


passes: Registry[type[Pass]] = Registry("pass", "tiacc.passes", pass_class)
"""The registered passes by name."""


def register(item: T) -> T:
    """Register a pass under its name; a decorator for whatever `pass_class` takes.

    Raises:
        InvalidArgumentError: It is no pass.
        RegistryError: Its name is that of another pass.
    """
    cls = pass_class(item)
    passes.register(cls.name)(cls)
    return item

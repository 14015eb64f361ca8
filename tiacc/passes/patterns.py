"""Patterns of operators, written as Python functions over aten operators, and where they occur in a graph.

::

    def pattern(x, scale=is_number):
        return scale * (x * aten.sigmoid(x))

The function is called once, with a `Value` for each parameter. A parameter stands for anything, the same wherever it is used; a default is
a condition on it: `is_constant` (a weight), `is_number` (a number or a size), or any function of a node, or of an argument that is no
node, that returns a bool. What the function calls says what must be there:

- ``aten.mul.Tensor(a, b)`` is that overload, ``aten.mul(a, b)`` any overload that takes such arguments, ``a * b`` the same as it.
- An argument that is left out must have the default of the operator's schema; ``...`` as the last one lets all further ones be anything.
- ``2.0`` is a number equal to it, or a constant tensor of one element equal to it.
- Operators that give the same when their first two arguments change places (`COMMUTATIVE`) match both ways.
- `any_of` is one of several values, and `named` gives a value in the middle a name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx

from tiacc.errors import InvalidArgumentError
from tiacc.graph import arguments, specs, torch_compat
from tiacc.passes import rewrite

aten = torch.ops.aten

COMMUTATIVE = frozenset(
    {
        aten.add.Tensor,
        aten.bitwise_and.Tensor,
        aten.bitwise_or.Tensor,
        aten.bitwise_xor.Tensor,
        aten.eq.Tensor,
        aten.logical_and.default,
        aten.logical_or.default,
        aten.logical_xor.default,
        aten.max.other,
        aten.maximum.default,
        aten.min.other,
        aten.minimum.default,
        aten.mul.Tensor,
        aten.ne.Tensor,
    }
)
"""The operators whose first two arguments may change places; those of ``add`` where its factor alpha is 1."""

Captures = dict["Value", Any]
"""What each part of a pattern stands for."""


class Value:
    """What the function of a pattern computes with: it notes the operators that it is given to, and computes nothing."""

    def call(self, target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Value:
        """Return the value of a call of `target` with this value among the arguments."""
        return Call(target, tuple(args), dict(kwargs))

    def may_be(self, kind: str) -> bool:
        """Return whether a parameter of a schema that has the type `kind` takes it."""
        return True

    @classmethod
    def __torch_function__(cls, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Value:
        if not isinstance(function, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
            name = getattr(function, "__name__", str(function))
            advice = f"write torch.ops.aten.{name}" if hasattr(aten, name) else "write operators of torch.ops.aten"
            raise InvalidArgumentError(f"{name} is not an operator of a graph; {advice}")
        kwargs = kwargs or {}
        first = next(found for item in (*args, *kwargs.values()) for found in _values_in(item))
        return first.call(function, args, kwargs)

    def __add__(self, other: Any) -> Value:
        return self.call(aten.add, (self, other), {})

    def __radd__(self, other: Any) -> Value:
        return self.call(aten.add, (self, other), {})

    def __sub__(self, other: Any) -> Value:
        return self.call(aten.sub, (self, other), {})

    def __rsub__(self, other: Any) -> Value:
        return self.call(aten.rsub, (self, other), {})

    def __mul__(self, other: Any) -> Value:
        return self.call(aten.mul, (self, other), {})

    def __rmul__(self, other: Any) -> Value:
        return self.call(aten.mul, (self, other), {})

    def __truediv__(self, other: Any) -> Value:
        return self.call(aten.div, (self, other), {})

    def __pow__(self, other: Any) -> Value:
        return self.call(aten.pow, (self, other), {})

    def __matmul__(self, other: Any) -> Value:
        return self.call(aten.matmul, (self, other), {})

    def __neg__(self) -> Value:
        return self.call(aten.neg, (self,), {})


class Wildcard(Value):
    """A parameter of a pattern.

    Attributes:
        condition: What it may stand for: a node, or an argument that is no node.
    """

    def __init__(self, condition: Callable[[Any], bool]) -> None:
        self.condition = condition


class Either(Value):
    """One of several values."""

    def __init__(self, options: tuple[Any, ...]) -> None:
        self.options = options


class Call(Value):
    """A call of an operator: of one overload, or of any of a packet that takes such arguments."""

    def __init__(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.target, self.args, self.kwargs = target, args, kwargs

    @cached_property
    def forms(self) -> dict[torch._ops.OpOverload, dict[str, Any]]:
        """The arguments by name, for each overload that takes them. What may be anything is not in there."""
        overloads = overloads_of(self.target)
        found = {}
        for overload in overloads:
            form = bind(overload, self.args, self.kwargs)
            if form is not None:
                found[overload] = form
        if not found:
            known = ", ".join(str(overload._schema) for overload in overloads[:3])
            raise InvalidArgumentError(f"the pattern's call of {self.target} does not fit it: {known}")
        return found


def is_constant(value: Any) -> bool:
    """Return whether a part of a graph is a constant tensor, such as a weight."""
    return rewrite.constant_of(value) is not None


def is_number(value: Any) -> bool:
    """Return whether a part of a graph is a number, or a size that varies."""
    value = value.meta.get("val") if isinstance(value, fx.Node) else value
    return isinstance(value, rewrite.NUMBERS) and not isinstance(value, bool)


def any_of(*options: Any) -> Any:
    """Return what stands for one of several values: the first that matches."""
    if not options:
        raise InvalidArgumentError("any_of() has nothing to choose from; give it the values that may be there")
    return Either(options)


def named(name: str, value: Any) -> Any:
    """Give a value in the middle of a pattern a name under which `Match` and the rewrite have it."""
    if not isinstance(value, Value) or getattr(value, "name", name) != name:
        raise InvalidArgumentError(f"named({name!r}, …) takes a call of an operator that has no other name")
    value.name = name  # type: ignore[attr-defined]
    return value


@dataclass(frozen=True)
class Match:
    """Where a pattern was found; ``match["x"]`` is what the parameter or named value ``x`` stands for.

    Attributes:
        node: The node that gives the value of the pattern.
        nodes: All calls that the pattern covers, `node` the last of them.
        values: What the names stand for: nodes, or arguments that are no nodes.
    """

    node: fx.Node
    nodes: tuple[fx.Node, ...]
    values: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def tensor(self, name: str) -> torch.Tensor:
        """Return the type of what `name` stands for, as a fake tensor: it has shape and dtype and no data.

        Raises:
            TypeError: It is no tensor.
        """
        return specs.tensor_of(self.values[name])

    def constant(self, name: str) -> torch.Tensor:
        """Return the constant tensor that `name` stands for; it must not be written into.

        Raises:
            TypeError: It is no constant.
        """
        tensor = rewrite.constant_of(self.values[name])
        if tensor is None:
            raise TypeError(f"{name!r} stands for {self.values[name]}, which is not a constant")
        return tensor


class Pattern:
    """A pattern, ready to be looked for.

    Args:
        function: Returns a call of an operator; each parameter is a part of the pattern.

    Attributes:
        targets: The overloads that may give the value of the pattern.
        names: Its parameters and named values.
        depth: The number of calls on the longest way through it.
        size: The number of calls in it, all alternatives together.

    Raises:
        InvalidArgumentError: The function is no pattern; the message says why.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        parameters = {}
        for name, parameter in inspect.signature(function).parameters.items():
            default = parameter.default
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise InvalidArgumentError(f"a pattern has parameters by name, not *{name}")
            if default is not parameter.empty and not callable(default):
                raise InvalidArgumentError(
                    f"the default of the pattern's parameter {name!r} is {default!r}; a default is a condition, such as is_constant"
                )
            parameters[name] = Wildcard(_is_there if default is parameter.empty else default)
        self.root = function(**parameters)
        calls = [item for item in _options_of(self.root) if isinstance(item, Call)]
        if not calls or len(calls) != len(_options_of(self.root)):
            raise InvalidArgumentError(f"a pattern returns a call of an operator, or any_of several, not {type(self.root).__name__}")
        self.targets = frozenset(overload for call in calls for overload in call.forms)
        self.names: dict[str, Value] = {}
        self._calls: set[Call] = set()
        self.depth = self._visit(self.root)
        self.size = len(self._calls)
        self.names.update(parameters)

    def _visit(self, item: Any) -> int:
        """Note the named values of a part and check its calls; return how many calls deep it is."""
        if isinstance(item, (list, tuple)):
            return max(map(self._visit, item), default=0)
        if not isinstance(item, Value):
            return 0
        name = getattr(item, "name", None)
        if name is not None:
            self.names[name] = item
        if isinstance(item, Either):
            return max(map(self._visit, item.options))
        if isinstance(item, Call):
            assert item.forms
            self._calls.add(item)
            return 1 + max(map(self._visit, (*item.args, *item.kwargs.values())), default=0)
        return 0

    def match(self, node: fx.Node) -> Match | None:
        """Return how `node` gives the value of the pattern, or None where it does not.

        Calls that are not pure do not match, nor do those whose value is read outside of the pattern: they would be computed all
        the same.
        """
        for captures in _match(self.root, node, {}):
            nodes = {value: None for part, value in captures.items() if isinstance(part, Call)}
            if all(user in nodes for found in nodes if found is not node for user in found.users):
                values = {name: captures[part] for name, part in self.names.items() if part in captures}
                return Match(node, tuple(sorted(nodes)), values)
        return None


def _is_there(value: Any) -> bool:
    return True


def overloads_of(target: Any) -> list[torch._ops.OpOverload]:
    """Return the overload, or those of a packet, ``default`` and ``Tensor`` first."""
    if isinstance(target, torch._ops.OpOverload):
        return [target]
    names = sorted(target.overloads(), key=lambda name: ("default", "Tensor", "Scalar", name).index(name))
    return [getattr(target, name) for name in names]


def bind(overload: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Return arguments by name, with the schema's defaults; None where they do not fit. After ``...`` none are filled in."""
    parameters = torch_compat.parameters(overload)
    is_open = bool(args) and args[-1] is ...
    given = args[:-1] if is_open else args
    if len(given) > sum(not parameter.is_keyword_only for parameter in parameters):
        return None
    form = {parameter.name: value for parameter, value in zip(parameters, given)}
    if kwargs.keys() & form.keys() or kwargs.keys() - {parameter.name for parameter in parameters}:
        return None
    form.update(kwargs)
    for parameter in parameters:
        if parameter.name not in form and not is_open:
            if not parameter.has_default:
                return None
            form[parameter.name] = parameter.default
    return form if all(_may_be(parameter.type, form[parameter.name]) for parameter in parameters if parameter.name in form) else None


def _may_be(kind: str, value: Any) -> bool:
    """Return whether a parameter of the schema type `kind` takes a value, as far as the kind of value tells."""
    if kind.startswith("Optional["):
        if value is None:
            return True
        kind = kind.removeprefix("Optional[").removesuffix("]")
    if isinstance(value, Value):
        return value.may_be(kind)
    if isinstance(value, bool):
        return kind == "bool"
    if isinstance(value, (int, float)):
        return kind in ("number", "float", "Tensor") or (kind == "int" and isinstance(value, int))
    if isinstance(value, (list, tuple)):
        return kind.startswith("List[")
    return value is not None


def _match(part: Any, value: Any, captures: Captures) -> Iterator[Captures]:
    """Yield the ways in which `value` is what `part` of a pattern says, given what other parts stand for."""
    if not isinstance(part, Value):
        yield from _match_literal(part, value, captures)
    elif part in captures:
        known = captures[part]
        if known is value or (not isinstance(known, fx.Node) and not isinstance(value, fx.Node) and bool(known == value)):
            yield captures
    elif isinstance(part, Wildcard):
        if part.condition(value):
            yield {**captures, part: value}
    elif isinstance(part, Either):
        for option in part.options:
            for found in _match(option, value, captures):
                yield {**found, part: value}
    elif isinstance(part, Call) and isinstance(value, fx.Node) and value.op == "call_function" and value.target in part.forms:
        assert isinstance(value.target, torch._ops.OpOverload)
        form = part.forms[value.target]
        if not rewrite.is_pure(value):
            return
        bound = arguments.bound(value)
        parts, values = list(form.values()), [bound[name] for name in form]
        yield from _match_all(parts, values, {**captures, part: value})
        if value.target in COMMUTATIVE and len(parts) > 1 and bound.get("alpha", 1) == 1:
            yield from _match_all([parts[1], parts[0], *parts[2:]], values, {**captures, part: value})


def _match_all(parts: Sequence[Any], values: Sequence[Any], captures: Captures) -> Iterator[Captures]:
    if not parts:
        yield captures
        return
    for found in _match(parts[0], values[0], captures):
        yield from _match_all(parts[1:], values[1:], found)


def _match_literal(part: Any, value: Any, captures: Captures) -> Iterator[Captures]:
    if isinstance(part, (list, tuple)):
        if isinstance(value, (list, tuple)) and len(part) == len(value):
            yield from _match_all(part, value, captures)
        return
    if isinstance(part, (int, float)) and not isinstance(part, bool):
        tensor = rewrite.constant_of(value)
        if tensor is not None:
            value = tensor.item() if tensor.numel() == 1 and not torch_compat.is_fake(tensor) else None
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value == part:
            yield captures
    elif type(part) is type(value) and part == value:
        yield captures


def _options_of(root: Any) -> list[Any]:
    """Return what the value of a pattern may be, alternatives taken apart."""
    return [item for option in root.options for item in _options_of(option)] if isinstance(root, Either) else [root]


def _values_in(item: Any) -> Iterator[Value]:
    if isinstance(item, Value):
        yield item
    elif isinstance(item, (list, tuple)):
        for member in item:
            yield from _values_in(member)

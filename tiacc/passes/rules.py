"""Rewrites written as rules: what to look for, a check, and what to put in its place.

::

    fuse_silu = RewriteRule("fuse-silu", pattern=lambda x: x * aten.sigmoid(x), rewrite=lambda x: aten.silu(x))

A rule becomes a pass by `tiacc.passes.register`, or in ``optimize(passes=...)``; a `RuleSet` is one pass of several rules. All rules of a
pass are looked for through one index by operator, so that the time is linear in the nodes of the graph.
"""

from __future__ import annotations

import difflib
import inspect
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import fx

from tiacc.errors import ImportGraphError, InvalidArgumentError, PassError
from tiacc.graph import specs, torch_compat
from tiacc.passes import rewrite
from tiacc.passes.base import Pass, PassContext, PassResult
from tiacc.passes.patterns import Match, Pattern, Value, bind, overloads_of

Check = Callable[[Match], "bool | str"]


@dataclass(frozen=True)
class RewriteRule:
    """What to look for, and what to put in its place.

    Attributes:
        name: A verb and its object, ``"fuse-silu"``: the name of the pass that it becomes.
        pattern: What to look for; see `tiacc.passes.patterns`.
        rewrite: Returns what to put in its place, made of aten operators on its parameters, whose names are those of the pattern; a
            parameter ``match`` is given the `Match`. A tensor among the arguments of an operator becomes a constant. It may return one
            of its parameters.
        check: Says of a `Match` whether to rewrite it. False, or a text with the reason, leaves it.

    Raises:
        InvalidArgumentError: The pattern is none, or the rewrite asks for a name that is not in it.
    """

    name: str
    pattern: Callable[..., Any]
    rewrite: Callable[..., Any]
    check: Check | None = None

    def __post_init__(self) -> None:
        try:
            names = self.compiled.names
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"rule {self.name!r}: {error}") from error
        for name in self._wanted:
            if name != "match" and name not in names:
                close = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(names) or 'no names'}"
                raise InvalidArgumentError(f"rule {self.name!r}: the rewrite asks for {name!r}, which the pattern does not have; {hint}")

    @cached_property
    def compiled(self) -> Pattern:
        """The pattern, ready to be looked for."""
        return Pattern(self.pattern)

    @cached_property
    def _wanted(self) -> tuple[str, ...]:
        return tuple(inspect.signature(self.rewrite).parameters)

    @cached_property
    def pass_class(self) -> type[Pass]:
        """The pass that applies this rule wherever it fits."""
        return RuleSet(self.name, (self,), self.pattern.__module__).pass_class

    def replacement(self, match: Match) -> fx.Node:
        """Add what is put in the place of a match to its graph, and return the node that gives its value.

        Raises:
            PassError: The rewrite returns something else than an operator's value.
        """
        known = {"match": match} | {name: _Built.of(match.node, value) for name, value in match.values.items()}
        missing = [name for name in self._wanted if name not in known]
        if missing:
            raise PassError(f"rule {self.name}: the rewrite asks for {missing[0]!r}, which is in another alternative of the pattern")
        value = self.rewrite(**{name: known[name] for name in self._wanted})
        if not isinstance(value, _Built):
            raise PassError(f"rule {self.name}: the rewrite returns {type(value).__name__}, not the value of an operator")
        return value.node


@dataclass(frozen=True)
class RuleSet:
    """Several rules as one pass; where more than one fits, the first is applied.

    Attributes:
        name: The name of the pass.
        rules: The rules.
        module: The Python module that they belong to.
    """

    name: str
    rules: tuple[RewriteRule, ...]
    module: str = __name__

    @cached_property
    def pass_class(self) -> type[Pass]:
        """The pass that applies these rules wherever they fit."""
        spelled = "".join(word.capitalize() for word in self.name.split("-"))
        members = {"name": self.name, "rules": tuple(self.rules), "__module__": self.module, "__doc__": _summary(self.rules)}
        return type(spelled, (_RulePass,), members)


@dataclass(frozen=True)
class _RulePass(Pass):
    """A pass made of rules."""

    rules: ClassVar[tuple[RewriteRule, ...]]

    def apply(self, gm: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Apply the rules; why a match was left is in ``ctx.data`` under the name of the pass, as lines of text."""
        return PassResult(gm, apply_rules(self.rules, gm, ctx, ctx.data.setdefault(self.name, [])))


def apply_rules(rules: Sequence[RewriteRule], gm: fx.GraphModule, ctx: PassContext, left: list[str] | None = None) -> int:
    """Apply rules until none fits any more, and return how many rewrites that took.

    A rewrite is left out where it would change the type of the value, where an operator refuses the arguments, or where the value would
    become one that the caller of the graph may write into and that something else reads.

    Args:
        rules: In order of priority.
        gm: The graph.
        ctx: For the fuel.
        left: Is given a line for each match that was left, with the reason.

    Raises:
        PassError: The rules go round in a circle.
    """
    index: dict[Any, list[RewriteRule]] = {}
    for rule in rules:
        for target in rule.compiled.targets:
            index.setdefault(target, []).append(rule)
    depth = max((rule.compiled.depth for rule in rules), default=0)
    memory = rewrite.Memory(gm)
    waiting = deque(node for node in gm.graph.nodes if node.target in index)
    queued = set(waiting)
    gone: set[fx.Node] = set()
    reasons: dict[str, None] = {}
    limit = 100 + 10 * len(gm.graph.nodes)
    changes = 0
    while waiting:
        node = waiting.popleft()
        queued.discard(node)
        if node in gone:
            continue
        for rule in index[node.target]:
            match = rule.compiled.match(node)
            if match is None:
                continue
            done = _apply(rule, match, memory, ctx)
            if isinstance(done, str):
                reasons[f"{rule.name} left {node.name}{specs.where(node)}: {done}"] = None
                continue
            changes += 1
            if changes > limit:
                raise PassError(f"the rules {', '.join(rule.name for rule in rules)} apply to their own results again and again")
            gone.update(done.erased)
            for near in _reach(done.touched, depth):
                if near.target in index and near not in queued and near not in gone:
                    queued.add(near)
                    waiting.append(near)
            break
    if left is not None:
        left.extend(reasons)
    return changes


@dataclass(frozen=True)
class _Done:
    """A rewrite.

    Attributes:
        erased: The nodes that are gone.
        touched: The nodes that are new or read something else than before, or whose input has fewer readers.
    """

    erased: list[fx.Node]
    touched: list[fx.Node]


def _apply(rule: RewriteRule, match: Match, memory: rewrite.Memory, ctx: PassContext) -> _Done | str:
    """Rewrite a match, or say why it is left."""
    verdict = True if rule.check is None else rule.check(match)
    if verdict is not True:
        return verdict if isinstance(verdict, str) else "its check refuses"
    root, before = match.node, match.node.prev
    try:
        value = rule.replacement(match)
        why = _misfit(root, value, memory)
    except ImportGraphError as error:
        why = str(error)
    added = _between(before, root)
    if not why and not ctx.spend():
        why = "there is no fuel left"
    if why:
        _take_back(added)
        return why
    readers = list(root.users)
    inputs = [item for node in match.nodes for item in node.all_input_nodes]
    rewrite.replace(root, value)
    erased = [root, *_erase_unread([*reversed(match.nodes[:-1]), *reversed(added)])]
    # An input that only a pattern's calls read now may be inside a pattern; one with more readers cannot be.
    beside = [user for item in inputs if len(item.users) <= rule.compiled.size for user in item.users]
    gone = set(erased)
    return _Done(erased, [node for node in (*added, *readers, *beside) if node not in gone])


def _misfit(node: fx.Node, value: fx.Node, memory: rewrite.Memory) -> str:
    """Return why `value` may not stand for `node`, or an empty string."""
    if value is node:
        return "the rewrite returns what it was to replace"
    was, now = node.meta.get("val"), value.meta.get("val")
    if not rewrite.same_type(was, now):
        types = [str(specs.spec_of(item)) if isinstance(item, torch.Tensor) else type(item).__name__ for item in (was, now)]
        return f"the rewrite makes {types[1]} of what was {types[0]}"
    if not memory.may_replace(node, value):
        return "the caller of the graph may write into this value, and it would be one that something else reads"
    return ""


def _between(before: fx.Node, after: fx.Node) -> list[fx.Node]:
    found = []
    node = before.next
    while node is not after:
        found.append(node)
        node = node.next
    return found


def _erase_unread(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """Erase those of `nodes`, readers first, that nothing reads."""
    erased = []
    for node in nodes:
        if not node.users:
            node.graph.erase_node(node)
            erased.append(node)
    return erased


def _take_back(added: Sequence[fx.Node]) -> None:
    """Erase the nodes that a rewrite added, with its constants."""
    for node in reversed(added):
        if node.op == "get_attr":
            delattr(node.graph.owning_module, str(node.target))
        node.graph.erase_node(node)


def _reach(touched: Sequence[fx.Node], depth: int) -> Iterator[fx.Node]:
    """Yield nodes and what reads them, as far as a pattern reaches: where one may match now that did not before."""
    seen: set[fx.Node] = set()
    for _ in range(depth):
        fresh = [node for node in dict.fromkeys(touched) if node not in seen]
        seen.update(fresh)
        yield from fresh
        touched = [user for node in fresh for user in node.users]


class _Built(Value):
    """A value in the graph, as a rewrite computes with it: each operator that it is given to is added to the graph.

    Attributes:
        root: The node that is being replaced; new ones are added before it.
        node: The node of this value.
    """

    def __init__(self, root: fx.Node, node: fx.Node) -> None:
        self.root, self.node = root, node

    @classmethod
    def of(cls, root: fx.Node, value: Any) -> Any:
        """Return what a rewrite is given for a part of the match: numbers and the like as they are."""
        if isinstance(value, fx.Node):
            return cls(root, value)
        return [cls.of(root, item) for item in value] if isinstance(value, (list, tuple)) else value

    def may_be(self, kind: str) -> bool:
        """Return whether it is a tensor where one is wanted, and a number where one is."""
        return not kind.startswith("List[") and (kind == "Tensor") == specs.is_tensor(self.node)

    def call(self, target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Value:
        """Add a call to the graph and infer the type of its value."""
        overload = next((found for found in overloads_of(target) if bind(found, args, kwargs) is not None), None)
        if overload is None:
            raise PassError(f"the rewrite's call of {target} does not fit any overload: {', '.join(map(str, overloads_of(target)))}")
        plain, named = self._plain(tuple(args)), self._plain(kwargs)
        node = rewrite.add_call(self.root, overload, *plain, like=self.root, **named)
        gm = self.root.graph.owning_module
        assert gm is not None
        try:
            specs.infer(gm, node)
        except ImportGraphError:
            node.graph.erase_node(node)
            raise
        return _Built(self.root, node)

    def _plain(self, value: Any) -> Any:
        """Return an argument as a node holds it."""
        if isinstance(value, _Built):
            return value.node
        if isinstance(value, torch.Tensor) and not torch_compat.is_fake(value):
            return rewrite.add_constant(self.root, f"{self.root.name}_constant", value)
        if isinstance(value, (list, tuple)):
            return type(value)(map(self._plain, value))
        return {name: self._plain(item) for name, item in value.items()} if isinstance(value, dict) else value


def _summary(rules: Sequence[RewriteRule]) -> str:
    return f"Applies the rule{'s'[: len(rules) != 1]} {', '.join(rule.name for rule in rules)}."

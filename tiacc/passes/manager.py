"""Passes run one after the other."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from tiacc.errors import InvalidArgumentError, PassOrderError, RegistryError
from tiacc.passes import option_text
from tiacc.passes.base import Pass, PassContext, PassResult, passes


@dataclass(frozen=True)
class PassManager(Pass):
    """Passes in order; itself a pass, so that managers nest.

    Attributes:
        passes: The passes, in the order they run in.
        steps: How often at most to run them all. It stops earlier, after a round in which nothing changed.

    Raises:
        PassOrderError: The order contradicts what a pass declares; see `schedule`.
        InvalidArgumentError: `steps` is less than 1.
    """

    name: ClassVar[str] = "pass-manager"

    passes: tuple[Pass, ...] = ()
    steps: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InvalidArgumentError(f"steps={self.steps}: a pass manager runs its passes at least once")
        object.__setattr__(self, "passes", tuple(self.passes))
        schedule(tuple(self.leaves()))

    def apply(self, gm: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Run the passes, and again until none changes anything or `steps` is reached."""
        total = 0
        for _ in range(self.steps):
            changes = 0
            for pass_ in self.passes:
                result = _run(pass_, gm, ctx)
                gm = result.graph
                changes += result.changes
            total += changes
            if not changes:
                break
        return PassResult(gm, total)

    def leaves(self) -> Iterator[Pass]:
        """Yield the passes in the order they run in; in place of a manager among them, its own."""
        for pass_ in self.passes:
            if isinstance(pass_, PassManager):
                yield from pass_.leaves()
            else:
                yield pass_

    @classmethod
    def parse(cls, text: str) -> PassManager:
        """Return the manager that `text` describes; ``str(manager)`` is such a text.

        Args:
            text: Names of registered passes with their options: ``"fold-batch-norm, cast-half{dtype=bf16}"``; ``(…)*3``
                repeats. The grammar is in `tiacc.passes.option_text`.

        Raises:
            InvalidArgumentError: The text does not follow the grammar, or an option does not fit the pass.
            RegistryError: No pass has that name.
            PassOrderError: See `schedule`.
        """
        reader = Reader(text)
        items = reader.pipeline()
        reader.expect_end()
        if len(items) == 1 and isinstance(items[0], PassManager):
            return items[0]
        return cls(items)

    def __str__(self) -> str:
        is_nested = len(self.passes) == 1 and isinstance(self.passes[0], PassManager)
        return self._text() if self.steps > 1 or is_nested else ", ".join(map(item_text, self.passes))

    def _text(self) -> str:
        inner = ", ".join(map(item_text, self.passes))
        return f"({inner})*{self.steps}" if self.steps > 1 else f"({inner})"


def schedule(passes: Sequence[Pass]) -> tuple[Pass, ...]:
    """Check that passes may run in the given order, and return them.

    The order of the list is the order of the run. What the passes declare with ``after`` and ``before`` only forbids: it never
    moves a pass, and a pass that is named there and is not in the list is no matter. A pass that is in the list twice must be
    in a right place both times.

    Raises:
        PassOrderError: The declarations are a cycle, which is printed; or the list contradicts one of them, and an order that
            holds is printed; or a declaration names a pass that nobody has registered.
    """
    import networkx as nx

    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(passes)))
    places: dict[str, list[int]] = {}
    for index, pass_ in enumerate(passes):
        places.setdefault(pass_.name, []).append(index)
    for index, pass_ in enumerate(passes):
        for name in (*pass_.after, *pass_.before):
            _check_name(name, places, pass_)
        graph.add_edges_from((place, index) for name in pass_.after for place in places.get(name, ()))
        graph.add_edges_from((index, place) for name in pass_.before for place in places.get(name, ()))
    try:
        order = list(nx.lexicographical_topological_sort(graph, key=lambda index: index))
    except nx.NetworkXUnfeasible as error:
        cycle = [passes[first].name for first, _ in nx.find_cycle(graph)]
        raise PassOrderError(
            f"the passes' own `after` and `before` contradict each other: {' → '.join([*cycle, cycle[0]])}; "
            f"leave one of them out, or change what it declares"
        ) from error
    for first, second in graph.edges:
        if first > second:
            raise PassOrderError(
                f"{passes[first].name!r} may not come later than {passes[second].name!r}, as one of them declares: the order "
                f"{_names(passes, range(len(passes)))} does not hold, this one does: {_names(passes, order)}"
            )
    return tuple(passes)


def _run(pass_: Pass, gm: fx.GraphModule, ctx: PassContext) -> PassResult:
    if not ctx.instruments or isinstance(pass_, PassManager):
        return pass_.run(gm, ctx)
    for instrument in ctx.instruments:
        instrument.before(pass_, gm)
    start = time.perf_counter()
    result = pass_.run(gm, ctx)
    seconds = time.perf_counter() - start
    if result.changes:
        result.graph.recompile()
    for instrument in ctx.instruments:
        instrument.after(pass_, result, seconds)
    return result


def _check_name(name: str, places: dict[str, list[int]], pass_: Pass) -> None:
    if name in places:
        return
    try:
        passes.get(name)
    except RegistryError as error:
        raise PassOrderError(f"pass {pass_.name!r} declares its place by a name that does not exist: {error}") from error


def _names(passes: Sequence[Pass], order: Sequence[int]) -> str:
    return ", ".join(passes[index].name for index in order)


def item_text(pass_: Pass) -> str:
    """Return a pass as an item of a pipeline's text: a manager in parentheses."""
    return pass_._text() if isinstance(pass_, PassManager) else str(pass_)


class Reader:
    """A recursive-descent reader of the grammar in `tiacc.passes.option_text`, for what is made of it.

    A method that does not find what it reads raises `InvalidArgumentError` with the place in the text.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.words = option_text.words(text)
        self.next = 0

    def pipeline(self) -> tuple[Pass, ...]:
        """Read items with commas between them."""
        items = [self.item()]
        while self.skip(","):
            items.append(self.item())
        return tuple(items)

    def item(self) -> Pass:
        """Read a pass with its options, or a pipeline in parentheses."""
        if self.skip("("):
            inner = self.pipeline()
            self.expect(")")
            return PassManager(inner, self.count())
        name = self.word("the name of a pass")
        options: list[tuple[str, list[str]]] = []
        if self.skip("{") and not self.skip("}"):
            options.append(self.option())
            while self.skip(","):
                options.append(self.option())
            self.expect("}")
        cls = passes.get(name)
        try:
            return cls(**option_text.parse_options(cls, options))
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"pass {name!r} in {self.text!r}: {error}") from error

    def sign(self, signs: str) -> str:
        """Read one of `signs` if the next word begins with one; else return an empty string."""
        word = self.words[self.next] if self.next < len(self.words) else None
        if word is None or word.is_mark or word.text[:1] not in signs or not word.text:
            return ""
        rest = dataclasses.replace(word, text=word.text[1:], position=word.position + 1)
        self.words[self.next : self.next + 1] = [rest] if rest.text else []
        return word.text[0]

    def option(self) -> tuple[str, list[str]]:
        """Read a name and the texts of its value."""
        name = self.word("the name of an option")
        self.expect("=")
        if self.peek() in (",", "}"):
            return name, []
        texts = [self.word("a value")]
        while self.skip("|"):
            texts.append(self.word("a value"))
        return name, texts

    def count(self) -> int:
        """Read a count such as ``*3`` if there is one; else return 1."""
        word = self.words[self.next] if self.next < len(self.words) else None
        if word is None or word.is_mark or not word.text.startswith("*"):
            return 1
        self.next += 1
        digits = word.text[1:]
        if not digits.isdecimal():
            raise self.error(f"a count such as *3 is expected at character {word.position}, not {word.text!r}")
        return int(digits)

    def peek(self) -> str | None:
        """Return the mark that comes next; None where that is a word or the end."""
        if self.next == len(self.words) or not self.words[self.next].is_mark:
            return None
        return self.words[self.next].text

    def skip(self, mark: str) -> bool:
        """Read a mark if it comes next; return whether it did."""
        if self.peek() != mark:
            return False
        self.next += 1
        return True

    def skip_word(self, text: str) -> bool:
        """Read a word if it comes next; return whether it did."""
        if self.next == len(self.words) or self.words[self.next].is_mark or self.words[self.next].text != text:
            return False
        self.next += 1
        return True

    def expect(self, mark: str) -> None:
        """Read a mark."""
        if not self.skip(mark):
            raise self.error(f"{mark!r} is expected {self.here()}")

    def expect_end(self) -> None:
        """Check that nothing is left."""
        if self.next < len(self.words):
            raise self.error(f"',' or the end is expected {self.here()}")

    def word(self, what: str) -> str:
        """Read a word, which `what` names in the message where there is none."""
        if self.next == len(self.words) or self.words[self.next].is_mark:
            raise self.error(f"{what} is expected {self.here()}")
        self.next += 1
        return self.words[self.next - 1].text

    def here(self) -> str:
        """Return the place in the text, for a message."""
        if self.next == len(self.words):
            return "at the end"
        word = self.words[self.next]
        return f"at character {word.position}, not {word.text!r}"

    def error(self, why: str) -> InvalidArgumentError:
        """Return an error about the text."""
        return InvalidArgumentError(f"pipeline text {self.text!r}: {why}")

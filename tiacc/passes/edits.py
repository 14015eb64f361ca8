"""The default pipeline with changes: passes put in, taken out, or put in the place of others.

::

    tiacc.passes.default().before("cast-half", fuse_silu).without("remove-dropout")

and the same as text: ``"+fuse-silu before cast-half, -remove-dropout"``. The changes are made to the default pipeline of whatever level and
device a model is optimized for. Where a pass is named that this pipeline has at another level only, what is put before or after it comes
last.

    edits := edit (',' edit)*
    edit  := '+'item [('before' | 'after') name] | '-'name | name '=' item

An item is written as in `tiacc.passes.option_text`.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from tiacc.errors import InvalidArgumentError
from tiacc.passes.base import Pass, pass_class
from tiacc.passes.manager import PassManager, Reader, item_text

_IS_EDITS = re.compile(r"\s*(?:[+-]|[\w-]+\s*=)")


@dataclass(frozen=True)
class Edit:
    """One change.

    Attributes:
        kind: What to do.
        name: The pass that it is about; empty for ``"last"``.
        passes: What is put in.
    """

    kind: Literal["before", "after", "last", "without", "replace"]
    name: str = ""
    passes: tuple[Pass, ...] = ()

    def __str__(self) -> str:
        if self.kind == "without":
            return f"-{self.name}"
        if self.kind == "replace":
            return f"{self.name} = {_as_item(self.passes)}"
        return f"+{_as_item(self.passes)}" + (f" {self.kind} {self.name}" if self.name else "")


@dataclass(frozen=True)
class PipelineEdits:
    """Changes to the default pipeline, in the order in which they are made; each method returns these with one more.

    A pass is given as an object of its class, as its class, as a function or `RewriteRule`, or as text; the one that it is put next to by
    its name, or as any of these.

    Attributes:
        edits: The changes.
    """

    edits: tuple[Edit, ...] = ()

    def before(self, name: Any, *items: Any) -> PipelineEdits:
        """Put passes before the first run of the pass `name`."""
        return self._with("before", name, items)

    def after(self, name: Any, *items: Any) -> PipelineEdits:
        """Put passes after the last run of the pass `name`."""
        return self._with("after", name, items)

    def last(self, *items: Any) -> PipelineEdits:
        """Put passes at the end."""
        return self._with("last", "", items)

    def without(self, *names: Any) -> PipelineEdits:
        """Leave passes out."""
        changed = self
        for name in names:
            changed = changed._with("without", name, ())
        return changed

    def replace(self, name: Any, *items: Any) -> PipelineEdits:
        """Put passes in the place of each run of the pass `name`."""
        return self._with("replace", name, items)

    def _with(self, kind: Any, target: Any, items: Sequence[Any]) -> PipelineEdits:
        name = target if isinstance(target, str) else target and as_pass(target).name
        if kind != "without" and not items:
            raise InvalidArgumentError(f"{kind}({name!r}) is given no pass to put in")
        if name:
            _check_known(name, (leaf for edit in self.edits for leaf in PassManager(edit.passes).leaves()))
        return dataclasses.replace(self, edits=(*self.edits, Edit(kind, name, tuple(map(as_pass, items)))))

    def resolve(self, manager: PassManager) -> PassManager:
        """Return a pipeline with these changes.

        Raises:
            PassOrderError: What is put in may not be there, as it or another pass declares.
        """
        for edit in self.edits:
            manager = _edited(manager, edit)
        return manager

    @classmethod
    def parse(cls, text: str) -> PipelineEdits:
        """Return the changes that `text` describes; ``str(edits)`` is such a text.

        Raises:
            InvalidArgumentError: The text does not follow the grammar, or names a pass that the default pipeline does not have.
            RegistryError: No pass has the name of one to put in.
        """
        reader, edits = Reader(text), cls()
        while True:
            edits = _read_edit(reader, edits)
            if not reader.skip(","):
                reader.expect_end()
                return edits

    def __str__(self) -> str:
        return ", ".join(map(str, self.edits))


def default() -> PipelineEdits:
    """Return the default pipeline, to put passes in and take passes out."""
    return PipelineEdits()


def as_pass(item: Any) -> Pass:
    """Return a pass from an object of a pass class, from what `pass_class` takes, or from text.

    Raises:
        InvalidArgumentError: It is none of these, or the text does not follow the grammar.
        RegistryError: No pass has the name that the text says.
    """
    if isinstance(item, Pass):
        return item
    if isinstance(item, str):
        manager = PassManager.parse(item)
        return manager.passes[0] if len(manager.passes) == 1 and manager.steps == 1 else manager
    if isinstance(item, PipelineEdits):
        raise InvalidArgumentError("changes to the default pipeline are a pipeline of their own; give them alone, as passes=edits")
    return pass_class(item)()


def choose(chosen: Any, usual: Callable[[], PassManager], stop_after: str | None = None) -> PassManager:
    """Return the pipeline that the options ``passes`` and ``stop_after`` ask for.

    Args:
        chosen: None, text, `PipelineEdits`, or a sequence of what `as_pass` takes.
        usual: Makes the default pipeline.
        stop_after: The pass behind whose last run the pipeline ends. One that another level of the default pipeline has ends nothing.

    Raises:
        InvalidArgumentError: As `as_pass`.
        RegistryError: As `as_pass`.
        PassOrderError: The passes may not be in this order.
    """
    if isinstance(chosen, str) and _IS_EDITS.match(chosen):
        chosen = PipelineEdits.parse(chosen)
    if chosen is None:
        manager = usual()
    elif isinstance(chosen, str):
        manager = PassManager.parse(chosen)
    elif isinstance(chosen, PipelineEdits):
        manager = chosen.resolve(usual())
    else:
        manager = PassManager(tuple(map(as_pass, chosen)))
    return manager if stop_after is None else _until(manager, stop_after)


def _until(manager: PassManager, name: str) -> PassManager:
    """Return a pipeline that ends behind the last run of a pass; one in a round that repeats ends with that round."""
    for index, pass_ in reversed([*enumerate(manager.passes)]):
        if name in [leaf.name for leaf in (pass_.leaves() if isinstance(pass_, PassManager) else (pass_,))]:
            kept = _until(pass_, name) if isinstance(pass_, PassManager) and pass_.steps == 1 else pass_
            return PassManager((*manager.passes[:index], kept), manager.steps)
    _check_known(name, manager.leaves())
    return manager


def _check_known(name: str, leaves: Iterable[Pass]) -> None:
    """Refuse the name of a pass that is in no level of the default pipeline, and not among `leaves`."""
    from tiacc.passes.pipelines import pipeline

    known = list(dict.fromkeys(pass_.name for pass_ in (*pipeline(1, torch.device("cpu")).leaves(), *leaves)))
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise InvalidArgumentError(f"the pipeline has no pass {name!r}{hint} It has {', '.join(known)}")


def _read_edit(reader: Reader, edits: PipelineEdits) -> PipelineEdits:
    sign = reader.sign("+-")
    if sign == "-":
        return edits.without(reader.word("the name of a pass"))
    if sign != "+":
        name = reader.word("'+', '-' or the name of a pass")
        if not reader.skip("="):
            raise reader.error(f"a change is '+PASS', '-PASS' or 'PASS = PASS', and {name!r} is none: '=' is expected {reader.here()}")
        return edits.replace(name, reader.item())
    item = reader.item()
    if reader.skip_word("before"):
        return edits.before(reader.word("the name of a pass"), item)
    if reader.skip_word("after"):
        return edits.after(reader.word("the name of a pass"), item)
    return edits.last(item)


def _edited(manager: PassManager, edit: Edit) -> PassManager:
    places = [index for index, leaf in enumerate(manager.leaves()) if leaf.name == edit.name]
    if edit.kind in ("before", "after", "last") and not places:
        return PassManager((*manager.passes, *edit.passes), manager.steps)
    chosen = {"before": places[:1], "after": places[-1:]}.get(edit.kind, places)
    return _rebuilt(manager, edit, set(chosen), iter(range(1 << 30)))


def _rebuilt(manager: PassManager, edit: Edit, chosen: set[int], numbers: Any) -> PassManager:
    made: list[Pass] = []
    for pass_ in manager.passes:
        if isinstance(pass_, PassManager):
            inner = _rebuilt(pass_, edit, chosen, numbers)
            made.extend([inner] if inner.passes else [])
            continue
        kept = [] if edit.kind in ("without", "replace") else [pass_]
        if next(numbers) not in chosen:
            made.append(pass_)
        elif edit.kind == "after":
            made.extend((*kept, *edit.passes))
        else:
            made.extend((*edit.passes, *kept))
    return PassManager(tuple(made), manager.steps)


def _as_item(passes: tuple[Pass, ...]) -> str:
    return item_text(passes[0] if len(passes) == 1 else PassManager(passes))

"""What can watch passes run: a timer, a dumper, a verifier. They are given in ``PassContext(instruments=(...))``.

Any object with the two methods of `tiacc.passes.base.Instrument` is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import fx

from tiacc.errors import PostconditionError
from tiacc.graph import specs
from tiacc.passes.base import Instrument, Pass, PassResult

__all__ = ["DumpInstrument", "Instrument", "PassRow", "TimingInstrument", "VerifyInstrument", "graph_text"]


@dataclass(frozen=True)
class PassRow:
    """One run of one pass.

    Attributes:
        name: The name of the pass.
        changes: The number of rewrites it made.
        ms: How long it took, in milliseconds, with the checks round it.
    """

    name: str
    changes: int
    ms: float


@dataclass
class TimingInstrument:
    """Notes what each pass changed and how long it took.

    Attributes:
        rows: One row a run, in the order of the runs.
    """

    rows: list[PassRow] = field(default_factory=list)

    def before(self, pass_: Pass, gm: fx.GraphModule) -> None:
        """Do nothing."""

    def after(self, pass_: Pass, result: PassResult, seconds: float) -> None:
        """Add a row."""
        self.rows.append(PassRow(pass_.name, result.changes, seconds * 1e3))

    def totals(self) -> list[PassRow]:
        """Return one row a pass, the runs of the same name added up, in the order of the first runs."""
        totals: dict[str, PassRow] = {}
        for row in self.rows:
            known = totals.get(row.name, PassRow(row.name, 0, 0.0))
            totals[row.name] = PassRow(row.name, known.changes + row.changes, known.ms + row.ms)
        return list(totals.values())


@dataclass
class DumpInstrument:
    """Writes the graph as text: as it was first, and after each pass that changed it.

    The files are ``000-input.txt``, ``003-fold-batch-norm.txt`` and so on, numbered by the runs of passes.

    Attributes:
        directory: Where to write; made if it is not there.
    """

    directory: Path
    _runs: int = field(default=0, init=False)

    def before(self, pass_: Pass, gm: fx.GraphModule) -> None:
        """Write the graph if this is the first pass."""
        if self._runs == 0:
            self._write("input", gm)

    def after(self, pass_: Pass, result: PassResult, seconds: float) -> None:
        """Write the graph if the pass changed it."""
        self._runs += 1
        if result.changes:
            self._write(pass_.name, result.graph)

    def _write(self, name: str, gm: fx.GraphModule) -> None:
        directory = Path(self.directory)
        directory.mkdir(parents=True, exist_ok=True)
        safe = re.sub(r"[^\w.-]", "_", name)
        (directory / f"{self._runs:03d}-{safe}.txt").write_text(graph_text(gm) + "\n", encoding="utf-8")


@dataclass
class VerifyInstrument:
    """Checks the graph after each pass that changed it, so that the pass that broke it is known.

    Attributes:
        verify: What raises when it is given a graph that is not right: a check of its form, or a run of it against known outputs.
    """

    verify: Callable[[fx.GraphModule], object]

    def before(self, pass_: Pass, gm: fx.GraphModule) -> None:
        """Do nothing."""

    def after(self, pass_: Pass, result: PassResult, seconds: float) -> None:
        """Check the graph.

        Raises:
            PostconditionError: `verify` raised; the message names the pass.
        """
        if not result.changes:
            return
        try:
            self.verify(result.graph)
        except Exception as error:  # whatever a check raises: it is the user's
            raise PostconditionError(
                f"after pass {pass_} ({result.changes} changes) the graph is not right: {type(error).__name__}: {error}"
            ) from error


def graph_text(gm: fx.GraphModule) -> str:
    """Return a graph as text, one node a line, with the types of the values and the TorchScript source lines.

    ``conv2d: float32[1, 64, h=8..64, 8] = aten.conv2d.default(x, weight, None, [2, 2])  # model.py:12``
    """
    made = []
    for node in gm.graph.nodes:
        if node.op == "output":
            made.append(f"return {', '.join(map(_argument, node.args[0]))}")
            continue
        args = [*map(_argument, node.args), *(f"{name}={_argument(value)}" for name, value in node.kwargs.items())]
        what = {
            "placeholder": "input",
            "get_attr": f"constant {node.target}",
        }.get(node.op, f"{_target(node.target)}({', '.join(args)})")
        source = node.meta.get("source")
        made.append(f"{node.name}: {_type(node.meta.get('val'))} = {what}" + (f"  # {source}" if source else ""))
    return "\n".join(made)


def _target(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', target)}".removeprefix("_")


def _argument(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        inner = ", ".join(map(_argument, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    return str(value)


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return str(specs.spec_of(value))
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(_type, value))})"
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return f"{type(value).__name__}({value})"
    return type(value).__name__

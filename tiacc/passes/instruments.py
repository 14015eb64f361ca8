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
from tiacc.model_graph import graph_of
from tiacc.passes import rewrite
from tiacc.passes.base import Instrument, Pass, PassResult
from tiacc.report_html import as_graph_page

__all__ = [
    "ChangeLogInstrument",
    "CompareInstrument",
    "DumpInstrument",
    "Instrument",
    "MemoryInstrument",
    "PassRow",
    "TimingInstrument",
    "VerifyInstrument",
    "constant_bytes",
    "graph_text",
]


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
    """Writes each graph, as text and as a page to look at: as it was first, and after each pass that changed it.

    The files are ``000-input.txt`` and ``000-input.html``, ``003-fold-batch-norm.txt`` and so on, numbered by the runs of passes; a model
    of several regions, or one that is tried at several levels, has several inputs. A page shows in colour what the pass made or changed.

    Attributes:
        directory: Where to write; made if it is not there.
    """

    directory: Path
    _runs: int = field(default=0, init=False)
    _lines: set[str] = field(default_factory=set, init=False, repr=False)
    _graph: fx.GraphModule | None = field(default=None, init=False, repr=False)

    def before(self, pass_: Pass, gm: fx.GraphModule) -> None:
        """Write the graph if it is not the one that the pass before left."""
        if gm is not self._graph:
            self._graph = gm
            self._lines = set(graph_text(gm).splitlines())
            self._write("input", "input", gm)

    def after(self, pass_: Pass, result: PassResult, seconds: float) -> None:
        """Write the graph if the pass changed it."""
        self._runs += 1
        self._graph = result.graph
        if result.changes:
            self._write(pass_.name, f"after {pass_}: {result.changes} change{'s'[: result.changes != 1]}", result.graph)

    def _write(self, name: str, title: str, gm: fx.GraphModule) -> None:
        directory = Path(self.directory)
        directory.mkdir(parents=True, exist_ok=True)
        lines = {node: _line(node) for node in gm.graph.nodes}
        graph = graph_of(gm, {node: int(line not in self._lines) for node, line in lines.items()})
        self._lines = set(lines.values())
        safe = re.sub(r"[^\w.-]", "_", name)
        name = f"{self._runs:03d}-{safe}"
        (directory / f"{name}.txt").write_text("\n".join(lines.values()) + "\n", encoding="utf-8")
        (directory / f"{name}.html").write_text(as_graph_page(graph, f"{self._runs:03d} {title}"), encoding="utf-8")


@dataclass
class ChangeLogInstrument:
    """Notes which lines of the graph each pass took out and put in, as `graph_text` writes them.

    Attributes:
        entries: One text a pass that changed something: ``"fold-batch-norm: 2 changes"``, then a line for each node that went or changed,
            which begins with ``-``, and for each that came or changed, which begins with ``+``.
    """

    entries: list[str] = field(default_factory=list)
    _before: list[str] = field(default_factory=list, init=False, repr=False)

    def before(self, pass_: Pass, gm: fx.GraphModule) -> None:
        """Keep the graph as text."""
        self._before = graph_text(gm).splitlines()

    def after(self, pass_: Pass, result: PassResult, seconds: float) -> None:
        """Add what is different."""
        if result.changes:
            after = graph_text(result.graph).splitlines()
            gone, come = set(self._before) - set(after), set(after) - set(self._before)
            lines = [f"- {line}" for line in self._before if line in gone] + [f"+ {line}" for line in after if line in come]
            self.entries.append("\n".join((f"{pass_}: {result.changes} changes", *lines)))

    def __str__(self) -> str:
        return "\n\n".join(self.entries)


@dataclass
class MemoryInstrument:
    """Notes how many bytes of constants the graph holds after each pass.

    Attributes:
        rows: The pass and the bytes, one a run; memory that several constants share counts once.
    """

    rows: list[tuple[str, int]] = field(default_factory=list)

    def before(self, pass_: Pass, gm: fx.GraphModule) -> None:
        """Do nothing."""

    def after(self, pass_: Pass, result: PassResult, seconds: float) -> None:
        """Add a row."""
        self.rows.append((pass_.name, constant_bytes(result.graph)))


@dataclass
class CompareInstrument:
    """Runs the graph after each pass that changed it, and compares with what it computed at first, on random inputs.

    Floats are normal, integers are 0 or 1, sizes that vary are those to be fastest at. A graph that has an input that is no tensor, or
    that draws random numbers, is not compared.

    Attributes:
        tolerance: The largest relative error, ``‖after - before‖ / ‖before‖``.
        half_tolerance: The same, once anything in the graph is computed in half precision.
        seed: Where the inputs come from.
    """

    tolerance: float = 1e-4
    half_tolerance: float = 3e-2
    seed: int = 0
    _graph: fx.GraphModule | None = field(default=None, init=False, repr=False)
    _inputs: list[torch.Tensor] = field(default_factory=list, init=False, repr=False)
    _expected: list[torch.Tensor] | None = field(default=None, init=False, repr=False)

    def before(self, pass_: Pass, gm: fx.GraphModule) -> None:
        """Run the graph if it is not the one that the pass before left."""
        if gm is self._graph:
            return
        self._graph, self._expected = gm, None
        inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
        if all(map(specs.is_tensor, inputs)) and all(rewrite.is_pure(node) for node in gm.graph.nodes if node.op == "call_function"):
            generator = torch.Generator().manual_seed(self.seed)
            self._inputs = [_random(specs.spec_of(specs.tensor_of(node)), generator) for node in inputs]
            self._expected = self._run(gm)

    def after(self, pass_: Pass, result: PassResult, seconds: float) -> None:
        """Run and compare the graph if the pass changed it.

        Raises:
            PostconditionError: A result has another type than at first, or is off by more than the tolerance; the message names the pass.
        """
        self._graph = result.graph
        if not result.changes or self._expected is None:
            return
        values = [node.meta.get("val") for node in result.graph.graph.nodes]
        is_half = any(isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16) for value in values)
        for place, (now, was) in enumerate(zip(self._run(result.graph), self._expected)):
            told = f"after pass {pass_} ({result.changes} changes) result {place} of the graph"
            if (now.shape, now.dtype) != (was.shape, was.dtype):
                raise PostconditionError(f"{told} is {now.dtype}{list(now.shape)}, and was {was.dtype}{list(was.shape)}")
            error = float(torch.linalg.vector_norm(_finite(now) - _finite(was)) / torch.linalg.vector_norm(_finite(was)).clamp_min(1e-12))
            if error > (self.half_tolerance if is_half else self.tolerance):
                raise PostconditionError(f"{told} has a relative error of {error:.2g}, on random inputs (seed {self.seed})")

    def _run(self, gm: fx.GraphModule) -> list[torch.Tensor]:
        with torch.no_grad():
            return [torch.as_tensor(value).clone() for value in fx.Interpreter(gm).run(*(tensor.clone() for tensor in self._inputs))]


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


def constant_bytes(gm: fx.GraphModule) -> int:
    """Return the bytes of the constants that a graph reads; memory that several share counts once."""
    found: dict[int, int] = {}
    for name in {str(node.target) for node in gm.graph.nodes if node.op == "get_attr"}:
        value = specs.fetch_attr(gm, name)
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def _random(spec: specs.TensorSpec, generator: torch.Generator) -> torch.Tensor:
    shape = spec.sizes("opt")
    if spec.dtype.is_floating_point or spec.dtype.is_complex:
        made = torch.randn(shape, generator=generator)
    else:
        made = torch.randint(0, 2, shape, generator=generator)
    return made.to(spec.device, spec.dtype)


def _finite(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in double precision, infinities and NaN as numbers that compare."""
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    return tensor.to(wide).nan_to_num(nan=12345.0, posinf=1e30, neginf=-1e30)


def graph_text(gm: fx.GraphModule) -> str:
    """Return a graph as text, one node a line, with the types of the values and the TorchScript source lines.

    ``conv2d: float32[1, 64, h=8..64, 8] = aten.conv2d.default(x, weight, None, [2, 2])  # model.py:12``
    """
    return "\n".join(map(_line, gm.graph.nodes))


def _line(node: fx.Node) -> str:
    if node.op == "output":
        results: Any = node.args[0]
        return f"return {', '.join(map(_argument, results))}"
    args = [*map(_argument, node.args), *(f"{name}={_argument(value)}" for name, value in node.kwargs.items())]
    what = {
        "placeholder": "input",
        "get_attr": f"constant {node.target}",
    }.get(node.op, f"{_target(node.target)}({', '.join(args)})")
    source = node.meta.get("source")
    return f"{node.name}: {_type(node.meta.get('val'))} = {what}" + (f"  # {source}" if source else "")


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

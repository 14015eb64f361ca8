"""Progress of a long call: phases and the time left, on stderr.

    with progress({"import": 1, "build engines": 8, "measure": 4}) as bar:
        bar.start("build engines", total=3)
        bar.step()

On a terminal it is one line that updates itself, drawn by rich where that is installed, and gone at the end; elsewhere
nothing is shown, unless it is asked for: then it is a plain line a phase.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any


class Progress:
    """How far a call has come. This class only counts, and shows nothing.

    Args:
        phases: The phases in their order, each with its usual share of the time, in any unit.
    """

    def __init__(self, phases: Mapping[str, float] | Sequence[str]) -> None:
        self._weights = dict(phases) if isinstance(phases, Mapping) else dict.fromkeys(phases, 1.0)
        self._total = 1
        self._done = 0
        self._furthest = 0.0
        self.phase = ""
        self._note = ""

    @property
    def fraction(self) -> float:
        """The part of all the work that is done, 0 to 1. It never falls, also when a phase is done over."""
        names = [*self._weights]
        if self.phase in names:
            before = sum(self._weights[name] for name in names[: names.index(self.phase)])
            inside = self._weights[self.phase] * min(1.0, self._done / self._total)
            self._furthest = max(self._furthest, (before + inside) / sum(self._weights.values()))
        return self._furthest

    def start(self, phase: str, total: int = 1) -> None:
        """Begin a phase; those before it are done.

        Args:
            phase: One of `phases`; another name is shown, but moves nothing.
            total: The number of steps in it.
        """
        self.phase, self._total, self._done, self._note = phase, max(1, total), 0, ""
        self.show(is_new=True)

    def step(self, count: int = 1) -> None:
        """Tell that `count` more steps of the phase are done."""
        self._done += count
        self.show(is_new=False)

    def note(self, text: str) -> None:
        """Tell what is being done in the phase, where its steps cannot be counted."""
        self._note = text
        self.show(is_new=False)

    def show(self, *, is_new: bool) -> None:
        """Show where things stand; `is_new` when a phase has just begun."""

    @property
    def label(self) -> str:
        """The phase, where it has several steps the one at work, and what is being done."""
        step = "" if self._total == 1 else f" {min(self._done + 1, self._total)}/{self._total}"
        return f"{self.phase}{step}{f': {self._note}' if self._note else ''}"


class _Lines(Progress):
    """A line a phase."""

    def __init__(self, phases: Mapping[str, float] | Sequence[str]) -> None:
        super().__init__(phases)
        self._began = time.monotonic()

    def show(self, *, is_new: bool) -> None:
        if is_new:
            sys.stderr.write(f"tiacc {time.monotonic() - self._began:6.1f} s  {self.label.replace(' 1/', ', steps: ')}\n")
            sys.stderr.flush()


class _Bar(Progress):
    """A line that updates itself, on a `rich.progress.Progress`."""

    def __init__(self, phases: Mapping[str, float] | Sequence[str], bars: Any) -> None:
        super().__init__(phases)
        self._bars = bars
        self._task = bars.add_task("", total=1.0)

    def show(self, *, is_new: bool) -> None:
        self._bars.update(self._task, completed=self.fraction, description=self.label, refresh=is_new)


@contextmanager
def progress(phases: Mapping[str, float] | Sequence[str], verbose: bool | None = None) -> Iterator[Progress]:
    """Show progress while the block runs.

    Args:
        phases: The phases in their order, each with its usual share of the time, in any unit; equal ones if they are only
            named.
        verbose: Whether to show it. None: when stderr is a terminal and rich is installed.

    Yields:
        What to tell about the work: `Progress.start` and `Progress.step`.
    """
    if sys.stderr is None:  # a program without a console
        verbose = False
    can_draw = verbose is not False and sys.stderr.isatty() and importlib.util.find_spec("rich") is not None
    if verbose is False or (verbose is None and not can_draw):
        yield Progress(phases)
    elif not can_draw:
        yield _Lines(phases)
    else:
        from rich import progress as parts
        from rich.console import Console

        columns = [
            parts.TextColumn("tiacc"),
            parts.BarColumn(bar_width=30),
            parts.TextColumn("{task.description}", markup=False),
            parts.TimeElapsedColumn(),
            parts.TextColumn("left"),
            parts.TimeRemainingColumn(),
        ]
        with parts.Progress(*columns, console=Console(file=sys.stderr), transient=True) as bars:
            yield _Bar(phases, bars)

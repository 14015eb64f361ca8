import io
import sys

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from tiacc import progress as module
from tiacc.progress import Progress, progress

PHASES = {"import": 1, "build": 6, "measure": 3}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def work(**options):
    with progress(PHASES, **options) as bar:
        bar.start("import")
        bar.step()
        bar.start("build", total=3)
        for _ in range(3):
            bar.step()
        bar.start("measure")
        bar.step()
    return bar


def test_the_fraction_is_weighted():
    bar = Progress(PHASES)
    assert bar.fraction == 0
    bar.start("build", total=3)
    assert bar.fraction == pytest.approx(0.1) and bar.label == "build 1/3"
    bar.step()
    assert bar.fraction == pytest.approx(0.3) and bar.label == "build 2/3"
    bar.step(2)
    assert bar.fraction == pytest.approx(0.7) and bar.label == "build 3/3"
    bar.start("measure")
    bar.step()
    assert bar.fraction == pytest.approx(1) and bar.label == "measure"


def test_what_is_being_done_is_part_of_the_label_until_the_next_phase():
    bar = Progress(PHASES)
    bar.start("build", total=3)
    bar.note("Optimizing graph")
    assert bar.label == "build 1/3: Optimizing graph"
    bar.start("measure")
    assert bar.label == "measure"


def test_named_phases_are_equal():
    bar = Progress(["a", "b", "c", "d"])
    bar.start("c")
    assert bar.fraction == pytest.approx(0.5)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(st.sampled_from([*PHASES, "repair"]).map(lambda name: (name,)), st.integers(0, 9)), max_size=20))
def test_the_fraction_never_falls_and_never_leaves_its_range(calls):
    bar, last = Progress(PHASES), 0.0
    for call in calls:
        if isinstance(call, tuple):
            bar.start(call[0], total=len(calls) // 2)
        else:
            bar.step(call)
        assert last <= bar.fraction <= 1 + 1e-9
        last = bar.fraction


def test_an_unknown_phase_is_named_and_moves_nothing():
    bar = Progress(PHASES)
    bar.start("build")
    before = bar.fraction
    bar.start("repair", total=2)
    bar.step()
    assert bar.fraction == before and bar.label == "repair 2/2"


@pytest.mark.parametrize("verbose", [None, False])
def test_it_is_silent_where_there_is_no_terminal(capfd, verbose):
    assert work(verbose=verbose).fraction == pytest.approx(1)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_lines_when_asked_for(capfd):
    work(verbose=True)
    captured = capfd.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line.split(" s  ")[1] for line in lines] == ["import", "build, steps: 3", "measure"]


def test_a_bar_on_a_terminal(monkeypatch, capfd):
    pytest.importorskip("rich")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    work()
    assert "build 1/3" in terminal.getvalue() and "\x1b[" in terminal.getvalue()
    assert capfd.readouterr().out == ""


def test_a_program_without_a_console(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert work(verbose=True).fraction == pytest.approx(1)


def test_no_bar_when_told_not_to(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    work(verbose=False)
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(("verbose", "lines"), [(None, 0), (True, 3)])
def test_without_rich(monkeypatch, verbose, lines):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    work(verbose=verbose)
    assert len(terminal.getvalue().splitlines()) == lines


def test_the_terminal_is_given_back_after_an_error(monkeypatch):
    pytest.importorskip("rich")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(ValueError, match="inside"), progress(PHASES) as bar:
        bar.start("build [not markup]")
        raise ValueError("inside")
    assert "[not markup]" in terminal.getvalue()
    assert terminal.getvalue().count("\x1b[?25h") == terminal.getvalue().count("\x1b[?25l") > 0

"""The file beside the user's: one that a killed process has left is removed by the next save to the same place, and no other is."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tiacc.models import TemporaryModel

KILLED = """
import os, signal, sys, torch
from pathlib import Path
from tiacc.models import TemporaryModel
file = TemporaryModel(Path(sys.argv[1]))
file.write(torch.jit.script(torch.nn.ReLU()))
os.kill(os.getpid(), signal.SIGKILL)
"""


def left_by_a_killed_process(path: Path) -> Path:
    before = set(path.parent.iterdir())
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED, str(path)], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = set(path.parent.iterdir()) - before
    return left


def test_the_next_save_to_the_same_place_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    lefts = [left_by_a_killed_process(tmp_path / name) for name in ("fast.pt", "fast.pt", "other.pt")]
    with TemporaryModel(tmp_path / "fast.pt") as file:
        file.write(torch.jit.script(torch.nn.ReLU()))
        assert set(tmp_path.iterdir()) == {file.path, lefts[2]}
        file.keep()
    assert set(tmp_path.iterdir()) == {tmp_path / "fast.pt", lefts[2]}
    torch.jit.load(tmp_path / "fast.pt")


def test_a_file_in_use_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "fast.pt"
    with TemporaryModel(path) as first:
        first.write(torch.jit.script(torch.nn.ReLU()))
        with TemporaryModel(path) as second:
            assert {first.path, second.path} == set(tmp_path.iterdir())
            second.write(torch.jit.script(torch.nn.ReLU()))
            second.keep()
        first.load()
        first.keep()
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_taken_for_left_before_it_is_locked_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    flock, removed = fcntl.flock, []

    def late(handle: int, operation: int) -> Any:
        if not removed:
            (path,) = tmp_path.iterdir()
            path.unlink()
            removed.append(path)
        return flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with TemporaryModel(tmp_path / "fast.pt") as file:
        assert removed and list(tmp_path.iterdir()) == [file.path] != removed
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_keeps_what_was_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    left = left_by_a_killed_process(tmp_path / "fast.pt")

    def refused(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refused)
    with TemporaryModel(tmp_path / "fast.pt") as file:
        file.write(torch.jit.script(torch.nn.ReLU()))
        file.keep()
    assert set(tmp_path.iterdir()) == {left, tmp_path / "fast.pt"}

"""The documentation: its Python and commands run, the blocks of a page one after the other; its tables parse; its links lead somewhere."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers import forget_later, forget_teaching_later
from tiacc import cli
from tiacc.backends import base as backends
from tiacc.passes import base as passes

ROOT = Path(__file__).parent.parent
FILES = (*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", *sorted((ROOT / "examples").glob("*/README.md")))
IDS = [str(path.relative_to(ROOT)) for path in FILES]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be in an empty directory, and forget afterwards what was registered."""
    monkeypatch.chdir(tmp_path)
    forget_later(monkeypatch, backends.backends)
    forget_later(monkeypatch, passes.passes)
    forget_teaching_later(monkeypatch)
    return tmp_path


def as_script(path: Path) -> str:
    """Return the blocks of a page as one script: its Python as it stands, its commands as calls of `run_commands`, in their order."""
    found = re.findall(r"^```(python|bash)\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    script = "\n".join(text if language == "python" else f"run_commands({text!r}, globals())" for language, text in found)
    return script.replace('save_path="fast.pt",\n)', 'save_path="fast.pt",\n    timing_seconds=0.1,\n)')


def run_commands(text: str, names: dict[str, Any]) -> None:
    """Run the lines of a block that are for tiacc; the page's variable `model` is what they mean by ``model.pt``.

    What a page says to install or to make is not done again: that it is there to be had is checked.
    """
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["tiacc"]:
            if "model" in names:
                torch.jit.save(names["model"], "model.pt")
            brief = ["-o", "timing_seconds=0.1"] if words[1] == "optimize" else []
            assert cli.main([*words[1:], *brief]) == cli.DONE, line
        elif words[:1] == ["make"]:
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8"), line
        elif words[:2] == ["pip", "install"]:
            extras = re.findall(r"\[([\w,]+)\]", line)
            assert all(f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text(encoding="utf-8") for extra in extras), line
        else:
            assert not words or words[:2] == ["git", "clone"], line


RUN = [path for path in FILES if path.parent.parent.name != "examples" and as_script(path)]


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.name)
def test_the_code_and_the_commands_of_a_page_run(path: Path, somewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if path.name == "README.md":  # it begins with a file that the reader has
        torch.jit.save(torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 7, 8), nn.ReLU()).eval()), somewhere / "model.pt")
    script = somewhere / "page.py"
    script.write_text(as_script(path), encoding="utf-8")
    runpy.run_path(str(script), {"run_commands": run_commands}, "page")
    assert "error" not in capsys.readouterr().err


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.parent.name == "examples"], ids=IDS[-1:])
def test_commands_of_an_example_are_ones_that_the_program_knows(path: Path) -> None:
    """They are run by the example's own tests, where it is installed."""
    for line in "\n".join(blocks(path, "bash")).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["tiacc"]:
            cli._parser().parse_args(words[1:])


@pytest.mark.parametrize(
    ("code", "most"),
    [
        (blocks(ROOT / "docs/write-a-pass.md", "python")[0], 15),
        (blocks(ROOT / "docs/write-a-backend.md", "python")[0], 80),
        (blocks(ROOT / "README.md", "python")[-1], 15),
        ((ROOT / "examples/tiacc-onnxruntime/tiacc_onnxruntime.py").read_text(encoding="utf-8"), 80),
    ],
    ids=["a pass", "a backend", "the pass of the README", "the example"],
)
def test_what_a_newcomer_writes_is_short(code: str, most: int) -> None:
    """Lines that are not empty count."""
    assert len(list(filter(str.strip, code.splitlines()))) <= most


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is of Python 3.11")
@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_tables_parse(path: Path) -> None:
    import tomllib

    for block in blocks(path, "toml"):
        groups = tomllib.loads(block)["project"]["entry-points"]
        assert groups.keys() <= {backends.backends.group, passes.passes.group}
        for name, target in (item for group in groups.values() for item in group.items()):
            assert re.fullmatch(r"[a-z_-]+", name) and re.fullmatch(r"\w+:\w+", target)


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_every_block_says_what_it_is(path: Path) -> None:
    fences = re.findall(r"^```(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(fences[::2]) <= {"python", "bash", "toml", ""}
    assert not any(fences[1::2])


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_links_lead_somewhere(path: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^):]+)\)", prose):
        name, _, anchor = target.partition("#")
        page = path.parent / name if name else path
        assert page.exists(), f"{path.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings], target


def test_every_page_is_in_the_site() -> None:
    listed = set(re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    generated = {"performance.md"}  # there once `make bench` has run
    assert listed - generated == {path.name for path in (ROOT / "docs").glob("*.md")} - generated

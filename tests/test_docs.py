"""The documentation: its Python runs, the blocks of a page one after the other; its commands and tables parse; its links lead somewhere."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.helpers import forget_later
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
    return tmp_path


@pytest.mark.parametrize("path", [path for path in FILES if blocks(path, "python")], ids=lambda path: path.name)
def test_the_code_of_a_page_runs(path: Path, somewhere: Path) -> None:
    if path.name == "README.md":  # it begins with a file that the reader has
        torch.jit.save(torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 7, 8), nn.ReLU()).eval()), somewhere / "model.pt")
    script = somewhere / "page.py"
    code = "\n".join(blocks(path, "python")).replace('save_path="fast.pt",\n)', 'save_path="fast.pt",\n    timing_seconds=0.1,\n)')
    script.write_text(code, encoding="utf-8")
    runpy.run_path(str(script), run_name="page")


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_commands_are_ones_that_the_program_knows(path: Path) -> None:
    for line in "\n".join(blocks(path, "bash")).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["tiacc"]:
            cli._parser().parse_args(words[1:])
        elif words[:1] == ["make"]:
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8"), line


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is of Python 3.11")
@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_tables_parse(path: Path) -> None:
    import tomllib

    for block in blocks(path, "toml"):
        assert tomllib.loads(block)


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

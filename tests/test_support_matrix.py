"""The support matrices are those of the code."""

from __future__ import annotations

import re

import pytest
import torch

from tests import support_matrix
from tests.support_matrix import COLUMNS, DOCS
from tiacc.backends.cudnn import support


def _assert_current(name: str, page: list[str], current: list[str]) -> None:
    different = [line for line in current if line not in set(page)]
    assert page == current, f"docs/{name} is out of date, from {different[:1]} on: run `python -m tests.support_matrix`"


def _lines(page: str) -> list[str]:
    """Return the lines of a page of TensorRT's, those of tables without the column that takes a minute to make."""
    place = COLUMNS.index("sizes that vary") + 1
    rows = (line.split("|") for line in page.splitlines())
    return ["|".join([*row[:place], *row[place + 1 :]]) if len(row) == len(COLUMNS) + 2 else "|".join(row) for row in rows]


def test_the_tensorrt_page_is_up_to_date_but_for_sizes_that_vary() -> None:
    page = (DOCS / "tensorrt-support.md").read_text(encoding="utf-8")
    _assert_current("tensorrt-support.md", _lines(page), _lines(support_matrix.tensorrt_page(lambda calls: "")))


@pytest.mark.slow
def test_the_tensorrt_page_is_up_to_date() -> None:
    page = (DOCS / "tensorrt-support.md").read_text(encoding="utf-8")
    _assert_current("tensorrt-support.md", page.splitlines(), support_matrix.tensorrt_page().splitlines())


def test_the_openvino_page_is_up_to_date() -> None:
    page = (DOCS / "openvino-support.md").read_text(encoding="utf-8")
    _assert_current("openvino-support.md", page.splitlines(), support_matrix.openvino_page().splitlines())


def test_the_cudnn_page_is_up_to_date() -> None:
    page = (DOCS / "cudnn-support.md").read_text(encoding="utf-8")
    _assert_current("cudnn-support.md", page.splitlines(), support_matrix.cudnn_page().splitlines())


def test_the_cudnn_page_says_what_the_backend_does() -> None:
    """Every overload of an operator on the page is judged as the page has it."""
    said: dict[str, bool] = {}
    for title, names in re.findall(r"^## (.*?)\n\n.*?\n\n(.*?)$", support_matrix.cudnn_page(), re.MULTILINE):
        said.update(dict.fromkeys(re.findall(r"`(.*?)`", names), title != "Left in Torch"))
    assert len(said) > 300
    for name, is_taken in said.items():
        packet, _, overload = name.partition(".")
        packet = getattr(torch.ops.aten, packet, None)
        for found in [overload] if overload else getattr(packet, "overloads", list)():
            assert bool(support._known(getattr(packet, found))) == is_taken, name


def test_every_converter_has_a_test() -> None:
    rows = [line.split("|")[1:-1] for line in support_matrix.tensorrt_page(lambda calls: "").splitlines() if line.startswith("| `")]
    operators = [row for row in rows if len(row) == len(COLUMNS)]
    assert len(operators) >= 220
    assert [row[0].strip() for row in operators if not row[-1].strip()] == []

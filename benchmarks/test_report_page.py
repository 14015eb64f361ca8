"""How large the page of a report is, and how soon it can be used, as the browser measures it."""

from __future__ import annotations

import pytest

from tests.browser import Browser, missing
from tests.test_report_html import model_of

MOST_BYTES = 5_000_000
LONGEST_MS = 2_000

READY = "return Number(document.documentElement.dataset.readyMs)"
"""The milliseconds from the beginning of the load to the end of the script: from then on every click is answered."""

PAINTED = "return performance.getEntriesByName('first-contentful-paint')[0].startTime"
"""The milliseconds to the first picture; at most those to the one that is taken here."""

OPEN_ALL = """
    const begin = performance.now();
    document.getElementById("open-all").click();
    document.getElementById("canvas").getBoundingClientRect();
    return performance.now() - begin;
"""
"""The milliseconds that the largest of all changes takes: every group is opened, laid out and drawn."""


@pytest.mark.parametrize("count", [20, 5000])
def test_page(benchmark, tmp_path, count: int) -> None:
    """The report of a model of so many operators, saved, and opened by Chromium."""
    if missing():
        pytest.skip(missing())
    report, page = model_of(count), tmp_path / "report.html"
    benchmark(report.save_html, page)
    with Browser(tmp_path) as browser:
        browser.open(page)
        browser.picture(tmp_path / "page.png")  # which there has to be one of
        ready, painted, opened = browser.run(READY), browser.run(PAINTED), browser.run(OPEN_ALL)
    figures = {"bytes": page.stat().st_size, "usable_ms": ready, "first_picture_ms": painted, "open_all_ms": opened}
    benchmark.extra_info.update(nodes=count, **figures)
    assert page.stat().st_size < MOST_BYTES
    assert max(ready, painted) < LONGEST_MS

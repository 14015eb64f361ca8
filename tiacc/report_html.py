"""The report as one HTML page that needs nothing else: its script, style and data are all in it."""

from __future__ import annotations

import html
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tiacc.report import OptimizedReport

FRAME_HEIGHT = 900
"""The height of the page within a notebook, in pixels."""


def as_page(report: OptimizedReport) -> str:
    """Return the page."""
    page = _template("report.html")
    parts = {
        "@css@": _template("report.css"),
        "@graph_script@": _template("report_graph.js"),
        "@page_script@": _template("report_page.js"),
        # In a script element, only "<" can end it or begin a comment.
        "@report@": report.to_json(indent=None).replace("<", "\\u003c"),
    }
    for mark, text in parts.items():
        page = page.replace(mark, text)
    return page


def as_frame(report: OptimizedReport) -> str:
    """Return the page as a frame for a notebook, closed at first; an empty string where there is no graph to look at."""
    if report.graph is None:
        return ""
    page = html.escape(as_page(report), quote=True)
    style = f"width:100%;height:{FRAME_HEIGHT}px;border:0"
    return f'<details><summary>The graph, and all of the report</summary><iframe srcdoc="{page}" style="{style}"></iframe></details>'


def _template(name: str) -> str:
    return resources.files("tiacc").joinpath("templates").joinpath(name).read_text(encoding="utf-8")

"""The report as one HTML page that needs nothing else: its script, style and data are all in it."""

from __future__ import annotations

import dataclasses
import html
import json
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tiacc.model_graph import ModelGraph
    from tiacc.report import OptimizedReport

FRAME_HEIGHT = 900
"""The height of the page within a notebook, in pixels."""


def as_page(report: OptimizedReport) -> str:
    """Return the page."""
    return _page(report.to_json(indent=None))


def as_graph_page(graph: ModelGraph, title: str) -> str:
    """Return the page of a graph alone.

    Args:
        graph: Its nodes; the segment of each is 1 if it is new or changed, else 0.
        title: What stands above it.
    """
    kinds = ["as before", "new or changed"]
    data = {"title": title, "kinds": kinds, "graph": dataclasses.asdict(graph), "segments": [], "fallbacks": [], "outputs": []}
    return _page(json.dumps(data))


def _page(data: str) -> str:
    page = _template("report.html")
    parts = {
        "@css@": _template("report.css"),
        "@graph_script@": _template("report_graph.js"),
        "@page_script@": _template("report_page.js"),
        # In a script element, only "<" can end it or begin a comment.
        "@report@": data.replace("<", "\\u003c"),
    }
    for mark, text in parts.items():
        page = page.replace(mark, text)
    return page


def as_frame(report: OptimizedReport) -> str:
    """Return the page as a frame for a notebook, closed at first; an empty string where there is no graph to look at."""
    if report.graph is None:
        return ""
    page = html.escape(as_page(report), quote=True)
    # The frame runs the script of the page, and has no access to the notebook round it.
    frame = f'<iframe sandbox="allow-scripts" srcdoc="{page}" style="width:100%;height:{FRAME_HEIGHT}px;border:0"></iframe>'
    return f"<details><summary>The graph, and all of the report</summary>{frame}</details>"


def _template(name: str) -> str:
    return resources.files("tiacc").joinpath("templates").joinpath(name).read_text(encoding="utf-8")

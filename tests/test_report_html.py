"""The page of a report: what is in it, how its graph is grouped and laid out (in Node), and how it is used (in Chromium)."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiacc
from tests.browser import Browser, missing
from tests.helpers import Dim, Sketch, use_however_fast
from tests.test_report import make_report
from tiacc.backends import partitioner
from tiacc.backends.reference import ReferenceBackend
from tiacc.errors import InvalidArgumentError
from tiacc.model_graph import IN_TORCH, GraphNode, ModelGraph, nodes_of
from tiacc.passes import PassContext, PassManager, RewriteRule
from tiacc.passes.instruments import DumpInstrument
from tiacc.precision import KeptRow, Precision, SensitivityRow
from tiacc.report import FallbackRow, OptimizedReport, PassRow

aten = torch.ops.aten
TEMPLATES = Path(tiacc.__file__).parent / "templates"


def model_of(count: int) -> OptimizedReport:
    """Return the report of a model with `count` nodes in stages and blocks, branches, and every 100th operator left in Torch."""
    rows = [GraphNode("input", "x", "float32[1, 3, 8, 8]", "", "", "", 0, IN_TORCH, ())]
    fallbacks = []
    for place in range(1, count - 1):
        block = (place - 1) // 40
        path = f"stages.{block // 8}.{block % 8}.layer{place % 3}"
        inputs = tuple(sorted({place - 1, max(0, place - place % 7)}))
        if place % 100 == 10:
            rows.append(GraphNode("aten.nonzero.default", f"nonzero_{place}", "int64[7]", path, "net.py:7", "", 0, IN_TORCH, inputs))
            fallbacks.append(FallbackRow("aten.nonzero.default", f"nonzero_{place}", {"openvino": "size <depends> on data"}, "net.py:7"))
        else:
            op = ("aten.conv2d.default", "aten.relu.default", "aten.add.Tensor")[place % 3]
            rows.append(GraphNode(op, f"node_{place}", "float32[1, 64, 8, 8]", path, f"net.py:{place % 50}", "float32[9]", 0, 0, inputs))
    rows.append(GraphNode("output", "output", "", "", "", "", 0, IN_TORCH, (count - 2,)))
    precision = Precision("bfloat16", 0.5, 0.75, 7, error_before=2e-2, error_after=3e-3)
    precision.kept.append(KeptRow("nonzero_10", "aten.nonzero.default", "its numbers are large"))
    precision.sensitivities.append(SensitivityRow("nonzero_10", "aten.nonzero.default", float("inf"), 2.5e-3, 100, True, "net.py:7"))
    passes = [PassRow("fold-batch-norm", 2, 3.5, notes=("bn: <its input> is read elsewhere",)), PassRow("cast-half", 0, 1.0)]
    return make_report(graph=ModelGraph.of(rows), fallbacks=fallbacks, precision=precision, passes=passes)


def data_of(page: str) -> dict:
    """Return the report in a page."""
    found = re.search(r'<script type="application/json" id="report">(.*?)</script>', page, re.DOTALL)
    return json.loads(found[1])


def test_nodes_of_a_graph():
    sketch = Sketch()
    x = sketch.input("x", Dim("n", 1, 2, 4), 6)
    w = sketch.constant("w", torch.randn(8, 6))
    y = sketch.call(aten.linear.default, x, w, source="net.py:3")
    size = sketch.call(aten.sym_size.int, y, 0)
    gm = sketch.output(sketch.call(aten.reshape.default, sketch.call(aten.relu.default, y), [size, 2, 4]))
    next(node for node in gm.graph.nodes if node.target is aten.linear.default).meta["path"] = "head.fc"
    partition = partitioner.partition(gm, [ReferenceBackend()])
    rows = nodes_of(gm, partition, 3, {0}, first=10)
    assert [(row.op, row.path, row.segment, row.inputs) for row in rows] == [
        ("input", "", IN_TORCH, ()),
        ("aten.linear.default", "head.fc", 0, (10,)),
        ("aten.relu.default", "head.fc", 0, (11,)),
        ("aten.reshape.default", "head.fc", 0, (12,)),
        ("output", "", IN_TORCH, (13,)),
    ]
    assert (rows[1].source, rows[1].weights, rows[1].region) == ("net.py:3", "float32[8, 6]", 3)
    assert re.fullmatch(r"float32\[\w+=1..4, 8\]", rows[1].type)
    assert [row.segment for row in nodes_of(gm, partition, 3, ())] == [IN_TORCH] * 5
    assert list(ModelGraph.of(rows).rows()) == rows


def test_a_report_has_the_graph_of_the_model_that_came_of_it(monkeypatch):
    use_however_fast(monkeypatch)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))

        def forward(self, x):
            return self.body(x).nonzero()

    model = torch.jit.script(Net().eval())
    _, report = tiacc.optimize(model, 0, "cpu", ["8*64"], backend="openvino", timing_seconds=0.05)
    rows = list(report.graph.rows())
    assert {row.op for row in rows} >= {"input", "output", "aten.linear.default"}
    assert {row.path for row in rows if row.op == "aten.linear.default"} == {"body.0", "body.2"}
    assert OptimizedReport.from_dict(json.loads(report.to_json())).graph == report.graph


def test_the_page_holds_the_report_and_needs_nothing_else(tmp_path):
    report = model_of(20)
    report.warnings.append("</script><script>alert(1)</script>")
    report.save_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert data_of(page) == json.loads(report.to_json())
    assert page.count("</script>") == 3 and "<script>alert" not in page
    assert not re.search(r"@(css|report|graph_script|page_script)@", page)
    assert set(re.findall(r"https?://[^\"'\s]+", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(link|img|iframe)|\bsrc=|@import|fetch\(|XMLHttpRequest", page)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_page_of_a_large_model_is_small(tmp_path):
    model_of(5000).save_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 1_000_000


def test_a_page_that_cannot_be_written(tmp_path):
    with pytest.raises(InvalidArgumentError, match="the report cannot be written to"):
        model_of(20).save_html(tmp_path / "missing" / "report.html")


def test_a_notebook_shows_the_page_in_a_frame():
    shown = model_of(20)._repr_html_()
    frame = re.search(r'<iframe sandbox="allow-scripts" srcdoc="([^"]*)"', shown)
    assert frame and html.unescape(frame[1]).startswith("<!doctype html>")
    assert "<iframe" not in make_report()._repr_html_()


GRAPH_SCRIPT = """
const { GraphView, readNodes, MOST_SHOWN, BOX } = require(process.argv[1]);
const graph = JSON.parse(require("fs").readFileSync(0, "utf8")), nodes = readNodes(graph), results = {};
for (const mode of ["module", "segment"]) {
  const view = new GraphView(nodes, mode, (node) => node.op === "input" ? undefined : "segment " + node.segment);
  const covered = (items) => items.flatMap((item) => item.isGroup ? covered(item.children) : [item.id]);
  const check = () => {
    const { boxes, edges, width, height } = view.layout();
    const sorted = [...boxes].sort((one, other) => one.y - other.y || one.x - other.x);
    const overlaps = sorted.filter((box, at) => at && box.y === sorted[at - 1].y && box.x - sorted[at - 1].x < BOX.width).length;
    return {
      shown: boxes.length, overlaps, covers: JSON.stringify(covered(view.shown())) === JSON.stringify(nodes.map((node) => node.id)),
      downward: edges.every((edge) => boxes[edge.from].y < boxes[edge.to].y),
      inside: boxes.every((box) => box.x > 0 && box.x < width && box.y > 0 && box.y < height),
    };
  };
  const start = check(), found = view.search("nonzero net.py", 1000);
  view.reveal(found[found.length - 1]);
  const revealed = view.shown().includes(found[found.length - 1]);
  view.setAll(true);
  const all = check();
  view.setAll(false);
  const most = Math.max(...view.groups.map((group) => group.children.length));
  results[mode] = { start, all, closed: check(), found: found.length, revealed, most, allowed: MOST_SHOWN };
}
console.log(JSON.stringify(results));
"""


@pytest.mark.parametrize("count", [20, 5000])
def test_groups_and_their_layout(count):
    """Whatever is open, every node is in one box, arrows lead down, and no two boxes are in one place."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed")
    graph = model_of(count)["graph"]
    command = [node, "-e", GRAPH_SCRIPT, str(TEMPLATES / "report_graph.js")]
    done = subprocess.run(command, input=json.dumps(graph), capture_output=True, text=True, check=True)
    for mode, result in json.loads(done.stdout).items():
        for state in ("start", "all", "closed"):
            found = {key: value for key, value in result[state].items() if key != "shown"}
            assert found == {"overlaps": 0, "covers": True, "downward": True, "inside": True}, (mode, state)
        assert result["start"]["shown"] <= result["allowed"] >= result["most"]
        assert result["all"]["shown"] == count
        assert (result["found"], result["revealed"]) == (len(range(10, count - 1, 100)), True)


def test_what_a_block_computes_itself_is_in_its_group():
    """A residual sum belongs to the block, and does not cut it in two."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed")
    paths = ["", *(f"layers.{index}{part}" for index in range(3) for part in (".dense", ".norm", "", ".last")), ""]
    rows = [GraphNode("aten.relu.default", f"node_{place}", "", path, "", "", 0, 0, ()) for place, path in enumerate(paths)]
    script = """
        const { GraphView, readNodes } = require(process.argv[1]);
        const nodes = readNodes(JSON.parse(require("fs").readFileSync(0, "utf8")));
        const view = new GraphView(nodes, "module", (node) => "");
        console.log(JSON.stringify(view.groups.map((group) => [group.path, group.count])));
    """
    graph = json.dumps(dataclasses.asdict(ModelGraph.of(rows)))
    done = subprocess.run([node, "-e", script, str(TEMPLATES / "report_graph.js")], input=graph, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [*([f"layers.{index}", 4] for index in range(3)), ["layers", 12], ["model", 14]]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Callable[..., Browser]]:
    """Return what opens a page in Chromium."""
    if missing():
        pytest.skip(missing())
    with ExitStack() as stack:

        def opened(page: Path, **fields: Any) -> Browser:
            made = stack.enter_context(Browser(tmp_path, **fields))
            made.open(page)
            return made

        yield opened


def page_of(report: OptimizedReport, folder: Path) -> Path:
    report.save_html(folder / "report.html")
    return folder / "report.html"


def place_of_graph(seen: Browser) -> str:
    return str(seen.run("return document.querySelector('#canvas g').getAttribute('transform')"))


@pytest.mark.parametrize("count", [20, 5000])
def test_the_page_in_a_browser(count, tmp_path, browser):
    """It is looked at, searched, clicked, zoomed and dragged."""
    seen = browser(page_of(model_of(count), tmp_path))
    left = len(range(10, count - 1, 100))
    assert seen.text("#gain") == "2.28 ×" and seen.count("#latency .bar") == 6 and seen.count("#timeline span") == 2
    text = seen.text("#page")
    for part in ("fold-batch-norm: bn: <its input> is read elsewhere", "50.0 % of the operators and 75.0 % of the arithmetic, with 7"):
        assert part in text
    legend = seen.text("#legend")
    assert f"Torch, left there: {left}" in legend and f"openvino: {count - 2 - left}" in legend
    assert f"Left in Torch: {left}" in seen.text("#details")
    assert 10 <= seen.count("#canvas .box") <= 60
    seen.click("#search")
    seen.write("nonzero net.py")
    assert seen.count("#results button") == min(left, 50)
    seen.click("#results button")
    details = seen.text("#details")
    told = ("aten.nonzero.default", "int64[7]", "net.py:7", "openvino: size <depends> on data", "Torch", "numbers are large", "error inf")
    for part in told:
        assert part in details
    assert seen.count(".box.selected") == 1 and seen.count("path.near") >= 2
    seen.click("#fit")
    seen.click("#canvas .box")
    assert seen.text("#details h3") == "x"
    for act in (lambda: seen.click("#zoom-in"), lambda: seen.wheel("#canvas", 200), lambda: seen.drag("#canvas", 60, 40)):
        before = place_of_graph(seen)
        act()
        assert place_of_graph(seen) != before
    seen.click("#close-all")
    closed = seen.count("#canvas .box")
    seen.click("#canvas .box.group", times=2)
    assert seen.count("#canvas .box") > closed <= 60
    seen.run("const mode = document.getElementById('mode'); mode.value = 'segment'; mode.dispatchEvent(new Event('change'))")
    assert "segment 0 openvino" in seen.text("#tree")
    seen.click("#legend button", 1)
    assert seen.text("#details h3") == "nonzero_10"
    seen.run("const by = document.getElementById('colouring'); by.value = 'type'; by.dispatchEvent(new Event('change'))")
    assert seen.text("#legend") == f"float32: {count - 2 - left}int64: {left}"
    seen.click("#open-all")
    assert seen.count("#canvas .box") == count
    assert not seen.complaints()


@pytest.mark.parametrize("is_dark", [False, True])
@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_fits_its_window(width, is_dark, tmp_path, browser):
    """Nothing sticks out, text can be told from what is behind it, and the picture is not empty."""
    report = model_of(5000)
    report.warnings.append("a remark " * 40)
    seen = browser(page_of(report, tmp_path), size=(width, 900), is_dark=is_dark)
    assert seen.run("return document.documentElement.scrollWidth") <= width
    for part in ("#canvas", "#details", "#latency"):
        assert 200 < seen.run("return document.querySelector(arguments[0]).getBoundingClientRect().width", part) <= width
    background, ink = seen.run("const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]")
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in (background, ink)]
    assert brightness[0] < 60 < 180 < brightness[1] if is_dark else brightness[1] < 60 < 180 < brightness[0]
    assert len(seen.picture(tmp_path / "page.png")) > 10_000


def test_the_frame_of_a_notebook(tmp_path, browser):
    """The page runs in its frame, and the frame cannot reach the notebook."""
    (tmp_path / "notebook.html").write_text(f"<!doctype html><body>{model_of(20)._repr_html_()}</body>", encoding="utf-8")
    seen = browser(tmp_path / "notebook.html")
    seen.click("summary")
    assert seen.run("return document.querySelector('iframe').contentDocument") is None
    seen.enter("iframe")
    assert seen.text("#gain") == "2.28 ×" and seen.count("#canvas .box") == 20
    assert not seen.complaints()


def test_the_page_of_a_report_that_has_no_graph_and_no_figures(tmp_path, browser):
    report = make_report(baseline_latency=None, optimized_latency=None, outputs=[], passes=[], seconds=None)
    seen = browser(page_of(report, tmp_path))
    text = seen.text("#page")
    assert seen.run("return document.documentElement.dataset.readyMs") and "speed not measured" in text
    assert "aten.nonzero.default" in text and "Latency" not in text and "Graph" not in text
    assert not seen.complaints()


def test_the_page_of_a_dumped_graph(tmp_path, browser):
    """It shows what a pass made, apart from what it left."""
    sketch = Sketch()
    x = sketch.input("x", 4)
    gm = sketch.output(sketch.call(aten.relu.default, sketch.call(aten.mul.Tensor, x, sketch.call(aten.sigmoid.default, x))))
    silu = RewriteRule("fuse-silu", lambda x: x * aten.sigmoid(x), lambda x: aten.silu(x)).pass_class()
    PassManager((silu,))(gm, PassContext(instruments=(DumpInstrument(tmp_path),)))
    seen = browser(tmp_path / "001-fuse-silu.html")
    assert seen.text("h1") == "001 after fuse-silu: 1 change"
    assert "new or changed: 2" in seen.text("#legend")
    seen.click("#canvas .box", 1)
    assert "aten.silu.default" in seen.text("#details") and "made or changed it" in seen.text("#details")
    assert not seen.complaints()

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from tests.helpers import Dim, Sketch
from tiacc.errors import PostconditionError
from tiacc.model_graph import ModelGraph
from tiacc.passes.base import Pass, PassContext, PassResult
from tiacc.passes.cast_half import CastHalf
from tiacc.passes.instruments import (
    ChangeLogInstrument,
    CompareInstrument,
    DumpInstrument,
    MemoryInstrument,
    PassRow,
    TimingInstrument,
    VerifyInstrument,
    graph_text,
)
from tiacc.passes.manager import PassManager

aten = torch.ops.aten


@dataclass(frozen=True)
class Swap(Pass):
    """Every `old` becomes a `new`."""

    name: ClassVar[str] = "test-swap"
    old: str
    new: str

    def apply(self, gm, ctx):
        nodes = gm.graph.find_nodes(op="call_function", target=getattr(aten, self.old).default)
        for node in nodes:
            node.target = getattr(aten, self.new).default
        return PassResult(gm, len(nodes))


def graph():
    sketch = Sketch()
    x = sketch.input("x", 2, Dim("n", 1, 4, 8))
    w = sketch.constant("layer_weight", torch.randn(2, 1))
    y = sketch.call(aten.mul.Tensor, sketch.call(aten.relu.default, x, source="model.py:3"), w)
    return sketch.output(y, sketch.call(aten.relu.default, y))


PASSES = PassManager((Swap("relu", "tanh"), PassManager((Swap("sin", "cos"), Swap("tanh", "exp")))))


def test_timing_has_a_row_for_each_run_of_a_pass_and_none_for_nested_managers():
    timing = TimingInstrument()
    PASSES(graph(), PassContext(instruments=(timing,)))
    assert [(row.name, row.changes) for row in timing.rows] == [("test-swap", 2), ("test-swap", 0), ("test-swap", 2)]
    assert all(row.ms > 0 for row in timing.rows)
    assert timing.totals() == [PassRow("test-swap", 4, sum(row.ms for row in timing.rows))]


def test_dump_writes_the_input_and_each_changed_graph(tmp_path):
    PASSES(graph(), PassContext(instruments=(DumpInstrument(tmp_path / "new" / "dir"),)))
    files = {path.name: path.read_text() for path in (tmp_path / "new" / "dir").glob("*.txt")}
    assert sorted(files) == ["000-input.txt", "001-test-swap.txt", "003-test-swap.txt"]
    assert [text.count(word) for text, word in zip((files[name] for name in sorted(files)), ("relu.d", "tanh.d", "exp.d"))] == [2, 2, 2]


def test_dump_draws_what_each_pass_changed(tmp_path):
    PASSES(graph(), PassContext(instruments=(DumpInstrument(tmp_path),)))
    pages = {path.name[:3]: path.read_text() for path in tmp_path.glob("*.html")}
    data = {number: json.loads(re.search(r'id="report">(.*?)</script>', page)[1]) for number, page in pages.items()}
    assert [item["title"] for _, item in sorted(data.items())] == [
        "000 input",
        "001 after test-swap{old=relu, new=tanh}: 2 changes",
        "003 after test-swap{old=tanh, new=exp}: 2 changes",
    ]
    for number, changed in (("000", set()), ("001", {"aten.tanh.default"}), ("003", {"aten.exp.default"})):
        rows = list(ModelGraph(**data[number]["graph"]).rows())
        assert {row.op for row in rows if row.segment} == changed
        assert rows[0].op == "input" and not rows[0].segment and rows[-1].op == "output"


def test_verify_sees_a_graph_that_runs_and_names_the_pass_that_broke_it():
    seen = []
    x = torch.rand(2, 4)

    def verify(gm):
        seen.append(gm(x)[0])
        if seen[-1].max() > 1:
            raise ValueError("too large")

    gm = graph()
    gm.layer_weight.fill_(1.0)
    with pytest.raises(PostconditionError, match=r"after pass test-swap\{old=tanh, new=exp\} \(2 changes\).*too large"):
        PASSES(gm, PassContext(instruments=(VerifyInstrument(verify),)))
    torch.testing.assert_close(seen[0], x.tanh())
    torch.testing.assert_close(seen[1], x.exp())
    assert len(seen) == 2


def test_several_instruments_are_called_in_order():
    calls = []

    class Note:
        def __init__(self, name):
            self.name = name

        def before(self, pass_, gm):
            calls.append((self.name, "before", pass_.old))

        def after(self, pass_, result, seconds):
            calls.append((self.name, "after", pass_.old))

    PassManager((Swap("relu", "tanh"),))(graph(), PassContext(instruments=(Note("a"), Note("b"))))
    assert calls == [(name, when, "relu") for when in ("before", "after") for name in ("a", "b")]


def test_graph_text_has_types_and_source_lines():
    assert re.sub(r"\bs\d+=", "n=", graph_text(graph())).splitlines() == [
        "x: float32[2, n=1..8] = input",
        "layer_weight: float32[2, 1] = constant layer_weight",
        "relu_default: float32[2, n=1..8] = aten.relu.default(x)  # model.py:3",
        "mul_tensor: float32[2, n=1..8] = aten.mul.Tensor(relu_default, layer_weight)",
        "relu_default_1: float32[2, n=1..8] = aten.relu.default(mul_tensor)",
        "return mul_tensor, relu_default_1",
    ]


def test_each_graph_is_dumped_from_its_beginning(tmp_path):
    dump = DumpInstrument(tmp_path)
    for _ in range(2):
        PASSES(graph(), PassContext(instruments=(dump,)))
    names = ["000-input.txt", "001-test-swap.txt", "003-test-swap.txt", "003-input.txt", "004-test-swap.txt", "006-test-swap.txt"]
    assert sorted(path.name for path in tmp_path.glob("*.txt")) == sorted(names)
    assert {path.stem for path in tmp_path.glob("*.html")} == {path.stem for path in tmp_path.glob("*.txt")}


def test_compare_finds_the_pass_after_which_the_numbers_differ():
    same = PassManager((Swap("relu", "relu"),))
    same(graph(), PassContext(instruments=(CompareInstrument(),)))
    with pytest.raises(PostconditionError, match=r"after pass test-swap.* \(2 changes\) result 0 of the graph has a relative error of"):
        PASSES(graph(), PassContext(instruments=(CompareInstrument(),)))


def test_compare_begins_anew_with_each_graph():
    compare = CompareInstrument()
    for _ in range(2):
        PassManager((Swap("relu", "relu"),))(graph(), PassContext(instruments=(compare,)))
    other = graph()
    Swap("relu", "tanh")(other)
    PassManager((Swap("tanh", "tanh"),))(other, PassContext(instruments=(compare,)))


def test_compare_allows_for_half_precision_and_leaves_random_graphs():
    sketch = Sketch()
    x = sketch.input("x", 16, 16)
    gm = sketch.output(sketch.call(aten.mm.default, x, x))
    PassManager((CastHalf(torch.bfloat16),))(gm, PassContext(instruments=(CompareInstrument(),)))
    assert any(node.meta["val"].dtype == torch.bfloat16 for node in gm.graph.nodes if node.op == "call_function")
    sketch = Sketch()
    x = sketch.input("x", 4)
    gm = sketch.output(sketch.call(aten.relu.default, sketch.call(aten.dropout.default, x, 0.5, True)))
    PassManager((Swap("relu", "exp"),))(gm, PassContext(instruments=(CompareInstrument(),)))


def test_the_change_log_has_the_lines_that_went_and_came():
    log = ChangeLogInstrument()
    PASSES(graph(), PassContext(instruments=(log,)))
    first, second = log.entries
    assert first.splitlines()[0].startswith("test-swap{") and first.splitlines()[0].endswith(": 2 changes")
    gone, come = ([line for line in first.splitlines() if line[0] == sign] for sign in "-+")
    assert len(gone) == len(come) == 2
    assert all("aten.relu.default" in line for line in gone) and all("aten.tanh.default" in line for line in come)
    assert str(log) == f"{first}\n\n{second}"


def test_memory_counts_each_constant_once():
    sketch = Sketch()
    x = sketch.input("x", 4)
    weight = torch.ones(8)
    nodes = [sketch.constant(name, tensor) for name, tensor in (("a", weight[:4]), ("b", weight[4:]), ("c", torch.ones(4)))]
    gm = sketch.output(*(sketch.call(aten.mul.Tensor, x, node) for node in nodes), sketch.call(aten.relu.default, x))
    memory = MemoryInstrument()
    PassManager((Swap("relu", "tanh"),))(gm, PassContext(instruments=(memory,)))
    assert memory.rows == [("test-swap", 48)]

"""`bisect`: planted faults in passes and engines are found, down to the rewrite or the operator, and written as scripts that fail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

import tiacc
from tests.test_guard import backend_with, stale
from tiacc import cli, debug
from tiacc.backends import base
from tiacc.backends.reference import ReferenceBackend
from tiacc.passes.base import Pass, PassContext, PassResult
from tiacc.passes.base import passes as passes_registered

aten = torch.ops.aten


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(16, 16) for _ in range(6)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return torch.tanh(x).sum(-1)


@pytest.fixture
def model() -> torch.jit.ScriptModule:
    return torch.jit.script(Chain().eval())


class ThirdIsWrong(Pass):
    """Replaces each ReLU by the same, the third by a GELU; asks for fuel before each."""

    name = "third-is-wrong"

    def apply(self, gm: fx.GraphModule, ctx: PassContext) -> PassResult:
        changes = 0
        for index, node in enumerate(list(gm.graph.find_nodes(op="call_function", target=aten.relu.default))):
            if not ctx.spend():
                break
            changes += 1
            node.target = aten.gelu.default if index == 2 else aten.relu.default
        return PassResult(gm, changes)


class AlwaysWrong(Pass):
    """Drops the tanh, whatever the fuel."""

    name = "always-wrong"

    def apply(self, gm: fx.GraphModule, ctx: PassContext) -> PassResult:
        (node,) = gm.graph.find_nodes(op="call_function", target=aten.tanh.default)
        node.replace_all_uses_with(node.args[0])
        gm.graph.erase_node(node)
        return PassResult(gm, 1)


def test_the_rewrite_is_found(model: Any, tmp_path: Path) -> None:
    found = debug.bisect(model, ["4*16"], backend="reference", passes=["fold-constants", ThirdIsWrong()], directory=tmp_path / "out")
    assert (found.kind, found.culprit, found.fuel) == ("pass", "third-is-wrong", 3)
    assert found.error > 1e-3 and "third-is-wrong, rewrite 3" in str(found)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.pt", "data.pth", "reproduce.py"}


def test_a_pass_that_asks_for_no_fuel_is_found(model: Any) -> None:
    found = debug.bisect(model, ["4*16"], backend="reference", passes=["fold-constants", AlwaysWrong(), "eliminate-dead-code"])
    assert (found.kind, found.culprit, found.fuel) == ("pass", "always-wrong", None)


def test_nothing_is_wrong(model: Any) -> None:
    found = debug.bisect(model, ["4*16"], backend="reference")
    assert found.kind == "nothing" and found.error <= 1e-5


class WrongTanh(ReferenceBackend):
    """Engines in which a tanh is off by a hundredth."""

    name = "wrong-tanh"

    def build(self, subgraph: fx.GraphModule, spec: Any) -> Any:
        graph = fx.Graph()
        graph.output(graph.graph_copy(subgraph.graph, {}))
        for node in list(graph.find_nodes(op="call_function", target=aten.tanh.default)):
            with graph.inserting_after(node):
                wrong = graph.call_function(aten.mul.Tensor, (node, 1.01))
            wrong.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(wrong, delete_user_cb=lambda user, wrong=wrong: user is not wrong)
        return super().build(fx.GraphModule(subgraph, graph), spec)

    def load(self, payload: bytes) -> Any:
        return super().load(payload)


def test_the_operator_is_found(model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(base.backends._items, "wrong-tanh", WrongTanh)
    found = debug.bisect(model, ["4*16"], backend="wrong-tanh", directory=tmp_path)
    assert (found.kind, found.culprit) == ("engine", "wrong-tanh")
    assert len(found.nodes) == 1 and "aten.tanh" in found.nodes[0]
    assert 5e-3 < found.error < 2e-2
    with pytest.raises(tiacc.errors.AccuracyError):
        run(tmp_path)
    monkeypatch.setattr(WrongTanh, "build", ReferenceBackend.build)
    run(tmp_path)


def run(directory: Path) -> None:
    """Run what was written, in this process, where passes and backends of this file are registered."""
    path = directory / "reproduce.py"
    exec(compile(path.read_text(), str(path), "exec"), {"__file__": str(path)})


class Raises(Pass):
    """Fails at the second ReLU."""

    name = "raises"

    def apply(self, gm: fx.GraphModule, ctx: PassContext) -> PassResult:
        changes = 0
        for node in gm.graph.find_nodes(op="call_function", target=aten.relu.default):
            if not ctx.spend():
                break
            changes += 1
            if changes == 2:
                raise RuntimeError(f"no idea what to do with {node}")
        return PassResult(gm, changes)


def test_a_pass_that_raises_is_found(model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(passes_registered._items, "raises", Raises)
    found = debug.bisect(model, ["4*16"], backend="reference", passes=["fold-constants", Raises()], directory=tmp_path)
    assert (found.kind, found.culprit, found.fuel, found.error) == ("pass", "raises", 2, float("inf"))
    assert "the pass raises, rewrite 2 of all: " in str(found) and "no idea what to do with relu" in str(found)
    with pytest.raises(SystemExit, match="no idea what to do"):
        run(tmp_path)
    monkeypatch.setattr(Raises, "apply", lambda self, gm, ctx: PassResult(gm, 0))
    run(tmp_path)


class WrongWhereSizesVary(Pass):
    """Drops the tanh where a size is not known."""

    name = "wrong-where-sizes-vary"

    def apply(self, gm: fx.GraphModule, ctx: PassContext) -> PassResult:
        (node,) = gm.graph.find_nodes(op="call_function", target=aten.tanh.default)
        if all(isinstance(size, int) for size in node.meta["val"].shape) or not ctx.spend():
            return PassResult(gm, 0)
        node.replace_all_uses_with(node.args[0])
        gm.graph.erase_node(node)
        return PassResult(gm, 1)


def test_a_fault_at_sizes_that_vary_is_reproduced(model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(passes_registered._items, "wrong-where-sizes-vary", WrongWhereSizesVary)
    options = {"backend": "reference", "passes": [WrongWhereSizesVary()], "tolerance": 1e-4}
    data = [(torch.randn(4, 16),)]
    assert debug.bisect(model, ["4*16"], test_data=data, **options).kind == "nothing"
    found = debug.bisect(model, [{"range": ["1*16", "8*16"]}], test_data=data, directory=tmp_path, **options)
    assert (found.culprit, found.fuel) == ("wrong-where-sizes-vary", 1)
    with pytest.raises(tiacc.errors.AccuracyError, match=r"tolerance 0\.0001"):
        run(tmp_path)


def test_the_users_own_check_says_what_is_wrong(model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def signs(reference: torch.Tensor, candidate: torch.Tensor) -> float:
        return float((reference.sign() != candidate.sign()).float().mean())

    class Negates(ThirdIsWrong):
        name = "negates"

        def apply(self, gm: fx.GraphModule, ctx: PassContext) -> PassResult:
            (node,) = gm.graph.find_nodes(op="call_function", target=aten.tanh.default)
            if not ctx.spend():
                return PassResult(gm, 0)
            node.target = aten.neg.default
            return PassResult(gm, 1)

    monkeypatch.setitem(passes_registered._items, "negates", Negates)
    monkeypatch.setitem(passes_registered._items, "third-is-wrong", ThirdIsWrong)
    options = {"backend": "reference", "accuracy_check": signs, "tolerance": 0.5}
    found = debug.bisect(model, ["4*16"], passes=[ThirdIsWrong(), Negates()], directory=tmp_path, **options)
    assert (found.culprit, found.fuel, found.error) == ("negates", 7, 1.0)
    with pytest.raises(tiacc.errors.AccuracyError):
        run(tmp_path)
    assert debug.bisect(model, ["4*16"], passes=[ThirdIsWrong()], **options).kind == "nothing"


def test_a_fault_at_a_shape_that_the_data_lack_is_found(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class WrongAtOne(ReferenceBackend):
        name = "wrong-at-one"

        def load(self, payload: bytes) -> Any:
            engine = super().load(payload)
            right = engine.run
            engine.run = lambda inputs: [output * (2 if len(inputs[0]) == 1 else 1) for output in right(inputs)]  # type: ignore[method-assign]
            return engine

    monkeypatch.setitem(base.backends._items, "wrong-at-one", WrongAtOne)
    shapes, data = [{"range": ["1*16", "8*16"]}], [(torch.randn(4, 16),)]
    found = debug.bisect(model, shapes, test_data=data, backend="wrong-at-one")
    assert found.kind == "engine" and found.error == pytest.approx(1)


def test_a_stale_engine_is_found(model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Stale(backend_with(stale)):  # type: ignore[misc]
        name = "stale"

    monkeypatch.setitem(base.backends._items, "stale", Stale)
    found = debug.bisect(model, ["4*16"], backend="stale", directory=tmp_path)
    assert found.kind == "engine" and "the engine of stale: its engine is off by" in str(found)
    with pytest.raises(tiacc.errors.AccuracyError, match="the same for other inputs"):
        run(tmp_path)


def test_small_errors_that_add_up_are_called_that(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiacc.mending.CheckedEngine.complaint", lambda self, tolerance: "")
    monkeypatch.setitem(base.backends._items, "wrong-tanh", WrongTanh)
    found = debug.bisect(model, ["4*16"], backend="wrong-tanh")
    assert found.kind == "nothing" and "no engine by itself" in str(found) and "0.01" in str(found)


def test_an_engine_that_fails_is_found(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(ReferenceBackend):
        name = "failing"

        def load(self, payload: bytes) -> Any:
            engine = super().load(payload)

            def fail(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
                raise RuntimeError("no")

            engine.run = fail  # type: ignore[method-assign]
            return engine

    monkeypatch.setitem(base.backends._items, "failing", Failing)
    found = debug.bisect(model, ["4*16"], backend="failing")
    assert found.kind == "engine" and found.error == float("inf") and len(found.nodes) == 1
    assert "the engine of failing: its engine fails: no, from these operators on: " in str(found)


def test_the_command(model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.pt"
    torch.jit.save(model, str(path))
    assert cli.main(["bisect", str(path), "--shape", "4*16", "--device", "cpu", "--backend", "reference"]) == 0
    assert "nothing is wrong" in capsys.readouterr().out

"""`bisect`: planted faults in passes and engines are found, down to the rewrite or the operator, and written as scripts that fail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

import tiacc
from tiacc import cli, debug
from tiacc.backends import base
from tiacc.backends.reference import ReferenceBackend
from tiacc.passes.base import Pass, PassContext, PassResult

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
    script = (tmp_path / "reproduce.py").read_text()
    # What was written is enough: in this process, where the backend is registered, it raises.
    with pytest.raises(tiacc.errors.AccuracyError):
        exec(compile(script, str(tmp_path / "reproduce.py"), "exec"), {"__file__": str(tmp_path / "reproduce.py")})
    monkeypatch.setattr(WrongTanh, "build", ReferenceBackend.build)
    exec(compile(script, str(tmp_path / "reproduce.py"), "exec"), {"__file__": str(tmp_path / "reproduce.py")})


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


def test_the_command(model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.pt"
    torch.jit.save(model, str(path))
    assert cli.main(["bisect", str(path), "--shape", "4*16", "--device", "cpu", "--backend", "reference"]) == 0
    assert "nothing is wrong" in capsys.readouterr().out

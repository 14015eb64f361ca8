"""Each operator is given the module that it is in, however the model was made, and though weights are equal."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

import tiacc
from tiacc.graph import torch_compat
from tiacc.graph.module_paths import ModulePaths, paths_of


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.dense(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


class Net(nn.Module):
    """Blocks in a list, whose norms have equal weights; a weight of its own; a weight of another module."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(Block(), nn.Tanh())
        self.layers = nn.ModuleList([Block(), Block()])
        self.scale, self.head = nn.Parameter(torch.randn(8)), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return nn.functional.linear(x * self.scale, self.head.weight).softmax(1)


PATHS = [
    *((f"aten.{name}", f"first.0{part}") for name, part in (("linear", ".dense"), ("layer_norm", ".norm"), ("relu", ""), ("add", ""))),
    ("aten.tanh", "first.1"),
    *(
        (f"aten.{name}", f"layers.{index}{part}")
        for index in (0, 1)
        for name, part in (("linear", ".dense"), ("layer_norm", ".norm"), ("relu", ""), ("add", ""))
    ),
    *(("aten.mul", ""), ("aten.linear", "head"), ("aten.softmax", "")),
]


class Paths:
    """Notes the paths of the first graph."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def before(self, pass_, gm) -> None:
        self.seen = self.seen or [(str(node.target).rpartition(".")[0], path) for node, path in paths_of(gm).items()]

    def after(self, pass_, result, seconds) -> None:
        pass


def reloaded(model: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    file = io.BytesIO()
    torch.jit.save(model, file)
    file.seek(0)
    return torch.jit.load(file)


@pytest.mark.parametrize("is_saved", [False, True])
@pytest.mark.parametrize("make", [lambda net: torch.jit.trace(net, torch.randn(2, 8)), torch.jit.script], ids=["traced", "scripted"])
def test_paths(make, is_saved) -> None:
    model, paths = make(Net().eval()), Paths()
    tiacc.explain(reloaded(model) if is_saved else model, ["2*8"], device_type="cpu", instruments=[paths])
    assert paths.seen == PATHS


def test_a_weight_is_asked_for_its_readers_once(monkeypatch) -> None:
    """They are listed each time: for what every layer reads, such as a bias of zeros, that would be the square of the layers."""
    net = nn.Sequential(*(nn.LayerNorm(8) for _ in range(5))).eval()
    frozen, _, _ = torch_compat.frozen_copy(torch.jit.trace(net, torch.randn(2, 8)))
    asked, owner_of = [], torch_compat.weight_owner_of
    monkeypatch.setattr(torch_compat, "weight_owner_of", lambda value: asked.append(value.debugName()) or owner_of(value))
    paths = ModulePaths()
    graph = torch_compat.forward_graph(frozen)
    found = [paths.path_of(node) for node in torch_compat.nodes_of(graph) if node.kind() == "aten::layer_norm"]
    assert found == [str(place) for place in range(5)]
    assert sum(name.startswith("self.") for name in asked) == 2 and len(asked) == len(set(asked))


def test_a_module_is_kept_in_float32_by_its_path() -> None:
    class Types(Paths):
        """Notes the types in which modules compute, after the cast."""

        def after(self, pass_, result, seconds) -> None:
            if pass_.name == "cast-half":
                self.types = [
                    (path, node.meta["val"].dtype)
                    for node, path in paths_of(result.graph).items()
                    if path.startswith("layers.") and node.target is not torch.ops.aten.to.dtype
                ]

    types = Types()
    fields = {"device_type": "cpu", "half_dtype": "bfloat16", "keep_fp32": ("layers.1",)}
    tiacc.explain(torch.jit.script(Net().eval()), ["2*8"], optimization_level=1, instruments=[types], **fields)
    assert {dtype for path, dtype in types.types if path.startswith("layers.1")} == {torch.float32}
    assert ("layers.0.dense", torch.bfloat16) in types.types

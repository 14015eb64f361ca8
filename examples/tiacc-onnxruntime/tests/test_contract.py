import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import tiacc
from tiacc import cli
from tiacc.saved import inspect
from tiacc.testing import BackendContract

README = Path(__file__).parent.parent / "README.md"


class TestOnnxRuntime(BackendContract):
    backend_name = "onnxruntime"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 8, bias=False)

    def forward(self, x):
        return self.second(torch.relu(self.first(x))).cumsum(1).tanh()


LOAD = """
import sys, tiacc, torch
model, data = torch.jit.load(sys.argv[1]), torch.load(sys.argv[2])
with torch.no_grad():
    torch.testing.assert_close(model(data["x"]), data["y"])
"""


@pytest.fixture
def kept(monkeypatch):
    """Have the optimized model used, and its engines kept, however fast they are."""
    monkeypatch.setattr("tiacc.job.LEAST_GAIN", 0.0)
    monkeypatch.setattr("tiacc.costs.slow_segments", lambda *args: {})


def test_a_model_through_the_plugin(kept, tmp_path):
    net, x = Net().eval(), torch.randn(3, 16)
    model = torch.jit.script(net)
    path = tmp_path / "fast.pt"
    shapes = [{"range": ["1*16", "9*16"]}]
    output_model, report = tiacc.optimize(model, 0, "cpu", shapes, save_path=path, backend="onnxruntime", timing_seconds=0.1)
    assert [(row.backend, row.nodes) for row in report.segments] == [("onnxruntime", 3), ("onnxruntime", 1)]
    assert [(row.op, row.reasons) for row in report.fallbacks] == [
        ("aten.cumsum.default", {"onnxruntime": "aten.cumsum.default is not written as ONNX"})
    ]
    with torch.no_grad():
        torch.testing.assert_close(output_model(x), net(x))
        torch.save({"x": x, "y": net(x)}, tmp_path / "data.pt")
    assert {engine.header.backend for engine in inspect(path).engines} == {"onnxruntime"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", LOAD, path, tmp_path / "data.pt"], check=True)


def test_the_command_line_lists_it(capsys):
    assert cli.main(["backends"]) == 0
    assert "onnxruntime" in capsys.readouterr().out


def test_the_commands_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.jit.save(torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 7, 8), nn.ReLU()).eval()), "model.pt")
    ran = 0
    for line in README.read_text(encoding="utf-8").splitlines():
        words = shlex.split(line) if line.startswith("tiacc ") else []
        if words:
            assert cli.main([*words[1:], *(["-o", "timing_seconds=0.1"] if words[1] == "optimize" else [])]) == 0
            ran += 1
    assert ran == 2 and inspect("fast.pt")


def test_explain_knows_it():
    explained = tiacc.explain(torch.jit.script(Net().eval()), ["3*16"], backend="onnxruntime")
    assert [segment.backend for segment in explained.segments] == ["onnxruntime", "onnxruntime"]


def test_half_precision_stays_in_torch():
    model = torch.jit.script(Net().eval())
    explained = tiacc.explain(model, ["3*16"], backend="onnxruntime", optimization_level=1)
    assert any("one of its tensors is not float32" in refusal.reason for refusal in explained.refusals)

"""An operator of another package is taught to all stages in one place: shapes, precision, OpenVINO, TensorRT, and what knows neither."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import tiacc
from tests.backends.tensorrt.harness import needs_rtx
from tests.helpers import forget_teaching_later, use_however_fast
from tiacc import operators
from tiacc.backends.tensorrt import converters
from tiacc.errors import InvalidArgumentError
from tiacc.saved import inspect

aten = torch.ops.aten

LIBRARY = torch.library.Library("taught", "DEF")
"""``taught::soft_clip(x, limit)``: limit · tanh(x / limit), and ``taught::pair(x)``, which has two results."""

LIBRARY.define("soft_clip(Tensor x, float limit=1.0, *, float scale=1.0) -> Tensor")
LIBRARY.impl("soft_clip", lambda x, limit=1.0, *, scale=1.0: scale * limit * torch.tanh(x / limit), "CompositeExplicitAutograd")
LIBRARY.define("pair(Tensor x) -> (Tensor, Tensor)")
LIBRARY.define("new(Tensor x) -> Tensor")
LIBRARY.impl("new", lambda x: x.repeat(2, 1), "CPU")
torch.library.register_fake("taught::soft_clip", lambda x, limit=1.0, *, scale=1.0: torch.empty_like(x), lib=LIBRARY)

SOFT_CLIP = torch.ops.taught.soft_clip.default


def expand(x, limit, scale):
    return aten.mul(aten.tanh(aten.div(x, limit)), limit) * scale


def convert(call):
    limit = float(call.number("limit"))
    return call.net.activation("SCALED_TANH", call.tensor("x"), alpha=limit * float(call.number("scale")), beta=1 / limit)


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget after the test what was taught in it."""
    forget_teaching_later(monkeypatch)
    return iter([None])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.ops.taught.soft_clip(self.first(x), 2.0, scale=0.5))


def traced() -> torch.jit.ScriptModule:
    return torch.jit.trace(Net().eval(), torch.randn(8, 64))


LOAD = """
import sys, tiacc, torch
model, data = torch.jit.load(sys.argv[1]), torch.load(sys.argv[2])
with torch.no_grad():
    torch.testing.assert_close(model(data["x"]), data["y"], rtol=1e-4, atol=1e-5)
"""


def test_without_a_word_it_stays_in_torch() -> None:
    explained = tiacc.explain(traced(), ["8*64"], backend="openvino", optimization_level=1)
    assert [refusal.reason for refusal in explained.refusals] == ["openvino: no converter for taught.soft_clip.default"]
    assert len(explained.segments) == 2


def test_openvino_runs_what_it_is_made_of(monkeypatch, tmp_path) -> None:
    use_however_fast(monkeypatch)
    operators.teach(SOFT_CLIP, precision="follow", expand=expand)
    model, x, path = traced(), torch.randn(8, 64), tmp_path / "fast.pt"
    output_model, report = tiacc.optimize(model, 0, "cpu", ["8*64"], save_path=path, backend="openvino", timing_seconds=0.05)
    assert len(report.segments) == 1 and not report.fallbacks
    assert {row.name: row.changes for row in report.passes}["expand-operators"] == 1
    with torch.no_grad():
        torch.testing.assert_close(output_model(x), model(x), rtol=1e-4, atol=1e-5)
        torch.save({"x": x, "y": model(x)}, tmp_path / "data.pt")
    assert inspect(path).operators == ("tiacc",)  # the operator itself is not in the file: it loads where its library is not
    subprocess.run([sys.executable, "-W", "ignore", "-c", LOAD, path, tmp_path / "data.pt"], check=True)


@pytest.mark.parametrize(("precision", "dtypes"), [("follow", "bfloat16"), ("keep", "bfloat16+float32")])
def test_level_1_computes_it_as_it_was_told(precision: str, dtypes: str) -> None:
    operators.teach(SOFT_CLIP, precision=precision, expand=expand)
    seen = []

    class Watch:
        def before(self, pass_, gm):
            pass

        def after(self, pass_, result, seconds):
            if pass_.name == "expand-operators":
                seen.extend(node.meta["val"].dtype for node in result.graph.graph.nodes if node.target is aten.tanh.default)

    tiacc.explain(traced(), ["8*64"], backend="openvino", optimization_level=1, half_dtype="bfloat16", instruments=[Watch()])
    assert seen == [torch.bfloat16 if precision == "follow" else torch.float32]


@needs_rtx
@pytest.mark.parametrize("level", [0, 1])
def test_tensorrt_converts_it_itself(level: int) -> None:
    operators.teach(SOFT_CLIP, precision="follow", expand=expand, tensorrt=convert, tensorrt_options={"dtypes": converters.FLOATS})
    fields = {"backend": "tensorrt_rtx", "device_type": "cuda", "target": ["sm86"], "check_network": True}
    _, report = tiacc.optimize(traced(), level, input_shapes=["8*64"], **fields)
    assert len(report.segments) == 1 and not report.fallbacks
    assert report.outputs[0].rel_norm <= (1e-5 if level == 0 else 5e-3)
    (row,) = [row for row in report.passes if row.name == "expand-operators"]
    assert row.changes == 0 and row.notes[0].endswith("tensorrt_rtx converts it")


def test_its_shapes_are_told_too() -> None:
    class Doubled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.taught.new(x.relu()).exp()

    new = torch.ops.taught.new.default
    model = torch.jit.trace(Doubled(), torch.randn(3, 4))
    assert tiacc.explain(model, ["3*4"], backend="openvino").refusals
    operators.teach(new, fake=lambda x: x.new_empty(2 * x.shape[0], x.shape[1]), expand=lambda x: aten.repeat(x, [2, 1]))
    explained = tiacc.explain(model, [{"range": ["1*4", "9*4"]}], backend="openvino")
    assert not explained.refusals
    assert [segment.nodes for segment in explained.segments] == [3]


@pytest.mark.parametrize(
    ("operator", "fields", "words"),
    [
        (torch.ops.taught.soft_clip, {}, "write torch.ops.<namespace>.<name>.default"),
        (torch.ops.aten.relu.default, {}, "tiacc knows torch's own operators"),
        (SOFT_CLIP, {"precision": "half"}, "the precision is 'half'; there are compute, follow, move, keep"),
        (SOFT_CLIP, {"expand": lambda x, limits: aten.relu(x)}, "asks for 'limits', which the pattern does not have; did you mean 'limit'"),
        (torch.ops.taught.pair.default, {"expand": lambda x: aten.relu(x)}, "it has 2 results, and expand gives one"),
    ],
)
def test_what_cannot_be_taught_is_refused(operator, fields, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        operators.teach(operator, **fields)
    assert operators.taught(operator) is None

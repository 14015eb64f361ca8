"""`optimize` for GPUs that are not here: engines are built by TensorRT-RTX, their networks evaluated by the reference interpreter."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import tiacc
from tests.test_api import make
from tiacc.backends.tensorrt.interpreted import InterpretedEngine
from tiacc.errors import AccuracyError, BackendUnavailableError, BuildError, InvalidArgumentError

pytestmark = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")

BUILD: dict[str, Any] = {"device_type": 0, "backend": "tensorrt_rtx", "target": ["sm86"]}


@pytest.mark.parametrize("shapes", [["2*3*8*8"], [{"range": ["1*3*8*8", "4*3*16*16"]}], [{"separate": ["1*3*8*8", "2*3*16*8"]}]])
@pytest.mark.parametrize("level", [0, 1])
def test_a_model_is_built_checked_and_saved(level: int, shapes: Any, tmp_path: Path) -> None:
    path = tmp_path / "fast.pt"
    output_model, report = tiacc.optimize(make(), level, input_shapes=shapes, save_path=path, check_network=True, **BUILD)
    (segment,) = report.segments
    assert segment.backend == "tensorrt_rtx" and not report.fallbacks
    assert (report.requested_level, report.achieved_level) == (level, level)
    assert ("float16" in segment.dtype) == bool(level)
    assert 0 < report.outputs[0].rel_norm <= (5e-3 if level else 1e-5)
    assert report.optimization_result.speedup == "not measured"
    told = " ".join(report.warnings)
    assert "were not run" in told and "reference interpreter" in told
    assert path.stat().st_size > segment.size_bytes
    if not torch.cuda.is_available():
        with pytest.raises(Exception, match=r"BackendUnavailableError.*CUDA"):
            output_model(torch.randn(2, 3, 8, 8))


def test_without_the_check_the_report_says_that_nothing_was_checked() -> None:
    _, report = tiacc.optimize(make(), input_shapes=["2*3*8*8"], **BUILD)
    assert not report.outputs
    assert any("were not checked" in warning for warning in report.warnings)


def test_a_network_that_is_wrong_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(AccuracyError, match="nothing was saved"):
        tiacc.optimize(
            make(), 1, input_shapes=["2*3*8*8"], check_network=True, tolerance=1e-9, save_path=tmp_path / "fast.pt", **BUILD
        )
    assert list(tmp_path.iterdir()) == []


def test_layers_are_named_by_number_where_names_shall_not_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("tiacc.progress.Progress.note", lambda self, text: told.append(text))
    for is_neutral in (False, True):
        path = tmp_path / f"{is_neutral}.pt"
        tiacc.optimize(make(), input_shapes=["2*3*8*8"], save_path=path, neutral_names=is_neutral, **BUILD)
        with zipfile.ZipFile(path) as archive:
            (plan,) = (data for data in map(archive.read, archive.namelist()) if b"vtrt" in data)
        assert (b"conv2d" in plan) is not is_neutral
    assert "Building engine" in told


def test_check_network_needs_a_target() -> None:
    _, report = tiacc.optimize(make(), device_type=1, input_shapes=["2*3*8*8"], check_network=True, timing_seconds=0.2)
    assert any("check_network has no effect" in warning for warning in report.warnings)


class Cancelling(torch.nn.Module):
    """Harmless layers around a large number that is added and taken away again: float16 has few digits left for the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after((self.before(x) + 300.0) - 300.0)


def test_half_precision_that_went_wrong_is_mended(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, path = torch.jit.script(Cancelling().eval()), tmp_path / "fast.pt"
    _, report = tiacc.optimize(model, 1, input_shapes=["16*32"], check_network=True, save_path=path, **BUILD)
    assert report.achieved_level == 1 and [segment.dtype for segment in report.segments] == ["float16+float32"]
    assert report.precision is not None
    before, after = report.precision.error_before, report.precision.error_after
    assert before is not None and after is not None and after == report.outputs[0].rel_norm <= 5e-3 < before
    assert path.is_file()
    with pytest.raises(AccuracyError, match="above the tolerance"):
        tiacc.optimize(model, 1, input_shapes=["16*32"], check_network=True, on_accuracy_failure="raise", **BUILD)


def test_a_network_that_is_wrong_stays_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    right = InterpretedEngine.run
    monkeypatch.setattr(InterpretedEngine, "run", lambda self, inputs: [2 * result for result in right(self, inputs)])
    with pytest.raises(BuildError, match=r"nothing of the model can be built for sm86.*its engine is off by"):
        tiacc.optimize(make(), 0, input_shapes=["2*3*8*8"], check_network=True, **BUILD)


def test_what_cannot_be_built_for_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="asks for the CPU"):
        tiacc.optimize(make(), device_type=1, input_shapes=["2*3*8*8"], target=["sm86"])
    with pytest.raises(InvalidArgumentError, match="builds for the machine it is on"):
        tiacc.optimize(make(), device_type=0, input_shapes=["2*3*8*8"], target=["sm86"], backend="openvino")
    with pytest.raises((InvalidArgumentError, BuildError, BackendUnavailableError), match=r"sm90|compute capab"):
        tiacc.optimize(make(), device_type=0, input_shapes=["2*3*8*8"], target=["sm90"], backend="tensorrt_rtx")

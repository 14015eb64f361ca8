"""What a call of `optimize` hands on to the backends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiacc
from tiacc.backends.reference import ReferenceBackend


class Waves(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x) + torch.cos(x)


def test_the_options_of_tuning_reach_every_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    build = ReferenceBackend.build
    monkeypatch.setattr(ReferenceBackend, "build", lambda self, graph, spec: seen.append(spec.options) or build(self, graph, spec))
    for options in ({"cache_dir": tmp_path / "cache", "tuning_seconds": 7}, {}):
        model = torch.jit.trace(Waves(), torch.randn(2, 3))
        tiacc.optimize(model, device_type="cpu", input_shapes=["2*3"], backend="reference", timing_seconds=0.1, **options)
    given, default = seen
    assert given["cache_dir"] == tmp_path / "cache"
    assert given["tuning_seconds"] == 7
    assert "cache_dir" not in default
    assert default["tuning_seconds"] == 60

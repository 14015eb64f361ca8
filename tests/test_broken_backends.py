"""A backend of another package that raises where it is asked: it is named, with what it raised, and the others are used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn

import tiacc
from tests.helpers import forget_later, use_however_fast
from tiacc import cli
from tiacc.backends import base
from tiacc.backends.base import Support
from tiacc.backends.reference import ReferenceBackend
from tiacc.errors import BackendUnavailableError

X = torch.linspace(-1, 1, 12).view(3, 4)


class Broken(ReferenceBackend):
    """Sound; each test breaks a method of it."""

    name = "broken"


class CannotBeMade(ReferenceBackend):
    name = "broken"

    def __init__(self) -> None:
        raise OSError("libacme.so.3: no such file")


class Net(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(torch.sin(x) + 1) * torch.exp(x)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> type[Broken]:
    forget_later(monkeypatch, base.backends)
    use_however_fast(monkeypatch)
    base.register(Broken)
    return Broken


def fails(*_: Any) -> Support:
    raise KeyError("acme_home")


def knows_no_sine(self: ReferenceBackend, node: fx.Node) -> Support:
    return {torch.ops.aten.sin.default: fails}.get(node.target, super(Broken, self).supports)(node)


def optimize(backend: str) -> tuple[Any, Any]:
    return tiacc.optimize(torch.jit.trace(Net(), X), 0, 1, test_data=[(X,)], backend=backend, timing_seconds=0.01)


def test_an_operator_that_a_backend_raises_on_stays_in_torch(broken: type[Broken], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broken, "supports", knows_no_sine)
    output_model, report = optimize("broken")
    torch.testing.assert_close(output_model(X), Net()(X), rtol=0, atol=0)
    assert report.segments
    (row,) = [row for row in report.fallbacks if row.op == "aten.sin.default"]
    assert "its supports() raises KeyError: 'acme_home'" in row.reasons["broken"] and "BackendContract" in row.reasons["broken"]
    (warning,) = [warning for warning in report.warnings if "acme_home" in warning]
    assert warning.startswith("the backend 'broken' ")
    explained = tiacc.explain(torch.jit.trace(Net(), X), ["3*4"], backend="broken")
    assert any("broken: its supports() raises KeyError" in refusal.reason for refusal in explained.refusals)


def test_what_a_broken_backend_does_not_take_the_next_one_does(broken: type[Broken], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broken, "supports", fails)
    output_model, report = optimize("broken,reference")
    assert {segment.backend for segment in report.segments} == {"reference"}
    assert sum("acme_home" in warning for warning in report.warnings) == 1
    torch.testing.assert_close(output_model(X), Net()(X), rtol=0, atol=0)


def test_an_answer_that_is_none_is_a_fault(broken: type[Broken], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broken, "supports", lambda self, node: None)
    _, report = optimize("broken")
    assert not report.segments and any("its supports() returns None" in warning for warning in report.warnings)


@pytest.mark.parametrize("method", ["available", "version", "can_build"])
def test_a_backend_that_raises_when_it_is_asked_about_itself(
    method: str, broken: type[Broken], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(broken, method, fails, raising=False)
    if method == "version":  # an engine's header has it
        _, report = optimize("broken")
        assert not report.segments and any("could not be built: KeyError: 'acme_home'" in warning for warning in report.warnings)
    else:
        with pytest.raises(BackendUnavailableError, match=rf"'broken'.* its {method}\(\) raises KeyError: 'acme_home'; tell its authors"):
            if method == "available":
                optimize("broken")
            else:
                tiacc.optimize(torch.jit.trace(Net(), X), 0, 0, ["3*4"], backend="broken", target=["sm86"])
    if method != "can_build":
        assert cli.main(["backends"]) == 0
        assert f"broken: its {method}() raises KeyError: 'acme_home'" in " ".join(capsys.readouterr().out.split())


def test_a_backend_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    forget_later(monkeypatch, base.backends)
    base.register(CannotBeMade)
    for call in (lambda: optimize("broken"), lambda: tiacc.explain(torch.jit.trace(Net(), X), ["3*4"], backend="broken")):
        with pytest.raises(BackendUnavailableError, match=r"'broken' cannot be used: its class raises OSError: libacme\.so\.3"):
            call()
    assert cli.main(["backends"]) == 0
    assert "libacme.so.3" in capsys.readouterr().out

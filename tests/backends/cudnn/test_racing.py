"""Steps that do not wait for what they read are found, and run by other tactics."""

from __future__ import annotations

import pytest
import torch

from tests.backends.cudnn.programs import CPU, block, planned
from tests.helpers import random_inputs
from tiacc.backends.cudnn import eager, racing
from tiacc.backends.cudnn.engine import CudnnEngine
from tiacc.backends.cudnn.executable import Executable, adds_result_of
from tiacc.backends.cudnn.naming import key_of
from tiacc.backends.cudnn.program import ConvStep
from tiacc.backends.cudnn.tactics import TacticCache
from tiacc.errors import BuildError
from tiacc.graph.types import TensorSpec


class Graph:
    """Runs calls, one of them before the one that it should wait for."""

    def __init__(self, calls, early: int | None) -> None:
        self.calls = list(calls)
        if early is not None and early < len(self.calls):
            self.calls[early - 1], self.calls[early] = self.calls[early], self.calls[early - 1]

    def replay(self) -> None:
        for call in self.calls:
            call()


class Racing(Executable):
    """A program on the CPU, with one step that begins too early when it is part of a graph."""

    early: int | None = None

    def bind(self, tactics) -> None:
        self.calls = [lambda step=step: eager.compute(step, self.read) for step in self.program.steps]

    def recorded(self, count: int) -> Graph:
        return Graph(self.calls[:count], self.early)


@pytest.fixture
def made() -> tuple[Racing, list[torch.Tensor]]:
    gm = block()
    executable = Racing(planned(gm), {}, {}, CPU)
    executable.bind({})
    assert len(executable.calls) == 2
    return executable, random_inputs(gm)


@pytest.mark.parametrize("early", [None, 1])
def test_the_first_step_that_does_not_wait(made, early: int | None) -> None:
    executable, inputs = made
    executable.early = early
    with torch.no_grad():
        assert racing.first_wrong(executable, inputs) == early


def test_what_is_no_number_is_no_error() -> None:
    values = torch.tensor([1.0, float("nan"), float("inf")])
    assert racing.is_same(values, values.clone()) and racing.is_same(values * (1 + 1e-3), values)
    assert not racing.is_same(values.nan_to_num(), values)
    assert not racing.is_same(values * 1.1, values)


def test_another_tactic_takes_the_place(made, tmp_path, monkeypatch) -> None:
    executable, inputs = made
    first, step = executable.program.steps
    tactics = {key_of(first): "torch", key_of(step): "cudnn:1"}
    engine = CudnnEngine(block(), (TensorSpec((2, 16, 9, 7), torch.float32),), (), (), (False, False), tactics)
    cache = TacticCache(tmp_path, "here")
    cache.add(step, [(3.0, "cudnn:1"), (4.0, "triton:1"), (5.0, "cudnn:0")])
    wrong = iter([1, 1, None])
    monkeypatch.setattr(racing, "first_wrong", lambda executable, inputs: next(wrong))
    engine._settle(executable, inputs, cache)
    assert engine.tactics[key_of(step)] == "cudnn:0"
    assert TacticCache(tmp_path, "here").find(step) == "cudnn:0"
    assert cache.drop(step, "cudnn:0") == "torch" and cache.drop(step, "torch") is None
    monkeypatch.setattr(racing, "first_wrong", lambda executable, inputs: 1)
    with pytest.raises(BuildError, match="whatever tactic"):
        engine._settle(executable, inputs, cache)


def test_a_sum_that_has_just_been_written_is_waited_for(made) -> None:
    first, second = made[0].program.steps
    assert isinstance(second, ConvStep)
    assert not adds_result_of(first, second)  # it is what the second step convolves; it adds the input
    shortcut = ConvStep(**{**vars(second), "operands": (first.out,)})
    assert adds_result_of(first, shortcut)


def test_the_tactics_of_a_whole_program_are_kept(made, tmp_path) -> None:
    executable, inputs = made
    keys = [key_of(step) for step in executable.program.steps]
    spec = TensorSpec((2, 16, 9, 7), torch.float32)
    engine = CudnnEngine(block(), (spec,), (), (), (False, False), dict.fromkeys(keys, "torch"))
    assert not engine._takes_known(executable, inputs, TacticCache(tmp_path, "here"))
    with torch.no_grad():
        engine._settle(executable, inputs, TacticCache(tmp_path, "here"))
    other = CudnnEngine(block(), (spec,), (), (), (False, False))
    with torch.no_grad():
        assert other._takes_known(executable, inputs, TacticCache(tmp_path, "here"))
    assert other.tactics == engine.tactics
    assert not other._takes_known(executable, inputs, TacticCache(tmp_path, "elsewhere"))
    executable.bind = lambda tactics: 1 / 0
    assert not other._takes_known(executable, inputs, TacticCache(tmp_path, "here"))

"""Faults planted in engines and in graphs: the guard finds every one, and what is returned is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import fx, nn

import tiacc
from tests.helpers import use_however_fast
from tests.test_tracing import Counting
from tiacc import measure, models
from tiacc.backends import base
from tiacc.backends.reference import ReferenceBackend
from tiacc.errors import AccuracyError
from tiacc.graph import torch_compat
from tiacc.guard import ROUNDS_ON_GPU, Guard
from tiacc.passes.base import Pass, PassContext, PassResult
from tiacc.samples import resolve_inputs

Tensors = list[torch.Tensor]
Run = Callable[[Sequence[torch.Tensor]], Tensors]


class Net(nn.Module):
    """Two inputs and three outputs, two of one shape: enough for each fault to have something to spoil."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 6)
        self.other = nn.Linear(8, 6)
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        z = torch.relu(self.norm(self.conv(x))) + y
        pooled = z.mean([2, 3])
        return self.head(pooled), self.other(pooled).tanh(), z.amax([2, 3]) - pooled


SHAPES = ["2*3*6*6", "2*8*6*6"]


def scaled(factor: float) -> Callable[[Run], Run]:
    return lambda run: lambda inputs: [output * factor for output in run(inputs)]


def on_output(index: int, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Run], Run]:
    def plant(run: Run) -> Run:
        def wrong(inputs: Sequence[torch.Tensor]) -> Tensors:
            outputs = run(inputs)
            outputs[index] = change(outputs[index])
            return outputs

        return wrong

    return plant


def on_input(index: int, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Run], Run]:
    def plant(run: Run) -> Run:
        return lambda inputs: run([change(value) if place == index else value for place, value in enumerate(inputs)])

    return plant


def stale(run: Run) -> Run:
    """Give what the first call gave, for ever."""
    first: list[Tensors] = []

    def wrong(inputs: Sequence[torch.Tensor]) -> Tensors:
        first.append(run(inputs))
        return [output.clone() for output in first[0]]

    return wrong


def one_late(run: Run) -> Run:
    """Give the results of the call before."""
    seen: list[Tensors] = []

    def wrong(inputs: Sequence[torch.Tensor]) -> Tensors:
        seen.append(run(inputs))
        return [output.clone() for output in seen[max(0, len(seen) - 2)]]

    return wrong


def shared(run: Run) -> Run:
    """Give each time the same memory, written anew."""
    memory: Tensors = []

    def wrong(inputs: Sequence[torch.Tensor]) -> Tensors:
        outputs = run(inputs)
        if not memory:
            memory.extend(outputs)
        for place, output in zip(memory, outputs):
            place.copy_(output)
        return list(memory)

    return wrong


def swapped(first: int, second: int) -> Callable[[Run], Run]:
    def plant(run: Run) -> Run:
        def wrong(inputs: Sequence[torch.Tensor]) -> Tensors:
            outputs = run(inputs)
            outputs[first], outputs[second] = outputs[second], outputs[first]
            return outputs

        return wrong

    return plant


def failing(run: Run) -> Run:
    def wrong(inputs: Sequence[torch.Tensor]) -> Tensors:
        raise RuntimeError("the device is on fire")

    return wrong


def one_element(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output.view(-1)[-1] = value
        return output

    return change


ENGINE_FAULTS: dict[str, Callable[[Run], Run]] = {
    "one percent too large": scaled(1.01),
    "a tenth of a percent too small": scaled(0.999),
    "a ten-thousandth too large": scaled(1.0001),
    "the sign": scaled(-1.0),
    "zeros": scaled(0.0),
    "an offset": on_output(0, lambda output: output + 1e-3),
    "one output rounded to float16": on_output(0, lambda output: output.half().float()),
    "one output rounded to bfloat16": on_output(1, lambda output: output.bfloat16().float()),
    "a NaN": on_output(0, one_element(float("nan"))),
    "an infinity": on_output(2, one_element(float("inf"))),
    "one element zero": on_output(2, one_element(0.0)),
    "rows in another order": on_output(0, lambda output: output.flip(0)),
    "columns in another order": on_output(1, lambda output: output.roll(1, 1)),
    "the first row in all": on_output(0, lambda output: output[:1].expand_as(output).clone()),
    "absolute values": on_output(0, torch.Tensor.abs),
    "clipped": on_output(2, lambda output: output.clamp(max=float(output.max()) * 0.9)),
    "another shape": on_output(0, lambda output: output[:, :-1]),
    "another dtype": on_output(0, lambda output: output.double()),
    "two outputs swapped": swapped(0, 1),
    "the first input ignored": on_input(0, torch.zeros_like),
    "the second input ignored": on_input(1, torch.zeros_like),
    "the first input off by a thousandth": on_input(0, lambda value: value * 1.001),
    "the input transposed": on_input(0, lambda value: value.transpose(2, 3).contiguous()),
    "the input flipped": on_input(1, lambda value: value.flip(3)),
    "the input cast to float16": on_input(0, lambda value: value.half().float()),
    "the input cast to integers": on_input(1, lambda value: value.round()),
    "the input clamped": on_input(0, lambda value: value.clamp(-1, 1)),
    "stale results": stale,
    "the results of the call before": one_late,
    "memory that later calls write into": shared,
    "an exception": failing,
}


def backend_with(fault: Callable[[Run], Run]) -> Any:
    """Return a backend that is the reference but for a fault in the engines it loads."""

    class Faulty(ReferenceBackend):
        name = "faulty"

        def load(self, payload: bytes) -> Any:
            engine = super().load(payload)
            engine.run = fault(engine.run)  # type: ignore[method-assign]
            return engine

    return Faulty


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    use_however_fast(monkeypatch)
    monkeypatch.setattr("tiacc.measure.MIN_CALLS", 1)


def assert_right(output_model: Any, model: Any) -> None:
    """The model computes what the input model does on data that it was never checked with, over several calls."""
    generator = torch.Generator().manual_seed(7)
    calls = [[torch.randn(2, channels, 6, 6, generator=generator) for channels in (3, 8)] for _ in range(3)]
    with torch.no_grad():
        results = [output_model(*inputs) for inputs in calls]
        for inputs, result in zip(calls, results):
            assert measure.largest(measure.compare(model(*inputs), result)) <= 1e-5


@pytest.mark.parametrize("name", list(ENGINE_FAULTS))
def test_a_fault_in_an_engine_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base.backends._items, "faulty", backend_with(ENGINE_FAULTS[name]))
    # Other weights for each: models in one process share the engines of equal bytes.
    model = torch.jit.script(Net(list(ENGINE_FAULTS).index(name)).eval())
    output_model, report = tiacc.optimize(model, 0, 1, SHAPES, backend="faulty", timing_seconds=0.05)
    assert not report.segments and report.actions, "a wrong engine was reported as fine"
    assert_right(output_model, model)


def rewired(change: Callable[[fx.GraphModule], None]) -> type[Pass]:
    class Wrong(Pass):
        name = "wrong-rewrite"

        def apply(self, gm: fx.GraphModule, ctx: PassContext) -> PassResult:
            change(gm)
            return PassResult(gm, 1)

    return Wrong


def _node(gm: fx.GraphModule, name: str) -> fx.Node:
    return next(node for node in gm.graph.nodes if name in str(node.target))


def _drop(gm: fx.GraphModule, name: str) -> None:
    node = _node(gm, name)
    node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
    gm.graph.erase_node(node)


def _cast(gm: fx.GraphModule, name: str) -> None:
    """Round the results of an operator to half precision, and go on in float32."""
    node = _node(gm, name)
    with gm.graph.inserting_after(node):
        low = gm.graph.call_function(torch.ops.aten.to.dtype, (node, torch.bfloat16))
    with gm.graph.inserting_after(low):
        high = gm.graph.call_function(torch.ops.aten.to.dtype, (low, torch.float32))
    node.replace_all_uses_with(high, delete_user_cb=lambda user: user is not low)


def _weight(gm: fx.GraphModule, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    node = next(node for node in gm.graph.nodes if node.op == "get_attr")
    setattr(gm, str(node.target), change(getattr(gm, str(node.target))))


def _swap_outputs(gm: fx.GraphModule) -> None:
    output = gm.graph.output_node()
    first, second, *rest = output.args[0]  # type: ignore[misc]
    output.args = ((second, first, *rest),)


REWRITES: dict[str, Callable[[fx.GraphModule], None]] = {
    "a ReLU lost": lambda gm: _drop(gm, "aten.relu"),
    "a tanh lost": lambda gm: _drop(gm, "aten.tanh"),
    "an addition lost": lambda gm: _drop(gm, "aten.add"),
    "a cast behind a mean": lambda gm: _cast(gm, "aten.mean"),
    "a cast behind a convolution": lambda gm: _cast(gm, "conv"),
    "a weight off by a thousandth": lambda gm: _weight(gm, lambda tensor: tensor * 1.001),
    "a weight transposed": lambda gm: _weight(gm, lambda tensor: tensor.flip(0)),
    "outputs swapped": _swap_outputs,
}


@pytest.mark.parametrize("name", list(REWRITES))
def test_a_fault_in_a_rewrite_is_found(name: str) -> None:
    model = torch.jit.script(Net().eval())
    wrong = rewired(REWRITES[name])()
    output_model, report = tiacc.optimize(model, 0, 1, SHAPES, backend="reference", passes=[wrong], timing_seconds=0.05)
    assert not report.segments and any("kept as it is" in action for action in report.actions), "a wrong rewrite was reported as fine"
    assert_right(output_model, model)


def wrong_where(is_there: Callable[[torch.Tensor], bool]) -> Callable[[Run], Run]:
    """Double the outputs for inputs of some shapes."""

    def plant(run: Run) -> Run:
        return lambda inputs: [output * 2 if is_there(inputs[0]) else output for output in run(inputs)]

    return plant


class Pooled(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x)).mean([2, 3])


@pytest.mark.parametrize(("place", "size"), [("min", 6), ("max", 20)])
def test_the_shapes_that_the_test_data_lack_are_checked(place: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = wrong_where(lambda x: x.shape[2] == size)
    monkeypatch.setitem(base.backends._items, "faulty", backend_with(fault))
    model = torch.jit.script(Pooled(size).eval())
    shapes = [{"range": ["1*3*6*6", "2*3*12*12", "4*3*20*20"]}]
    data = [(torch.randn(2, 3, 12, 12),), (torch.randn(2, 3, 12, 12),)]
    _, report = tiacc.optimize(model, 0, 1, shapes, data, backend="faulty", timing_seconds=0.05)
    assert not report.segments and report.actions, f"an engine that is wrong at the {place} shape was reported as fine"
    assert report.compared_shapes == "(2, 3, 12, 12) | (1, 3, 6, 6) | (4, 3, 20, 20)"
    assert report.test_data_info.test_data_shape == "(2, 3, 12, 12)"


def test_shapes_at_which_the_model_does_not_take_the_data_are_told() -> None:
    class Picks(nn.Module):
        def forward(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            return torch.relu(x)[index] * 2

    shapes = [{"range": ["2*4", "8*4"]}, {"long": "3"}]
    data = [(torch.randn(8, 4), torch.tensor([0, 5, 7]))]
    _, report = tiacc.optimize(torch.jit.script(Picks()), 0, 1, shapes, data, backend="reference", timing_seconds=0.05)
    assert report.compared_shapes == "(8, 4); (3,)"
    assert any("not compared at the shapes (2, 4); (3,)" in warning for warning in report.warnings), report.warnings


def test_a_stale_result_among_calls_of_different_shapes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def stale_by_shape(run: Run) -> Run:
        first: dict[Any, Tensors] = {}
        return lambda inputs: [output.clone() for output in first.setdefault(inputs[0].shape, run(inputs))]

    monkeypatch.setitem(base.backends._items, "faulty", backend_with(stale_by_shape))
    model = torch.jit.script(Pooled(99).eval())
    _, report = tiacc.optimize(model, 0, 1, [{"range": ["1*3*6*6", "4*3*20*20"]}], backend="faulty", timing_seconds=0.05)
    assert not report.segments, "stale results were reported as fine"


class NearlyConstant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(12)
        self.linear = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 100 + self.linear(x)


@pytest.mark.parametrize("half", [None, "bf16"])
def test_a_stale_result_is_found_where_little_changes(half: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of float32, half a percent is enough; bfloat16 may not show it."""
    monkeypatch.setitem(base.backends._items, "faulty", backend_with(stale))
    model, x = torch.jit.script(NearlyConstant().eval()), torch.randn(4, 16)
    change = measure.compare(model(x), model(x.flatten().flip(0).view(4, 16)))[0].rel_norm
    assert 3e-3 < change < 1.5e-2
    options = {"backend": "faulty", "timing_seconds": 0.05, "half_dtype": half}
    _, report = tiacc.optimize(model, int(half is not None), 1, test_data=[(x,)], **options)
    assert bool(report.segments) == (half is not None), report.actions


class Late(nn.Module):
    """Right in its first calls, as an engine may be that replays a graph of its kernels from the third on."""

    def __init__(self, right: int) -> None:
        super().__init__()
        self.right = right
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * 2 if int(self.calls) <= self.right else x * 3


@pytest.mark.parametrize(("right", "error"), [(1, 0.5), (2, 0.5), (3, 0.0)])
def test_calls_after_the_first_are_compared_too(right: int, error: float) -> None:
    model = torch.jit.trace(lambda x: x * 2, (torch.ones(3),))
    checks = Guard(model, resolve_inputs(None, [(torch.randn(3),)], 0), torch.device("cpu"), measure.Judge())
    checks._rounds = ROUNDS_ON_GPU
    checks.run_references()
    checks._varied = None
    assert checks.calls_before(checks.data[0]) == (3, 3)
    assert checks.compare(torch.jit.script(Late(right))).error == pytest.approx(error)


def guard_of(model: torch.jit.ScriptModule, *arguments: torch.Tensor) -> Guard:
    checks = Guard(model, resolve_inputs(None, [arguments], 0), torch.device("cpu"), measure.Judge())
    checks.run_references()
    return checks


class Told(nn.Module):
    """A vector and a number of it; or those of the first call, for ever."""

    def __init__(self, is_stale: bool = False, fails_on: int = 0) -> None:
        super().__init__()
        self.is_stale = is_stale
        self.fails_on = fails_on
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("first", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, float]:
        self.calls += 1
        if int(self.calls) == self.fails_on:
            raise RuntimeError("out of order")
        if int(self.calls) == 1:
            self.first = x
        y = self.first if self.is_stale else x
        return y * 2, float(y[0])


class Tells(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, float]:
        return x * 2, float(x[0])


@pytest.mark.parametrize(("candidate", "complaint"), [(Told(), ""), (Told(True), "is the same"), (Told(fails_on=2), "out of order")])
def test_a_second_call_tells_what_is_stale(candidate: nn.Module, complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The input model is called with its values only where an output of the candidate is what it was, or the candidate fails."""
    calls: list[Any] = []
    model = torch.jit.script(Tells())
    checks = guard_of(model, torch.tensor([1.0, 2.0, 3.0]))
    call = models.call
    monkeypatch.setattr("tiacc.models.call", lambda module, item: (calls.append(module), call(module, item))[1])
    if complaint:
        with pytest.raises(AccuracyError, match=complaint):
            checks.compare(torch.jit.script(candidate))
    else:
        assert checks.compare(torch.jit.script(candidate)).error == 0
        assert checks.calls_before(checks.data[0]) == (1, 2)
    assert sum(called is model for called in calls) == bool(complaint)


def test_stale_numbers_are_found() -> None:
    class Number(nn.Module):
        def forward(self, x: torch.Tensor) -> float:
            return float(x[0])

    class Stale(nn.Module):
        def forward(self, x: torch.Tensor) -> float:
            return 1.0

    with pytest.raises(AccuracyError, match="the same for other inputs"):
        guard_of(torch.jit.script(Number()), torch.tensor([1.0, 2.0])).compare(torch.jit.script(Stale()))


def test_values_that_the_input_model_does_not_take_need_no_result() -> None:
    class Picks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.randn(2, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.table[x.long()[0]] * x[1]

    model = torch.jit.script(Picks())
    assert guard_of(model, torch.tensor([1.0, 5.0])).compare(model).error == 0


class Recurrent(nn.Module):
    """What it gives is what all calls before it have left."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(16, 16)
        self.register_buffer("hidden", torch.zeros(2, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.hidden = torch.tanh(self.cell(x + self.hidden))
        return self.hidden


def test_a_fault_in_what_a_call_leaves_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def right_once(run: Run) -> Run:
        calls = iter(range(1 << 30))
        return lambda inputs: [output * (1.0 if next(calls) == 0 else 0.9) for output in run(inputs)]

    monkeypatch.setitem(base.backends._items, "faulty", backend_with(right_once))
    torch.manual_seed(11)
    model = torch.jit.script(Recurrent().eval())
    output_model, report = tiacc.optimize(model, 0, 1, ["2*16"], backend="faulty", timing_seconds=0.05)
    assert not report.segments and report.actions
    with torch.no_grad():
        for x in torch.randn(4, 2, 16):
            torch.testing.assert_close(output_model(x), model(x))


def test_state_is_found_where_there_is_some() -> None:
    batch_norm = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True)).eval())
    assert not torch_compat.keeps_state(batch_norm), "what training alone writes into is no state"
    assert not torch_compat.keeps_state(torch.jit.script(Net().eval()))
    assert torch_compat.keeps_state(torch.jit.script(Recurrent().eval()))
    assert torch_compat.keeps_state(torch.jit.trace(Counting().eval(), torch.zeros(1), check_trace=False))


@pytest.mark.parametrize("method", ["build", "load"])
def test_whatever_a_build_or_a_load_raises_leaves_the_segment_in_torch(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(ReferenceBackend):
        name = "broken"

    def broken(self: Any, *args: Any) -> Any:
        raise KeyError("no such layer")

    monkeypatch.setattr(Broken, method, broken)

    monkeypatch.setitem(base.backends._items, "broken", Broken)
    model = torch.jit.script(Net().eval())
    output_model, report = tiacc.optimize(model, 0, 1, SHAPES, backend="broken", timing_seconds=0.05)
    assert not report.segments and any("no such layer" in row.reasons.get("broken", "") for row in report.fallbacks)
    assert_right(output_model, model)

"""Import a program, write its regions back, save, load: outputs, state and exceptions are the original's."""

from __future__ import annotations

import copy
import io
import random
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from tests.graph.programs import PROGRAMS
from tiacc.graph import exporter, torch_compat
from tiacc.graph.importer import Assumed, import_module
from tiacc.graph.node_importer import MOST_UNROLLED
from tiacc.graph.regions import ImportResult
from tiacc.graph.specs import Dim, TensorSpec


def abstract(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return TensorSpec(tuple(value.shape), value.dtype)
    if isinstance(value, (list, tuple)):
        return tuple(map(abstract, value))
    if isinstance(value, dict):
        return {key: abstract(item) for key, item in value.items()}
    return ...


def write_back(result: ImportResult) -> torch.jit.ScriptModule:
    exporter.replace_regions(result.module, [(region, region.graph) for region in result.regions])
    if result.assumptions:
        exporter.guard(torch_compat.forward_graph(result.module), result.original, result.assumptions)
    buffer = io.BytesIO()
    torch.jit.save(result.module, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def outcome(module: Any, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """What a call returns or raises, and what it leaves of its arguments."""
    args = copy.deepcopy(args)
    try:
        with torch.no_grad():
            return module(*args), args
    except torch.jit.Error as error:
        return str(error).splitlines()[-1], args


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(other, one, rtol=0, atol=0, equal_nan=True)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert type(one) is type(other) and len(one) == len(other)
        for left, right in zip(one, other):
            assert_same(left, right)
    else:
        assert one == other


def randomised(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.running_mean.uniform_(-1, 1)
            child.running_var.uniform_(0.5, 2)
    return module.eval()


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_does_the_same_after_import_and_export(name: str) -> None:
    program = PROGRAMS[name]
    scripted = torch.jit.script(randomised(program.make()))
    result = import_module(scripted, [*map(abstract, program.calls[0]), *program.assumed])
    assert result.regions, [left.reason for left in result.left]
    if program.regions is not None:
        assert len(result.regions) == program.regions, result.left
    loaded = write_back(result)
    for args in program.calls:
        assert_same(outcome(scripted, args), outcome(loaded, args))


def test_exported_methods_and_state_are_kept() -> None:
    program = PROGRAMS["state"]
    scripted = torch.jit.script(program.make().eval())
    loaded = write_back(import_module(scripted, [abstract(program.calls[0][0]), ...]))
    for index in range(100):
        args = (torch.randn(3, 4, generator=torch.Generator().manual_seed(index)), 0.1 * (index % 5))
        assert_same(outcome(scripted, args), outcome(loaded, args))
        if index % 17 == 0:
            scripted.reset()
            loaded.reset()


class Machine(nn.Module):
    """A module with state in numbers, tensors and a list, told what to do by a number."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(4))
        self.past = torch.jit.Attribute([], list[torch.Tensor])
        self.steps = 0

    def forward(self, x, mode: int):
        self.steps += 1
        y = torch.relu(self.linear(x))
        if mode == 0:
            self.mean = self.mean * 0.9 + y.mean(0) * 0.1
            return y - self.mean
        if mode == 1:
            self.past.append(y * 0.5)
            if len(self.past) > 3:
                self.past = self.past[1:]
            return torch.stack(self.past).sum(0)
        if mode == 2:
            self.mean.mul_(0.5)
            return y.tanh() + float(self.steps % 7)
        raise ValueError("modes are 0, 1 and 2")

    @torch.jit.export
    def reset(self):
        self.past.clear()
        self.mean.zero_()
        self.steps = 0


@pytest.mark.parametrize("assumed", [..., Assumed(1)])
def test_a_module_with_state_keeps_its_behaviour_over_100_calls(assumed: Any) -> None:
    torch.manual_seed(0)
    scripted = torch.jit.script(Machine().eval())
    result = import_module(scripted, [TensorSpec((3, 4), torch.float32), assumed])
    assert bool(result.assumptions) == isinstance(assumed, Assumed)
    loaded = write_back(result)
    modes = random.Random(0)
    for index in range(100):
        args = (torch.randn(3, 4, generator=torch.Generator().manual_seed(index)), modes.choice([0, 0, 1, 1, 2, 3]))
        assert_same(outcome(scripted, args), outcome(loaded, args))
        for name in ("steps", "mean", "past"):
            assert_same(getattr(scripted, name), getattr(loaded, name))
        if index % 23 == 22:
            scripted.reset()
            loaded.reset()


def test_the_input_model_is_untouched() -> None:
    scripted = torch.jit.script(randomised(PROGRAMS["conv-net"].make()).train())
    before, text = copy.deepcopy(scripted.state_dict()), str(scripted.graph)
    result = import_module(scripted, [TensorSpec((2, 3, 8, 8), torch.float32)])
    write_back(result)
    assert scripted.training and str(scripted.graph) == text
    assert_same(dict(before), dict(scripted.state_dict()))


def test_regions_inside_a_branch_that_stays_are_imported() -> None:
    result = import_module(torch.jit.script(PROGRAMS["dynamic-branch"].make()), [TensorSpec((3, 4), torch.float32)])
    paths = [region.path for region in result.regions]
    assert paths[0] == paths[-1] == "forward"
    assert any(path.endswith("then") for path in paths) and any(path.endswith("else") for path in paths)


@pytest.mark.parametrize("batch", [1, 2, 5, 8])
def test_sizes_that_vary_stay_variable(batch: int) -> None:
    scripted = torch.jit.script(randomised(PROGRAMS["conv-net"].make()))
    result = import_module(scripted, [TensorSpec((Dim("batch", 1, 4, 8), 3, Dim("height", 8, 9, 20), 8), torch.float32)])
    assert not result.fixed and len(result.regions) == 1
    loaded = write_back(result)
    args = (torch.randn(batch, 3, 8 + batch, 8),)
    assert_same(outcome(scripted, args), outcome(loaded, args))


def test_a_size_baked_in_by_tracing_is_found_and_named() -> None:
    class Flat(nn.Module):
        def forward(self, x):
            return x.view(4, 6).relu() + torch.ones(4, 6)

    traced = torch.jit.trace(Flat(), torch.randn(4, 2, 3))
    result = import_module(traced, [TensorSpec((Dim("batch", 1, 4, 8), 2, 3), torch.float32)])
    assert [(dim.name, dim.size) for dim in result.fixed] == [("batch", 4)]
    assert "view" in result.fixed[0].where


def test_a_condition_on_a_size_that_varies_is_not_folded() -> None:
    class Branch(nn.Module):
        def forward(self, x):
            y = x + 1
            if x.size(0) > 4:
                y = y * 2
            if x.size(0) > 10:
                y = y * 100
            return y.relu()

    scripted = torch.jit.script(Branch())
    result = import_module(scripted, [TensorSpec((Dim("batch", 1, 4, 8), 3), torch.float32)])
    assert [left.op for left in result.left].count("prim::If") == 1
    loaded = write_back(result)
    for batch in (1, 4, 5, 8):
        args = (torch.randn(batch, 3),)
        assert_same(outcome(scripted, args), outcome(loaded, args))


def test_methods_that_forward_calls_are_left_out_unless_asked_for() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def features(self, x):
            return self.linear(x)

        def forward(self, x):
            return self.features(x).relu()

        @torch.jit.export
        def other(self, x):
            return x - 1

    scripted = torch.jit.script(Parts())
    spec = [TensorSpec((2, 3), torch.float32)]
    result = import_module(scripted, spec)
    assert result.dropped_methods == ("features",)
    assert not hasattr(result.module, "features")
    torch.testing.assert_close(result.module.other(torch.ones(2)), torch.zeros(2))
    kept = import_module(scripted, spec, keep_methods=("features",))
    torch.testing.assert_close(kept.module.features(torch.ones(2, 3)), scripted.features(torch.ones(2, 3)))


def test_what_is_left_has_a_reason_and_a_source_line() -> None:
    result = import_module(torch.jit.script(PROGRAMS["sorted"].make()), [TensorSpec((2, 5), torch.float32)])
    (nonzero,) = (left for left in result.left if left.op == "aten::nonzero")
    assert "DynamicOutputShape" in nonzero.reason
    assert "programs.py:" in nonzero.source


def test_an_import_is_the_same_twice() -> None:
    scripted = torch.jit.script(randomised(PROGRAMS["unrolled"].make()))
    texts = [str(import_module(scripted, [TensorSpec((4, 6), torch.float32)]).regions[0].graph.graph) for _ in range(2)]
    assert texts[0] == texts[1]


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2 + x.sigmoid()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


class _CallsAFunctionOfItsOwn(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Doubled.apply(x.relu()).exp()


def test_a_traced_autograd_function_is_imported_and_can_be_saved() -> None:
    x = torch.randn(2, 3)
    traced = torch.jit.trace(_CallsAFunctionOfItsOwn(), x)
    with pytest.raises(RuntimeError, match="Could not export Python function"):
        torch.jit.save(traced, io.BytesIO())
    result = import_module(traced, [abstract(x)])
    assert len(result.regions) == 1 and not result.left
    assert_same(outcome(traced, (-x,)), outcome(write_back(result), (-x,)))


class _Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = cell = torch.zeros(2, 4)
        for _ in range(2):
            hidden, cell = self.cell(x, (hidden, cell))
        return torch.cat([hidden, cell])


def test_a_traced_lstm_cell_is_imported_though_it_writes_into_parts_of_a_tensor() -> None:
    x = torch.randn(2, 3)
    traced = torch.jit.trace(_Cells().eval(), x)
    result = import_module(traced, [abstract(x)])
    assert len(result.regions) == 1 and not result.left
    assert_same(outcome(traced, (x + 1,)), outcome(write_back(result), (x + 1,)))


class _WritesBehindAPart(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        left, right = y.chunk(2, 0)
        y.add_(1)
        return left.sum(0) * right.sum(0)


def test_parts_of_varying_size_are_read_after_a_write_into_the_whole() -> None:
    scripted = torch.jit.script(_WritesBehindAPart())
    result = import_module(scripted, [TensorSpec((Dim("n", 2, 4, 8), 3), torch.float32)])
    loaded = write_back(result)
    for rows in (2, 5, 8):
        x = torch.randn(rows, 3)
        assert_same(outcome(scripted, (x,)), outcome(loaded, (x,)))


class _OtherNames(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.multiply(x, 2).swapaxes(0, 1)
        y[0].subtract_(1)
        y = torch.concat([torch.clip(y, -1, 1), torch.true_divide(y, 3)])
        return torch.where(torch.greater(y, 0), torch.negative(y), torch.special.expit(y))


def test_operators_of_several_names_come_under_one() -> None:
    x = torch.randn(2, 3)
    for model in (torch.jit.script(_OtherNames()), torch.jit.trace(_OtherNames(), x)):
        result = import_module(model, [abstract(x)])
        assert len(result.regions) == 1 and not result.left
        named = {str(node.target).split(".")[1] for node in result.regions[0].graph.graph.nodes if node.op == "call_function"}
        assert {"mul", "transpose", "sub", "cat", "clamp", "div", "gt", "neg", "sigmoid"} <= named
        assert_same(outcome(model, (-x,)), outcome(write_back(result), (-x,)))


class _AddsToAPart(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.relu()
        y[1:] += x[:-1]
        y[:, :2] *= 3
        return y.exp()


def test_a_traced_addition_to_a_part_is_imported() -> None:
    traced = torch.jit.trace(_AddsToAPart(), torch.randn(3, 4))
    result = import_module(traced, [TensorSpec((3, 4), torch.float32)])
    assert len(result.regions) == 1 and not result.left
    x = torch.randn(3, 4)
    assert_same(outcome(traced, (x,)), outcome(write_back(result), (x,)))


class WrittenThroughListOfViews(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x.relu() * 2
        first, _ = torch.broadcast_tensors([y, y + 1])
        first.add_(1)
        z = x.sigmoid()
        torch.atleast_2d([z])[0].mul_(3)
        return y.exp(), z.exp()


def test_views_of_the_members_of_a_list_share_their_memory() -> None:
    scripted = torch.jit.script(WrittenThroughListOfViews())
    args = (torch.randn(3, 4),)
    loaded = write_back(import_module(copy.deepcopy(scripted), [abstract(args[0])]))
    assert_same(outcome(scripted, args), outcome(loaded, args))


class Dictionaries(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = OrderedDict()
        for scale in (2, 3):
            found[str(scale)] = x.relu() * scale
        copied = dict(found)
        copied["sum"] = found["2"] + found["3"]
        found["2"] = x
        items = [("exp", copied["2"].exp()), ("sum", copied["sum"])]
        pairs = dict(items)
        pairs.update(found)
        return pairs


def test_dictionaries_that_are_made_by_a_call_are_imported() -> None:
    scripted = torch.jit.script(Dictionaries())
    args = (torch.randn(3, 4),)
    result = import_module(copy.deepcopy(scripted), [abstract(args[0])])
    assert len(result.regions) == 1 and not result.left
    assert_same(outcome(scripted, args), outcome(write_back(result), args))


class Steps(nn.Module):
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for step in range(self.steps):
            x = x + torch.tanh(x) * 0.001 * step
        return x.exp()


@pytest.mark.parametrize(("steps", "is_unrolled"), [(100, True), (2000, False)])
def test_a_loop_is_unrolled_if_it_comes_to_few_operators(steps: int, is_unrolled: bool) -> None:
    """Freezing unrolls a part of it, so that its iterations are not its steps."""
    scripted = torch.jit.script(Steps(steps).eval())
    result = import_module(copy.deepcopy(scripted), [TensorSpec((2, 3), torch.float32)])
    assert bool(result.left) is not is_unrolled
    assert sum(len(region.graph.graph.nodes) for region in result.regions) < 2 * MOST_UNROLLED
    x = torch.randn(2, 3)
    assert_same(scripted(x), write_back(result)(x))


def test_what_an_operator_keeps_in_its_node_is_left() -> None:
    """torch crashes where such an operator is called from Python."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    optimized = torch.jit.optimize_for_inference(torch.jit.script(model))
    result = import_module(copy.deepcopy(optimized), [TensorSpec((1, 3, 8, 8), torch.float32)])
    assert "prim::ConstantMKLDNNTensor" in {left.op for left in result.left}

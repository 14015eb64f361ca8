"""Types that were seen while the model ran: regions that rely on them are guarded, and the original code is there for all else."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

from tests.graph.test_importer import assert_same
from tiacc.backends.reference import ReferenceBackend
from tiacc.compiler import Plan, Proposal, build, propose
from tiacc.graph import observer, torch_compat
from tiacc.graph.specs import Dim, TensorSpec
from tiacc.passes.pipelines import pipeline
from tiacc.runtime import ops

CPU = torch.device("cpu")


class Picked(nn.Module):
    """Layers behind a choice of rows that depends on data."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        rows = x[x[:, 0] > 0]
        return torch.softmax(self.second(torch.relu(self.first(rows))), -1), rows.sum(0)


class Squeezed(nn.Module):
    """A tensor whose rank depends on data."""

    def forward(self, x):
        y = torch.masked_select(x, x > 0)
        if y.numel() > 3:
            y = y.unsqueeze(0)
        return (y * 2).tanh() + 1


@pytest.fixture
def engine_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    run = ops.LoadedEngine.__call__

    def counted(self: ops.LoadedEngine, inputs: Any) -> Any:
        calls.append(len(self.header.inputs))
        return run(self, inputs)

    monkeypatch.setattr(ops.LoadedEngine, "__call__", counted)
    return calls


def optimized(
    module: torch.jit.ScriptModule, inputs: tuple[Any, ...], examples: list[tuple[Any, ...]], **sizes: tuple[int, int, int]
) -> tuple[torch.jit.ScriptModule, Proposal]:
    plan = Plan(inputs, (sizes,), pipeline(0, CPU), (ReferenceBackend(),), CPU, examples=tuple(examples))
    proposal = propose(module, plan)
    buffer = io.BytesIO()
    torch.jit.save(build(proposal, plan).module, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer), proposal


def rows(count: int, kept: int) -> torch.Tensor:
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(count))
    x[:, 0] = torch.cat([torch.ones(kept), -torch.ones(count - kept)])
    return x


def test_layers_behind_a_choice_by_data_run_in_an_engine(engine_calls: list[int]) -> None:
    torch.manual_seed(0)
    scripted = torch.jit.script(Picked().eval())
    loaded, proposal = optimized(scripted, (TensorSpec((9, 6), torch.float32),), [(rows(9, 3),), (rows(9, 5),)])
    (guarded,) = [item.region for item in proposal.regions if item.region.guard]
    ((size, width),) = [spec.shape for spec in guarded.guard if spec is not None]
    assert isinstance(size, Dim) and (size.min, size.max, width) == (1, 20, 6)
    for kept, inside in ((3, True), (5, True), (8, True), (1, True), (0, False)):
        engine_calls.clear()
        x = rows(9, kept)
        with torch.no_grad():
            assert_same(scripted(x), loaded(x))
        assert len(engine_calls) == (2 if inside else 1)  # the first finds out which rows are picked


def test_another_rank_than_was_seen_runs_the_original_code(engine_calls: list[int]) -> None:
    scripted = torch.jit.script(Squeezed())
    few = torch.tensor([1.0, 2.0, -1.0, -1.0, -1.0])
    loaded, proposal = optimized(scripted, (TensorSpec((5,), torch.float32),), [(few,)])
    assert any(item.region.guard for item in proposal.regions)
    counts = []
    for x in (few, few.abs()):
        engine_calls.clear()
        assert_same(scripted(x), loaded(x))
        counts.append(len(engine_calls))
    assert counts[0] > counts[1]


def test_without_examples_nothing_is_seen() -> None:
    _, proposal = optimized(torch.jit.script(Picked().eval()), (TensorSpec((9, 6), torch.float32),), [])
    assert not any(item.region.guard for item in proposal.regions)


def test_examples_are_left_as_they_are() -> None:
    class Writes(nn.Module):
        def forward(self, x):
            x.add_(1)
            return torch.relu(x[x > 1] * 2)

    x = torch.tensor([0.5, -1.0])
    optimized(torch.jit.script(Writes()), (TensorSpec((2,), torch.float32),), [(x,)])
    assert x.tolist() == [0.5, -1.0]


def test_sizes_that_were_equal_in_all_runs_are_one_dimension() -> None:
    twin, _, _ = torch_compat.frozen_copy(torch.jit.script(Picked().eval()))
    count = len(observer.observable(torch_compat.forward_graph(twin)))
    seen, dims = observer.observe(twin, [(rows(9, 3),), (rows(9, 5),)])
    assert list(dims) == ["observed0"] and dims["observed0"] == Dim("observed0", 1, 5, 20)
    assert set(seen) <= set(range(count))
    assert TensorSpec((dims["observed0"], 8), torch.float32) in seen.values()


def test_behind_a_result_that_is_not_there_all_others_are_seen() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.layer(x, x, x, need_weights=False)[0].relu()

    twin, _, _ = torch_compat.frozen_copy(torch.jit.script(Attends().eval()))
    seen, _ = observer.observe(twin, [(torch.randn(2, 5, 8),)])
    results = [torch_compat.forward_graph(twin).findAllNodes("aten::relu")[0].output().unique()]
    values = observer.observable(torch_compat.forward_graph(twin))
    (place,) = (index for index, value in enumerate(values) if value.unique() in results)
    assert seen[place] == TensorSpec((2, 5, 8), torch.float32)


def test_models_that_are_observed_in_two_threads_do_not_see_each_other() -> None:
    def seen(width: int) -> list[TensorSpec]:
        class Chosen(nn.Module):
            def forward(self, x):
                for _ in range(100):
                    x = (x * 2)[x[:, 0] > 0]
                return x

        twin, _, _ = torch_compat.frozen_copy(torch.jit.script(Chosen()))
        return list(observer.observe(twin, [(torch.ones(3, width),)] * 4)[0].values())

    alone = [set(map(str, seen(width))) for width in (5, 7)]
    with ThreadPoolExecutor(2) as pool:
        together = [set(map(str, found)) for found in pool.map(seen, [5, 7] * 4)]
    assert alone[0] != alone[1] and together == alone * 4


class SumsInABranch(nn.Module):
    """The loop runs at one batch size of those that are seen."""

    def forward(self, x, times: int):
        total = torch.zeros([x.size(0), 3])
        if x.sum() > 0:
            for _ in range(times):
                total = total * 0.5 + torch.relu(x)
        return total


def test_a_size_that_was_seen_once_does_not_fix_a_dimension_that_varies() -> None:
    scripted = torch.jit.script(SumsInABranch())
    examples = [(torch.ones(3, 3), 2), (-torch.ones(2, 3), 2)]
    loaded, proposal = optimized(scripted, (TensorSpec((Dim("n", 1, 3, 6), 3), torch.float32), ...), examples, n=(1, 3, 6))
    assert any("it works at one size of a dimension that varies" in left.reason for left in proposal.imported.left)
    for x in (torch.ones(3, 3), -torch.ones(2, 3), torch.ones(5, 3)):
        assert_same(scripted(x, 3), loaded(x, 3))


@pytest.mark.slow
def test_faster_rcnn_runs_its_layers_in_engines_and_finds_the_same_boxes(engine_calls: list[int]) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, min_size=128, max_size=160, box_score_thresh=0.0
    )
    for parameter in model.roi_heads.box_predictor.parameters():
        nn.init.normal_(parameter, 0, 0.002)
    scripted = torch.jit.script(model.eval())
    images = [torch.rand(3, 96, 128), torch.rand(3, 120, 120)]
    size = {name: Dim(name, 90, 100, 128) for name in "hw"}
    loaded, proposal = optimized(
        scripted,
        ((TensorSpec((3, size["h"], size["w"]), torch.float32),),),
        [([image],) for image in images],
        h=(90, 100, 128),
        w=(90, 100, 128),
    )
    layers = [str(node.target) for item in proposal.regions for node in item.graph.graph.nodes if node.op == "call_function"]
    assert sum(target in {"aten.conv2d.default", "aten.linear.default"} for target in layers) >= 65
    for image in images:
        with torch.no_grad():
            (_, (want,)), (_, (found,)) = scripted([image]), loaded([image])
        assert len(engine_calls) > 4
        engine_calls.clear()
        assert want["labels"].tolist() == found["labels"].tolist()
        torch.testing.assert_close(found["boxes"], want["boxes"], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found["scores"], want["scores"], rtol=1e-4, atol=1e-5)

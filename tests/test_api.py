"""`tiacc.optimize` from end to end, on small models: signatures, forms of input, files, reports, last resorts."""

from __future__ import annotations

import copy
import gc
import json
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiacc
from tests.helpers import use_however_fast
from tiacc.backends import base
from tiacc.errors import AccuracyError, BackendUnavailableError, InvalidArgumentError, RegistryError, SpeedupError
from tiacc.runtime import blob

FAST: dict[str, Any] = {"timing_seconds": 0.2, "device_type": 1}


class Net(nn.Module):
    """Convolutions, a residual, a head: enough for every pass to have something to do."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        y = self.stem(x)
        y = torch.relu(self.body(y) + y)
        return self.head(self.drop(y.mean([2, 3])))


def make(seed: int = 0) -> torch.jit.ScriptModule:
    torch.manual_seed(seed)
    net = Net().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return torch.jit.script(net)


def accept_any_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a model be returned that is not faster: what is tested is what it computes."""
    use_however_fast(monkeypatch)


@pytest.fixture(autouse=True)
def _any_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    accept_any_speed(monkeypatch)


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert torch.linalg.vector_norm(one.double() - other.double()) <= tolerance * torch.linalg.vector_norm(other.double())


def test_the_saved_file_runs_in_a_fresh_process_with_import_tiacc_alone(tmp_path: Path) -> None:
    model, path, data = make(), tmp_path / "fast.pt", tmp_path / "data.pth"
    output_model, report = tiacc.optimize(model, 0, 1, ["2*3*8*8"], save_path=path, timing_seconds=0.2)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.save({"x": x, "y": model(x)}, data)
        close(output_model(x), model(x))
    code = (
        f"import torch, tiacc; d = torch.load({str(data)!r}); m = torch.jit.load({str(path)!r}); y = m(d['x']);"
        "assert torch.linalg.vector_norm(y - d['y']) <= 1e-5 * torch.linalg.vector_norm(d['y']); print('right')"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "right"
    assert len(report.segments) == 1 and not report.fallbacks
    assert {row.name: row.changes for row in report.passes}["fold-batch-norm"] == 2


def test_the_report_has_the_original_fields(tmp_path: Path) -> None:
    _, report = tiacc.optimize(make(), input_shapes=["1*3*8*8"], **FAST)
    fields = json.loads(report.to_json())
    assert list(fields)[:4] == ["software_environment", "hardware_environment", "test_data_info", "optimization_result"]
    assert set(fields["optimization_result"]) == {"baseline_time", "optimized_time", "baseline_qps", "optimized_qps", "speedup"}
    assert fields["optimization_result"]["baseline_time"].endswith(" ms")
    assert fields["test_data_info"]["test_data_source"] == "tiacc provided"
    assert fields["outputs"][0]["rel_norm"] <= 1e-5
    assert "fold-batch-norm" in str(report)


@pytest.mark.parametrize(
    "shapes",
    [
        "2*3*8*8",
        [" 2 * 3 * 8 * 8 "],
        [{"float": ["2*3*8*8"]}],
        [{"separate": ["2*3*8*8", "1*3*12*10"]}],
        [{"seperate": ["2*3*8*8", "1*3*12*10"]}],
        [{"range": ["1*3*8*8", "4*3*16*16"]}],
        [{"range,float": ["1*3*8*8", "2*3*8*8", "4*3*16*16"]}],
    ],
)
def test_every_form_of_shapes_gives_a_model_that_is_right_at_each_shape(shapes: Any) -> None:
    model = make()
    output_model, report = tiacc.optimize(model, input_shapes=shapes, **FAST)
    assert report.segments and report.outputs[0].rel_norm <= 1e-5
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        close(output_model(x), model(x))


def test_a_shape_beyond_the_range_is_refused_by_the_optimized_model() -> None:
    output_model, _ = tiacc.optimize(make(), input_shapes=[{"range": ["1*3*8*8", "4*3*16*16"]}], **FAST)
    with pytest.raises(Exception, match=r"ShapeOutOfRangeError.*\[1\.\.4, 3, 8\.\.16, 8\.\.16\]"):
        output_model(torch.randn(5, 3, 8, 8))


class Rich(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(
        self,
        x,
        pair: tuple[torch.Tensor, torch.Tensor],
        table: dict[str, torch.Tensor],
        scale: float = 1.5,
        mask: torch.Tensor | None = None,
    ):
        y = self.linear(x) * scale + pair[0]
        if mask is not None:
            y = y.masked_fill(mask, 0.0)
        return {"main": y.tanh(), "side": pair[1] - table["a"]}, [y, x]

    @torch.jit.export
    def other(self, x):
        return self.linear(x) - 1


def test_the_signature_is_the_input_models() -> None:
    torch.manual_seed(0)
    model = torch.jit.script(Rich().eval())
    x, p, q, a = (torch.randn(3, 4) for _ in range(4))
    data = [(x, (p, q), {"a": a})]
    output_model, report = tiacc.optimize(model, test_data=data, **FAST)
    calls = [
        ((x, (p, q), {"a": a}), {}),
        ((x,), {"pair": (p, q), "table": {"a": a}, "scale": 0.5}),
        ((x, (p, q), {"a": a}, 1.5, torch.rand(3, 4) > 0.5), {}),
        ((), {"x": x, "pair": (p, q), "table": {"a": a}, "mask": None}),
    ]
    with torch.no_grad():
        for args, kwargs in calls:
            (one, first), (other, second) = output_model(*args, **kwargs), model(*args, **kwargs)
            assert list(one) == list(other) and len(first) == len(second)
            for left, right in zip([*one.values(), *first], [*other.values(), *second]):
                close(left, right)
        close(output_model.other(x), model.other(x))
    assert report.test_data_info.test_data_source == "user provided"
    assert any("scale=1.5" in warning and "mask=None" in warning for warning in report.warnings)


def test_integer_and_half_inputs() -> None:
    class Embed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(20, 6)

        def forward(self, ids, weights):
            return self.table(ids) * weights.float().unsqueeze(-1)

    torch.manual_seed(0)
    model = torch.jit.script(Embed().eval())
    output_model, _ = tiacc.optimize(model, input_shapes=[{"long": ["2*7"]}, {"half": ["2*7"]}], **FAST)
    ids, weights = torch.randint(0, 20, (2, 7)), torch.randn(2, 7).half()
    with torch.no_grad():
        close(output_model(ids, weights), model(ids, weights))


def test_an_nn_module_is_traced_and_a_training_model_is_optimized_as_its_eval_copy() -> None:
    torch.manual_seed(0)
    net = Net().train()
    before = copy.deepcopy(net.state_dict())
    output_model, report = tiacc.optimize(net, input_shapes=["2*3*8*8"], **FAST)
    assert net.training and all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    told = " ".join(report.warnings)
    assert "traced" in told and "training mode" in told
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        close(output_model(x), copy.deepcopy(net).eval()(x))


def test_a_model_that_writes_into_its_input_changes_nothing_of_the_users() -> None:
    class Writes(nn.Module):
        def forward(self, x):
            x.mul_(2)
            return torch.relu(x * 3 - 1).exp()

    x = torch.randn(4, 4)
    kept = x.clone()
    output_model, _ = tiacc.optimize(torch.jit.script(Writes()), test_data=[(x,)], **FAST)
    assert torch.equal(x, kept)
    one, other = x.clone(), x.clone()
    close(output_model(one), Writes()(other))
    assert torch.equal(one, other)


def test_inputs_of_any_layout() -> None:
    model = make()
    output_model, _ = tiacc.optimize(model, input_shapes=["2*3*8*8"], **FAST)
    base_input = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for x in (
            base_input.to(memory_format=torch.channels_last),
            base_input.transpose(2, 3),
            torch.randn(1, 3, 8, 8).expand(2, 3, 8, 8),
            torch.randn(2, 3, 16, 8)[:, :, ::2],
            base_input.clone().requires_grad_(),
        ):
            close(output_model(x), model(x))


def test_results_are_the_callers_own() -> None:
    output_model, _ = tiacc.optimize(make(), input_shapes=["2*3*8*8"], **FAST)
    first_input, second_input = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    first = output_model(first_input)
    kept = first.clone()
    output_model(second_input)
    assert torch.equal(first, kept)
    first.zero_()
    assert torch.equal(output_model(first_input), kept)


def test_half_precision_is_not_claimed_where_it_did_not_happen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiacc.environment.cpu_has_bf16", lambda: False)
    _, report = tiacc.optimize(make(), 1, input_shapes=["2*3*8*8"], **FAST)
    assert (report.requested_level, report.achieved_level) == (1, 0)
    assert any("does not compute in bfloat16" in action for action in report.actions)
    assert {segment.dtype for segment in report.segments} == {"float32"}


def test_half_precision_by_request(tmp_path: Path) -> None:
    model = make()
    output_model, report = tiacc.optimize(
        model, 1, input_shapes=["2*3*8*8"], half_dtype="bf16", backend="reference", **FAST
    )
    assert report.achieved_level == 1, report.actions
    assert "bfloat16" in report.segments[0].dtype
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        y, want = output_model(x), model(x)
    assert y.dtype == torch.float32
    error = torch.linalg.vector_norm(y - want) / torch.linalg.vector_norm(want)
    assert 1e-6 < error < 1e-2


class WrongBackend:
    """An engine that is off by one percent."""

    name = "wrong"
    device_types = ("cpu",)

    def __new__(cls) -> Any:
        from tiacc.backends.reference import ReferenceBackend

        class Wrong(ReferenceBackend):
            name = "wrong"

            def load(self, payload: bytes) -> Any:
                engine = super().load(payload)
                run = engine.run
                engine.run = lambda inputs: [output * 1.01 for output in run(inputs)]
                return engine

        return Wrong()


@pytest.fixture
def wrong_backend(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(base.backends._items, "wrong", WrongBackend)
    return "wrong"


def test_a_wrong_engine_is_never_returned(wrong_backend: str) -> None:
    model = make()
    output_model, report = tiacc.optimize(model, input_shapes=["2*3*8*8"], backend=wrong_backend, **FAST)
    assert not report.segments
    assert any("relative error 0.01" in action for action in report.actions)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        close(output_model(x), model(x))


def test_a_wrong_engine_raises_where_that_is_asked_for(wrong_backend: str, tmp_path: Path) -> None:
    path = tmp_path / "fast.pt"
    with pytest.raises(AccuracyError, match="tolerance"):
        tiacc.optimize(
            make(), input_shapes=["2*3*8*8"], backend=wrong_backend, save_path=path, on_accuracy_failure="raise", **FAST
        )
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_faster_is_kept_and_the_report_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tiacc.job.LEAST_GAIN", 1e9)
    model, path = make(), tmp_path / "fast.pt"
    output_model, report = tiacc.optimize(model, input_shapes=["2*3*8*8"], save_path=path, **FAST)
    assert report.optimization_result.speedup == "1.00"
    assert any("kept" in action for action in report.actions)
    assert str(output_model.graph) and path.exists()
    with pytest.raises(SpeedupError, match="require_speedup"):
        tiacc.optimize(model, input_shapes=["2*3*8*8"], require_speedup=2.0, save_path=tmp_path / "other.pt", **FAST)
    assert [item.name for item in tmp_path.iterdir()] == ["fast.pt"]


def test_a_missing_gpu_and_a_missing_backend_name_the_way_out() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(BackendUnavailableError, match="device_type=1"):
            tiacc.optimize(make(), device_type=0, input_shapes=["2*3*8*8"])
    with pytest.raises(RegistryError, match="did you mean 'openvino'"):
        tiacc.optimize(make(), device_type=1, input_shapes=["2*3*8*8"], backend="openvinno")
    with pytest.raises(InvalidArgumentError, match="runs on cuda"):
        tiacc.optimize(make(), device_type=1, input_shapes=["2*3*8*8"], backend="tensorrt_rtx", target=())


def test_a_baked_in_size_is_refused_before_anything_is_built() -> None:
    class Flat(nn.Module):
        def forward(self, x):
            return x.view(4, 6).relu()

    traced = torch.jit.trace(Flat(), torch.randn(4, 2, 3))
    data = [{"range": ["2*2*3", "8*2*3"]}]
    with pytest.raises(InvalidArgumentError, match=r"item 0 .*aten::view at .*test_api\.py:"):
        tiacc.optimize(traced, input_shapes=data, **FAST)


@pytest.mark.parametrize("freeze", [False, True])
def test_an_optimized_or_frozen_model_can_be_optimized_again(tmp_path: Path, freeze: bool) -> None:
    model, path = make(), tmp_path / "once.pt"
    if freeze:
        torch.jit.save(torch.jit.freeze(model), path)
    else:
        tiacc.optimize(model, input_shapes=["2*3*8*8"], save_path=path, **FAST)
    output_model, _ = tiacc.optimize(path, input_shapes=["2*3*8*8"], **FAST)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        close(output_model(x), model(x))


class Hidden(nn.Module):
    """A recurrent cell that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16))
        self.register_buffer("hidden", torch.zeros(2, 16))
        self.calls = 0

    def forward(self, x):
        self.hidden = torch.tanh(self.cell(x) + self.hidden)
        self.calls += 1
        return self.hidden * self.calls


class Cache(nn.Module):
    """Attention over the last eight inputs, which are written into one buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = nn.Linear(16, 16)
        self.register_buffer("cache", torch.zeros(2, 8, 16))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.cache[:, self.place % 8] = self.keys(x)
        self.place.add_(1)
        return torch.softmax(self.cache @ x.unsqueeze(-1), 1).squeeze(-1)


class Growing(nn.Module):
    """A cache whose length is the number of calls, up to eight."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = nn.Linear(16, 16)
        self.cache = torch.zeros(2, 1, 16)

    def forward(self, x):
        self.cache = torch.cat([self.cache, self.keys(x).unsqueeze(1)], 1)[:, -8:]
        return torch.softmax(self.cache @ x.unsqueeze(-1), 1).sum(1)


@pytest.mark.parametrize("backend", ["reference", "openvino"])
@pytest.mark.parametrize("kind", [Hidden, Cache, Growing])
def test_a_model_that_keeps_state_begins_where_the_input_model_begins(kind: type[nn.Module], backend: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = torch.jit.script(kind().eval())
    untouched = copy.deepcopy(model)
    output_model, report = tiacc.optimize(model, 0, input_shapes=["2*16"], save_path=tmp_path / "fast.pt", backend=backend, **FAST)
    assert report.passes, report.actions
    saved = torch.jit.load(tmp_path / "fast.pt")
    with torch.no_grad():
        for x in torch.randn(12, 2, 16):
            wanted = untouched(x)
            for found in (model(x), output_model(x), saved(x)):
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_model_that_keeps_state_is_kept_as_it_was() -> None:
    model = torch.jit.script(Hidden().eval())
    output_model, report = tiacc.optimize(model, 0, input_shapes=["2*16"], backend="reference", passes=(), min_segment_nodes=99, **FAST)
    assert report.speedup == 1.0
    assert output_model.calls == model.calls == 0 and not output_model.hidden.any()


MODES = {
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "a default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("backend", ["reference", "openvino"])
@pytest.mark.parametrize("mode", list(MODES))
def test_the_modes_of_the_caller_change_nothing(mode: str, backend: str, tmp_path: Path) -> None:
    torch.manual_seed(4)
    model = torch.jit.script(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8)).eval())
    x, path = torch.randn(4, 16), tmp_path / "fast.pt"
    wanted = model(x)
    with MODES[mode]():
        inside, report = tiacc.optimize(model, 1, input_shapes=["4*16"], backend=backend, save_path=path, half_dtype="bf16", **FAST)
        assert tiacc.explain(model, ["4*16"], backend=backend).segments
        assert tiacc.debug.bisect(model, ["4*16"], backend=backend).kind == "nothing"
    assert report.segments
    for output_model in (inside, torch.jit.load(path, map_location="cpu")):
        with MODES[mode]():  # the first call of the loaded model makes the engine, and all that the engine keeps
            found = [output_model(x)]
        found.append(output_model(x))
        for output in found:
            assert output.dtype == torch.float32 and output.device.type == "cpu"
            torch.testing.assert_close(output, wanted, rtol=2e-2, atol=2e-2)


def test_a_module_that_holds_an_optimized_model_is_optimized() -> None:
    model = make()
    fast, _ = tiacc.optimize(model, 0, input_shapes=["2*3*8*8"], **FAST)
    whole = nn.Sequential(fast, nn.Linear(5, 2)).eval()
    output_model, _ = tiacc.optimize(whole, 0, input_shapes=["2*3*8*8"], **FAST)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(output_model(x), whole[1](model(x)), rtol=1e-4, atol=1e-5)


def test_a_model_that_draws_random_numbers_is_compared_by_the_same_ones() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 4)

        def forward(self, x):
            y = self.first(x).relu()
            return self.second(y + torch.rand_like(y))

    model = torch.jit.script(Noisy().eval())
    output_model, report = tiacc.optimize(model, 0, input_shapes=["3*16"], backend="reference", **FAST)
    assert report.passes and max(error.rel_norm for error in report.outputs) < 1e-5
    with torch.no_grad():
        outputs = []
        for each in (model, output_model):
            torch.manual_seed(8)
            outputs.append(each(torch.ones(3, 16)))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_what_takes_an_object_stays_in_torch() -> None:
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU()).eval()
    model = torch.jit.script(torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8))
    output_model, report = tiacc.optimize(model, 0, input_shapes=["3*16"], **FAST)
    assert any(row.op == "quantized::linear_dynamic" and "object" in row.reasons["importer"] for row in report.fallbacks)
    x = torch.randn(3, 16)
    torch.testing.assert_close(output_model(x), model(x))


def test_nothing_is_left_of_a_model_that_nobody_refers_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch keeps for good what was scripted or traced, and would keep the engines in a copy of it."""
    made: list[weakref.ref[torch.Tensor]] = []
    pack = blob.pack

    def noted(*args: Any, **options: Any) -> torch.Tensor:
        envelope = pack(*args, **options)
        made.append(weakref.ref(envelope))
        return envelope

    monkeypatch.setattr(blob, "pack", noted)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.BatchNorm1d(8)).eval()
    for model in (torch.jit.script(net), torch.jit.trace(net, torch.ones(2, 8)), net):
        made.clear()
        tiacc.optimize(model, 0, 1, ["2*8"], backend="reference", timing_seconds=0.01)
        gc.collect()
        assert made and not any(envelope() is not None for envelope in made)


def test_calls_from_several_threads_leave_the_process_as_it_was() -> None:
    models = [make(seed) for seed in range(4)]
    torch.manual_seed(1234)
    state, threads = torch.get_rng_state(), torch.get_num_threads()

    def work(place: int) -> torch.jit.ScriptModule:
        return tiacc.optimize(models[place], 0, 1, ["2*3*8*8"], timing_seconds=0.01, num_threads=1 + place % 2)[0]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, range(4)))
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for model, optimized in zip(models, found):
            close(optimized(x), model(x))


def test_a_link_to_save_to_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real.pt").write_bytes(b"old")
    (tmp_path / "link.pt").symlink_to("real.pt")
    tiacc.optimize(make(), 0, 1, ["2*3*8*8"], save_path=tmp_path / "link.pt", timing_seconds=0.01)
    assert (tmp_path / "link.pt").is_symlink()
    close(torch.jit.load(tmp_path / "real.pt")(torch.ones(2, 3, 8, 8)), make()(torch.ones(2, 3, 8, 8)))


class Cache(nn.Module):
    def __init__(self, rows: int) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("memory", torch.zeros(rows, 8))
        self.place = 0

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.relu(self.linear(x))
        self.memory[self.place : self.place + x.shape[0]] = y
        self.place += x.shape[0]
        return self.memory[: self.place].sum(0), y


@pytest.mark.parametrize("rows", [4, 8, 64])
def test_a_state_that_takes_so_many_calls_and_no_more(rows: int) -> None:
    model = torch.jit.script(Cache(rows).eval())
    optimized, report = tiacc.optimize(model, 0, 1, test_data=[(torch.randn(4, 8),)], timing_seconds=0.05)
    assert any("again and again" in text for text in report.warnings) == (rows < 8)
    with torch.no_grad():
        for _ in range(rows // 4):
            x = torch.randn(4, 8)
            for one, other in zip(optimized(x), model(x)):
                close(one, other)

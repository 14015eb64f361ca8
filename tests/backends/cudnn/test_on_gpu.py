"""What needs a GPU: tactics, graphs, streams, threads and memory.

Under ``compute-sanitizer --tool memcheck`` give ``--show-backtrace no``: to show Python's frames it waits for Python's lock inside the
driver, while another thread, in cuDNN's frontend, has that lock and waits for the driver. ``test_memory_is_flat_over_2000_runs`` fails
under it, which takes memory itself.
"""

from __future__ import annotations

import contextlib
import itertools
import threading

import pytest
import torch
from torch import nn
from torchvision.models.resnet import Bottleneck

from tests.backends.cudnn.models import subgraph
from tests.backends.cudnn.programs import error, planned
from tests.backends.cudnn.test_kernels import Everything
from tiacc.backends.base import BuildSpec, Profile
from tiacc.backends.cudnn import CudnnBackend, eager, memory_plan, tiles, together
from tiacc.backends.cudnn.binaries import Binaries
from tiacc.backends.cudnn.executable import Executable, _nothing
from tiacc.backends.cudnn.launch import Call
from tiacc.backends.cudnn.naming import key_of, title
from tiacc.backends.cudnn.program import Step, TorchStep
from tiacc.backends.cudnn.triton_call import compile_ahead
from tiacc.errors import BuildError
from tiacc.graph import specs, torch_compat
from tiacc.graph.types import TensorSpec

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not CudnnBackend().available(), reason="needs a GPU and cuDNN's frontend")]
SHAPE = (2, 3, 61, 45)


def build(model: nn.Module, shape: tuple[int, ...], level: int, **options):
    """Return the engine of a model with one input."""
    gm = subgraph(model, [torch.randn(shape)], level)
    outputs = tuple(specs.spec_of(specs.tensor_of(node)) for node in gm.graph.output_node().args[0])
    profiles = (Profile((shape,), (shape,), (shape,)),)
    spec = BuildSpec((TensorSpec(shape, torch.float32),), outputs, torch.device("cuda"), profiles, options=options)
    return CudnnBackend().build(gm, spec)


@pytest.fixture(scope="module")
def built():
    torch.manual_seed(0)
    model = Everything().eval()
    return build(model, SHAPE, 1), model.cuda()


def agree(engine, model, x: torch.Tensor) -> None:
    with torch.no_grad():
        for got, wanted in zip(engine.run([x]), model(x), strict=True):
            assert error(got, wanted) < 5e-3


@pytest.mark.parametrize("level", [0, 1])
def test_every_tactic_of_every_step(level: int) -> None:
    torch.manual_seed(level)
    x = torch.randn(SHAPE)
    program = planned(subgraph(Everything().eval(), [x], level))
    executable = Executable(program, {}, {}, torch.device("cuda", 0), None, Binaries())
    bench = executable.bench
    executable.fill([x.cuda()])
    calls: list[tuple[Step, str, Call]] = []
    for step in program.steps:
        for tactic in bench.tactics(step):
            with contextlib.suppress(BuildError):  # not all plans of cuDNN can be built
                calls.append((step, tactic, bench.bind(step, tactic)))
    compile_ahead(bench.kernels)
    with torch.no_grad():
        for step, steps_calls in itertools.groupby(calls, key=lambda item: item[0]):
            eager.compute(step, executable.read)
            if isinstance(step, TorchStep):
                continue
            out = executable.read(step.out)
            wanted = out.clone()
            for _, tactic, call in steps_calls:
                out.fill_(float("nan"))
                call()
                assert error(out.clone(), wanted) < 2e-3, (title(step), tactic)
            out.copy_(wanted)
    assert sum(tactic.startswith("triton") for _, tactic, _ in calls) > 30


class Heads(nn.Module):
    """Heads of a detector, each of two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1), nn.ReLU(), nn.Conv2d(64, count, 1)) for count in (80, 2, 2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first, *others = (head(x) for head in self.heads)
        return *others, torch.sigmoid(first)


def test_heads_in_one_launch() -> None:
    torch.manual_seed(0)
    model = Heads().eval()
    shape = (2, 3, 64, 64)
    engine = build(model, shape, 1, tuning_seconds=0)
    program = engine.program((shape,))
    (run,) = together.runs(program, memory_plan.assign(program))
    engine.tactics.update({key_of(program.steps[place]): "triton:64,32,64,4,2,0,1" for place in run})
    loaded = CudnnBackend().load(engine.serialize())
    model = model.cuda()
    for _ in range(4):
        agree(loaded, model, torch.randn(shape).cuda())
    (executable,) = loaded._ready.values()
    assert executable.calls.count(_nothing) == len(run) - 1 == 2


def test_fresh_data_at_each_replay(built) -> None:
    engine, model = built
    for seed in range(5):
        agree(engine, model, torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).cuda())


def test_kernels_wait_for_what_they_read() -> None:
    """The shortcut of a stage of ResNet-50 in TensorFloat-32, which one plan of cuDNN reads before it is written."""
    torch.manual_seed(0)
    shape = (32, 1024, 14, 14)
    shortcut = nn.Sequential(nn.Conv2d(1024, 2048, 1, 2, bias=False), nn.BatchNorm2d(2048))
    model = nn.Sequential(Bottleneck(1024, 512, 2, shortcut), Bottleneck(2048, 512)).eval()
    engine = build(model, shape, 0)
    model = model.cuda()
    for seed in range(5):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).cuda()
        with torch.no_grad():
            assert error(engine.run([x])[0], model(x)) < 2e-3


def test_a_loaded_engine_tunes_nothing(built) -> None:
    engine, model = built
    loaded = CudnnBackend().load(engine.serialize())
    assert loaded.tactics == engine.tactics
    agree(loaded, model, torch.randn(SHAPE).cuda())


def test_a_loaded_engine_compiles_nothing(built, monkeypatch) -> None:
    engine, model = built
    engine.run([torch.randn(SHAPE).cuda()])
    payload = engine.serialize()
    monkeypatch.setattr("tiacc.backends.cudnn.kernels.compiled", None)
    loaded = CudnnBackend().load(payload)
    for _ in range(3):
        agree(loaded, model, torch.randn(SHAPE).cuda())
    again = CudnnBackend().load(loaded.serialize())
    agree(again, model, torch.randn(SHAPE).cuda())
    assert loaded._binaries.kept
    assert again._binaries.kept == loaded._binaries.kept


def test_the_first_steps_are_launched_alone(built, monkeypatch) -> None:
    engine, model = built
    monkeypatch.setattr("tiacc.backends.cudnn.executable.LONG_BYTES", 0)
    monkeypatch.setattr("tiacc.backends.cudnn.executable.ENOUGH_BYTES", 1)
    loaded = CudnnBackend().load(engine.serialize())
    step = engine.program((SHAPE,)).steps[0]
    loaded.tactics[key_of(step)] = f"triton:{tiles.candidates(step)[0]}"
    for _ in range(4):
        agree(loaded, model, torch.randn(SHAPE).cuda())
    assert any(executable._first for executable in loaded._ready.values())


def test_triton_launches_where_the_driver_cannot(built, monkeypatch) -> None:
    engine, model = built
    monkeypatch.setattr("tiacc.backends.cudnn.driver.is_usable", lambda: False)
    loaded = CudnnBackend().load(engine.serialize())
    for _ in range(3):
        agree(loaded, model, torch.randn(SHAPE).cuda())


def test_outputs_of_calls_are_apart(built) -> None:
    engine, model = built
    inputs = [torch.randn(SHAPE).cuda() for _ in range(4)]
    results = [engine.run([x]) for x in inputs]
    assert len({output.data_ptr() for outputs in results for output in outputs}) == sum(map(len, results))
    with torch.no_grad():
        for x, outputs in zip(inputs, results):
            for got, wanted in zip(outputs, model(x), strict=True):
                assert error(got, wanted) < 5e-3


def test_outputs_that_are_large_are_made_when_they_are_needed(built, monkeypatch) -> None:
    engine, model = built
    monkeypatch.setattr("tiacc.backends.cudnn.call_graph.SPARE_BYTES", 0)
    loaded = CudnnBackend().load(engine.serialize())
    for _ in range(4):
        agree(loaded, model, torch.randn(SHAPE).cuda())


def test_a_thread_that_has_not_used_the_device(built) -> None:
    engine, model = built
    x = torch.randn(SHAPE).cuda()
    for _ in range(3):
        engine.run([x])
    found: list[list[torch.Tensor]] = []
    thread = threading.Thread(target=lambda: found.append(engine.run([x])))
    thread.start()
    thread.join()
    with torch.no_grad():
        for got, wanted in zip(found[0], model(x), strict=True):
            assert error(got, wanted) < 5e-3


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_inputs_on_a_device_that_is_not_the_current_one(built) -> None:
    engine, model = built
    x = torch.randn(SHAPE)
    with torch.no_grad():
        wanted = model(x.cuda())
    for _ in range(4):
        for got, one in zip(engine.run([x.to("cuda:1")]), wanted, strict=True):
            assert got.device.index == 1
            assert error(got.cpu(), one.cpu()) < 5e-3


def test_two_threads_on_two_streams(built) -> None:
    engine, model = built
    failures: list[Exception] = []

    def work(seed: int) -> None:
        try:
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                for index in range(20):
                    agree(engine, model, torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed + index)).cuda())
        except Exception as caught:  # noqa: BLE001 - handed to the test
            failures.append(caught)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (0, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_inside_a_graph_that_the_caller_records(built) -> None:
    engine, model = built
    x = torch.randn(SHAPE).cuda()
    engine.run([x])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = engine.run([x])
    x.copy_(torch.randn(SHAPE))
    graph.replay()
    with torch.no_grad():
        for got, wanted in zip(outputs, model(x), strict=True):
            assert error(got, wanted) < 5e-3


def test_inputs_of_any_strides(built) -> None:
    engine, model = built
    x = torch.randn(SHAPE).cuda()
    agree(engine, model, x.contiguous(memory_format=torch.channels_last))
    agree(engine, model, torch.randn(SHAPE[::-1]).cuda().permute(3, 2, 1, 0))
    agree(engine, model, torch.randn(1, *SHAPE[1:]).cuda().expand(SHAPE))


def test_memory_is_given_back(built) -> None:
    engine, _ = built
    payload = engine.serialize()
    x = torch.randn(SHAPE).cuda()
    free = []
    for _ in range(6):
        loaded = CudnnBackend().load(payload)
        for _ in range(3):
            loaded.run([x])
        del loaded
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free.append(torch.cuda.mem_get_info()[0])
    assert free[2] - free[-1] < 8 << 20


def test_memory_is_flat_over_2000_runs(built) -> None:
    engine, _ = built
    x = torch.randn(SHAPE).cuda()
    used = []
    for _ in range(4):
        for _ in range(500):
            engine.run([x])
        torch.cuda.synchronize()
        used.append((torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]))
    assert used[0][0] == used[-1][0]
    assert used[0][1] - used[-1][1] < 1 << 20


def test_recorded_products_have_scratch_memory_of_their_own() -> None:
    """torch keeps that of cuBLAS by stream: here first for graphs that are gone, then clears it, as `torch.compile` does."""
    a, b = torch.randn(64, 4096, device="cuda"), torch.randn(4096, 1000, device="cuda")
    out = torch.empty(64, 1000, device="cuda")

    def multiply() -> None:
        torch.mm(a, b, out=out)

    multiply()
    for _ in range(40):
        torch_compat.recorded(multiply, torch.cuda.Stream())
    graph = torch_compat.recorded(multiply, torch.cuda.Stream())
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    for _ in range(3):
        out.fill_(float("nan"))
        graph.replay()
        assert error(out, (a.double() @ b.double()).float()) < 1e-5


def test_tactics_that_are_kept_are_taken_as_they_are(tmp_path) -> None:
    torch.manual_seed(0)
    model = Everything().eval()
    first = build(model, SHAPE, 1, cache_dir=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tiacc.backends.cudnn.engine.choose", None)
        second = build(model, SHAPE, 1, cache_dir=tmp_path)
    assert second.tactics == first.tactics
    agree(second, model.cuda(), torch.randn(SHAPE).cuda())

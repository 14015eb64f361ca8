"""What tiacc adds: to the start of a program, to a call, to a graph of many nodes."""

from __future__ import annotations

import subprocess
import sys
import time

import torch
from torch import fx

from benchmarks.test_partitioner import chain
from tiacc import measure
from tiacc.backends.base import BuildSpec
from tiacc.backends.reference import ReferenceBackend
from tiacc.graph import exporter, specs
from tiacc.graph.types import TensorSpec
from tiacc.passes import pipelines
from tiacc.runtime import blob

aten = torch.ops.aten


def test_import(benchmark) -> None:
    """``import tiacc`` on top of ``import torch``, in a fresh process."""
    code = "import time, torch; begin = time.perf_counter(); import tiacc; print(time.perf_counter() - begin)"

    def run() -> float:
        return float(subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True).stdout)

    seconds = sorted(run() for _ in range(3))[1]
    benchmark.extra_info["import_ms"] = seconds * 1e3
    benchmark.pedantic(run, rounds=1)
    assert seconds < 0.3


def test_run_engine(benchmark) -> None:
    """A call of an engine through the operator, against the same function called from TorchScript."""
    spec = TensorSpec((1,), torch.float32)
    graph = fx.Graph()
    graph.output((graph.call_function(aten.relu.default, (graph.placeholder("x"),)),))
    gm = specs.propagate(fx.GraphModule(torch.nn.Module(), graph), [spec])
    engine = ReferenceBackend().build(gm, BuildSpec((spec,), (spec,), torch.device("cpu")))
    packed = blob.pack(
        engine.serialize(),
        backend="reference",
        backend_version="",
        device=torch.device("cpu"),
        inputs=(spec,),
        outputs=(spec,),
        profiles=(),
    )
    key, x, plain = blob.key_of(packed), torch.ones(1), exporter.to_function(gm)
    call = torch.ops.tiacc.run_engine.default
    through, direct = measure.latencies(
        [lambda: call([x], packed, "reference", key), lambda: plain(x)], torch.device("cpu"), seconds=2
    )
    benchmark.extra_info["overhead_us"] = (through.p50_ms - direct.p50_ms) * 1e3
    benchmark(call, [x], packed, "reference", key)


def test_passes_on_5000_nodes(benchmark) -> None:
    """All lossless passes on a graph of 5,000 nodes, types inferred before."""
    gm = specs.propagate(chain(5000), [TensorSpec((1,), torch.float32)])
    pipeline = pipelines.pipeline(0, torch.device("cpu"), None)
    begin = time.process_time()
    benchmark.pedantic(pipeline, (gm,), rounds=1)
    seconds = time.process_time() - begin
    benchmark.extra_info["cpu_seconds"] = seconds
    assert seconds < 3

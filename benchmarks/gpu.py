"""Whole models on a GPU: TorchScript, what its users could pick instead, and tiacc, timed in turn in one process.

``python -m benchmarks.gpu --commit $(git rev-parse --short HEAD)`` measures the cases below, or those named, as ``MODEL:BATCH:LEVELS``,
into ``benchmarks/results/gpu-DATE-COMMIT.json``, row by row, so that what was measured is kept if it is stopped; rows that the file has
are not measured again, and several processes, each on a GPU of its own, may share the file.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import fcntl
import gc
import io
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import tiacc
from benchmarks import models
from tiacc import environment, measure

OTHERS = ("mobilenet_v3_large", "efficientnet_b0", "vit_b_16", "convnext_tiny", "bert_base")

CASES = (
    *(f"resnet50:{batch}:01" for batch in (1, 16, 32, 64)),
    *(f"resnest50:{batch}:01" for batch in (1, 16, 32, 64)),
    *(f"centernet_resnet50:{batch}:01" for batch in (1, 2, 4, 8)),
    *(f"{name}:{batch}:1" for name in OTHERS for batch in (1, 32)),
)
"""What is measured; the first three models are the table of the accelerator that tiacc is a rebuild of."""

DEVICE = torch.device("cuda", 0)

HOST_ROUNDS, HOST_CALLS = 10, 50
"""How often the host is timed, and for how many calls each time: other programs of a machine can only make it slower, and the first calls
find its caches full of something else."""


def cuda_graph(call: Callable[[], Any]) -> Callable[[], None]:
    """Return the replay of a call, recorded after a warm-up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def compiled(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Callable[[], Any]:
    """Return a call of a model through `torch.compile`, with CUDA graphs and frozen weights."""
    import torch._inductor.config

    torch._inductor.config.freezing = True
    function = torch.compile(model, mode="reduce-overhead")
    for _ in range(3):
        function(*inputs)
    return lambda: function(*inputs)


def optimized(
    model: torch.jit.ScriptModule, level: int, inputs: tuple[torch.Tensor, ...], cache_dir: str | None
) -> tuple[torch.jit.ScriptModule, dict[str, Any]]:
    """Return the model that a load of the saved bytes gives, and what the report says of it."""
    begin = time.perf_counter()
    result, report = tiacc.optimize(model, level, 0, None, [inputs], timing_seconds=0.5, cache_dir=cache_dir, verbose=False)
    seconds = time.perf_counter() - begin
    buffer = io.BytesIO()
    torch.jit.save(result, buffer)
    buffer.seek(0)
    del result
    begin = time.perf_counter()
    loaded = torch.jit.load(buffer, map_location="cuda")
    with torch.no_grad():
        loaded(*inputs)
        torch.cuda.synchronize()
    return loaded, {
        "achieved_level": report.achieved_level,
        "segments": len(report.segments),
        "backends": sorted({row.backend for row in report.segments}),
        "optimize_seconds": round(seconds, 2),
        "build_seconds": round(sum(row.build_ms for row in report.segments) / 1e3, 2),
        "baseline_peak_bytes": report.baseline_peak_bytes,
        "optimized_peak_bytes": report.optimized_peak_bytes,
        "load_and_first_run_seconds": round(time.perf_counter() - begin, 2),
        "actions": report.actions,
        "warnings": report.warnings,
    }


def host_microseconds(call: Callable[[], Any], before: Callable[[], Any] = lambda: None) -> float:
    """Return the time that a call takes on the host, in microseconds: the least of several medians.

    The GPU has nothing else to do, and `before` is not timed.
    """

    def once() -> float:
        before()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        return (time.perf_counter() - begin) * 1e6

    return round(min(statistics.median(once() for _ in range(HOST_CALLS)) for _ in range(HOST_ROUNDS)), 1)


def python_loop() -> None:
    """Take a thousand steps in Python: its time says how fast the host is, which other programs make half as fast on the same core."""
    for _ in range(1000):
        pass


def flat(outputs: Any) -> list[torch.Tensor]:
    """Return the tensors of some outputs as float32."""
    return [output.float() for output in ([outputs] if isinstance(outputs, torch.Tensor) else list(outputs))]


def distance(outputs: list[torch.Tensor], reference: list[torch.Tensor]) -> float:
    """Return the largest relative error of an output."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(outputs, reference, strict=True))


def halved(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as half precision wants it: numbers in float16, images channels last."""
    half = tensor.half() if tensor.is_floating_point() else tensor
    return half.to(memory_format=torch.channels_last) if half.ndim == 4 else half


def measure_case(name: str, batch: int, levels: Sequence[int], cache_dir: str | None, seconds: float) -> dict[str, Any]:
    """Return one row: medians and 99th percentiles in milliseconds, errors relative to float32 without TensorFloat-32."""
    torch._dynamo.reset()
    model = models.make(name).to(DEVICE)
    inputs, fresh = (tuple(item.to(DEVICE) for item in models.inputs(name, batch, seed=seed)) for seed in (0, 1))
    scripted = models.trace(model, *inputs)
    torch.backends.cudnn.allow_tf32 = False
    reference = flat(model(*fresh))
    torch.backends.cudnn.allow_tf32 = True
    row: dict[str, Any] = {"model": name, "batch": batch, "size": models.ZOO[name].size}
    row["torchscript_relative_error"] = distance(flat(scripted(*fresh)), reference)
    calls: dict[str, Callable[[], Any]] = {"torchscript": lambda: scripted(*inputs)}
    frozen = torch.jit.freeze(scripted)
    calls["torchscript_frozen"] = lambda: frozen(*inputs)
    if 1 in levels:
        half = copy.deepcopy(model).half().to(memory_format=torch.channels_last)
        half_inputs = tuple(map(halved, inputs))
        calls["eager_fp16_graph"] = cuda_graph(lambda: half(*half_inputs))
        calls["compile_fp16"] = compiled(half, half_inputs)
    if 0 in levels:
        calls["compile_tf32"] = compiled(copy.deepcopy(model), inputs)
    for level in levels:
        loaded, told = optimized(scripted, level, inputs, cache_dir)
        row[f"level{level}"] = told
        # first by launches, then by the graph that is recorded
        told["relative_error"] = max(distance(flat(loaded(*fresh)), reference) for _ in range(3))
        calls[f"tiacc_level{level}"] = lambda loaded=loaded: loaded(*inputs)  # type: ignore[misc]
    for key, latency in zip(calls, measure.latencies(list(calls.values()), DEVICE, seconds=seconds)):
        row[key] = {"p50_ms": round(latency.p50_ms, 4), "p99_ms": round(latency.p99_ms, 4), "runs": latency.runs}
    for level in levels:
        row[f"level{level}"]["host_microseconds"] = host_microseconds(calls[f"tiacc_level{level}"])
    row["memory_allocated_mib"] = torch.cuda.max_memory_allocated() >> 20
    return row


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from a file."""
    with path.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def new_record(commit: str, note: str = "") -> dict[str, Any]:
    """Return a record of today without rows."""
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    software = {"Python": platform.python_version(), **{item.software: item.version for item in environment.software_environment()}}
    return {"commit": commit, "date": date, "device": torch.cuda.get_device_name(DEVICE), "software": software, "note": note, "rows": []}


def path_of(record: dict[str, Any], kind: str, folder: str | Path) -> Path:
    """Return the file of a record."""
    return Path(folder, f"{kind}-{record['date']}-{record['commit']}.json")


def write(record: dict[str, Any], path: Path) -> None:
    """Write a record into a file, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def stored(path: Path, new: dict[str, Any]) -> dict[str, Any]:
    """Return the record in a file, or a new one."""
    if path.exists():
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record
    return new


def main() -> None:
    """Measure the cases asked for and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=CASES, help="MODEL:BATCH:LEVELS; all of the table unless told")
    parser.add_argument("--seconds", type=float, default=3.0, help="the time to measure a case in")
    parser.add_argument("--commit", required=True)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"))
    parser.add_argument("--cache", help="a folder of tactics")
    parser.add_argument("--note", default="", help="what a reader of the figures should know of how they were measured")
    told = parser.parse_args()
    warnings.simplefilter("ignore")
    new = new_record(told.commit, told.note)
    path = path_of(new, "gpu", told.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {(row["model"], row["batch"]) for row in stored(path, new)["rows"]}
    for case in told.cases:
        name, batch, levels = case.split(":")
        if (name, int(batch)) in known:
            continue
        begin = time.perf_counter()
        torch.cuda.reset_peak_memory_stats()
        with torch.no_grad():
            row = measure_case(name, int(batch), list(map(int, levels)), told.cache, told.seconds)
        with locked(path):
            record = stored(path, new)
            record["rows"].append(row)
            write(record, path)
        times = " ".join(f"{key}={value['p50_ms']:.3f}" for key, value in row.items() if isinstance(value, dict) and "p50_ms" in value)
        errors = " ".join(
            f"L{level}: err {row[f'level{level}']['relative_error']:.1e} host {row[f'level{level}']['host_microseconds']:.0f} us "
            f"optimize {row[f'level{level}']['optimize_seconds']:.0f} s load {row[f'level{level}']['load_and_first_run_seconds']:.1f} s"
            for level in map(int, levels)
        )
        print(f"{name} b{batch} {times} {errors} [{time.perf_counter() - begin:.0f} s]", flush=True)
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

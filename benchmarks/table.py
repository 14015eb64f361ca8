"""``docs/performance.md`` from a file of results: ``python -m benchmarks.table benchmarks/results/FILE.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import models

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"

HEAD = """# Performance

Each figure on this page was written by `python -m benchmarks.table` from `benchmarks/results/{file}`, which `make bench` recorded.

- commit {commit}{dirty}, {date}
- CPU: {cpu}; {threads} threads; {bf16}
- torch {torch}, OpenVINO {openvino}

## Whole models on the CPU

Median milliseconds a call. The four are timed in turn in one process, so that what else the machine does weighs on all alike: read the
ratios. *TorchScript* is the traced input model as `optimize` was given it; *OpenVINO* is the same model converted and compiled with
OpenVINO directly, in float32. Errors are relative, of the whole output, of the model that a load of the saved file gives.

| model, input | batch | TorchScript | OpenVINO | level 0 | speed-up | of OpenVINO | error | level 1 | achieved level | error |
|---|---|---|---|---|---|---|---|---|---|---|
{rows}

{remark}

## What tiacc itself costs

| what | figure |
|---|---|
{costs}

## GPUs

Nothing on this page was measured on a GPU. TensorRT-RTX engines are built in the tests, and their networks evaluated by the reference
interpreter; they were not executed.
"""

NO_BF16 = (
    "This CPU does not compute in bfloat16. Asked for level 1, tiacc says so and gives level 0: the column *level 1* shows that, and no "
    "figure of half precision."
)


def write(path: Path) -> None:
    """Write the page from a file of results."""
    record = json.loads(path.read_text(encoding="utf-8"))
    figures = {entry["name"]: entry["figures"] for entry in record["benchmarks"]}
    latencies = [item for name, item in figures.items() if name.startswith("test_latency.py")]
    page = HEAD.format(
        file=path.name,
        commit=record["commit"],
        dirty=" with uncommitted changes" if record["has_uncommitted_changes"] else "",
        date=record["date"],
        cpu=record["cpu"],
        threads=record["threads"],
        bf16="computes in bfloat16" if record["cpu_has_bf16"] else "no bfloat16",
        torch=record["software"]["torch"],
        openvino=record["software"]["OpenVINO"],
        rows="\n".join(map(_row, latencies)),
        remark="" if record["cpu_has_bf16"] else NO_BF16,
        costs="\n".join(_costs(figures)),
    )
    PAGE.write_text(page, encoding="utf-8")


def _row(item: dict[str, Any]) -> str:
    entry = models.ZOO[item["model"]]
    cells = [
        f"{entry.title}, {entry.size}²",
        item["batch"],
        f"{item['torchscript_ms']:.1f}",
        f"{item['openvino_ms']:.1f}",
        f"{item['level0_ms']:.1f}",
        f"{item['torchscript_ms'] / item['level0_ms']:.2f}×",
        f"{item['level0_ms'] / item['openvino_ms']:.2f}",
        f"{item['level0_relative_error']:.1e}",
        f"{item['level1_ms']:.1f}",
        item["level1_achieved"],
        f"{item['level1_relative_error']:.1e}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _costs(figures: dict[str, dict[str, Any]]) -> list[str]:
    rows = []
    for name, item in figures.items():
        if "import_ms" in item:
            rows.append(f"| `import tiacc` on top of `import torch` | {item['import_ms']:.0f} ms |")
        if "overhead_us" in item:
            rows.append(f"| a call of an engine through `tiacc::run_engine`, over the call itself | {item['overhead_us']:.1f} µs |")
        if "cpu_seconds" in item:
            rows.append(f"| the lossless passes on a graph of 5,000 nodes | {item['cpu_seconds']:.2f} s of CPU time |")
        if "microseconds_per_node" in item:
            size = name.split("[")[1].rstrip("]")
            rows.append(f"| the partitioner, {int(size):,} nodes | {item['microseconds_per_node']:.1f} µs a node |")
    return rows


if __name__ == "__main__":
    write(Path(sys.argv[1]))

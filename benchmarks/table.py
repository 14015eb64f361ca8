"""``docs/performance.md`` from the files of results: ``python -m benchmarks.table [--print]``; the newest file of each CPU and GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import gpu_table, models

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
RESULTS = Path(__file__).parent / "results"

PAGE_TEXT = """# Performance

Each figure on this page was written by `python -m benchmarks.table` from a file in `benchmarks/results`: those of a CPU are recorded by
`make bench`, those of a GPU by `python -m benchmarks.gpu`.

## Whole models on CPUs

A file of `benchmarks/results` for each CPU. Median milliseconds a call. The four are timed in turn in one process, so that what else the
machine does weighs on all alike: read the ratios. *TorchScript* is the traced input model as `optimize` was given it; *OpenVINO* is the
same model converted and compiled with OpenVINO directly, in float32. *Limit* is the speed-up of a model that did all of its arithmetic in
float32 as fast as a 3x3 convolution of 512 channels at 28², timed among them: no way to call the same arithmetic is faster than that.
Errors are relative, of the whole output, of the model that a load of the saved file gives.

{cpus}

## What tiacc itself costs

From `{file}`.

| what | figure |
|---|---|
{costs}

## GPUs

{gpu}

No TensorRT engine was run for this page. TensorRT-RTX engines are built in the tests, and their networks evaluated by the reference
interpreter; they were not executed.
"""

CPU_TEXT = """### {cpu}

`{file}`: commit {commit}{dirty}, {date}; {threads} threads, {bf16}; torch {torch}, OpenVINO {openvino}{failed}

| model, input | batch | TorchScript | OpenVINO | level 0 | speed-up | limit | of OpenVINO | error | level 1 | speed-up | achieved | error |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
{rows}{remark}"""

FAILED = "\n\n**Not all benchmarks of this run passed**: a figure of it is beyond the limit that its benchmark holds it to, or is missing."

NO_BF16 = (
    "\n\nThis CPU does not compute in bfloat16. Asked for level 1, tiacc says so and gives level 0: the column *level 1* shows that, and "
    "no figure of half precision."
)


def recorded(kind: str) -> list[Path]:
    """Return the files of results of a kind, such as ``"cpu"``, by the date and then the time that they were recorded at."""
    return sorted(RESULTS.glob(f"{kind}-*.json"), key=lambda path: (load(path)["date"], load(path).get("time", "")))


def load(path: Path) -> dict[str, Any]:
    """Return the record in a file of results."""
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def write() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the page for the newest file of each CPU and GPU.

    Raises:
        SystemExit: There is none of a CPU.
    """
    newest = {load(path)["cpu"]: path for path in recorded("cpu")}
    if not newest:
        raise SystemExit("there are no results in benchmarks/results yet; `make bench` records them")
    last = recorded("cpu")[-1]
    return PAGE_TEXT.format(
        cpus="\n\n".join(_cpu(newest[name]) for name in sorted(newest)),
        file=last.name,
        costs="\n".join(_costs(_figures(load(last)))),
        gpu=gpu_table.sections(*(recorded(kind) for kind in ("gpu", "start", "steps"))),
    )


def _figures(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry["figures"] for entry in record["benchmarks"]}


def _cpu(path: Path) -> str:
    record = load(path)
    return CPU_TEXT.format(
        cpu=record["cpu"],
        file=path.name,
        commit=record["commit"],
        dirty=" with uncommitted changes" if record["has_uncommitted_changes"] else "",
        date=record["date"],
        threads=record["threads"],
        bf16="computes in bfloat16" if record["cpu_has_bf16"] else "no bfloat16",
        torch=record["software"]["torch"],
        openvino=record["software"]["OpenVINO"],
        failed="" if record["all_passed"] else FAILED,
        rows="\n".join(_row(item) for name, item in _figures(record).items() if name.startswith("test_latency.py")),
        remark="" if record["cpu_has_bf16"] else NO_BF16,
    )


def _row(item: dict[str, Any]) -> str:
    entry = models.ZOO[item["model"]]
    # Results of before the limit was measured have none.
    limit_ms = item["gflop"] * item["ceiling_ms"] / item["ceiling_gflop"] if "gflop" in item else None
    cells = [
        f"{entry.title}, {entry.size}²",
        item["batch"],
        f"{item['torchscript_ms']:.1f}",
        f"{item['openvino_ms']:.1f}",
        f"{item['level0_ms']:.1f}",
        f"{item['torchscript_ms'] / item['level0_ms']:.2f}×",
        "not measured" if limit_ms is None else f"{item['torchscript_ms'] / limit_ms:.2f}×",
        f"{item['level0_ms'] / item['openvino_ms']:.2f}",
        f"{item['level0_relative_error']:.1e}",
        f"{item['level1_ms']:.1f}",
        f"{item['torchscript_ms'] / item['level1_ms']:.2f}×",
        item["level1_achieved"],
        f"{item['level1_relative_error']:.1e}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _costs(figures: dict[str, dict[str, Any]]) -> list[str]:
    rows = []
    for item in figures.values():
        if "import_ms" in item:
            rows.append(f"| `import tiacc` on top of `import torch` | {item['import_ms']:.0f} ms |")
        if "overhead_us" in item:
            rows.append(f"| a call of an engine through `tiacc::run_engine`, over the call itself | {item['overhead_us']:.1f} µs |")
        if "cpu_seconds" in item:
            rows.append(f"| all passes of level {item['level']} on a graph of 5,000 nodes | {item['cpu_seconds']:.2f} s of CPU time |")
        if "explain_seconds" in item:
            what = f"`explain` of 20,000 operators, {item['kind']}, level {item['level']}"
            told = f"{item['explain_seconds']:.1f} s of CPU time; an operator costs {item['explain_ratio']:.2f}× one of 2,000"
            rows.append(f"| {what} | {told} |")
        if "manager_us_per_pass" in item:
            added = max(0.0, item["manager_us_per_pass"])
            rows.append(f"| running a pass without instruments, beside the pass itself | {added:.1f} µs a pass |")
        if "search_us_per_node" in item:
            small, large = (item["search_us_per_node"][size] for size in ("2000", "20000"))
            what = f"{item['rules']} rewrite rule{'s'[: item['rules'] != 1]}, a third of the nodes rewritten, 2,000 nodes and 20,000"
            rows.append(f"| {what} | {small:.0f} and {large:.0f} µs a node |")
        if "usable_ms" in item:
            told = f"{item['bytes'] / 1e3:,.0f} kB, usable in {item['usable_ms']:.0f} ms, all opened in {item['open_all_ms']:.0f} ms"
            rows.append(f"| the page of a report with {item['nodes']:,} nodes, in Chromium | {told} |")
        if "microseconds_per_node" in item:
            what = f"the partitioner, {item['nodes']:,} nodes, pattern *{item['pattern']}*"
            rows.append(f"| {what} | {item['microseconds_per_node']:.1f} µs a node, {item['segments']:,} segments |")
        if "ratio_per_node" in item:
            what = f"the partitioner, a node of 20,000 against one of 2,000, pattern *{item['pattern']}*"
            rows.append(f"| {what} | {item['ratio_per_node']:.2f}× |")
    return rows


def main(arguments: list[str]) -> None:
    """Write the page, or print it."""
    if "--print" in arguments:
        print(page(), end="")
    else:
        write()


if __name__ == "__main__":
    main(sys.argv[1:])

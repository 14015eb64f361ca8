"""The part of ``docs/performance.md`` on GPUs, and their pictures, from files that `benchmarks.gpu` wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import gpu_steps, models

PICTURES = Path(__file__).parent.parent / "docs" / "images"

NONE = "Nothing on this page was measured on a GPU."

HEAD = """Measured by `benchmarks/gpu.py`, a file of `benchmarks/results` for each GPU: the cuDNN backend. Median milliseconds a call
between CUDA events, the runners in turn in one process, two calls of each: the second counts, which follows one of its own as in use.
*TorchScript* is the traced input model with TensorFloat-32 where torch uses it, *frozen* the same after `torch.jit.freeze`. *eager* and
*compile* are in float16, in CUDA graphs, and are given their input in float16 and channels last; *compile* is
`torch.compile(mode="reduce-overhead")` with frozen weights. *tiacc* takes the user's float32 tensor and returns float32. The error is
relative to float32 without TensorFloat-32, of the model that a load of the saved file gives, on data that it was not tuned on. *host* is
the time that a call takes on the CPU, the launch of the graph included, when the GPU has nothing else to do; on a machine that others use
too it varies by a factor of two and more. *optimize* includes tuning; kernels that a row before it compiled, and tactics that were kept,
were not made again.

Only these rows were measured; other batches and other models were not."""

START = """### Until a model runs

Each in a process of its own, Triton's cache of kernels and the cache of tactics empty at first. *Built* is tuning and building of the
engine; *again* is the same in a second process, which finds the tactics and kernels of the first. *Loaded* is a load of the saved file
and its first call.

{tables}"""

START_TABLE = """`{file}`: commit {commit}, {date}, {device}

| model, input | batch | level | built | again | `optimize` | again | loaded | error of the first call |
|---|---|---|---|---|---|---|---|---|
{rows}"""

STEPS = """### Where the time goes

Steps of an engine timed alone, each in a CUDA graph that repeats it, beside the least that its bytes at the speed of a copy, or its
arithmetic at the speed of large products, would take. *All* is what the engine takes on the GPU, ways in and out included, of calls one
behind the other; a single call also waits until the host has launched it. The loop in Python says how fast the host
was then: about 11 µs on a core of its own, twice that, as for all that the host does, where another program has the same core.

{tables}

What was tried for the batches that are bound by the time of a kernel rather than by arithmetic, and stayed: a shortcut that changes the
channels as part of the sum that it is added to; asking for weights while a kernel waits; all outputs in one launch, and that in the graph;
the last convolutions of heads in one launch; the first steps launched beside the graph where they are long; more tiles, and tiles of fewer
stages for short sums. What was tried and did not: larger blocks of channels with more stages, eight warps for small tiles, other plans of
cuDNN behind the first two, kernels of ours for the large 3x3 convolutions, which cuDNN computes at the speed of its products; in 3x3
convolutions, taps as the inner loop, and reads of pixels through the cache of a multiprocessor."""

STEPS_TABLE = """`{file}`: commit {commit}, {date}, {device}

{title}, batch {batch}, level {level}: all {whole:.0f} µs, the steps alone {steps:.0f} µs, the least {least:.0f} µs; on the host a call of
the model takes {host:.0f} µs, of which the launch of the graph is {launch:.0f} µs, and a thousand steps of a loop in Python {loop:.0f} µs.

| steps | shape of the result | tactic | how many | each, µs | least, µs |
|---|---|---|---|---|---|
{rows}"""

MOST_STEPS = 12
"""So many kinds of steps are shown, those that take longest together."""


SECTION = """### {device}

`{file}`: commit {commit}, {date}; torch {torch}, cuDNN {cudnn}, Triton {triton}{note}

![How many times faster than TorchScript: eager float16, torch.compile and tiacc, by model and batch](images/{picture})

| model, input | batch | {columns} |
|---|---|{lines}|
{rows}
"""

LOSSLESS = """Level 0, with TensorFloat-32 where torch allows it to both; *compile* is in float32 too:

| model, input | batch | {columns} |
|---|---|{lines}|
{rows}
"""

COLUMNS = (
    *("TorchScript", "frozen", "eager", "compile", "tiacc level 1", "p99", "against TorchScript", "against compile"),
    *("error", "host", "`optimize`", "load, first run"),
)
LOSSLESS_COLUMNS = ("TorchScript", "compile", "tiacc level 0", "against TorchScript", "against compile", "error", "error of TorchScript")

BARS = (("eager_fp16_graph", "eager float16, CUDA graph", "#9aa5b1"), ("compile_fp16", "torch.compile float16", "#e0912f"))
OURS = ("tiacc_level1", "tiacc level 1", "#2f7d5b")


def sections(paths: Sequence[Path], starts: Sequence[Path] = (), steps: Sequence[Path] = ()) -> str:
    """Return the part of the page on GPUs, and write the pictures.

    Args:
        paths: The files of results, the oldest first; the newest of each GPU is shown.
        starts: Those of `benchmarks.gpu_start`, likewise.
        steps: Those of `benchmarks.gpu_steps`, likewise.
    """
    found = [_section(path, record).rstrip() for path, record in _newest(paths)]
    if not found:
        return NONE
    if starts:
        found.append(START.format(tables="\n\n".join(_start(path, record) for path, record in _newest(starts))))
    if steps:
        tables = (_steps(path, record, row) for path, record in _newest(steps) for row in record["rows"])
        found.append(STEPS.format(tables="\n\n".join(tables)))
    return "\n\n".join([HEAD, *found])


def _newest(paths: Sequence[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """Return the newest file of each GPU, and what is in it."""
    records = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    newest = {record["device"]: (path, record) for path, record in records}
    return [newest[device] for device in sorted(newest)]


def _start(path: Path, record: dict[str, Any]) -> str:
    lines = []
    for row in record["rows"]:
        cells = [_title(row), row["batch"], row["level"]]
        cells += [f"{row[stage][key]:.1f} s" for key in ("build_seconds", "optimize_seconds") for stage in ("cold", "kept")]
        cells += [f"{row['loaded']['load_and_first_run_seconds']:.1f} s", f"{row['loaded']['relative_error']:.1e}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return START_TABLE.format(
        file=path.name, commit=record["commit"], date=record["date"], device=record["device"], rows="\n".join(lines)
    )


def _steps(path: Path, record: dict[str, Any], row: dict[str, Any]) -> str:
    groups = gpu_steps.groups(row, record["device"])
    lines = []
    for group in groups[:MOST_STEPS]:
        each, least = (group[key] / group["count"] for key in ("microseconds", "floor"))
        cells = [group["title"], "x".join(map(str, group["shape"])), f"`{group['tactic']}`", group["count"], f"{each:.1f}", f"{least:.1f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return STEPS_TABLE.format(
        file=path.name,
        commit=record["commit"],
        date=record["date"],
        device=record["device"],
        title=_title(row),
        batch=row["batch"],
        level=row["level"],
        whole=row["whole_microseconds"],
        steps=sum(group["microseconds"] for group in groups),
        least=sum(group["floor"] for group in groups),
        host=row["host_microseconds"]["model"],
        launch=row["host_microseconds"]["launch"],
        loop=row["host_microseconds"]["python_loop"],
        rows="\n".join(lines),
    )


def _section(path: Path, record: dict[str, Any]) -> str:
    rows = sorted((row for row in record["rows"] if OURS[0] in row), key=_order)
    picture_name = f"gpu-{record['device'].split()[1].lower()}.svg"
    (PICTURES / picture_name).write_text(picture(rows, record["device"]), encoding="utf-8")
    software = record["software"]
    text = SECTION.format(
        file=path.name,
        commit=record["commit"],
        date=record["date"],
        device=record["device"],
        torch=software["torch"],
        cudnn=software["cuDNN"],
        triton=software["Triton"],
        note=f". {record['note']}" if record.get("note") else "",
        picture=picture_name,
        columns=" | ".join(COLUMNS),
        lines="|".join("---" for _ in COLUMNS),
        rows="\n".join(map(_line, rows)),
    )
    lossless = [row for row in rows if "level0" in row]
    if lossless:
        columns, lines = " | ".join(LOSSLESS_COLUMNS), "|".join("---" for _ in LOSSLESS_COLUMNS)
        text += "\n" + LOSSLESS.format(columns=columns, lines=lines, rows="\n".join(map(_lossless_line, lossless)))
    return text


def _lossless_line(row: dict[str, Any]) -> str:
    times = [row[key]["p50_ms"] for key in ("torchscript", "compile_tf32", "tiacc_level0")]
    ours = [f"{times[2]:.3f}", f"{times[0] / times[2]:.2f}×", f"{times[1] / times[2]:.2f}×"]
    errors = [f"{row['level0']['relative_error']:.1e}", f"{row['torchscript_relative_error']:.1e}"]
    cells = [_title(row), row["batch"], *(f"{time:.3f}" for time in times[:2]), *ours, *errors]
    return f"| {' | '.join(map(str, cells))} |"


def _order(row: dict[str, Any]) -> tuple[int, int]:
    return list(models.ZOO).index(row["model"]), row["batch"]


def _title(row: dict[str, Any]) -> str:
    entry = models.ZOO[row["model"]]
    return f"{entry.title}, {entry.size}{' words' if row['model'] == 'bert_base' else '²'}"


def _line(row: dict[str, Any]) -> str:
    told = row["level1"]
    times = [row[key]["p50_ms"] for key in ("torchscript", "torchscript_frozen", "eager_fp16_graph", "compile_fp16", "tiacc_level1")]
    cells = [
        _title(row),
        row["batch"],
        *(f"{time:.3f}" for time in times),
        f"{row['tiacc_level1']['p99_ms']:.3f}",
        f"{times[0] / times[-1]:.2f}×",
        f"{times[3] / times[-1]:.2f}×",
        f"{told['relative_error']:.1e}",
        f"{told['host_microseconds']:.0f} µs",
        f"{told['optimize_seconds']:.0f} s",
        f"{told['load_and_first_run_seconds']:.1f} s",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def picture(rows: list[dict[str, Any]], device: str) -> str:
    """Return bars of how many times faster than TorchScript each runner is, as SVG."""
    left, width, bar, gap = 190, 520, 11, 14
    bars = (*BARS, OURS)
    gains = [[row["torchscript"]["p50_ms"] / row[key]["p50_ms"] for key, *_ in bars] for row in rows]
    most = max(max(values) for values in gains)
    height = 54 + len(rows) * (len(bars) * bar + gap)
    parts = [f'<text x="{left}" y="18" font-weight="bold">times faster than TorchScript, {device}</text>']
    for place, (_, name, colour) in enumerate(bars):
        parts.append(f'<rect x="{left + 170 * place}" y="28" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{left + 170 * place + 15}" y="37">{name}</text>')
    y = 52
    for row, values in zip(rows, gains):
        parts.append(f'<text x="{left - 8}" y="{y + 2 * bar}" text-anchor="end">{_title(row)}, batch {row["batch"]}</text>')
        for value, (_, _, colour) in zip(values, bars):
            length = width * value / most
            parts.append(f'<rect x="{left}" y="{y}" width="{length:.0f}" height="{bar - 1}" fill="{colour}"/>')
            parts.append(f'<text x="{left + length + 4:.0f}" y="{y + bar - 2}">{value:.1f}</text>')
            y += bar
        y += gap
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 50} {height}" font-family="sans-serif" font-size="11">'
    ground = f'<rect width="{left + width + 50}" height="{height}" fill="#ffffff"/>'
    return "\n".join([head, ground, *parts, "</svg>"]) + "\n"

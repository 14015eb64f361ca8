"""The part of ``docs/performance.md`` on GPUs, and their pictures, from files that `benchmarks.gpu` wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import models

PICTURES = Path(__file__).parent.parent / "docs" / "images"

NONE = "Nothing on this page was measured on a GPU."

HEAD = """Measured by `benchmarks/gpu.py`, a file of `benchmarks/results` for each GPU: the cuDNN backend. Median milliseconds a call
between CUDA events, the runners in turn in one process. *TorchScript* is the traced input model with TensorFloat-32 where torch uses it,
*frozen* the same after `torch.jit.freeze`. *eager* and *compile* are in float16, in CUDA graphs, and are given their input in float16 and
channels last; *compile* is `torch.compile(mode="reduce-overhead")` with frozen weights. *tiacc* takes the user's float32 tensor and
returns float32. The error is relative to float32 without TensorFloat-32, of the model that a load of the saved file gives, on data that
it was not tuned on. *host* is the time that a call takes on the CPU, the launch of the graph included. *optimize* includes tuning;
kernels that a row before it compiled, and tactics that were kept, were not made again.

Only these rows were measured; other batches and other models were not."""

SECTION = """### {device}

`{file}`: commit {commit}, {date}; torch {torch}, cuDNN {cudnn}, Triton {triton}

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

WRONG = """Rows without times: the results of that commit were wrong by the error that is shown, and its accuracy guard did not see it: a
kernel of cuDNN did not wait for the one before it, in graphs alone. Both were mended since.
"""

COLUMNS = (
    *("TorchScript", "frozen", "eager", "compile", "tiacc level 1", "p99", "against TorchScript", "against compile"),
    *("error", "host", "`optimize`", "load, first run"),
)
LOSSLESS_COLUMNS = ("TorchScript", "compile", "tiacc level 0", "against TorchScript", "against compile", "error", "error of TorchScript")

LARGEST_ERROR = 5e-3
"""A model that is off by more is wrong, and how fast it is does not matter."""

BARS = (("eager_fp16_graph", "eager float16, CUDA graph", "#9aa5b1"), ("compile_fp16", "torch.compile float16", "#e0912f"))
OURS = ("tiacc_level1", "tiacc level 1", "#2f7d5b")


def sections(paths: Sequence[Path]) -> str:
    """Return the part of the page on GPUs, and write the pictures.

    Args:
        paths: The files of results, the oldest first; the newest of each GPU is shown.
    """
    records = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    newest = {record["device"]: (path, record) for path, record in records}
    if not newest:
        return NONE
    return "\n\n".join([HEAD, *(_section(*newest[device]).rstrip() for device in sorted(newest))])


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
        picture=picture_name,
        columns=" | ".join(COLUMNS),
        lines="|".join("---" for _ in COLUMNS),
        rows="\n".join(map(_line, rows)),
    )
    lossless = [row for row in rows if "level0" in row]
    if lossless:
        columns, lines = " | ".join(LOSSLESS_COLUMNS), "|".join("---" for _ in LOSSLESS_COLUMNS)
        text += "\n" + LOSSLESS.format(columns=columns, lines=lines, rows="\n".join(map(_lossless_line, lossless)))
    return text + ("\n" + WRONG if any(map(_is_wrong, lossless)) else "")


def _is_wrong(row: dict[str, Any]) -> bool:
    return bool(row["level0"]["relative_error"] > LARGEST_ERROR)


def _lossless_line(row: dict[str, Any]) -> str:
    times = [row[key]["p50_ms"] for key in ("torchscript", "compile_tf32", "tiacc_level0")]
    ours = ["–"] * 3 if _is_wrong(row) else [f"{times[2]:.3f}", f"{times[0] / times[2]:.2f}×", f"{times[1] / times[2]:.2f}×"]
    errors = [f"{row['level0']['relative_error']:.1e}", f"{row['torchscript_relative_error']:.1e}"]
    cells = [_title(row), row["batch"], *(f"{time:.3f}" for time in times[:2]), *ours, *errors]
    return f"| {' | '.join(map(str, cells))} |"


def _order(row: dict[str, Any]) -> tuple[int, int]:
    return list(models.ZOO).index(row["model"]), row["batch"]


def _title(row: dict[str, Any]) -> str:
    size = f"{row['size']} words" if row["model"] == "bert_base" else f"{row['size']}²"
    return f"{models.ZOO[row['model']].title}, {size}"


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

"""How a report looks: as text of at most `WIDTH` columns, and as a piece of HTML. Both are made from the same sections."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tiacc.report import FallbackRow, Latency, OptimizedReport

WIDTH = 100
"""The most columns of the text."""

Row = Sequence[str]


KEPT_SHOWN = 12
"""The most kinds of operators in float32 that the text names."""


def operators_text(count: int) -> str:
    """Return a number of operators as text."""
    return "1 operator" if count == 1 else f"{count:,} operators"


@dataclass(frozen=True)
class Section:
    """A part of the view: a table, or notes, or both.

    Attributes:
        title: In the first column of the header.
        header: The titles of the other columns.
        rows: The cells; the first column is text, the others are aligned to the right.
        notes: Sentences after the table.
    """

    title: str
    header: Row = ()
    rows: Sequence[Row] = ()
    notes: Sequence[str] = field(default=())


def as_text(report: OptimizedReport) -> str:
    """Return the report as plain text."""
    return render(sections(report))


def as_html(report: OptimizedReport) -> str:
    """Return the report as HTML tables, without style of their own."""
    return "<div>" + "".join(_section_html(section) for section in sections(report)) + "</div>"


def render(parts: Iterable[Section]) -> str:
    """Return sections as plain text of at most `WIDTH` columns."""
    return "\n\n".join("\n".join(_section_lines(section)) for section in parts)


def sections(report: OptimizedReport) -> list[Section]:
    """Return what there is to show, in order; sections without content are left out."""
    found = [
        _summary(report),
        Section("Latency", ("p50", "\N{PLUS-MINUS SIGN}", "p90", "p99", "mean", "calls/s", "runs"), [*_latency_rows(report)]),
        Section("GPU memory of a call", ("peak",), [*_memory_rows(report)]),
        _accuracy(report),
        _half_precision(report),
        Section("Done about it", notes=report.actions),
        Section("Passes", ("changes", "ms"), [*_pass_rows(report)]),
        Section("Segments", ("operators", "dtype", "build ms", "size", "in and out"), [*_segment_rows(report)]),
        Section(f"Left in Torch: {operators_text(len(report.fallbacks))}", notes=[*_fallback_notes(report.fallbacks)]),
        Section("Software", notes=[", ".join(f"{item.software} {item.version}" for item in report.software_environment)]),
        Section("Warnings", notes=report.warnings),
    ]
    return [section for section in found if section.rows or section.notes]


def _summary(report: OptimizedReport) -> Section:
    result, hardware, data = report.optimization_result, report.hardware_environment, report.test_data_info
    level = f"level {report.achieved_level}"
    if report.achieved_level != report.requested_level:
        level += f" (level {report.requested_level} was asked for)"
    gain = f"speed-up {result.speedup}" if report.speedup is not None else "speed not measured"
    took = "" if report.seconds is None else f", optimized in {report.seconds:.1f} s"
    return Section(
        f"tiacc {report.tiacc_version}".strip() + f": {gain} at {level}{took}",
        notes=[
            f"{hardware.device_type}: {hardware.microarchitecture}",
            f"test data, {data.test_data_source}: {data.test_data_shape} {data.test_data_type}",
        ],
    )


def _accuracy(report: OptimizedReport) -> Section:
    has_classes = any(error.top1 is not None for error in report.outputs)
    rows = []
    for e in report.outputs:
        cells = (e.name, f"{e.max_abs:.2e}", f"{e.max_rel:.2e}", f"{e.rel_norm:.2e}", f"{e.cosine:.8f}")
        rows.append((*cells, "" if e.top1 is None else f"{e.top1:.1%}") if has_classes else cells)
    notes = []
    if report.accuracy_check is not None:
        notes.append(f"your accuracy_check: {report.accuracy_check:.3g}, accepted up to {report.tolerance:.0e}")
    elif report.tolerance is not None and report.outputs:
        notes.append(f"accepted: a rel norm of {report.tolerance:.0e}")
    return Section("Accuracy", ("max abs", "max rel", "rel norm", "cosine", *(("top 1",) if has_classes else ())), rows, notes)


def _half_precision(report: OptimizedReport) -> Section:
    """Return how much computes in half precision, what does not and why, and what a repair found."""
    precision = report.precision
    if precision is None:
        return Section("Half precision")
    notes = [precision.share]
    if precision.error_before is not None and precision.error_after is not None:
        notes.append(f"the repair brought the error of the outputs from {precision.error_before:.2g} to {precision.error_after:.2g}")
    notes.extend(precision.reasons[:KEPT_SHOWN])
    if len(precision.reasons) > KEPT_SHOWN:
        notes.append(f"and {len(precision.reasons) - KEPT_SHOWN} more kinds of operators in float32: see the report as JSON")
    return Section(f"Half precision: {precision.half_dtype}", notes=notes)


def _latency_rows(report: OptimizedReport) -> Iterator[Row]:
    for name, latency in (("input model", report.baseline_latency), ("optimized", report.optimized_latency)):
        if latency is not None:
            yield (name, *_latency_cells(latency))


def _latency_cells(latency: Latency) -> Row:
    median, *others = (f"{time:.3f} ms" for time in (latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.mean_ms))
    return (median, f"{latency.doubt:.1%}", *others, f"{latency.qps:,.2f}", str(latency.runs))


def _memory_rows(report: OptimizedReport) -> Iterator[Row]:
    for name, size in (("input model", report.baseline_peak_bytes), ("optimized", report.optimized_peak_bytes)):
        if size is not None:
            yield (name, f"{size / 1e6:,.1f} MB")


def _pass_rows(report: OptimizedReport) -> Iterator[Row]:
    """Yield a row a pass, summed over the regions, in the order of the first runs."""
    for name in dict.fromkeys(row.name for row in report.passes):
        rows = [row for row in report.passes if row.name == name]
        yield name, str(sum(row.changes for row in rows)), f"{sum(row.ms for row in rows):.1f}"


def _segment_rows(report: OptimizedReport) -> Iterator[Row]:
    several = len({segment.region for segment in report.segments}) > 1
    for segment in report.segments:
        name = f"{segment.region}.{segment.index}" if several else str(segment.index)
        size = f"{segment.size_bytes / 1e6:,.1f} MB"
        border = f"{segment.border_bytes / 1e6:,.1f} MB"
        yield f"{name} {segment.backend}", str(segment.nodes), segment.dtype, f"{segment.build_ms:,.0f}", size, border


def _fallback_notes(fallbacks: Iterable[FallbackRow]) -> Iterator[str]:
    """Yield a note for each operator and set of reasons, the most frequent first, with the first source lines."""
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[FallbackRow]] = {}
    for row in fallbacks:
        groups.setdefault((row.op, tuple(row.reasons.items())), []).append(row)
    for (op, reasons), rows in sorted(groups.items(), key=lambda item: -len(item[1])):
        sources = [*dict.fromkeys(row.source for row in rows if row.source)]
        where = f" (at {', '.join(sources[:3])}{', ...' if len(sources) > 3 else ''})" if sources else ""
        why = "; ".join(f"{backend}: {reason}" for backend, reason in reasons) or "not offered to a backend"
        yield f"{len(rows)} \N{MULTIPLICATION SIGN} {op}: {why}{where}"


def _section_lines(section: Section) -> Iterator[str]:
    table = [(section.title, *section.header), *section.rows]
    others = [max(len(row[column]) for row in table) for column in range(1, 1 + len(section.header))]
    room = WIDTH - sum(others) - 2 * len(others) - 2
    names = [_shortened(row[0], room) for row in section.rows]
    first = min(max([len(section.title) - 2, *map(len, names)]), room) if section.rows else 0
    yield _line(section.title, first + 2, section.header, others) if section.rows else _shortened(section.title, WIDTH)
    for name, row in zip(names, section.rows):
        yield _line(f"  {name}", first + 2, row[1:], others)
    for note in section.notes:
        yield from textwrap.wrap(note, WIDTH, initial_indent="  ", subsequent_indent="    ")


def _line(name: str, width: int, cells: Row, widths: Sequence[int]) -> str:
    return name.ljust(width) + "".join(f"  {cell:>{wide}}" for cell, wide in zip(cells, widths))


def _shortened(text: str, width: int) -> str:
    """Return `text` with its middle left out where it is wider than `width`."""
    if len(text) <= width:
        return text
    half = (width - 3) // 2
    return f"{text[: width - 3 - half]}...{text[len(text) - half :]}"


def _section_html(section: Section) -> str:
    parts = [f"<h4>{html.escape(section.title)}</h4>"]
    if section.rows:
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in ("", *section.header))
        body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in section.rows)
        parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    if section.notes:
        parts.append(f"<ul>{''.join(f'<li>{html.escape(note)}</li>' for note in section.notes)}</ul>")
    return "".join(parts)

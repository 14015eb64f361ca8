"""Run the benchmarks and keep their figures: ``python -m benchmarks.record [pytest arguments]``.

Writes ``benchmarks/results/cpu-DATE-COMMIT.json`` with the environment the figures come from, and the tables of ``docs/performance.md``.
"""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks import table
from benchmarks.test_latency import THREADS
from tiacc import environment

HERE = Path(__file__).parent

FLAGS = ("avx", "amx", "fma", "sse4", "f16c", "asimd", "sve", "bf16", "i8mm")
"""How the names of the instruction sets begin that matter to inference; the others are not recorded."""


def git(*args: str) -> str:
    """Return what git prints, without the line end."""
    return subprocess.run(["git", *args], cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()


def condensed(raw: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what is kept of each benchmark: name, figures, statistics; not every single time, and nothing of the machine's names."""
    kept = []
    for entry in raw["benchmarks"]:
        stats = {name: entry["stats"][name] for name in ("min", "median", "mean", "stddev", "rounds")}
        kept.append({"name": entry["fullname"].removeprefix("benchmarks/"), "seconds": stats, "figures": entry["extra_info"]})
    return kept


def main(arguments: list[str]) -> int:
    """Run, write, and return pytest's exit code."""
    is_dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
    with tempfile.TemporaryDirectory() as directory:
        raw_path = Path(directory, "raw.json")
        code = int(pytest.main(["-q", "-p", "no:cacheprovider", str(HERE), f"--benchmark-json={raw_path}", *arguments]))
        if not raw_path.exists() or not raw_path.stat().st_size:
            print("no benchmark ran; nothing is recorded")
            return code
        raw = json.loads(raw_path.read_text(encoding="utf-8"))
    software = {item.software: item.version for item in environment.software_environment()}
    hardware = environment.hardware_environment("cpu")
    now = datetime.datetime.now(datetime.timezone.utc)
    commit, date = git("rev-parse", "--short", "HEAD"), now.date().isoformat()
    record = {
        "commit": commit,
        "has_uncommitted_changes": is_dirty,
        "date": date,
        "time": now.time().isoformat("seconds"),
        "cpu": hardware.microarchitecture,
        "cpu_has_bf16": environment.cpu_has_bf16(),
        "cpu_flags": sorted(flag for flag in environment.cpu_flags() if flag.startswith(FLAGS)),
        "threads": THREADS,
        "software": {"Python": platform.python_version(), **software},
        "all_passed": code == 0,
        "benchmarks": condensed(raw),
    }
    path = HERE / "results" / f"cpu-{date}-{commit}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    table.write()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

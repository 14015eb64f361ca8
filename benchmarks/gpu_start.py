"""How long it takes until an optimized model runs on a GPU: built from nothing, built again with the tactics that were kept, and loaded.

``python -m benchmarks.gpu_start --commit $(git rev-parse --short HEAD) resnet50:1`` measures each in a process of its own, with a tactic
cache and a kernel cache that are empty at first, into ``benchmarks/results/start-DATE-COMMIT.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

import tiacc
from benchmarks import models
from benchmarks.gpu import DEVICE, distance, flat, new_record, path_of, write


def built(name: str, batch: int, level: int, folder: Path) -> dict[str, float]:
    """Optimize a model and save it; return the seconds of the whole, and of its engine's tuning and building."""
    model = models.make(name).to(DEVICE)
    inputs = tuple(item.to(DEVICE) for item in models.inputs(name, batch))
    scripted = models.trace(model, *inputs)
    begin = time.perf_counter()
    _, report = tiacc.optimize(
        scripted, level, 0, None, [inputs], str(folder / "model.pt"), cache_dir=str(folder / "tactics"), verbose=False
    )
    seconds = time.perf_counter() - begin
    return {"optimize_seconds": seconds, "build_seconds": sum(row.build_ms for row in report.segments) / 1e3}


def loaded(name: str, batch: int, level: int, folder: Path) -> dict[str, float]:
    """Load the file that `built` wrote and run it once; return the seconds of that, and the error of the first result."""
    inputs = tuple(item.to(DEVICE) for item in models.inputs(name, batch, seed=1))
    torch.zeros(1, device=DEVICE) + 1  # what torch itself does before the first kernel
    torch.cuda.synchronize()
    begin = time.perf_counter()
    with torch.no_grad():
        outputs = torch.jit.load(str(folder / "model.pt"), map_location="cuda")(*inputs)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        torch.backends.cudnn.allow_tf32 = False
        reference = flat(models.make(name).to(DEVICE)(*inputs))
    return {"load_and_first_run_seconds": seconds, "relative_error": distance(flat(outputs), reference)}


STAGES = {"cold": built, "kept": built, "loaded": loaded}
"""What is measured, in order, each in a process of its own."""


def measured(case: str, folder: Path) -> dict[str, Any]:
    """Return the row of a case."""
    name, batch, level = case.split(":")
    row: dict[str, Any] = {"model": name, "batch": int(batch), "level": int(level)}
    for stage in STAGES:
        # Triton's own cache begins empty as well
        environment = {**os.environ, "TRITON_CACHE_DIR": str(folder / "kernels")}
        command = [sys.executable, "-m", "benchmarks.gpu_start", "--commit", "-", "--stage", stage, "--folder", str(folder), case]
        text = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        row[stage] = json.loads(text.splitlines()[-1])
    return row


def main() -> None:
    """Measure the cases asked for and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="+", help="MODEL:BATCH:LEVEL")
    parser.add_argument("--commit", required=True)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"))
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args()
    warnings.simplefilter("ignore")
    if told.stage:
        name, batch, level = told.cases[0].split(":")
        found = STAGES[told.stage](name, int(batch), int(level), told.folder)
        print(json.dumps({key: float(f"{value:.3g}") for key, value in found.items()}))
        return
    record = new_record(told.commit)
    for case in told.cases:
        with tempfile.TemporaryDirectory() as folder:
            record["rows"].append(measured(case, Path(folder)))
        print(record["rows"][-1], flush=True)
        write(record, path_of(record, "start", told.out))


if __name__ == "__main__":
    main()

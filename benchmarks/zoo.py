"""Many models through import, passes, partition, OpenVINO and export: ``python -m benchmarks.zoo [--only TEXT] [--seconds N] [--again]``.

Each model has random weights and a small input, is optimized at level 0 for the CPU, saved, loaded, compared with the original and timed
against it for a moment, in a process of its own. What comes of it goes into ``benchmarks/results/zoo.json`` after each model, so that a
run that was stopped is taken up where it ended, and from there into ``docs/zoo.md``. The models are those of `benchmarks.zoo_models`.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import sys
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.zoo_models import Make, all_models
from tiacc import environment, measure, models
from tiacc.backends.openvino import OpenVINOBackend
from tiacc.compiler import Plan, Proposal, build, propose
from tiacc.graph import specs
from tiacc.graph.types import Dim
from tiacc.options import Options
from tiacc.planning import plan_of
from tiacc.runtime import stitch
from tiacc.samples import resolve_inputs

CPU = torch.device("cpu")
RESULTS = Path(__file__).parent / "results" / "zoo.json"
PAGE = Path(__file__).parent.parent / "docs" / "zoo.md"
TOLERANCE = 1e-3
"""The largest relative error of an output, ``‖optimized - original‖ / ‖original‖``, that counts as right."""

KINDS = ("torchvision/", "timm/", "transformers/", "nn/")

SECONDS_FOR_TIMING = 0.3
"""For how long a model and its original are timed in turn: enough for a rough speed-up."""


def prepare(make: Make) -> tuple[nn.Module, tuple[Any, ...]]:
    """Return a model with statistics and weights that are not those of an initialiser, which would hide errors."""
    torch.manual_seed(0)
    model, data = make()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_floating_point() and not parameter.any():
                nn.init.normal_(parameter, 0, 0.02)
            elif name == "weight" and bool((parameter == 1).all()):
                nn.init.uniform_(parameter, 0.5, 1.5)
    calibrate(model.eval(), data)
    return model, data


def calibrate(model: nn.Module, data: tuple[Any, ...]) -> None:
    """Give the normalisations that know nothing yet statistics of the size of what they get.

    With smaller ones activations grow from layer to layer until gates are open or shut, and the last digits decide which. With the
    mean of each channel, what the channels have in common is gone, and the rest is small beside what rounding does to it.
    """

    def learn(norm: nn.modules.batchnorm._BatchNorm, inputs: tuple[torch.Tensor, ...]) -> None:
        scale = inputs[0].square().mean().clamp(min=1.0)
        norm.running_mean.uniform_(-0.1, 0.1).mul_(scale.sqrt())
        norm.running_var.uniform_(0.5, 1.5).mul_(scale)

    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    fresh = [norm for norm in norms if norm.running_mean is not None and not norm.running_mean.any()]
    hooks = [norm.register_forward_pre_hook(learn) for norm in fresh]
    if hooks:
        with torch.no_grad():
            model(*models.cloned(data))
    for hook in hooks:
        hook.remove()


def to_torchscript(model: nn.Module, data: tuple[Any, ...]) -> tuple[torch.jit.ScriptModule, str]:
    if not isinstance(data[0], list):
        try:
            return torch.jit.trace(model, data, check_trace=False), "traced"
        except Exception:  # noqa: BLE001 - whatever stands in the way of tracing, scripting may do
            pass
    return torch.jit.script(model), "scripted"


def plan_for(module: torch.jit.ScriptModule, data: tuple[Any, ...]) -> Plan:
    return plan_of(module, resolve_inputs(test_data=[data]), 0, CPU, Options(), (OpenVINOBackend(),))


def run(make: Make) -> dict[str, Any]:
    """Optimize one model and compare; what raises is told, with where."""
    begin = time.perf_counter()
    row: dict[str, Any] = {}
    step = "make the model"
    try:
        model, data = prepare(make)
        step = "run the model"
        with torch.no_grad():
            wanted = model(*models.cloned(data))
        step = "trace or script the model"
        module, row["how"] = to_torchscript(model, data)
        with torch.no_grad():
            wanted = module(*models.cloned(data))
        step = "optimize"
        plan = plan_for(module, data)
        proposal = propose(module, plan)
        buffer = io.BytesIO()
        compiled = build(proposal, plan)
        torch.jit.save(compiled.module, buffer)
        buffer.seek(0)
        row.update(coverage(proposal, model, data), segments=len(compiled.segments))
        step = "run the optimized model"
        optimized = torch.jit.load(buffer)
        with torch.no_grad():
            found = optimized(*models.cloned(data))
        row["error"] = measure.largest(measure.compare(wanted, found))
        if isinstance(data[0], list):  # boxes of about equal scores come in another order
            row["error"], row["boxes_found"] = matched(wanted[1][0], found[1][0])
            if row["boxes_found"] < 1:
                row["boxes_found_an_ulp_off"] = found_an_ulp_off(model, data, wanted[1][0])
        step = "time the optimized model"
        row["speed_up"] = speed_up(module, optimized, data)
    except Exception as error:  # noqa: BLE001 - a row of the table says so
        row["failure"] = f"{step}: {models.reason_of(error)}"[:300]
    row["seconds"] = round(time.perf_counter() - begin, 1)
    return row


def speed_up(module: torch.jit.ScriptModule, optimized: torch.jit.ScriptModule, data: tuple[Any, ...]) -> float:
    """Return how many times as fast the optimized model is, roughly."""
    with torch.no_grad():
        calls = [lambda item=item: item(*models.cloned(data)) for item in (module, optimized)]
        before, after = measure.latencies(calls, CPU, SECONDS_FOR_TIMING)
    return round(before.p50_ms / after.p50_ms, 2)


def run_apart(make: Make, limit: float) -> dict[str, Any]:
    """Run one model in a copy of this process, which ends with it or after `limit` seconds."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(there, make))
    process.start()
    there.close()
    try:
        return here.recv() if here.poll(limit) else {"failure": f"not done after {limit:g} s"}  # type: ignore[no-any-return]
    except EOFError:
        process.join()
        return {"failure": f"its process ended with code {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _send(there: Connection, make: Make) -> None:
    there.send(run(make))


def settings() -> str:
    """Return what a row was measured with; it is measured again with anything else."""
    threads = torch.get_num_threads()
    return f"torch {torch.__version__}, OpenVINO {_version()}, {threads} thread{'s' if threads > 1 else ''}"


def matched(wanted: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Return how far boxes and scores are from the nearest found ones of their label, where these are near; and the share that is."""
    if not len(wanted["boxes"]) or not len(found["boxes"]):
        return 0.0, float(len(wanted["boxes"]) == len(found["boxes"]))
    distances = torch.cdist(wanted["boxes"], found["boxes"]) / 100 + (wanted["scores"][:, None] - found["scores"]).abs()
    distances = distances + (wanted["labels"][:, None] != found["labels"]) * 1e3
    nearest = distances.min(1).values
    near = nearest < TOLERANCE
    return float(nearest[near].max()) if near.any() else float("inf"), round(float(near.double().mean()), 4)


def found_an_ulp_off(model: nn.Module, data: tuple[Any, ...], wanted: dict[str, torch.Tensor]) -> float:
    """Return what share of the boxes the model itself finds when its weights are about an ulp off, which they are afterwards."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 1e-7 * torch.randn_like(parameter))
        return matched(wanted, torch.jit.script(model)(*models.cloned(data))[1][0])[1]


def coverage(proposal: Proposal, model: nn.Module, data: tuple[Any, ...]) -> dict[str, Any]:
    """Return how many operators, and what part of the FLOPs of the model, are in segments."""
    inside = flops = 0
    left = sum(item.op.startswith("aten::") for item in proposal.imported.left)
    operators = left
    for item in proposal.regions:
        operators += sum(node.op == "call_function" and not specs.is_scalar(node) for node in item.graph.graph.nodes)
        for segment, sub in zip(item.partition.segments, stitch.extract(item.graph, item.partition)):
            inside += len(segment.nodes)
            flops += _flops_of(sub.graph)
    model.requires_grad_(False)  # the counter wants a gradient of parameters that modules take as arguments
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*models.cloned(data))
    total = counter.get_total_flops()
    return {"operators": operators, "in_segments": inside, "flops": round(min(flops / total, 1), 4) if total else None}


def _flops_of(gm: fx.GraphModule) -> int:
    """Count the FLOPs of a subgraph at the usual sizes of its inputs."""
    inputs = []
    for node in gm.graph.find_nodes(op="placeholder"):
        spec = specs.spec_of(specs.tensor_of(node))
        inputs.append(torch.ones([size.opt if isinstance(size, Dim) else size for size in spec.shape], dtype=spec.dtype))
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            gm(*inputs)
    except Exception:  # noqa: BLE001 - made-up inputs, such as indices, may be none that it takes: then nothing is counted
        return 0
    return int(counter.get_total_flops())


def is_right(row: dict[str, Any]) -> bool:
    return "failure" not in row and bool(row["error"] <= TOLERANCE) and row.get("boxes_found", 1.0) > 0.99


def write_page(rows: dict[str, dict[str, Any]]) -> None:
    ran = [row for row in rows.values() if "failure" not in row]
    right = sum(map(is_right, ran))
    measured = " and ".join(sorted({row["settings"] for row in rows.values()}))
    segments = [row["segments"] for row in ran]
    whole, many = segments.count(1), sum(count > 8 for count in segments)
    lines = [
        "# Models that were tried",
        "",
        f"Written by `make zoo` from `benchmarks/results/{RESULTS.name}`: {len(rows)} of the {len(all_models())} models that the sweep "
        "knows, with random weights and small inputs, optimized losslessly for the CPU, saved, loaded and compared with the "
        f"original ({measured}).",
        "",
        f"* {len(ran)} came back, {right} of them with a relative error of {TOLERANCE:g} at most (and 99 % of the boxes, for those that "
        f"detect); {len(rows) - len(ran)} did not, with the reason in the last column.",
        f"* {whole} models are one engine, {many} are more than eight. FLOPs are counted in matrix products and convolutions; models "
        "without any, and quantised ones, have no share. What a pass has computed ahead counts as outside.",
        "* Speed-ups over TorchScript are rough: each model was timed for less than a second, at a small input, beside other work. What is "
        "slower than the original here would not be returned by `tiacc.optimize`.",
        "",
        "| of | models | came back right | FLOPs in engines, median | speed-up, median, roughly |",
        "|---|---|---|---|---|",
        *(_summary(kind, [row for name, row in rows.items() if name.startswith(kind)]) for kind in KINDS),
        "",
        "| model | how | operators | in engines | engines | FLOPs in engines | relative error | speed-up, roughly |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in sorted(rows.items()):
        if "failure" in row:
            lines.append(f"| {name} | {row.get('how', '')} | | | | | {row['failure'].replace('|', '/')} | |")
            continue
        share = "" if row["flops"] is None else f"{100 * row['flops']:.1f} %"
        if "boxes_found" in row:
            share += f"; {100 * row['boxes_found']:.0f} % of the boxes found"
        if "boxes_found_an_ulp_off" in row:
            share += f", {100 * row['boxes_found_an_ulp_off']:.0f} % by the original with weights an ulp off"
        figures = f"{row['operators']} | {row['in_segments']} | {row['segments']} | {share} | {row['error']:.1e} | {row['speed_up']:.2f}"
        lines.append(f"| {name} | {row['how']} | {figures} |")
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _summary(kind: str, rows: list[dict[str, Any]]) -> str:
    ran = [row for row in rows if "failure" not in row]
    shares = [row["flops"] for row in ran if row["flops"] is not None]
    figures = f"{100 * median(shares):.1f} % | {median(row['speed_up'] for row in ran):.2f}" if shares else " | "
    return f"| {kind[:-1]} | {len(rows)} | {sum(map(is_right, rows))} | {figures} |"


def _version() -> str:
    return next((item.version for item in environment.software_environment() if item.software.lower() == "openvino"), "")


def main() -> int:
    """Run the models that have no row of these settings yet, write rows and page; other rows stay until their models are run again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="models with this in their names")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no model after so many")
    parser.add_argument("--limit", type=float, default=240, help="the seconds that one model may take")
    parser.add_argument("--again", action="store_true", help="also those that have a row")
    parser.add_argument("--failed", action="store_true", help="also those whose row says that they failed or are wrong")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    makers = all_models()
    measured = settings()
    rows = {name: row for name, row in rows.items() if name in makers}
    begin = time.perf_counter()
    for name, make in makers.items():
        is_known = name in rows and rows[name]["settings"] == measured
        is_done = is_known and not options.again and (not options.failed or is_right(rows[name]))
        if options.only not in name or is_done:
            continue
        if time.perf_counter() - begin > options.seconds:
            break
        rows[name] = {**run_apart(make, options.limit), "settings": measured}
        print(name, {key: value for key, value in rows[name].items() if key not in ("how", "settings")}, flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n", encoding="utf-8")
    if any("failure" not in row for row in rows.values()):
        write_page(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

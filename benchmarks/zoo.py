"""Many models through import, passes, partition, OpenVINO and export: ``python -m benchmarks.zoo [--only TEXT] [--seconds N] [--again]``.

Each model has random weights and a small input, is optimized at level 0 for the CPU, saved, loaded, and compared with the original;
nothing is timed. What comes of it goes into ``benchmarks/results/zoo.json`` after each model, so that a run that was stopped is taken up
where it ended, and from there into ``docs/zoo.md``.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from tiacc import environment, measure, models
from tiacc.backends.openvino import OpenVINOBackend
from tiacc.compiler import Plan, Proposal, build, propose
from tiacc.graph import specs
from tiacc.graph.types import Dim, TensorSpec
from tiacc.passes.pipelines import pipeline
from tiacc.runtime import stitch

CPU = torch.device("cpu")
RESULTS = Path(__file__).parent / "results" / "zoo.json"
PAGE = Path(__file__).parent.parent / "docs" / "zoo.md"
TOLERANCE = 1e-3
"""The largest relative error of an output, ``‖optimized - original‖ / ‖original‖``, that counts as right."""

Make = Callable[[], tuple[nn.Module, tuple[Any, ...]]]

FIXED_224 = ("vit_", "swin", "maxvit")
"""What the names of the models begin with that take images of 224 x 224 alone."""


def image(size: int, *leading: int) -> torch.Tensor:
    return torch.rand(*leading, size, size, generator=torch.Generator().manual_seed(1))


def torchvision_models() -> Iterator[tuple[str, Make]]:
    import torchvision

    zoo = torchvision.models
    for name in zoo.list_models(module=zoo):
        size = 224 if name.startswith(FIXED_224) else 96 if name.startswith("inception") else 64
        yield f"torchvision/{name}", lambda name=name, size=size: (zoo.get_model(name, weights=None), (image(size, 1, 3),))
    for name in zoo.list_models(module=zoo.segmentation):
        options = {"weights": None, "weights_backbone": None}
        yield f"torchvision/{name}", lambda name=name, options=options: (zoo.get_model(name, **options), (image(64, 1, 3),))
    for name in zoo.list_models(module=zoo.video):
        frames, size = (16, 224) if name.startswith(("mvit", "swin")) else (8, 64)
        data = lambda frames=frames, size=size: (image(size, 1, 3, frames),)  # noqa: E731
        yield f"torchvision/{name}", lambda name=name, data=data: (zoo.get_model(name, weights=None), data())
    for name in zoo.list_models(module=zoo.detection):
        options = {"weights": None, "weights_backbone": None, **({} if "ssd" in name else {"min_size": 96, "max_size": 128})}
        options |= {"box_score_thresh": 0.0} if "rcnn" in name else {}
        yield f"torchvision/{name}", lambda name=name, options=options: (zoo.get_model(name, **options), ([image(96, 3)],))
    for name in zoo.list_models(module=zoo.optical_flow):
        yield f"torchvision/{name}", lambda name=name: (zoo.get_model(name, weights=None), (image(128, 1, 3), image(128, 1, 3)))


def timm_models() -> Iterator[tuple[str, Make]]:
    """The smallest-named model of each of timm's families."""
    import timm

    for module in timm.list_modules():
        names = timm.list_models(module=module)
        if names:
            name = min(names, key=lambda name: (len(name), name))
            yield f"timm/{name}", lambda name=name: _timm(name)


def _timm(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    import timm

    model = timm.create_model(name, pretrained=False)
    needs_own_size = model.pretrained_cfg.get("fixed_input_size", False) or name.startswith(("inception", "halonet"))
    return model, (image(model.pretrained_cfg["input_size"][-1] if needs_own_size else 64, 1, 3),)


class Recurrent(nn.Module):
    """A recurrent layer; of its states the outputs are enough."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.layer = kind(12, 16, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]


def stacks() -> Iterator[tuple[str, Make]]:
    """Recurrent layers in every option, and torch's own transformer."""
    x = torch.randn(5, 5, 12, generator=torch.Generator().manual_seed(2))
    for kind in (nn.RNN, nn.LSTM, nn.GRU):
        for layers in (1, 2):
            for bidirectional in (False, True):
                for batch_first in (False, True):
                    for bias in (False, True):
                        options = {
                            "num_layers": layers, "bidirectional": bidirectional, "batch_first": batch_first, "bias": bias,
                        }  # fmt: skip
                        told = "".join(f" {key}" for key, value in options.items() if value is True)
                        name = f"nn/{kind.__name__} {layers} layer{'s' if layers > 1 else ''}{told}"
                        yield name, lambda kind=kind, options=options: (Recurrent(kind, **options), (x,))
    for batch_first in (False, True):
        for norm_first in (False, True):
            for activation in ("relu", "gelu"):
                options = {"batch_first": batch_first, "norm_first": norm_first, "activation": activation}
                name = f"nn/Transformer {activation}{' batch_first' * batch_first}{' norm_first' * norm_first}"
                yield name, lambda options=options: (nn.Transformer(12, 2, 2, 2, 24, **options), (x, x))


def transformers_models() -> Iterator[tuple[str, Make]]:
    """Small configurations of the architectures of `transformers`, where that is installed."""
    try:
        import transformers
    except ImportError:
        return
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 100}
    for name, config_type in transformers.CONFIG_MAPPING.items():
        if hasattr(config_type(), "vocab_size"):
            words = torch.ones(1, 8, dtype=torch.int64)
            yield (
                f"transformers/{name}",
                lambda config=config_type, words=words: (transformers.AutoModel.from_config(config(**small, torchscript=True)), (words,)),
            )


def all_models() -> dict[str, Make]:
    return {name: make for source in (stacks, torchvision_models, timm_models, transformers_models) for name, make in source()}


def prepare(make: Make) -> tuple[nn.Module, tuple[Any, ...]]:
    """Return a model with statistics and weights that are not those of an initialiser, which would hide errors."""
    torch.manual_seed(0)
    model, data = make()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_floating_point() and not parameter.any():
                nn.init.normal_(parameter, 0, 0.02)
            elif name == "weight" and bool((parameter == 1).all()):
                nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval(), data


def to_torchscript(model: nn.Module, data: tuple[Any, ...]) -> tuple[torch.jit.ScriptModule, str]:
    if not isinstance(data[0], list):
        try:
            return torch.jit.trace(model, data, check_trace=False), "traced"
        except Exception:  # noqa: BLE001 - whatever stands in the way of tracing, scripting may do
            pass
    return torch.jit.script(model), "scripted"


def plan_for(data: tuple[Any, ...]) -> Plan:
    def spec(item: Any) -> Any:
        return TensorSpec(tuple(item.shape), item.dtype) if isinstance(item, torch.Tensor) else tuple(map(spec, item))

    backends = (OpenVINOBackend(),)
    options = {"num_threads": torch.get_num_threads()}
    return Plan(tuple(map(spec, data)), ({},), pipeline(0, CPU), backends, CPU, build_options=options, examples=(data,))


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
        plan = plan_for(data)
        proposal = propose(module, plan)
        buffer = io.BytesIO()
        compiled = build(proposal, plan)
        torch.jit.save(compiled.module, buffer)
        buffer.seek(0)
        row.update(coverage(proposal, model, data), segments=len(compiled.segments))
        step = "run the optimized model"
        with torch.no_grad():
            found = torch.jit.load(buffer)(*models.cloned(data))
        row["error"] = measure.largest(measure.compare(wanted, found))
        if isinstance(data[0], list):  # boxes of about equal scores come in another order
            row["error"], row["boxes_found"] = matched(wanted[1][0], found[1][0])
            row["boxes_found_an_ulp_off"] = found_an_ulp_off(model, data, wanted[1][0])
    except Exception as error:  # noqa: BLE001 - a row of the table says so
        row["failure"] = f"{step}: {models.reason_of(error)}"[:300]
    row["seconds"] = round(time.perf_counter() - begin, 1)
    return row


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


def write_page(rows: dict[str, dict[str, Any]]) -> None:
    ran = {name: row for name, row in rows.items() if "failure" not in row}
    right = [name for name, row in ran.items() if row["error"] <= TOLERANCE and row.get("boxes_found", 1.0) > 0.99]
    shares = [row["flops"] for row in ran.values() if row["flops"] is not None]
    lines = [
        "# Models that were tried",
        "",
        f"Written by `make zoo` from `benchmarks/results/{RESULTS.name}`: {len(rows)} of the {len(all_models())} models that the sweep "
        f"knows, with random weights and small inputs, optimized losslessly for the CPU with OpenVINO {_version()}, saved, loaded and "
        f"compared with the original; nothing is timed. {len(ran)} came back, {len(right)} with a relative error of {TOLERANCE:g} at "
        f"most (and 99 % of the boxes, for those that detect). "
        f"In the median model {100 * median(shares):.1f} % of the FLOPs are in engines." if shares else "",
        "",
        "| model | how | operators | in engines | engines | FLOPs in engines | relative error |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in sorted(rows.items()):
        if "failure" in row:
            lines.append(f"| {name} | {row.get('how', '')} | | | | | {row['failure'].replace('|', '/')} |")
            continue
        share = "" if row["flops"] is None else f"{100 * row['flops']:.1f} %"
        if "boxes_found" in row:
            ulp = f"{100 * row['boxes_found_an_ulp_off']:.0f} % by the original with weights an ulp off"
            share += f"; {100 * row['boxes_found']:.0f} % of the boxes found, {ulp}"
        figures = f"{row['operators']} | {row['in_segments']} | {row['segments']} | {share} | {row['error']:.1e}"
        lines.append(f"| {name} | {row['how']} | {figures} |")
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _version() -> str:
    return next((item.version for item in environment.software_environment() if item.software.lower() == "openvino"), "")


def main() -> int:
    """Run the models that have no row yet, write rows and page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="models with this in their names")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no model after so many")
    parser.add_argument("--again", action="store_true", help="also those that have a row")
    parser.add_argument("--shuffle", type=int, default=0, help="take every n-th model first")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    begin = time.perf_counter()
    names = [name for name in all_models() if options.only in name and (options.again or name not in rows)]
    if options.shuffle:
        names = [name for start in range(options.shuffle) for name in names[start :: options.shuffle]]
    makers = all_models()
    for name in names:
        if time.perf_counter() - begin > options.seconds:
            break
        rows[name] = run(makers[name])
        print(name, {key: value for key, value in rows[name].items() if key != "how"}, flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n", encoding="utf-8")
    if rows:
        write_page(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""ResNet-50 on the CPU: optimize it at both levels, save, load in a fresh process, compare, and print the reports.

The weights and BatchNorm statistics are random, with a fixed seed: the arithmetic is that of a trained model, and nothing is downloaded.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import torchvision

import tiacc

LOAD = """
import sys, torch, tiacc
data = torch.load(sys.argv[2])
with torch.no_grad():
    output = torch.jit.load(sys.argv[1])(data["input"])
error = torch.linalg.vector_norm(output - data["output"]) / torch.linalg.vector_norm(data["output"])
print(f"loaded in a fresh process: relative error {error.item():.2e} to the TorchScript model")
"""


def make_model(path: Path) -> torch.jit.ScriptModule:
    """Save a ResNet-50 as TorchScript."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, torch.randn(1, 3, 224, 224))
        torch.jit.save(traced, path)
    return traced


def main() -> None:
    """Run the demo."""
    with tempfile.TemporaryDirectory() as directory:
        source, data = Path(directory, "resnet50.pt"), Path(directory, "data.pth")
        model = make_model(source)
        example = torch.randn(1, 3, 224, 224)
        with torch.no_grad():
            torch.save({"input": example, "output": model(example)}, data)
        for level in (0, 1):
            target = Path(directory, f"resnet50_level{level}.pt")
            _, report = tiacc.optimize(
                source, optimization_level=level, device_type=1, input_shapes=["1*3*224*224"], save_path=target, timing_seconds=3
            )
            print(f"\n=== optimization level {level}\n\n{report}\n")
            print(f"{target.name}: {target.stat().st_size / 1e6:.1f} MB, the TorchScript file {source.stat().st_size / 1e6:.1f} MB")
            subprocess.run([sys.executable, "-W", "ignore", "-c", LOAD, str(target), str(data)], check=True)


if __name__ == "__main__":
    main()

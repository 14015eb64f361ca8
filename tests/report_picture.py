"""The picture of a report in the documentation: ``python -m tests.report_picture`` optimizes a small detector and writes it anew."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torchvision
from torch import nn

import tiacc
from tests.browser import Browser

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "report.png"


class Detector(nn.Module):
    """A ResNet-18 with a head for 100 boxes, the scores of which no later one may fall below."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = torchvision.models.resnet18(weights=None)
        self.trunk.fc = nn.Identity()
        self.neck = nn.Sequential(nn.Linear(512, 256), nn.ReLU())
        self.scores, self.boxes = nn.Linear(256, 100), nn.Linear(256, 400)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.neck(self.trunk(x))
        scores = torch.cummax(self.scores(features).sigmoid(), 1)[0]
        return self.boxes(features).reshape(-1, 100, 4) * scores.unsqueeze(2)


def main() -> None:
    """Write the picture."""
    torch.manual_seed(0)
    # The picture shows the file of the operator that was clicked: by a name that is short and the same everywhere.
    Detector.forward.__code__ = Detector.forward.__code__.replace(co_filename="detector.py")
    model = torch.jit.trace(Detector().eval(), torch.randn(1, 3, 224, 224))
    _, report = tiacc.optimize(model, 1, "cpu", ["1*3*224*224"], backend="openvino", timing_seconds=3)
    with tempfile.TemporaryDirectory() as directory:
        page = Path(directory, "report.html")
        report.save_html(page)
        with Browser(Path(directory), (1320, 1180)) as browser:
            browser.open(page)
            browser.click("#search")
            browser.write("cummax")
            browser.click("#results button")
            browser.run("scrollTo(0, 0)")
            browser.picture(PICTURE)


if __name__ == "__main__":
    main()

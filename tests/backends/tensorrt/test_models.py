"""Whole models from TorchScript: imported, taken through the passes, made into one network, interpreted, compared with eager torch."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.backends.tensorrt.harness import compile_for, interpret, needs_rtx, network_of, rejection, spec_of
from tests.backends.tensorrt.test_interpreter_models import randomized
from tiacc.graph import specs, torch_compat
from tiacc.graph.importer import import_module
from tiacc.passes import pipelines

pytestmark = needs_rtx

TOLERANCE = 1e-5


class CenterNet(nn.Module):
    """A ResNet with three transposed convolutions and three heads, the peaks of the first kept."""

    def __init__(self) -> None:
        super().__init__()
        resnet = _torchvision().resnet18(weights=None)
        layers = (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4)
        self.body = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool, *layers)
        sizes = (512, 256, 128, 64)
        self.up = nn.Sequential(
            *(
                nn.Sequential(nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
                for before, after in itertools.pairwise(sizes)
            )
        )
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, count, 1)) for count in (80, 2, 2)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.up(self.body(x))
        heat, size, offset = (head(x) for head in self.heads)
        heat = heat.sigmoid()
        return heat * (F.max_pool2d(heat, 3, 1, 1) == heat).float(), size, offset


class Segmentation(nn.Module):
    """DeepLabV3, without the dictionary that it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.model = _torchvision().segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)["out"]


class Encoder(nn.Module):
    """A BERT-like encoder with a padding mask: additive in its first layer, of bools in its second."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(100, 64), nn.Embedding(64, 64)
        self.inner = nn.ModuleList(nn.Linear(64, 192) for _ in range(2))
        self.outer = nn.ModuleList(nn.Linear(64, 64) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(64) for _ in range(4))
        self.forwards = nn.ModuleList(nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)) for _ in range(2))

    def forward(self, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        batch, length = words.shape
        x = self.words(words) + self.places(torch.arange(length, device=words.device).unsqueeze(0))
        added = (1.0 - mask[:, None, None, :].to(torch.float32)) * -1e9
        for index in range(2):
            query, key, value = self.inner[index](x).view(batch, length, 3, 4, 16).permute(2, 0, 3, 1, 4).unbind(0)
            if index == 0:
                mixed = torch.softmax(query @ key.transpose(-1, -2) / 4 + added, -1) @ value
            else:
                mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :].bool())
            x = self.norms[2 * index](x + self.outer[index](mixed.transpose(1, 2).reshape(batch, length, 64)))
            x = self.norms[2 * index + 1](x + self.forwards[index](x))
        return torch.tanh(x[:, 0]), x


class FusedEncoder(nn.Module):
    """torch's own encoder, which traces as fused layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(100, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, activation="gelu")
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        return self.layers(self.words(words), src_key_padding_mask=mask == 0)


class Recurrent(nn.Module):
    """Two recurrent layers in both directions, and a head."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.layers, self.head = kind(12, 16, 2, batch_first=True, bidirectional=True), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        outputs, state = self.layers(x)
        return self.head(outputs), state[0] if isinstance(state, tuple) else state


class Warp(nn.Module):
    """Transposed convolutions, sampling at places made from the image, and an interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ConvTranspose2d(3, 8, 4, 2, 1)
        self.second = nn.ConvTranspose2d(8, 4, 3, 2, 1, output_padding=1, groups=2)
        self.places = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.elu(self.first(x)))
        x = F.grid_sample(x, torch.tanh(self.places(x)).permute(0, 2, 3, 1), align_corners=False)
        return F.interpolate(x, scale_factor=2, mode="bilinear")


def _torchvision() -> Any:
    return pytest.importorskip("torchvision").models


def _images(*sizes: int) -> list[Tensor]:
    return [torch.randn(sizes[0], 3, *sizes[1:])]


def _sentences(batch: int, length: int) -> list[Tensor]:
    lengths = torch.randint(1, length + 1, (batch, 1))
    return [torch.randint(0, 100, (batch, length)), (torch.arange(length)[None] < lengths).long()]


def _sequences(batch: int, length: int) -> list[Tensor]:
    return [torch.randn(batch, length, 12)]


@dataclass(frozen=True)
class Model:
    """A model, its inputs, and how these vary.

    Attributes:
        make: Makes the model.
        inputs: Makes inputs, given sizes.
        sizes: Those of the example, which is traced, and others.
        dynamic: The dimensions of each input that vary.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[..., list[Tensor]]
    sizes: Sequence[tuple[int, ...]]
    dynamic: Sequence[Sequence[int]]


_WITH_SIZES: Any = (_images, ((2, 64, 64), (1, 96, 64)), [(0, 2, 3)])
_WITH_BATCHES: Any = (_images, ((2, 64, 64), (1, 64, 64), (3, 64, 64)), [(0,)])
_TEXT: Any = (_sentences, ((2, 9), (1, 5), (3, 17)), [(0, 1), (0, 1)])
_SERIES: Any = (_sequences, ((2, 10), (2, 4), (3, 12)), [(0, 1)])

SMALL = {
    "warp": Model(Warp, _images, ((2, 16, 16), (1, 24, 16)), [(0, 2, 3)]),
    "lstm": Model(lambda: Recurrent(nn.LSTM), *_SERIES),
    "gru": Model(lambda: Recurrent(nn.GRU), *_SERIES),
    "encoder": Model(Encoder, *_TEXT),
    "fused encoder": Model(FusedEncoder, *_TEXT),
    "small vit": Model(
        lambda: _torchvision().VisionTransformer(32, 8, 4, 4, 64, 128), _images, ((2, 32, 32), (1, 32, 32), (4, 32, 32)), [(0,)]
    ),
}
LARGE = {
    "centernet": Model(CenterNet, *_WITH_SIZES),
    "resnet50": Model(lambda: _torchvision().resnet50(weights=None), *_WITH_SIZES),
    "mobilenet_v3": Model(lambda: _torchvision().mobilenet_v3_large(weights=None), *_WITH_SIZES),
    "efficientnet_b0": Model(lambda: _torchvision().efficientnet_b0(weights=None), *_WITH_SIZES),
    "convnext_tiny": Model(lambda: _torchvision().convnext_tiny(weights=None), *_WITH_SIZES),
    "deeplabv3": Model(Segmentation, *_WITH_SIZES),
    "swin_t": Model(lambda: _torchvision().swin_t(weights=None), *_WITH_BATCHES),
    "swin_v2_t": Model(lambda: _torchvision().swin_v2_t(weights=None), *_WITH_BATCHES),
    "resnest50d": Model(lambda: pytest.importorskip("timm").create_model("resnest50d"), *_WITH_BATCHES),
    "vit_b_16": Model(lambda: _torchvision().vit_b_16(weights=None), _images, ((1, 224, 224), (2, 224, 224)), [(0,)]),
}


def check_model(model: Model, *, is_dynamic: bool, compiles: bool = False) -> None:
    torch.manual_seed(0)
    module = randomized(model.make())
    cases = [model.inputs(*sizes) for sizes in (model.sizes if is_dynamic else model.sizes[:1])]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, tuple(cases[0]), check_trace=False)
    types = [spec_of(example, axes if is_dynamic else ()) for example, axes in zip(cases[0], model.dynamic)]
    imported = import_module(traced, types)
    assert imported.left == []
    assert imported.fixed == []
    (region,) = imported.regions
    gm = pipelines.pipeline(0, torch.device("cpu"))(region.graph).graph
    assert rejection(gm) == ""
    inputs = [specs.spec_of(specs.tensor_of(node)) for node in gm.graph.nodes if node.op == "placeholder"]
    definition = network_of(gm, inputs)
    names = [value.debugName() for value in torch_compat.forward_graph(imported.module).inputs()][1:]
    order = [names.index(value.debugName()) for value in region.inputs]
    for case in cases:
        with torch.no_grad():
            expected = module(*case)
        wanted = list(expected) if isinstance(expected, tuple) else [expected]
        for have, want in zip(interpret(definition, [case[index] for index in order]), wanted, strict=True):
            assert have.shape == want.shape
            assert float((have - want).abs().max()) <= TOLERANCE * float(want.abs().max())
            assert float(want.std()) > 1e-3, "the output says nothing"
    if compiles:
        assert len(compile_for(definition, inputs).data) > 64


@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", SMALL)
def test_small_models(name: str, is_dynamic: bool) -> None:
    check_model(SMALL[name], is_dynamic=is_dynamic, compiles=True)


@pytest.mark.slow
@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", LARGE)
def test_large_models(name: str, is_dynamic: bool) -> None:
    check_model(LARGE[name], is_dynamic=is_dynamic, compiles=True)

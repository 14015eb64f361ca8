"""Whole models, from TorchScript to a graph for one network: shared by the tests of what networks compute and of how large they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tests.backends.tensorrt.test_interpreter_models import randomized
from tiacc.graph import specs, torch_compat
from tiacc.graph.importer import import_module
from tiacc.graph.specs import Dim, TensorSpec
from tiacc.passes import pipelines


class Segmentation(nn.Module):
    """DeepLabV3, without the dictionary that it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.model = _vision().segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None)

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
    """Transposed convolutions, sampling at places a little beside those of the pixels, made from the image, and an interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ConvTranspose2d(3, 8, 4, 2, 1)
        self.second = nn.ConvTranspose2d(8, 4, 3, 2, 1, output_padding=1, groups=2)
        self.places = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.elu(self.first(x)))
        height, width = x.shape[2:]
        down, right = ((2 * torch.arange(size, device=x.device) + 1) / size - 1 for size in (height, width))
        pixels = torch.stack((right.expand(height, width), down[:, None].expand(height, width)), -1)
        x = F.grid_sample(x, pixels + 0.1 * torch.tanh(self.places(x)).permute(0, 2, 3, 1), align_corners=False)
        return F.interpolate(x, scale_factor=2, mode="bilinear")


def _vision() -> Any:
    return pytest.importorskip("torchvision").models


def _zoo() -> Any:
    pytest.importorskip("torchvision")
    from benchmarks import models

    return models


def _convolutional(make: Callable[[], nn.Module]) -> nn.Module:
    """Return a model with BatchNorm whose weights and statistics are like those of a trained one; half precision needs that."""
    generator = torch.Generator().manual_seed(0)
    model = randomized(make())
    _zoo().randomise(model, generator)
    _zoo().calibrate(model, _zoo().images(8, 64, 0), generator)
    return model.eval()


def _images(*sizes: int) -> list[Tensor]:
    return [_zoo().images(sizes[0], max(sizes[1:]), 1)[:, :, : sizes[1], : sizes[2]].contiguous()]


def _sentences(batch: int, length: int) -> list[Tensor]:
    lengths = torch.randint(1, length + 1, (batch, 1))
    return [torch.randint(0, 100, (batch, length)), (torch.arange(length)[None] < lengths).long()]


def _sequences(batch: int, length: int) -> list[Tensor]:
    return [torch.randn(batch, length, 12)]


@dataclass(frozen=True)
class Model:
    """A model and its inputs.

    Attributes:
        make: Makes the model, its weights random.
        inputs: Makes inputs, given sizes.
        sizes: The smallest, the usual and the largest; the dimensions of inputs that differ between them vary. The usual ones are
            traced, and those of the static network.
        others: Further sizes in between.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[..., list[Tensor]]
    sizes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    others: Sequence[tuple[int, ...]] = ()

    def cases(self, *, is_dynamic: bool) -> list[list[Tensor]]:
        """Return inputs of the usual sizes; if dynamic, of the smallest, the largest and the others too."""
        torch.manual_seed(2)
        low, usual, high = self.sizes
        return [self.inputs(*sizes) for sizes in ((usual, low, high, *self.others) if is_dynamic else (usual,))]

    def types(self, *, is_dynamic: bool) -> list[TensorSpec]:
        """Return the types of the inputs; the same dimension of two inputs that varies has the same size."""
        ranges = [[tensor.shape for tensor in self.inputs(*sizes)] for sizes in (self.sizes if is_dynamic else (self.sizes[1],) * 3)]
        return [
            TensorSpec(
                tuple(
                    usual if low == usual == high else Dim(f"d{axis}", low, usual, high)
                    for axis, (low, usual, high) in enumerate(zip(*shapes))
                ),
                example.dtype,
            )
            for example, *shapes in zip(self.inputs(*self.sizes[1]), *ranges)
        ]


_ANY_SIZE = ((1, 64, 64), (2, 64, 96), (3, 96, 96))
_ANY_BATCH = ((1, 64, 64), (2, 64, 64), (3, 64, 64))
_TEXT: Any = (_sentences, ((1, 5), (2, 9), (3, 17)), ((1, 1),))
_SERIES: Any = (_sequences, ((2, 4), (2, 10), (3, 12)))


def _convnet(name: str) -> Model:
    return Model(lambda: _convolutional(lambda: getattr(_vision(), name)(weights=None)), _images, _ANY_SIZE)


SMALL = {
    "warp": Model(lambda: randomized(Warp()), _images, ((1, 16, 16), (2, 16, 24), (2, 32, 24))),
    "lstm": Model(lambda: randomized(Recurrent(nn.LSTM)), *_SERIES),
    "gru": Model(lambda: randomized(Recurrent(nn.GRU)), *_SERIES),
    "encoder": Model(lambda: randomized(Encoder()), *_TEXT),
    "fused encoder": Model(lambda: randomized(FusedEncoder()), *_TEXT),
    "small vit": Model(
        lambda: randomized(_vision().VisionTransformer(32, 8, 4, 4, 64, 128)), _images, ((1, 32, 32), (2, 32, 32), (4, 32, 32))
    ),
}
"""Models that are tested within seconds."""

LARGE = {
    "resnet50": _convnet("resnet50"),
    "mobilenet_v3": _convnet("mobilenet_v3_large"),
    "efficientnet_b0": _convnet("efficientnet_b0"),
    "convnext_tiny": Model(lambda: randomized(_vision().convnext_tiny(weights=None)), _images, _ANY_SIZE),
    "deeplabv3": Model(lambda: _convolutional(Segmentation), _images, _ANY_SIZE),
    "centernet": Model(lambda: _convolutional(_zoo().CenterNet), _images, _ANY_SIZE),
    "resnest50d": Model(lambda: _convolutional(lambda: pytest.importorskip("timm").create_model("resnest50d")), _images, _ANY_BATCH),
    "swin_t": Model(lambda: randomized(_vision().swin_t(weights=None)), _images, _ANY_BATCH),
    "swin_v2_t": Model(lambda: randomized(_vision().swin_v2_t(weights=None)), _images, _ANY_BATCH),
    "vit_b_16": Model(lambda: randomized(_vision().vit_b_16(weights=None, image_size=64)), _images, _ANY_BATCH),
}
"""Models that take longer."""

_PHOTOS = ((1, 192, 192), (1, 224, 224), (1, 256, 256))
_BATCHES = ((1, 224, 224), (1, 224, 224), (2, 224, 224))


def _texts(batch: int, length: int) -> list[Tensor]:
    words, mask = _sentences(batch, length)
    return [300 * words, mask.bool()]


FULL = {
    **{name: replace(LARGE[name], sizes=_PHOTOS) for name in LARGE if LARGE[name].sizes == _ANY_SIZE},
    **{name: replace(LARGE[name], sizes=_BATCHES) for name in ("resnest50d", "swin_t")},
    "vit_b_16": Model(lambda: randomized(_vision().vit_b_16(weights=None)), _images, _BATCHES),
    "bert_base": Model(lambda: _zoo().make("bert_base"), _texts, ((1, 16), (1, 64), (2, 128))),
    "warp": replace(SMALL["warp"], sizes=((1, 48, 48), (1, 56, 56), (1, 64, 64))),  # what is sampled is four times as large
    "lstm": replace(SMALL["lstm"], sizes=((1, 16), (2, 64), (4, 100))),
    "gru": replace(SMALL["gru"], sizes=((1, 16), (2, 64), (4, 100))),
}
"""Models at the sizes that they are used at."""


@dataclass(frozen=True)
class Imported:
    """A model as one graph.

    Attributes:
        gm: The graph, after the passes.
        types: The types of its inputs.
        order: For each of its inputs, which of the model's it is.
    """

    gm: fx.GraphModule
    types: list[TensorSpec]
    order: list[int]


def traced(model: Model, module: nn.Module) -> torch.jit.ScriptModule:
    """Trace a model at its usual sizes."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.jit.trace(module, tuple(model.inputs(*model.sizes[1])), check_trace=False)


def imported(model: Model, module: nn.Module, *, is_dynamic: bool, half: torch.dtype | None = None) -> Imported:
    """Trace a model, and take it through the importer, which must leave nothing, and the passes."""
    result = import_module(traced(model, module), model.types(is_dynamic=is_dynamic))
    assert result.left == []
    assert result.fixed == []
    (region,) = result.regions
    gm = pipelines.pipeline(0 if half is None else 1, torch.device("cuda"), half)(region.graph).graph
    inputs = [specs.spec_of(specs.tensor_of(node)) for node in gm.graph.nodes if node.op == "placeholder"]
    names = [value.debugName() for value in torch_compat.forward_graph(result.module).inputs()][1:]
    return Imported(gm, inputs, [names.index(read.value.debugName()) for read in region.inputs])

"""The models that benchmarks and tests of whole models use: random weights, with which every branch counts.

The arithmetic is that of the trained model, and nothing is downloaded. Weights as an initialiser leaves them would hide errors:
the last BatchNorm of a residual branch or the head may be zero, statistics are the identity, or activations grow from block to block
until rounding decides the output. So all of them are drawn anew, and the BatchNorm statistics are those of random images, disturbed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision
from torch import nn

SEED = 20240229


class CenterNet(nn.Module):
    """CenterNet on ResNet-50 without deformable convolutions.

    ``(N, 3, H, W)``, H and W multiples of 32 → heat map ``(N, 80, H/4, W/4)`` in 0..1, size and offset ``(N, 2, H/4, W/4)``.

    Source: Zhou, Wang, Krähenbühl, "Objects as Points", 2019 (arXiv:1904.07850), section 5.1 and appendix A: three 4x4 deconvolutions of
    stride 2 with 256 channels, heads of a 3x3 convolution with 64 channels and a 1x1 convolution.
    """

    def __init__(self, classes: int = 80) -> None:
        super().__init__()
        resnet = torchvision.models.resnet50(weights=None)
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
        self.stages = nn.Sequential(resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4)
        layers: list[nn.Module] = []
        for channels in (2048, 256, 256):
            layers += [nn.ConvTranspose2d(channels, 256, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU(inplace=True)]
        self.upsample = nn.Sequential(*layers)
        self.heat_map, self.size, self.offset = _head(classes), _head(2), _head(2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = self.upsample(self.stages(self.stem(x)))
        return torch.sigmoid(self.heat_map(x)), self.size(x), self.offset(x)


def _head(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(256, 64, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(64, channels, 1))


def _resnest50() -> nn.Module:
    import timm

    return timm.create_model("resnest50d", pretrained=False)


class Encoder(nn.Module):
    """A text encoder of the size of BERT-base: 12 layers, 768 wide, 12 heads.

    Words ``(N, L)`` int64 and a mask ``(N, L)`` bool, True for words that count → ``(N, L, 768)``.

    Source: Devlin et al., "BERT", 2018 (arXiv:1810.04805), section 3.
    """

    WORDS = 30522

    def __init__(self, layers: int = 12, width: int = 768, heads: int = 12, longest: int = 512) -> None:
        super().__init__()
        self.heads = heads
        self.words, self.places = nn.Embedding(self.WORDS, width), nn.Embedding(longest, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(EncoderLayer(width, heads) for _ in range(layers))

    def forward(self, words: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.words(words) + self.places.weight[: words.shape[1]])
        for layer in self.layers:
            x = layer(x, mask[:, None, None, :])
        return x


class EncoderLayer(nn.Module):
    """Attention, then two linear layers, each with a shortcut and a normalisation behind it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-12), nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        query, key, value = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = self.norm1(x + self.out(mixed.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.outer(nn.functional.gelu(self.inner(x))))


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    Attributes:
        title: Its name in tables.
        build: Makes it, with whatever weights.
        size: The height and width of the image that it is measured with, in pixels; the length in words of a text.
    """

    title: str
    build: Callable[[], nn.Module]
    size: int = 224


ZOO: dict[str, Entry] = {
    "resnet50": Entry("ResNet-50", lambda: torchvision.models.resnet50(weights=None)),
    "mobilenet_v3_large": Entry("MobileNetV3-Large", lambda: torchvision.models.mobilenet_v3_large(weights=None)),
    "resnest50": Entry("ResNeSt-50", _resnest50),
    "centernet_resnet50": Entry("CenterNet, ResNet-50", CenterNet, size=512),
    "efficientnet_b0": Entry("EfficientNet-B0", lambda: torchvision.models.efficientnet_b0(weights=None)),
    "convnext_tiny": Entry("ConvNeXt-T", lambda: torchvision.models.convnext_tiny(weights=None)),
    "vit_b_16": Entry("ViT-B/16", lambda: torchvision.models.vit_b_16(weights=None)),
    "bert_base": Entry("BERT-base encoder", Encoder, size=128),
}


def make(name: str) -> nn.Module:
    """Return a model of the zoo in evaluation mode; each call returns the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = ZOO[name].build()
        generator = torch.Generator().manual_seed(SEED)
        randomise(model, generator)
        if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
            calibrate(model, images(8, 96, SEED), generator)
    return model.eval()


def randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights anew, as those of a trained network are in what matters to rounding errors.

    A layer's output is about as large as its input; residual branches add less than what they are added to; and activations are
    positive more often than not. With normal weights and no more, a network is chaotic: each layer amplifies the rounding errors of
    those before it, and at the end an exact result and an equally good other one differ by a hundred times what either is off.
    """

    def normal(tensor: torch.Tensor, std: float) -> None:
        nn.init.normal_(tensor, std=std, generator=generator)

    def uniform(tensor: torch.Tensor, low: float, high: float) -> None:
        nn.init.uniform_(tensor, low, high, generator=generator)

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            fan_in = module.weight[0].numel()
            if isinstance(module, nn.ConvTranspose2d):
                # One in stride² of the taps of a transposed convolution meets each element of its output.
                fan_in = module.weight.numel() // module.out_channels // (module.stride[0] * module.stride[1])
            normal(module.weight, (2 / fan_in) ** 0.5)
            if module.bias is not None:
                normal(module.bias, 0.2)
        elif isinstance(module, nn.BatchNorm2d):
            uniform(module.weight, 0.5, 1.5)
            uniform(module.bias, 0.0, 1.0)
        elif isinstance(module, nn.LayerNorm) and module.weight is not None:
            uniform(module.weight, 0.5, 1.5)
            normal(module.bias, 0.2)
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            normal(module.in_proj_weight, module.embed_dim**-0.5)
            normal(module.in_proj_bias, 0.2)
    for module in model.modules():
        scale = getattr(module, "layer_scale", None)  # of a residual branch, in ConvNeXt
        if isinstance(scale, nn.Parameter):
            uniform(scale, 0.1, 0.3)
        last = getattr(module, "bn3", None)  # the end of a residual branch, in the ResNets of torchvision and timm alike
        if isinstance(last, nn.BatchNorm2d):
            uniform(last.weight, 0.1, 0.3)
            uniform(last.bias, 0.0, 0.2)
        if isinstance(module, CenterNet):
            for head in (module.heat_map, module.size, module.offset):
                normal(head[2].bias, 1.0)


def calibrate(model: nn.Module, images: torch.Tensor, generator: torch.Generator) -> None:
    """Set the BatchNorm statistics to those of a batch of images, then disturb them: no channel is normalised to exactly 0 and 1."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    model.train()
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model(images)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
        assert norm.running_mean is not None and norm.running_var is not None
        shape = norm.running_mean.shape
        norm.running_mean += 0.2 * torch.randn(shape, generator=generator) * norm.running_var.sqrt()
        norm.running_var *= 0.7 + 0.7 * torch.rand(shape, generator=generator)
        # A channel that these images leave constant must not be divided by next to nothing on others.
        norm.running_var += 0.1 * norm.running_var.mean()


def images(batch: int, size: int, seed: int) -> torch.Tensor:
    """Return random images: float32 of shape ``(batch, 3, size, size)``, about as large as normalised photographs.

    Like photographs, they have structure at all scales and differ in colour and contrast. White noise would not do: averaged over the
    image it is the same for all, and a classifier returns the same for all.
    """
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(batch, 3, size, size)
    for cells in (1, 2, 4, 8, 16, 32, size):
        noise = torch.randn(batch, 3, min(cells, size), min(cells, size), generator=generator)
        layer = nn.functional.interpolate(noise, size=(size, size), mode="bilinear", align_corners=False)
        total += (0.2 + 0.4 * torch.rand(batch, 1, 1, 1, generator=generator)) * layer
    return total


def example(name: str, batch: int, size: int | None = None, seed: int = 0) -> torch.Tensor:
    """Return an input for a model of the zoo, at its own size unless told."""
    return images(batch, size or ZOO[name].size, seed)


def inputs(name: str, batch: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Return all inputs of a model of the zoo: an image, or words and their mask, of texts of different lengths."""
    if ZOO[name].build is not Encoder:
        return (example(name, batch, seed=seed),)
    length, generator = ZOO[name].size, torch.Generator().manual_seed(seed)
    words = torch.randint(1, Encoder.WORDS, (batch, length), generator=generator)
    lengths = torch.randint(length // 2, length + 1, (batch, 1), generator=generator)
    return words, torch.arange(length).expand(batch, length) < lengths


def trace(model: nn.Module, *inputs: torch.Tensor) -> torch.jit.ScriptModule:
    """Return a model as TorchScript, its attention written out."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.jit.trace(model, inputs, check_trace=False)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)

"""Whole models: exported to ONNX by torch, made into networks by NVIDIA's parser, interpreted, and compared with eager torch."""

from __future__ import annotations

import inspect
import io
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.backends.tensorrt.networks import seeded, trt
from tests.backends.tensorrt.onnx_corpus import Sink
from tiacc.backends.tensorrt.interpreter import NetworkInterpreter


def randomized(model: nn.Module) -> nn.Module:
    """Give every parameter and statistic a value of its own: fresh models have biases, heads and means of zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var") or (value.dim() == 1 and name.endswith("weight")):
                value.copy_(1 + 0.3 * torch.rand(value.shape, generator=generator))
            else:
                fan_in = value[0].numel() if value.dim() > 1 else 25
                value.copy_(noise / max(fan_in, 1) ** 0.5)
    return model.eval()


def exported(model: nn.Module, inputs: Sequence[Tensor], **options: Any) -> bytes:
    """Return a model as ONNX."""
    pytest.importorskip("onnx")
    if "dynamo" not in inspect.signature(torch.onnx.export).parameters:
        pytest.skip("this torch has no exporter of traced models")
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, tuple(inputs), file, opset_version=17, dynamo=False, **options)
    return file.getvalue()


def parsed(model: nn.Module, x: Tensor, dynamic: dict[int, str] | None = None) -> tuple[Any, Sink]:
    """Return the network of a model of one input and one output, and its owner, which must outlive it."""
    options: dict[str, Any] = {"dynamic_axes": {"x": dynamic}} if dynamic else {}
    data = exported(model, [x], input_names=["x"], output_names=["y"], **options)
    sink = Sink(trt)
    network = sink.parse(data)
    assert network is not None, sink.messages
    return network, sink


def assert_same(model: nn.Module, network: Any, inputs: list[Tensor], tolerance: float, **options: Any) -> None:
    interpreter = NetworkInterpreter(trt, network, **options)
    seen = []
    for x in inputs:
        with torch.no_grad():
            want = model(x)
        have = interpreter.run({"x": x})["y"]
        assert have.shape == want.shape
        assert float((have - want).abs().max()) <= tolerance * float(want.abs().max())
        seen.append(want)
    assert all(float(value.std()) > 1e-3 for value in seen), "the outputs say nothing"


class Upsampler(nn.Module):
    """Transposed convolutions, a sampling grid made from the input, and an interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ConvTranspose2d(3, 8, 4, 2, 1)
        self.second = nn.ConvTranspose2d(8, 4, 3, 2, 1, output_padding=1, groups=2)
        self.head = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.elu(self.first(x)))
        grid = torch.tanh(self.head(x)).permute(0, 2, 3, 1)
        x = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(6, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


def vit() -> nn.Module:
    vision = pytest.importorskip("torchvision").models.vision_transformer
    return vision.VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=10)


def torchvision_model(name: str) -> nn.Module:
    return getattr(pytest.importorskip("torchvision").models, name)(weights=None)


MODELS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "resnet18": (lambda: torchvision_model("resnet18"), (1, 3, 64, 64)),
    "mobilenet_v3_small": (lambda: torchvision_model("mobilenet_v3_small"), (1, 3, 64, 64)),
    "vision transformer": (vit, (2, 3, 32, 32)),
    "transposed convolutions and grid sample": (Upsampler, (2, 3, 9, 10)),
    "bidirectional LSTM": (lambda: Recurrent(nn.LSTM), (2, 9, 6)),
    "bidirectional GRU": (lambda: Recurrent(nn.GRU), (2, 9, 6)),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_in_float32(name: str) -> None:
    make, shape = MODELS[name]
    model = randomized(make())
    network, _sink = parsed(model, seeded(*shape))
    assert_same(model, network, [seeded(*shape, seed=1)], 1e-4)


@pytest.mark.parametrize("name", ["resnet18", "vision transformer", "bidirectional LSTM"])
def test_models_in_float64_differ_from_eager_only_by_the_constants_rounding(name: str) -> None:
    """Evaluated in float64, the network is the exact one; eager float64 differs by the float32 constants that both hold."""
    make, shape = MODELS[name]
    model = randomized(make())
    network, _sink = parsed(model, seeded(*shape))
    x = seeded(*shape, seed=1)
    have = NetworkInterpreter(trt, network, compute_dtype=torch.float64).run({"x": x})["y"]
    with torch.no_grad():
        want = model.double()(x.double())
    # Each layer still rounds to the declared float32.
    assert float((have - want).abs().max()) <= 2e-6 * float(want.abs().max())


DYNAMIC = {
    "resnet18": ({0: "n", 2: "h", 3: "w"}, [(1, 3, 64, 64), (2, 3, 80, 50)]),
    "bidirectional LSTM": ({0: "n", 1: "t"}, [(1, 1, 6), (3, 5, 6), (2, 17, 6)]),
}


@pytest.mark.parametrize("name", DYNAMIC)
def test_models_with_dynamic_shapes(name: str) -> None:
    make, shape = MODELS[name]
    axes, shapes = DYNAMIC[name]
    model = randomized(make())
    network, _sink = parsed(model, seeded(*shape), axes)
    assert_same(model, network, [seeded(*s, seed=1) for s in shapes], 1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_model_in_half_precision(dtype: torch.dtype) -> None:
    make, shape = MODELS["vision transformer"]
    model = randomized(make())
    with torch.no_grad():
        want = model(seeded(*shape, seed=1))
    network, _sink = parsed(model.to(dtype), seeded(*shape, dtype=dtype))
    have = NetworkInterpreter(trt, network).run({"x": seeded(*shape, seed=1, dtype=dtype)})["y"]
    assert have.dtype == dtype
    error = float((have.float() - want).abs().max() / want.abs().max())
    assert 1e-5 < error < {torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]

"""The models of the benchmarks through `tiacc.optimize`, at a small size: one engine each, and the numbers to rounding."""

import warnings

import pytest
import torch

import tiacc
from benchmarks import models
from tests.helpers import use_however_fast
from tiacc import measure
from tiacc.backends import base
from tiacc.errors import ShapeOutOfRangeError

SIZE = 64


@pytest.fixture(autouse=True)
def _whatever_the_clock_says(monkeypatch):
    """What is tested is what a model computes: it counts however fast it is, and is timed as briefly as can be."""
    use_however_fast(monkeypatch)
    monkeypatch.setattr("tiacc.measure.MIN_CALLS", 1)


@pytest.fixture(autouse=True)
def _one_thread():
    """Test processes run side by side, and threads that wait for each other's cores cost more than they gain."""
    with measure.threads(1):
        yield


@pytest.fixture(autouse=True)
def _needs_openvino():
    support = base.backends.get("openvino")().available()
    if not support:
        pytest.skip(f"the backend 'openvino' cannot be used here: {support.reason}")


@pytest.fixture(scope="module")
def zoo():
    """Return a function from names to models, each made once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = models.make(name)
        return made[name]

    return get


def optimize(model, shapes, tmp_path):
    """Return the model that a load of the saved file gives, and the report."""
    path = tmp_path / "optimized.pt"
    _, report = tiacc.optimize(model, 0, 1, shapes, save_path=path, backend="openvino", timing_seconds=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(path), report


def as_tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


def changes(report, name):
    return sum(row.changes for row in report.passes if row.name == name)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "form", "norms"),
    [
        ("resnet50", "scripted", 53),
        ("mobilenet_v3_large", "traced", 46),
        ("resnest50", "traced", 71),
        ("centernet_resnet50", "traced", 56),
    ],
)
def test_a_model_becomes_one_engine_that_computes_the_same(name, form, norms, zoo, tmp_path):
    model = zoo(name)
    image = models.example(name, 1, SIZE)
    torchscript = torch.jit.script(model) if form == "scripted" else models.trace(model, image)
    optimized, report = optimize(torchscript, [f"1*3*{SIZE}*{SIZE}"], tmp_path)
    assert [row.backend for row in report.segments] == ["openvino"] and not report.fallbacks, report
    assert report.segments[0].dtype == "float32"
    assert changes(report, "fold-batch-norm") == norms
    for seed in (1, 2):
        image = models.example(name, 1, SIZE, seed)
        assert measure.largest(measure.compare(model(image), optimized(image))) <= 1e-5  # shapes and dtypes too
    assert report.achieved_level == 0 and report.tolerance == 1e-5


@torch.no_grad()
@pytest.mark.parametrize(
    ("entry", "shapes"),
    [
        ({"separate": ["1*3*64*64", "2*3*64*96"]}, [(1, 64, 64), (2, 64, 96)]),
        ({"range": ["1*3*32*32", "1*3*64*64", "4*3*96*128"]}, [(1, 32, 32), (1, 64, 64), (4, 96, 128), (3, 40, 77)]),
    ],
)
def test_mobilenet_takes_several_shapes(entry, shapes, zoo, tmp_path):
    model = zoo("mobilenet_v3_large")
    traced = models.trace(model, models.example("mobilenet_v3_large", 1, SIZE))
    optimized, report = optimize(traced, [entry], tmp_path)
    assert len(report.segments) == 1 and not report.fallbacks, report
    for batch, height, width in shapes:
        image = models.images(batch, max(height, width), batch)[:, :, :height, :width]
        assert measure.largest(measure.compare(model(image), optimized(image))) <= 1e-5
    with pytest.raises(Exception, match=ShapeOutOfRangeError.__name__):
        optimized(models.images(5, 64, 0))


@torch.no_grad()
@pytest.mark.parametrize("name", list(models.ZOO))
def test_every_weight_and_the_image_matter(name, zoo):
    """The models are worth comparing: their outputs depend on each weight and on the image, and have a sane scale."""
    model = zoo(name)
    has_one_size = name in ("vit_b_16", "bert_base")
    first, second = (models.inputs(name, 1, seed) if has_one_size else (models.example(name, 1, SIZE, seed),) for seed in (1, 2))
    for one, other in zip(as_tuple(model(*first)), as_tuple(model(*second))):
        assert torch.linalg.vector_norm(one - other) > 0.01 * torch.linalg.vector_norm(one)
        assert 0.1 < one.std() < 10
    with torch.enable_grad():
        generator = torch.Generator().manual_seed(0)
        loss = sum((value * torch.randn(value.shape, generator=generator)).sum() for value in as_tuple(model(*first)))
        gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert all(bool(gradient.any()) for gradient in gradients)

"""Networks with trained weights through `tiacc.optimize`: the numbers to rounding, and what the networks decide on real inputs."""

import subprocess
import sys
import warnings

import pytest
import torch

import tiacc
from tests import trained_models as trained
from tests.helpers import use_however_fast
from tiacc import environment, measure
from tiacc.backends import base

NOTES = torch.tensor([82.41, 110.0, 146.83, 220.0, 329.63, 440.0, 659.26, 880.0])
"""Pitches of the tones that CREPE is asked for, in Hz: E2 to A5."""

SHAPES = {
    "pnet": [{"range": ["1*3*12*12", "1*3*60*104", "1*3*120*208"]}],
    "rnet": [{"range": ["1*3*24*24", "8*3*24*24", "16*3*24*24"]}],
    "onet": [{"range": ["1*3*48*48", "8*3*48*48", "16*3*48*48"]}],
}


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


@pytest.fixture(scope="module")
def backend():
    """The engine that the CPU has by default; where its library is not installed, the reference."""
    return "openvino" if base.backends.get("openvino")().available() else "reference"


def as_torchscript(model, form, example):
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(model) if form == "scripted" else torch.jit.trace(model, example)


def optimize(model, shapes, tmp_path, backend, level=0, **options):
    """Return the model that a load of the saved file gives, and the report."""
    path = tmp_path / "optimized.pt"
    _, report = tiacc.optimize(model, level, 1, shapes, save_path=path, backend=backend, timing_seconds=0.1, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(path), report


def error(candidate, reference):
    """Return the largest relative error of all outputs."""
    if isinstance(reference, torch.Tensor):
        candidate, reference = (candidate,), (reference,)
    assert len(candidate) == len(reference)
    norm = torch.linalg.vector_norm
    return max(float(norm(one.double() - other.double()) / norm(other.double())) for one, other in zip(candidate, reference))


def inputs_of(name):
    """Return what a network of MTCNN is called with."""
    if name == "pnet":
        return [level for _, level in trained.pyramid(trained.scene())]
    pictures, _ = trained.crops(24 if name == "rnet" else 48)
    return [pictures, pictures[2:5]]


@torch.no_grad()
@pytest.mark.parametrize("form", ["traced", "scripted"])
@pytest.mark.parametrize("name", list(trained.MTCNN))
def test_mtcnn_keeps_its_numbers_and_decisions_at_every_size(name, form, backend, tmp_path):
    model = trained.mtcnn(name)
    inputs = inputs_of(name)
    optimized, report = optimize(as_torchscript(model, form, inputs[0]), SHAPES[name], tmp_path, backend)
    assert len(report.segments) == 1 and report.segments[0].backend == backend and not report.fallbacks, report
    for x in inputs:
        reference, outputs = model(x), optimized(x)
        assert error(outputs, reference) <= 1e-5
        assert torch.equal(outputs[-1].argmax(1), reference[-1].argmax(1))
    if name != "pnet":
        pictures, is_face = trained.crops(24 if name == "rnet" else 48)
        assert torch.equal(optimized(pictures)[-1][:, 1] > 0.7, is_face)


@torch.no_grad()
def test_the_cascade_of_optimized_networks_finds_the_same_faces(backend, tmp_path):
    networks = {name: trained.mtcnn(name) for name in trained.MTCNN}
    optimized = {}
    for name, model in networks.items():
        optimized[name], _ = optimize(as_torchscript(model, "scripted", None), SHAPES[name], tmp_path, backend)
    image = trained.scene()
    boxes, landmarks, scores = trained.detect(networks.values(), image)
    assert_finds_the_faces(boxes, landmarks)
    found = trained.detect(optimized.values(), image)
    for one, other in zip(found, (boxes, landmarks, scores)):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-2)


def assert_finds_the_faces(boxes, landmarks):
    """Each drawn face has one box round it, and the eyes and corners of the mouth are where they were drawn."""
    assert len(boxes) == len(trained.FACES)
    for cx, cy, radius in trained.FACES:
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2
        index = int((middle - torch.tensor([cx, cy])).norm(dim=1).argmin())
        assert (middle[index] - torch.tensor([cx, cy])).norm() < 0.4 * radius
        eyes_and_mouth = landmarks[index].view(2, 5).T[[0, 1, 3, 4]]
        drawn = torch.tensor([[-0.33, -0.11], [0.33, -0.11], [-0.25, 0.58], [0.25, 0.58]]) * radius + torch.tensor([cx, cy])
        assert (eyes_and_mouth - drawn).norm(dim=1).max() < 0.2 * radius


@torch.no_grad()
@pytest.mark.parametrize("form", ["traced", "scripted"])
def test_crepe_tiny_hears_the_same_pitch_for_any_number_of_frames(form, backend, tmp_path):
    model = trained.crepe("tiny")
    frames = trained.tones(NOTES)
    shapes = [{"range": ["1*1024", "8*1024", "16*1024"]}]
    optimized, report = optimize(as_torchscript(model, form, frames), shapes, tmp_path, backend)
    assert len(report.segments) == 1 and not report.fallbacks, report
    for x, notes in ((frames, NOTES), (frames[:1], NOTES[:1]), (frames.repeat(2, 1), NOTES.repeat(2))):
        assert_hears(model(x), optimized(x), notes)


@torch.no_grad()
def test_crepe_full_hears_the_same_pitch(backend, tmp_path):
    model = trained.crepe("full")
    notes = NOTES[1::3]
    frames = trained.tones(notes)
    optimized, report = optimize(as_torchscript(model, "traced", frames), [f"{len(notes)}*1024"], tmp_path, backend)
    assert len(report.segments) == 1 and not report.fallbacks, report
    assert_hears(model(frames), optimized(frames), notes)


def assert_hears(reference, output, notes):
    assert trained.cents_between(trained.pitch_of(reference), notes).max() < 50
    assert error(output, reference) <= 1e-5
    assert torch.equal(output.argmax(1), reference.argmax(1))
    assert trained.cents_between(trained.pitch_of(output), trained.pitch_of(reference)).max() < 0.1


@torch.no_grad()
def test_a_saved_network_decides_the_same_in_a_fresh_process(backend, tmp_path):
    model = trained.crepe("tiny")
    frames = trained.tones(NOTES)
    optimize(as_torchscript(model, "scripted", None), ["8*1024"], tmp_path, backend)
    torch.save({"frames": frames, "activation": model(frames)}, tmp_path / "data.pth")
    code = (
        "import sys, torch, tiacc; data = torch.load(sys.argv[2]); output = torch.jit.load(sys.argv[1])(data['frames']);"
        "norm = torch.linalg.vector_norm;"
        "assert norm(output - data['activation']) <= 1e-5 * norm(data['activation']);"
        "print(output.argmax(1).tolist() == data['activation'].argmax(1).tolist())"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "optimized.pt"), str(tmp_path / "data.pth")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


@torch.no_grad()
@pytest.mark.parametrize("name", ["pnet", "rnet", "onet", "crepe"])
def test_half_precision_keeps_the_decisions_or_is_refused(name, backend, tmp_path):
    """With the default tolerance either half precision is within it, or the report says that it was not used, and why."""
    decide, model, inputs, shapes = half_case(name)
    optimized, report = optimize(
        as_torchscript(model, "traced", inputs[0]), shapes, tmp_path, backend, level=1, half_dtype=torch.bfloat16
    )
    if report.achieved_level == 1:
        # A CPU without bfloat16 rounds the results of float32 in other places, which the smallest of the networks does not bear.
        least = 0.3 if environment.cpu_has_bf16() else 0.0
        assert report.precision.half_dtype == "bfloat16" and report.precision.flops > least
        assert report.segments or any("left in Torch" in action for action in report.actions)
        assert max(row.rel_norm for row in report.outputs) <= report.tolerance == 1e-2
    else:
        assert any("half precision" in action and "tolerance" in action for action in report.actions), report.actions
        assert all(error(optimized(x), model(x)) <= 1e-5 for x in inputs)
    for x in inputs:
        assert torch.equal(decide(optimized(x)), decide(model(x)))


@torch.no_grad()
@pytest.mark.parametrize("name", ["pnet", "rnet"])
def test_half_precision_within_a_wider_tolerance_keeps_the_decisions(name, backend, tmp_path):
    """These two are beyond the default tolerance (box regressions near zero, at the smallest size), and decide the same."""
    decide, model, inputs, shapes = half_case(name)
    if name == "pnet":
        # OpenVINO 2026.4 computes it wrong in native bfloat16 for 12x12, where its outputs are one pixel: the test above covers that.
        shapes = [{"range": ["1*3*13*13", "1*3*60*104", "1*3*120*208"]}]
    traced = as_torchscript(model, "traced", inputs[0])
    options = {"half_dtype": torch.bfloat16, "tolerance": 0.2}
    optimized, report = optimize(traced, shapes, tmp_path, backend, level=1, **options)
    assert report.achieved_level == 1, report.actions
    for x in inputs:
        reference, output = model(x), optimized(x)
        assert 0 < error(output, reference) < 0.1
        assert torch.equal(decide(output), decide(reference))


def half_case(name):
    """Return what a network decides, the network, its inputs and their shapes."""
    if name == "crepe":
        # Half precision may move the highest bin to its neighbour, which is 20 cents away: the note is what counts.
        return note_of, trained.crepe("tiny"), [trained.tones(NOTES)], ["8*1024"]
    return (lambda outputs: outputs[-1].argmax(1)), trained.mtcnn(name), inputs_of(name), SHAPES[name]


def note_of(activation):
    """Return the nearest of `NOTES`, a semitone and more apart."""
    return trained.cents_between(trained.pitch_of(activation)[:, None], NOTES[None]).argmin(1)

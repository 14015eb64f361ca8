from __future__ import annotations

import json
import zlib

import pytest
import torch

from benchmarks import models as zoo
from tests.backends.cudnn.models import subgraph
from tests.backends.cudnn.programs import aten, block, error
from tests.helpers import Sketch, random_inputs
from tiacc.backends.base import Profile
from tiacc.backends.cudnn import CudnnBackend
from tiacc.backends.cudnn.binaries import Binary
from tiacc.backends.cudnn.engine import _PREFIX, CudnnEngine
from tiacc.backends.cudnn.executable import run_eagerly
from tiacc.backends.cudnn.naming import key_of
from tiacc.backends.cudnn.tactics import TacticCache
from tiacc.errors import BackendUnavailableError, EngineFormatError
from tiacc.graph import archive, specs
from tiacc.graph.specs import Dim

CPU = torch.device("cpu")


def engine_of(gm, tactics=None, kept=None) -> CudnnEngine:
    inputs = tuple(specs.spec_of(specs.tensor_of(node)) for node in gm.graph.nodes if node.op == "placeholder")
    shapes = tuple(spec.sizes() for spec in inputs)
    (output,) = (node for node in gm.graph.nodes if node.op == "output")
    outputs = tuple(specs.spec_of(specs.tensor_of(node)) for node in output.args[0])
    return CudnnEngine(gm, inputs, outputs, (Profile(shapes, shapes, shapes),), (True, False), tactics, kept)


def test_an_engine_survives_its_bytes() -> None:
    gm = block()
    engine = engine_of(gm, {"a": "cudnn:1"})
    loaded = CudnnEngine.deserialize(engine.serialize())
    assert (loaded.tactics, loaded.inputs, loaded.outputs, loaded.profiles) == (
        engine.tactics,
        engine.inputs,
        engine.outputs,
        engine.profiles,
    )
    (x,) = random_inputs(gm)
    with torch.no_grad():
        (got,) = run_eagerly(loaded.program((tuple(x.shape),)), [x], CPU)
        assert error(got, gm(x)[0]) < 1e-6


def test_kernels_are_kept_with_an_engine() -> None:
    kept = {key: Binary(f"kernel{key}", key.encode() * 100, 1024, 128, (0, 1, 3), 5) for key in "ab"}
    gm = block()
    data = engine_of(gm, kept=kept).serialize()
    loaded = CudnnEngine.deserialize(data)
    assert loaded._binaries.kept == kept
    assert loaded._binaries.get("a", lambda: pytest.fail("it was kept")) == kept["a"]
    assert CudnnEngine.deserialize(loaded.serialize())._binaries.kept == kept


def test_engines_of_version_1_have_no_kernels() -> None:
    data = engine_of(block()).serialize()
    magic, version, length = _PREFIX.unpack_from(data)
    fields = json.loads(data[_PREFIX.size : _PREFIX.size + length])
    rest = data[_PREFIX.size + length + fields.pop("kernel_bytes") :]
    del fields["kernels"]
    text = json.dumps(fields).encode()
    assert version == 2
    loaded = CudnnEngine.deserialize(_PREFIX.pack(magic, 1, len(text)) + text + rest)
    assert loaded._binaries.kept == {}
    assert loaded.inputs == engine_of(block()).inputs
    assert [node.op for node in loaded._gm.graph.nodes] == [node.op for node in block().graph.nodes]


@pytest.mark.parametrize("damage", ["empty", "magic", "header", "short", "operator", "kernels", "more kernels"])
def test_damaged_bytes_are_refused(damage: str) -> None:
    data = engine_of(block()).serialize()
    spoilt = {
        "empty": b"",
        "magic": b"X" + data[1:],
        "header": data[:30] + b"\x00\x01" + data[32:],
        "short": data[:-700],
        "operator": data.replace(b"aten.relu.default", b"aten.relx.default"),
        "kernels": data.replace(zlib.compress(b""), b"y" * len(zlib.compress(b""))),
        "more kernels": data.replace(b'"kernels": []', b'"kernels": [["a", "b", 9, 9, 9, [0], 1]]'),
    }[damage]
    with pytest.raises(EngineFormatError):
        CudnnEngine.deserialize(spoilt)


def test_one_graph_is_planned_for_each_shape() -> None:
    sketch = Sketch()
    x = sketch.input("x", Dim("n", 1, 2, 8), 6)
    size = sketch.call(aten.sym_size.int, x, 0)
    y = sketch.call(aten.view.default, sketch.call(aten.relu.default, x), [size, 2, 3])
    gm = sketch.output(sketch.call(aten.transpose.int, y, 1, 2))
    engine = CudnnEngine.deserialize(engine_of(gm).serialize())
    for count in (1, 5):
        x = torch.randn(count, 6)
        (got,) = run_eagerly(engine.program(((count, 6),)), [x], CPU)
        assert torch.equal(got, gm(x)[0])


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("mobilenet_v3_large", 0),
        ("resnet50", 1),
        pytest.param("centernet_resnet50", 1, marks=pytest.mark.slow),
        pytest.param("resnest50", 1, marks=pytest.mark.slow),
        pytest.param("resnest50", 0, marks=pytest.mark.slow),
        pytest.param("centernet_resnet50", 0, marks=pytest.mark.slow),
    ],
)
def test_whole_models_in_planned_memory(name: str, level: int) -> None:
    size = 48 if level else 64  # torch computes float16 slowly on a CPU
    model, x = zoo.make(name), zoo.images(2, size, 3)
    program = engine_of(subgraph(model, [x], level)).program((tuple(x.shape),))
    with torch.no_grad():
        got, wanted = run_eagerly(program, [x], CPU), model(x)
    for one, other in zip(got, [wanted] if isinstance(wanted, torch.Tensor) else wanted, strict=True):
        assert error(one, other) < (5e-6, 5e-3)[level]
    if name == "resnet50":
        assert len(program.steps) == 52


def test_the_backend_says_what_is_missing() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    support = CudnnBackend().available()
    assert not support and support.reason
    with pytest.raises(BackendUnavailableError):
        CudnnBackend().load(engine_of(block()).serialize())
    with pytest.raises(BackendUnavailableError):
        engine_of(block()).run(random_inputs(block()))


def test_graphs_keep_their_arguments() -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 3)
    y = sketch.call(aten.masked_fill.Scalar, x, sketch.call(aten.gt.Scalar, x, 0), float("-inf"))
    y = sketch.call(aten.to.dtype, sketch.call(aten.clone.default, y, memory_format=torch.contiguous_format), torch.float16)
    gm = sketch.output(y)
    again = archive.from_bytes(archive.to_bytes(gm))
    x = torch.randn(2, 3)
    assert torch.equal(again(x)[0], gm(x)[0])
    assert archive.to_bytes(again) == archive.to_bytes(gm)


def test_tactics_are_kept_beside_those_of_others(tmp_path) -> None:
    first, second = engine_of(block()).program(((2, 16, 9, 7),)).steps
    here, elsewhere = TacticCache(tmp_path, "this GPU"), TacticCache(tmp_path, "another GPU")
    here.add(first, [(14.0, "torch"), (12.5, "cudnn:2")])
    elsewhere.add(second, [(3.0, "torch")])
    here.save()
    elsewhere.save()
    assert TacticCache(tmp_path, "this GPU").find(first) == "cudnn:2"
    assert TacticCache(tmp_path, "this GPU").find(second) is None
    assert TacticCache(tmp_path, "another GPU").find(second) == "torch"
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text())["this GPU"][key_of(first)]["microseconds"] == 12.5
    file.write_text("{damaged")
    assert TacticCache(tmp_path, "this GPU").find(first) is None

import json
import subprocess
import sys
import zipfile

import pytest
import torch

import tiacc.runtime.ops  # noqa: F401 - registers the operator that the models call
from tiacc import cli, saved
from tiacc.errors import EngineFormatError, ImportGraphError
from tiacc.graph.types import Dim, Profile, TensorSpec
from tiacc.runtime import blob

SPEC = TensorSpec((Dim("x_0", 1, 2, 4), 3), torch.float32)
PROFILE = Profile(((1, 3),), ((2, 3),), ((4, 3),))


def make_blob(payload=b"engine", backend="openvino"):
    return blob.pack(
        payload,
        backend=backend,
        backend_version="2026.4",
        device=torch.device("cpu"),
        inputs=(SPEC,),
        outputs=(SPEC, TensorSpec((3,), torch.int64)),
        profiles=(PROFILE,),
    )


class Model(torch.nn.Module):
    def __init__(self, engine, key):
        super().__init__()
        self.register_buffer("engine", engine)
        self.weight = torch.nn.Parameter(torch.randn(3))
        self.key = key

    def forward(self, x):
        return torch.ops.tiacc.run_engine([x], self.engine, "openvino", self.key)[0] + self.weight


@pytest.fixture(params=["buffer", "constant"])
def path(request, tmp_path):
    engine = make_blob()
    model = torch.jit.script(Model(engine, blob.key_of(engine)).eval())
    if request.param == "constant":
        model = torch.jit.freeze(model)
    path = tmp_path / "model.pt"
    torch.jit.save(model, path)
    return path


def test_what_is_in_a_saved_model(path):
    model = saved.inspect(path)
    assert (model.path, model.size_bytes, model.operators) == (path, path.stat().st_size, ("tiacc",))
    (engine,) = model.engines
    assert engine.is_intact and engine.size_bytes == make_blob().numel()
    assert engine.header == blob.read_header(make_blob())[0]
    assert model.to_dict()["engines"][0] == {
        "record": engine.record,
        "backend": "openvino",
        "backend_version": "2026.4",
        "device": "cpu",
        "inputs": ["float32[x_0=1..4, 3]"],
        "outputs": ["float32[x_0=1..4, 3]", "int64[3]"],
        "profiles": [{"min": ((1, 3),), "opt": ((2, 3),), "max": ((4, 3),)}],
        "size_bytes": engine.size_bytes,
        "sha256": engine.header.sha256,
        "is_intact": True,
    }


def test_no_library_of_a_vendor_is_needed(path):
    """Where importing one fails, a file is shown all the same."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('openvino', 'tensorrt', 'tensorrt_rtx', 'triton', 'pycuda', 'cudnn')));"
        "from tiacc import cli; sys.exit(cli.main(['inspect', sys.argv[1]]))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "openvino 2026.4" in done.stdout


def test_the_command_line_shows_it(path, capsys):
    assert cli.main(["inspect", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("MB, 1 engine") and lines[1] == "  import before loading: tiacc"
    assert lines[2] == "  needed at the first call: the libraries of openvino 2026.4"
    digest = blob.read_header(make_blob())[0].sha256
    assert lines[5].split() == ["openvino", "2026.4", "cpu", "0.0", "MB", digest[:12], "yes"]
    assert lines[6] == "  0: float32[x_0=1..4, 3] → float32[x_0=1..4, 3], int64[3]"
    assert cli.main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(saved.inspect(path).to_dict()))


def test_a_model_without_engines(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "plain.pt")
    model = saved.inspect(str(tmp_path / "plain.pt"))
    assert model.engines == () and model.operators == ()


def rewritten(path, change):
    """Copy an archive with `change` applied to the engine's record."""
    copy = path.with_name("changed.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, change(data) if data.startswith(blob.MAGIC) else data)
    return copy


def test_a_damaged_payload_is_told(path):
    assert [engine.is_intact for engine in saved.inspect(rewritten(path, lambda data: data[:-1] + b"?")).engines] == [False]


def test_a_damaged_header_is_an_error(path):
    with pytest.raises(EngineFormatError, match="header of this engine is damaged"):
        saved.inspect(rewritten(path, lambda data: data[:20] + b"\xff" + data[21:]))


def test_a_later_format_is_an_error(path):
    with pytest.raises(EngineFormatError, match="format 99"):
        saved.inspect(rewritten(path, lambda data: data[:6] + b"\x63\x00" + data[8:]))


def test_what_is_no_torchscript_file(tmp_path):
    with pytest.raises(ImportGraphError, match=r"missing\.pt cannot be read: No such file"):
        saved.inspect(tmp_path / "missing.pt")
    with pytest.raises(ImportGraphError, match=r"cannot be read: Is a directory"):
        saved.inspect(tmp_path)
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ImportGraphError, match=r"text\.pt is no TorchScript file, or a damaged one"):
        saved.inspect(tmp_path / "text.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "state.pt")
    with pytest.raises(ImportGraphError, match=r"state\.pt holds no TorchScript; .* not torch\.save"):
        saved.inspect(tmp_path / "state.pt")


def test_a_truncated_file(path):
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ImportGraphError, match="damaged"):
        saved.inspect(path)


def test_operators_of_other_libraries_are_named(tmp_path):
    library = torch.library.Library("tiacc_saved_test", "DEF")
    library.define("twice(Tensor x) -> Tensor")

    class Twice(torch.nn.Module):
        def forward(self, x):
            return torch.ops.tiacc_saved_test.twice(x).relu()

    torch.jit.save(torch.jit.script(Twice()), tmp_path / "twice.pt")
    assert saved.inspect(tmp_path / "twice.pt").operators == ("tiacc_saved_test",)

"""Everything that can be wrong with the arguments of `tiacc.optimize`: a clear error each, and nothing changed."""

import os

import pytest
import torch

import tiacc
from tiacc.errors import BackendUnavailableError, ImportGraphError, InvalidArgumentError, RegistryError, TiaccError

SHAPES = ["2*3*8*8"]


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)))


class Two(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor):
        return x + y


class Choosy(torch.nn.Module):
    def forward(self, x: torch.Tensor):
        if x.sum() < 1e9:
            raise ValueError("the sum is too small")
        return x


class Counter(torch.nn.Module):
    def forward(self, count: int):
        return count + 1


class Named(torch.nn.Module):
    def forward(self, tensors: dict[str, torch.Tensor]):
        return tensors["x"].relu()


class Lookup(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(5, 3)

    def forward(self, ids):
        return self.table(ids)


def saved(path, data):
    path.write_bytes(data)
    return path


def torchscript_bytes(tmp_path):
    torch.jit.save(torch.jit.script(Net()), tmp_path / "whole.pt")
    return (tmp_path / "whole.pt").read_bytes()


def pickled(path, value):
    torch.save(value, path)
    return str(path)


X = torch.randn(2, 3, 8, 8)

CASES = {
    # the model
    "no model": (lambda tmp: {"input_model": None}, InvalidArgumentError, "input_model"),
    "a number as model": (lambda tmp: {"input_model": 42}, InvalidArgumentError, "input_model"),
    "a state dict as model": (lambda tmp: {"input_model": Net().state_dict()}, InvalidArgumentError, "input_model"),
    "a module that cannot be copied": (
        lambda tmp: {"input_model": torch.nn.utils.weight_norm(torch.nn.Conv2d(3, 4, 3))},
        ImportGraphError,
        "input_model cannot be copied.*weight_norm",
    ),
    "a model without forward": (
        lambda tmp: {"input_model": torch.jit.script(torch.nn.LSTM(8, 8))},
        InvalidArgumentError,
        "input_model has no method forward; it has forward__0",
    ),
    "a class as model": (lambda tmp: {"input_model": Net}, InvalidArgumentError, "input_model"),
    "a missing file": (lambda tmp: {"input_model": str(tmp / "missing.pt")}, TiaccError, r"missing\.pt"),
    "a folder": (lambda tmp: {"input_model": str(tmp)}, TiaccError, "input_model|folder|directory"),
    "an empty file": (lambda tmp: {"input_model": saved(tmp / "empty.pt", b"")}, ImportGraphError, r"empty\.pt"),
    "a text file": (lambda tmp: {"input_model": saved(tmp / "text.pt", b"hello " * 99)}, ImportGraphError, r"text\.pt"),
    "a truncated file": (
        lambda tmp: {"input_model": saved(tmp / "cut.pt", torchscript_bytes(tmp)[:-500])},
        ImportGraphError,
        r"cut\.pt",
    ),
    "a file with a hole": (
        lambda tmp: {"input_model": saved(tmp / "hole.pt", b"\0" * 300 + torchscript_bytes(tmp)[300:])},
        ImportGraphError,
        r"hole\.pt",
    ),
    "a saved state dict": (lambda tmp: {"input_model": pickled(tmp / "state.pt", Net().state_dict())}, ImportGraphError, "state"),
    "a pickled list": (lambda tmp: {"input_model": pickled(tmp / "list.pth", [1, 2])}, ImportGraphError, r"list\.pth"),
    "a model that raises": (lambda tmp: {"input_model": torch.jit.script(Choosy())}, TiaccError, "the sum is too small"),
    "a model without tensors": (lambda tmp: {"input_model": torch.jit.script(Counter())}, TiaccError, "input"),
    "an index beyond the table": (
        lambda tmp: {"input_model": torch.jit.script(Lookup()), "input_shapes": None, "test_data": [(torch.tensor([7]),)]},
        TiaccError,
        "index",
    ),
    # level and device
    "level 7": (lambda tmp: {"optimization_level": 7}, InvalidArgumentError, "optimization_level.*7"),
    "level -1": (lambda tmp: {"optimization_level": -1}, InvalidArgumentError, "optimization_level.*-1"),
    "level as text": (lambda tmp: {"optimization_level": "fp16"}, InvalidArgumentError, "optimization_level.*fp16"),
    "level as fraction": (lambda tmp: {"optimization_level": 0.5}, InvalidArgumentError, r"optimization_level.*0\.5"),
    "no level": (lambda tmp: {"optimization_level": None}, InvalidArgumentError, "optimization_level"),
    "device 3": (lambda tmp: {"device_type": 3}, InvalidArgumentError, "device_type.*3"),
    "an unknown device": (lambda tmp: {"device_type": "tpu"}, InvalidArgumentError, "device_type.*tpu"),
    "no device": (lambda tmp: {"device_type": None}, InvalidArgumentError, "device_type"),
    # the shapes
    "neither shapes nor data": (lambda tmp: {"input_shapes": None}, InvalidArgumentError, "input_shapes"),
    "shapes as number": (lambda tmp: {"input_shapes": 224}, InvalidArgumentError, "input_shapes is 224"),
    "no shapes": (lambda tmp: {"input_shapes": []}, InvalidArgumentError, "at least one input tensor"),
    "joined by x": (lambda tmp: {"input_shapes": ["1x3x8x8"]}, InvalidArgumentError, r"joined by \*"),
    "minus one": (lambda tmp: {"input_shapes": ["-1*3*8*8"]}, InvalidArgumentError, "'-1' is no size"),
    "a size of zero": (lambda tmp: {"input_shapes": ["0*3*8*8"]}, InvalidArgumentError, "sizes are at least 1"),
    "a range upside down": (
        lambda tmp: {"input_shapes": [{"range": ["4*3*8*8", "1*3*8*8"]}]},
        InvalidArgumentError,
        "smallest size of dimension 0 is 4",
    ),
    "an unknown key": (lambda tmp: {"input_shapes": [{"dynamic": ["1", "2"]}]}, InvalidArgumentError, "'dynamic'"),
    "an absurd size": (lambda tmp: {"input_shapes": ["224224*224224*3*9"]}, InvalidArgumentError, "elements; the most is"),
    "a shape too many": (lambda tmp: {"input_shapes": [*SHAPES, "1"]}, InvalidArgumentError, "expected at most 2 argument.*input_shapes"),
    "a shape too few": (lambda tmp: {"input_model": torch.jit.script(Two())}, InvalidArgumentError, "'y'.*input_shapes"),
    "a tensor for a dictionary": (
        lambda tmp: {"input_model": torch.jit.script(Named())},
        InvalidArgumentError,
        r"Expected a value of type 'Dict\[str, Tensor\]' for argument 'tensors' but instead found type 'Tensor'",
    ),
    "a rank that the model refuses": (lambda tmp: {"input_shapes": ["2*8"]}, TiaccError, "(?s)2.*8"),
    "channels that the model refuses": (lambda tmp: {"input_shapes": ["2*5*8*8"]}, TiaccError, "(?s)channels"),
    "sizes that the model refuses": (lambda tmp: {"input_shapes": ["2*3*2*2"]}, TiaccError, "(?s)size"),
    "an element type that the model refuses": (lambda tmp: {"input_shapes": [{"long": SHAPES[0]}]}, TiaccError, "(?s)type|dtype|Long"),
    # the data
    "a tensor as data": (lambda tmp: {"test_data": X}, InvalidArgumentError, r"test_data is a tensor; write \[\(x,\)\]"),
    "a tuple as data": (lambda tmp: {"test_data": (X,)}, InvalidArgumentError, "test_data is a tuple"),
    "no data": (lambda tmp: {"test_data": []}, InvalidArgumentError, "test_data is an empty list"),
    "an array as data": (lambda tmp: {"test_data": [(X.numpy(),)]}, InvalidArgumentError, "torch.from_numpy"),
    "data of another shape": (lambda tmp: {"test_data": [(X[:1],)]}, InvalidArgumentError, r"has the shape \(1, 3, 8, 8\)"),
    "data of another dtype": (lambda tmp: {"test_data": [(X.half(),)]}, InvalidArgumentError, r"torch\.float16, but input_shapes"),
    "data of another number": (lambda tmp: {"test_data": [(X, X)]}, InvalidArgumentError, "has 2 tensors, but input_shapes has 1"),
    "data without storage": (lambda tmp: {"test_data": [(X.to("meta"),)]}, InvalidArgumentError, "meta tensor"),
    # where to save
    "another suffix": (lambda tmp: {"save_path": str(tmp / "out.onnx")}, InvalidArgumentError, r"save_path.*out\.onnx"),
    "a missing folder": (lambda tmp: {"save_path": str(tmp / "missing" / "out.pt")}, InvalidArgumentError, "save_path.*missing"),
    "a folder to save to": (lambda tmp: {"save_path": str((tmp / "folder.pt").mkdir() or tmp / "folder.pt")}, TiaccError, r"folder\.pt"),
    "a name too long to save to": (lambda tmp: {"save_path": str(tmp / f"{'a' * 300}.pt")}, InvalidArgumentError, "save_path.*is no path"),
    "no name to save to": (lambda tmp: {"save_path": "a\0b.pt"}, InvalidArgumentError, "save_path.*is no path"),
    "a number to save to": (lambda tmp: {"save_path": 3}, InvalidArgumentError, "save_path"),
    # options
    "an unknown option": (lambda tmp: {"tolerence": 1}, InvalidArgumentError, "did you mean 'tolerance'"),
    "options of another type": (lambda tmp: {"options": {"seed": 1}}, InvalidArgumentError, "options is of type dict"),
    "more threads than there are": (lambda tmp: {"num_threads": 10**6}, InvalidArgumentError, "num_threads is 1000000.*at most"),
    "levels in an array": (lambda tmp: {"optimization_level": torch.tensor([0, 1])}, InvalidArgumentError, "optimization_level"),
    "an option out of range": (lambda tmp: {"num_threads": 0}, InvalidArgumentError, "num_threads is 0"),
    "an unknown method": (lambda tmp: {"keep_methods": "encode"}, InvalidArgumentError, "keep_methods has 'encode', .* it has forward"),
    "an unknown backend": (lambda tmp: {"backend": "openvin"}, RegistryError, "no backend is named 'openvin'"),
    "an unknown pass": (lambda tmp: {"passes": "fold-batchnorm"}, RegistryError, "no pass is named 'fold-batchnorm'"),
}


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def listing(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("case", CASES)
def test_a_clear_error_and_nothing_changed(case, tmp_path):
    change, kind, message = CASES[case]
    net = torch.jit.script(Net())
    net.norm.running_mean.normal_()
    arguments = {"input_model": net, "optimization_level": 0, "device_type": 1, "input_shapes": SHAPES}
    arguments |= {"save_path": str(tmp_path / "out.pt"), **change(tmp_path)}
    before, code, files, is_training = state_of(net), net.code, listing(tmp_path), net.training
    torch.manual_seed(3)
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    with pytest.raises(kind, match=message) as caught:
        tiacc.optimize(**arguments)
    assert isinstance(caught.value, TiaccError) and len(str(caught.value)) > 20
    assert net.code == code and net.training is is_training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert listing(tmp_path) == files
    assert torch.equal(torch.get_rng_state(), random) and torch.get_num_threads() == threads


def test_there_are_at_least_forty_kinds():
    assert len(CASES) >= 40


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_asked_for_where_there_is_none(tmp_path):
    with pytest.raises(BackendUnavailableError, match=r"(?s)device_type.*1"):
        tiacc.optimize(torch.jit.script(Net()), 0, 0, SHAPES)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InvalidArgumentError, match="save_path"):
            tiacc.optimize(torch.jit.script(Net()), 0, 1, SHAPES, save_path=str(tmp_path / "out.pt"))
    finally:
        tmp_path.chmod(0o700)


def test_an_older_file_survives_a_failure(tmp_path):
    path = tmp_path / "out.pt"
    path.write_bytes(b"older")
    with pytest.raises(TiaccError, match="the sum is too small"):
        tiacc.optimize(torch.jit.script(Choosy()), 0, 1, SHAPES, save_path=str(path))
    assert path.read_bytes() == b"older" and [*tmp_path.iterdir()] == [path]


def test_a_file_with_an_operator_of_a_package_that_is_not_imported(tmp_path):
    class Twice(torch.nn.Module):
        def forward(self, x):
            return torch.ops.tiacc_gone_test.twice(x).relu()

    library = torch.library.Library("tiacc_gone_test", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    torch.jit.save(torch.jit.script(Twice()), tmp_path / "twice.pt")
    library._destroy()
    with pytest.raises(ImportGraphError, match=r"operator tiacc_gone_test::twice, .* import the package"):
        tiacc.optimize(tmp_path / "twice.pt", 0, 1, SHAPES)

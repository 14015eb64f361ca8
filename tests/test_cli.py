import json
import subprocess
import sys
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch

import tiacc
from tests.helpers import forget_later
from tiacc import cli
from tiacc.backends.base import Support
from tiacc.errors import AccuracyError
from tiacc.options import Options
from tiacc.passes import RewriteRule
from tiacc.passes.base import Pass, PassResult, passes, register
from tiacc.registry import Registry
from tiacc.report import DataInfo, HardwareEnvironment, OptimizedReport, PassRow
from tiacc.shapes import parse_input_shapes

REPORT = OptimizedReport(
    [], HardwareEnvironment("CPU", "a CPU"), DataInfo("tiacc provided", "(1,)", "float32"), passes=[PassRow("fold", 3, 1.0)]
)


class Optimizer:
    """Stands in for `tiacc.optimize`: keeps the arguments and returns `REPORT`, or raises."""

    error = None

    def __call__(self, input_model, optimization_level, device_type, input_shapes, test_data=None, save_path=None, **fields):
        self.arguments = (input_model, optimization_level, device_type, input_shapes)
        self.test_data, self.save_path, self.fields = test_data, save_path, fields
        if self.error is not None:
            raise self.error
        return None, REPORT


@pytest.fixture
def optimizer(monkeypatch):
    stand_in = Optimizer()
    monkeypatch.setattr(tiacc, "optimize", stand_in, raising=False)
    return stand_in


def test_optimize_hands_its_arguments_over(optimizer, tmp_path, capsys):
    report = tmp_path / "report.json"
    words = "optimize model.pt --level 1 --device cpu --shape 1*3*224*224 --save out.pt --backend openvino,reference"
    more = ["--report", str(report), "-o", "tolerance=0.01", "--option", "keep-fp32=softmax"]
    assert cli.main([*words.split(), *more]) == 0
    assert optimizer.arguments == ("model.pt", 1, "cpu", ["1*3*224*224"])
    assert (optimizer.test_data, optimizer.save_path) == (None, "out.pt")
    assert optimizer.fields == {"backend": "openvino,reference", "tolerance": 0.01, "keep_fp32": "softmax"}
    assert OptimizedReport.from_dict(json.loads(report.read_text())) == REPORT
    captured = capsys.readouterr()
    assert captured.out == f"{REPORT}\n" and captured.err == ""


@pytest.mark.parametrize(
    ("texts", "entries"),
    [
        (["1*3"], ["1*3"]),
        (["1*3", "scalar"], ["1*3", "scalar"]),
        (['{"range,long": ["1*16", "8*512"]}'], [{"range,long": ["1*16", "8*512"]}]),
        (["{'separate': ['1*16', (8, 512)]}"], [{"separate": ["1*16", (8, 512)]}]),
        (["[1, 3]", "(2, 4)"], [[1, 3], (2, 4)]),
        (["{broken"], ["{broken"]),
    ],
)
def test_shapes_are_text_json_or_python(optimizer, texts, entries):
    cli.main(["optimize", "model.pt", *(part for text in texts for part in ("--shape", text))])
    assert optimizer.arguments[3] == entries
    if texts != ["{broken"]:
        parse_input_shapes(optimizer.arguments[3])


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("verbose=true", "verbose", True),
        ("require_speedup = None", "require_speedup", None),
        ("num-threads=2", "num_threads", 2),
        ("tolerance=1e-3", "tolerance", 1e-3),
        ("tolerance={'float32': 1e-3}", "tolerance", {"float32": 1e-3}),
        ('keep_fp32=["softmax", "norm"]', "keep_fp32", ["softmax", "norm"]),
        ("passes=fold-batch-norm, cast-half{dtype=bf16}", "passes", "fold-batch-norm, cast-half{dtype=bf16}"),
        ("target=sm80,sm89", "target", "sm80,sm89"),
    ],
)
def test_options_are_read(optimizer, text, field, value):
    assert cli.main(["optimize", "model.pt", "-o", text]) == 0
    assert optimizer.fields == {field: value}
    Options.from_fields(**optimizer.fields)


@pytest.mark.parametrize(("is_available", "device"), [(False, "cpu"), (True, "cuda")])
def test_the_device_is_the_gpu_where_there_is_one(optimizer, monkeypatch, is_available, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_available)
    cli.main(["optimize", "model.pt"])
    assert optimizer.arguments == ("model.pt", 0, device, None)
    cli.main(["optimize", "model.pt", "--device", "1"])
    assert optimizer.arguments[2] == 1


def test_json_quiet_and_data(optimizer, tmp_path, capsys):
    torch.save([(torch.ones(2), torch.zeros(3))], tmp_path / "data.pt")
    assert cli.main(["optimize", "model.pt", "--json", "--data", str(tmp_path / "data.pt")]) == 0
    assert json.loads(capsys.readouterr().out) == REPORT.to_dict()
    assert torch.equal(optimizer.test_data[0][0], torch.ones(2))
    assert cli.main(["optimize", "model.pt", "--quiet"]) == 0
    assert capsys.readouterr().out == "" and optimizer.fields == {"verbose": False}


BAD = [
    (["optimize", "m.pt", "-o", "seed"], r"--option is 'seed'; write NAME=VALUE"),
    (["optimize", "m.pt", "-o", "sead=3"], r"no option 'sead'; did you mean 'seed'?"),
    (["optimize", "m.pt", "-o", "seed=many"], r"the option seed is 'many'; it must be a whole number"),
    (["optimize", "m.pt", "--backend", ""], r"the option backend is ''"),
    (["optimize", "m.pt", "--data", "/missing/data.pt"], r"test data /missing/data.pt cannot be read: No such file"),
    (["optimize", "m.pt", "--data", __file__], r"test_cli.py is no file of tensors saved by torch.save"),
    (["optimize", "m.pt", "--report", "/missing/report.json"], r"cannot be written to /missing/report.json: /missing must be"),
    (["optimize", "m.pt", "--report", "/"], r"cannot be written to /"),
    (["inspect", "/missing.pt"], r"/missing.pt cannot be read: No such file"),
    (["inspect", __file__], r"is no TorchScript file"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(item[0][1:])[:50] for item in BAD])
def test_an_error_is_one_line_on_stderr_before_any_work(optimizer, capsys, arguments, message):
    assert cli.main(arguments) == cli.REFUSED
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("tiacc: error: ") and message in captured.err
    assert not hasattr(optimizer, "arguments")


def test_errors_of_optimize_are_told_without_the_grammar(optimizer, capsys):
    try:
        parse_input_shapes("1x3")
    except ValueError as error:
        optimizer.error = error
    assert cli.main(["optimize", "m.pt", "--shape", "1x3"]) == cli.REFUSED
    assert capsys.readouterr().err == "tiacc: error: input_shapes[0] = '1x3': the sizes in '1x3' are to be joined by *\n"
    optimizer.error = AccuracyError("output is off:\n  0.1 > 0.01")
    assert cli.main(["optimize", "m.pt"]) == cli.REFUSED
    assert capsys.readouterr().err == "tiacc: error: output is off: 0.1 > 0.01\n"


def test_an_unforeseen_error_has_its_own_code(optimizer, capsys):
    optimizer.error = KeyError("x")
    assert cli.main(["optimize", "m.pt"]) == cli.UNFORESEEN
    captured = capsys.readouterr()
    assert "please report it with --traceback: KeyError: 'x'" in captured.err and captured.out == ""


@pytest.mark.parametrize("arguments", [["--traceback", "optimize", "m.pt"], ["optimize", "m.pt", "--traceback"]])
def test_the_traceback_on_demand(optimizer, arguments):
    optimizer.error = AccuracyError("off")
    with pytest.raises(AccuracyError, match="off"):
        cli.main(arguments)


def test_an_interruption(optimizer, capsys):
    optimizer.error = KeyboardInterrupt()
    assert cli.main(["optimize", "m.pt"]) == cli.INTERRUPTED
    assert capsys.readouterr().err == "tiacc: interrupted\n"


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["optimize"], ["optimize", "m.pt", "--level", "high"]])
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == cli.USAGE and "usage: tiacc" in capsys.readouterr().err


def test_help_shows_the_grammar(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0 and "{'range': ['1*3*224*224', '8*3*512*512']}" in capsys.readouterr().out


class Explanation:
    def to_json(self):
        return '{"segments": 1}'

    def __str__(self):
        return "1 segment"


def test_explain(monkeypatch, capsys):
    calls = []

    def explain(*args, **kwargs):
        calls.append((args, kwargs))
        return Explanation()

    monkeypatch.setattr(tiacc, "explain", explain, raising=False)
    assert cli.main(["explain", "model.pt", "--shape", "1*3", "--device", "cpu", "--backend", "reference"]) == 0
    assert calls == [(("model.pt", ["1*3"]), {"optimization_level": 0, "device_type": "cpu", "backend": "reference"})]
    assert capsys.readouterr().out == "1 segment\n"
    assert cli.main(["explain", "model.pt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"segments": 1}


@dataclass(frozen=True)
class FoldTwice(Pass):
    """Fold what is there twice.

    More about it.
    """

    name: ClassVar[str] = "fold-twice"
    after: ClassVar[tuple[str, ...]] = ("fold-once",)
    dtype: str = "float16"
    names: list = field(default_factory=list)

    def apply(self, gm, ctx):
        return PassResult(gm, 0)


class Quick:
    """Run quickly."""

    name = "quick"
    device_types = ("cpu", "cuda")

    def available(self):
        return Support(False, "pip install quick")

    def version(self):
        return ""


class Entry:
    name = "broken"

    def load(self):
        raise ImportError("no module named nothing")


@pytest.fixture
def registries(monkeypatch):
    passes, backends = Registry("pass", "tiacc.none"), Registry("backend", "tiacc.none")
    passes.register("fold-twice")(FoldTwice)
    backends.register("quick")(Quick)
    monkeypatch.setattr("tiacc.passes.base.passes", passes)
    monkeypatch.setattr("tiacc.backends.base.backends", backends)
    monkeypatch.setattr("tiacc.registry.entry_points", lambda group: [Entry()])


def test_passes(registries, capsys):
    assert cli.main(["passes"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("fold-twice\n  Fold what is there twice.\n  option dtype = 'float16'\n  option names = []\n  after fold-once\n")
    assert "broken\n  cannot be imported: ImportError: no module named nothing" in text
    assert cli.main(["passes", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)[0]
    assert first["options"] == {"dtype": "'float16'", "names": "[]"} and first["after"] == ["fold-once"]


def test_backends(registries, capsys):
    assert cli.main(["backends"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:3]] == [["quick", "cpu+cuda", "-", "no"], ["broken", "-", "no"]]
    assert "  quick: pip install quick" in lines and "  broken: cannot be imported: ImportError: no module named nothing" in lines
    assert cli.main(["backends", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["summary"] == "Run quickly."


def test_inspect(tmp_path, capsys):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "plain.pt")
    assert cli.main(["inspect", str(tmp_path / "plain.pt")]) == 0
    assert capsys.readouterr().out == "plain.pt: 0.0 MB, 0 engines\n"
    assert cli.main(["inspect", "--json", str(tmp_path / "plain.pt")]) == 0
    assert json.loads(capsys.readouterr().out)["engines"] == []


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.norm = torch.nn.BatchNorm2d(8)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)))


def test_a_model_from_file_to_file(tmp_path, capsys):
    net = Net().eval()
    net.norm.running_mean.normal_()
    net.norm.running_var.uniform_(0.5, 2)
    torch.jit.save(torch.jit.script(net), tmp_path / "model.pt")
    words = f"optimize {tmp_path}/model.pt --device cpu --shape 2*3*16*16 --save {tmp_path}/fast.pt --report {tmp_path}/report.json"
    assert cli.main([*words.split(), "--backend", "reference", "-o", "timing_seconds=0.2"]) == 0
    captured = capsys.readouterr()
    report = OptimizedReport.from_dict(json.loads((tmp_path / "report.json").read_text()))
    assert captured.out == f"{report}\n" and captured.err == ""
    assert report.test_data_info == DataInfo("tiacc provided", "(2, 3, 16, 16)", "float32")
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(tmp_path / "fast.pt")(x), net(x), rtol=1e-4, atol=1e-5)


def test_passes_are_watched(tmp_path, capsys):
    torch.jit.save(torch.jit.script(Net().eval()), tmp_path / "model.pt")
    words = ["explain", str(tmp_path / "model.pt"), "--device", "cpu", "--shape", "2*3*16*16", "--backend", "reference", "--json"]
    assert cli.main([*words, "--dump", str(tmp_path / "dump"), "--verify-each", "--stop-after", "fold-batch-norm"]) == 0
    ran = [row["name"] for row in json.loads(capsys.readouterr().out)["passes"]]
    assert ran[-1] == "fold-batch-norm"
    dumps = sorted(path.name for path in (tmp_path / "dump").glob("*.txt"))
    assert dumps[0] == "000-input.txt" and dumps[-1].endswith("-fold-batch-norm.txt")
    assert "aten.batch_norm" in (tmp_path / "dump" / dumps[0]).read_text()
    assert "aten.batch_norm" not in (tmp_path / "dump" / dumps[-1]).read_text()
    assert cli.main([*words, "--fuel", "0"]) == 0
    assert sum(row["changes"] for row in json.loads(capsys.readouterr().out)["passes"]) == 0


def test_a_pass_that_changes_the_numbers_is_found(tmp_path, capsys, monkeypatch):
    forget_later(monkeypatch, passes)
    register(RewriteRule("test-wrong", lambda x: torch.ops.aten.relu(x), lambda x: torch.ops.aten.gelu(x)))
    torch.jit.save(torch.jit.script(torch.nn.Sequential(torch.nn.ReLU())), tmp_path / "model.pt")
    words = ["explain", str(tmp_path / "model.pt"), "--device", "cpu", "--shape", "2*3", "-o", "passes=+test-wrong"]
    assert cli.main(words) == 0
    assert cli.main([*words, "--verify-each"]) == cli.REFUSED
    assert "after pass test-wrong (1 changes) result 0 of the graph has a relative error of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stop-after", "fold-batchnorm"], "the pipeline has no pass 'fold-batchnorm'; did you mean 'fold-batch-norm'"),
        (["--fuel", "-1"], "the option fuel is -1"),
        (["--dump", __file__], "which is no directory"),
    ],
)
def test_wrong_ways_to_watch_are_refused(tmp_path, capsys, words, message):
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "model.pt")
    assert cli.main(["explain", str(tmp_path / "model.pt"), "--shape", "2", "--device", "cpu", *words]) == cli.REFUSED
    assert message in capsys.readouterr().err


def test_a_saved_report(tmp_path, capsys):
    REPORT.save_json(tmp_path / "report.json")
    assert cli.main(["report", str(tmp_path / "report.json")]) == 0
    assert capsys.readouterr().out == f"{REPORT}\n"
    assert cli.main(["report", str(tmp_path / "report.json"), "--html", str(tmp_path / "report.html")]) == 0
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    for text, words in (("{", "is no JSON"), ("{}", "schema version None"), (None, "cannot be read")):
        path = tmp_path / "other.json"
        path.unlink(missing_ok=True) if text is None else path.write_text(text)
        assert cli.main(["report", str(path)]) == cli.REFUSED
        assert words in capsys.readouterr().err


def test_the_page_of_a_report(optimizer, tmp_path):
    assert cli.main(["optimize", "model.pt", "--html", str(tmp_path / "report.html"), "--quiet"]) == 0
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert cli.main(["optimize", "model.pt", "--html", str(tmp_path / "missing" / "report.html")]) == cli.REFUSED


def test_an_error_of_the_real_optimize(tmp_path, capsys):
    assert cli.main(["optimize", str(tmp_path / "missing.pt"), "--device", "cpu", "--shape", "1"]) == cli.REFUSED
    assert "missing.pt' does not exist" in capsys.readouterr().err


def test_the_program_itself(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "plain.pt")
    done = subprocess.run([sys.executable, "-m", "tiacc.cli", "inspect", tmp_path / "plain.pt"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "plain.pt: 0.0 MB, 0 engines\n", "")

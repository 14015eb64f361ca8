from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import fx

from tests.helpers import Sketch, forget_later
from tiacc.errors import InvalidArgumentError, PassError, PassOrderError, PostconditionError, PreconditionError, RegistryError
from tiacc.passes import option_text
from tiacc.passes.base import Fuel, Pass, PassContext, PassResult, pass_class, passes
from tiacc.passes.manager import PassManager, schedule
from tiacc.passes.rules import RewriteRule
from tiacc.registry import Registry

aten = torch.ops.aten


@dataclass(frozen=True)
class DropRelus(Pass):
    """relu(x) → x, at most `most` of them a run."""

    name: ClassVar[str] = "test-drop-relus"
    most: int = 1000
    factor: float = 1.0
    quick: bool = False
    label: str = ""
    dtype: torch.dtype = torch.float16
    keep: tuple[str, ...] = ()
    limit: int | None = None

    def apply(self, gm: fx.GraphModule, ctx: PassContext) -> PassResult:
        changes = 0
        for node in gm.graph.find_nodes(op="call_function", target=aten.relu.default):
            if changes < self.most and ctx.spend():
                node.replace_all_uses_with(node.args[0])
                gm.graph.erase_node(node)
                changes += 1
        return PassResult(gm, changes)


@dataclass(frozen=True)
class First(Pass):
    name: ClassVar[str] = "test-first"
    before: ClassVar[tuple[str, ...]] = ("test-drop-relus",)

    def apply(self, gm, ctx):
        return PassResult(gm, 0)


@dataclass(frozen=True)
class Last(Pass):
    name: ClassVar[str] = "test-last"
    after: ClassVar[tuple[str, ...]] = ("test-drop-relus", "test-first")

    def apply(self, gm, ctx):
        return PassResult(gm, 0)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    forget_later(monkeypatch, passes)
    for cls in (DropRelus, First, Last):
        passes.register(cls.name)(cls)


def relus(count: int) -> fx.GraphModule:
    sketch = Sketch()
    value = sketch.input("x", 2, 3)
    for _ in range(count):
        value = sketch.call(aten.relu.default, value)
    return sketch.output(sketch.call(aten.neg.default, value))


def count(gm: fx.GraphModule) -> int:
    return len(gm.graph.find_nodes(op="call_function", target=aten.relu.default))


def test_passes_run_in_order_and_changes_add_up():
    result = PassManager((First(), DropRelus(most=2), DropRelus(most=1), Last()))(relus(5))
    assert result.changes == 3
    assert count(result.graph) == 2
    x = torch.randn(2, 3)
    torch.testing.assert_close(result.graph(x)[0], -x.relu())


def test_steps_repeat_until_nothing_changes():
    assert PassManager((DropRelus(most=2),), steps=2)(relus(5)).changes == 4
    assert PassManager((DropRelus(most=2),), steps=100)(relus(5)).changes == 5
    assert PassManager((DropRelus(),), steps=9)(relus(0)).changes == 0


def test_a_graph_runs_as_changed_only_through_call():
    """The code of the graph is made once, at the end of the outermost manager."""
    gm = relus(2)
    code = gm.code
    DropRelus().run(gm, PassContext())
    assert gm.code == code
    assert PassManager((PassManager((First(),)),))(gm).changes == 0
    gm = relus(2)
    assert "relu" in gm.code
    assert "relu" not in PassManager((PassManager((DropRelus(),)),))(gm).graph.code


def test_fuel_limits_the_rewrites_of_all_passes_together():
    fuel = Fuel(3)
    result = PassManager((DropRelus(most=2), DropRelus()))(relus(5), PassContext(fuel=fuel))
    assert (result.changes, fuel.left) == (3, 0)


def test_errors_name_the_pass():
    @dataclass(frozen=True)
    class Broken(Pass):
        name: ClassVar[str] = "test-broken"
        how: str = "raise"

        def requires(self, gm):
            if self.how == "requires":
                raise PreconditionError("not in the form")

        def ensures(self, gm):
            if self.how == "ensures":
                raise PostconditionError("not as promised")

        def apply(self, gm, ctx):
            if self.how == "raise":
                raise ZeroDivisionError("oh")
            if self.how == "malform":
                relu, neg = (node for node in gm.graph.nodes if node.op == "call_function")
                relu.args = (neg,)
                return PassResult(gm, 1)
            return PassResult(gm, 0)

    for how, kind, words in (
        ("raise", PassError, "pass test-broken failed: ZeroDivisionError: oh"),
        ("malform", PostconditionError, "pass test-broken left a malformed graph"),
        ("requires", PreconditionError, "not in the form"),
        ("ensures", PostconditionError, "not as promised"),
    ):
        with pytest.raises(kind, match=words):
            PassManager((Broken(how),))(relus(1))


class TestSchedule:
    def test_the_list_is_the_order(self):
        first, drop, last = First(), DropRelus(), Last()
        assert schedule([first, drop, last]) == (first, drop, last)
        assert schedule([drop, drop]) == (drop, drop)
        assert schedule([]) == ()

    def test_a_contradiction_is_refused_and_an_order_that_holds_is_printed(self):
        with pytest.raises(PassOrderError, match=r"'test-drop-relus' may not come later than 'test-last'.*test-drop-relus, test-last"):
            schedule([Last(), DropRelus()])
        with pytest.raises(PassOrderError, match="'test-first' may not come later than 'test-drop-relus'"):
            PassManager((DropRelus(), First()))

    def test_both_places_of_a_pass_count(self):
        with pytest.raises(PassOrderError):
            schedule([DropRelus(), First(), DropRelus()])

    def test_nested_managers_count(self):
        with pytest.raises(PassOrderError):
            PassManager((PassManager((Last(),)), PassManager((DropRelus(),))))

    def test_a_cycle_is_printed(self):
        @dataclass(frozen=True)
        class Cyclic(First):
            name: ClassVar[str] = "test-cyclic"
            before: ClassVar[tuple[str, ...]] = ("test-first",)
            after: ClassVar[tuple[str, ...]] = ("test-drop-relus",)

        passes.register(Cyclic.name)(Cyclic)
        with pytest.raises(PassOrderError) as error:
            schedule([First(), Cyclic(), DropRelus()])
        for name in ("test-first", "test-cyclic", "test-drop-relus"):
            assert name in str(error.value)
        assert "→" in str(error.value)

    def test_an_unknown_name_is_refused_and_the_nearest_is_named(self):
        @dataclass(frozen=True)
        class Misspelt(First):
            name: ClassVar[str] = "test-misspelt"
            before: ClassVar[tuple[str, ...]] = ("test-drop-relu",)

        with pytest.raises(PassOrderError, match=r"'test-misspelt'.*did you mean 'test-drop-relus'"):
            schedule([Misspelt()])

    def test_steps_must_be_positive(self):
        with pytest.raises(InvalidArgumentError, match="steps=0"):
            PassManager((First(),), steps=0)


class TestText:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: PassManager((First(), Last())),
            lambda: PassManager((DropRelus(),)),
            lambda: PassManager((DropRelus(3, 1e-5, True, "a b,c{}|=\"'", torch.bfloat16, ("softmax", "aten.*", "x|y", ""), 7),)),
            lambda: PassManager((DropRelus(limit=None, keep=(), label="", dtype=torch.float64),)),
            lambda: PassManager((First(), DropRelus()), steps=3),
            lambda: PassManager((First(), PassManager((DropRelus(most=2),), steps=4), PassManager((Last(),)))),
            lambda: PassManager((PassManager((DropRelus(),), steps=4),)),
            lambda: PassManager((PassManager((DropRelus(),)),), steps=2),
            lambda: PassManager((PassManager((PassManager((DropRelus(),)),)),)),
        ],
    )
    def test_str_is_read_back_as_the_same(self, make):
        manager = make()
        assert PassManager.parse(str(manager)) == manager
        for pass_ in manager.leaves():
            assert PassManager.parse(str(pass_)).passes == (pass_,)

    def test_options_are_read_by_the_types_of_the_fields(self):
        (pass_,) = PassManager.parse(
            " test-drop-relus { most=2 ,factor=1e-5, quick=True, label=x, dtype = torch.bfloat16, keep=softmax | aten.gelu.* }"
        ).passes
        assert pass_ == DropRelus(2, 1e-5, True, "x", torch.bfloat16, ("softmax", "aten.gelu.*"))
        assert PassManager.parse("test-drop-relus{keep=, dtype=bf16}").passes == (DropRelus(keep=(), dtype=torch.bfloat16),)
        assert PassManager.parse("test-drop-relus{limit=None}, test-last{}").passes == (DropRelus(), Last())

    def test_str_leaves_out_defaults(self):
        assert str(PassManager((First(), DropRelus(most=2, dtype=torch.bfloat16)))) == "test-first, test-drop-relus{most=2, dtype=bf16}"

    @pytest.mark.parametrize(
        ("text", "kind", "words"),
        [
            ("", InvalidArgumentError, "the name of a pass is expected at the end"),
            ("test-first,", InvalidArgumentError, "the name of a pass is expected at the end"),
            ("test-first test-last", InvalidArgumentError, "',' or the end is expected at character 11, not 'test-last'"),
            ("test-frist", RegistryError, "did you mean 'test-first'"),
            ("test-first{", InvalidArgumentError, "the name of an option is expected at the end"),
            ("test-first{most=1}", InvalidArgumentError, "'test-first'.*no option 'most'; the options are none"),
            ("test-drop-relus{most}", InvalidArgumentError, "'=' is expected at character 20"),
            ("test-drop-relus{most=1.5}", InvalidArgumentError, "option 'most': '1.5' is not a whole number"),
            ("test-drop-relus{factor=x}", InvalidArgumentError, "option 'factor': 'x' is not a number"),
            ("test-drop-relus{quick=1}", InvalidArgumentError, "option 'quick': '1' is not true or false"),
            ("test-drop-relus{dtype=int4}", InvalidArgumentError, "option 'dtype': 'int4' is not one of fp16"),
            ("test-drop-relus{most=1|2}", InvalidArgumentError, "one value is expected, not 2"),
            ("test-drop-relus{most=}", InvalidArgumentError, "one value is expected, not 0"),
            ("test-drop-relus{most=1, most=2}", InvalidArgumentError, "given twice"),
            ("test-drop-relus{most=1", InvalidArgumentError, "'}' is expected at the end"),
            ('test-drop-relus{label="a}', InvalidArgumentError, "the quote at character 22 is not closed"),
            ("(test-first", InvalidArgumentError, r"'\)' is expected at the end"),
            ("(test-first)*x", InvalidArgumentError, r"a count such as \*3"),
            ("(test-first)*0", InvalidArgumentError, "steps=0"),
            ("test-last, test-drop-relus", PassOrderError, "may not come later"),
        ],
    )
    def test_bad_text_is_refused_with_the_place(self, text, kind, words):
        with pytest.raises(kind, match=words):
            PassManager.parse(text)


def test_an_entry_point_may_name_a_function_or_a_rule(monkeypatch):
    class Point:
        def __init__(self, name, item):
            self.name, self.load = name, lambda: item

    def keep_all(gm, ctx, *, least: int = 2):
        return 0

    def no_pass(gm):
        return 0

    rule = RewriteRule("drop-neg", lambda x: aten.neg(aten.neg(x)), lambda x: x)
    points = [Point("keep-all", keep_all), Point("drop-neg", rule), Point("no-pass", no_pass), Point("drop-two", rule)]
    monkeypatch.setattr("tiacc.registry.entry_points", lambda group: points)
    table = Registry("pass", "tiacc.none", pass_class)
    assert str(table.get("keep-all")(least=3)) == "keep-all{least=3}"
    assert table.get("drop-neg") is rule.pass_class
    with pytest.raises(RegistryError, match=r"'no-pass' is installed but failed to import: .*has a name, takes"):
        table.get("no-pass")
    with pytest.raises(RegistryError, match="names a pass that calls itself 'drop-neg'; give both the same name"):
        table.get("drop-two")


MODULE = """
import torch
from tiacc.passes import RewriteRule
aten = torch.ops.aten
fuse_silu = RewriteRule("fuse-silu", lambda x: x * aten.sigmoid(x), lambda x: aten.silu(x))
"""

USE = """
import torch, tiacc
from tiacc import cli

class Gate(torch.nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)

assert cli.main(["passes"]) == 0
for passes in ("+fuse-silu before cast-half", tiacc.passes.default().after("fold-batch-norm", "fuse-silu"), ["fuse-silu"]):
    explained = tiacc.explain(torch.jit.trace(Gate(), torch.ones(2)), ["2"], device_type="cpu", passes=passes)
    assert {row.name: row.changes for row in explained.passes}["fuse-silu"] == 1
"""


def test_an_installed_package_brings_a_pass(tmp_path):
    """A package with an entry point lies on the path, as pip leaves one there; tiacc finds its pass by name."""
    (tmp_path / "my_package.py").write_text(MODULE)
    metadata = tmp_path / "my_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[tiacc.passes]\nfuse-silu = my_package:fuse_silu\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", USE], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "fuse-silu\n  Applies the rule fuse-silu." in done.stdout


def test_a_function_pass_returns_a_number():
    def forgetful(gm, ctx):
        return None

    with pytest.raises(PassError, match="pass forgetful returned None; it returns the number of its changes"):
        pass_class(forgetful)()(relus(1))


def test_options_of_a_function_pass():
    def named(gm: OnlyForTypeCheckers, ctx, *, keep: tuple[str, ...] = (), dtype=torch.float16):  # noqa: F821
        return 0

    def mutable(gm, ctx, *, keep=[]):  # noqa: B006
        return 0

    def unknown(gm, ctx, *, most: OnlyForTypeCheckers = 3):  # noqa: F821
        return 0

    cls = pass_class(named)
    assert option_text.parse_options(cls, [("keep", ["a", "b"])]) == {"keep": ("a", "b")}
    with pytest.raises(InvalidArgumentError, match="cannot be read: name 'OnlyForTypeCheckers' is not defined"):
        pass_class(unknown)
    assert str(cls(keep=("a", "b"), dtype=torch.bfloat16)) == "named{keep=a|b, dtype=bf16}"
    with pytest.raises(InvalidArgumentError, match=r"the option 'keep' of .*mutable has a list for a default"):
        pass_class(mutable)

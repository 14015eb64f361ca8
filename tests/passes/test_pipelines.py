from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import Dim, Sketch, assert_untouched, assert_values_hold, copy_of, count_calls, random_inputs, run, state_of
from tiacc.errors import InvalidArgumentError
from tiacc.graph.importer import import_module
from tiacc.graph.specs import TensorSpec
from tiacc.passes.base import Pass, PassContext, PassResult
from tiacc.passes.cast_half import CastHalf
from tiacc.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from tiacc.passes.eliminate_dead_code import EliminateDeadCode
from tiacc.passes.eliminate_identities import EliminateIdentities
from tiacc.passes.fold_batch_norm import FoldBatchNorm
from tiacc.passes.fold_constants import FoldConstants
from tiacc.passes.instruments import TimingInstrument
from tiacc.passes.manager import PassManager
from tiacc.passes.pipelines import pipeline
from tiacc.passes.remove_dropout import RemoveDropout

aten = torch.ops.aten
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def casts(manager):
    return [pass_ for pass_ in manager.leaves() if isinstance(pass_, CastHalf)]


def test_level_0_keeps_the_arithmetic_and_level_1_casts():
    assert casts(pipeline(0, CPU)) == []
    assert casts(pipeline(1, CPU)) == [CastHalf(torch.bfloat16)]
    assert casts(pipeline(1, CUDA)) == [CastHalf(torch.float16)]
    assert casts(pipeline(1, CPU, torch.float16, ("softmax",))) == [CastHalf(torch.float16, ("softmax",))]


def test_a_pipeline_is_text():
    for manager in (pipeline(0, CPU), pipeline(1, CUDA, None, ("aten.softmax.*", "a b"))):
        assert PassManager.parse(str(manager)) == manager


@pytest.mark.parametrize(("level", "half", "words"), [(2, None, "optimization_level=2"), (1, torch.float32, "half=torch.float32")])
def test_other_levels_and_dtypes_are_refused(level, half, words):
    with pytest.raises(InvalidArgumentError, match=words):
        pipeline(level, CPU, half)


def block(sketch, x, index, channels=4):
    """conv → bn → relu → dropout → identity → two equal branches → residual."""

    def constant(name, value):
        return sketch.constant(f"{name}{index}", value.to(torch.float64))

    w = constant("w", torch.randn(channels, channels, 3, 3) / 6)
    statistics = [constant(name, torch.rand(channels) + 0.5) for name in ("gamma", "beta", "mean", "var")]
    y = sketch.call(aten.conv2d.default, x, w, None, [1, 1], [1, 1])
    y = sketch.call(aten.batch_norm.default, y, *statistics, False, 0.1, 1e-5, True)
    y = sketch.call(aten.dropout.default, sketch.call(aten.relu.default, y), 0.1, False)
    y = sketch.call(aten.mul.Tensor, sketch.call(aten.alias.default, y), 1.0)
    one, two = (sketch.call(aten.sigmoid.default, y) for _ in range(2))
    shift = sketch.call(aten.mul.Tensor, constant("shift", torch.randn(channels, 1, 1)), 0.5)
    return sketch.call(aten.add.Tensor, sketch.call(aten.add.Tensor, sketch.call(aten.mul.Tensor, one, two), x), shift)


def network(blocks, size=6):
    torch.manual_seed(0)
    sketch = Sketch()
    x = sketch.input("x", Dim("n", 1, 2, 3), 4, size, size, dtype=torch.float64)
    for index in range(blocks):
        x = block(sketch, x, index)
    return sketch.output(x)


def test_a_network_is_cleaned_up():
    gm = network(3)
    before = copy_of(gm)
    timing = TimingInstrument()
    result = pipeline(0, CPU)(gm, PassContext(instruments=(timing,)))
    changes = {row.name: row.changes for row in timing.totals()}
    assert changes["remove-dropout"] == 3
    assert changes["fold-batch-norm"] == 3
    assert changes["fold-constants"] == 3
    assert changes["eliminate-identities"] == 6
    assert changes["eliminate-common-subexpressions"] == 3
    assert result.changes == sum(changes.values())
    targets = [str(node.target) for node in gm.graph.nodes if node.op == "call_function"]
    each = ["aten.conv2d.default", "aten.relu.default", "aten.sigmoid.default", "aten.mul.Tensor", "aten.add.Tensor", "aten.add.Tensor"]
    assert targets == each * 3
    assert len(list(gm.buffers())) == 9
    for which in ("min", "opt", "max"):
        inputs = random_inputs(before, which)
        torch.testing.assert_close(run(gm, inputs), run(before, inputs), rtol=1e-10, atol=1e-10)
    assert pipeline(0, CPU)(gm).changes == 0


def test_what_nobody_reads_does_not_keep_a_normalisation():
    torch.manual_seed(0)
    sketch = Sketch()
    x = sketch.input("x", 2, 4, 5, 5)
    y = sketch.call(aten.conv2d.default, x, sketch.constant("w", torch.randn(4, 4, 1, 1)))
    sketch.call(aten.relu.default, y)
    mean, var = sketch.constant("mean", torch.randn(4)), sketch.constant("var", torch.rand(4) + 0.5)
    gm = sketch.output(sketch.call(aten.batch_norm.default, y, None, None, mean, var, False, 0.1, 1e-5, True))
    pipeline(0, CPU)(gm)
    assert [node.target for node in gm.graph.nodes if node.op == "call_function"] == [aten.conv2d.default]
    assert pipeline(0, CPU)(gm).changes == 0


def test_equal_layers_share_their_folded_weights():
    torch.manual_seed(0)
    sketch = Sketch()
    y = sketch.input("x", 2, 4, 5, 5)
    w = sketch.constant("w", torch.randn(4, 4, 1, 1))
    mean, var = sketch.constant("mean", torch.randn(4)), sketch.constant("var", torch.rand(4) + 0.5)
    for _ in range(2):
        y = sketch.call(aten.conv2d.default, y, w)
        y = sketch.call(aten.batch_norm.default, y, None, None, mean, var, False, 0.1, 1e-5, True)
    gm = sketch.output(y)
    before = copy_of(gm)
    pipeline(0, CPU)(gm)
    assert len(list(gm.buffers())) == 2
    inputs = random_inputs(before)
    torch.testing.assert_close(run(gm, inputs), run(before, inputs), rtol=1e-4, atol=1e-4)
    assert pipeline(0, CPU)(gm).changes == 0


def test_work_grows_with_the_graph_not_with_its_square():
    def work(blocks, level):
        gm = network(blocks, size=2)
        return count_calls(lambda: pipeline(level, CPU)(gm))

    work(2, 1)
    for level in (0, 1):
        assert work(60, level) < 8 * work(10, level)


def test_resnet_50_has_its_53_normalisations_folded():
    torchvision = pytest.importorskip("torchvision")
    from tiacc.graph.importer import import_module
    from tiacc.graph.specs import TensorSpec

    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean, 0.0, 0.1)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0.0, 0.1)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        traced = torch.jit.trace(model, x)
        expected = copy.deepcopy(model).double()(x.double())
    (region,) = import_module(traced, [TensorSpec((1, 3, 64, 64), torch.float32)]).regions
    timing = TimingInstrument()
    gm = pipeline(0, CPU)(region.graph, PassContext(instruments=(timing,))).graph
    assert {row.name: row.changes for row in timing.totals()}["fold-batch-norm"] == 53
    (got,) = run(gm, [x])
    assert (got - expected).abs().max() / expected.abs().max() < 1e-5
    ctx = PassContext()
    CastHalf(torch.bfloat16)(gm, ctx)
    report = ctx.data["cast-half"]
    assert (report.casts, report.constants, report.kept) == (2, 108, {})
    (got,) = run(gm, [x])
    assert (got - expected).abs().max() / expected.abs().max() < 2e-2


# Random graphs -----------------------------------------------------------------------------------------------------------

UNARY = [
    (aten.relu.default,),
    (aten.neg.default,),
    (aten.tanh.default,),
    (aten.sigmoid.default,),
    (aten.softmax.int, 1),
    (aten.mul.Tensor, 1.0),
    (aten.mul.Tensor, 0.5),
    (aten.add.Tensor, 0.0),
    (aten.sub.Tensor, 0),
    (aten.div.Tensor, 1),
    (aten.clone.default,),
    (aten.contiguous.default,),
    (aten.detach.default,),
    (aten.dropout.default, 0.5, False),
    (aten.reshape.default, [-1, 4, 5, 5]),
    (aten.flip.default, [2]),
    (aten.transpose.int, 2, 3),
    (aten.permute.default, [0, 1, 3, 2]),
    (aten.slice.Tensor, 1, 0, 2**63 - 1),
    (aten.expand.default, [-1, 4, 5, 5]),
    (aten.cumsum.default, 2),
    (aten.max_pool2d.default, [3, 3], [1, 1], [1, 1]),
    (aten.avg_pool2d.default, [1, 1]),
    (aten.layer_norm.default, [5]),
]
BINARY = [aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.maximum.default]


@st.composite
def programs(draw):
    """A list of steps; each reads earlier values by their number and gives one of shape (n, 4, 5, 5)."""
    length = draw(st.integers(1, 12))
    steps = []
    for index in range(length):
        kind = draw(st.sampled_from(["unary", "unary", "unary", "binary", "constant", "conv", "norm", "linear", "cat"]))
        # Mostly the value before, so that the steps meet.
        sources = [index - draw(st.sampled_from([0, 0, 0, min(1, index), draw(st.integers(0, index))])) for _ in range(2)]
        steps.append((kind, sources, draw(st.integers(0, 10**6))))
    returned = draw(st.lists(st.integers(0, length), min_size=1, max_size=3))
    return steps, [*returned, length], draw(st.booleans())


def build(program, dtype):
    steps, returned, is_dynamic = program
    sketch = Sketch()
    values = [sketch.input("x", Dim("n", 2, 3, 5) if is_dynamic else 3, 4, 5, 5, dtype=dtype)]
    for number, (kind, (first, second), seed) in enumerate(steps):
        generator = torch.Generator().manual_seed(seed % 3)  # so that some constants are equal

        def constant(name, *shape, positive=False, number=number, generator=generator):
            value = torch.randn(shape, generator=generator, dtype=dtype)
            return sketch.constant(f"{name}_{number}", value.abs() + 0.5 if positive else value)

        x, y = values[first], values[second]
        if kind == "unary":
            target, *args = UNARY[seed % len(UNARY)]
            made = sketch.call(target, x, *args)
        elif kind == "binary":
            made = sketch.call(BINARY[seed % len(BINARY)], x, y)
        elif kind == "constant":
            c = sketch.call(aten.mul.Tensor, constant("c", 4, 1, 1), 0.5)
            made = sketch.call(BINARY[seed % len(BINARY)], x, sketch.call(aten.tanh.default, c))
        elif kind == "conv":
            size, pad = ((1, 0), (3, 1))[seed % 2]
            groups = (1, 2, 4)[seed % 3]
            w = constant("w", 4, 4 // groups, size, size)
            made = sketch.call(aten.conv2d.default, x, w, constant("b", 4) if seed % 5 else None, [1, 1], [pad, pad], [1, 1], groups)
        elif kind == "norm":
            gamma, beta, mean = (constant(name, 4) for name in ("gamma", "beta", "mean"))
            made = sketch.call(aten.batch_norm.default, x, gamma, beta, mean, constant("var", 4, positive=True), False, 0.1, 1e-3, True)
        elif kind == "linear":
            made = sketch.call(aten.linear.default, x, constant("w", 5, 5), constant("b", 5))
        else:
            halves = [sketch.call(aten.slice.Tensor, v, 1, *span) for v, span in ((x, (0, 2)), (y, (2, 4)))]
            made = sketch.call(aten.cat.default, halves, 1)
        values.append(made)
    return sketch.output(*(values[index] for index in returned))


def shared(tensors):
    """Which pairs share memory."""
    return {
        (a, b)
        for a, first in enumerate(tensors)
        for b, second in enumerate(tensors)
        if a < b and first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    }


EACH = [RemoveDropout(), FoldConstants(), EliminateIdentities(), EliminateCommonSubexpressions(), FoldBatchNorm(), EliminateDeadCode()]
QUICK = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@QUICK
@given(programs(), st.sampled_from([pipeline(0, CPU), *EACH]))
def test_random_graphs_compute_the_same(program, pass_):
    gm = build(program, torch.float64)
    before, state, tensors = copy_of(gm), state_of(gm), dict(gm.named_buffers())
    was = str(gm.graph)
    changes = pass_(gm).changes
    assert (changes == 0) == (str(gm.graph) == was and {name for name, _ in gm.named_buffers()} == set(tensors))
    for which in ("min", "opt", "max"):
        inputs = random_inputs(before, which)
        got, want = run(gm, inputs), run(before, inputs)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, equal_nan=True)
        assert [item.stride() for item in got] == [item.stride() for item in want]
        constants = [*tensors.values(), *gm.buffers()]
        assert shared([*got, *inputs, *constants]) <= shared([*want, *inputs, *constants]), "a result became an alias"
    assert_values_hold(gm)
    assert_untouched(state, tensors)
    assert pass_(gm).changes == 0


@QUICK
@given(programs(), st.sampled_from([torch.float16, torch.bfloat16]))
def test_random_graphs_in_half_precision_keep_their_types_and_settle(program, half):
    gm = build(program, torch.float32)
    before, state, tensors = copy_of(gm), state_of(gm), dict(gm.named_buffers())
    ctx = PassContext()
    manager = pipeline(1, CPU, half)
    manager(gm, ctx)
    report = ctx.data["cast-half"]
    for node in gm.graph.nodes:
        if node.op == "call_function" and node.target is not aten.to.dtype:
            assert (node.name in report.kept) == (node.meta["val"].dtype == torch.float32)
    inputs = random_inputs(before)
    for got, want in zip(run(gm, inputs), run(before, inputs), strict=True):
        assert (got.dtype, got.shape, got.stride()) == (want.dtype, want.shape, want.stride())
        assert (got - want).norm() <= 0.25 * want.norm() + 1e-6
    assert_values_hold(gm)
    assert_untouched(state, tensors)
    assert manager(gm, PassContext()).changes == 0


def test_the_code_of_an_imported_graph_is_written_when_it_is_called(monkeypatch):
    """That takes as long as the passes."""
    written = []
    write = torch.fx.Graph.python_code
    monkeypatch.setattr(torch.fx.Graph, "python_code", lambda self, *args, **kwargs: written.append(self) or write(self, *args, **kwargs))
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Dropout(), torch.nn.ReLU()).eval()
    x = torch.randn(1, 3, 8, 8)
    (region,) = import_module(torch.jit.trace(net, x), [TensorSpec((1, 3, 8, 8), torch.float32)]).regions
    for pass_ in (pipeline(0, CPU), Scale(2.0), Scale(3.0)):
        assert pass_(region.graph, PassContext(instruments=(TimingInstrument(),))).changes
    assert not written
    torch.testing.assert_close(region.graph(x)[0], net(x) * 6)
    Scale(0.5)(region.graph)
    torch.testing.assert_close(region.graph(x)[0], net(x) * 3)
    assert len(written) == 2


@dataclass(frozen=True)
class Scale(Pass):
    """Multiplies what a graph returns."""

    name: ClassVar[str] = "test-scale"
    factor: float

    def apply(self, gm, ctx):
        output = gm.graph.output_node()
        with gm.graph.inserting_before(output):
            output.args = (tuple(gm.graph.call_function(aten.mul.Tensor, (node, self.factor)) for node in output.args[0]),)
        return PassResult(gm, 1)

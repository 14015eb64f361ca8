from __future__ import annotations

import pytest
import torch
from torch import nn

import tiacc
from tests.helpers import forget_later
from tiacc.errors import InvalidArgumentError, PassOrderError, RegistryError
from tiacc.passes import RewriteRule, default
from tiacc.passes.base import passes, register
from tiacc.passes.cast_half import CastHalf
from tiacc.passes.edits import PipelineEdits, as_pass, choose
from tiacc.passes.fold_batch_norm import FoldBatchNorm
from tiacc.passes.pipelines import pipeline
from tiacc.passes.remove_dropout import RemoveDropout

aten = torch.ops.aten
CPU = torch.device("cpu")


def test_count(gm, ctx, *, least: int = 1):
    """Change nothing."""
    return 0


test_count.__test__ = False
RULE = RewriteRule("test-silu", lambda x: x * aten.sigmoid(x), lambda x: aten.silu(x))


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    forget_later(monkeypatch, passes)
    register(test_count)
    register(RULE)


def names(edits, level=1):
    return [leaf.name for leaf in choose(edits, lambda: pipeline(level, CPU)).leaves()]


USUAL = [leaf.name for leaf in pipeline(1, CPU).leaves()]


def test_no_changes():
    assert names(None) == names(default()) == USUAL


def test_before_is_before_the_first_and_after_behind_the_last():
    first, last = USUAL.index("eliminate-dead-code"), len(USUAL) - 1 - USUAL[::-1].index("eliminate-dead-code")
    assert names(default().before("eliminate-dead-code", RULE)) == [*USUAL[:first], "test-silu", *USUAL[first:]]
    behind = [*USUAL[: last + 1], "test-silu", "test-count", *USUAL[last + 1 :]]
    assert names(default().after("eliminate-dead-code", RULE, test_count)) == behind
    assert names(default().last("eliminate-dead-code")) == [*USUAL, "eliminate-dead-code"]


def test_a_pass_put_beside_one_that_repeats_repeats_with_it():
    changed = choose(default().before("eliminate-identities", RULE), lambda: pipeline(0, CPU))
    inner = next(item for item in changed.passes if getattr(item, "steps", 1) == 3)
    assert [item.name for item in inner.passes][:3] == ["fold-constants", "test-silu", "eliminate-identities"]


def test_without_takes_out_each_run_and_replace_puts_another_there():
    assert names(default().without("eliminate-dead-code", RemoveDropout)) == [
        name for name in USUAL if name not in ("eliminate-dead-code", "remove-dropout")
    ]
    assert names(default().replace(FoldBatchNorm, RULE)) == ["test-silu" if name == "fold-batch-norm" else name for name in USUAL]
    emptied = default().without("fold-constants", "eliminate-identities", "eliminate-common-subexpressions")
    assert "(" not in str(choose(emptied, lambda: pipeline(0, CPU)))


def test_later_changes_see_earlier_ones():
    changed = default().before("cast-half", RULE).after(RULE, test_count).without(RULE)
    assert names(changed) == names(default().before("cast-half", test_count))


def test_what_the_level_does_not_have():
    usual = [leaf.name for leaf in pipeline(0, CPU).leaves()]
    assert names(default().before("cast-half", RULE), level=0) == [*usual, "test-silu"]
    assert names(default().without("cast-half").replace("cast-half", RULE), level=0) == usual


@pytest.mark.parametrize(
    "make",
    [
        lambda: default().before("cast-half", RULE).without("remove-dropout"),
        lambda: default().after("fold-batch-norm", test_count, CastHalf(torch.float16, ("softmax",))).last(RULE),
        lambda: default().replace("fold-batch-norm", "test-count{least=3}"),
        lambda: default().before("fold-constants", "(test-count, test-silu)*2"),
    ],
)
def test_changes_are_text(make):
    edits = make()
    parsed = PipelineEdits.parse(str(edits))
    assert str(parsed) == str(edits)
    for level in (0, 1):
        assert names(str(edits), level) == names(edits, level)


def test_the_text_of_changes():
    edits = PipelineEdits.parse("+test-silu before cast-half, -remove-dropout, fold-batch-norm = test-count{least=3}, + test-count")
    assert str(edits) == "+test-silu before cast-half, -remove-dropout, fold-batch-norm = test-count{least=3}, +test-count"


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: default().before("cast-hlaf", RULE), InvalidArgumentError, "has no pass 'cast-hlaf'; did you mean 'cast-half'?"),
        (lambda: default().without("x"), InvalidArgumentError, "It has remove-dropout, expand-attention, fold-constants"),
        (lambda: default().before("cast-half"), InvalidArgumentError, "is given no pass"),
        (lambda: default().last("test-sliu"), RegistryError, "did you mean 'test-silu'"),
        (lambda: default().last(default()), InvalidArgumentError, "give them alone"),
        (lambda: default().last(3), InvalidArgumentError, "3 is no pass"),
        (lambda: default().last(nn.ReLU), InvalidArgumentError, "class that is no Pass"),
        (lambda: default().last(lambda gm, ctx: 0), InvalidArgumentError, "a pass has a name"),
        (lambda: PipelineEdits.parse("-"), InvalidArgumentError, "the name of a pass is expected at the end"),
        (lambda: PipelineEdits.parse("+test-silu beside cast-half"), InvalidArgumentError, "',' or the end is expected at character 11"),
        (
            lambda: PipelineEdits.parse("test-silu"),
            InvalidArgumentError,
            "and 'test-silu' is none: '=' is expected at the end",
        ),
        (lambda: choose("+cast-half before remove-dropout, +cast-half{", None), InvalidArgumentError, "the name of an option is expected"),
    ],
)
def test_what_cannot_be_done_is_said(make, error, words):
    with pytest.raises(error) as caught:
        make()
    assert words in str(caught.value)


def test_an_order_that_a_pass_forbids_is_refused():
    constrained = next(leaf for leaf in pipeline(1, CPU).leaves() if leaf.after)
    with pytest.raises(PassOrderError):
        choose(default().before("remove-dropout", constrained), lambda: pipeline(0, CPU))


def test_stop_after():
    def stopped(name, level=1, chosen=None):
        return [leaf.name for leaf in choose(chosen, lambda: pipeline(level, CPU), name).leaves()]

    assert stopped("fold-batch-norm") == USUAL[: USUAL.index("fold-batch-norm") + 1]
    assert stopped("fold-constants") == USUAL[:5]  # its round ends
    assert stopped("cast-half", level=0) == [leaf.name for leaf in pipeline(0, CPU).leaves()]
    assert stopped("test-silu", chosen=default().before("fold-batch-norm", RULE))[-1] == "test-silu"
    assert stopped("test-silu", chosen="(fold-constants, (test-silu, test-count)), fold-constants") == ["fold-constants", "test-silu"]
    with pytest.raises(InvalidArgumentError, match="the pipeline has no pass 'fold-batchnorm'; did you mean 'fold-batch-norm'"):
        stopped("fold-batchnorm")


def test_a_function_is_a_pass_with_options():
    assert str(as_pass("test-count{least=3}")) == "test-count{least=3}"
    assert as_pass(test_count) == as_pass("test-count")
    with pytest.raises(InvalidArgumentError, match="there is no option 'most'; the options are least"):
        as_pass("test-count{most=3}")


def test_optimize_takes_changes():
    class Gate(nn.Module):
        def forward(self, x):
            return (x + 1) * torch.sigmoid(x + 1) * 2

    model, data = torch.jit.trace(Gate(), torch.randn(2, 8)), torch.randn(2, 8)
    for asked in (default().last(RULE, "eliminate-dead-code"), "+test-silu"):
        explained = tiacc.explain(model, ["2*8"], passes=asked, backend="reference")
        assert {row.name: row.changes for row in explained.passes}["test-silu"] == 1
    explained = tiacc.explain(model, ["2*8"], passes=RULE, backend="reference")
    assert [row.name for row in explained.passes] == ["test-silu"]
    output_model, _ = tiacc.optimize(
        model, 0, "cpu", ["2*8"], [(data,)], passes=default().last(RULE), backend="reference", timing_seconds=0.05
    )
    torch.testing.assert_close(output_model(data), model(data))

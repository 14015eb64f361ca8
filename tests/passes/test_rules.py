from __future__ import annotations

import random
import re

import pytest
import torch

from tests.helpers import Dim, Sketch, assert_same, assert_values_hold, copy_of, count_calls, lines
from tiacc.errors import InvalidArgumentError, PassError
from tiacc.passes.base import Fuel, PassContext, pass_class
from tiacc.passes.patterns import Match, Pattern, any_of, is_constant, is_number, named
from tiacc.passes.rules import RewriteRule, RuleSet, apply_rules

aten = torch.ops.aten

SILU = RewriteRule("fuse-silu", lambda x: x * aten.sigmoid(x), lambda x: aten.silu(x))


def apply(gm, *rules, **fields):
    ctx = PassContext(**fields)
    changes = RuleSet("test-rules", rules).pass_class()(gm, ctx).changes
    assert_values_hold(gm)
    return changes, ctx.data.get("test-rules", [])


def gate(*, swapped=False, dtype=torch.float32, copies=1):
    sketch = Sketch()
    x = sketch.input("x", Dim("n", 1, 3, 5), 4, dtype=dtype)
    for _ in range(copies):
        s = sketch.call(aten.sigmoid.default, x, source="net.py:3")
        x = sketch.call(aten.mul.Tensor, *((s, x) if swapped else (x, s)), source="net.py:4")
    return sketch.output(x)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_rule_replaces_what_its_pattern_finds(swapped):
    gm = gate(swapped=swapped)
    before = copy_of(gm)
    assert apply(gm, SILU) == (1, [])
    assert lines(gm) == ["silu_default = aten.silu.default(x)", "return silu_default"]
    assert_same(gm, before, which=("min", "max"))
    assert next(node for node in gm.graph.nodes if node.op == "call_function").meta["source"] == "net.py:4"
    assert apply(gm, SILU)[0] == 0


@pytest.mark.parametrize("pattern", [lambda x, y: aten.add(aten.relu(x), y, ...), lambda x, y: aten.add(aten.relu(x), y, alpha=2)])
def test_operands_change_places_only_where_that_is_the_same(pattern):
    """x + 2·relu(y) is not relu(y) + 2·x."""
    rule = RewriteRule("swap", pattern, lambda x, y: aten.sub(aten.relu(x), y, alpha=-2))
    for swapped in (False, True):
        sketch = Sketch()
        x, y = sketch.input("x", 2, 3), sketch.input("y", 2, 3)
        terms = (sketch.call(aten.relu.default, x), y)
        gm = sketch.output(sketch.call(aten.add.Tensor, *(terms[::-1] if swapped else terms), alpha=2))
        before = copy_of(gm)
        assert apply(gm, rule)[0] == (not swapped)
        assert_same(gm, before)


def test_a_value_must_be_the_same_wherever_it_is_used():
    sketch = Sketch()
    x, y = sketch.input("x", 2), sketch.input("y", 2)
    gm = sketch.output(sketch.call(aten.mul.Tensor, x, sketch.call(aten.sigmoid.default, y)))
    assert apply(gm, SILU)[0] == 0


def test_what_is_read_elsewhere_too_stays():
    sketch = Sketch()
    x = sketch.input("x", 2)
    s = sketch.call(aten.sigmoid.default, x)
    gm = sketch.output(sketch.call(aten.mul.Tensor, x, s), s)
    assert apply(gm, SILU)[0] == 0


def test_a_reader_that_goes_lets_a_pattern_match():
    sketch = Sketch()
    x = sketch.input("x", 3)
    s = sketch.call(aten.sigmoid.default, x)
    product = sketch.call(aten.mul.Tensor, x, s)
    gm = sketch.output(product, sketch.call(aten.add.Tensor, x, sketch.call(aten.sub.Tensor, s, s)))
    before = copy_of(gm)
    zero = RewriteRule("x-plus-nothing", lambda x, s: x + (s - s), lambda x: aten.mul.Scalar(x, 1.0))
    assert apply(gm, SILU, zero)[0] == 2
    assert [node.target for node in gm.graph.nodes if node.op == "call_function"] == [aten.silu.default, aten.mul.Scalar]
    assert_same(gm, before)


def test_wildcards_constants_numbers_and_defaults():
    sketch = Sketch()
    x = sketch.input("x", 1, 3, 6, 6)
    w = sketch.constant("w", torch.randn(4, 3, 3, 3))
    y = sketch.call(aten.conv2d.default, x, w, None, [1, 1], [1, 1])
    y = sketch.call(aten.mul.Scalar, sketch.call(aten.mul.Scalar, y, 3.0), 0.5)
    gm = sketch.output(y)
    before = copy_of(gm)

    def scaled(x, w=is_constant, k=is_number):
        return named("conv", aten.conv2d(x, w, ...)) * k

    def fold(match: Match, x, k, conv):
        node = match["conv"]
        return aten.conv2d.default(x, match.constant("w") * k, *node.args[2:])

    rule = RewriteRule("fold-scale", scaled, fold)
    assert apply(gm, rule)[0] == 2
    assert lines(gm)[0].partition("(")[0].endswith("aten.conv2d.default")
    assert len(lines(gm)) == 2
    assert_same(gm, before)
    strict = RewriteRule("default-stride-only", lambda x, w=is_constant: aten.conv2d(x, w), lambda x, w: aten.conv2d.default(x, w))
    assert apply(before, strict)[0] == 0  # padding 1 is not the default


@pytest.mark.parametrize(("literal", "is_found"), [(0.5, True), (0.25, False)])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_number_in_a_pattern_is_a_number_or_a_constant(literal, is_found, as_tensor):
    sketch = Sketch()
    x = sketch.input("x", 3)
    half = sketch.constant("weight", torch.tensor([0.5])) if as_tensor else 0.5
    gm = sketch.output(sketch.call(aten.mul.Tensor if as_tensor else aten.mul.Scalar, x, half))
    rule = RewriteRule("halve", lambda x: x * literal, lambda x: aten.div(x, 2.0))
    assert apply(gm, rule)[0] == is_found


def test_alternatives():
    sketch = Sketch()
    x = sketch.input("x", 3)
    a = sketch.call(aten.relu.default, x)
    b = sketch.call(aten.clamp.default, x, 0)
    c = sketch.call(aten.clamp.default, x, 1)
    gm = sketch.output(*(sketch.call(aten.neg.default, item) for item in (a, b, c)))
    before = copy_of(gm)
    rule = RewriteRule("fold", lambda x: -any_of(aten.relu(x), aten.clamp(x, 0)), lambda x: aten.clamp(aten.neg(x), max=0))
    assert apply(gm, rule)[0] == 2
    assert_same(gm, before)
    either = Pattern(lambda x: any_of(aten.relu(x), aten.gelu(x)))
    assert {aten.relu.default, aten.gelu.default} <= either.targets


def test_lists_of_values():
    sketch = Sketch()
    x, y = sketch.input("x", 2, 3), sketch.input("y", 2, 3)
    gm = sketch.output(sketch.call(aten.cat.default, [sketch.call(aten.relu.default, x), sketch.call(aten.relu.default, y)], 1))
    before = copy_of(gm)

    def pattern(x, y, d):
        return aten.cat([aten.relu(x), aten.relu(y)], d)

    rule = RewriteRule("relu-after-cat", pattern, lambda x, y, d: aten.relu(aten.cat([x, y], d)))
    assert apply(gm, rule)[0] == 1
    assert len(lines(gm)) == 3
    assert_same(gm, before)


def test_a_check_refuses_with_a_reason():
    gm = gate()
    rule = RewriteRule("wide-silu", SILU.pattern, SILU.rewrite, lambda match: match.tensor("x").shape[1] > 8 or "it is narrow")
    assert apply(gm, rule) == (0, ["wide-silu left mul_tensor at net.py:4: it is narrow"])
    assert len(lines(gm)) == 3


def test_a_rewrite_that_changes_the_type_is_left():
    gm = gate()
    text = str(gm.graph)
    rule = RewriteRule("widen", SILU.pattern, lambda x: aten.mul(aten.unsqueeze(x, 0), torch.ones(1)))
    changes, left = apply(gm, rule)
    assert changes == 0 and re.search(r"makes float32\[1, \w+=1..5, 4\] of what was float32\[\w+=1..5, 4\]", left[0])
    assert str(gm.graph) == text and not dict(gm.named_buffers())
    integers = gate(dtype=torch.int64)
    changes, left = apply(integers, RewriteRule("square", lambda x: aten.sigmoid(x), lambda x: aten.silu(x)))
    assert changes == 0 and "float32" in left[0]


def test_a_result_does_not_become_an_input():
    sketch = Sketch()
    x = sketch.input("x", 3)
    gm = sketch.output(sketch.call(aten.abs.default, x), sketch.call(aten.neg.default, sketch.call(aten.abs.default, x)))
    changes, left = apply(gm, RewriteRule("drop-abs", lambda x: aten.abs(x), lambda x: x))
    assert changes == 1 and "the caller of the graph may write into this value" in left[0]


def test_random_calls_are_left():
    sketch = Sketch()
    gm = sketch.output(sketch.call(aten.dropout.default, sketch.input("x", 3), 0.5, True))
    assert apply(gm, RewriteRule("drop", lambda x: aten.dropout(x, ...), lambda x: aten.relu(x)))[0] == 0


def test_fuel_is_asked_for_each():
    gm = gate(copies=4)
    before = copy_of(gm)
    assert apply(gm, SILU, fuel=Fuel(3))[0] == 3
    assert_same(gm, before)


def test_rules_that_go_in_circles_are_found_out():
    there = RewriteRule("there", lambda x, y: aten.add.Tensor(x, y), lambda x, y: aten.add.Tensor(y, x))
    sketch = Sketch()
    gm = sketch.output(sketch.call(aten.add.Tensor, sketch.input("x", 2), sketch.input("y", 2)))
    with pytest.raises(PassError, match="the rules there apply to their own results again and again"):
        apply(gm, there)


@pytest.mark.parametrize(
    ("pattern", "rewrite", "words"),
    [
        (lambda x: torch.sigmoid(x), lambda x: x, "sigmoid is not an operator of a graph; write torch.ops.aten.sigmoid"),
        (lambda x: aten.softmax(x, 1, 2, 3, 4), lambda x: x, "does not fit it: aten::softmax.int"),
        (lambda x: x, lambda x: x, "returns a call of an operator, or any_of several, not Wildcard"),
        (lambda x=3: -x, lambda x: x, "the default of the pattern's parameter 'x' is 3"),
        (lambda *x: -x[0], lambda x: x, "parameters by name"),
        (lambda value: -value, lambda valeu: valeu, "asks for 'valeu', which the pattern does not have; did you mean 'value'"),
        (lambda x: -any_of(), lambda x: x, "nothing to choose from"),
        (lambda x: named("a", named("b", -x)), lambda x: x, "no other name"),
    ],
)
def test_what_is_no_rule_is_refused(pattern, rewrite, words):
    with pytest.raises(InvalidArgumentError, match="rule 'r': .*" + words.replace("(", "\\(")):
        RewriteRule("r", pattern, rewrite)


@pytest.mark.parametrize(
    ("rewrite", "words"),
    [
        (lambda x: 3, "returns int"),
        (lambda x: aten.cat(x), "does not fit any overload"),
        (lambda x: torch.relu(x), "write torch.ops.aten.relu"),
    ],
)
def test_errors_of_a_rewrite_name_the_rule(rewrite, words):
    with pytest.raises((PassError, InvalidArgumentError), match=words):
        apply(gate(), RewriteRule("bad", SILU.pattern, rewrite))


def test_conditions_of_parameters():
    sketch = Sketch()
    gm = sketch.output(*(sketch.call(aten.mul.Scalar, sketch.input(name, 2), k) for name, k in (("x", 2.0), ("y", 3.0))))

    def is_even(value):
        return isinstance(value, float) and value % 2 == 0

    def pattern(x, k=is_even):
        return x * k

    assert apply(gm, RewriteRule("double", pattern, lambda x, k: x + x))[0] == 1


def test_a_rule_is_one_pass_class():
    assert SILU.pass_class is SILU.pass_class is pass_class(SILU)
    assert (SILU.pass_class.name, SILU.pass_class(), str(SILU.pass_class())) == ("fuse-silu", pass_class(SILU)(), "fuse-silu")


def test_the_cost_is_linear_in_nodes():
    """Rules that fit nowhere, everywhere, and nearly everywhere, with a value that all nodes read."""

    def wide(copies):
        sketch = Sketch()
        x = sketch.input("x", 4)
        total = x
        for _ in range(copies):
            s = sketch.call(aten.sigmoid.default, x)
            total = sketch.call(aten.add.Tensor, sketch.call(aten.mul.Tensor, x, s), total)
        return sketch.output(total)

    for make in (lambda n: gate(copies=n), wide):
        small, large = make(40), make(160)
        calls = [count_calls(lambda gm=gm: apply_rules((SILU,), gm, PassContext())) for gm in (small, large)]
        assert calls[1] < 5 * calls[0]


SOUND = (
    SILU,
    RewriteRule("drop-negations", lambda x: aten.neg(aten.neg(x)), lambda x: x),
    RewriteRule("merge-factors", lambda x, a=is_number, b=is_number: x * a * b, lambda x, a, b: x * (a * b)),
    RewriteRule("add-to-sub", lambda x, y: x + aten.neg(y), lambda x, y: x - y),
    RewriteRule("double", lambda x: x + x, lambda x: x * 2.0),
)


@pytest.mark.parametrize("seed", range(25))
def test_sound_rules_keep_the_numbers_of_random_graphs_and_leave_nothing_to_do(seed):
    choose, sketch = random.Random(seed), Sketch()
    values = [sketch.input("x", 3, 4), sketch.input("y", 3, 4)]
    for _ in range(24):
        one, other = choose.choice(values[-4:]), choose.choice(values)
        kind = choose.choice(["neg", "neg", "sigmoid", "mul", "mul", "add", "add", "scale", "tanh"])
        if kind in ("mul", "add"):
            values.append(sketch.call(getattr(aten, kind).Tensor, *choose.sample([one, other], 2)))
        elif kind == "scale":
            values.append(sketch.call(aten.mul.Scalar, one, choose.choice([0.5, 2.0, -1.5])))
        else:
            values.append(sketch.call(getattr(aten, kind).default, one))
    gm = sketch.output(*choose.sample(values[2:], 3))
    before = copy_of(gm)
    apply(gm, *SOUND)
    assert_same(gm, before, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert apply(gm, *SOUND)[0] == 0

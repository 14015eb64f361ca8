"""Loops, conditionals and assertions, against the same computation in Python."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from tests.backends.tensorrt.networks import Net, assert_close, evaluate, seeded, trt
from tiacc.backends.tensorrt.interpreter import InterpretationError

COUNT, WHILE = trt.TripLimit.COUNT, trt.TripLimit.WHILE
LAST, CONCATENATE, REVERSE = trt.LoopOutput.LAST_VALUE, trt.LoopOutput.CONCATENATE, trt.LoopOutput.REVERSE


def collected(loop: Any, tensor: Any, kind: Any, axis: int, length: Any) -> Any:
    layer = loop.add_loop_output(tensor, kind, axis)
    layer.set_input(1, length)
    return layer.get_output(0)


def recurrence(loop: Any, start: Any) -> tuple[Any, Any]:
    layer = loop.add_recurrence(start)
    return layer, layer.get_output(0)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", [CONCATENATE, REVERSE], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_running_product_along_an_axis(axis: int, kind: Any, reverse: bool) -> None:
    x = seeded(4, 3)
    net = Net()
    tensor, count = net.input("x", 4, 3), net.constant(x.shape[axis])
    loop = net.add_loop()
    loop.add_trip_limit(count, COUNT)
    state, value = recurrence(loop, net.constant(torch.ones(x.shape[1 - axis])))
    following = net.elementwise("PROD", value, loop.add_iterator(tensor, axis, reverse).get_output(0))
    state.set_input(1, following)
    have = evaluate([loop.add_loop_output(value, LAST), collected(loop, following, kind, 1, count)], net, x)
    steps = list(x.unbind(axis))[:: -1 if reverse else 1]
    want, product = [], torch.ones(x.shape[1 - axis])
    for step in steps:
        product = product * step
        want.append(product)
    assert_close(have[0], product)
    assert_close(have[1], torch.stack(want if kind == CONCATENATE else want[::-1], 1))


def test_a_reversed_iterator_counts_from_the_trip_count() -> None:
    net = Net()
    tensor, count = net.input("x", 6), net.constant(3)
    loop = net.add_loop()
    loop.add_trip_limit(count, COUNT)
    element = loop.add_iterator(tensor, 0, True).get_output(0)
    have = evaluate(collected(loop, net.elementwise("SUM", element, net.constant(0.0)), CONCATENATE, 0, count), net, torch.arange(6.0))
    assert have.tolist() == [2.0, 1.0, 0.0]


def collatz(net: Net, start: Any, limit: int | None) -> tuple[Any, Any]:
    """Build the steps from a number to 1, and their number; at most `limit` of them."""
    one, two, three = net.constant(1), net.constant(2), net.constant(3)
    loop = net.add_loop()
    number_layer, number = recurrence(loop, start)
    steps_layer, steps = recurrence(loop, net.constant(0))
    loop.add_trip_limit(net.elementwise("GREATER", number, one), WHILE)
    if limit is not None:
        loop.add_trip_limit(net.constant(limit), COUNT)
    half = net.elementwise("DIV", number, two)
    is_even = net.elementwise("EQUAL", net.elementwise("PROD", half, two), number)
    odd = net.elementwise("SUM", net.elementwise("PROD", number, three), one)
    number_layer.set_input(1, net.add_select(is_even, half, odd).get_output(0))
    steps_layer.set_input(1, net.elementwise("SUM", steps, one))
    return loop.add_loop_output(number, LAST), loop.add_loop_output(steps, LAST)


@pytest.mark.parametrize(("start", "limit", "want"), [(27, None, (1, 111)), (1, None, (1, 0)), (7, 3, (34, 3))])
def test_while_loops(start: int, limit: int | None, want: tuple[int, int]) -> None:
    net = Net()
    have = evaluate(collatz(net, net.input("n", dtype=torch.int32), limit), net, torch.tensor(start, dtype=torch.int32))
    assert tuple(int(v) for v in have) == want


def test_a_loop_within_a_loop_starts_anew_and_sees_the_outer_state() -> None:
    """Rows are visited in a loop, their elements in an inner one whose start is constant and whose step varies with the row."""
    x = seeded(3, 4)
    net = Net()
    tensor, rows, columns = net.input("x", 3, 4), net.constant(3), net.constant(4)
    outer = net.add_loop()
    outer.add_trip_limit(rows, COUNT)
    row = outer.add_iterator(tensor, 0, False).get_output(0)
    total_layer, total = recurrence(outer, net.constant(0.0))
    inner = net.add_loop()
    inner.add_trip_limit(columns, COUNT)
    sum_layer, partial = recurrence(inner, net.constant(1.0))
    element = inner.add_iterator(row, 0, False).get_output(0)
    sum_layer.set_input(1, net.elementwise("SUM", net.elementwise("PROD", partial, element), total))
    horner = inner.add_loop_output(partial, LAST).get_output(0)
    partials = collected(inner, partial, CONCATENATE, 0, columns)
    total_layer.set_input(1, net.elementwise("SUM", total, horner))
    have = evaluate([outer.add_loop_output(total, LAST), collected(outer, partials, CONCATENATE, 0, rows)], net, x)
    total_value, seen = torch.tensor(0.0), []
    for r in range(3):
        value = torch.tensor(1.0)
        for c in range(4):
            seen.append(value)
            value = value * x[r, c] + total_value
        total_value = total_value + value
    assert_close(have[0], total_value)
    assert_close(have[1], torch.stack(seen).reshape(3, 4))


def test_an_inner_loop_whose_recurrence_alone_varies_is_run_each_time() -> None:
    """The inner loop's start, count and iterators are constant; only its recurrence's next value comes from the outer loop."""
    net = Net()
    tensor, rows, two = net.input("x", 3), net.constant(3), net.constant(2)
    outer = net.add_loop()
    outer.add_trip_limit(rows, COUNT)
    element = outer.add_iterator(tensor, 0, False).get_output(0)
    inner = net.add_loop()
    inner.add_trip_limit(two, COUNT)
    layer, value = recurrence(inner, net.constant(0.0))
    layer.set_input(1, net.elementwise("SUM", value, element))
    doubled = inner.add_loop_output(value, LAST).get_output(0)
    have = evaluate(collected(outer, doubled, CONCATENATE, 0, rows), net, torch.tensor([1.0, 10.0, 100.0]))
    assert have.tolist() == [2.0, 20.0, 200.0]


def test_what_does_not_vary_is_computed_once_and_kept_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from tiacc.backends.tensorrt.interpreter import evaluate as module

    computed: list[str] = []
    original = module._Run._outputs
    monkeypatch.setattr(module._Run, "_outputs", lambda run, layer: computed.append(layer.name) or original(run, layer))
    net = Net()
    weight, count = net.input("w", 3), net.constant(5)
    fixed = net.add_unary(weight, trt.UnaryOperation.EXP)
    fixed.name = "fixed"
    loop = net.add_loop()
    loop.add_trip_limit(count, COUNT)
    layer, value = recurrence(loop, net.constant([0.0, 0.0, 0.0]))
    following = net.add_elementwise(value, fixed.get_output(0), trt.ElementWiseOperation.SUM)
    following.name = "following"
    layer.set_input(1, following.get_output(0))
    x = seeded(3)
    assert_close(evaluate(loop.add_loop_output(value, LAST), net, x), 5 * x.exp())
    assert computed.count("fixed") == 1
    assert computed.count("following") == 5


def test_a_loop_that_runs_no_iteration() -> None:
    net = Net()
    count = net.input("n", dtype=torch.int32)
    loop = net.add_loop()
    loop.add_trip_limit(count, COUNT)
    layer, value = recurrence(loop, net.constant([1.0, 2.0]))
    following = net.elementwise("SUM", value, value)
    layer.set_input(1, following)
    net.output(loop.add_loop_output(value, LAST), collected(loop, following, CONCATENATE, 1, count))
    for steps in (0, 1, 3):
        last, all_ = net.run(torch.tensor(steps, dtype=torch.int32))
        assert last.tolist() == [2.0**steps, 2.0 * 2**steps]
        assert all_.shape == (2, steps)


def test_a_length_that_is_not_the_number_of_iterations_is_an_error() -> None:
    net = Net()
    loop = net.add_loop()
    loop.add_trip_limit(net.constant(3), COUNT)
    layer, value = recurrence(loop, net.constant([1.0]))
    layer.set_input(1, net.elementwise("SUM", value, value))
    with pytest.raises(InterpretationError, match="ran 3 times, the output is declared to have 4"):
        evaluate(collected(loop, value, CONCATENATE, 0, net.constant(4)), net)


def test_a_thousand_loops_one_after_the_other() -> None:
    net = Net()
    value, two = net.input("x", 2), net.constant(2)
    one = net.constant([1.0, 1.0])
    for _ in range(1000):
        loop = net.add_loop()
        loop.add_trip_limit(two, COUNT)
        layer, state = recurrence(loop, value)
        layer.set_input(1, net.elementwise("SUM", state, one))
        value = loop.add_loop_output(state, LAST).get_output(0)
    assert_close(evaluate(value, net, torch.zeros(2)), torch.full((2,), 2000.0))


def conditional(net: Net, condition: Any, true: Any, false: Any, *shared: Any) -> Any:
    """Build a conditional from two functions of the shared inputs."""
    scope = net.add_if_conditional()
    scope.set_condition(condition)
    inside = [scope.add_input(tensor).get_output(0) for tensor in shared]
    return scope.add_output(true(*inside), false(*inside))


@pytest.mark.parametrize("is_true", [True, False])
def test_only_the_chosen_branch_is_evaluated(is_true: bool) -> None:
    """The other one would fail: it gathers out of range."""
    net = Net()
    x, index = net.input("x", 3), net.input("i", 3, dtype=torch.int32)
    condition = net.add_cast(net.input("c", dtype=torch.int32), trt.bool).get_output(0)
    layer = conditional(
        net,
        condition,
        lambda v, i: net.add_unary(v, trt.UnaryOperation.NEG).get_output(0),
        lambda v, i: net.add_gather(v, i, 0).get_output(0),
        x,
        index,
    )
    net.output(layer)
    value, bad = seeded(3), torch.tensor([0, 1, 9], dtype=torch.int32)
    if is_true:
        assert_close(net.run(value, bad, torch.tensor(1, dtype=torch.int32)), -value)  # type: ignore[arg-type]
    else:
        with pytest.raises(InterpretationError, match="out of range"):
            net.run(value, bad, torch.tensor(0, dtype=torch.int32))
        good = torch.tensor([2, 1, 0], dtype=torch.int32)
        assert_close(net.run(value, good, torch.tensor(0, dtype=torch.int32)), value.flip(0))  # type: ignore[arg-type]


def test_conditionals_within_loops_and_within_conditionals() -> None:
    """Each element is negated if negative, else halved if above one, else kept, and summed."""
    x = torch.tensor([0.5, -2.0, 3.0, -0.25, 8.0])
    net = Net()
    tensor, count = net.input("x", 5), net.constant(5)
    loop = net.add_loop()
    loop.add_trip_limit(count, COUNT)
    element = loop.add_iterator(tensor, 0, False).get_output(0)
    layer, total = recurrence(loop, net.constant(0.0))
    zero, one, half = net.constant(0.0), net.constant(1.0), net.constant(0.5)

    def positive(value: Any) -> Any:
        above = net.elementwise("GREATER", value, one)
        inner = conditional(net, above, lambda v: net.elementwise("PROD", v, half), net.identity, value)
        return inner.get_output(0)

    chosen = conditional(
        net,
        net.elementwise("LESS", element, zero),
        lambda v: net.add_unary(v, trt.UnaryOperation.NEG).get_output(0),
        positive,
        element,
    )
    layer.set_input(1, net.elementwise("SUM", total, chosen.get_output(0)))
    want = sum(-v if v < 0 else v / 2 if v > 1 else v for v in x.tolist())
    assert_close(evaluate(loop.add_loop_output(total, LAST), net, x), torch.tensor(want))


def test_assertions_are_held() -> None:
    net = Net()
    x = net.input("x", -1)
    size = net.add_shape(x).get_output(0)
    layer = net.add_assertion(net.elementwise("GREATER", size, net.constant(torch.tensor([2]))), "more than two elements, please")
    layer.name = "guard"
    net.output(net.identity(x))
    assert_close(net.run(torch.arange(3.0)), torch.arange(3.0))  # type: ignore[arg-type]
    with pytest.raises(InterpretationError, match=re.escape("'guard' (ASSERTION) does not hold: more than two elements")):
        net.run(torch.arange(2.0))


def test_an_lstm_cell_in_a_loop() -> None:
    """The recurrent network that a loop is for, both directions, against torch's."""
    steps, batch, size, hidden = 7, 2, 3, 4
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(size, hidden, bidirectional=True)
    x = seeded(steps, batch, size)
    net = Net()
    tensor, count = net.input("x", steps, batch, size), net.constant(steps)
    zeros = net.constant(torch.zeros(batch, hidden))
    outputs = []
    for suffix, reverse in (("", False), ("_reverse", True)):
        w_ih, w_hh, b_ih, b_hh = (getattr(lstm, f"{n}_l0{suffix}").detach() for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        loop = net.add_loop()
        loop.add_trip_limit(count, COUNT)
        step = loop.add_iterator(tensor, 0, reverse).get_output(0)
        h_layer, h = recurrence(loop, zeros)
        c_layer, c = recurrence(loop, zeros)
        none, transposed = trt.MatrixOperation.NONE, trt.MatrixOperation.TRANSPOSE
        gates = net.elementwise(
            "SUM",
            net.add_matrix_multiply(step, none, net.constant(w_ih), transposed).get_output(0),
            net.add_matrix_multiply(h, none, net.constant(w_hh), transposed).get_output(0),
        )
        gates = net.elementwise("SUM", gates, net.constant((b_ih + b_hh).unsqueeze(0)))
        parts = []
        for index, kind in enumerate(("SIGMOID", "SIGMOID", "TANH", "SIGMOID")):
            cut = net.add_slice(gates, (0, index * hidden), (batch, hidden), (1, 1)).get_output(0)
            parts.append(net.add_activation(cut, getattr(trt.ActivationType, kind)).get_output(0))
        i, f, g, o = parts
        c_next = net.elementwise("SUM", net.elementwise("PROD", f, c), net.elementwise("PROD", i, g))
        h_next = net.elementwise("PROD", o, net.add_activation(c_next, trt.ActivationType.TANH).get_output(0))
        h_layer.set_input(1, h_next)
        c_layer.set_input(1, c_next)
        outputs.append(collected(loop, h_next, REVERSE if reverse else CONCATENATE, 0, count))
    both = net.add_concatenation(outputs)
    both.axis = 2
    with torch.no_grad():
        want = lstm(x)[0]
    assert_close(evaluate(both, net, x), want)


def test_the_last_value_may_be_of_any_tensor_of_the_loop() -> None:
    net = Net()
    tensor, count = net.input("x", -1), net.input("n", dtype=torch.int32)
    loop = net.add_loop()
    loop.add_trip_limit(count, COUNT)
    negated = net.add_unary(loop.add_iterator(tensor, 0, False).get_output(0), trt.UnaryOperation.NEG).get_output(0)
    net.output(loop.add_loop_output(negated, LAST))
    for steps in (1, 3):
        assert float(net.run(torch.arange(1.0, 4.0), torch.tensor(steps, dtype=torch.int32))) == -steps  # type: ignore[arg-type]
    with pytest.raises(InterpretationError, match="ran no iteration that could give a last value"):
        net.run(torch.arange(3.0), torch.tensor(0, dtype=torch.int32))
    with pytest.raises(InterpretationError, match=r"wants element 3 of axis 0 of \(3,\)"):
        net.run(torch.arange(3.0), torch.tensor(4, dtype=torch.int32))


def test_assertions_within_loops_are_held_in_each_iteration() -> None:
    net = Net()
    loop = net.add_loop()
    loop.add_trip_limit(net.input("n", dtype=torch.int32), COUNT)
    layer, value = recurrence(loop, net.constant(1))
    layer.set_input(1, net.elementwise("PROD", value, net.constant(2)))
    net.add_assertion(net.elementwise("LESS", value, net.constant(10)), "too large")
    net.output(loop.add_loop_output(value, LAST))
    assert int(net.run(torch.tensor(4, dtype=torch.int32))) == 16  # type: ignore[arg-type]
    with pytest.raises(InterpretationError, match="does not hold: too large"):
        net.run(torch.tensor(5, dtype=torch.int32))


def test_a_loop_without_limits_or_with_a_backward_iterator_and_no_count_is_an_error() -> None:
    net = Net()
    loop = net.add_loop()
    layer, value = recurrence(loop, net.constant([1.0]))
    layer.set_input(1, net.elementwise("SUM", value, value))
    net.output(loop.add_loop_output(value, LAST))
    with pytest.raises(InterpretationError, match="its loop has no trip limit"):
        net.run()
    net = Net()
    loop = net.add_loop()
    layer, value = recurrence(loop, net.constant(0.0))
    loop.add_trip_limit(net.elementwise("LESS", value, net.constant(5.0)), WHILE)
    element = loop.add_iterator(net.input("x", 3), 0, True).get_output(0)
    layer.set_input(1, net.elementwise("SUM", value, element))
    net.output(loop.add_loop_output(value, LAST))
    with pytest.raises(InterpretationError, match="backwards in a loop without a trip count"):
        net.run(torch.ones(3))


def test_a_cycle_is_an_error() -> None:
    net = Net()
    first = net.add_unary(net.input("x", 2), trt.UnaryOperation.NEG)
    first.name = "first"
    second = net.add_unary(first.get_output(0), trt.UnaryOperation.EXP)
    net.output(second)
    first.set_input(0, second.get_output(0))
    with pytest.raises(InterpretationError, match="has a cycle"):
        net.interpreter()

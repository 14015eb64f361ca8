"""Recurrent networks: the products with the inputs for all steps at once, then one loop a layer, in which both directions run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.backends.tensorrt.conversion import Conversion
from tiacc.backends.tensorrt.converters import FLOATS, converts
from tiacc.backends.tensorrt.converters.attention import linear_of
from tiacc.backends.tensorrt.extents import bounds, cut
from tiacc.backends.tensorrt.layers import Tensor
from tiacc.backends.tensorrt.shaping import Value

aten = torch.ops.aten

State = list[Value]
"""What a step hands to the next: the output of the cell first, then what else it remembers."""


@dataclass(frozen=True)
class Weights:
    """The weights of a cell: of its input, of its state, their biases, and of the projection of its output."""

    input: Value
    hidden: Value
    input_bias: Value | None = None
    hidden_bias: Value | None = None
    projection: Value | None = None


Step = Callable[[Conversion, Tensor, State, Weights], State]
"""From the products with an input, ``(N, gates · H)``, and a state, to the next state."""


@dataclass(frozen=True)
class Cell:
    """What a layer computes at each step.

    Attributes:
        step: One step.
        adds_products: Whether it only ever adds the products of input and state, so that one bias stands for both.
    """

    step: Step
    adds_products: bool = True

    def products(self, net: Conversion, sequence: Value, weights: Weights) -> tuple[Tensor, Weights]:
        """Return the products with a sequence, or with one input, and the weights that are left for the steps."""
        bias = weights.input_bias
        if self.adds_products and bias is not None and weights.hidden_bias is not None:
            bias = _sum(net, bias, weights.hidden_bias)
            weights = replace(weights, hidden_bias=None)
        return linear_of(net, sequence, weights.input, bias), weights


def _sum(net: Conversion, first: Value, second: Value) -> Value:
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return (first.float() + second.float()).to(first.dtype)
    return net.binary("SUM", first, second)


# -- cells ------------------------------------------------------------------------------------------------------------------------


def _gates(net: Conversion, value: Value, count: int) -> list[Value]:
    size = int(net.shape(value)[1]) // count  # type: ignore[arg-type]
    return [cut(net, value, 1, index * size, size) for index in range(count)]


def lstm(net: Conversion, products: Tensor, state: State, weights: Weights) -> State:
    """A long short-term memory: c' = f · c + i · g, h' = o · tanh(c'). Source: the equations of ``torch.nn.LSTM``."""
    total = net.binary("SUM", products, linear_of(net, state[0], weights.hidden, weights.hidden_bias))
    into, forget, new, out = _gates(net, total, 4)
    kept = net.binary("PROD", net.activation("SIGMOID", forget), state[1])
    added = net.binary("PROD", net.activation("SIGMOID", into), net.activation("TANH", new))
    memory = net.binary("SUM", kept, added)
    output = net.binary("PROD", net.activation("SIGMOID", out), net.activation("TANH", memory))
    if weights.projection is not None:
        output = linear_of(net, output, weights.projection, None)
    return [output, memory]


def gru(net: Conversion, products: Tensor, state: State, weights: Weights) -> State:
    """A gated recurrent unit: h' = (1 - z) · n + z · h. Source: the equations of ``torch.nn.GRU``."""
    inner = _gates(net, linear_of(net, state[0], weights.hidden, weights.hidden_bias), 3)
    outer = _gates(net, products, 3)
    reset, update = (net.activation("SIGMOID", net.binary("SUM", a, b)) for a, b in zip(outer[:2], inner[:2]))
    new = net.activation("TANH", net.binary("SUM", outer[2], net.binary("PROD", reset, inner[2])))
    return [net.binary("SUM", new, net.binary("PROD", update, net.binary("SUB", state[0], new)))]


def _plain(kind: str) -> Step:
    def step(net: Conversion, products: Tensor, state: State, weights: Weights) -> State:
        inner = linear_of(net, state[0], weights.hidden, weights.hidden_bias)
        return [net.activation(kind, net.binary("SUM", products, inner))]

    return step


LSTM, GRU, TANH, RELU = Cell(lstm), Cell(gru, adds_products=False), Cell(_plain("TANH")), Cell(_plain("RELU"))


# -- sequences --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Direction:
    """One direction of a layer: the products with its inputs, ``(T, N, gates · H)``, what it begins with, its weights."""

    products: Tensor
    state: State
    weights: Weights
    is_reversed: bool


def _single(net: Conversion, cell: Cell, direction: _Direction) -> tuple[Tensor, State]:
    """Run a direction over a sequence of one; return its outputs ``(1, N, H)`` and its last state."""
    state = cell.step(net, net.squeeze(direction.products, [0]), direction.state, direction.weights)
    return net.unsqueeze(state[0], [0]), state


def _looped(
    net: Conversion, cell: Cell, directions: Sequence[_Direction], count: Tensor, are_used: Sequence[bool]
) -> list[tuple[Tensor, list[Value | None]]]:
    """Run the directions of a layer in one loop; return the outputs ``(T, N, H)`` of each, and its last state as far as that is used."""
    trt = net.trt
    loop = net.network.add_loop()
    net.add_layer("trip_limit", count, trt.TripLimit.COUNT, owner=loop)
    results: list[tuple[Tensor, list[Value | None]]] = []
    for direction in directions:
        item = net.add("iterator", direction.products, 0, direction.is_reversed, owner=loop)
        memories = [net.add_layer("recurrence", net.tensor(value), owner=loop) for value in direction.state]
        before = [layer.get_output(0) for layer in memories]
        after = cell.step(net, item, before, direction.weights)
        for layer, value in zip(memories, after):
            layer.set_input(1, value)
        kind = trt.LoopOutput.REVERSE if direction.is_reversed else trt.LoopOutput.CONCATENATE
        outputs = net.add("loop_output", after[0], kind, 0, inputs={1: count}, owner=loop)
        last = [
            net.add("loop_output", value, trt.LoopOutput.LAST_VALUE, 0, owner=loop) if is_used else None
            for value, is_used in zip(before, are_used)
        ]
        results.append((outputs, last))
    return results


def _weights_of(call: Call, per_cell: int) -> list[Weights]:
    values: list[Any] = call.operands("params")
    has_biases = bool(call.number("has_biases"))
    result = []
    for start in range(0, len(values), per_cell):
        own = values[start : start + per_cell]
        biases = own[2:4] if has_biases else [None, None]
        projection = own[-1] if len(own) in (3, 5) else None
        result.append(Weights(own[0], own[1], biases[0], biases[1], projection))
    return result


def _recurrent(call: Call, cell: Cell, states: Sequence[Value]) -> list[Value | None]:
    """Convert a network of some layers; return its outputs and each of its last states."""
    net, is_first = call.net, bool(call.number("batch_first"))
    directions, layers = (2 if call.number("bidirectional") else 1), call.number("num_layers")
    weights = _weights_of(call, len(call.args["params"]) // (directions * layers))
    sequence = call.tensor("input")
    if is_first:
        sequence = net.transpose(sequence, 0, 1)
    length = call.shape("input")[1 if is_first else 0]
    are_used = [call.is_used(place + 1) for place in range(len(states))]
    count = None if length == 1 else net.reshape(net.scalar_tensor(length, torch.int32), ())
    last: list[list[Value | None]] = []
    for layer in range(layers):
        items: list[_Direction] = []
        for direction in range(directions):
            index = layer * directions + direction
            state = [net.squeeze(cut(net, value, 0, index, 1), [0]) for value in states]
            products, own = cell.products(net, sequence, weights[index])
            items.append(_Direction(products, state, own, direction == 1))
        found = [_single(net, cell, item) for item in items] if count is None else _looped(net, cell, items, count, are_used)
        sequence = net.concat([outputs for outputs, _ in found], 2)
        last += [state for _, state in found]
    results: list[Value | None] = [net.transpose(sequence, 0, 1) if is_first else sequence]
    for place, is_used in enumerate(are_used):
        results.append(net.concat([net.unsqueeze(state[place], [0]) for state in last], 0) if is_used else None)
    return results


def _check(view: NodeView) -> Support:
    if view.value("train") and view.value("dropout"):
        return Support(False, "dropout between the layers, in training mode, is random")
    length = view.fake("input").shape[1 if view.value("batch_first") else 0]
    return SUPPORTED if bounds(length)[0] > 0 else Support(False, "a sequence that may be empty")


@converts(aten.lstm.input, dtypes=FLOATS, check=_check)
def lstm_layers(call: Call) -> list[Value | None]:
    """Long short-term memories over a sequence."""
    return _recurrent(call, LSTM, call.operands("hx"))


def _register(packet: Any, single: Any, cell: Cell) -> None:
    @converts(packet.input, dtypes=FLOATS, check=_check)
    def layers(call: Call) -> list[Value | None]:
        """Recurrent layers over a sequence."""
        return _recurrent(call, cell, [call.operand("hx")])

    @converts(single.default, dtypes=FLOATS)
    def step(call: Call) -> Value:
        """One step of a recurrent cell."""
        return _step(call, cell, [call.operand("hx")])[0]


def _step(call: Call, cell: Cell, state: State) -> State:
    net, names = call.net, ("w_ih", "w_hh", "b_ih", "b_hh")
    products, weights = cell.products(net, call.tensor("input"), Weights(*(call.operand(name) for name in names)))
    return cell.step(net, products, state, weights)


_register(aten.gru, aten.gru_cell, GRU)
_register(aten.rnn_tanh, aten.rnn_tanh_cell, TANH)
_register(aten.rnn_relu, aten.rnn_relu_cell, RELU)


@converts(aten.lstm_cell.default, dtypes=FLOATS)
def lstm_step(call: Call) -> State:
    """One step of a long short-term memory."""
    return _step(call, LSTM, call.operands("hx"))



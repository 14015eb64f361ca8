"""Recurrent layers and cells against eager torch: as loops, and a sequence of one as a single step."""

from __future__ import annotations

import itertools
import operator
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import Parameter

from tests.backends.tensorrt.cases import Case, case
from tests.backends.tensorrt.harness import (
    check,
    check_graph,
    compile_for,
    interpret,
    needs_rtx,
    network_of,
    one_node,
    refused,
    rejection,
)
from tiacc.graph import specs
from tiacc.graph.specs import Dim, TensorSpec

pytestmark = needs_rtx
aten = torch.ops.aten

torch.manual_seed(0)
_INPUT, _HIDDEN, _BATCH = 5, 4, 2
_GATES = {aten.lstm.input: 4, aten.gru.input: 3, aten.rnn_tanh.input: 1, aten.rnn_relu.input: 1}


def _weight(*shape: int) -> Parameter:
    return Parameter(0.4 * torch.randn(*shape))


def _weights(gates: int, layers: int, directions: int, has_biases: bool, projection: int) -> list[Parameter]:
    result, output = [], projection or _HIDDEN
    for layer in range(layers):
        for _ in range(directions):
            size = output * directions if layer else _INPUT
            result += [_weight(gates * _HIDDEN, size), _weight(gates * _HIDDEN, output)]
            result += [_weight(gates * _HIDDEN), _weight(gates * _HIDDEN)] if has_biases else []
            result += [_weight(projection, _HIDDEN)] if projection else []
    return result


def _network(
    op: Any, length: int, layers: int = 1, *, both: bool = False, first: bool = False, has_biases: bool = True, projection: int = 0
) -> Case:
    directions = 2 if both else 1
    sequence = torch.randn(_BATCH, length, _INPUT) if first else torch.randn(length, _BATCH, _INPUT)
    hidden, memory = (torch.randn(layers * directions, _BATCH, size) for size in (projection or _HIDDEN, _HIDDEN))
    state: Any = [hidden, memory] if op is aten.lstm.input else hidden
    weights = _weights(_GATES[op], layers, directions, has_biases, projection)
    return case(op, sequence, state, weights, has_biases, layers, 0.0, False, both, first)


CASES = [
    *(_network(op, length) for op in _GATES for length in (1, 2, 12)),
    *(_network(op, length, 2, both=True, first=True) for op in _GATES for length in (1, 10)),
    *(_network(op, 9, 2, both=True, has_biases=False) for op in _GATES),
    *(_network(aten.lstm.input, length, 2, both=True, projection=3) for length in (3, 12)),
    _network(aten.lstm.input, 12, first=True, has_biases=False, projection=2),
    *(
        case(op.default, torch.randn(2, 5), torch.randn(2, 4), _weight(4 * gates, 5), _weight(4 * gates, 4), *biases)
        for op, gates in ((aten.gru_cell, 3), (aten.rnn_tanh_cell, 1), (aten.rnn_relu_cell, 1))
        for biases in ((), (_weight(4 * gates), _weight(4 * gates)))
    ),
    *(
        case(aten.lstm_cell.default, torch.randn(2, 5), [torch.randn(2, 4), torch.randn(2, 4)], _weight(16, 5), _weight(16, 4), *biases)
        for biases in ((), (_weight(16), _weight(16)))
    ),
]


@pytest.mark.parametrize("item", CASES, ids=str)
def test_matches_eager(item: Case) -> None:
    check(item.op, *item.args, **item.kwargs)


@pytest.mark.parametrize("op", _GATES, ids=str)
def test_dynamic_length(op: Any) -> None:
    item = _network(op, 12, 2, both=True, first=True)
    gm, inputs = one_node(op, *item.args)
    others = [[torch.randn(_BATCH, length, _INPUT), *inputs[1:]] for length in (1, 3, 20)]
    check_graph(gm, inputs, dynamic=[(1,), *[()] * (len(inputs) - 1)], others=others, compile=True)


def test_only_a_sequence_of_one_is_no_loop() -> None:
    def layers(length: int) -> tuple[int, bool]:
        gm, inputs = one_node(aten.gru.input, *_network(aten.gru.input, length).args)
        definition = check_graph(gm, inputs)
        return definition.network.num_layers, "recurrence" in {kind for kind, _ in definition.conversion.kinds}

    assert layers(2) == layers(50)
    assert layers(2)[1]
    assert not layers(1)[1]


def test_both_directions_run_in_one_loop() -> None:
    gm, inputs = one_node(aten.lstm.input, *_network(aten.lstm.input, 5, 3, both=True).args)
    network = check_graph(gm, inputs).network
    kinds = [str(network.get_layer(index).type).rpartition(".")[2] for index in range(network.num_layers)]
    assert kinds.count("TRIP_LIMIT") == 3
    assert kinds.count("RECURRENCE") == 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("is_first", [False, True], ids=["time first", "batch first"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_modules_of_torch(kind: str, is_first: bool, is_dynamic: bool, dtype: torch.dtype) -> None:
    """Two layers in both directions, in float32 to 1e-5, in half precision to 5e-3 of torch in float32 with the same weights."""
    torch.manual_seed(1)
    module = getattr(nn, kind)(6, 8, 2, batch_first=is_first, bidirectional=True).eval()
    module = module.to(dtype).float()
    gm = _layers_of(module, dtype)
    length_and_batch = (Dim("t", 1, 7, 14), Dim("n", 1, 2, 4)) if is_dynamic else (7, 2)
    types = [TensorSpec((*(reversed(length_and_batch) if is_first else length_and_batch), 6), dtype)]
    specs.propagate(gm, types)
    assert rejection(gm) == ""
    definition = network_of(gm, types)
    for length, batch in ((7, 2), (1, 1), (14, 4), (3, 3)) if is_dynamic else ((7, 2),):
        x = torch.randn(batch, length, 6) if is_first else torch.randn(length, batch, 6)
        with torch.no_grad():
            outputs, state = module(x.to(dtype).float())
        wanted = [outputs, *(state if isinstance(state, tuple) else (state,))]
        for have, want in zip(interpret(definition, [x.to(dtype)]), wanted, strict=True):
            assert have.shape == want.shape
            error = float((have.float() - want).norm() / want.norm())
            assert error <= (1e-5 if dtype == torch.float32 else 5e-3)
    assert len(compile_for(definition, types).data) > 64


def _layers_of(module: Any, dtype: torch.dtype) -> fx.GraphModule:
    """Return a module as a graph of one call, from its input to its outputs and last states."""
    op = {nn.LSTM: aten.lstm.input, nn.GRU: aten.gru.input, nn.RNN: aten.rnn_tanh.input}[type(module)]
    root, graph = nn.Module(), fx.Graph()
    x = graph.placeholder("x")
    weights = []
    for index, weight in enumerate(itertools.chain.from_iterable(module.all_weights)):
        root.register_buffer(f"w{index}", weight.detach().to(dtype))
        weights.append(graph.get_attr(f"w{index}"))
    batch = graph.call_function(aten.sym_size.int, (x, 0 if module.batch_first else 1))
    states = [graph.call_function(aten.new_zeros.default, (x, [4, batch, 8])) for _ in range(2 if op is aten.lstm.input else 1)]
    state = states if op is aten.lstm.input else states[0]
    call = graph.call_function(op, (x, state, weights, True, 2, 0.0, False, True, module.batch_first))
    graph.output(tuple(graph.call_function(operator.getitem, (call, index)) for index in range(len(states) + 1)))
    return fx.GraphModule(root, graph)


def test_two_builds_of_loops_are_identical() -> None:
    def plan() -> bytes:
        torch.manual_seed(0)
        gm = _layers_of(nn.LSTM(6, 8, 2, bidirectional=True), torch.float32)
        types = [TensorSpec((7, 2, 6), torch.float32)]
        specs.propagate(gm, types)
        return compile_for(network_of(gm, types), types).data

    assert plan() == plan()


def test_dropout_between_layers_is_refused() -> None:
    args = list(_network(aten.gru.input, 3, 2).args)
    args[5:7] = 0.5, True
    assert "random" in refused(aten.gru.input, *args)

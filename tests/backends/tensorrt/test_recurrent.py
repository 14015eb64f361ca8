"""Recurrent layers and cells against eager torch: as loops, and step by step where the steps are few."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import Parameter

from tests.backends.tensorrt.cases import Case, case
from tests.backends.tensorrt.harness import check, check_graph, needs_rtx, one_node, refused

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
    *(_network(op, length) for op in _GATES for length in (3, 12)),
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


def test_long_sequences_are_loops_and_short_ones_are_not() -> None:
    def kinds(length: int) -> set[str]:
        gm, inputs = one_node(aten.gru.input, *_network(aten.gru.input, length).args)
        return {kind for kind, _ in check_graph(gm, inputs).conversion.kinds}

    assert "recurrence" in kinds(12)
    assert "recurrence" not in kinds(3)


def test_dropout_between_layers_is_refused() -> None:
    args = list(_network(aten.gru.input, 3, 2).args)
    args[5:7] = 0.5, True
    assert "random" in refused(aten.gru.input, *args)

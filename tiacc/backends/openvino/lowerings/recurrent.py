"""Recurrent layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from tiacc.backends.openvino.lowering import Emitter, lowers
from tiacc.backends.openvino.lowerings.common import value_of

aten = torch.ops.aten


@lowers("lstm.input")
def _projected_lstm(
    emit: Emitter,
    x: fx.Node,
    states: Sequence[fx.Node],
    weights: Sequence[fx.Node],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Sequence[fx.Node] | None:
    """An LSTM with projected outputs, ``h = R m`` with ``m = o * tanh(c)``, is one over ``m`` whose recurrent weights are ``W R``.

    Its first step reads the given state ``h`` itself: that comes with the input, which has ``W`` in its weights too and zeros later on.
    """
    directions = 2 if bidirectional else 1
    own = len(weights) // (layers * directions)
    if own == (4 if has_biases else 2):
        return None
    time = 1 if batch_first else 0
    later = [0, 0] * (2 - time) + [0, value_of(x).shape[time] - 1]
    finals: list[tuple[fx.Node, fx.Node]] = []
    for layer in range(layers):
        outputs = []
        for index in range(layer * directions, (layer + 1) * directions):
            of_input, of_state, *biases, projection = weights[index * own : (index + 1) * own]
            is_reverse = index % directions == 1
            hidden, cell = (emit(aten.slice.Tensor, state, 0, index, index + 1, 1) for state in states)
            given = emit(aten.constant_pad_nd.default, emit(aten.transpose.int, hidden, 0, 1) if batch_first else hidden, later, 0.0)
            wide = emit(aten.cat.default, [emit(aten.flip.default, x, [time]) if is_reverse else x, given], -1)
            wide_weight = emit(aten.cat.default, [of_input, of_state], 1)
            recurrent = emit(aten.mm.default, of_state, projection)
            start = [emit(aten.zeros_like.default, cell), cell]
            result = emit(aten.lstm.input, wide, start, [wide_weight, recurrent, *biases], has_biases, 1, 0.0, False, False, batch_first)
            output = emit(aten.linear.default, emit.item(result, 0), projection, None)
            outputs.append(emit(aten.flip.default, output, [time]) if is_reverse else output)
            finals.append((emit(aten.linear.default, emit.item(result, 1), projection, None), emit.item(result, 2)))
        x = emit(aten.cat.default, outputs, -1) if bidirectional else outputs[0]
    return [x, *(emit(aten.cat.default, list(members), 0) for members in zip(*finals))]

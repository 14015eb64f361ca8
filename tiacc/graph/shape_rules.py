"""The shapes of results for operators whose own inference fixes sizes that may vary.

torch infers the shapes of recurrent layers by running their loops, step by step, and so fixes the length of the sequence. A shape
that is asked for as a tensor it cannot give at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

aten = torch.ops.aten


def _lstm(
    value: torch.Tensor,
    hx: Sequence[torch.Tensor],
    params: Sequence[torch.Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[torch.Tensor, ...]:
    return (_outputs(value, hx[0], bidirectional), *(state.new_empty(state.shape) for state in hx))


def _layers(
    value: torch.Tensor,
    hx: torch.Tensor,
    params: Sequence[torch.Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[torch.Tensor, ...]:
    return _outputs(value, hx, bidirectional), hx.new_empty(hx.shape)


def _outputs(value: torch.Tensor, state: torch.Tensor, is_bidirectional: bool) -> torch.Tensor:
    """Return outputs for a sequence ``(T, N, I)``, or ``(N, T, I)``: as many as it has elements, of the size of the state."""
    return value.new_empty((*value.shape[:2], state.shape[2] * (2 if is_bidirectional else 1)))


def _shape_as_tensor(value: torch.Tensor) -> torch.Tensor:
    return torch.empty(value.dim(), dtype=torch.int64)


SHAPE_RULES: dict[Any, Callable[..., Any]] = {
    aten.lstm.input: _lstm,
    aten.gru.input: _layers,
    aten.rnn_tanh.input: _layers,
    aten.rnn_relu.input: _layers,
    aten._shape_as_tensor.default: _shape_as_tensor,
}
"""For an overload, what gives its results' shapes and dtypes from arguments that are fake tensors."""

"""The shapes of results for operators that torch infers wrongly, or at a cost.

torch infers the shapes of recurrent layers by running their loops, step by step, and so fixes the length of the sequence. A shape
that is asked for as a tensor it cannot give at all, nor, before 2.14, that of a whole layer of a transformer; and a tensor of numbers it
makes at once, of the example's. Of a convolution as tracing writes it, it knows the shape since 2.14; before, it computes one, of zeros.
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


def _encoder_layer(value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return value.new_empty(value.shape)


def _shape_as_tensor(value: torch.Tensor) -> torch.Tensor:
    return torch.empty(value.dim(), dtype=torch.int64)


_CUDNN_FLAGS = ("benchmark", "deterministic", "cudnn_enabled", "allow_tf32")
"""The last arguments of a traced convolution, which its shape does not depend on."""


def _convolution(*args: Any, **kwargs: Any) -> Any:
    return aten.convolution.default(*args[:9], **{name: value for name, value in kwargs.items() if name not in _CUDNN_FLAGS})


_DTYPES = {bool: torch.bool, torch.SymBool: torch.bool, int: torch.int64, torch.SymInt: torch.int64, complex: torch.complex64}


def _tensor(
    data: Any, dtype: torch.dtype | None = None, device: torch.device | None = None, requires_grad: bool = False
) -> torch.Tensor:
    shape = []
    while isinstance(data, (list, tuple)):
        shape.append(len(data))
        if not data:
            raise ValueError("the type of the numbers in an empty list is not known")
        data = data[0]
    if dtype is None:
        dtype = _DTYPES.get(type(data), torch.get_default_dtype())
    return torch.empty(shape, dtype=dtype, device=device)


SHAPE_RULES: dict[Any, Callable[..., Any]] = {
    aten.lstm.input: _lstm,
    aten.gru.input: _layers,
    aten.rnn_tanh.input: _layers,
    aten.rnn_relu.input: _layers,
    aten._convolution.default: _convolution,
    aten._convolution.deprecated: _convolution,
    aten._shape_as_tensor.default: _shape_as_tensor,
    aten._transformer_encoder_layer_fwd.default: _encoder_layer,
    **{getattr(aten.tensor, kind): _tensor for kind in ("default", "int", "float", "bool")},
    **{getattr(aten.as_tensor, kind): _tensor for kind in ("list", "int", "float", "bool")},
}
"""For an overload, what gives its results' shapes and dtypes from arguments that are fake tensors."""

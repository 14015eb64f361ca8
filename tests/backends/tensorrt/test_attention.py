"""Attention, masked, causal and grouped, and torch's fused transformer layers, against eager torch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from tests.backends.tensorrt.cases import Case, case
from tests.backends.tensorrt.harness import check, check_graph, graph_of, needs_rtx, one_node, refused

pytestmark = needs_rtx
aten = torch.ops.aten

torch.manual_seed(0)
_SDPA = aten.scaled_dot_product_attention.default
_Q, _K, _V = (torch.randn(2, 4, length, 8) for length in (5, 7, 7))
_OTHER = torch.randn(2, 4, 7, 6)  # values of another size than keys, which TensorRT's layer does not take
_FULL = torch.rand(2, 4, 5, 7) > 0.4
_FULL[0, 1, 2] = False  # a query that may attend to nothing
_MASKS = (
    _FULL,
    torch.rand(5, 7) > 0.3,
    torch.randn(5, 7),
    torch.rand(2, 1, 1, 7) > 0.3,
    Parameter(_FULL, requires_grad=False),
    torch.zeros(2, 4, 5, 7).masked_fill(~_FULL, -math.inf),
)
_WIDTH = 16
_PADDED = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
_TRIANGLE = torch.ones(5, 5, dtype=torch.bool).triu(1)


def _weight(*shape: int) -> Parameter:
    return Parameter(0.3 * torch.randn(*shape))


def _self_attention() -> tuple[Parameter, ...]:
    return _weight(3 * _WIDTH, _WIDTH), _weight(3 * _WIDTH), _weight(_WIDTH, _WIDTH), _weight(_WIDTH)


def _encoder_layer(use_gelu: bool, norm_first: bool, mask: torch.Tensor | None, kind: int | None) -> Case:
    norms = [_weight(_WIDTH) for _ in range(4)]
    forward = (_weight(32, _WIDTH), _weight(32), _weight(_WIDTH, 32), _weight(_WIDTH))
    source = torch.randn(2, 5, _WIDTH)
    arguments = (source, _WIDTH, 4, *_self_attention(), use_gelu, norm_first, 1e-5, *norms, *forward, mask, kind)
    return case(aten._transformer_encoder_layer_fwd.default, *arguments)


_SOURCE = torch.randn(2, 5, _WIDTH)
CASES = [
    *(case(_SDPA, _Q, _K, value, mask) for value in (_V, _OTHER) for mask in (None, *_MASKS)),
    *(case(_SDPA, torch.randn(2, 4, length, 8), _K, value, None, 0.0, True) for value in (_V, _OTHER) for length in (5, 7, 9)),
    case(_SDPA, _Q, _K, _V, scale=0.3),
    *(case(_SDPA, *(torch.randn(shape) for _ in range(3)), None, 0.0, True) for shape in ((5, 8), (3, 5, 8), (2, 2, 3, 5, 8))),
    *(case(_SDPA, *(torch.randn(shape) for _ in range(3)), torch.rand(5, 5) > 0.4) for shape in ((5, 8), (3, 5, 8), (2, 2, 3, 5, 8))),
    case(_SDPA, torch.randn(2, 6, 5, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8), enable_gqa=True),
    case(_SDPA, torch.randn(2, 6, 5, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 4), enable_gqa=True),
    *(_encoder_layer(gelu, first, None, None) for gelu in (False, True) for first in (False, True)),
    _encoder_layer(True, False, _PADDED, 1),
    _encoder_layer(True, True, _TRIANGLE, 0),
    *(
        case(aten._native_multi_head_attention.default, _SOURCE, _SOURCE, _SOURCE, _WIDTH, 4, *_self_attention(), mask, True, average, kind)
        for mask, kind in ((None, None), (_PADDED, 1), (_TRIANGLE, 0))
        for average in (False, True)
    ),
]


@pytest.mark.parametrize("item", CASES, ids=str)
def test_matches_eager(item: Case) -> None:
    check(item.op, *item.args, **item.kwargs)


def test_dynamic_length() -> None:
    inputs, others = [torch.randn(2, 4, 6, 8), torch.randn(2, 4, 6, 8)], [[torch.randn(1, 4, 3, 8), torch.randn(1, 4, 3, 8)]]
    for is_causal in (False, True):
        graph = graph_of(lambda q, k: _SDPA(q, k, k, None, 0.0, is_causal), 2)  # noqa: B023 - called at once
        check_graph(graph, inputs, dynamic=[(0, 2), (0, 2)], others=others, compile=True)


def test_dynamic_batch_with_a_mask() -> None:
    def example(batch: int) -> list[torch.Tensor]:
        return [*(torch.randn(batch, 4, 6, 8) for _ in range(3)), torch.rand(batch, 1, 1, 6) > 0.4]

    check_graph(graph_of(_SDPA, 4), example(2), dynamic=[(0,)] * 4, others=[example(1), example(4)], compile=True)


def test_dynamic_heads() -> None:
    """TensorRT's layer wants to know how many heads there are."""

    def example(heads: int) -> list[torch.Tensor]:
        return [torch.randn(2, heads, 5, 8) for _ in range(3)]

    check_graph(graph_of(_SDPA, 3), example(2), dynamic=[(1,)] * 3, others=[example(1), example(4)], compile=True)


def test_the_layer_is_used_where_it_takes_the_operands() -> None:
    def kinds(*operands: Any) -> set[str]:
        gm, inputs = one_node(_SDPA, *operands)
        return {kind for kind, _ in check_graph(gm, inputs).conversion.kinds}

    assert "attention" in kinds(_Q, _K, _V)
    assert "matrix_multiply" in kinds(_Q, _K, _OTHER)


@pytest.mark.parametrize("mask", [None, _PADDED], ids=["all", "padded"])
@pytest.mark.parametrize("average", [False, True])
def test_weights_of_keys_come_from_the_products_that_are_mixed(mask: torch.Tensor | None, average: bool) -> None:
    """RTX 1.7.1 cannot build a second product of what its attention layer reads."""
    arguments = (*(_SOURCE for _ in range(3)), _WIDTH, 4, *_self_attention(), mask, True, average, None if mask is None else 1)
    definition = check(aten._native_multi_head_attention.default, *arguments, compile=True)
    assert "attention" not in {kind for kind, _ in definition.conversion.kinds}


_HALF, _FLOAT = torch.float16, torch.float32
_WITHOUT_LAYER = {
    "two layers of one query": lambda q, k, v: (_SDPA(q, k, v), _SDPA(q, v, k)),
    "two layers of views of one query": lambda q, k, v: (lambda x: (_SDPA(x, k, v), _SDPA(_viewed(x), v, k)))(aten.relu.default(q)),
    "two layers of equal queries": lambda q, k, v: (_SDPA(aten.relu.default(q), k, v), _SDPA(aten.relu.default(q), v, k)),
    "causal or not": lambda q, k, v: (_SDPA(q, k, v), _SDPA(q, k, v, None, 0.0, True)),
    "the scaled query": lambda q, k, v: (_SDPA(q, k, v), aten.relu.default(aten.mul.Tensor(q, 8**-0.5))),
    "a multiple as query": lambda q, k, v: (lambda x: (_SDPA(x, k, v, scale=1.0), aten.relu.default(x)))(aten.mul.Tensor(q, 0.3)),
    "a multiple as key": lambda q, k, v: (lambda x: (_SDPA(q, x, v), aten.relu.default(x)))(aten.div.Scalar(k, 3.0)),
    "a view of a multiple as key": lambda q, k, v: (lambda x: (_SDPA(q, _viewed(x), v), aten.relu.default(x)))(aten.div.Scalar(k, 3.0)),
    "a multiple as query and key": lambda q, k, v: (lambda x: (_SDPA(x, x, v),))(aten.mul.Scalar(k, 0.3)),
    "a multiple as key and value": lambda q, k, v: (lambda x: (_SDPA(q, x, x),))(aten.mul.Scalar(k, 0.3)),
    "a multiple as query and value": lambda q, k, v: (lambda x: (_SDPA(x, k, x),))(aten.mul.Scalar(v, 0.3)),
    "a multiple of a multiple": lambda q, k, v: (
        (lambda x: (_SDPA(aten.mul.Scalar(x, 0.7), k, v), aten.relu.default(x)))(aten.mul.Scalar(q, 0.3))
    ),
    "joined with its value": lambda q, k, v: (lambda x: aten.cat.default([x, _SDPA(k, k, x)], -1))(aten.relu.default(v)),
    "joined with another": lambda q, k, v: aten.cat.default([_SDPA(aten.relu.default(q), k, v), _SDPA(q, v, k)], 2),
}


def _viewed(x: Any) -> Any:
    """Return a view that TensorRT sees through."""
    return aten.reshape.default(aten.flatten.using_ints(x, 2), [2, 4, -1, 8])


@pytest.mark.parametrize("dtype", [_FLOAT, _HALF], ids=str)
@pytest.mark.parametrize("function", _WITHOUT_LAYER.values(), ids=_WITHOUT_LAYER)
def test_no_layer_where_it_does_not_build(function: Any, dtype: torch.dtype) -> None:
    """RTX 1.7.1 fails where a multiple that the layer would take in is read twice, and where the result is joined as it is."""
    _check_without_layer(function, [tensor.to(dtype) for tensor in (_Q, _K, _V)])


@pytest.mark.parametrize("name", ["query", "key", "value"])
@pytest.mark.parametrize("half", [_HALF, torch.bfloat16], ids=str)
def test_no_layer_of_what_was_widened(half: torch.dtype, name: str) -> None:
    """RTX 1.7.1 fails, or ends the process, where an operand in float32 was half precision right before."""

    place = ["query", "key", "value"].index(name)
    inputs = [_Q, _K, _V]
    inputs[place] = inputs[place].to(half)

    def widened(*operands: Any) -> list[Any]:
        return [aten._to_copy.default(x, dtype=_FLOAT) if index == place else x for index, x in enumerate(operands)]

    _check_without_layer(lambda *operands: _SDPA(*widened(*operands)), inputs)
    _check_without_layer(lambda *operands: _SDPA(*map(_viewed, widened(*operands))), inputs)


def test_no_layer_of_a_multiple_of_what_was_widened() -> None:
    _check_without_layer(lambda q, k, v: _SDPA(aten.mul.Scalar(aten._to_copy.default(q, dtype=_FLOAT), 0.3), k, v), [_Q.half(), _K, _V])


def _check_without_layer(function: Any, inputs: list[torch.Tensor]) -> None:
    definition = check_graph(graph_of(function, 3), inputs, compile=True)
    assert "attention" not in {kind for kind, _ in definition.conversion.kinds}


def test_a_layer_where_what_it_reads_is_read_twice_but_no_multiple_of_it() -> None:
    def function(q: Any, k: Any, v: Any) -> tuple[Any, ...]:
        return _SDPA(q, k, v), aten.relu.default(q), aten.mul.Tensor(k, 2.0), _SDPA(aten.relu.default(q), k, v)

    definition = check_graph(graph_of(function, 3), [_Q, _K, _V], compile=True)
    assert "attention" in {kind for kind, _ in definition.conversion.kinds}


def test_dropout_is_refused() -> None:
    assert "random" in refused(_SDPA, _Q, _K, _V, None, 0.5)

"""Norms and distances against eager torch."""

from __future__ import annotations

import math

import pytest
import torch

from tests.backends.tensorrt.cases import Case, case
from tests.backends.tensorrt.harness import check, check_graph, graph_of, needs_rtx, refused

pytestmark = needs_rtx
aten = torch.ops.aten

torch.manual_seed(0)
_X, _Y = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
_ORDERS = (0, 1, 2, 3, 0.5, math.inf, -math.inf)

CASES = [
    *(case(aten.norm.Scalar, _X, order) for order in _ORDERS),
    *(case(aten.linalg_vector_norm.default, _X, order, [1, -1], True) for order in _ORDERS),
    case(aten.linalg_vector_norm.default, torch.randn(()), 2),
    case(aten.linalg_vector_norm.default, 100 * _X.half(), 2, [2]),
    case(aten.linalg_vector_norm.default, _X.half(), 2, [2], dtype=torch.float32),
    case(aten.norm.ScalarOpt_dim, _X, None, [1]),
    case(aten.norm.ScalarOpt_dim_dtype, _X, 2, [1], True, dtype=torch.float32),
    case(aten.norm.ScalarOpt_dtype, _X, 1, dtype=torch.float32),
    case(aten.frobenius_norm.dim, _X, [0, 2]),
    case(aten.linalg_norm.default, _X),
    case(aten.linalg_norm.default, _X, 1, [0]),
    *(case(aten.linalg_norm.default, _X, order, [0, 2], keep) for order in (1, -1, math.inf, -math.inf) for keep in (False, True)),
    case(aten.linalg_norm.ord_str, _X[0], "fro"),
    case(aten.linalg_matrix_norm.default, _X, -1),
    case(aten.linalg_matrix_norm.str_ord, _X),
    *(case(aten.dist.default, _X, _Y, order) for order in (1, 2, math.inf)),
    case(aten.pairwise_distance.default, _X, _Y, 2.0, 1e-6, True),
    case(aten.cosine_similarity.default, _X, _Y, -1),
    case(aten.cosine_similarity.default, _X[:, :1], _Y[:1], 1),
    *(case(aten.cdist.default, _X, torch.randn(3, 6, 5), order) for order in (1.0, 2.0)),
]


@pytest.mark.parametrize("item", CASES, ids=str)
def test_matches_eager(item: Case) -> None:
    check(item.op, *item.args, **item.kwargs)


def test_dynamic_sizes() -> None:
    inputs, others = [torch.randn(2, 6, 4), torch.randn(2, 6, 4)], [[torch.randn(1, 3, 4), torch.randn(1, 3, 4)]]
    graph = graph_of(lambda x, y: (aten.cdist.default(x, y), aten.linalg_vector_norm.default(x, 2, [1], True)), 2)
    check_graph(graph, inputs, dynamic=[(0, 1), (0, 1)], others=others, compile=True)


def test_norms_that_need_singular_values_are_refused() -> None:
    assert "singular values" in refused(aten.linalg_matrix_norm.default, _X, 2)
    assert "singular values" in refused(aten.linalg_matrix_norm.str_ord, _X, "nuc")

"""Activations against eager torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import Parameter

from tests.backends.tensorrt.cases import Case, case
from tests.backends.tensorrt.harness import check, check_dynamic, needs_rtx, refused, words

pytestmark = needs_rtx
aten = torch.ops.aten

torch.manual_seed(0)
_A = torch.randn(2, 6, 5) * 4
_I = torch.randint(-9, 10, (3, 5))
_PLAIN = words(
    "relu relu6 hardtanh hardsigmoid hardswish sigmoid special_expit tanh silu selu elu celu softplus log_sigmoid mish gelu"
)
_FAR = torch.tensor([-200.0, -50, 50, 200])

CASES = [
    *(case(getattr(aten, name).default, _A) for name in _PLAIN),
    *(case(getattr(aten, name).default, _A.half()) for name in _PLAIN),
    *(case(getattr(aten, name).default, _A.bfloat16()) for name in ("relu", "silu", "gelu", "softplus")),
    *(case(getattr(aten, name).default, _FAR) for name in ("sigmoid", "softplus", "log_sigmoid", "mish", "elu", "silu")),
    *(case(getattr(aten, name).default, _I) for name in ("relu", "relu6", "sigmoid", "tanh")),
    case(aten.hardtanh.default, _A, -0.5, 2.0),
    case(aten.hardtanh.default, _I, -2, 3),
    case(aten.leaky_relu.default, _A, 0.2),
    case(aten.leaky_relu.default, _A, -0.5),
    case(aten.rrelu.default, _A, 0.1, 0.3, False),
    case(aten.prelu.default, _A, Parameter(torch.randn(6))),
    case(aten.prelu.default, _A, Parameter(torch.randn(1))),
    case(aten.prelu.default, _A, torch.randn(6)),
    case(aten.prelu.default, torch.randn(5), Parameter(torch.randn(1))),
    case(aten._prelu_kernel.default, _A, Parameter(torch.randn(1, 6, 1))),
    case(aten.threshold.default, _A, 0.5, -1.0),
    case(aten.threshold.default, _I, 2, 20),
    case(aten.hardshrink.default, torch.tensor([-1.0, -0.5, 0.2, 0.5, 2, math.nan, math.inf]), 0.5),
    case(aten.softshrink.default, _A, 0.7),
    case(aten.gelu.default, _A, approximate="tanh"),
    case(aten.elu.default, _A, 0.5),
    case(aten.elu.default, _A, 0.5, 1.5),
    case(aten.elu.default, _A, 0.5, 1.5, 0.7),
    case(aten.celu.default, _A, 0.5),
    case(aten.celu.default, _A, -0.5),
    case(aten.softplus.default, _A, 2),
    case(aten.softplus.default, _A, 0.5, 1),
    *(case(aten.glu.default, _A, dim) for dim in (1, -2)),
    *(case(op, _A, dim) for op in (aten.softmax.int, aten.log_softmax.int) for dim in (0, 1, -1)),
    *(case(op, _A, 1, False) for op in (aten._softmax.default, aten._log_softmax.default)),
    *(case(op, torch.randn(7), 0) for op in (aten.softmax.int, aten.log_softmax.int)),
    *(case(op, torch.randn(()), 0) for op in (aten.softmax.int, aten.log_softmax.int)),
    *(case(op, _A.half(), -1, torch.float32) for op in (aten.softmax.int, aten.log_softmax.int)),
    case(aten.log_softmax.int, torch.tensor([[1e4, 0.0, -1e4]]), 1),
]


@pytest.mark.parametrize("item", CASES, ids=str)
def test_matches_eager(item: Case) -> None:
    check(item.op, *item.args, **item.kwargs)


@pytest.mark.parametrize(
    ("op", "args", "dynamic", "other"),
    [
        (aten.prelu.default, (_A, Parameter(torch.randn(6))), (0, 2), torch.randn(1, 6, 9)),
        (aten.glu.default, (_A, 1), (0, 2), torch.randn(1, 6, 9)),
        (aten.glu.default, (torch.randn(2, 6), 1), (1,), torch.randn(2, 10)),
        (aten.softmax.int, (_A, -1), (0, 2), torch.randn(1, 6, 9)),
        (aten.softmax.int, (torch.randn(6), 0), (0,), torch.randn(9)),
        (aten.log_softmax.int, (_A, 1), (0, 1), torch.randn(1, 9, 5)),
    ],
)
def test_dynamic_shapes(op: object, args: tuple[object, ...], dynamic: tuple[int, ...], other: torch.Tensor) -> None:
    check_dynamic(op, args, [dynamic], [other], compile=True)


@pytest.mark.parametrize(
    ("op", "args", "reason"),
    [
        (aten.rrelu.default, (_A, 0.1, 0.3, True), "training"),
        (aten.softmax.int, (_A, 0, torch.float64), "float64"),
        (aten.gelu.default, (_A.double(),), "float64"),
    ],
)
def test_refusals(op: object, args: tuple[object, ...], reason: str) -> None:
    assert reason in refused(op, *args)

"""Arithmetic of two tensors, or tensors and numbers, against eager torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import Parameter

from tests.backends.tensorrt.cases import Case, case
from tests.backends.tensorrt.harness import check, check_graph, graph_of, interpret, needs_rtx, one_node, refused

pytestmark = needs_rtx
aten = torch.ops.aten

torch.manual_seed(0)
_A, _B = torch.randn(2, 3, 5), torch.randn(3, 1)
_P = torch.rand(2, 3, 5) + 0.5
_I, _J = torch.randint(-9, 10, (2, 3, 5)), torch.randint(1, 6, (3, 5))
_SIGNED = torch.tensor([2, -3, 4])
_C, _D = torch.randn(2, 3) > 0, torch.randn(3) > 0

CASES = [
    # sums and products; promotion; broadcasting; constants and numbers
    *(case(op.Tensor, _A, _B) for op in (aten.add, aten.sub, aten.subtract, aten.mul, aten.multiply, aten.rsub)),
    *(case(op.Tensor, _I, _J) for op in (aten.add, aten.sub, aten.mul, aten.rsub)),
    *(case(op.Tensor, _A.half(), _I) for op in (aten.add, aten.mul, aten.div)),
    *(case(op.Tensor, _I.int(), _J) for op in (aten.add, aten.mul)),
    *(case(op.Tensor, _C, _D) for op in (aten.add, aten.mul)),
    *(case(op.Tensor, _A, _C[:, :, None]) for op in (aten.add, aten.mul)),
    *(case(op.Tensor, _A, Parameter(_B)) for op in (aten.add, aten.mul, aten.div)),
    *(case(op.Tensor, _A, Parameter(torch.tensor(2.5, dtype=torch.float64))) for op in (aten.add, aten.mul, aten.div)),
    *(case(op.Tensor, _I, Parameter(torch.tensor(2.5))) for op in (aten.add, aten.mul)),
    *(case(op.Tensor, Parameter(_B), _A) for op in (aten.sub, aten.div)),
    *(case(op.Tensor, torch.randn(()), torch.randn(4)) for op in (aten.add, aten.mul)),
    *(case(op.Tensor, torch.empty(0, 3), torch.randn(3)) for op in (aten.add, aten.mul)),
    *(case(op.Scalar, _A, 3) for op in (aten.add, aten.sub, aten.subtract, aten.mul, aten.multiply, aten.rsub)),
    *(case(op.Scalar, _I, 2.5) for op in (aten.add, aten.sub, aten.mul, aten.rsub)),
    *(case(op.Scalar, _I, 2) for op in (aten.add, aten.sub, aten.mul, aten.rsub)),
    *(case(op.Scalar, _A.bfloat16(), 3) for op in (aten.add, aten.mul)),
    case(aten.add.Tensor, _A, _B, alpha=0.5),
    case(aten.add.Tensor, _I, _J, alpha=3),
    case(aten.add.Tensor, _C, _D, alpha=True),
    case(aten.add.Scalar, _A, 2, 0.25),
    case(aten.sub.Tensor, _A, _B, alpha=-2),
    case(aten.sub.Scalar, _A, 2, 3),
    case(aten.subtract.Scalar, _A, 2, 3),
    case(aten.rsub.Tensor, _A, _B, alpha=2),
    case(aten.rsub.Scalar, _A, 2, 3),
    case(aten.mul.Scalar, _C, 2),
    case(aten.addcmul.default, _A, _B, torch.randn(5), value=0.5),
    case(aten.addcmul.default, _I, _J, _J, value=2),
    case(aten.addcdiv.default, _A, _B, _P, value=2),
    case(aten.lerp.Scalar, _A, _P, 0.3),
    case(aten.lerp.Tensor, _A, _P, torch.rand(5)),
    # quotients
    *(case(op.Tensor, _A, _P) for op in (aten.div, aten.divide, aten.true_divide, aten.remainder, aten.fmod)),
    *(case(op.Tensor, _I, _J) for op in (aten.div, aten.true_divide, aten.remainder, aten.fmod)),
    *(case(op.Tensor, _I[..., :3], _SIGNED) for op in (aten.remainder, aten.fmod)),
    *(case(op.Scalar, _A, 3) for op in (aten.div, aten.divide, aten.true_divide, aten.remainder, aten.fmod, aten.floor_divide)),
    *(case(op.Scalar, _I, -4) for op in (aten.div, aten.divide, aten.true_divide, aten.remainder, aten.fmod, aten.floor_divide)),
    *(case(op.Scalar, _I, 2.5) for op in (aten.div, aten.remainder, aten.fmod, aten.floor_divide)),
    *(case(op.Tensor_mode, _A, _P, rounding_mode=mode) for op in (aten.div, aten.divide) for mode in ("floor", "trunc", None)),
    *(case(op.Tensor_mode, _I[..., :3], _SIGNED, rounding_mode=mode) for op in (aten.div, aten.divide) for mode in ("floor", "trunc")),
    *(case(op.Scalar_mode, _A, 0.7, rounding_mode=mode) for op in (aten.div, aten.divide) for mode in ("floor", "trunc")),
    *(case(op.Scalar_mode, _I, -3, rounding_mode=mode) for op in (aten.div, aten.divide) for mode in ("floor", "trunc")),
    case(aten.remainder.Scalar_Tensor, 7, _J),
    case(aten.remainder.Tensor, _A.half(), _P.half()),
    case(aten.fmod.Tensor, _A.bfloat16(), _P.bfloat16()),
    case(aten.floor_divide.default, _A, _P),
    case(aten.floor_divide.default, _I[..., :3], _SIGNED),
    # powers
    *(case(aten.pow.Tensor_Scalar, _A, exponent) for exponent in (0, 1, 2, 3, 4, 5, -1, -2)),
    *(case(aten.pow.Tensor_Scalar, _P, exponent) for exponent in (0.5, -0.5, 1.7, -1.3)),
    *(case(aten.pow.Tensor_Scalar, _I, exponent) for exponent in (0, 1, 2, 3, 2.0)),
    case(aten.pow.Tensor_Tensor, _P, _A),
    case(aten.pow.Tensor_Tensor, _P, _J),
    case(aten.pow.Scalar, 2, _A),
    case(aten.pow.Scalar, 1.5, _J),
    case(aten.hypot.default, _A, _B),
    case(aten.hypot.default, torch.tensor([3e30, 0.0, math.inf, 300.0]), torch.tensor([4e30, 0.0, math.nan, 400.0])),
    case(aten.hypot.default, torch.tensor([300.0]).half(), torch.tensor([400.0]).half()),
    # the larger, the smaller, what lies between
    *(case(op.default, _A, _B) for op in (aten.maximum, aten.minimum, aten.fmax, aten.fmin)),
    *(case(op.default, _C, _D) for op in (aten.maximum, aten.minimum)),
    *(case(op.other, _I, _J) for op in (aten.max, aten.min)),
    *(case(op.default, _A, -0.5, 0.5) for op in (aten.clamp, aten.clip)),
    *(case(op.default, _I, -2, 3) for op in (aten.clamp, aten.clip)),
    *(case(op.Tensor, _A, _B, _B + 1) for op in (aten.clamp, aten.clip)),
    *(case(op.Tensor, _A, None, _B) for op in (aten.clamp, aten.clip)),
    case(aten.clamp.default, _A, 0.5, -0.5),
    case(aten.clamp.default, _A, None, 0.5),
    case(aten.clamp.default, _I, 0.5),
    case(aten.clamp_min.default, _A, 0.1),
    case(aten.clamp_min.default, _I, 2),
    case(aten.clamp_min.Tensor, _A, _B),
    case(aten.clamp_max.default, _A, 0.1),
    case(aten.clamp_max.default, _I, 1.5),
    case(aten.clamp_max.Tensor, _A, _B),
    # angles, signs, logarithms
    *(case(op.default, _A, _B) for op in (aten.atan2, aten.arctan2, aten.logaddexp, aten.logaddexp2)),
    case(aten.atan2.default, torch.tensor([0.0, 1, -1, 0, 0]), torch.tensor([0.0, 0, 0, 1, -1])),
    case(aten.atan2.default, _I, _J),
    case(aten.copysign.Tensor, _A, torch.tensor([1.0, -0.0, 0.0, -2, math.inf])),
    case(aten.copysign.Scalar, _A, -1.0),
    case(aten.copysign.Scalar, _I, 1),
    case(aten.heaviside.default, torch.tensor([-1.5, 0, 2]), torch.tensor([0.5])),
    case(aten.heaviside.default, _I, _J),
    *(case(op, _P, _P.flip(0)) for op in (aten.xlogy.Tensor, aten.special_xlogy.default)),
    *(case(op, 2.0, _P) for op in (aten.xlogy.Scalar_Self, aten.special_xlogy.self_scalar)),
    *(case(op, _P, 3.0) for op in (aten.xlogy.Scalar_Other, aten.special_xlogy.other_scalar)),
    case(aten.xlogy.Tensor, torch.tensor([0.0, 0, 1]), torch.tensor([0.0, math.nan, 2])),
    case(aten.logaddexp.default, torch.tensor([math.inf, -math.inf, 0]), torch.tensor([math.inf, -math.inf, -math.inf])),
    # bits
    *(case(op, _I, 3) for op in (aten.bitwise_left_shift.Tensor_Scalar, aten.bitwise_right_shift.Tensor_Scalar)),
    *(case(op.Scalar, _I.int(), 2) for op in (aten.__lshift__, aten.__rshift__)),
]


@pytest.mark.parametrize("item", CASES, ids=str)
def test_matches_eager(item: Case) -> None:
    check(item.op, *item.args, **item.kwargs)


def test_dynamic_sizes_as_numbers() -> None:
    def function(x: torch.fx.Proxy) -> torch.fx.Proxy:
        rows = aten.sym_size.int(x, 0)
        area = rows * aten.sym_size.int(x, 1)
        return aten.div.Tensor(aten.mul.Scalar(aten.add.Scalar(x, rows), area // 2), aten.clamp_min.default(x, rows))

    gm = graph_of(function, 1)
    check_graph(gm, [torch.randn(4, 3)], dynamic=[(0, 1)], others=[[torch.randn(1, 6)], [torch.randn(8, 2)]], compile=True)


def test_broadcasts_dynamic_dimensions() -> None:
    gm = graph_of(lambda x, y: aten.mul.Tensor(aten.add.Tensor(x, y), y), 2)
    check_graph(
        gm,
        [torch.randn(4, 3, 5), torch.randn(3, 5)],
        dynamic=[(0,), ()],
        others=[[torch.randn(8, 3, 5), torch.randn(3, 5)]],
        compile=True,
    )


def test_number_needs_no_layer_of_its_own_twice() -> None:
    gm = graph_of(lambda x: aten.mul.Scalar(aten.mul.Scalar(x, 3), 3), 1)
    definition = check_graph(gm, [torch.randn(2, 2)])
    assert definition.network.num_layers == 3


@pytest.mark.parametrize("divisor", [0.3, Parameter(torch.tensor([0.3]))], ids=["number", "tensor"])
def test_division_by_a_number_is_a_product(divisor: object) -> None:
    """RTX 1.7.1 ends the process where a convolution is divided by a number and then multiplied."""
    x = torch.randn(2, 4, 6, 8)
    gm, inputs = one_node(aten.div.Tensor, x, divisor)
    (result,) = interpret(check_graph(gm, inputs), inputs)
    assert torch.equal(result, x * torch.tensor(1 / 0.3))
    weight = torch.randn(4, 4, 1, 1)
    conv = graph_of(lambda x, w: aten.relu.default(aten.mul.Scalar(aten.div.Scalar(aten.conv2d.default(x, w), 0.3), 0.7)), 2)
    check_graph(conv, [x, weight], compile=True)


@pytest.mark.parametrize("divisor", [2.0**-18, 2.0**15, 0.0])
def test_division_by_a_number_whose_reciprocal_has_few_digits_is_a_division(divisor: float) -> None:
    check(aten.div.Scalar, torch.tensor([0.0, 1e-3, 2.0, 6e4], dtype=torch.float16), divisor, compile=True)


@pytest.mark.parametrize(
    ("op", "args", "reason"),
    [
        (aten.add.Tensor, (torch.randn(2).double(), torch.randn(2)), "float64"),
        (aten.mul.Tensor, (torch.ones(2, dtype=torch.uint8), torch.ones(2, dtype=torch.uint8)), "uint8"),
        (aten.bitwise_left_shift.Tensor_Scalar, (_I, 40), "more than 30 bits"),
        (aten.add.Tensor, (torch.ones([1] * 9), torch.ones(1)), "at most 8"),
    ],
)
def test_refusals(op: object, args: tuple[object, ...], reason: str) -> None:
    assert reason in refused(op, *args)

"""Products of matrices and vectors against eager torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from tests.backends.tensorrt.cases import Case, case
from tests.backends.tensorrt.harness import check, check_dynamic, needs_rtx, refused
from tiacc.backends.tensorrt.converters.linear import explicit_equation

pytestmark = needs_rtx
aten = torch.ops.aten

torch.manual_seed(0)
_R = torch.randn
_W, _B = Parameter(_R(7, 8)), Parameter(_R(7))

CASES = [
    *(case(aten.linear.default, _R(*shape, 8), _W, _B) for shape in ((), (3,), (2, 3), (2, 3, 4))),
    case(aten.linear.default, _R(3, 8), _W),
    case(aten.linear.default, _R(3, 8), _R(7, 8), _R(7)),
    case(aten.linear.default, _R(3, 8), Parameter(_R(8))),
    case(aten.linear.default, _R(3, 8).half(), Parameter(_R(7, 8).half()), Parameter(_R(7).half())),
    case(aten.linear.default, _R(3, 8).bfloat16(), Parameter(_R(7, 8).bfloat16()), Parameter(_R(7).bfloat16())),
    *(
        case(op, _R(*first), _R(*second))
        for op in (aten.matmul.default, aten.linalg_matmul.default)
        for first, second in (((4,), (4,)), ((4,), (4, 3)), ((3, 4), (4,)), ((2, 3, 4), (4,)), ((4,), (2, 4, 3)), ((3, 4), (4, 5)),
                              ((2, 3, 4), (4, 5)), ((3, 4), (2, 4, 5)), ((2, 1, 3, 4), (5, 4, 2)))
    ),
    case(aten.matmul.default, _R(2, 3, 4), Parameter(_R(4, 5))),
    case(aten.mm.default, _R(3, 4), _R(4, 5)),
    case(aten.bmm.default, _R(2, 3, 4), _R(2, 4, 5)),
    case(aten.mv.default, _R(3, 4), _R(4)),
    case(aten.dot.default, _R(4), _R(4)),
    case(aten.vdot.default, _R(4), _R(4)),
    case(aten.outer.default, _R(4), _R(3)),
    case(aten.ger.default, _R(4), _R(3)),
    case(aten.inner.default, _R(2, 3, 4), _R(5, 4)),
    case(aten.inner.default, _R(()), _R(5, 4)),
    case(aten.linalg_multi_dot.default, [_R(3, 4), _R(4, 5), _R(5, 2)]),
    case(aten.linalg_multi_dot.default, [_R(4), _R(4, 5), _R(5)]),
    case(aten.chain_matmul.default, [_R(3, 4), _R(4, 5)]),
    case(aten.kron.default, _R(2, 3), _R(4, 5)),
    case(aten.kron.default, _R(2, 3), _R(4)),
    case(aten.addmm.default, _R(5), _R(3, 4), _R(4, 5)),
    case(aten.addmm.default, _R(3, 5), _R(3, 4), _R(4, 5), beta=0.5, alpha=2),
    case(aten.addmm.default, _R(3, 5), _R(3, 4), _R(4, 5), beta=0),
    case(aten.baddbmm.default, _R(2, 3, 5), _R(2, 3, 4), _R(2, 4, 5), beta=0.5, alpha=0.125),
    case(aten.baddbmm.default, _R(1, 1, 5), _R(2, 3, 4), _R(2, 4, 5), beta=0, alpha=0.125),
    case(aten.addbmm.default, _R(3, 5), _R(2, 3, 4), _R(2, 4, 5), beta=2),
    case(aten.addmv.default, _R(3), _R(3, 4), _R(4), alpha=2),
    case(aten.addr.default, _R(3, 4), _R(3), _R(4), beta=2, alpha=-1),
    case(aten.einsum.default, "ij,jk->ik", [_R(3, 4), _R(4, 5)]),
    case(aten.einsum.default, "bhid,bhjd->bhij", [_R(2, 3, 4, 5), _R(2, 3, 6, 5)]),
    case(aten.einsum.default, "ij,jk", [_R(3, 4), _R(4, 5)]),
    case(aten.einsum.default, "...ij,...jk->...ik", [_R(2, 3, 4, 5), _R(2, 3, 5, 6)]),
    case(aten.einsum.default, "...i,i", [_R(2, 3, 4), _R(4)]),
    case(aten.einsum.default, "Ab,bC,Cd->dA", [_R(3, 4), _R(4, 5), _R(5, 6)]),
    case(aten.einsum.default, "ijk->kj", [_R(3, 4, 5)]),
    case(aten.einsum.default, "i,j,k->kij", [_R(3), _R(4), _R(5)]),
    case(aten.einsum.default, "bnd,nd->b", [_R(2, 3, 4), Parameter(_R(3, 4))]),
]


@pytest.mark.parametrize("item", CASES, ids=str)
def test_matches_eager(item: Case) -> None:
    check(item.op, *item.args, **item.kwargs)


@pytest.mark.parametrize(
    ("op", "args", "dynamic", "others"),
    [
        (aten.linear.default, (_R(2, 5, 8), _W, _B), [(0, 1)], [_R(1, 9, 8)]),
        (aten.matmul.default, (_R(2, 5, 8), Parameter(_R(8))), [(0, 1)], [_R(1, 9, 8)]),
        (aten.matmul.default, (Parameter(_R(5)), _R(2, 5, 8)), [(0, 2)], [_R(1, 5, 9)]),
        (aten.bmm.default, (_R(2, 5, 8), _R(2, 8, 3)), [(0, 1), (0,)], [_R(1, 9, 8), _R(1, 8, 3)]),
        (aten.inner.default, (_R(2, 3, 6), Parameter(_R(5, 6))), [(0, 1)], [_R(1, 5, 6)]),
        (aten.einsum.default, ("bhid,bhjd->bhij", [_R(2, 3, 4, 5), _R(2, 3, 6, 5)]), [(0, 2), (0,)], [_R(1, 3, 8, 5), _R(1, 3, 6, 5)]),
    ],
)
def test_dynamic_shapes(op: object, args: tuple[object, ...], dynamic: list[tuple[int, ...]], others: list[torch.Tensor]) -> None:
    check_dynamic(op, args, dynamic, others, compile=True)


def test_linear_is_a_product_and_a_sum() -> None:
    assert check(aten.linear.default, _R(2, 3, 8), _W, _B).network.num_layers == 4


@pytest.mark.parametrize(
    ("equation", "ranks", "expected"),
    [
        ("ij,jk->ik", [2, 2], (["ab", "bc"], "ac")),
        ("ij, jk", [2, 2], (["ab", "bc"], "ac")),
        ("...ij,jk", [4, 2], (["abcd", "de"], "abce")),
        ("...i,...i->...", [3, 2], (["abc", "bc"], "ab")),
        ("Aa->aA", [2], (["ab"], "ba")),
    ],
)
def test_explicit_equation(equation: str, ranks: list[int], expected: tuple[list[str], str]) -> None:
    assert explicit_equation(equation, ranks) == expected


@pytest.mark.parametrize(
    ("op", "args", "reason"),
    [
        (aten.matmul.default, (torch.ones(2, 2, dtype=torch.int64),) * 2, "int64"),
        (aten.mm.default, (_R(2, 0), _R(0, 3)), "empty"),
        (aten.einsum.default, ("ii->i", [_R(3, 3)]), "diagonal"),
        (aten.einsum.default, ("ij,jk->ik", [_R(3, 1), _R(4, 5)]), "broadcasts"),
    ],
)
def test_refusals(op: object, args: tuple[object, ...], reason: str) -> None:
    assert reason in refused(op, *args)

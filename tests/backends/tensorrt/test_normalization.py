"""Normalisations against eager torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from tests.backends.tensorrt.cases import Case, case
from tests.backends.tensorrt.harness import check, check_dynamic, check_graph, graph_of, interpret, needs_rtx, refused
from tiacc.backends.tensorrt import builder
from tiacc.backends.tensorrt.flavours import Flavour, load_flavour

pytestmark = needs_rtx
aten = torch.ops.aten

torch.manual_seed(0)
_W, _B, _M = (Parameter(torch.randn(6)) for _ in range(3))
_V = Parameter(torch.rand(6) + 0.1)
_X = {rank: torch.randn(2, 6, *(5, 4, 3)[: rank - 2]) * 3 + 1 for rank in (2, 3, 4, 5)}
_X8 = torch.randn(2, 5, 8) + 1


def _batch(x: torch.Tensor, w: object = _W, b: object = _B, m: object = _M, v: object = _V) -> Case:
    return case(aten.batch_norm.default, x, w, b, m, v, False, 0.1, 1e-3, True)


def _instance(x: torch.Tensor, w: object = _W, b: object = _B) -> Case:
    return case(aten.instance_norm.default, x, w, b, None, None, True, 0.1, 1e-5, True)


CASES = [
    *(_batch(x) for x in _X.values()),
    *(_batch(x, None, None) for x in _X.values()),
    _batch(_X[4], _W, None),
    _batch(_X[4], None, _B),
    _batch(_X[4], torch.randn(6), torch.randn(6), torch.randn(6), torch.rand(6) + 0.1),
    _batch(_X[3], None, None, torch.randn(6), torch.rand(6) + 0.1),
    case(aten.batch_norm.default, _X[4].half(), _W, _B, _M, _V, False, 0.1, 1e-3, True),
    case(aten.batch_norm.default, _X[4].bfloat16(), _W, _B, _M, _V, False, 0.1, 1e-3, True),
    case(aten.layer_norm.default, _X8, [8], Parameter(torch.randn(8)), Parameter(torch.randn(8))),
    case(aten.layer_norm.default, _X8, [8], Parameter(torch.randn(8)), None, 1e-3),
    case(aten.layer_norm.default, _X8, [5, 8], Parameter(torch.randn(5, 8)), Parameter(torch.randn(5, 8))),
    case(aten.layer_norm.default, _X8, [8]),
    case(aten.layer_norm.default, torch.randn(8), [8], Parameter(torch.randn(8))),
    case(aten.layer_norm.default, torch.randn(3, 8), [3, 8]),
    case(aten.layer_norm.default, _X8.half(), [8], Parameter(torch.randn(8).half()), Parameter(torch.randn(8).half())),
    *(case(aten.group_norm.default, x, 3, _W, _B) for x in _X.values()),
    *(case(aten.group_norm.default, _X[4], groups, _W, _B) for groups in (1, 6)),
    case(aten.group_norm.default, _X[4], 2),
    *(_instance(_X[rank]) for rank in (3, 4, 5)),
    _instance(_X[4], None, None),
    case(aten.instance_norm.default, _X[4], _W, _B, _M, _V, False, 0.1, 1e-5, True),
    case(aten.rms_norm.default, _X8, [8], Parameter(torch.randn(8)), 1e-5),
    case(aten.rms_norm.default, _X8.half(), [8], Parameter(torch.randn(8).half())),
    case(aten.rms_norm.default, _X8, [5, 8]),
]


@pytest.mark.parametrize("item", CASES, ids=str)
def test_matches_eager(item: Case) -> None:
    check(item.op, *item.args, **item.kwargs, compile=True)


@pytest.mark.parametrize(
    ("item", "dynamic", "other"),
    [
        (_batch(_X[4]), (0, 2, 3), torch.randn(1, 6, 8, 7)),
        (_batch(_X[3]), (0, 2), torch.randn(1, 6, 8)),
        (case(aten.layer_norm.default, _X8, [8], Parameter(torch.randn(8))), (0, 1), torch.randn(1, 9, 8)),
        (case(aten.layer_norm.default, torch.randn(5, 8), [5, 8]), (), torch.randn(5, 8)),
        (case(aten.group_norm.default, _X[4], 3, _W, _B), (0, 2, 3), torch.randn(1, 6, 8, 7)),
        (case(aten.group_norm.default, _X[3], 1, _W, _B), (0, 2), torch.randn(1, 6, 8)),
        (case(aten.group_norm.default, _X[2], 2, _W, _B), (0,), torch.randn(3, 6)),
        (_instance(_X[4]), (0, 2, 3), torch.randn(1, 6, 8, 7)),
        (case(aten.rms_norm.default, _X8, [8]), (0, 1), torch.randn(1, 9, 8)),
    ],
)
def test_dynamic_shapes(item: Case, dynamic: tuple[int, ...], other: torch.Tensor) -> None:
    check_dynamic(item.op, item.args, [dynamic], [other], compile=True)


def test_group_norm_without_the_layer_for_it() -> None:
    item = case(aten.group_norm.default, _X[4], 3, _W, _B)
    gm, types = item.graph()
    old = Flavour("tensorrt", (10, 9, 0), load_flavour("tensorrt_rtx").module)
    assert not old.has("normalization_v2")
    definition = builder.build_network(old, gm, types)
    assert torch.allclose(interpret(definition, [_X[4]])[0], gm(_X[4])[0], atol=1e-5)


def test_groups_of_channels_whose_number_varies() -> None:
    gm = graph_of(lambda x: aten.group_norm.default(x, 2), 1)
    check_graph(gm, [torch.randn(2, 6, 5, 4)], dynamic=[(1,)], others=[[torch.randn(2, 2, 5, 4)]], compile=True)


def test_batch_norm_is_one_layer() -> None:
    assert check(_batch(_X[4]).op, *_batch(_X[4]).args).network.num_layers == 1


@pytest.mark.parametrize(
    ("op", "args", "reason"),
    [
        (aten.batch_norm.default, (_X[4], _W, _B, _M, _V, True, 0.1, 1e-3, True), "training mode"),
        (aten.layer_norm.default, (torch.randn(0, 8), [8]), "empty"),
        (aten.layer_norm.default, (_X8.double(), [8]), "float64"),
    ],
)
def test_refusals(op: object, args: tuple[object, ...], reason: str) -> None:
    assert reason in refused(op, *args)

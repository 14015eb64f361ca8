"""Views, permutations, broadcasting and repetition against eager torch."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from tests.backends.tensorrt.cases import Case, case
from tests.backends.tensorrt.harness import check, check_graph, graph_of, needs_rtx, refused, rejection
from tiacc.graph import specs
from tiacc.graph.specs import Dim, TensorSpec

pytestmark = needs_rtx
aten = torch.ops.aten

torch.manual_seed(0)
_X, _I, _B, _S = torch.randn(2, 3, 4), torch.randint(-9, 9, (2, 3, 4)), torch.randn(2, 3, 4) > 0, torch.randn(())
_ONE, _NONE = torch.randn(2, 1, 3, 1), torch.randn(2, 0, 3)

CASES = [
    *(
        case(op, _X)
        for op in (
            aten.contiguous.default,
            aten.clone.default,
            aten.alias.default,
            aten.detach.default,
            aten.lift.default,
            aten.lift_fresh.default,
            aten.resolve_conj.default,
            aten.resolve_neg.default,
            aten.real.default,
        )
    ),
    *(case(aten.view.default, value, [4, -1]) for value in (_X, _I, _B, _X.half(), _I.int())),
    case(aten.view.default, _S, [1, 1]),
    case(aten.view.default, Parameter(_X), [24]),
    case(aten._unsafe_view.default, _X, [6, 4]),
    case(aten.reshape.default, _X, [3, 2, 1, 4]),
    case(aten.reshape.default, _ONE[:1, :, :1], []),
    case(aten.reshape.default, _NONE, [3, 0]),
    case(aten.view_as.default, _X, torch.randn(4, 6)),
    case(aten.reshape_as.default, _X, torch.randn(24)),
    *(case(aten.flatten.using_ints, _X, start, end) for start, end in ((0, -1), (1, 2), (-2, -1), (1, 1))),
    case(aten.flatten.using_ints, _S),
    case(aten.ravel.default, _X),
    *(case(aten.unflatten.int, _X, dim, sizes) for dim, sizes in ((2, [2, -1]), (-1, [1, 4]), (0, [2, 1, 1]))),
    *(case(aten.squeeze.default, value) for value in (_ONE, _S, _X)),
    *(case(aten.squeeze.dim, _ONE, dim) for dim in (1, -1, 0)),
    case(aten.squeeze.dims, _ONE, [1, 0, -1]),
    case(aten.squeeze.dims, _ONE, []),
    *(case(aten.unsqueeze.default, value, dim) for value in (_X, _S, _B) for dim in (0, -1)),
    *(case(op.default, value) for op in (aten.atleast_1d, aten.atleast_2d, aten.atleast_3d) for value in (_S, _X[0, 0], _X[0], _ONE)),
    *(case(op.Sequence, [_S, _X[0]]) for op in (aten.atleast_1d, aten.atleast_2d, aten.atleast_3d)),
    case(aten._shape_as_tensor.default, _X),
    case(aten.permute.default, _X, [2, 0, -2]),
    case(aten.permute.default, _S, []),
    *(case(op, _X, 0, -1) for op in (aten.transpose.int, aten.swapaxes.default, aten.swapdims.default)),
    case(aten.t.default, _X[0]),
    case(aten.t.default, _X[0, 0]),
    *(case(op.default, _X[0]) for op in (aten.numpy_T, aten.mT, aten.mH, aten.adjoint, aten.matrix_H)),
    case(aten.movedim.int, _ONE, 0, -2),
    case(aten.movedim.intlist, _ONE, [3, 0], [0, 2]),
    case(aten.moveaxis.int, _ONE, -1, 0),
    case(aten.moveaxis.intlist, _ONE, [1, 2], [-1, 0]),
    *(case(aten.expand.default, value, [5, 2, -1, 3, 4]) for value in (_ONE, _ONE > 0, _ONE.half())),
    case(aten.broadcast_to.default, _X[0], [2, 3, 4]),
    case(aten.expand.default, _S, [2, 3]),
    case(aten.expand_as.default, _ONE, torch.randn(2, 4, 3, 5)),
    case(aten.broadcast_tensors.default, [_X, _X[0, 0], _S]),
    *(case(aten.repeat.default, value, [2, 1, 3]) for value in (_X, _I, _B, Parameter(_X), _X[0, 0])),
    case(aten.repeat.default, _X, [0, 1, 1]),
    case(aten.tile.default, _X, [2]),
    case(aten.tile.default, _X, [3, 1, 1, 2]),
    *(case(aten.repeat_interleave.self_int, _X, 3, dim) for dim in (0, -1, None)),
]


@pytest.mark.parametrize("item", CASES, ids=str)
def test_matches_eager(item: Case) -> None:
    check(item.op, *item.args, **item.kwargs)


def _size(x: Any, dim: int) -> Any:
    return aten.sym_size.int(x, dim)


DYNAMIC: dict[str, Callable[[Any], Any]] = {
    "view with a product": lambda x: aten.view.default(x, [_size(x, 0), operator.mul(_size(x, 2), 3)]),
    "view with -1": lambda x: aten.view.default(x, [-1, 3]),
    "view of two dynamic sizes and -1": lambda x: aten.reshape.default(x, [_size(x, 0), -1, _size(x, 2), 1]),
    "flatten": lambda x: aten.flatten.using_ints(x, 1),
    "flatten all": lambda x: aten.flatten.using_ints(x),
    "flatten a transpose": lambda x: aten.flatten.using_ints(aten.transpose.int(x, 1, 2), 0, 1),
    "unsqueeze and squeeze": lambda x: aten.squeeze.dim(aten.unsqueeze.default(x, 1), 1),
    "permute": lambda x: aten.permute.default(x, [2, 0, 1]),
    "expand by -1": lambda x: aten.expand.default(aten.unsqueeze.default(x, 1), [-1, 4, -1, -1]),
    "expand to sizes": lambda x: aten.expand.default(aten.slice.Tensor(x, 1, 0, 1), [_size(x, 0), 5, _size(x, 2)]),
    "repeat": lambda x: aten.repeat.default(x, [2, 1, 3]),
    "repeat a dynamic number of times": lambda x: aten.repeat.default(x, [1, 1, _size(x, 0)]),
    "tile": lambda x: aten.tile.default(x, [2]),
    "repeat_interleave": lambda x: aten.repeat_interleave.self_int(x, 2, 2),
    "the shape itself": lambda x: aten._shape_as_tensor.default(x),
}


@pytest.mark.parametrize("function", DYNAMIC.values(), ids=DYNAMIC.keys())
def test_dynamic_sizes(function: Callable[[Any], Any]) -> None:
    others = [[torch.randn(1, 3, 4)], [torch.randn(4, 3, 9)]]
    check_graph(graph_of(function, 1), [torch.randn(2, 3, 6)], dynamic=[(0, 2)], others=others, compile=True)


def test_views_of_fixed_sizes_add_one_layer() -> None:
    definition = check_graph(graph_of(lambda x: aten.view.default(x, [6, 4]), 1), [_X])
    assert definition.network.num_layers == 1
    definition = check_graph(graph_of(lambda x: aten.relu.default(aten.contiguous.default(aten.detach.default(x))), 1), [_X])
    assert definition.network.num_layers == 1


def test_a_dynamic_batch_needs_no_arithmetic_to_flatten_the_rest() -> None:
    definition = check_graph(graph_of(lambda x: aten.flatten.using_ints(x, 1), 1), [_X], dynamic=[(0,)])
    assert definition.network.num_layers == 1


def test_a_squeeze_that_depends_on_a_dynamic_size_is_refused() -> None:
    gm = graph_of(lambda x: aten.squeeze.dim(x, 0), 1)
    specs.propagate(gm, [TensorSpec((Dim("n", 1, 2, 4), 3), torch.float32)])


    assert "depends on a dynamic size" in rejection(gm)


def test_nine_dimensions_are_refused() -> None:
    assert "at most 8" in refused(aten.unsqueeze.default, torch.randn(1, 1, 1, 1, 1, 1, 1, 2), 0)

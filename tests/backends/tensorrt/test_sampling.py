"""Sampling at places and affine grids against eager torch."""

from __future__ import annotations

import pytest
import torch

from tests.backends.tensorrt.cases import Case, case
from tests.backends.tensorrt.harness import check, check_graph, graph_of, needs_rtx

pytestmark = needs_rtx
aten = torch.ops.aten

torch.manual_seed(0)
_IMAGE, _PLACES = torch.randn(2, 3, 5, 6), 1.3 * torch.randn(2, 4, 7, 2)
_VOLUME, _SPACE = torch.randn(2, 3, 4, 5, 6), 1.3 * torch.randn(2, 3, 4, 5, 3)

CASES = [
    *(
        case(aten.grid_sampler.default, _IMAGE, _PLACES, mode, border, aligned)
        for mode in (0, 1, 2)
        for border in (0, 1, 2)
        for aligned in (False, True)
    ),
    *(case(aten.grid_sampler.default, _VOLUME, _SPACE, mode, border, False) for mode in (0, 1) for border in (0, 1, 2)),
    case(aten.grid_sampler_2d.default, _IMAGE, _PLACES, 0, 0, False),
    case(aten.grid_sampler_3d.default, _VOLUME, _SPACE, 0, 0, True),
    *(case(aten.affine_grid_generator.default, torch.randn(2, 2, 3), [2, 3, 4, 5], aligned) for aligned in (False, True)),
    *(case(aten.affine_grid_generator.default, torch.randn(2, 3, 4), [2, 3, 4, 5, 1], aligned) for aligned in (False, True)),
]


@pytest.mark.parametrize("item", CASES, ids=str)
def test_matches_eager(item: Case) -> None:
    check(item.op, *item.args, **item.kwargs)


def test_a_dynamic_batch_through_an_affine_grid() -> None:
    def function(image: torch.fx.Proxy, theta: torch.fx.Proxy) -> torch.fx.Proxy:
        grid = aten.affine_grid_generator.default(theta, [aten.sym_size.int(image, 0), 3, 4, 4], False)
        return aten.grid_sampler.default(image, grid, 0, 1, False)

    inputs, others = [torch.randn(2, 3, 5, 6), torch.randn(2, 2, 3)], [[torch.randn(4, 3, 5, 6), torch.randn(4, 2, 3)]]
    check_graph(graph_of(function, 2), inputs, dynamic=[(0,), (0,)], others=others, compile=True)

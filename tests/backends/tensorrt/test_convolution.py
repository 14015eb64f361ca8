"""Convolutions and transposed convolutions against eager torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from tests.backends.tensorrt.cases import Case, case
from tests.backends.tensorrt.harness import check, check_dynamic, compile_for, needs_rtx, refused, spec_of

pytestmark = needs_rtx
aten = torch.ops.aten

torch.manual_seed(0)


def _weight(*shape: int) -> Parameter:
    return Parameter(torch.randn(*shape))


_X1, _X2, _X3 = torch.randn(2, 4, 9), torch.randn(2, 4, 9, 8), torch.randn(1, 4, 5, 6, 7)
_B6 = _weight(6)

CASES = [
    case(aten.conv1d.default, _X1, _weight(6, 4, 3), _B6),
    case(aten.conv1d.default, _X1, _weight(6, 2, 3), None, [2], [1], [2], 2),
    case(aten.conv1d.default, _X1[0], _weight(6, 4, 3), _B6),
    case(aten.conv2d.default, _X2, _weight(6, 4, 3, 3), _B6),
    case(aten.conv2d.default, _X2, _weight(6, 4, 3, 2), None, [2, 1], [1, 0], [1, 2]),
    case(aten.conv2d.default, _X2, _weight(8, 1, 3, 3), None, [1], [1], [1], 4),
    case(aten.conv2d.default, _X2[0], _weight(6, 4, 1, 1), _B6),
    case(aten.conv2d.default, _X2.half(), Parameter(torch.randn(6, 4, 3, 3).half()), Parameter(torch.randn(6).half())),
    case(aten.conv2d.default, _X2.bfloat16(), Parameter(torch.randn(6, 4, 3, 3).bfloat16()), Parameter(torch.randn(6).bfloat16())),
    case(aten.conv2d.default, _X2, torch.randn(6, 4, 3, 3), torch.randn(6)),
    case(aten.conv2d.default, _X2, _weight(6, 4, 3, 3), torch.randn(6)),
    case(aten.conv2d.default, _X2, torch.randn(6, 4, 3, 3), _B6),
    case(aten.conv3d.default, _X3, _weight(6, 4, 3, 2, 1), _B6, [1, 2, 1], [1, 0, 0]),
    *(case(aten.conv2d.padding, _X2, _weight(6, 4, 4, 3), _B6, [1], padding, [2, 1]) for padding in ("same", "valid")),
    *(case(aten.conv1d.padding, _X1, _weight(6, 4, 4), _B6, [1], padding) for padding in ("same", "valid")),
    case(aten.conv3d.padding, _X3, _weight(6, 4, 2, 3, 4), _B6, [1], "same"),
    case(aten.convolution.default, _X2, _weight(6, 4, 3, 3), _B6, [1], [1], [1], False, [0], 1),
    case(aten.convolution.default, _X2, _weight(4, 3, 3, 3), _B6, [2], [1], [1], True, [1], 2),
    case(aten._convolution.default, _X2, _weight(6, 4, 3, 3), _B6, [1], [1], [1], False, [0], 1, False, False, True, True),
    case(aten._convolution.deprecated, _X2, _weight(4, 6, 3, 3), _B6, [2], [1], [1], True, [1], 1, False, False, True),
    case(aten.conv_transpose1d.default, _X1, _weight(4, 3, 4), _B6, [2], [1], [1], 2),
    case(aten.conv_transpose2d.input, _X2, _weight(4, 6, 3, 3), _B6),
    case(aten.conv_transpose2d.input, _X2, _weight(4, 6, 4, 4), None, [2], [1]),
    case(aten.conv_transpose2d.input, _X2, _weight(4, 3, 3, 3), _B6, [2], [1], [1], 2),
    case(aten.conv_transpose2d.input, _X2, _weight(4, 6, 3, 3), _B6, [2, 3], [0, 1], [1, 2]),  # grows beyond its padding
    case(aten.conv_transpose2d.input, _X2, _weight(4, 3, 3, 2), _B6, [2, 1], [1, 1], [1, 0], 2, [3, 2]),  # strided and dilated
    case(aten.conv_transpose2d.input, _X2, torch.randn(4, 3, 3, 2), _B6, [2, 1], [1, 1], [1, 0], 2, [3, 2]),
    case(aten.conv_transpose2d.input, _X2, _weight(4, 6, 3, 3), _B6, [1], [1], [0], 1, [2]),
    case(aten.conv_transpose3d.input, _X3, _weight(4, 6, 2, 3, 2), _B6, [2, 1, 2], [0, 1, 0], [1, 0, 0]),
    case(aten.conv_transpose2d.input, _X2[0], _weight(4, 6, 3, 3), _B6),
]


@pytest.mark.parametrize("item", CASES, ids=str)
def test_matches_eager_and_builds(item: Case) -> None:
    definition = check(item.op, *item.args, **item.kwargs)
    inputs = [arg for arg in item.args if isinstance(arg, torch.Tensor) and not isinstance(arg, Parameter)]
    assert compile_for(definition, [spec_of(tensor) for tensor in inputs]).data


def test_layers_are_as_few_as_can_be() -> None:
    assert check(aten.conv2d.default, _X2, _weight(6, 4, 3, 3), _B6).network.num_layers == 1
    assert check(aten.conv_transpose2d.input, _X2, _weight(4, 6, 4, 4), _B6, [2], [1]).network.num_layers == 1


@pytest.mark.parametrize(
    ("op", "args", "dynamic", "other"),
    [
        (aten.conv1d.default, (_X1, _weight(6, 4, 3), _B6, [2], [1]), (0, 2), torch.randn(1, 4, 12)),
        (aten.conv1d.default, (_X1[0], _weight(6, 4, 3), _B6), (1,), torch.randn(4, 12)),
        (aten.conv2d.padding, (_X2, _weight(6, 4, 2, 3), _B6, [1], "same"), (0, 2, 3), torch.randn(1, 4, 6, 12)),
        (aten.conv_transpose2d.input, (_X2, _weight(4, 6, 3, 3), _B6, [2], [0], [1]), (0, 2, 3), torch.randn(1, 4, 6, 12)),
        (aten.conv_transpose1d.default, (_X1, _weight(4, 6, 3), _B6, [2], [0], [0], 1, [2]), (0, 2), torch.randn(1, 4, 6)),
    ],
)
def test_dynamic_shapes(op: object, args: tuple[object, ...], dynamic: tuple[int, ...], other: torch.Tensor) -> None:
    check_dynamic(op, args, [dynamic], [other], compile=True)


@pytest.mark.parametrize(
    ("op", "args", "reason"),
    [
        (aten.conv2d.default, (torch.randint(0, 5, (1, 2, 4, 4)), torch.randint(0, 5, (3, 2, 3, 3))), "int64"),
        (aten.conv2d.default, (torch.randn(0, 4, 5, 5), _weight(6, 4, 3, 3)), "empty"),
        (aten.conv2d.default, (_X2.double(), Parameter(torch.randn(6, 4, 3, 3).double())), "float64"),
    ],
)
def test_refusals(op: object, args: tuple[object, ...], reason: str) -> None:
    assert reason in refused(op, *args)


def test_weights_in_bfloat16_are_kept_for_the_interpreter() -> None:
    definition = check(aten.conv2d.default, *CASES[8].args)
    kernel, bias = definition.constants["conv2d_default.kernel"], definition.constants["conv2d_default.bias"]
    assert kernel.dtype == bias.dtype == torch.bfloat16
    assert torch.equal(kernel, CASES[8].args[1])

"""What is computed with numbers, strings and containers while importing is what TorchScript computes with them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.graph.test_importer import abstract, assert_same, outcome, write_back
from tiacc.graph import torch_compat
from tiacc.graph.importer import import_module
from tiacc.graph.specs import Dim, TensorSpec


class SameShape(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if x.shape != y.shape:
            return x.relu() - y.sum()
        return x.relu() + y


class SameRows(nn.Module):
    """Some members of the lists differ, whatever the others are."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if [x.size(0), x.size(1)] == [y.size(0), 9]:
            return x.relu()
        return y.relu()


class FourRows(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if 4 in x.shape[:1]:
            return x.relu() + 1
        return x.relu()


class FourByThree(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if [x.size(0), 3] == [4, 3]:
            return x.relu() + 1
        return x.relu()


class AmongItsSizes(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.relu() + int(x.size(0) in [x.size(0), 7]) + 2 * int(9 in [x.size(1), 8])


class GivenASize(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        size: list[int] | None = [x.size(0), 3] if x.size(1) == 3 else None
        if size is not None:
            return x.reshape(size).relu()
        return x.relu() + 1


class NamedByASize(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        table = {4: x.relu()}
        table[x.size(0)] = x.exp()
        return table[4] + len(table)


class Described(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, str, str]:
        return x.relu(), f"of shape {x.shape}", str(x.shape)


SIZES = (SameShape, SameRows, FourRows, FourByThree, AmongItsSizes, GivenASize, NamedByASize, Described)


@pytest.mark.parametrize("names", [("n", "n"), ("n", "m")])
@pytest.mark.parametrize("kind", SIZES)
def test_lists_of_sizes_that_vary(kind: type[nn.Module], names: tuple[str, str]) -> None:
    scripted = torch.jit.script(kind())
    result = import_module(copy.deepcopy(scripted), [TensorSpec((Dim(name, 1, 3, 8), 3), torch.float32) for name in names])
    assert result.regions and not result.fixed
    loaded = write_back(result)
    for rows in ((4, 4), (2, 2), *([(4, 1), (1, 4)] if names == ("n", "m") else [])):
        args = tuple(torch.randn(count, 3) for count in rows)
        assert_same(outcome(scripted, args), outcome(loaded, args))


def test_equal_shapes_are_known_to_be_equal() -> None:
    """No condition is left of a check of shapes that are equal at all sizes, or at none."""
    for names in (("n", "n"), ("n", "m")):
        specs = [TensorSpec((Dim(name, 1, 3, 8), 3), torch.float32) for name in names]
        left = {item.op for item in import_module(torch.jit.script(SameShape()), specs).left}
        assert ("prim::If" in left) == (names == ("n", "m"))
        assert not import_module(torch.jit.script(SameRows()), specs).left
        assert not import_module(torch.jit.script(GivenASize()), specs).left


class Floats(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
        one = float(x.size(0))
        return x.relu(), [one // 0.1, one * 0.1 % 0.3, -one % 3.0, (one + 2.5) // -0.7, one * 1e-20 % -3.0, -one // 2.0]


class Integers(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        one = x.size(0)
        return x.relu(), [-7 * one // 2, -7 * one % 3, 7 * one % -3, int(-2.7 * one), 4611686018427387904 * one // 3]


class Overflows(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.size(0) + 3
        for _ in range(70):
            n = n * 3 + 1
        return x.relu() + n % 1000


class Words(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
        n, part = x.size(0), 0.5 * x.size(0)
        texts = [f"{n} of {[n, 2]}", f"a{True}", f"{2 * part}", f"{x.device}", f"{True} {n}", f"{[str(n)]}"]
        texts.append("{{}} {} {:d}".format(n, n))  # noqa: UP032 - {} is a place for a text to TorchScript, and nothing else is
        return x.relu(), texts + [str(2 * part), str(part), str([part]), str(None), str(n), str((n, "a")), str(1e20 * n)]  # noqa: RUF005


class Popped(nn.Module):
    """What is taken out of a container is None."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        members: list[torch.Tensor | None] = [x, None]
        table: dict[str, torch.Tensor | None] = {"a": None, "b": x}
        last, first, given = members.pop(), table.pop("a"), table.pop("b", None)
        found = [x.relu() if item is None else item.exp() for item in [given]]
        found.append(x.relu() if last is None else last.exp())
        found.append(x.relu() if first is None else first.exp())
        return found


class NoDimensions(nn.Module):
    """A branch that is not taken asks for the size of a tensor without dimensions."""

    def forward(self, x: torch.Tensor, is_batch: bool = False) -> torch.Tensor:
        total = x.sum()
        if is_batch:
            return x.relu() * total.size(0) * len(total)
        return x.relu()


class Narrow(nn.Module):
    """Dtypes that TorchScript has numbers for beyond that of bfloat16."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        short = x.abs().to(torch.uint16)
        return x.relu().to(torch.float8_e4m3fn).float(), short, torch.zeros([2], dtype=short.dtype)


KINDS = (Floats, Integers, Overflows, Words, Popped, NoDimensions, Narrow)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_known_folds_to_what_torchscript_computes(kind: type[nn.Module]) -> None:
    scripted = torch.jit.script(kind())
    for rows in (1, 4):
        x = torch.randn(rows, 3)
        loaded = write_back(import_module(copy.deepcopy(scripted), [abstract(x)]))
        assert_same(outcome(scripted, (x,)), outcome(loaded, (x,)))


@torch.jit.script
def _number(x):  # type: ignore[no-untyped-def]
    return x.dtype


def test_the_numbers_of_dtypes_are_those_of_torchscript() -> None:
    seen = 0
    for dtype in {value for value in vars(torch).values() if isinstance(value, torch.dtype)}:
        try:
            number = _number(torch.empty(2, dtype=dtype))
        except RuntimeError:  # a dtype that no tensor can have
            continue
        if number <= torch_compat.dtype_number(torch.float8_e8m0fnu):
            assert torch_compat.dtype_number(dtype) == number, dtype
            seen += 1
    assert seen > 20


class PowerOfNegative(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * float(x.size(0) - 12) ** 0.5


class LargestOfNaN(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * max(float("nan") * x.size(0), 1.0), x * max(1.0, float("nan") * x.size(0))


class SmallestOfNaN(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * min(float("nan") * x.size(0), 1.0), x * min(1.0, float("nan") * x.size(0))


class LargestOfLists(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * max([x.size(0), 2, 5]) + min(x.size(1), 7)


class RemainderOfFractions(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu() * (0.3 * x.size(0) % 0.1) + (0.3 * x.size(0) // 0.1)


@pytest.mark.parametrize("rows", [4, Dim("rows", 2, 4, 8)], ids=["fixed", "varying"])
@pytest.mark.parametrize("kind", [PowerOfNegative, LargestOfNaN, SmallestOfNaN, LargestOfLists, RemainderOfFractions])
def test_arithmetic_of_numbers(kind: type[nn.Module], rows: int | Dim) -> None:
    scripted = torch.jit.script(kind().eval())
    loaded = write_back(import_module(copy.deepcopy(scripted), [TensorSpec((rows, 3), torch.float32)]))
    for size in (4,) if isinstance(rows, int) else (2, 4, 8):
        args = (torch.randn(size, 3),)
        assert_same(outcome(scripted, args), outcome(loaded, args))

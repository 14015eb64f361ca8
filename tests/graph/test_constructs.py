"""Constructs of TorchScript, one a program: what a program returns or raises is the original's after import, export, save and load."""

import copy
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
from torch import nn

from tests.graph.test_importer import abstract, assert_same, outcome, write_back
from tiacc.graph.importer import import_module
from tiacc.graph.specs import Dim, TensorSpec


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


@torch.jit.script
class Counter:
    def __init__(self, start: int) -> None:
        self.count = start
        self.total = torch.zeros(2)

    def add(self, x: torch.Tensor) -> None:
        self.count += 1
        self.total = self.total + x


def _slow_sum(x: torch.Tensor) -> torch.Tensor:
    return x.exp().sum(0)


class ForkWait(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        task = torch.jit.fork(_slow_sum, x)
        y = x.relu() * 2
        return y + torch.jit.wait(task)


class NamedTuples(nn.Module):
    def forward(self, x: torch.Tensor) -> Pair:
        pair = Pair(x.relu(), x.sigmoid() * 2)
        return Pair(pair.second + 1, pair.first)


class ClassValue(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        counter = Counter(3)
        for row in range(2):
            counter.add(x[row].relu())
        return counter.total * counter.count


class Quantized(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = torch.quantize_per_tensor(x.relu() + 0.5, 0.1, 3, torch.quint8)
        return torch.relu(q).dequantize() * 2


class Complex(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        turned = torch.view_as_complex(x.reshape(-1, 2) * 2) * 1j
        return torch.fft.fft(turned).abs().sqrt() + 1


class Sparse(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sparse.mm((x.relu() * 2).to_sparse(), x.t()).tanh()


class Boxes(nn.Module):
    def forward(self, x: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cut = torchvision.ops.roi_align(x.relu() + 1, [boxes], [2, 2])
        kept = torchvision.ops.nms(boxes, boxes.sum(1).sigmoid(), 0.5)
        return cut * 2, kept


class Deformed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        return torchvision.ops.deform_conv2d(x.relu(), offset.tanh(), self.weight, padding=(1, 1)).relu() + 1


class NoGrad(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        with torch.no_grad():
            y = y.relu() + 1
        return y.exp()


class EarlyReturn(nn.Module):
    """`prim::Uninitialized` stands where the branch that has returned leaves no value."""

    def forward(self, x: torch.Tensor, limit: float) -> torch.Tensor:
        if bool(x.sum() > limit):
            return x.relu() - 1
        y = x.exp()
        if bool(y.max() > 100):
            raise ValueError("too large")
        return y * 2


class Isinstance(nn.Module):
    def forward(self, x: torch.Tensor, other: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
        y = x.relu() * 2
        if isinstance(other, torch.Tensor):
            return y + other
        return y * torch.stack(other).sum(0).exp()


@torch.jit.interface
class Layer(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pass


class Doubling(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class ThroughAnInterface(nn.Module):
    layer: Layer

    def __init__(self) -> None:
        super().__init__()
        self.layer = Doubling()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer.forward(x.relu()) + 1


class Aliases(nn.Module):
    """Its results share memory with each other and with its input."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        y = x.relu() * 2
        return y, y[0], x, x.t()


class WritesThroughAList(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        parts = [x * 2, x + 1]
        parts[0].add_(1)
        parts[1][0].mul_(3)
        parts.append(parts[0] - parts[1])
        return parts[2].exp(), parts


class SharedBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.other.running_mean = self.one.running_mean
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return self.one(x) + self.other(x.relu()) * self.count


class Words(nn.Module):
    def forward(self, x: torch.Tensor, kind: str, scale: float | None = None) -> tuple[torch.Tensor, str, dict[str, int]]:
        y = x.relu() if kind == "relu" else x.exp()
        if scale is not None:
            y = y * scale
        return y + 1, kind.upper() + str(y.size(0)), {kind: y.size(1)}


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(1))
BOXES = torch.tensor([[0.0, 0, 3, 3], [0, 0, 3, 4], [2, 2, 5, 5]])

CONSTRUCTS: dict[str, tuple[type[nn.Module], list[tuple[Any, ...]]]] = {
    "fork and wait": (ForkWait, [(X,)]),
    "named tuples": (NamedTuples, [(X,)]),
    "a value of a class": (ClassValue, [(X[:, :2],)]),
    "quantised tensors": (Quantized, [(X,)]),
    "complex tensors": (Complex, [(X,)]),
    "sparse tensors": (Sparse, [(X,)]),
    "nms and roi_align": (Boxes, [(IMAGE, BOXES)]),
    "deform_conv2d": (Deformed, [(IMAGE, torch.randn(1, 18, 6, 6))]),
    "with no_grad": (NoGrad, [(X,)]),
    "early return and raise": (EarlyReturn, [(X, -100.0), (X, 1e9), (X + 50, 1e9)]),
    "isinstance": (Isinstance, [(X, X), (X, [X, X + 1])]),
    "a method through an interface": (ThroughAnInterface, [(X,)]),
    "aliases and inputs returned": (Aliases, [(X,)]),
    "writes through a list": (WritesThroughAList, [(X,)]),
    "a buffer of two modules and a count": (SharedBuffer, [(X[:, :3],), (X[:, :3] + 1,)]),
    "words": (Words, [(X, "relu", 2.0), (X, "exp"), (X, "relu")]),
}


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_a_construct_does_the_same(name: str) -> None:
    kind, calls = CONSTRUCTS[name]
    torch.manual_seed(0)
    scripted = torch.jit.script(kind().eval())
    result = import_module(copy.deepcopy(scripted), list(map(abstract, calls[0])))
    assert result.regions, [(left.op, left.reason) for left in result.left]
    assert all(left.reason for left in result.left)
    loaded = write_back(result)
    for args in calls:
        assert_same(_plain(outcome(scripted, args)), _plain(outcome(loaded, args)))


def _plain(item: Any) -> Any:
    """Return named tuples as tuples: those of a loaded file are of a class of their own."""
    if isinstance(item, tuple):
        return tuple(map(_plain, item))
    return list(map(_plain, item)) if isinstance(item, list) else item


def test_what_shares_memory_still_does() -> None:
    loaded = write_back(import_module(torch.jit.script(Aliases()), [abstract(X)]))
    x = X.clone()
    whole, row, same, turned = loaded(x)
    assert row.data_ptr() == whole.data_ptr() and same.data_ptr() == turned.data_ptr() == x.data_ptr()


class Sums(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return (torch.cat([x.relu(), y]) + z).exp()


class Multiples(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0] // 4, x.shape[1] * 4).relu() * x.shape[0]


class Shared(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x + y).relu().mean(0)


class DataDependent(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * 2)[x[:, 0] > 0].exp()


class ManyFirst(nn.Module):
    """How many parts there are depends on the sizes, and nothing has asked for these before."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = x.split(1)
        return (parts[0] + parts[-1]).exp() * x.relu()


def _free(name: str, low: int, high: int) -> TensorSpec:
    return TensorSpec((Dim(name, low, (low + high) // 2, high), 4), torch.float32)


SIZES: dict[str, tuple[type[nn.Module], list[TensorSpec], list[tuple[int, ...]]]] = {
    "one is the sum of two": (Sums, [_free("n", 1, 8), _free("m", 1, 8), _free("k", 2, 16)], [(1, 1, 2), (3, 8, 11), (8, 8, 16)]),
    "a multiple of four": (Multiples, [_free("n", 8, 64)], [(8,), (12,), (64,)]),
    "one dimension of two inputs": (Shared, [_free("n", 1, 8), _free("n", 1, 8)], [(1, 1), (5, 5), (8, 8)]),
    "equal dimensions of two names": (Shared, [_free("n", 1, 8), _free("m", 1, 8)], [(1, 1), (5, 5), (8, 8), (1, 8)]),
    "no rows at all": (Shared, [_free("n", 0, 8), _free("n", 0, 8)], [(0, 0), (1, 1), (8, 8)]),
    "as many parts as rows": (ManyFirst, [_free("n", 2, 8)], [(2,), (5,), (8,)]),
    "as many rows as the data say": (DataDependent, [_free("n", 1, 8)], [(1,), (5,), (8,)]),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_that_hang_together(name: str) -> None:
    kind, inputs, sizes = SIZES[name]
    scripted = torch.jit.script(kind())
    result = import_module(copy.deepcopy(scripted), inputs)
    assert result.regions and not result.fixed
    loaded = write_back(result)
    for rows in sizes:
        args = tuple(torch.randn(count, 4) for count in rows)
        assert_same(outcome(scripted, args), outcome(loaded, args))

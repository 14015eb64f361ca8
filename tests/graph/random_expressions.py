"""Random TorchScript expressions over the variables in scope."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

DTYPES = {"float": torch.float32, "double": torch.float64, "long": torch.int64, "bool": torch.bool}

Size: TypeAlias = int | str
"""A size: a number, ``"B"`` for the batch, or another string for one that is not known."""


@dataclass(frozen=True)
class Kind:
    """The shape and dtype of a tensor variable, as far as they can be followed."""

    shape: tuple[Size, ...]
    dtype: str

    @property
    def is_vague(self) -> bool:
        """Whether a size is not known."""
        return any(isinstance(size, str) and size != "B" for size in self.shape)

    def fits(self, other: Kind) -> bool:
        """Return whether a tensor of this kind can be broadcast to the shape of another."""
        if len(self.shape) > len(other.shape):
            return False
        pairs = zip(self.shape[::-1], other.shape[::-1])
        return all(mine in (1, theirs) for mine, theirs in pairs)


@dataclass
class Scope:
    """The variables of a block."""

    tensors: dict[str, Kind] = field(default_factory=dict)
    lists: dict[str, Kind] = field(default_factory=dict)
    ints: set[str] = field(default_factory=set)
    floats: set[str] = field(default_factory=set)
    bools: set[str] = field(default_factory=set)


def size_text(size: Size, batch_of: str) -> str:
    """Return a size as TorchScript text."""
    return f"{batch_of}.size(0)" if size == "B" else str(size) if isinstance(size, int) else "2"


class Expressions:
    """Makes expressions of the variables in `scopes`, innermost last; `x_name` is a variable whose first size is B."""

    def __init__(self, source: random.Random) -> None:
        self.random = source
        self.scopes: list[Scope] = []
        self.x_name = "x"
        self.has_data_conditions = True
        self._names = 0

    def fresh(self) -> str:
        """Return a new variable name."""
        self._names += 1
        return f"v{self._names}"

    def tensors(self) -> list[tuple[str, Kind]]:
        """Return the tensor variables."""
        return [item for scope in self.scopes for item in scope.tensors.items()]

    def pick(self, wanted: Callable[[Kind], bool] = lambda kind: True) -> tuple[str, Kind]:
        """Return a tensor variable, recent ones more often; an expression that makes a new tensor where none is wanted."""
        found = [item for item in self.tensors() if wanted(item[1])]
        if not found:
            kind = Kind((3,), "float")
            return ("self.bias.clone()", kind) if wanted(kind) else (self._made(), Kind(("B", 3), "float"))
        return self.random.choice(found[-5:] if self.random.random() < 0.6 else found)

    def _made(self) -> str:
        return f"torch.ones([{self.x_name}.size(0), 3])"

    def promoted(self, one: Kind, other: Kind) -> str:
        """Return the dtype of the sum of two tensors."""
        examples = [torch.empty([1] * len(kind.shape), dtype=DTYPES[kind.dtype]) for kind in (one, other)]
        result = torch.result_type(*examples)
        return next(name for name, dtype in DTYPES.items() if dtype == result)

    # -- numbers ---------------------------------------------------------------------------------------------------------------

    def integer(self) -> str:
        """Return an expression of type int."""
        names = [name for scope in self.scopes for name in scope.ints]
        lists = [name for scope in self.scopes for name in scope.lists]
        tensor, kind = self.pick()
        options = [str(self.random.randint(0, 4)), f"{self.x_name}.size(0)", f"{tensor}.dim()", f"{tensor}.numel()", "self.count"]
        options += names * 2 + [f"len({name})" for name in lists]
        if kind.shape:
            options += [f"{tensor}.size(-1)", f"{tensor}.shape[0]", f"len({tensor})"]
        if kind.dtype in {"float", "double"} and self.has_data_conditions:
            options.append(f"int(torch.nan_to_num({tensor}.sum()).clamp(-9, 9))")
        first, second = self.random.choice(options), self.random.choice(options)
        forms = [first, first, f"({first} + {second})", f"({first} - {second})", f"({first} * 2)", f"({first} // 2)", f"({first} % 3)"]
        forms += [f"max({first}, {second})", f"min({first}, 3)", f"int({first} / 2)", f"int(round({first} * 0.3))"]
        forms += [f"int(2 ** min(abs({first}), 3))"]
        return self.random.choice(forms)

    def float_number(self) -> str:
        """Return an expression of type float."""
        names = [name for scope in self.scopes for name in scope.floats]
        tensor, kind = self.pick()
        options = [str(self.random.choice([0.5, 2.0, -1.5])), f"float({self.integer()})", *names]
        options += [f"{self.integer()} / 4", f"float(2 ** (abs({self.integer()}) % 3))"]
        if kind.dtype in {"float", "double"} and self.has_data_conditions:
            options.append(f"float(torch.nan_to_num({tensor}.mean()))")
        return self.random.choice(options)

    def condition(self) -> str:
        """Return an expression of type bool."""
        names = [name for scope in self.scopes for name in scope.bools]
        lists = [name for scope in self.scopes for name in scope.lists]
        tensor, kind = self.pick(lambda kind: kind.dtype != "bool")
        options = [f"{self.integer()} > 2", f"{self.integer()} % 2 == 0", f"{tensor}.dim() == 2", f"{self.x_name}.size(0) > 2", "self.flag"]
        options += [f"{tensor}.dtype == torch.float32", *names, *names]
        options += [f"bool(({tensor} > 0.5).any())", f"bool({tensor}.sum() > 0)"] if self.has_data_conditions else []
        options += [f"len({name}) > 2" for name in lists]
        options += [f"{tensor}.size(0) == {self.random.randint(2, 4)}"] if kind.shape else []
        first, second = self.random.choice(options), self.random.choice(options)
        return self.random.choice([first, first, first, f"not ({first})", f"({first} and {second})", f"({first} or {second})"])

    # -- tensors ---------------------------------------------------------------------------------------------------------------

    def tensor(self) -> str:
        """Return an expression of type Tensor."""
        return self.expression()[0] if self.random.random() < 0.5 else self.pick()[0]

    def expression(self) -> tuple[str, Kind]:
        """Return an expression that computes a tensor, and its kind."""
        makers = [
            (4, self._unary), (5, self._binary), (2, self._reduction), (3, self.view), (1, self._joined), (1, self._created),
            (1, self._matmul), (1, self._compared), (1, self._cast), (1, self._scalar), (0.7, self._sorted), (0.7, self._indexed),
            (0.5, self._from_number),
        ]  # fmt: skip
        while True:
            ((_, maker),) = self.random.choices(makers, [weight for weight, _ in makers])
            made = maker()
            if made is not None:
                return made

    def _unary(self) -> tuple[str, Kind]:
        name, kind = self.pick()
        if kind.dtype == "bool":
            return self.random.choice([(f"torch.logical_not({name})", kind), (f"{name}.to(torch.float32)", Kind(kind.shape, "float"))])
        real = Kind(kind.shape, "float" if kind.dtype == "long" else kind.dtype)
        same = ["torch.relu({})", "{}.abs()", "{}.clamp(-2, 2)", "torch.neg({})", "({} + 1)", "({} - 0)", "({} * 1)", "{}.clone()"]
        same += ["{}.contiguous()", "{}.detach()", "torch.dropout({}, 0.5, False)", "({} * 2)", "{}.square().clamp(-5, 5)"]
        same.append("torch.zeros_like({})")
        floats = ["torch.tanh({})", "torch.sigmoid({})", "({} * 0.5)", "({} / 2)", "torch.sin({})"]
        template = self.random.choice(same + floats)
        return template.format(name), real if template in floats else kind

    def _binary(self) -> tuple[str, Kind] | None:
        name, kind = self.pick(lambda kind: kind.dtype != "bool")
        found = [item for item in self.tensors() if item[1].fits(kind) and item[1].dtype != "bool"]
        if not found:
            return None
        other, other_kind = self.random.choice(found)
        result = Kind(kind.shape, self.promoted(kind, other_kind))
        if self.random.random() < 0.5:
            name, other = other, name
        forms = [f"({name} + {other})", f"({name} - {other})", f"torch.maximum({name}, {other})"]
        forms.append(f"torch.where({name} > 0, {name}, {other})")
        forms += [f"torch.add({name}, {other}, alpha=2)", f"({name} * {other}).clamp(-9, 9)"]
        if result.dtype in {"float", "double"} and self.random.random() < 0.3:
            return f"({name} / ({other} + 20))", result
        return self.random.choice(forms), result

    def _reduction(self) -> tuple[str, Kind] | None:
        name, kind = self.pick()
        if kind.dtype == "bool":
            return f"{name}.any()", Kind((), "bool")
        real = kind.dtype != "long"
        if not kind.shape or self.random.random() < 0.3:
            return f"{name}.{'mean' if real else 'sum'}()", Kind((), kind.dtype)
        dim = self.random.randrange(len(kind.shape))
        kept = Kind((*kind.shape[:dim], 1, *kind.shape[dim + 1 :]), kind.dtype)
        gone = Kind(kind.shape[:dim] + kind.shape[dim + 1 :], kind.dtype)
        forms = [(f"{name}.sum({dim})", gone), (f"{name}.sum({dim}, keepdim=True)", kept), (f"{name}.cumsum({dim})", kind)]
        if not kind.is_vague:
            forms += [(f"{name}.amax({dim}, keepdim=True)", kept), (f"{name}.argmax({dim})", Kind(gone.shape, "long"))]
        if real:
            forms += [(f"{name}.mean([{dim}])", gone), (f"torch.softmax({name}, {dim})", kind)]
        return self.random.choice(forms)

    def view(self) -> tuple[str, Kind]:
        """Return an expression that is, or may be, a view of a variable."""
        name, kind = self.pick(lambda kind: bool(kind.shape))
        shape, dtype = kind.shape, kind.dtype
        dim = self.random.randrange(len(shape))
        rest = (*shape[:dim], *shape[dim + 1 :])
        forms: list[tuple[str, tuple[Size, ...]]] = [
            (f"{name}.unsqueeze({dim})", (*shape[:dim], 1, *shape[dim:])),
            (f"{name}[..., None]", (*shape, 1)),
            (f"{name}.transpose(0, -1)", (shape[-1], *shape[1:-1], shape[0]) if len(shape) > 1 else shape),
            (f"{name}.flip(0)", shape),
            (f"{name}.select({dim}, 0)", rest),
            (f"{name}.reshape(-1)", shape if len(shape) == 1 else (f"?{self.fresh()}",)),
            (f"{name}.flatten()", shape if len(shape) == 1 else (f"?{self.fresh()}",)),
            (f"{name}[1:]", (f"?{self.fresh()}" if isinstance(shape[0], str) else max(shape[0] - 1, 0), *shape[1:])),
            (f"{name}[::2]", (f"?{self.fresh()}" if isinstance(shape[0], str) else (shape[0] + 1) // 2, *shape[1:])),
            (f"{name}[:{self.integer()}]", (f"?{self.fresh()}", *shape[1:])),
            (f"{name}[-1]", shape[1:]),
        ]
        last = shape[-1]
        if isinstance(last, int) and last > 1:
            forms += [(f"{name}[..., :{last - 1}]", (*shape[:-1], last - 1))]
            forms += [(f"{name}.narrow(-1, 1, {last - 1})", (*shape[:-1], last - 1))]
            forms += [(f"{name}.split(1, dim=-1)[{self.random.randrange(last)}]", (*shape[:-1], 1))]
            forms += [(f"{name}.unbind(-1)[{self.random.randrange(last)}]", shape[:-1])]
            forms += [(f"{name}.chunk(2, dim=-1)[0]", (*shape[:-1], (last + 1) // 2))]
        if 1 in shape:
            place = shape.index(1)
            forms.append((f"{name}.squeeze({place})", (*shape[:place], *shape[place + 1 :])))
        if len(shape) == 2 and not kind.is_vague:
            sizes = [size_text(size, self.x_name) for size in shape]
            forms += [(f"{name}.t()", shape[::-1]), (f"{name}.permute(1, 0)", shape[::-1])]
            forms += [(f"{name}.expand(2, {', '.join(sizes)})", (2, *shape))]
            forms += [(f"{name}.reshape({sizes[0]}, 1, -1)", (shape[0], 1, shape[1]))]
            forms += [(f"{name}.diagonal()", (f"?{self.fresh()}",))]
        text, new = self.random.choice(forms)
        return text, Kind(new, dtype)

    def _joined(self) -> tuple[str, Kind] | None:
        name, kind = self.pick(lambda kind: bool(kind.shape))
        found = [other for other, other_kind in self.tensors() if other_kind == kind]
        if not found:
            return None
        other = self.random.choice(found)
        if self.random.random() < 0.5:
            return f"torch.stack([{name}, {other}], -1)", Kind((*kind.shape, 2), kind.dtype)
        size = kind.shape[-1]
        doubled: Size = size * 2 if isinstance(size, int) else f"?{self.fresh()}"
        return f"torch.cat([{name}, {other}], -1)", Kind((*kind.shape[:-1], doubled), kind.dtype)

    def _created(self) -> tuple[str, Kind]:
        batch = f"{self.x_name}.size(0)"
        return self.random.choice(
            [
                (f"torch.zeros({batch}, 3)", Kind(("B", 3), "float")),
                (f"torch.full([{batch}, 1], {self.float_number()})", Kind(("B", 1), "float")),
                (f"torch.arange({batch})", Kind(("B",), "long")),
                ("torch.ones(3, dtype=torch.float64)", Kind((3,), "double")),
                ("torch.arange(3)", Kind((3,), "long")),
                (f"torch.tensor([1.0, 2.0, {self.float_number()}])", Kind((3,), "float")),
                (f"torch.eye(3)[:{self.random.randint(1, 3)}]", Kind((f"?{self.fresh()}", 3), "float")),
                (f"{self.x_name}.new_zeros([{batch}, 2])", Kind(("B", 2), "float")),
            ]
        )

    def _matmul(self) -> tuple[str, Kind] | None:
        name, kind = self.pick(lambda kind: kind.dtype == "float" and bool(kind.shape) and kind.shape[-1] == 3)
        if name.startswith("torch") or kind.shape[-1:] != (3,):
            return None
        return self.random.choice(
            [
                (f"({name} @ self.weight)", Kind((*kind.shape[:-1], 4), "float")),
                (f"torch.nn.functional.linear({name}, self.weight.t())", Kind((*kind.shape[:-1], 4), "float")),
            ]
        )

    def _compared(self) -> tuple[str, Kind] | None:
        name, kind = self.pick(lambda kind: kind.dtype != "bool")
        found = [item for item in self.tensors() if item[1].fits(kind) and item[1].dtype != "bool"]
        other = self.random.choice([*[item for item, _ in found], "0", "0.5"])
        return f"({name} {self.random.choice(['>', '<=', '==', '!='])} {other})", Kind(kind.shape, "bool")

    def _cast(self) -> tuple[str, Kind]:
        name, kind = self.pick()
        target = self.random.choice(["float", "double", "long"])
        inner = name if kind.dtype in {"bool", "long"} or target != "long" else f"torch.nan_to_num({name}).clamp(-9, 9)"
        return f"{inner}.to({DTYPES[target]})", Kind(kind.shape, target)

    def _scalar(self) -> tuple[str, Kind] | None:
        name, kind = self.pick(lambda kind: kind.dtype != "bool")
        integer = self.integer()
        number = self.float_number()
        if kind.dtype == "long":
            return f"({name} + {integer})", kind
        return self.random.choice([f"({name} * {number})", f"({name} + {integer})", f"({number} - {name})", f"({integer} - {name})"]), kind

    def _sorted(self) -> tuple[str, Kind] | None:
        name, kind = self.pick(lambda kind: bool(kind.shape) and kind.dtype != "bool")
        dim = self.random.randrange(len(kind.shape))
        place = self.random.randrange(2)
        return f"torch.sort({name}, dim={dim}, stable=True)[{place}]", Kind(kind.shape, kind.dtype if place == 0 else "long")

    def _indexed(self) -> tuple[str, Kind] | None:
        name, kind = self.pick(lambda kind: len(kind.shape) > 0 and kind.shape[-1] == 3)
        if kind.shape[-1:] != (3,):
            return None
        if kind.dtype != "bool" and self.random.random() < 0.3:
            return f"{name}.masked_fill({name} > 0, 0)", kind
        return f"{name}.index_select(-1, torch.tensor([2, 0]))", Kind((*kind.shape[:-1], 2), kind.dtype)

    def _from_number(self) -> tuple[str, Kind]:
        return self.random.choice(
            [(f"torch.tensor({self.integer()})", Kind((), "long")), (f"torch.tensor({self.float_number()})", Kind((), "float"))]
        )

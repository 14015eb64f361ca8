"""Random TorchScript programs: source text, inputs and state, all from a seed.

A program is a `forward` over a few tensors, numbers, flags and lists, built statement by statement: arithmetic in mixed dtypes, views,
writes through views, lists, dictionaries, optionals, branches and loops on constants, sizes and data, early returns, raises, helper
methods and state. The generator follows shapes and dtypes roughly, so that most programs run; one that raises is a good program too.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tests.graph.random_expressions import DTYPES, Expressions, Kind, Scope, size_text

B, N, M = "B", 3, 4
"""The sizes of the inputs' dimensions: B varies between calls."""


class Base(nn.Module):
    """The attributes that a program may read and write."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(N, M, generator=generator), requires_grad=False)
        self.bias = nn.Parameter(torch.randn(N, generator=generator), requires_grad=False)
        self.register_buffer("memory", torch.randn(N, generator=generator))
        self.total = torch.zeros(())
        self.history = torch.jit.Attribute([], list[torch.Tensor])
        self.count = 0
        self.flag = False


STATE = ("memory", "total", "history", "count", "flag")
"""The attributes of `Base` that a program may write."""


@dataclass(frozen=True)
class RandomProgram:
    """A program.

    Attributes:
        seed: What it was made from.
        source: Its methods, as TorchScript text.
        calls: What it is called with, in order; B differs between them.
    """

    seed: int
    source: str
    calls: tuple[tuple[Any, ...], ...]

    def make(self) -> torch.jit.ScriptModule:
        """Return a module with the methods of `source`."""
        own_type: type[Base] = type("Program", (Base,), {})  # TorchScript keeps one set of methods for each class
        module = torch.jit.script(own_type(torch.Generator().manual_seed(self.seed)).eval())
        module.define(self.source)
        return module


def random_program(seed: int) -> RandomProgram:
    """Return the program of a seed."""
    return _Generator(seed).program()


@dataclass
class _Generator(Expressions):
    seed: int = 0
    lines: list[str] = field(default_factory=list)
    indent: int = 1
    loops: int = 0
    is_tame: bool = False
    result: str = "Tensor"

    def __init__(self, seed: int) -> None:
        super().__init__(random.Random(seed))
        self.seed = seed
        self.lines, self.indent, self.loops = [], 1, 0
        self.is_tame = self.random.random() < 0.5
        self.has_data_conditions = not self.is_tame
        self.result = self.random.choice(
            ["Tensor", "Tensor, Tensor", *["List[Tensor]"] * 4, "Dict[str, Tensor]", "Tensor, int, List[Tensor]"]
        )

    # -- the whole -------------------------------------------------------------------------------------------------------------

    def program(self) -> RandomProgram:
        """Write the program and make its inputs."""
        helper = self._helper()
        dtypes = [self.random.choice(["float", "float", "double"]), self.random.choice(list(DTYPES))]
        shapes = [(B, N), self.random.choice([(B, N), (N,), (B, N, M), (B, 1), (N, M)])]
        scope = Scope({"x": Kind(shapes[0], dtypes[0]), "y": Kind(shapes[1], dtypes[1])})
        scope.ints.update({"k"})
        scope.floats.update({"p"})
        scope.bools.update({"on"})
        scope.lists["items"] = Kind((B, N), "float")
        self.scopes = [scope]
        self.lines = ["def forward(self, x, y, k: int, p: float, on: bool, items: List[Tensor], extra: Optional[Tensor]):"]
        self._body(self.random.randint(4, 11))
        if self.random.random() < 0.2:
            self._line("if extra is not None:")
            self._nested(lambda: self._line(f"x = {self._same(scope.tensors['x'])} + extra"))
        self._line(f"return {self._returned()}")
        return RandomProgram(self.seed, "\n".join([*helper, "", *self.lines]) + "\n", self._calls(shapes, dtypes))

    def _calls(self, shapes: list[tuple[int | str, ...]], dtypes: list[str]) -> tuple[tuple[Any, ...], ...]:
        generator = torch.Generator().manual_seed(self.seed)

        def tensor(shape: tuple[int | str, ...], dtype: str, batch: int) -> torch.Tensor:
            sizes = [batch if size == B else size for size in shape]
            values = torch.randn(sizes, generator=generator, dtype=torch.float64)
            return (values * (3 if dtype == "long" else 1)).round(decimals=2).to(DTYPES[dtype]) if dtype != "bool" else values > 0

        calls = []
        numbers = (self.random.randint(-2, 3), self.random.choice([0.5, -1.0, 2.0]), self.random.random() < 0.5)
        has_extra = self.random.random() < 0.5
        batches = (3, self.random.choice([1, 2]), self.random.choice([4, 5, 6])) if self.random.random() < 0.5 else (3, 3, 3)
        for index, batch in enumerate(batches):
            if index == 2 and self.random.random() < 0.5:
                numbers = (self.random.randint(-2, 3), 0.25, not numbers[2])
                has_extra = not has_extra
            x, y = (tensor(shape, dtype, batch) for shape, dtype in zip(shapes, dtypes))
            if index == 1 and shapes[0] == shapes[1] and dtypes[0] == dtypes[1] and self.random.random() < 0.3:
                y = x
            items = [tensor((B, N), "float", batch) for _ in range(2)]
            calls.append((x, y, *numbers, items, tensor((B, N), "float", batch) if has_extra else None))
        return tuple(calls)

    def _helper(self) -> list[str]:
        self.scopes = [Scope({"a": Kind((B, N), "float")}, ints={"n"})]
        self.x_name = "a"
        self.result, result = "Tensor", self.result
        self.lines = ["def helper(self, a, n: int):"]
        self._body(self.random.randint(1, 3))
        self._line(f"return {self._same(Kind((B, N), 'float'))}")
        self.result = result
        self.x_name = "x"
        lines, self.lines = self.lines, []
        return lines

    def _returned(self) -> str:
        tensors = [self.tensor() for _ in range(2)]
        integer = self.integer()
        own = [name for name in self.scopes[-1].tensors if name.startswith("v")][-6:] if len(self.scopes) == 1 else []
        return {
            "Tensor": tensors[0],
            "Tensor, Tensor": f"{tensors[0]}, {tensors[1]}",
            "List[Tensor]": f"[{', '.join([*own, *tensors])}]" if own else self._list_name() or f"[{tensors[0]}, {tensors[1]}]",
            "Dict[str, Tensor]": f'{{"a": {tensors[0]}, "b": {tensors[1]}}}',
            "Tensor, int, List[Tensor]": f"{tensors[0]}, {integer}, {self._list_name() or f'[{tensors[1]}]'}",
        }[self.result]

    def _list_name(self) -> str | None:
        names = [name for scope in self.scopes for name in scope.lists]
        return self.random.choice(names) if names and self.random.random() < 0.8 else None

    # -- statements ------------------------------------------------------------------------------------------------------------

    def _line(self, text: str) -> None:
        self.lines.append("    " * self.indent + text)

    def _nested(self, write: Callable[[], None]) -> None:
        self.indent += 1
        self.scopes.append(Scope())
        before = len(self.lines)
        write()
        if len(self.lines) == before:
            self._line("pass")
        self.scopes.pop()
        self.indent -= 1

    def _body(self, count: int) -> None:
        statements = [
            (6, self._assign), (4, self._write), (2, self._view), (2, self._reassign), (2, self._list), (1, self._number),
            (2, self._branch), (2, self._loop), (1, self._while), (2, self._state), (1, self._dict), (1, self._optional),
            (1, self._call), (0.3, self._raise), (0.4, self._early), (0.5, self._reshape_in_place), (0.7, self._data_sized),
            (0.3, self._out), (0.5, self._unpack), (0.5, self._random_write),
        ]  # fmt: skip
        wild = {self._random_write, self._data_sized, self._out, self._reshape_in_place, self._while, self._state, self._raise, self._early}
        weights = [0 if self.is_tame and statement in wild else weight for weight, statement in statements]
        for _ in range(count):
            (_, statement), *_ = self.random.choices(statements, weights)
            if self.indent > 3 and statement in (self._branch, self._loop, self._while):
                continue
            statement()

    def _assign(self) -> None:
        text, kind = self.expression()
        name = self.fresh()
        self._line(f"{name} = {text}")
        self.scopes[-1].tensors[name] = kind

    def _reassign(self) -> None:
        """Give a variable, perhaps one of an outer block, another value of its shape."""
        name, kind = self.pick()
        # TorchScript's alias analysis takes what a loop carries out for what its body makes, though it may run no times at all.
        if not self.loops or name in self.scopes[-1].tensors:
            self._line(f"{name} = {self._same(kind)}")

    def _same(self, kind: Kind) -> str:
        """Return an expression of a shape and dtype."""
        found = [name for name, other in self.tensors() if other == kind]
        dtype = f"torch.{'float32' if kind.dtype == 'float' else DTYPES[kind.dtype]}".replace("torch.torch", "torch")
        zeros = f"torch.zeros([{', '.join(size_text(size, self.x_name) for size in kind.shape)}], dtype={dtype})"
        if kind.is_vague:
            zeros = found[0] if found else zeros
        base = self.random.choice(found) if found else zeros
        other = self._fitting(kind)
        if kind.dtype == "bool":
            return f"torch.logical_not({base})"
        texts = [f"{base} * 2", f"{base} + 1", f"torch.relu({base})", f"{base}.clone()", base]
        if other is not None and self.dtype_of(other, kind) == kind.dtype:
            texts += [f"{base} - {other}", f"torch.maximum({base}, {other})" if kind.dtype != "bool" else base]
        return self.random.choice(texts)

    def dtype_of(self, name: str, kind: Kind) -> str:
        """Return the dtype of the sum of a variable and a tensor of a kind."""
        return self.promoted(dict(self.tensors())[name], kind)

    def _fitting(self, kind: Kind) -> str | None:
        names = [name for name, other in self.tensors() if other.fits(kind) and other.dtype != "bool"]
        return self.random.choice(names) if names else None

    def _view(self) -> None:
        text, kind = self.view()
        name = self.fresh()
        self._line(f"{name} = {text}")
        self.scopes[-1].tensors[name] = kind

    def _write(self) -> None:
        """Write into a tensor, or into a view of one."""
        if self.random.random() < 0.5:
            target, kind = self.pick()
        else:
            target, kind = self.view()
            while ".expand(" in target:  # torch refuses to write there
                target, kind = self.view()
        if kind.dtype == "bool":
            self._line(f"{target}.{self.random.choice(['logical_not_()', 'fill_(True)', 'zero_()'])}")
            return
        other = self._fitting(kind)
        simple = [f"{target}.mul_(2)", f"{target}.add_(1)", f"{target}.zero_()", f"{target}.clamp_(-1, 2)", f"torch.relu_({target})"]
        simple += [f"{target}.neg_()", f"{target}.fill_({self.random.choice(['3', self.integer()])})"]
        if kind.dtype in {"float", "double"}:
            simple += [f"{target}.tanh_()", f"{target}.mul_(0.5)", f"{target}.masked_fill_({target} > 0.5, 0.25)"]
            simple += [f"{target}[{target} > 0] = 0.5"] if "." not in target else []
        if other is not None:
            simple += [f"{target}.copy_({other})", f"{target}[...] = {other}"] * 2
        if other is not None and self.dtype_of(other, kind) == kind.dtype:
            plain = f"{target}.sub_({other})" if target.endswith(")") else f"{target} += {other}"
            simple += [f"{target}.add_({other}, alpha=2)", plain] * 2
        self._line(self.random.choice(simple))

    def _random_write(self) -> None:
        """Write in place by an operator that is random by declaration and leaves one value in the end."""
        target, _ = self.pick(lambda kind: kind.dtype in {"float", "double"})
        self._line(f"{target}.uniform_(1.0, 1.0).clamp_(1.0, 1.0)")

    def _reshape_in_place(self) -> None:
        name, kind = self.pick(lambda kind: bool(kind.shape) and not kind.is_vague)
        if name in {"x", "y", "a"} or self.indent > 1 or name not in self.scopes[-1].tensors:
            return
        self._line(f"{name} = {name}.clone()")
        self._line(f"{name}.unsqueeze_(0)")
        self.scopes[-1].tensors[name] = Kind((1, *kind.shape), kind.dtype)

    def _out(self) -> None:
        name, _ = self.pick(lambda kind: kind.dtype == "float" and not kind.is_vague)
        self._line(f"torch.add({name}, 1.5, out={name})")

    def _data_sized(self) -> None:
        name, kind = self.pick(lambda kind: kind.dtype in {"float", "double"} and bool(kind.shape))
        new = self.fresh()
        if self.random.random() < 0.5:
            self._line(f"{new} = {name}[{name} > 0]")
            self.scopes[-1].tensors[new] = Kind((f"?{new}",), kind.dtype)
        else:
            self._line(f"{new} = torch.nonzero({name} > 0)")
            self.scopes[-1].tensors[new] = Kind((f"?{new}", len(kind.shape)), "long")

    def _unpack(self) -> None:
        name, kind = self.pick(lambda kind: N in kind.shape)
        dim = kind.shape.index(N)
        part = Kind((*kind.shape[:dim], *kind.shape[dim + 1 :]), kind.dtype)
        new = [self.fresh() for _ in range(3)]
        self._line(f"{', '.join(new)} = {name}.unbind({dim})")
        self.scopes[-1].tensors.update(dict.fromkeys(new, part))

    def _number(self) -> None:
        name = self.fresh()
        which = self.random.choice(["ints", "floats", "bools"])
        text = {"ints": self.integer, "floats": self.float_number, "bools": self.condition}[which]()
        self._line(f"{name} = {text}")
        getattr(self.scopes[-1], which).add(name)

    def _list(self) -> None:
        lists = {name: kind for scope in self.scopes for name, kind in scope.lists.items()}
        name = self.random.choice(list(lists)) if lists else ""
        if not lists or self.random.random() < 0.4:
            new = self.fresh()
            _, kind = self.pick()
            self._line(f"{new} = [{', '.join(self._same(kind) for _ in range(self.random.randint(1, 3)))}]")
            self.scopes[-1].lists[new] = kind
            return
        kind = lists[name]
        item = self._same(kind)
        new = self.fresh()
        choice = self.random.randrange(7)
        if choice < 4:
            self._line([f"{name}.append({item})", f"{name}[-1] = {item}", f"{name} += [{item}]", f"{name}.reverse()"][choice])
        elif choice == 4:
            self._line(f"{name}[0].{'logical_not_()' if kind.dtype == 'bool' else 'mul_(2)'}")
        elif choice == 5:
            self._line(f"{new} = {name}[{self.random.choice([0, -1])}]")
            self.scopes[-1].tensors[new] = kind
        else:
            self._line(f"{new} = torch.stack({name})")
            self.scopes[-1].tensors[new] = Kind((f"?{new}", *kind.shape), kind.dtype)

    def _dict(self) -> None:
        name, new = self.fresh(), self.fresh()
        _, kind = self.pick()
        self._line(f'{name} = {{"a": {self._same(kind)}, "b": {self._same(kind)}}}')
        choice = self.random.randrange(3)
        if choice == 0:
            self._line(f'{name}["a"] = {self._same(kind)}')
        elif choice == 1:
            self._line(f'if "c" not in {name} and {self.condition()}:')
            self._nested(lambda: self._line(f'{name}["b"] = {self._same(kind)}'))
        else:
            self._line(f"for key, value in {name}.items():")
            self._nested(lambda: self._line(f"{name}[key] = {'value' if kind.dtype == 'bool' else 'value * 2'}"))
        self._line(f'{new} = {name}["{self.random.choice("ab")}"]')
        self.scopes[-1].tensors[new] = kind

    def _optional(self) -> None:
        name, new = self.fresh(), self.fresh()
        _, kind = self.pick()
        self._line(f"{name}: Optional[Tensor] = None")
        self._line(f"if {self.condition()}:")
        self._nested(lambda: self._line(f"{name} = {self._same(kind)}"))
        self._line(f"{new} = {self._same(kind)}")
        self._line(f"if {name} is not None:")
        self._nested(lambda: self._line(f"{new} = {name}" if kind.dtype == "bool" else f"{new} = {name} + 1"))
        self.scopes[-1].tensors[new] = kind

    def _call(self) -> None:
        if self.x_name == "a":
            return
        new = self.fresh()
        self._line(f"{new} = self.helper({self._same(Kind((B, N), 'float'))}, {self.integer()})")
        self.scopes[-1].tensors[new] = Kind((B, N), "float")

    def _state(self) -> None:
        memory, total = Kind((N,), "float"), Kind((), "float")
        choice = self.random.randrange(9)
        tensors = self.scopes[-1].tensors
        if choice == 0:
            self._line("self.count += 1")
        elif choice == 1:
            self._line(f"self.memory = {self._same(memory)}")
        elif choice == 2:
            self._line(f"self.memory.{self.random.choice(['add_(1)', 'mul_(0.5)', 'zero_()', 'copy_(self.bias)'])}")
        elif choice == 3:
            self._line(f"self.total = self.total + {self._same(total)}")
        elif choice == 4:
            self._line(f"if {self.condition()}:")
            self._nested(lambda: self._line(f"self.history.append({self._same(Kind((B, N), 'float'))})"))
        elif choice == 5:
            self._line(f"self.flag = {self.condition()}")
        else:
            new = self.fresh()
            text, kind = self.random.choice([("self.memory", memory), ("self.total", total), ("self.bias", memory)])
            self._line(f"{new} = {text}{self.random.choice(['', '', ' * 2', '.clone()'])}")
            tensors[new] = kind

    def _raise(self) -> None:
        self._line(f"if {self.condition()} and {self.condition()}:")
        self._nested(lambda: self._line(f'raise RuntimeError("stopped at {self.fresh()}")'))

    def _early(self) -> None:
        if not self.loops or self.random.random() < 0.5:
            self._line(f"if {self.condition()}:")
            self._nested(lambda: self._line(f"return {self._returned()}"))
        else:
            self._line(f"if {self.condition()}:")
            self._nested(lambda: self._line(self.random.choice(["break", "continue"])))

    def _branch(self) -> None:
        self._line(f"if {self.condition()}:")
        self._nested(lambda: self._body(self.random.randint(1, 3)))
        if self.random.random() < 0.6:
            self._line("else:")
            self._nested(lambda: self._body(self.random.randint(1, 3)))

    def _loop(self) -> None:
        name = self.fresh()
        count = self.random.choice(["3", "2", f"{self.x_name}.size(0)", f"({self.integer()}) % 3", "0"])
        listed = self._list_name()
        over_list = listed is not None and self.random.random() < 0.4
        self._line(f"sum_{name} = torch.zeros([{self.x_name}.size(0), 3])")
        self._line(f"for {name} in {listed if over_list else f'range({count})'}:")
        kind = next((scope.lists[listed] for scope in self.scopes if listed in scope.lists), None) if listed else None
        self.loops += 1
        carried, sum_kind = f"sum_{name}", Kind((B, N), "float")

        def write() -> None:
            if over_list and kind is not None:
                self.scopes[-1].tensors[name] = kind
            else:
                self.scopes[-1].ints.add(name)
            before = [dict(scope.lists) for scope in self.scopes]
            if over_list:  # a list that grows while it is walked would never end
                for scope in self.scopes:
                    scope.lists.clear()
            self._body(self.random.randint(1, 3))
            for scope, lists in zip(self.scopes, before):
                scope.lists = {**scope.lists, **lists}
            self._line(f"{carried} = {carried} * 0.5 + {self._same(sum_kind)}")

        self._nested(write)
        self.loops -= 1
        new = self.fresh()
        self._line(f"{new} = {carried} * 2")
        self.scopes[-1].tensors[new] = sum_kind

    def _while(self) -> None:
        name = self.fresh()
        self._line(f"{name} = 0")
        self._line(f"while {name} < 4 and {self.condition()}:")
        self.loops += 1

        def write() -> None:
            self._line(f"{name} += 1")
            self._body(self.random.randint(1, 2))

        self._nested(write)
        self.loops -= 1

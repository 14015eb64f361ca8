"""A node as a converter sees it: its arguments by name, first as types (`NodeView`, for checks), then as values (`Call`)."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from tiacc.backends.tensorrt.layers import Tensor
from tiacc.backends.tensorrt.sizes import Size
from tiacc.graph import arguments
from tiacc.graph.specs import dim_of

if TYPE_CHECKING:
    from tiacc.backends.tensorrt.conversion import Conversion


class NodeView:
    """A node, its arguments by schema name, and what is known of their values before the engine exists.

    Attributes:
        node: The node.
        args: Its arguments by schema name, with defaults filled in: nodes, numbers, lists, None.
    """

    def __init__(self, node: fx.Node) -> None:
        self.node = node
        self.args: dict[str, Any] = arguments.bound(node)

    def value(self, name: str) -> Any:
        """Return what is known of an argument: a fake tensor, a number (maybe symbolic), a list of these, None, ..."""
        return fx.map_arg(self.args[name], lambda node: node.meta["val"])

    def fake(self, name: str) -> torch.Tensor:
        """Return a tensor argument as a fake tensor.

        Raises:
            TypeError: It is no tensor.
        """
        value = self.value(name)
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"argument {name!r} of {self.node.name} is {type(value).__name__}, not a tensor")
        return value

    def is_constant(self, name: str) -> bool:
        """Return whether an argument is None, a number, or a tensor whose data are known before the engine exists."""
        return all(node.op == "get_attr" for node in _nodes(self.args[name]))

    def is_number(self, name: str) -> bool:
        """Return whether an argument is a Python number that is known now."""
        return isinstance(self.value(name), (bool, int, float))

    def is_static(self, name: str) -> bool:
        """Return whether all sizes of a tensor argument are known now."""
        return all(isinstance(dim_of(size), int) for size in self.fake(name).shape)

    @property
    def out(self) -> Any:
        """What is known of the result: a fake tensor, or a tuple or list of them."""
        return self.node.meta["val"]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the result, or of the first one."""
        out = self.out
        return out.dtype if isinstance(out, torch.Tensor) else out[0].dtype

    @property
    def rank(self) -> int:
        """The number of dimensions of the result."""
        return int(self.out.dim())

    def is_used(self, output: int) -> bool:
        """Return whether someone uses an output of a node that has several."""
        return any(
            user.target is not operator.getitem or (user.args[1] == output and bool(user.users)) for user in self.node.users
        )

    def common_dtype(self, *names: str) -> torch.dtype:
        """Return the dtype that torch computes in when it combines these arguments, tensors and numbers."""
        values = [value for value in map(self.value, names) if value is not None]
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        dtype = _promote([value for value in tensors if value.dim()]) or _promote(tensors)
        for value in values:
            example = torch.empty((1,), dtype=dtype, device="meta") if dtype is not None else 0
            if isinstance(value, torch.Tensor):
                other: Any = torch.empty((1,) if value.dim() else (), dtype=value.dtype, device="meta")
            else:
                other = 1.0 if isinstance(value, (float, torch.SymFloat)) else True if isinstance(value, bool) else 1
            dtype = torch.result_type(example, other)
        if dtype is None:
            raise TypeError(f"{self.node.name}: none of {names} is given")
        return dtype


class Call(NodeView):
    """A node being converted: the view, and the values of its arguments in the network.

    Attributes:
        net: Where the layers go.
    """

    def __init__(self, net: Conversion, node: fx.Node) -> None:
        super().__init__(node)
        self.net = net

    def operand(self, name: str) -> Any:
        """Return an argument as it is: a tensor of the network, a `torch.Tensor` that is known now, a number, or None."""
        return self.net.resolve(self.args[name])

    def operands(self, name: str) -> list[Any]:
        """Return an argument that is a list of tensors or numbers, each as `operand` returns it."""
        return [self.net.resolve(item) for item in self.args[name]]

    def tensor(self, name: str, dtype: torch.dtype | None = None, rank: int | None = None) -> Tensor:
        """Return an argument as a tensor of the network, converted to `dtype` and raised to `rank` where these are given."""
        return self.net.tensor(self.operand(name), dtype, rank)

    def constant(self, name: str) -> torch.Tensor | None:
        """Return the data of an argument that is a tensor known now, else None; check `NodeView.is_constant` first."""
        value = self.operand(name)
        return value if isinstance(value, torch.Tensor) else None

    def number(self, name: str) -> Any:
        """Return an argument that is a Python number known now (or None, a string, a dtype)."""
        return self.net.resolve(self.args[name])

    def sizes(self, name: str) -> tuple[Size, ...]:
        """Return an argument that is a list of sizes, or one size, some of them perhaps known only when the engine runs."""
        value = self.net.resolve(self.args[name])
        return tuple(value) if isinstance(value, (list, tuple)) else (value,)

    def ints(self, name: str, count: int) -> tuple[int, ...]:
        """Return an argument that is a list of numbers known now; a single one stands for `count` equal ones."""
        value = self.net.resolve(self.args[name])
        items: Sequence[int] = value if isinstance(value, (list, tuple)) else [value]
        return tuple(items) * count if len(items) == 1 else tuple(items)

    def shape(self, name: str) -> tuple[Size, ...]:
        """Return the shape of a tensor argument."""
        return self.net.shape(self.operand(name))


def _nodes(argument: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(argument, lambda node: found.append(node))
    return found


def _promote(tensors: Sequence[torch.Tensor]) -> torch.dtype | None:
    dtype: torch.dtype | None = None
    for tensor in tensors:
        dtype = tensor.dtype if dtype is None else torch.promote_types(dtype, tensor.dtype)
    return dtype

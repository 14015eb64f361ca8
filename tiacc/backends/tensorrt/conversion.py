"""From a graph to a network, node by node: the layers that most converters use, and the walk over the graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from tiacc.backends.tensorrt.call import Call
from tiacc.backends.tensorrt.emptiness import empty_results
from tiacc.backends.tensorrt.layers import CARRIERS, Tensor
from tiacc.backends.tensorrt.shaping import Shaping, Value
from tiacc.backends.tensorrt.sizes import Number, Scalar, Size, is_static
from tiacc.graph import specs
from tiacc.graph.specs import TensorSpec


class Conversion(Shaping):
    """A network under construction from a graph: what a converter gets as ``call.net``.

    A converter takes a `Call` and returns the value of its node: a tensor of the network, a `torch.Tensor` where the result is
    known now, or a list of these for an operator with several results (None for one that nobody uses). What it returns is
    checked against the graph's own shapes and dtypes.

    Attributes:
        multiples: The names of the tensors that are another one multiplied or divided by a number known now.
    """

    multiples: set[str]
    _env: dict[fx.Node, Any]

    # -- layers --------------------------------------------------------------------------------------------------------------

    def unary(self, kind: str, value: Value) -> Tensor:
        """Apply a ``UnaryOperation``."""
        return self.add("unary", self.tensor(value), getattr(self.trt.UnaryOperation, kind))

    def binary(self, kind: str, first: Value | Number, second: Value | Number, dtype: torch.dtype | None = None) -> Tensor:
        """Apply an ``ElementWiseOperation`` to two operands, broadcast.

        Args:
            kind: Its name, ``"SUM"``.
            first: A tensor or number.
            second: A tensor or number.
            dtype: The type to compute in; that of the operand that is a tensor of the network when None.
        """
        if dtype is None:
            dtype = self._dtype_of(first, second)
        a, b = self.align(first, second, dtype=dtype)
        result = self.add("elementwise", a, b, getattr(self.trt.ElementWiseOperation, kind))
        if kind in ("PROD", "DIV") and (_is_one_number(first) or _is_one_number(second)):
            self.multiples.add(result.name)
        return result

    def activation(self, kind: str, value: Value, alpha: float | None = None, beta: float | None = None) -> Tensor:
        """Apply an ``ActivationType``."""
        attributes: dict[str, Any] = {name: number for name, number in (("alpha", alpha), ("beta", beta)) if number is not None}
        return self.add("activation", self.tensor(value), getattr(self.trt.ActivationType, kind), **attributes)

    def reduce(self, kind: str, value: Value, axes: Sequence[int], keepdim: bool = False) -> Tensor:
        """Apply a ``ReduceOperation`` over `axes`, at least one; negative ones count from the end."""
        tensor = self.tensor(value)
        mask = self.axes_mask(axes, self.rank(tensor))
        return self.add("reduce", tensor, getattr(self.trt.ReduceOperation, kind), mask, keepdim)

    def axes_mask(self, axes: Sequence[int], rank: int) -> int:
        """Return dimensions as the bits that TensorRT takes."""
        return sum(1 << axis for axis in {axis % rank for axis in axes})

    def matmul(self, first: Value, second: Value, *, transpose_first: bool = False, transpose_second: bool = False) -> Tensor:
        """Multiply matrices, ``(..., M, K)`` by ``(..., K, N)``, both of rank 2 or more; leading dimensions broadcast."""
        a, b = self.align(first, second)
        kinds = self.trt.MatrixOperation
        op_a = kinds.TRANSPOSE if transpose_first else kinds.NONE
        op_b = kinds.TRANSPOSE if transpose_second else kinds.NONE
        return self.add("matrix_multiply", a, op_a, b, op_b)

    def select(
        self, condition: Value, when_true: Value | Number, when_false: Value | Number, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Choose element by element, broadcast."""
        if dtype is None:
            dtype = self._dtype_of(when_true, when_false)
        rank = max(len(value.shape) for value in (condition, when_true, when_false) if hasattr(value, "shape"))
        chosen = self.tensor(condition, torch.bool, rank)
        return self.add("select", chosen, self.tensor(when_true, dtype, rank), self.tensor(when_false, dtype, rank))

    def logical_not(self, value: Value) -> Tensor:
        """Negate a bool tensor."""
        return self.unary("NOT", value)

    def arange(self, end: Size, start: Size = 0, step: int = 1, dtype: torch.dtype = torch.int64) -> Value:
        """Return the numbers from `start` up to `end`, exclusive, by a step that is not 0.

        Args:
            end: Where to stop.
            start: The first number.
            step: The difference between two.
            dtype: int32, int64 or float32.
        """
        if is_static((start, end)):
            return torch.arange(start, end, step, dtype=dtype)  # type: ignore[arg-type]
        count = (end - start + (step - (1 if step > 0 else -1))) // step
        first = self.reshape(self.scalar_tensor(start, dtype), ())
        inputs = {0: self.shape_tensor((count,)), 1: first, 2: self.constant(torch.tensor([step], dtype=dtype))}
        operation = self.trt.FillOperation.LINSPACE
        return self.add("fill", (1,), operation, self.flavour.dtype(dtype), inputs=inputs)

    def _dtype_of(self, *values: Value | Number) -> torch.dtype:
        for value in values:
            if not isinstance(value, (torch.Tensor, Scalar, int, float)):
                return self.dtype(value)
        for value in values:
            if isinstance(value, (torch.Tensor, Scalar)):
                return value.dtype
        return torch.float32

    # -- the walk ------------------------------------------------------------------------------------------------------------

    def resolve(self, argument: Any) -> Any:
        """Return an argument of a node with its nodes replaced by their values; a size that is known is a number."""
        if isinstance(argument, fx.Node):
            return self._env[argument]
        if isinstance(argument, (list, tuple)):
            return [self.resolve(item) for item in argument]
        return argument

    def convert(
        self, gm: fx.GraphModule, inputs: Sequence[TensorSpec], convert_node: Callable[[Call], Any]
    ) -> tuple[list[str], list[str]]:
        """Add the layers of a graph, and its inputs and outputs.

        Args:
            gm: The graph.
            inputs: The type of each placeholder; a `Dim` whose range is one number is static.
            convert_node: Converts a node that calls an operator.

        Returns:
            The names of the network's inputs and outputs.

        Raises:
            BuildError: A node cannot be converted.
        """
        self._env = {}
        self.multiples = set()
        names: list[str] = []
        specs_left = iter(inputs)
        outputs: Sequence[fx.Node] = ()
        for node in gm.graph.nodes:
            self._node = node
            if node.op == "placeholder":
                names.append(f"input_{len(names)}")
                self._env[node] = self._input(names[-1], next(specs_left), node)
            elif node.op == "get_attr":
                self._env[node] = specs.fetch_attr(gm, str(node.target)).detach()
            elif node.op == "output":
                outputs = node.args[0]
            elif node.users:
                self._env[node] = self._call(node, convert_node)
        return names, [self._output(index, node) for index, node in enumerate(outputs)]

    def _call(self, node: fx.Node, convert_node: Callable[[Call], Any]) -> Any:
        if node.target is operator.getitem:
            return self.resolve(node.args[0])[node.args[1]]
        if specs.is_scalar(node):
            return self._scalar(node)
        if known := empty_results(node):
            return known[0]
        try:
            value = convert_node(Call(self, node))
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
            raise self.error(f"its converter failed: {type(error).__name__}: {error}") from error
        self._verify(node, value, node.meta["val"])
        return value

    def _scalar(self, node: fx.Node) -> Number:
        known = node.meta["val"]
        key = str(known)
        if isinstance(known, torch.SymInt) and key.lstrip("-").isdigit():
            return int(key)
        if isinstance(known, (bool, int, float)):
            return known
        key_or_none = key if isinstance(known, torch.SymInt) else None
        if node.target is torch.ops.aten.sym_size.int:
            shape: tuple[Number, ...] = self.shape(self.resolve(node.args[0]))
            axis: int = self.resolve(node.args[1])
            return shape[axis]
        number: Number = self.compute(node.target, *map(self.resolve, node.args), key=key_or_none)  # type: ignore[arg-type]
        return number

    def _input(self, name: str, spec: TensorSpec, node: fx.Node) -> Tensor:
        shape = tuple(size if isinstance(size, int) else size.min if size.min == size.max else -1 for size in spec.shape)
        for size, fake_size in zip(shape, node.meta["val"].shape):
            if size == -1 and str(fake_size).isdigit():
                raise self.error(f"a dimension of its type {spec} varies, but the graph has been specialised to size {fake_size}")
        tensor = self.network.add_input(name, self.flavour.dtype(spec.dtype), shape)
        if tensor is None:
            raise self.error(f"TensorRT refuses an input of type {spec}")
        self.remember(tensor, node.meta["val"])
        return tensor

    def _output(self, index: int, node: fx.Node) -> str:
        self._node = node
        tensor: Tensor = self.cast(self.tensor(self._env[node]), node.meta["val"].dtype)
        if tensor.is_network_input or tensor.is_network_output or node.op == "get_attr":
            tensor = self.identity(tensor)
        tensor.name = f"output_{index}"
        self.network.mark_output(tensor)
        if tensor.name != f"output_{index}" or not tensor.is_network_output:
            raise self.error(f"TensorRT does not take it as output {index}")
        return str(tensor.name)

    def _verify(self, node: fx.Node, value: Any, fake: Any) -> None:
        """Hold what a converter made against what the graph says, and keep what the graph knows of the shape."""
        if isinstance(fake, (list, tuple)):
            if not isinstance(value, (list, tuple)) or len(value) != len(fake):
                raise self.error(f"its converter made {value!r} where the graph has {len(fake)} results")
            for item, fake_item in zip(value, fake):
                if item is not None:
                    self._verify(node, item, fake_item)
            return
        is_known = isinstance(value, torch.Tensor)
        dtype = value.dtype if is_known else self.dtype(value)
        shape = tuple(value.shape)
        fits = len(shape) == fake.dim() and all(
            a == b or a < 0 for a, b in zip(shape, fake.shape) if isinstance(b, int)
        )
        if dtype not in (fake.dtype, CARRIERS.get(fake.dtype)) or not fits:
            raise self.error(f"its converter made {dtype} of shape {shape} where the graph has {specs.spec_of(fake)}")
        if not is_known:
            self.remember(value, fake)


def _is_one_number(value: Value | Number) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.numel() == 1)

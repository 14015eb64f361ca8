"""A graph at one set of shapes → a `Program`: what is one step, in which layout, and in which order.

Images have their channels next to each other in memory (channels last) from the first step to the last: only at the border of a
program is anything laid out anew. Element-wise work is done by the step before it; views are free; joined tensors are written in
place by those who make the parts.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from tiacc.backends.cudnn import folding, pointwise
from tiacc.backends.cudnn.layouts import FLOATS, channels_last_strides, contiguous_strides, is_aligned, strides_like
from tiacc.backends.cudnn.lazy import Anchor, Expression, Lazy, Node, anchor_of, flatten, refs_of, size_of
from tiacc.backends.cudnn.program import CONSTANT, INPUT, Buffer, Entry, PointwiseStep, Program, Ref, Step, TorchStep
from tiacc.backends.cudnn.shortcuts import join_shortcuts
from tiacc.backends.cudnn.torch_calls import call_torch
from tiacc.backends.cudnn.views import CASTS, RESHAPED, RESHAPES, TURNS, VIEWS
from tiacc.backends.cudnn.waiting_views import reshape, turn_of, viewed
from tiacc.errors import BuildError
from tiacc.graph import arguments, specs

aten = torch.ops.aten

RECOMPUTED = 3
"""An expression of at most so many operations is computed again for each element that it is broadcast to, rather than stored."""

Value = Any  # Ref | Lazy | int | float | list of these


class Planner:
    """Plans one graph.

    Attributes:
        program: What has been planned so far.
        tf32: Whether float32 convolutions, and float32 matrix products, may use TensorFloat-32.
    """

    def __init__(self, gm: fx.GraphModule, tf32: tuple[bool, bool]) -> None:
        self.gm = gm
        self.program = Program()
        self.tf32 = tf32
        self.values: dict[fx.Node, Value] = {}
        self.entries: dict[fx.Node, int] = {}

    # -- the walk ---------------------------------------------------------------------------------------------------------------

    def run(self) -> Program:
        """Plan all nodes.

        Raises:
            BuildError: A node has no plan; with the node and its source line.
        """
        for node in self.gm.graph.nodes:
            if node.op == "placeholder":
                self._plan_input(node)
            elif node.op == "get_attr":
                self.values[node] = self._constant(str(node.target), specs.fetch_attr(self.gm, str(node.target)))
            elif node.op == "call_function":
                try:
                    self.values[node] = self._plan_call(node)
                except (NotImplementedError, RuntimeError, ValueError, TypeError, KeyError) as error:
                    raise BuildError(f"{node.target} ({node.name}){specs.where(node)} cannot be planned: {error}") from error
            elif node.op == "output":
                self._plan_outputs(list(node.args[0]))
        return self.program

    def _plan_input(self, node: fx.Node) -> None:
        """An input is copied into a buffer of the program, and laid out and converted by the copy."""
        fake = specs.tensor_of(node)
        dtype = _only_cast(node) or fake.dtype
        shape = tuple(int(size) for size in fake.shape)
        self.program.shapes = (*self.program.shapes, shape)
        if not node.users:
            self.program.inputs.append(None)
            return
        buffer = Buffer(node.name, math.prod(shape), dtype, INPUT)
        strides = channels_last_strides(shape) if len(shape) == 4 else contiguous_strides(shape)
        ref = Ref(buffer, shape, strides)
        self.entries[node] = len(self.program.inputs)
        self.program.inputs.append(Entry(ref, shape, fake.dtype))
        self.values[node] = ref

    def fold_input(self, node: fx.Node, fold: int) -> Ref | None:
        """Have an image come in folded, if nobody else reads it.

        Args:
            node: The image, ``(N, C, H, W)``, as its reader has it: an input, or one that was converted.
            fold: The squares of pixels that become one.
        """
        while node.target in CASTS and len(node.users) == 1 and isinstance(node.args[0], fx.Node):
            node = node.args[0]
        place = self.entries.get(node)
        if place is None or len(node.users) != 1:
            return None
        entry = self.program.inputs[place]
        assert entry is not None
        images, channels, height, width = entry.shape
        shape = (images, folding.channels_of(channels, fold), height // fold, width // fold)
        ref = Ref(Buffer(entry.ref.buffer.name, math.prod(shape), entry.ref.dtype, INPUT), shape, channels_last_strides(shape))
        self.program.inputs[place] = Entry(ref, entry.shape, entry.dtype, fold)
        return ref

    def _plan_outputs(self, nodes: list[fx.Node]) -> None:
        for node in nodes:
            value, dtype = self.values[node], specs.tensor_of(node).dtype
            if isinstance(value, Lazy) and isinstance(value.expression, Ref) and value.dtype != torch.bool:
                value = value.expression  # the copy out of the program converts
            ref = self.realize(node) if isinstance(value, Lazy) else value
            self.program.outputs.append((ref, dtype))

    def _plan_call(self, node: fx.Node) -> Value:
        from tiacc.backends.cudnn.rules import RULES

        fake = node.meta["val"]
        if isinstance(fake, (int, float, bool)):
            return fake
        if specs.is_scalar(node):
            return int(fake)
        if node.target is operator.getitem:
            source = self.values[node.args[0]]  # type: ignore[index]
            return source[node.args[1]]
        if node.target in VIEWS:
            return self._plan_view(node)
        if node.target in CASTS:
            value = self._plan_cast(node)
            if value is not None:
                return value
        if node.target in pointwise.RULES:
            value = self._plan_pointwise(node)
            if value is not None:
                return value
        rule = RULES.get(node.target)
        if rule is not None:
            value = rule(self, node, arguments.bound(node))
            if value is not None:
                return value
        return call_torch(self, node)

    # -- kinds of nodes ------------------------------------------------------------------------------------------------------------

    def _plan_view(self, node: fx.Node) -> Value:
        """Views are arithmetic on strides, which torch does; where it would have to copy, a copy is made."""
        source = node.args[0]
        assert isinstance(source, fx.Node)
        args = [self._number(arg) for arg in node.args[1:]]
        kwargs = {key: self._number(arg) for key, arg in node.kwargs.items()}
        op: Any = node.target
        if op in TURNS | RESHAPED and len(source.users) == 1 and self.anchor(source) is not None:
            before, after = shape_of(source), shape_of(node)
            turned = turn_of(lambda tensor: op(tensor, *args, **kwargs), before) if op in TURNS else reshape(before, after)
            value = viewed(self.values[source], turned)
            if value is not None:
                return value
        ref = self.realize(source)
        if op in RESHAPES:
            op = aten.view.default
            if node.target is aten.flatten.using_ints or node.target is aten.view_as.default or node.target is aten.reshape_as.default:
                args, kwargs = [[int(size) for size in specs.tensor_of(node).shape]], {}
        try:
            view = op(ref.meta(), *args, **kwargs)
        except RuntimeError:
            ref = self.copied(ref)
            view = op(ref.meta(), *args, **kwargs)
        if isinstance(view, (list, tuple)):
            return [ref.like(item) for item in view]
        return ref.like(view)

    def _plan_cast(self, node: fx.Node) -> Value | None:
        source: Any = node.args[0]
        fake = specs.tensor_of(node)
        before = specs.tensor_of(source).dtype
        value = self.values[source]
        if isinstance(value, Ref) and value.dtype == fake.dtype:
            return value
        if before not in FLOATS | {torch.bool} or fake.dtype not in FLOATS:
            return None
        expression = self.expression(source, tuple(fake.shape))
        if before == torch.bool:
            expression = Node("number", (expression,))
        return Lazy(expression, tuple(map(int, fake.shape)), fake.dtype)

    def _plan_pointwise(self, node: fx.Node) -> Lazy | None:
        fake = specs.tensor_of(node)
        named = arguments.bound(node)
        tensors = [arg for arg in named.values() if isinstance(arg, fx.Node) and specs.is_tensor(arg)]
        if fake.dtype not in FLOATS | {torch.bool} or any(specs.tensor_of(arg).dtype not in FLOATS | {torch.bool} for arg in tensors):
            return None
        chooses = node.target in (aten.where.self, aten.where.ScalarOther, aten.masked_fill.Scalar)
        if fake.dtype in FLOATS and not chooses and any(specs.tensor_of(arg).dtype == torch.bool for arg in tensors):
            return None
        shape = tuple(map(int, fake.shape))
        self.keep_one_anchor(tensors, shape)
        values: dict[str, Any] = {}
        for name, arg in named.items():
            if isinstance(arg, fx.Node):
                values[name] = self.expression(arg, shape) if specs.is_tensor(arg) else float(self._number(arg))
            elif isinstance(arg, bool) or arg is None or isinstance(arg, str):
                values[name] = arg
            else:
                values[name] = float(arg) if name in ("self", "other", "value", "weight") else arg
        expression = pointwise.RULES[node.target](values)
        return None if expression is None else Lazy(expression, shape, fake.dtype)

    def keep_one_anchor(self, nodes: Sequence[fx.Node], shape: tuple[int, ...]) -> None:
        """A step has one anchor: of several that wait, the one with the most work stays, and it must be able to take the others."""
        waiting = [node for node in dict.fromkeys(nodes) if self.anchor(node) is not None]
        usable = [node for node in waiting if self.values[node].shape == shape and len(node.users) == 1 and nodes.count(node) == 1]
        for node in waiting:
            if node is not (usable[-1] if usable else None):
                self.realize(node)
        if not usable:
            return
        anchor = self.anchor(usable[-1])
        assert anchor is not None
        for node in nodes:
            if node is usable[-1]:
                continue
            value = self.values[node]
            if isinstance(value, Lazy) and (len(node.users) > 1 or size_of(value.expression) > RECOMPUTED):
                value = self.realize(node)
            refs = [value] if isinstance(value, Ref) else refs_of(value.expression) if isinstance(value, Lazy) else []
            if not all(anchor.takes(ref.expanded(shape)) for ref in refs):
                self.realize(usable[-1])
                return

    def anchor(self, node: fx.Node) -> Anchor | None:
        """Return the anchor that the value of a node waits for."""
        value = self.values.get(node)
        return anchor_of(value.expression) if isinstance(value, Lazy) else None

    # -- values ----------------------------------------------------------------------------------------------------------------------

    def expression(self, node: fx.Node, shape: tuple[int, ...]) -> Expression:
        """Return what a reader of `node` computes it from: its expression, or, where that is not good to repeat, where it is stored."""
        value = self.values[node]
        if isinstance(value, Ref):
            return value
        assert isinstance(value, Lazy)
        is_broadcast = value.shape != tuple(shape)
        cheap = size_of(value.expression) <= RECOMPUTED and anchor_of(value.expression) is None
        if (len(node.users) > 1 and not isinstance(value.expression, Ref)) or (is_broadcast and not cheap):
            return self.realize(node)
        return value.expression

    def realize(self, node: fx.Node, strides: tuple[int, ...] | None = None) -> Ref:
        """Return where the value of a node is, storing it if it is not in memory yet."""
        value = self.values[node]
        if isinstance(value, Lazy):
            value = self.values[node] = self.store(value, strides, name=node.name)
        if not isinstance(value, Ref):
            raise TypeError(f"{node.name} is no tensor")
        return value

    def store(self, value: Lazy, strides: tuple[int, ...] | None = None, *, out: Ref | None = None, name: str = "") -> Ref:
        """Emit the step that computes a value.

        Args:
            value: What to compute.
            strides: How to lay it out; as those it is computed from, unless given.
            out: Where to store it, instead of a new buffer.
            name: What to call the buffer.
        """
        flat = flatten(value.expression, value.shape)
        anchor = flat.anchor
        if anchor is not None and anchor.strides is not None:
            if out is not None and not anchor.fits(out):
                stored = self.store(value, name=name)
                return self.store(Lazy(stored, value.shape, value.dtype), out=out)
            strides = anchor.strides(value.shape)
        if out is None:
            out = self.new(value.shape, value.dtype, strides or strides_like(flat.operands, value.shape), name)
        if anchor is None:
            self.emit(PointwiseStep(out, flat.operands, flat.body))
        else:
            self.emit(anchor.emit(out, flat.body, flat.operands))
        return out

    def new(self, shape: Sequence[int], dtype: torch.dtype, strides: Sequence[int], name: str = "") -> Ref:
        """Return a new temporary tensor."""
        extent = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides)) if all(shape) else 0
        return Ref(Buffer(name or f"t{len(self.program.steps)}", extent, dtype), tuple(shape), tuple(strides))

    def emit(self, step: Step) -> None:
        """Add a step, unless it computes nothing."""
        outs = step.outs if isinstance(step, TorchStep) else (step.out,)
        if any(out.numel for out in outs):
            self.program.steps.append(step)

    def channels_last(self, node: fx.Node) -> Ref:
        """Return where an image is, with channels next to each other."""
        return self.laid_out(node, channels_last_strides)

    def laid_out(self, node: fx.Node, layout: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Ref:
        """Return where the value of a node is, dense and in a layout; copied there if it is elsewhere."""
        shape = tuple(map(int, specs.tensor_of(node).shape))
        ref = self.realize(node, layout(shape) if self.anchor(node) is None else None)
        return self.as_laid_out(ref, layout)

    def as_laid_out(self, ref: Ref, layout: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Ref:
        """Return a tensor in a layout: itself, or a copy."""
        wanted = layout(ref.shape)
        if all(size == 1 or have == want for size, have, want in zip(ref.shape, ref.strides, wanted)):
            return Ref(ref.buffer, ref.shape, wanted, ref.offset)
        return self.store(Lazy(ref, ref.shape, ref.dtype), wanted)

    def copied(self, ref: Ref) -> Ref:
        """Return a copy of a tensor in row-major order."""
        return self.store(Lazy(ref, ref.shape, ref.dtype), contiguous_strides(ref.shape))

    def image(self, node: fx.Node) -> Ref:
        """Return where an image is, with the channels of a pixel next to each other; pixels may be further apart than they need be."""
        ref = self.realize(node, channels_last_strides(tuple(map(int, specs.tensor_of(node).shape))) if self.anchor(node) is None else None)
        _, channels, height, width = ref.shape
        _, c, h, w = ref.strides
        has_pixels = (channels == 1 or c == 1) and (width == 1 or w >= channels) and (height == 1 or h >= w * width)
        if has_pixels and channels > 1 and is_aligned(ref, [dim for dim in range(4) if ref.strides[dim] != 1]):
            return ref
        return self.as_laid_out(ref, channels_last_strides)

    def constant_of(self, node: Any) -> torch.Tensor | None:
        """Return the numbers of a node that is a constant."""
        if isinstance(node, fx.Node) and node.op == "get_attr":
            data = specs.fetch_attr(self.gm, str(node.target))
            return data if isinstance(data, torch.Tensor) else None
        return None

    def constant(self, data: torch.Tensor, name: str) -> Ref:
        """Return a new constant."""
        return self._constant(name, data)

    def _constant(self, name: str, data: torch.Tensor) -> Ref:
        dense = data if data.is_contiguous() else data.contiguous()
        buffer = Buffer(name, dense.numel(), dense.dtype, CONSTANT, dense)
        self.program.constants.append(buffer)
        return Ref(buffer, tuple(dense.shape), tuple(dense.stride()))

    def _number(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self.values[value]
        if isinstance(value, (list, tuple)):
            return [self._number(item) for item in value]
        return value


def plan(gm: fx.GraphModule, tf32: tuple[bool, bool] = (True, False)) -> Program:
    """Plan a graph whose sizes are all numbers.

    Args:
        gm: The graph; its placeholders are tensors, its output a tuple of tensors.
        tf32: Whether float32 convolutions, and float32 matrix products, may round their inputs to TensorFloat-32.

    Raises:
        BuildError: A node has no plan.
    """
    program = Planner(gm, tf32).run()
    join_shortcuts(program)
    return program


def _only_cast(node: fx.Node) -> torch.dtype | None:
    """Return the type that all readers of an input convert it to."""
    if not node.users or not all(user.target in CASTS for user in node.users):
        return None
    dtypes = {specs.tensor_of(user).dtype for user in node.users}
    (dtype,) = dtypes if len(dtypes) == 1 else (None,)
    return dtype


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of the tensor that a node computes."""
    return tuple(map(int, specs.tensor_of(node).shape))


def pair(value: Any, default: int = 0) -> tuple[int, int]:
    """Return an argument of one number or two as two; no number at all is the default."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if not values:
        values = [default]
    return (int(values[0]), int(values[-1]))

"""A subgraph at one set of shapes, as steps over buffers.

A `Buffer` is a piece of memory; a `Ref` is a tensor in it, with sizes and strides, so that views cost nothing. Each step reads refs and
writes refs: a convolution or matrix product with the element-wise work that follows it, a reduction, an element-wise kernel, or one call
of torch. Everything here is plain data: it is made, printed and tested without a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from tiacc.backends.cudnn.body import Body

INPUT, CONSTANT, TEMPORARY = "input", "constant", "temporary"
"""The kinds of buffers. What a program returns lives in temporary ones that are never reused."""


@dataclass(eq=False)
class Buffer:
    """A piece of memory.

    Attributes:
        name: What it is called in listings.
        numel: Its size in elements.
        dtype: The type of its elements.
        kind: `INPUT`, `CONSTANT` or `TEMPORARY`.
        data: The numbers of a constant.
    """

    name: str
    numel: int
    dtype: torch.dtype
    kind: str = TEMPORARY
    data: torch.Tensor | None = None

    @property
    def size_bytes(self) -> int:
        """Its size in bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Ref:
    """A tensor in a buffer.

    Attributes:
        buffer: Where it is.
        shape: Its sizes, in elements.
        strides: How far apart neighbours are in each dimension, in elements.
        offset: Where it begins, in elements.
    """

    buffer: Buffer
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """The type of its elements."""
        return self.buffer.dtype

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    def meta(self) -> torch.Tensor:
        """Return a tensor without data of this shape and these strides: torch's own view arithmetic works on it."""
        base = torch.empty(max(self.buffer.numel, 1), dtype=self.dtype, device="meta")
        return base.as_strided(self.shape, self.strides, self.offset)

    def like(self, view: torch.Tensor) -> Ref:
        """Return the ref that a view of `meta` stands for."""
        return Ref(self.buffer, tuple(view.shape), tuple(view.stride()), int(view.storage_offset()))

    def expanded(self, shape: tuple[int, ...]) -> Ref:
        """Return it broadcast to a shape; the stride of a dimension that is broadcast is 0."""
        added = len(shape) - len(self.shape)
        strides = [0] * added + [0 if size == 1 else stride for size, stride in zip(self.shape, self.strides)]
        return Ref(self.buffer, shape, tuple(strides), self.offset)

    def tensor(self, storage: torch.Tensor) -> torch.Tensor:
        """Return the tensor, given the one-dimensional tensor of its buffer."""
        return storage.as_strided(self.shape, self.strides, storage.storage_offset() + self.offset)

    def layout(self) -> str:
        """Return shape, strides and dtype as text; where it lives is not in it."""
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}/{list(self.strides)}"

    def __str__(self) -> str:
        return f"{self.buffer.name}:{self.layout()}"


@dataclass(frozen=True)
class PointwiseStep:
    """``out = body(operands)``, for each element; the operands are expanded to the shape of `out`."""

    out: Ref
    operands: tuple[Ref, ...]
    body: Body

    def refs(self) -> tuple[Ref, ...]:
        """Return what it writes, then what it reads."""
        return (self.out, *self.operands)


@dataclass(frozen=True)
class Addend:
    """A 1×1 convolution that is added to another's sums.

    Attributes:
        x: ``(N, C, H, W)``, with channels next to each other in memory.
        weight: A constant ``(K, C, 1, 1)``.
        stride: In height and width.
    """

    x: Ref
    weight: Ref
    stride: tuple[int, int]


@dataclass(frozen=True)
class ConvStep:
    """A convolution, and what is done to each element of its result; a matrix product is one of 1×1 over an image of one column.

    Attributes:
        out: ``(N, K, H', W')``.
        x: ``(N, C, H, W)``, with channels next to each other in memory.
        weight: A constant ``(K, C/groups, R, S)``, or ``(C, K/groups, R, S)`` of a transposed convolution.
        stride: In height and width, as the next two.
        padding: At both sides.
        dilation: Of the kernel.
        groups: The number of groups of channels.
        transposed: Whether it is a transposed convolution.
        body: Operand 0 is the result of the convolution, the others are `operands`.
        operands: Of the shape of `out`, expanded.
        tf32: Whether float32 inputs may be rounded to TensorFloat-32.
        addend: A second convolution, whose result is part of operand 0.
    """

    out: Ref
    x: Ref
    weight: Ref
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    transposed: bool
    body: Body
    operands: tuple[Ref, ...]
    tf32: bool
    addend: Addend | None = None

    def refs(self) -> tuple[Ref, ...]:
        """Return what it writes, then what it reads."""
        added = () if self.addend is None else (self.addend.x, self.addend.weight)
        return (self.out, self.x, self.weight, *added, *self.operands)

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel is a group of its own."""
        return not self.transposed and self.groups == self.x.shape[1] == self.out.shape[1] and self.groups > 1

    @property
    def is_point(self) -> bool:
        """Whether each output pixel depends on one input pixel at the same place: a matrix product."""
        return (
            not self.transposed
            and tuple(self.weight.shape[2:]) == (1, 1)
            and self.stride == (1, 1)
            and self.padding == (0, 0)
            and self.groups == 1
        )

    @property
    def is_cropped(self) -> bool:
        """Whether the last rows and columns, which the padding would give, are not wanted."""
        if self.transposed:
            return False
        sizes = zip(self.x.shape[2:], self.padding, self.dilation, self.weight.shape[2:], self.stride, self.out.shape[2:])
        return any((size + 2 * pad - dilation * (taps - 1) - 1) // stride + 1 != out for size, pad, dilation, taps, stride, out in sizes)

    @property
    def is_rounded(self) -> bool:
        """Whether its operands are rounded to TensorFloat-32; depthwise, it is computed without tensor cores."""
        return self.tf32 and self.x.dtype == torch.float32 and not self.is_depthwise

    def flops(self) -> int:
        """Return its floating-point operations, two a multiplication and addition."""
        taps = math.prod(self.weight.shape[1:]) + (0 if self.addend is None else self.addend.x.shape[1])
        return 2 * (self.x.numel if self.transposed else self.out.numel) * taps


@dataclass(frozen=True)
class PoolStep:
    """The maximum or mean of a window over ``(N, C, H, W)``, and what is done to it.

    Attributes:
        divisor: What a sum is divided by: ``"window"``, its elements inside of the padded image; ``"inside"``, those inside of the
            image; or a number.
    """

    out: Ref
    x: Ref
    kind: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    divisor: str | int
    body: Body
    operands: tuple[Ref, ...]

    def refs(self) -> tuple[Ref, ...]:
        """Return what it writes, then what it reads."""
        return (self.out, self.x, *self.operands)


@dataclass(frozen=True)
class ReduceStep:
    """``out = body(reduce(prologue(inputs)))`` over some dimensions.

    Attributes:
        out: Of the shape of the inputs, with size 1 where it was reduced.
        inputs: The operands of the prologue, expanded to one shape.
        prologue: What is done to each element before.
        dims: The dimensions that are reduced.
        kind: ``"sum"``, ``"mean"``, ``"max"`` or ``"min"``.
        body: What is done to each result; operand 0 is the result, the others are `operands`, expanded to the shape of `out`.
    """

    out: Ref
    inputs: tuple[Ref, ...]
    prologue: Body
    dims: tuple[int, ...]
    kind: str
    body: Body
    operands: tuple[Ref, ...]

    def refs(self) -> tuple[Ref, ...]:
        """Return what it writes, then what it reads."""
        return (self.out, *self.inputs, *self.operands)


@dataclass(frozen=True)
class RowStep:
    """``out = body(normalised(prologue(inputs)))``: softmax or layer norm along some dimensions, of rows that fit into registers.

    Attributes:
        out: Of the shape of the inputs.
        kind: ``"softmax"``, ``"log_softmax"``, ``"layer_norm"`` or ``"rms_norm"``.
        eps: What a norm adds to the variance.
    """

    out: Ref
    inputs: tuple[Ref, ...]
    prologue: Body
    dims: tuple[int, ...]
    kind: str
    eps: float
    body: Body
    operands: tuple[Ref, ...]

    def refs(self) -> tuple[Ref, ...]:
        """Return what it writes, then what it reads."""
        return (self.out, *self.inputs, *self.operands)


@dataclass(frozen=True)
class AttentionStep:
    """``out = softmax(scale · q · kᵀ + mask) · v`` for each head.

    Attributes:
        out: ``(N, heads, L, D)``, as `q`.
        k: ``(N, groups, M, D)``; so many heads after each other share one that `groups` divides `heads` by. `v` has the same shape.
        mask: ``(N, heads, L, M)``, expanded: what is added, or, of booleans, what is kept; None for no mask.
        scale: What products are multiplied by.
        is_causal: Whether each place sees only those up to its own.
    """

    out: Ref
    q: Ref
    k: Ref
    v: Ref
    mask: Ref | None
    scale: float
    is_causal: bool

    def refs(self) -> tuple[Ref, ...]:
        """Return what it writes, then what it reads."""
        return (self.out, self.q, self.k, self.v, *([] if self.mask is None else [self.mask]))


@dataclass(frozen=True)
class TorchStep:
    """One call of an operator; its results are copied into `outs`.

    Attributes:
        outs: One ref a tensor that it returns.
        target: The operator.
        args: Its arguments, with refs for tensors.
        kwargs: As `args`, by name.
    """

    outs: tuple[Ref, ...]
    target: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def refs(self) -> tuple[Ref, ...]:
        """Return what it writes, then what it reads."""
        return (*self.outs, *_refs_in((self.args, tuple(self.kwargs.values()))))


def _refs_in(value: Any) -> Iterator[Ref]:
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _refs_in(item)


KernelStep: TypeAlias = "PointwiseStep | ConvStep | PoolStep | ReduceStep | RowStep | AttentionStep"
"""The steps with one result and kernels for it."""

Step: TypeAlias = "KernelStep | TorchStep"


@dataclass(frozen=True)
class Entry:
    """How an input comes into a program.

    Attributes:
        ref: Where it is laid out, converted to the type of that buffer.
        shape: The shape of the caller's tensor.
        dtype: The type of the caller's tensor.
        fold: The squares of pixels that become one, as `folding.image` does; 1 where the shape stays.
    """

    ref: Ref
    shape: tuple[int, ...]
    dtype: torch.dtype
    fold: int = 1


@dataclass
class Program:
    """The steps of a subgraph at one set of input shapes.

    Attributes:
        inputs: How each input comes in; None for one that is not read.
        outputs: Where each output is, and the type it is returned in.
        steps: In order.
        constants: The buffers of weights and the like.
        shapes: The shapes of the inputs.
    """

    inputs: list[Entry | None] = field(default_factory=list)
    outputs: list[tuple[Ref, torch.dtype]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    constants: list[Buffer] = field(default_factory=list)
    shapes: tuple[tuple[int, ...], ...] = ()

    def temporaries(self) -> list[Buffer]:
        """Return the buffers that are neither inputs nor constants, in the order of first use."""
        found: dict[Buffer, None] = {}
        for step in self.steps:
            for ref in step.refs():
                if ref.buffer.kind == TEMPORARY:
                    found.setdefault(ref.buffer)
        return list(found)


def bytes_of(step: Step) -> int:
    """Return the bytes of the tensors that a step reads and writes, each counted once; what is broadcast counts as it is stored."""
    distinct: dict[Ref, int] = {}
    for ref in step.refs():
        stored = math.prod(size for size, stride in zip(ref.shape, ref.strides) if stride)
        distinct[ref] = stored * ref.dtype.itemsize
    return sum(distinct.values())

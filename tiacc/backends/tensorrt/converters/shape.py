"""Shapes of tensors: views, permutations, broadcasting, repetition. None of these computes; most add one layer or none."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.tensorrt.call import Call, NodeView
from tiacc.backends.tensorrt.conversion import Conversion
from tiacc.backends.tensorrt.converters import converts
from tiacc.backends.tensorrt.extents import axes_of, axis_of, bounds, fixed, result_sizes
from tiacc.backends.tensorrt.shaping import Value
from tiacc.backends.tensorrt.sizes import Scalar, Size, is_static, product

aten = torch.ops.aten


# -- the same tensor ------------------------------------------------------------------------------------------------------------


@converts(
    aten.contiguous.default,
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.lift.default,
    aten.lift_fresh.default,
    aten.resolve_conj.default,
    aten.resolve_neg.default,
    aten.real.default,
)
def same(call: Call) -> Value:
    """The tensor itself: in an engine there is no memory to copy or to share."""
    return call.operand("self")


# -- views ----------------------------------------------------------------------------------------------------------------------


def _viewed(call: Call, given: Sequence[Size]) -> Value:
    return call.net.reshape(call.operand("self"), result_sizes(call, given))


@converts(aten.view.default, aten._unsafe_view.default, symbolic=("size",))
def view(call: Call) -> Value:
    """The same elements in another shape."""
    return _viewed(call, call.sizes("size"))


@converts(aten.reshape.default, symbolic=("shape",))
def reshape(call: Call) -> Value:
    """The same elements in another shape."""
    return _viewed(call, call.sizes("shape"))


@converts(aten.view_as.default, aten.reshape_as.default)
def view_as(call: Call) -> Value:
    """The elements of a tensor in the shape of another."""
    return _viewed(call, call.shape("other"))


@converts(aten.flatten.using_ints)
def flatten(call: Call) -> Value:
    """A range of dimensions as one."""
    sizes = call.shape("self")
    if not sizes:
        return _viewed(call, [1])
    first, last = (axis_of(call, name=name) for name in ("start_dim", "end_dim"))
    return _viewed(call, [*sizes[:first], product(sizes[first : last + 1]), *sizes[last + 1 :]])


@converts(aten.ravel.default)
def ravel(call: Call) -> Value:
    """All dimensions as one."""
    return _viewed(call, [product(call.shape("self"))])


@converts(aten.unflatten.int, symbolic=("sizes",))
def unflatten(call: Call) -> Value:
    """One dimension as several."""
    sizes, axis = call.shape("self"), axis_of(call)
    return _viewed(call, [*sizes[:axis], *call.sizes("sizes"), *sizes[axis + 1 :]])


def _squeeze_check(view: NodeView) -> Support:
    shape = view.fake("self").shape
    for axis in axes_of(view) if "dim" in view.args else range(len(shape)):
        low, high = bounds(shape[axis]) if shape else (1, 1)
        if low <= 1 < high:
            return Support(False, f"whether it drops dimension {axis} depends on a dynamic size")
    return SUPPORTED


@converts(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, check=_squeeze_check)
def squeeze(call: Call) -> Value:
    """Without those of some dimensions, or of all, that have size 1."""
    shape = call.fake("self").shape
    axes: Sequence[int] = range(len(shape))
    if "dim" in call.args:
        axes = axes_of(call) if call.args["dim"] != [] else ()
    return call.net.squeeze(call.operand("self"), [axis for axis in axes if shape and fixed(shape[axis]) == 1])


@converts(aten.unsqueeze.default)
def unsqueeze(call: Call) -> Value:
    """With one more dimension of size 1."""
    return call.net.unsqueeze(call.operand("self"), [call.number("dim")])


def _at_least(net: Conversion, value: Value, rank: int) -> Value:
    missing = rank - net.rank(value)
    if missing <= 0:
        return value
    # (n,) becomes (1, n, 1) and (m, n) becomes (m, n, 1) where three are wanted
    axes = {0: range(missing), 1: (0,) if rank == 2 else (0, 2), 2: (2,)}[net.rank(value)]
    return net.unsqueeze(value, axes)


for _rank, _packet in enumerate((aten.atleast_1d, aten.atleast_2d, aten.atleast_3d), 1):

    def _raise_one(call: Call, rank: int = _rank) -> Value:
        """With leading (or, for the third, trailing) dimensions of size 1 up to a rank."""
        return _at_least(call.net, call.operand("self"), rank)

    def _raise_all(call: Call, rank: int = _rank) -> list[Value]:
        """Each with dimensions of size 1 up to a rank."""
        return [_at_least(call.net, value, rank) for value in call.operands("tensors")]

    converts(_packet.default)(_raise_one)
    converts(_packet.Sequence)(_raise_all)


@converts(aten._shape_as_tensor.default)
def shape_as_tensor(call: Call) -> Value:
    """The shape, as an int64 tensor."""
    sizes = call.shape("self")
    return torch.tensor(sizes, dtype=torch.int64) if is_static(sizes) else call.net.shape_tensor(sizes)


# -- permutations ---------------------------------------------------------------------------------------------------------------


@converts(aten.permute.default)
def permute(call: Call) -> Value:
    """The dimensions in another order."""
    return call.net.permute(call.operand("self"), call.number("dims"))


def _transposed(value: str, first: str, second: str) -> None:
    """Register the overload `value` as a swap of the two dimensions that its arguments name."""

    def convert(call: Call) -> Value:
        operand = call.operand("self")
        if call.net.rank(operand) == 0:
            return operand
        return call.net.transpose(operand, axis_of(call, name=first), axis_of(call, name=second))

    convert.__doc__ = "Two dimensions swapped."
    packet, overload = value.split(".")
    converts(getattr(getattr(aten, packet), overload))(convert)


_transposed("transpose.int", "dim0", "dim1")
_transposed("swapdims.default", "dim0", "dim1")
_transposed("swapaxes.default", "axis0", "axis1")


@converts(aten.t.default, aten.numpy_T.default)
def reverse_dimensions(call: Call) -> Value:
    """The dimensions in reverse order."""
    value = call.operand("self")
    return call.net.permute(value, list(reversed(range(call.net.rank(value)))))


@converts(aten.mT.default, aten.mH.default, aten.adjoint.default, aten.matrix_H.default)
def matrix_transpose(call: Call) -> Value:
    """The last two dimensions swapped."""
    value = call.operand("self")
    return call.net.transpose(value, -2, -1) if call.net.rank(value) > 1 else value


@converts(aten.movedim.int, aten.movedim.intlist, aten.moveaxis.int, aten.moveaxis.intlist)
def movedim(call: Call) -> Value:
    """Some dimensions at new places, the others in order."""
    value = call.operand("self")
    rank = call.net.rank(value)
    if rank == 0:
        return value
    sources, places = ([dim % rank for dim in call.ints(name, 1)] for name in ("source", "destination"))
    order = [axis for axis in range(rank) if axis not in sources]
    for place, source in sorted(zip(places, sources)):
        order.insert(place, source)
    return call.net.permute(value, order)


# -- broadcasting and repetition ------------------------------------------------------------------------------------------------


def _expanded(call: Call, value: Value, given: Sequence[Size], fake: torch.Tensor) -> Value:
    sizes = [now if fixed(known) is None else fixed(known) for known, now in zip(fake.shape, given)]
    return call.net.expand(value, sizes)  # type: ignore[arg-type]


@converts(aten.expand.default, aten.broadcast_to.default, symbolic=("size",))
def expand(call: Call) -> Value:
    """Dimensions of size 1 repeated."""
    return _expanded(call, call.operand("self"), call.sizes("size"), call.out)


@converts(aten.expand_as.default)
def expand_as(call: Call) -> Value:
    """Dimensions of size 1 repeated, to the shape of another tensor."""
    return _expanded(call, call.operand("self"), call.shape("other"), call.out)


@converts(aten.broadcast_tensors.default)
def broadcast_tensors(call: Call) -> list[Value]:
    """Tensors expanded to their common shape."""
    values = call.operands("tensors")
    sizes: list[Size] = []
    for value in values:
        shape = list(call.net.shape(value))
        sizes = [*[1] * (len(shape) - len(sizes)), *sizes]
        for axis, size in zip(range(len(sizes) - len(shape), len(sizes)), shape):
            if isinstance(sizes[axis], int) and sizes[axis] == 1:
                sizes[axis] = size
    return [_expanded(call, value, sizes, fake) for value, fake in zip(values, call.out)]


def _repeat_check(name: str) -> object:
    def check(view: NodeView) -> Support:
        counts = view.value(name)
        if any(fixed(count) is None for count in (counts if isinstance(counts, (list, tuple)) else (counts,))):
            low = min(bounds(size)[0] for size in (1, *view.fake("self").shape))
            if low < 1:
                return Support(False, "a dynamic number of repetitions of a tensor that may be empty")
        return SUPPORTED

    return check


def repeated(net: Conversion, value: Value, counts: Sequence[Size]) -> Value:
    """Return a value laid side by side with itself, ``counts[i]`` times along dimension i; it has at most that many."""
    value = net.raise_rank(value, len(counts)) if not isinstance(value, torch.Tensor) else value
    if isinstance(value, torch.Tensor):
        value = value.reshape((1,) * (len(counts) - value.dim()) + tuple(value.shape))
        if is_static(counts):
            return value.repeat(tuple(counts))
    sizes = net.shape(value)
    wanted = [size * count if isinstance(size, Scalar) else count * size for size, count in zip(sizes, counts)]
    if all((isinstance(size, int) and size == 1) or (isinstance(count, int) and count == 1) for size, count in zip(sizes, counts)):
        return net.expand(value, wanted)
    rank = len(counts)
    return net.slice(value, [0] * rank, wanted, [1] * rank, mode="WRAP")


@converts(aten.repeat.default, symbolic=("repeats",), check=_repeat_check("repeats"))  # type: ignore[arg-type]
def repeat(call: Call) -> Value:
    """A tensor laid side by side with itself."""
    return repeated(call.net, call.operand("self"), call.sizes("repeats"))


@converts(aten.tile.default, symbolic=("dims",), check=_repeat_check("dims"))  # type: ignore[arg-type]
def tile(call: Call) -> Value:
    """A tensor laid side by side with itself, along its last dimensions."""
    value, counts = call.operand("self"), list(call.sizes("dims"))
    return repeated(call.net, value, [1] * (call.net.rank(value) - len(counts)) + counts)


def _interleave_check(view: NodeView) -> Support:
    if view.value("dim") is None and view.fake("self").dim() > 1 and not view.is_static("self"):
        return Support(False, "repeat_interleave of a flattened dynamic tensor")
    return SUPPORTED


@converts(aten.repeat_interleave.self_int, symbolic=("repeats", "output_size"), check=_interleave_check)
def repeat_interleave(call: Call) -> Value:
    """Each element several times, one after the other."""
    net, value, count = call.net, call.operand("self"), call.sizes("repeats")[0]
    if call.args["dim"] is None or net.rank(value) == 0:
        value, axis = net.reshape(value, [product(net.shape(value))]), 0
    else:
        axis = axis_of(call)
    sizes = list(net.shape(value))
    wide = net.expand(net.unsqueeze(value, [axis + 1]), [*sizes[: axis + 1], count, *sizes[axis + 1 :]])
    return net.reshape(wide, result_sizes(call, [*sizes[:axis], product([sizes[axis], count]), *sizes[axis + 1 :]]))

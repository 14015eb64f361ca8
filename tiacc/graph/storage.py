"""In-place operators made functional.

TorchScript tensors share memory: a view reads what its base holds now. While a region is imported, each tensor value is a `TensorRef`:
either the whole of a `Storage`, or a view of another ref. A read gives the fx node of the current contents (a view is computed again
when its base has changed since); a write gives the storage a new node, through the inverse of each view in between::

    y = x.select(0, 1)        a ref to x through select
    y.add_(1)                 new = add(y, 1);  x := select_scatter(x, new, 0, 1)

Source: the functionalization pass of torch (`torch.func.functionalize`) is built on the same idea.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx

from tiacc.graph import torch_compat

aten = torch.ops.aten

Call: TypeAlias = Callable[..., fx.Node]
"""``call(target, *args, **kwargs)`` adds a node to the region's graph, with its value inferred."""


class CannotImportError(Exception):
    """A TorchScript node that the importer leaves as it is; the message is the reason, for the report."""


class NeedsGuardError(CannotImportError):
    """A node relies on the type that a tensor was seen to have; a region that does so checks it when it runs."""


@dataclass(eq=False)
class Storage:
    """Memory that tensors share.

    Attributes:
        node: What it holds now.
        is_external: Whether code outside the region can see it, so that a write may not become functional.
        has_lasting_parts: Whether a part of it cannot be computed again after a write.
        version: Changes with each write; no two writes of any storages have one version.
    """

    node: fx.Node
    is_external: bool
    version: int = 0
    has_lasting_parts: bool = False


_versions = itertools.count(1)


@dataclass(eq=False)
class TensorRef:
    """A tensor of the TorchScript program.

    Attributes:
        storage: The memory it lives in.
        parent: What it is a view of; None when it is the whole storage.
        view: The function that makes it from its parent, with the arguments after the first.
        node: The node of the contents at `version`; None when it is the whole storage, which has it.
        version: The version of the storage when `node` was made.
        layout: Where in the memory of its parent a view lies: the fake tensor that it was made as.
        is_in_place: Whether `node` shares the memory of the storage's: what was written into a view does not, nor do views of that.
    """

    storage: Storage
    parent: TensorRef | None = None
    view: tuple[Any, tuple[Any, ...], dict[str, Any]] | None = None
    node: fx.Node | None = None
    version: int = 0
    layout: torch.Tensor | None = None
    is_in_place: bool = True

    @property
    def value(self) -> torch.Tensor:
        """The fake tensor of its shape and dtype."""
        return (self.node or self.storage.node).meta["val"]  # type: ignore[no-any-return]

    def read(self, call: Call) -> fx.Node:
        """Return the node of the current contents."""
        if self.parent is None:
            return self.storage.node
        if self.node is None or self.version != self.storage.version:
            assert self.view is not None
            target, args, kwargs = self.view
            self.node = call(target, self.parent.read(call), *args, **kwargs)
            self.version, self.is_in_place = self.storage.version, self.parent.is_in_place
        return self.node

    def read_in_place(self, call: Call) -> fx.Node:
        """Return the node of the current contents that shares the memory of the whole storage's."""
        if self.parent is None or self.view is None or self.view[0] is None:
            return self.read(call)
        if not self.is_in_place or self.node is None or self.version != self.storage.version:
            target, args, kwargs = self.view
            self.node = call(target, self.parent.read_in_place(call), *args, **kwargs)
            self.version, self.is_in_place = self.storage.version, True
        return self.node

    def write(self, new: fx.Node, call: Call) -> None:
        """Replace the contents by those of `new`, of the same shape and dtype."""
        if self.storage.is_external:
            raise CannotImportError("it writes into memory that other code can see")
        if self.storage.has_lasting_parts:
            raise CannotImportError("it writes into a tensor of which a part is a view that the importer cannot make again")
        if self.parent is None:
            self.storage.node = _laid_out_as(self.storage.node, new, call)
            self.storage.version = next(_versions)
            return
        assert self.view is not None
        target, args, kwargs = self.view
        base = self.parent.read(call)
        self.parent.write(scatter(target, base, new, args, kwargs, call), call)
        self.node, self.version, self.is_in_place = new, self.storage.version, False


def whole(node: fx.Node, *, is_external: bool = False) -> TensorRef:
    """Return the ref of a tensor that owns its memory."""
    return TensorRef(Storage(node, is_external))


def view_of(parent: TensorRef, node: fx.Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TensorRef:
    """Return the ref of a view of `parent`, whose contents are `node` now and ``target(parent, *args, **kwargs)`` at any time."""
    version = parent.storage.version
    return TensorRef(parent.storage, parent, (target, args, kwargs), node, version, node.meta["val"], parent.is_in_place)


def part_of(parent: TensorRef, node: fx.Node) -> TensorRef:
    """Return the ref of a part of `parent` that is not known how to make again: nothing may be written into its memory from now on."""
    parent.storage.has_lasting_parts = True
    return view_of(parent, node, None, (), {})


def overlaps(one: TensorRef, other: TensorRef) -> bool:
    """Return whether two tensors share a part of their memory, and not all of it: torch refuses to write into one from the other."""
    if one is other or one.storage is not other.storage:
        return False
    first, second = (ref.value if ref.layout is None else ref.layout for ref in (one, other))
    spans = [(value.storage_offset(), value.storage_offset() + value.numel()) for value in (first, second)]
    (begin, end), (other_begin, other_end) = spans
    if not all(torch_compat.decide(condition) is True for condition in (begin < other_end, other_begin < end)):
        return False
    ends_meet = torch_compat.same_size(begin, other_begin) and torch_compat.same_size(end, other_end)
    if ends_meet and first.dim() == second.dim():
        return not all(map(torch_compat.same_size, first.stride(), second.stride()))
    return first.is_contiguous() and second.is_contiguous()


def _laid_out_as(old: fx.Node, new: fx.Node, call: Call) -> fx.Node:
    """Return `new` with the strides of `old`, which a write does not change: a ``view`` may need them."""
    wanted, value = old.meta["val"], new.meta["val"]
    if all(map(torch_compat.same_size, wanted.stride(), value.stride())):
        return new
    for memory_format in (torch.contiguous_format, torch.channels_last):
        if wanted.is_contiguous(memory_format=memory_format):
            is_so_too = value.is_contiguous(memory_format=memory_format)  # strides of dimensions of size 1 do not count
            return new if is_so_too else call(aten.clone.default, new, memory_format=memory_format)
    return call(aten.copy.default, old, new)


def scatter(target: Any, base: fx.Node, new: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call) -> fx.Node:
    """Return `base` with the part that the view ``target(base, *args)`` shows replaced by `new`.

    Raises:
        CannotImportError: The view has no inverse here.
    """
    inverse = _INVERSES.get(target)
    if inverse is None:
        raise CannotImportError(f"it writes through {target}, a view that has no inverse in the importer")
    return inverse(base, new, call, *args, **kwargs)


_Inverse: TypeAlias = Callable[..., fx.Node]
_INVERSES: dict[Any, _Inverse] = {}


def _inverse_of(*targets: Any) -> Callable[[_Inverse], _Inverse]:
    def add(function: _Inverse) -> _Inverse:
        _INVERSES.update(dict.fromkeys(targets, function))
        return function

    return add


@_inverse_of(aten.select.int)
def _select(base: fx.Node, new: fx.Node, call: Call, dim: int, index: Any) -> fx.Node:
    return call(aten.select_scatter.default, base, new, dim, index)


@_inverse_of(aten.slice.Tensor)
def _slice(
    base: fx.Node, new: fx.Node, call: Call, dim: int = 0, start: Any = None, end: Any = None, step: Any = 1
) -> fx.Node:
    if _is_whole_slice(base, dim, start, end, step):
        return new
    return call(aten.slice_scatter.default, base, new, dim, start, end, step)


def _is_whole_slice(base: fx.Node, dim: int, start: Any, end: Any, step: Any) -> bool:
    size = base.meta["val"].shape[dim]
    reaches_end = end is None or (isinstance(end, int) and end >= (size if isinstance(size, int) else 2**31))
    return step == 1 and start in (0, None) and reaches_end


@_inverse_of(aten.diagonal.default)
def _diagonal(base: fx.Node, new: fx.Node, call: Call, offset: int = 0, dim1: int = 0, dim2: int = 1) -> fx.Node:
    return call(aten.diagonal_scatter.default, base, new, offset, dim1, dim2)


@_inverse_of(aten.unsqueeze.default)
def _unsqueeze(base: fx.Node, new: fx.Node, call: Call, dim: int) -> fx.Node:
    return call(aten.squeeze.dim, new, dim)


@_inverse_of(aten.transpose.int)
def _transpose(base: fx.Node, new: fx.Node, call: Call, dim0: int, dim1: int) -> fx.Node:
    return call(aten.transpose.int, new, dim0, dim1)


@_inverse_of(aten.t.default, aten.numpy_T.default)
def _t(base: fx.Node, new: fx.Node, call: Call) -> fx.Node:
    return call(aten.t.default, new)


@_inverse_of(aten.permute.default)
def _permute(base: fx.Node, new: fx.Node, call: Call, dims: list[int]) -> fx.Node:
    order = [dim % len(dims) for dim in dims]
    return call(aten.permute.default, new, [order.index(i) for i in range(len(order))])


@_inverse_of(
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.view_as.default,
    aten.reshape_as.default,
)
def _reshape(base: fx.Node, new: fx.Node, call: Call, *_: Any, **__: Any) -> fx.Node:
    sizes = [
        size if isinstance(size, int) else call(aten.sym_size.int, base, dim)
        for dim, size in enumerate(base.meta["val"].shape)
    ]
    return call(aten.reshape.default, new, sizes)


@_inverse_of(
    aten.alias.default,
    aten.detach.default,
    aten.contiguous.default,
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
    aten.to.other,
    aten.type_as.default,
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.expand.default,
    aten.expand_as.default,
    aten.lift_fresh.default,
)
def _identity(base: fx.Node, new: fx.Node, call: Call, *_: Any, **__: Any) -> fx.Node:
    shapes = (base.meta["val"].shape, new.meta["val"].shape)
    if len(shapes[0]) != len(shapes[1]) or not all(map(torch_compat.same_size, *shapes)):
        raise CannotImportError("it writes into an expanded tensor")
    return new


def pieces(target: Any, base: TensorRef, nodes: list[fx.Node], dim: int) -> list[TensorRef]:
    """Return the refs of the parts that a splitting operator makes of `base`; `nodes` are the parts as it computes them."""
    if target is aten.unbind.int:
        return [view_of(base, node, aten.select.int, (dim, index), {}) for index, node in enumerate(nodes)]
    lengths = [node.meta["val"].shape[dim] for node in nodes]
    if not all(isinstance(length, int) for length in lengths):
        return [part_of(base, node) for node in nodes]
    ends = list(itertools.accumulate(lengths))
    return [
        view_of(base, node, aten.slice.Tensor, (dim, end - length, end, 1), {})
        for node, length, end in zip(nodes, lengths, ends)
    ]

"""Which operators read how a tensor is laid out, and which lay theirs out in a way of their own.

In a graph the tensors that a caller gives are contiguous. When it runs they may be laid out in any way, and so may be what is computed
from them: a sum is laid out as its operands, a convolution of an image whose channels come last has channels last.
"""

from __future__ import annotations

import torch

aten = torch.ops.aten

OWN_LAYOUT = frozenset(
    {
        aten.addmm.default,
        aten.baddbmm.default,
        aten.bmm.default,
        aten.contiguous.default,
        aten.embedding.default,
        aten.layer_norm.default,
        aten.linear.default,
        aten.mm.default,
        aten.repeat.default,
        aten.tile.default,
    }
)
"""The operators whose result is laid out in the same way whatever they are given."""

TELL_LAYOUT = frozenset(
    {
        aten.is_contiguous.default,
        aten.is_contiguous.memory_format,
        aten.stride.default,
        aten.stride.int,
        aten.storage_offset.default,
        aten.sym_stride.default,
        aten.sym_stride.int,
    }
)
"""The operators that tell how a tensor is laid out."""

READ_LAYOUT = TELL_LAYOUT | {
    aten.as_strided.default,
    aten.as_strided_copy.default,
    aten.as_strided_scatter.default,
    aten.view.dtype,
    aten.view_as_complex.default,
}
"""The operators whose result depends on how their input is laid out."""

MAY_COPY = frozenset({aten.flatten.using_ints, aten.reshape.default, aten.reshape_as.default})
"""The operators that give a view where the layout allows one, and else a copy."""

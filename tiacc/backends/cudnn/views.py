"""The operators that give another view of a tensor, and those that change its type alone."""

from __future__ import annotations

import torch

aten = torch.ops.aten

VIEWS = frozenset(
    {
        aten.view.default,
        aten._unsafe_view.default,
        aten.reshape.default,
        aten.flatten.using_ints,
        aten.view_as.default,
        aten.reshape_as.default,
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.numpy_T.default,
        aten.mT.default,
        aten.adjoint.default,
        aten.movedim.int,
        aten.movedim.intlist,
        aten.swapaxes.default,
        aten.swapdims.default,
        aten.unsqueeze.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.expand.default,
        aten.broadcast_to.default,
        aten.select.int,
        aten.slice.Tensor,
        aten.narrow.default,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.chunk.default,
        aten.tensor_split.sections,
        aten.unbind.int,
        aten.unfold.default,
        aten.unflatten.int,
        aten.diagonal.default,
        aten.alias.default,
        aten.detach.default,
    }
)
"""The operators that give other views of their first argument."""

RESHAPES = frozenset(
    {
        aten.view.default,
        aten._unsafe_view.default,
        aten.reshape.default,
        aten.flatten.using_ints,
        aten.view_as.default,
        aten.reshape_as.default,
    }
)
"""Those of them that may have to copy."""

RESHAPED = RESHAPES | {
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unflatten.int,
}
"""Those that keep all elements in their order."""

TURNS = frozenset(
    {
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.numpy_T.default,
        aten.mT.default,
        aten.movedim.int,
        aten.movedim.intlist,
        aten.swapaxes.default,
        aten.swapdims.default,
    }
)
"""Those that put the dimensions in another order."""

CASTS = frozenset(
    {
        aten._to_copy.default,
        aten.to.dtype,
        aten.to.dtype_layout,
        aten.to.device,
        aten.to.other,
        aten.type_as.default,
        aten.clone.default,
        aten.contiguous.default,
    }
)
"""The operators that change the type of their first argument, or its layout, and nothing else."""

"""What lowerings share."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from tiacc.graph import specs


def value_of(node: fx.Node) -> torch.Tensor:
    """Return the fake tensor that a node computes."""
    return specs.tensor_of(node)


def normal_dims(dims: Any, rank: int) -> list[int]:
    """Return dimensions as a list of numbers from 0; all of them for None or none given."""
    if dims is None or dims == []:
        return list(range(rank))
    return sorted(dim % rank for dim in ([dims] if isinstance(dims, int) else dims))

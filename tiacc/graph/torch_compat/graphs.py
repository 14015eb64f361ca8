"""fx graphs: torch's private names for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx._lazy_graph_module import _LazyGraphModule


def graph_module(root: torch.nn.Module | dict[str, Any], graph: fx.Graph) -> fx.GraphModule:
    """Return the module of a graph; its code is written when it is called or looked at, not when it is made or its graph has changed.

    That takes as long as most passes, and what most graphs are made for is to become other graphs.
    """
    return _LazyGraphModule(root, graph)

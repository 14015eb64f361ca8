"""Which module of the model each operator of a graph belongs to."""

from __future__ import annotations

from torch import fx


def paths_of(gm: fx.GraphModule) -> dict[fx.Node, str]:
    """Return the path of the module that each operator belongs to, ``"encoder.layer.0"``, or an empty string.

    It is that of the operator's weights; one without weights belongs where the one before it does. Freezing a model leaves nothing else
    to tell it by.
    """
    found: dict[fx.Node, str] = {}
    path = ""
    for node in gm.graph.nodes:
        if node.op == "call_function":
            path = node.meta.get("path", path)
            found[node] = path
    return found

"""Which module of the model each operator of a graph belongs to."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from tiacc.graph import torch_compat


class ModulePaths:
    """The modules of TorchScript nodes, asked for in the order in which they run.

    A node knows by which modules it was called, but not the lists that these are in: ``("0", "dense")`` of ``layers.0.dense``. The weights
    of the nodes before it tell that.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], str] = {}

    def path_of(self, node: torch_compat.Node) -> str:
        """Return the path of a node's module, ``"layers.0.dense"``; an empty string for a node of the model itself."""
        names: tuple[str, ...] = torch_compat.modules_of(node)
        for owner in torch_compat.weight_owners_of(node):
            if not names:
                return str(owner)
            self._known.update(_aligned(names, owner.split(".")))
        known = next((count for count in range(len(names), 0, -1) if names[:count] in self._known), 0)
        return ".".join([*([self._known[names[:known]]] if known else []), *names[known:]])


def _aligned(names: tuple[str, ...], parts: Sequence[str]) -> dict[tuple[str, ...], str]:
    """Return the path of each module among those that called a node, if a path has all of them in this order; else nothing."""
    found: dict[tuple[str, ...], str] = {}
    end = len(parts)
    for count in range(len(names), 0, -1):
        end = next((place for place in range(end - 1, -1, -1) if parts[place] == names[count - 1]), -1)
        if end < 0:
            return {}
        found[names[:count]] = ".".join(parts[: end + 1])
    return found


def paths_of(gm: fx.GraphModule) -> dict[fx.Node, str]:
    """Return the path of the module that each operator belongs to, ``"encoder.layer.0"``, or an empty string.

    The importer notes it; an operator that a pass made belongs where the one before it does.
    """
    found: dict[fx.Node, str] = {}
    path = ""
    for node in gm.graph.nodes:
        if node.op == "call_function":
            path = node.meta.get("path", path)
            found[node] = path
    return found

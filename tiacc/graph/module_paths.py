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
        self._owners: dict[int, str | None] = {}

    def path_of(self, node: torch_compat.Node) -> str:
        """Return the path of a node's module, ``"layers.0.dense"``; an empty string for a node of the model itself."""
        names: tuple[str, ...] = torch_compat.modules_of(node)
        for value in torch_compat.inputs_of(node):
            owner = self._owner_of(value)
            if owner is None:
                continue
            if not names:
                return owner
            self._known.update(_aligned(names, owner.split(".")))
        known = next((count for count in range(len(names), 0, -1) if names[:count] in self._known), 0)
        return ".".join([*([self._known[names[:known]]] if known else []), *names[known:]])

    def _owner_of(self, value: torch_compat.Value) -> str | None:
        """Return the module whose weight a value is; asked once, since what many nodes read is slow to ask for its readers."""
        name = value.unique()
        if name not in self._owners:
            self._owners[name] = torch_compat.weight_owner_of(value)
        return self._owners[name]


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

"""Results that are new in each call, though what they are is known before.

Freezing computes what depends on nothing, as ``self.anchors.clone()``, once for all calls. The caller may write into what it is given,
and would find that in later results.
"""

from __future__ import annotations

import torch

from tiacc.graph import torch_compat


def copy_returned_constants(graph: torch_compat.Graph) -> None:
    """Have each call return copies of the constants that a TorchScript graph returns, or views of."""
    pending, seen = [graph.return_node()], set[int]()
    while pending:
        reader = pending.pop()
        for index, value in enumerate(torch_compat.inputs_of(reader)):
            maker = value.node()
            if maker.kind() == "prim::Constant":
                if isinstance(value.toIValue(), torch.Tensor):
                    reader.replaceInput(index, _copied(graph, value, reader))
            elif value.unique() not in seen and _hands_on(maker):
                seen.update(output.unique() for output in torch_compat.outputs_of(maker))
                pending.extend((maker, *(block.returnNode() for block in torch_compat.blocks_of(maker))))


def _copied(graph: torch_compat.Graph, value: torch_compat.Value, reader: torch_compat.Node) -> torch_compat.Value:
    """Write a copy of a value in front of its reader."""
    with graph.insert_point_guard(reader):
        copied = graph.insertNode(graph.create("aten::clone", [value, graph.insertConstant(None)], 1)).output()
        # torch's executor computes a copy of a constant once for all calls too, unless something is written into it.
        written = graph.insertNode(graph.create("aten::detach_", [copied], 1)).output()
    for made in (copied, written):
        made.setType(value.type())
    return written


def _hands_on(node: torch_compat.Node) -> bool:
    """Return whether what a node gives may be, or hold, what it is given."""
    kind = node.kind()
    if kind.startswith("prim::"):
        return kind not in torch_compat.OPAQUE and kind != "prim::Param"
    overload = torch_compat.overload_of(node)
    return overload is None or torch_compat.may_alias(overload)

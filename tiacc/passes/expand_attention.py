"""Write torch's fused layers of attention as the operators that they are made of.

::

    _native_multi_head_attention(x, x, x, …)[0]  →  linear → chunk → heads → scaled_dot_product_attention → heads joined → linear
    _transformer_encoder_layer_fwd(x, …)         →  the same, with layer_norm, linear → relu or gelu → linear, and what is added

A traced ``nn.MultiheadAttention`` or ``nn.TransformerEncoderLayer`` in evaluation mode is such a layer. No backend does better with it
whole: in parts it joins the segment round it, and half precision can leave a part of it in float32.

Left as they are: layers with a mask, attention between different tensors, layers whose weights of the keys are read, nested tensors.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from tiacc.graph import arguments, specs
from tiacc.passes import rewrite
from tiacc.passes.base import Pass, PassContext, PassResult, register

aten = torch.ops.aten

ATTENTION = aten._native_multi_head_attention.default
LAYER = aten._transformer_encoder_layer_fwd.default


@register
@dataclass(frozen=True)
class ExpandAttention(Pass):
    """Writes fused layers of attention as the operators that they are made of."""

    name: ClassVar[str] = "expand-attention"
    before: ClassVar[tuple[str, ...]] = ("cast-half",)

    def apply(self, gm: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Expand them; each layer counts as one change."""
        return PassResult(gm, expand_attention(gm, ctx))


def expand_attention(gm: fx.GraphModule, ctx: PassContext) -> int:
    """Expand the fused layers of `gm` that compute attention of one tensor to itself; return how many."""
    changes = 0
    for node in gm.graph.find_nodes(op="call_function", target=ATTENTION):
        bound = arguments.bound(node)
        picks = list(node.users)
        is_of_itself = bound["query"] is bound["key"] is bound["value"]
        is_one = all(pick.target is operator.getitem and pick.args[1] == 0 for pick in picks)
        if is_of_itself and is_one and picks and _is_plain(bound, "query") and ctx.spend():
            result = _Writer(node, bound).attention(bound["query"], bound["num_head"])
            for pick in picks:
                rewrite.replace(pick, result)
            gm.graph.erase_node(node)
            changes += 1
    for node in gm.graph.find_nodes(op="call_function", target=LAYER):
        bound = arguments.bound(node)
        if _is_plain(bound, "src") and ctx.spend():
            rewrite.replace(node, _Writer(node, bound).layer())
            changes += 1
    return changes


def _is_plain(bound: dict[str, Any], source: str) -> bool:
    return bound["mask"] is None and specs.is_tensor(bound[source]) and specs.tensor_of(bound[source]).dim() == 3


class _Writer:
    """Writes operators before a fused layer, with its weights."""

    def __init__(self, node: fx.Node, bound: dict[str, Any]) -> None:
        self._node = node
        self._bound = bound

    def call(self, target: Any, *args: Any) -> fx.Node:
        return rewrite.add_call(self._node, target, *args)

    def linear(self, x: fx.Node, weight: str, bias: str) -> fx.Node:
        return self.call(aten.linear.default, x, self._bound[weight], self._bound[bias])

    def attention(self, x: fx.Node, heads: int) -> fx.Node:
        """Write multi-head attention with its projections: ``(N, L, E)`` → ``(N, L, E)``."""
        parts = self.call(aten.chunk.default, self.linear(x, "qkv_weight", "qkv_bias"), 3, -1)
        split = []
        for place in range(3):
            part = self.call(operator.getitem, parts, place)
            part = self.call(aten.unflatten.int, part, -1, [heads, self._bound["embed_dim"] // heads])
            split.append(self.call(aten.transpose.int, part, 1, 2))
        mixed = self.call(aten.scaled_dot_product_attention.default, *split)
        joined = self.call(aten.flatten.using_ints, self.call(aten.transpose.int, mixed, 1, 2), -2, -1)
        return self.linear(joined, "proj_weight", "proj_bias")

    def layer(self) -> fx.Node:
        """Write a layer of a transformer's encoder, normalised before or after its two parts."""
        bound = self._bound
        activation = aten.gelu.default if bound["use_gelu"] else aten.relu.default

        def norm(x: fx.Node, index: int) -> fx.Node:
            weight, bias = bound[f"norm_weight_{index}"], bound[f"norm_bias_{index}"]
            return self.call(aten.layer_norm.default, x, [bound["embed_dim"]], weight, bias, bound["eps"])

        def attention(x: fx.Node) -> fx.Node:
            return self.attention(x, bound["num_heads"])

        def feed_forward(x: fx.Node) -> fx.Node:
            hidden = self.call(activation, self.linear(x, "ffn_weight_1", "ffn_bias_1"))
            return self.linear(hidden, "ffn_weight_2", "ffn_bias_2")

        x: fx.Node = bound["src"]
        for index, part in enumerate((attention, feed_forward), 1):
            inner = part(norm(x, index) if bound["norm_first"] else x)
            x = self.call(aten.add.Tensor, x, inner)
            x = x if bound["norm_first"] else norm(x, index)
        return x

"""Which nodes the backend takes."""

from __future__ import annotations

import functools

import torch
from torch import fx

from tiacc.backends.base import SUPPORTED, Support
from tiacc.backends.cudnn import pointwise
from tiacc.backends.cudnn.rules import RULES
from tiacc.backends.cudnn.views import CASTS, VIEWS
from tiacc.graph import torch_compat
from tiacc.passes.precision_policy import TABLE

DTYPES = frozenset(
    {
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
    }
)
"""The types of tensors that a program may hold."""

WAITING = frozenset({"_transformer_encoder_layer_fwd", "_native_multi_head_attention", "ctc_loss", "masked_scatter"})
"""Operators that wait for the GPU, or may: a CUDA graph cannot hold them."""

_MORE = """
    arange full full_like zeros zeros_like ones ones_like new_full new_ones new_zeros empty_like scalar_tensor eye
    logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor any all eq ne lt le gt ge
    embedding index index_select gather take_along_dim where one_hot tril triu index_put scatter
"""
MORE = frozenset(_MORE.split())
"""Operators beyond those of the table of precisions that a program may call."""


def judge(node: fx.Node) -> Support:
    """Return whether a node can be a step of a program."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return Support(False, f"{target} is not an operator")
    value = node.meta.get("val")
    tensors = value if isinstance(value, (list, tuple)) else (value,)
    if not all(isinstance(item, torch.Tensor) for item in tensors):
        return Support(False, "its result is not a tensor")
    if torch_compat.written_arguments(target):
        return Support(False, "it writes into its input")
    inputs = [arg.meta.get("val") for arg in node.all_input_nodes]
    for item in (*tensors, *(item for item in inputs if isinstance(item, torch.Tensor))):
        if item.dtype not in DTYPES:
            return Support(False, f"it computes with {str(item.dtype).removeprefix('torch.')}")
        if item.layout != torch.strided:
            return Support(False, "it computes with sparse tensors")
    return _known(target)


@functools.cache
def _known(target: torch._ops.OpOverload) -> Support:
    if target in RULES or target in pointwise.RULES or target in VIEWS or target in CASTS:
        return SUPPORTED
    namespace, name = target._schema.name.split("::")
    if namespace != "aten":
        return Support(False, f"it is not known whether {target} can be recorded in a CUDA graph")
    if name in WAITING:
        return Support(False, "it waits for the GPU")
    if name in TABLE or name in MORE:
        return SUPPORTED
    return Support(False, f"it is not known whether {target} can be recorded in a CUDA graph")

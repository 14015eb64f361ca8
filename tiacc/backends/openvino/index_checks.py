"""What a node that indexes must be like, beside its element types. A docstring goes into the support matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from tiacc.backends.openvino.checks import fixed_shapes
from tiacc.backends.openvino.rules import Call
from tiacc.graph import torch_compat

MOST_PLACES = 1 << 20
"""How many elements a strided view may have: their places become a constant."""


def gathered(call: Call) -> str:
    """Along a named dimension; an index of the tensor's rank, and of its sizes along the others."""
    dim, index = call.given["dim"], call.tensor("index") if "index" in call.given else call.tensor("indices")
    if not call.first.dim() or dim is None or index is None:
        return "no dimension is named" if dim is None else "a tensor without dimensions"
    if call.name == "index_select.default":
        return "" if index.dim() else "an index without dimensions"
    if index.dim() != call.first.dim():
        return "an index of another rank"
    rest = [axis for axis in range(index.dim()) if axis != dim % index.dim()]
    if not all(torch_compat.same_size(index.shape[axis], call.first.shape[axis]) for axis in rest):
        return "an index of other sizes"
    return ""


def indexed(call: Call) -> str:
    """With integer tensors."""
    if any(name == "indices" and tensor.dtype == torch.bool for name, tensor in call.tensors()):
        return "indices is bool"
    found = [tensor.dim() for name, tensor in call.tensors() if name == "indices"]
    if len(found) > 1 and not any(found):
        return "indices without dimensions"
    return "" if call.first.dim() else "a tensor without dimensions"


def index_put(call: Call) -> str:
    """Not accumulating; one value, where a mask says where it goes."""
    if call.given["accumulate"]:
        return "accumulate"
    if is_mask(call.given["indices"]) and call.given["values"].meta["val"].numel() != 1:
        return "a mask and more than one value"
    if not is_mask(call.given["indices"]) and any(name == "indices" and item.dtype == torch.bool for name, item in call.tensors()):
        return "a mask beside other indices"
    if call.given["indices"][0] is None and not call.given["values"].meta["val"].dim():
        return "one value, behind a dimension that is not indexed"
    return same_dtype_of_values(call)


def is_mask(indices: Sequence[Any]) -> bool:
    """Return whether indices are one tensor of bools, which says which of the first dimensions' elements are meant."""
    return (
        isinstance(indices[0], fx.Node)
        and indices[0].meta["val"].dtype == torch.bool
        and all(index is None for index in indices[1:])
    )


def same_dtype_of_values(call: Call) -> str:
    """Values of the tensor's type."""
    values = call.tensor("values")
    return "" if values is not None and values.dtype == call.first.dtype else "values of another type"


def one_hot(call: Call) -> str:
    """A number of classes that is given."""
    return "" if call.given["num_classes"] > 0 else "the number of classes is not given"


def strided(call: Call) -> str:
    """Of fixed sizes, of what the model itself computes and lays out row by row, at most 2²⁰ elements."""
    if complaint := fixed_shapes(call):
        return complaint
    source = call.node.args[0]
    while isinstance(source, fx.Node) and source.op == "call_function" and _may_share(source):
        source = source.args[0]
    if not isinstance(source, fx.Node) or source.op == "placeholder":
        return "a tensor that the caller lays out"
    if not call.first.is_contiguous() or call.first.storage_offset():
        return "a tensor that is not laid out row by row"
    return "" if call.results[0].numel() <= MOST_PLACES else f"more than {MOST_PLACES} elements"


def _may_share(node: fx.Node) -> bool:
    """Return whether what a node gives may be its first argument laid out as that is."""
    schema = getattr(node.target, "_schema", None)
    return schema is None or any(result.alias_info is not None for result in schema.returns)


def col2im(call: Call) -> str:
    """Of a batch, with blocks side by side: the stride is the kernel, no padding, no dilation, fixed sizes."""
    given = call.given
    if call.first.dim() != 3 or not all(isinstance(size, int) for size in (*call.first.shape[1:], *given["output_size"])):
        return "sizes that vary" if call.first.dim() == 3 else "no batch"
    if list(given["stride"]) != list(given["kernel_size"]) or any(given["padding"]) or any(step != 1 for step in given["dilation"]):
        return "blocks that overlap or have gaps"
    if any(size % block for size, block in zip(given["output_size"], given["kernel_size"])):
        return "blocks that do not fill the image"
    return ""

"""What a call must be like beyond its element types. A check returns why it is not supported, or an empty string."""

from __future__ import annotations

import math

import torch

from tiacc.backends.openvino.lowering import is_number
from tiacc.backends.openvino.rules import Call, least
from tiacc.graph import specs

_NEAREST, _REFLECTED = 1, 2
"""The numbers of a mode and of a padding of `grid_sampler`."""

_DIMENSIONS = ("dim", "dims", "dim0", "axis0", "source", "dimension")


def ranked(call: Call) -> str:
    """Not of a tensor without dimensions, where a dimension is named."""
    if call.first.dim() == 0 and any(call.given.get(name) is not None for name in _DIMENSIONS):
        return "a dimension of a tensor that has none"
    return ""


def narrowed(call: Call) -> str:
    """From a place counted from the start."""
    start = call.given["start"]
    return "counted from the end" if isinstance(start, int) and start < 0 else ranked(call)


def reduced(call: Call) -> str:
    """Not along an empty list of dimensions."""
    return "no dimension" if call.given.get("dim") == [] else ranked(call)


def same_dtype(call: Call) -> str:
    """All tensors of one element type."""
    found = {tensor.dtype for _, tensor in call.tensors()}
    return f"element types {' and '.join(sorted(map(str, found)))}" if len(found) > 1 else ""


def fixed_shapes(call: Call) -> str:
    """Tensors of fixed sizes."""
    for name, tensor in call.tensors():
        if any(not isinstance(size, int) for size in tensor.shape):
            return f"{name} has sizes that vary"
    return ""


def fixed_rank(call: Call) -> str:
    """Not of sizes that vary, as the rank of the result would with them."""
    return fixed_shapes(call)


def squeezed(call: Call) -> str:
    """Dimensions of fixed size."""
    if call.name.startswith("squeeze") and call.first.dim():
        dims = call.given["dim"]
        for dim in dims if isinstance(dims, (list, tuple)) else [dims]:
            if not isinstance(call.first.shape[dim], int):
                return f"dimension {dim} varies"
    return ""


# -- products ----------------------------------------------------------------------------------------------------------------------


def convolution(call: Call) -> str:
    """Batched input, weights of fixed sizes."""
    data, weight = call.tensor("input"), call.tensor("weight")
    assert data is not None and weight is not None
    if data.dim() != weight.dim():
        return "its input has no batch dimension"
    if any(not isinstance(size, int) for size in weight.shape):
        return "weight has sizes that vary"
    return same_dtype(call)


def einsum(call: Call) -> str:
    """No index twice in one operand."""
    terms = str(call.given["equation"]).replace(" ", "").replace("...", "").split("->")[0].split(",")
    if any(len(set(term)) != len(term) for term in terms):
        return f"equation {call.given['equation']!r}: a diagonal"
    return same_dtype(call)


def inner(call: Call) -> str:
    """A second operand of at most two dimensions."""
    second = call.tensor("other")
    if second is not None and second.dim() > 2:
        return "other has more than two dimensions"
    return same_dtype(call)


def cross(call: Call) -> str:
    """A dimension that is named."""
    return "no dimension is named" if call.given.get("dim") is None else same_dtype(call)


def pairwise_distance(call: Call) -> str:
    """Of order 1 or 2."""
    return "" if call.given["p"] in (1, 2) and call.first.dim() else f"p={call.given['p']}"


def cdist(call: Call) -> str:
    """Of order 2, of two tensors of one rank."""
    if len({tensor.dim() for _, tensor in call.tensors()}) > 1:
        return "tensors of two ranks"
    return "" if call.given["p"] == 2 else f"p={call.given['p']}"


def attention(call: Call) -> str:
    """No dropout; a mask of bools or of the element type of the rest; a fixed number of heads where queries are grouped."""
    if call.given["dropout_p"]:
        return "dropout"
    if call.given.get("enable_gqa") and any(not isinstance(tensor.shape[-3], int) for _, tensor in call.tensors()):
        return "grouped queries of a number of heads that varies"
    kinds = {tensor.dtype for name, tensor in call.tensors() if name != "attn_mask"}
    mask = call.tensor("attn_mask")
    if len(kinds) > 1 or (mask is not None and mask.dtype not in (torch.bool, *kinds)):
        return "element types that differ"
    return "a query without a batch dimension" if call.first.dim() < 3 else ""


def encoder_layer(call: Call) -> str:
    """Without a mask."""
    if call.given["mask"] is not None:
        return "a mask"
    return "its input has no batch dimension" if call.first.dim() != 3 else same_dtype(call)


def recurrent(call: Call) -> str:
    """In evaluation mode, batched, weights of fixed sizes; with projection, of a fixed number of steps."""
    given = call.given
    if given["train"]:
        return "training mode"
    if call.first.dim() != 3:
        return "its input has no batch dimension"
    directions = 2 if given["bidirectional"] else 1
    if len(given["params"]) != given["num_layers"] * directions * (4 if given["has_biases"] else 2):
        steps = call.first.shape[1 if given["batch_first"] else 0]
        if not isinstance(steps, int):
            return "a projection, and a number of steps that varies"
    return same_dtype(call)


# -- normalisation and activations -------------------------------------------------------------------------------------------------


def batch_norm(call: Call) -> str:
    """In evaluation mode."""
    if call.given["training"] or call.tensor("running_mean") is None:
        return "training mode"
    return same_dtype(call)


def instance_norm(call: Call) -> str:
    """With the statistics of its input."""
    if not call.given["use_input_stats"] or call.tensor("running_mean") is not None:
        return "running statistics"
    return same_dtype(call)


def prelu(call: Call) -> str:
    """One weight, or one a channel."""
    weight = call.tensor("weight")
    assert weight is not None
    if weight.dim() == 1 and weight.shape[0] != 1 and call.first.dim() < 2:
        return "several weights for a tensor without channels"
    return same_dtype(call)


def softmax(call: Call) -> str:
    """Not of a tensor without dimensions."""
    return "a tensor without dimensions" if call.first.dim() == 0 else ""


def dropout(call: Call) -> str:
    """In evaluation mode."""
    return "training mode" if call.given["train"] else ""


# -- element-wise ------------------------------------------------------------------------------------------------------------------


def arithmetic(call: Call) -> str:
    """No complex numbers."""
    return "a complex number" if any(isinstance(item, complex) for item in call.given.values()) else ""


def clamped(call: Call) -> str:
    """Limits in order, if both are numbers."""
    low, high = call.given.get("min"), call.given.get("max")
    if isinstance(low, (int, float)) and isinstance(high, (int, float)) and not low <= high:
        return f"a lower limit of {low} above the upper one of {high}"
    return arithmetic(call)


def logit(call: Call) -> str:
    """An eps of at most a half."""
    eps = call.given["eps"]
    return f"eps={eps}" if eps is not None and eps > 0.5 else ""


def rounded_division(call: Call) -> str:
    """Of integers, or by a number that is a power of two, as a quotient rounded in float32 may land on the wrong side."""
    if not call.results[0].dtype.is_floating_point or call.given.get("rounding_mode", "") is None:
        return ""
    divisor = call.given["other"]
    if is_number(divisor) and isinstance(divisor, (int, float)) and divisor and abs(math.frexp(divisor)[0]) == 0.5:
        return ""
    return "the remainder of a division that float32 rounds" if "mode" not in call.name else "a quotient that float32 rounds before it is"


def masked_fill(call: Call) -> str:
    """A value of the tensor's kind."""
    value = call.tensor("value")
    if value is not None and value.dtype != call.first.dtype:
        return f"value is {value.dtype}"
    return ""


# -- reductions --------------------------------------------------------------------------------------------------------------------


def variance(call: Call) -> str:
    """More elements than the correction; fixed sizes if the correction is neither 0 nor 1; not along an empty list of dimensions."""
    dims = call.given.get("dim")
    if dims == []:
        return "no dimension"
    correction = call.given.get("correction", 1 if call.given.get("unbiased", True) else 0)
    correction = 1 if correction is None else correction
    if not call.first.dim():
        return "a tensor without dimensions"
    shape = specs.spec_of(call.first).sizes("min")
    counted = [shape[dim] for dim in dims] if dims else shape
    if math.prod(counted) <= correction:
        return f"it may be of {math.prod(counted)} elements with the correction {correction}"
    return fixed_shapes(call) if correction not in (0, 1) else ""


def vector_norm(call: Call) -> str:
    """Of order 1, 2 or infinity, and along named dimensions."""
    order = call.given.get("ord", call.given.get("p", 2))
    if order not in (1, 2, math.inf, -math.inf):
        return f"order {order}"
    if call.given.get("dim") == []:
        return "no dimension"
    if not call.first.dim() or call.given.get("dtype") is not None:
        return "a tensor without dimensions" if not call.first.dim() else "a result of another type"
    return ""


def search(call: Call) -> str:
    """Plain: no sorter, no 32-bit results."""
    if call.given.get("out_int32") or call.given.get("side") is not None or call.given.get("sorter") is not None:
        return "a sorter, a side or 32-bit results"
    return same_dtype(call)


# -- pooling and resampling ----------------------------------------------------------------------------------------------------------


def max_pool(call: Call) -> str:
    """Anything that torch takes."""
    return ""


def avg_pool(call: Call) -> str:
    """No divisor of one's own; not rounded up with padding that counts."""
    if call.given.get("divisor_override") is not None:
        return "divisor_override"
    padding = call.given["padding"]
    is_padded = any(padding) if isinstance(padding, (list, tuple)) else bool(padding)
    if call.given["ceil_mode"] and call.given["count_include_pad"] and is_padded:
        return "ceil_mode with padding that counts"
    return ""


def adaptive_pool(call: Call) -> str:
    """Anything that torch takes."""
    return ""


def upsample(call: Call) -> str:
    """A size or scale factors, not both; where it interpolates with unaligned corners, not to a single pixel in a dimension."""
    scales = [item for name, item in call.given.items() if name in ("scales", "scales_d", "scales_h", "scales_w")]
    if any(scale is not None for scale in scales):
        return "scales beside a size"
    if not call.given.get("align_corners", True):  # the nearest pixel knows no corners
        for before, after in zip(call.first.shape[2:], call.results[0].shape[2:]):
            if least(after) == 1 and before != 1:
                return "to a single pixel"
    return ""


def grid_sampler(call: Call) -> str:
    """In two dimensions; not reflected where it takes the nearest, as halves are rounded otherwise."""
    if call.given["interpolation_mode"] == _NEAREST and call.given["padding_mode"] == _REFLECTED:
        return "the nearest of what is reflected"
    return "" if call.first.dim() == 4 else f"{call.first.dim() - 2} dimensions"


def im2col(call: Call) -> str:
    """Of a batch."""
    return "" if call.first.dim() == 4 else "no batch"


def group_norm(call: Call) -> str:
    """All tensors of one element type; in bfloat16, of images; of sizes that vary, with a dimension behind the channels."""
    if call.first.dim() < 4 and call.first.dtype == torch.bfloat16:
        return f"{call.first.dim()} dimensions in bfloat16"
    if call.first.dim() == 2 and fixed_shapes(call):
        return fixed_shapes(call)
    return same_dtype(call)


def elu(call: Call) -> str:
    """Not scaled."""
    return "" if call.given["scale"] == call.given["input_scale"] == 1 else "a scale"


# -- shapes ------------------------------------------------------------------------------------------------------------------------


def joined(call: Call) -> str:
    """Tensors with dimensions, where they are joined or broadcast."""
    joins = call.name.split(".")[0] in ("cat", "concat", "concatenate", "broadcast_tensors")
    if joins and any(not tensor.dim() for _, tensor in call.tensors()):
        return "a tensor without dimensions"
    return ""


def splitting(call: Call) -> str:
    """Along a dimension of fixed size."""
    if not call.first.dim():
        return "a tensor without dimensions"
    dim = call.given["dim"]
    return "" if isinstance(call.first.shape[dim], int) else f"dimension {dim} varies, and so does the number of parts"


def placed(call: Call) -> str:
    """In steps of one, along a dimension of fixed size."""
    if call.given.get("step", 1) != 1:
        return f"step {call.given['step']}"
    return "" if isinstance(call.first.shape[call.given["dim"]], int) else "a dimension that varies"


def diff(call: Call) -> str:
    """Once, with nothing before or after."""
    if call.given["n"] != 1 or call.given["prepend"] is not None or call.given["append"] is not None:
        return "n, prepend or append"
    return ranked(call)


def pad(call: Call) -> str:
    """Cropping only where it pads with a constant; all round only dimensions behind the channels."""
    sizes = call.given["pad"] if "pad" in call.given else call.given["padding"]
    if call.given.get("mode") == "circular" and call.first.dim() != len(sizes) // 2 + 2:
        return "all round, without a batch and channels"
    is_constant = call.name == "constant_pad_nd.default" or call.given.get("mode") == "constant"
    if not is_constant and min(sizes) < 0:
        return "a negative size"
    return "a tensor without dimensions" if not call.first.dim() else ""


# -- making and converting ---------------------------------------------------------------------------------------------------------


def converted(call: Call) -> str:
    """To uint8, int8 or int16 only from bool and themselves, as OpenVINO does not wrap round; what is beyond int32 becomes its ends."""
    device = call.given.get("device")
    if device is not None and torch.device(device).type != "cpu":
        return f"to {device}"
    source, result = call.first.dtype, call.results[0].dtype
    if result in (torch.uint8, torch.int8, torch.int16) and source not in (result, torch.bool):
        return f"{source} to {result}"
    return ""


def made(call: Call) -> str:
    """On the CPU, dense."""
    device, layout = call.given.get("device"), call.given.get("layout")
    if (device is not None and torch.device(device).type != "cpu") or layout not in (None, torch.strided):
        return f"on {device}, {layout}"
    return ""

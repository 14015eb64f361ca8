"""What each operator needs of half precision: the table that `cast-half` follows.

An operator of aten is in one of five classes, by its name without the overload:

* *compute*: runs in half, whatever comes in. Convolutions and matrix products, in which the time goes; their kernels add up in float32.
* *follow*: runs in the widest type that comes in, and costs no cast of its own. Element-wise arithmetic, pooling, and the
  normalisations whose kernels compute in float32 inside.
* *move*: as *follow*; besides, it gives the same whether its input is rounded before or its output after, so that a cast may pass
  through it. Reshapes, ``cat``, ``max_pool2d``, ``relu``.
* *convert*: an explicit conversion, which gives the dtype it was asked for.
* *keep*: stays in float32. Exponentials, sums of many terms, statistics, losses, coordinates; also every operator that is in no list.

Source: the operator lists of ``torch.autocast`` (https://docs.pytorch.org/docs/stable/amp.html#autocast-op-reference), from which this
differs where the kernel computes in float32 inside and rounds once (softmax, normalisations: *follow*, not *keep*).
"""

from __future__ import annotations

import enum
import fnmatch
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from tiacc import operators
from tiacc.graph import arguments, torch_compat
from tiacc.passes import rewrite


class Kind(enum.Enum):
    """The class of an operator; see above."""

    COMPUTE = "compute"
    FOLLOW = "follow"
    MOVE = "move"
    CONVERT = "convert"
    KEEP = "keep"


@dataclass(frozen=True)
class Policy:
    """What is to be done with a node.

    Attributes:
        kind: Its class.
        reason: Why it is kept in float32; empty for other classes.
    """

    kind: Kind
    reason: str = ""


COMPUTE = """
    _convolution conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d convolution
    addbmm addmm addmv baddbmm bilinear bmm einsum linear matmul mm mv scaled_dot_product_attention tensordot
    _native_multi_head_attention _transformer_encoder_layer_fwd
    gru gru_cell lstm lstm_cell rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell
"""

FOLLOW = """
    add clamp clamp_max clamp_min div divide lerp maximum minimum mul multiply rsub sub subtract true_divide addcmul where
    masked_fill masked_scatter prelu
    celu elu erf gelu glu hardsigmoid hardswish hardtanh leaky_relu mish relu6 selu sigmoid silu tanh threshold
    ceil floor round sign trunc
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d avg_pool1d avg_pool2d avg_pool3d mean
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d max_pool2d_with_indices max_pool3d_with_indices
    batch_norm cudnn_batch_norm _native_batch_norm_legit_no_training native_batch_norm instance_norm
    group_norm native_group_norm layer_norm native_layer_norm rms_norm softmax _softmax
    upsample_bicubic2d upsample_bilinear2d _upsample_bicubic2d_aa _upsample_bilinear2d_aa upsample_linear1d upsample_trilinear3d
    eq ge gt le lt ne isfinite isinf isnan isneginf isposinf
    argmax argmin argsort max min sort topk
    embedding gather index index_copy index_fill index_put index_select narrow narrow_copy select slice take take_along_dim
    scatter select_scatter slice_scatter diagonal_scatter diagonal
"""

MOVE = """
    _unsafe_view adjoint alias atleast_1d atleast_2d atleast_3d broadcast_tensors broadcast_to cat channel_shuffle chunk clone
    column_stack concat concatenate contiguous detach dsplit dstack expand expand_as flatten flip fliplr flipud hsplit hstack
    im2col lift_fresh lift_fresh_copy mT meshgrid moveaxis movedim numpy_T permute pixel_shuffle pixel_unshuffle ravel repeat
    repeat_interleave reshape reshape_as resolve_conj resolve_neg roll rot90 row_stack split split_with_sizes squeeze stack swapaxes
    swapdims t tensor_split tile transpose unbind unflatten unfold unsafe_chunk unsafe_split unsqueeze view view_as vsplit vstack
    constant_pad_nd pad reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
    abs amax amin max_pool1d max_pool2d max_pool3d neg relu tril triu
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d
"""

CONVERT = "_to_copy to type_as"

KEEP = {
    "exponentials, logarithms, powers and roots overflow or lose digits in half precision": """
        acos acosh asin asinh atan atan2 atanh cos cosh erfc erfinv exp exp2 expm1 lgamma log log10 log1p log2 log_sigmoid
        log_softmax _log_softmax logaddexp logaddexp2 logcumsumexp logit logsumexp pow reciprocal rsqrt sin sinc sinh softplus
        sqrt square tan xlogy
    """,
    "a sum of many terms, or of squares, overflows or loses digits in half precision": """
        cdist cosine_similarity cumprod cumsum dist frobenius_norm linalg_matrix_norm linalg_norm linalg_vector_norm norm
        nuclear_norm pairwise_distance pdist prod std std_mean sum nansum trace var var_mean index_add scatter_add scatter_reduce
        dot vdot inner renorm
    """,
    "a loss is a sum of small terms": """
        binary_cross_entropy binary_cross_entropy_with_logits cosine_embedding_loss cross_entropy_loss ctc_loss
        hinge_embedding_loss huber_loss kl_div l1_loss margin_ranking_loss mse_loss multi_margin_loss multilabel_margin_loss
        nll_loss nll_loss2d nll_loss_nd poisson_nll_loss smooth_l1_loss soft_margin_loss triplet_margin_loss
    """,
    "coordinates need more digits than half precision has": """
        affine_grid_generator bucketize fmod floor_divide grid_sampler grid_sampler_2d grid_sampler_3d remainder searchsorted
        arange linspace logspace range frac
    """,
    "its result depends on the limits of the dtype": "nan_to_num",
}
"""The operators that stay in float32, by the reason why."""

POSITION = "it computes where an image is sampled, which needs more digits than half precision has"
"""Why the arithmetic that makes the positions of ``POSITIONS`` stays in float32."""

POSITIONS = {"grid_sampler": "grid", "grid_sampler_2d": "grid", "grid_sampler_3d": "grid"}
"""The operators that sample an image, and the argument that says where: half precision is off by 2^-12 of the width there, and so is
what is sampled by as much of the difference between pixels."""

POSITION_TERMS = 4
"""The number of terms up to which a product is a change of coordinates, homogeneous ones of three dimensions at most."""

SUM_LIMIT = 256
"""The number of terms up to which a ``sum`` may follow its input: that many of up to 255 stay below the largest float16, 65504."""

LOSS = {torch.float16: 2.0**-7, torch.bfloat16: 2.0**-5}
"""How far a constant may be from its rounded self, as the norm of the difference by the norm: some times the rounding error, 2^-11
and 2^-8, which only underflow reaches."""

CAST_ARGUMENTS = {
    "batch_norm": ("input",),
    "cudnn_batch_norm": ("input",),
    "instance_norm": ("input",),
    "_native_batch_norm_legit_no_training": ("input",),
    "native_batch_norm": ("input",),
}
"""The operators of whose floating-point arguments only some are cast; the others are statistics, which their kernels take in float32."""

NO_CPU_KERNEL = frozenset({"_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa", "avg_pool3d"})
"""The operators that have no kernel in half precision on a CPU."""

LOOSE_ARGUMENTS = {"scaled_dot_product_attention": ("attn_mask",)}
"""Arguments that may be float32 where the others are half, and so are not cast where that would change them."""

READ_SHAPE_ONLY = frozenset({"full_like", "new_full", "new_ones", "new_zeros", "ones_like", "zeros_like"})
"""The operators that read of their input no more than shape and dtype."""

_PRODUCTS = {"addmm": "mat1", "baddbmm": "batch1", "bmm": "self", "linear": "input", "matmul": "self", "mm": "self", "mv": "self"}
_OPERAND_TYPES = frozenset({"Tensor", "Optional[Tensor]", "number", "Optional[number]"})
_EXACT_MAKERS = frozenset({"zeros", "ones", "zeros_like", "ones_like", "new_zeros", "new_ones", "eye"})
_EXACT_FILLERS = frozenset({"full", "full_like", "new_full", "scalar_tensor"})
_CHOOSERS = frozenset({"select", "slice", "narrow", "index_select", "index", "gather"})
_EXACT_CHOOSERS = _CHOOSERS | {"where", "masked_fill"}


def _table() -> dict[str, Policy]:
    table = {
        name: Policy(kind)
        for kind, names in (
            (Kind.COMPUTE, COMPUTE),
            (Kind.FOLLOW, FOLLOW),
            (Kind.MOVE, MOVE),
            (Kind.CONVERT, CONVERT),
        )
        for name in names.split()
    }
    for reason, names in KEEP.items():
        table.update((name, Policy(Kind.KEEP, reason)) for name in names.split())
    return table


TABLE: dict[str, Policy] = _table()
"""The policy of each operator of aten by its name without the overload."""


UNKNOWN = Policy(Kind.KEEP, "it has no entry in the table of precisions")
"""The policy of what is not in the table."""


def op_name(node: fx.Node) -> str:
    """Return the name of the operator that a node calls, without namespace and overload: ``"conv2d"``; empty if it calls none."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return ""
    return str(node.target.overloadpacket.__name__)


def matches(node: fx.Node, pattern: str, path: str = "") -> bool:
    """Return whether a pattern of ``keep_fp32`` means a node.

    Args:
        node: A call of an operator.
        pattern: What its operator, its name, its module or one that holds its module is called.
        path: The path of its module, as `tiacc.graph.module_paths` gives it.
    """
    names = [node.name]
    while path:
        names.append(path)
        path = path.rpartition(".")[0]
    if isinstance(node.target, torch._ops.OpOverload):
        full = str(node.target)
        base = full.rpartition(".")[0]
        names += [op_name(node), full, base, full.replace(".", "::", 1), base.replace(".", "::", 1)]
    return any(fnmatch.fnmatchcase(name, pattern) for name in names if name)


def policy_of(node: fx.Node, half: torch.dtype) -> Policy:
    """Return what is to be done with a call of an operator when `half` is the dtype of half precision.

    Beside the table it looks at the arguments: an operator stays in float32 if it is asked for a dtype of its own, if a number among
    its arguments does not fit in `half`, or if it is a sum of more than `SUM_LIMIT` terms.
    """
    name = op_name(node)
    policy = TABLE.get(name, UNKNOWN)
    if not name or node.target.namespace != "aten":  # type: ignore[union-attr]
        told = operators.taught(node.target)
        policy = UNKNOWN if told is None else Policy(Kind(told.precision), "it was taught to stay" if told.precision == "keep" else "")
    if name == "sum" and _terms(node) <= SUM_LIMIT:
        policy = Policy(Kind.FOLLOW)
    if policy.kind in (Kind.KEEP, Kind.CONVERT):
        return policy
    if name in NO_CPU_KERNEL and any(_is_on_cpu(source) for source in node.all_input_nodes):
        return Policy(Kind.KEEP, "it has no kernel in half precision on a CPU")
    bound = arguments.bound(node)
    dtype = bound.get("dtype")
    if dtype is not None:
        return Policy(Kind.KEEP, f"the model asks for {dtype}")
    reasons = [misfit(operand, half) for operand in _operands(node)]
    return next((Policy(Kind.KEEP, reason) for reason in reasons if reason), policy)


def misfit(number: Any, half: torch.dtype) -> str:
    """Return why a number cannot stand in an operator that runs in `half`; an empty string if it can, or is no number."""
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return ""
    if number != number or number in (float("inf"), float("-inf"), 0):
        return ""
    rounded = torch.tensor(float(number), dtype=torch.float64).to(half)
    if not rounded.isfinite():
        return f"{number:g} overflows {_short(half)}"
    if abs(number) < torch.finfo(half).smallest_normal:
        return f"{number:g} is lost in {_short(half)}"
    return ""


def constant_misfit(tensor: torch.Tensor, half: torch.dtype) -> str:
    """Return why a constant cannot be had in half precision, after its name: "overflows float16"; an empty string if it can.

    Args:
        tensor: A float32 constant of any shape.
        half: `torch.float16` or `torch.bfloat16`.
    """
    plain = tensor if rewrite.is_finite(tensor) else tensor[tensor.isfinite()]
    if not plain.numel():
        return ""
    extremes = torch.stack(torch.aminmax(plain))
    largest = float(extremes.abs().max())
    if not rewrite.is_finite(extremes.to(half)):
        return f"overflows {_short(half)}"
    if largest and _may_underflow(plain, largest, half):
        loss = float(((plain.to(half) - plain) / largest).norm() / (plain / largest).norm())
        if loss > LOSS[half]:
            return f"loses {loss:.0%} in {_short(half)}"
    # Numbers such as positions; a mask holds whole numbers too, but only one or two different ones.
    if _is_whole(plain[tuple(slice(0, 3) for _ in plain.shape)]) and _is_whole(plain) and not torch.equal(plain.to(half).float(), plain):
        return f"holds whole numbers that {_short(half)} rounds" if plain.unique().numel() > 2 else ""
    return ""


def _may_underflow(tensor: torch.Tensor, largest: float, half: torch.dtype) -> bool:
    """Return whether small numbers could cost more than `LOSS`: each of n is off by half the smallest step at most."""
    step = torch.finfo(half).smallest_normal * torch.finfo(half).eps
    norm = float(tensor.norm()) if largest < 1e15 else largest
    return bool(tensor.numel() ** 0.5 * step / 2 > norm * (LOSS[half] - torch.finfo(half).eps))


def _is_whole(tensor: torch.Tensor) -> bool:
    return torch.equal(tensor, tensor.round())


def is_exact(node: fx.Node, half: torch.dtype, sources: set[fx.Node]) -> bool:
    """Return whether every number that `node` gives is one of `half`, so that a cast of it changes nothing.

    Args:
        node: A call that gives a float32 tensor.
        half: The dtype of half precision.
        sources: The nodes before it of which that is known.
    """
    name = op_name(node)
    if not name:
        return bool(node.all_input_nodes) and all(source in sources for source in node.all_input_nodes)
    if name in _EXACT_MAKERS:
        return True
    bound = arguments.bound(node)
    if name in _EXACT_FILLERS:
        return _is_number_of(bound.get("fill_value", bound.get("s")), half)
    if TABLE.get(name, Policy(Kind.KEEP)).kind is Kind.CONVERT:
        source = bound["self"].meta["val"]
        return bound["self"] in sources or rewrite.is_lossless(source.dtype, half)
    if name in _EXACT_CHOOSERS or TABLE.get(name, Policy(Kind.KEEP)).kind is Kind.MOVE:
        floats = [source for source in node.all_input_nodes if _is_floating(source)]
        return all(source in sources for source in floats) and all(
            isinstance(operand, fx.Node) or operand is None or _is_number_of(operand, half) for operand in _operands(node)
        )
    return False


def positions_of(node: fx.Node) -> fx.Node | None:
    """Return the positions at which a node samples an image; None for any other node."""
    name = POSITIONS.get(op_name(node))
    return arguments.bound(node)[name] if name else None


def is_arithmetic(node: fx.Node) -> bool:
    """Return whether a node gives new numbers, which it rounds, and not some of those that it reads."""
    name = op_name(node)
    return bool(name) and name not in _CHOOSERS and TABLE.get(name, UNKNOWN).kind in (Kind.COMPUTE, Kind.FOLLOW)


def is_small_product(node: fx.Node) -> bool:
    """Return whether a node is a product of matrices of no more than `POSITION_TERMS` terms."""
    name = op_name(node)
    if name not in _PRODUCTS:
        return False
    terms = arguments.bound(node)[_PRODUCTS[name]].meta["val"].shape[-1]
    return isinstance(terms, int) and terms <= POSITION_TERMS


def _operands(node: fx.Node) -> list[Any]:
    """Return the arguments that are numbers to compute with, or tensors, which may be given as numbers."""
    bound = arguments.bound(node)
    return [
        bound[parameter.name]
        for parameter in torch_compat.parameters(node.target)
        if parameter.type in _OPERAND_TYPES or parameter.name == "value"
    ]


def _is_floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else [value]
    return any(isinstance(item, torch.Tensor) and item.is_floating_point() for item in values)


def _is_on_cpu(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.device.type == "cpu"


def _is_number_of(number: Any, half: torch.dtype) -> bool:
    if not isinstance(number, (int, float)):
        return False
    wide = torch.tensor(float(number), dtype=torch.float64)
    return bool((wide.to(half).to(torch.float64) == wide).all())


def _terms(node: fx.Node) -> float:
    """Return how many numbers each element of a ``sum`` adds up; infinity where that varies."""
    bound = arguments.bound(node)
    shape = bound["self"].meta["val"].shape
    dims = bound.get("dim")
    if isinstance(dims, int):
        dims = [dims]
    terms = 1.0
    for dim in dims if dims else range(len(shape)):
        terms *= shape[dim] if isinstance(shape[dim], int) else float("inf")
    return terms


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

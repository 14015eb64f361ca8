"""What OpenVINO computes as torch does: the operators by area, the element types, and what else must hold.

Every line was held against torch: `tests/backends/test_openvino_operators.py` runs torch's own samples of each operator through it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from tiacc.backends.openvino import bounds, checks, index_checks
from tiacc.backends.openvino.rules import BOOL, EVERYTHING, FLOATS, INTEGERS, NUMBERS, RANK_LIMIT, Check, Rule

_INT64 = frozenset({torch.int64})
_FLOAT32 = frozenset({torch.float32})

HIGH_RANK = 8
"""The most dimensions of a tensor in the operators that cut images into windows: their kernels take it."""


def _rule(
    area: str,
    names: str,
    dtypes: frozenset[torch.dtype],
    check: Check | None = None,
    *,
    results: frozenset[torch.dtype] | None = None,
    computed: Iterable[str] = (),
    limit: int = bounds.EXACT,
    ranks: int = RANK_LIMIT,
) -> Rule:
    note = (check.__doc__ or "") if check else ""
    results = dtypes if results is None else results
    return Rule(area, tuple(names.split()), dtypes, results, frozenset(computed), limit, check, note, ranks)


RULES: tuple[Rule, ...] = (
    # -- convolutions and products -------------------------------------------------------------------------------------------------
    _rule("convolution", "_convolution.default convolution.default", FLOATS, checks.convolution),
    _rule("convolution", "conv1d.default conv2d.default conv3d.default", FLOATS, checks.convolution),
    _rule("convolution", "conv1d.padding conv2d.padding conv3d.padding _convolution_mode.default", FLOATS, checks.convolution),
    _rule("convolution", "conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input", FLOATS, checks.convolution),
    _rule("linear algebra", "linear.default", FLOATS, checks.same_dtype),
    _rule("linear algebra", "matmul.default mm.default bmm.default mv.default dot.default outer.default", FLOATS, checks.same_dtype),
    _rule("linear algebra", "addmm.default baddbmm.default addbmm.default addmv.default addr.default", FLOATS, checks.same_dtype),
    _rule("linear algebra", "einsum.default", FLOATS, checks.einsum),
    _rule("linear algebra", "inner.default", FLOATS, checks.inner),
    _rule("linear algebra", "cross.default linalg_cross.default", FLOATS, checks.cross),
    _rule("linear algebra", "cosine_similarity.default", FLOATS, checks.ranked),
    _rule("linear algebra", "pairwise_distance.default", FLOATS, checks.pairwise_distance),
    _rule("linear algebra", "cdist.default", FLOATS, checks.cdist),
    _rule("attention", "scaled_dot_product_attention.default", FLOATS | BOOL, checks.attention, results=FLOATS),
    _rule("attention", "_transformer_encoder_layer_fwd.default", FLOATS, checks.encoder_layer),
    _rule("recurrent", "lstm.input gru.input rnn_tanh.input rnn_relu.input", FLOATS, checks.recurrent),
    # -- normalisation ---------------------------------------------------------------------------------------------------------------
    _rule("normalisation", "batch_norm.default", FLOATS, checks.batch_norm),
    _rule("normalisation", "layer_norm.default rms_norm.default", FLOATS, checks.same_dtype),
    _rule("normalisation", "group_norm.default", FLOATS, checks.group_norm),
    _rule("normalisation", "instance_norm.default", FLOATS, checks.instance_norm),
    # -- activations -----------------------------------------------------------------------------------------------------------------
    _rule(
        "activation",
        "relu.default relu6.default sigmoid.default tanh.default silu.default gelu.default selu.default celu.default "
        "leaky_relu.default hardswish.default hardsigmoid.default hardtanh.default mish.default softplus.default log_sigmoid.default "
        "threshold.default hardshrink.default softshrink.default",
        FLOATS,
    ),
    _rule("activation", "elu.default", FLOATS, checks.elu),
    _rule("activation", "prelu.default", FLOATS, checks.prelu),
    _rule("activation", "glu.default", FLOATS, checks.ranked),
    _rule("activation", "softmax.int log_softmax.int", FLOATS | INTEGERS, checks.softmax, results=FLOATS),
    _rule("activation", "dropout.default feature_dropout.default alpha_dropout.default", EVERYTHING, checks.dropout),
    # -- element-wise functions ------------------------------------------------------------------------------------------------------
    _rule(
        "element-wise",
        "exp.default expm1.default log.default log2.default log10.default log1p.default sqrt.default rsqrt.default reciprocal.default "
        "sin.default cos.default tan.default asin.default acos.default atan.default sinh.default cosh.default asinh.default "
        "acosh.default atanh.default erf.default erfc.default rad2deg.default deg2rad.default sinc.default",
        FLOATS,
    ),
    _rule("element-wise", "logit.default", FLOATS, checks.logit),
    _rule("element-wise", "abs.default neg.default sign.default", NUMBERS),
    _rule("element-wise", "square.default", FLOATS),
    _rule("element-wise", "floor.default ceil.default round.default trunc.default positive.default", NUMBERS),
    _rule("element-wise", "frac.default round.decimals nan_to_num.default", FLOATS),
    _rule("element-wise", "isnan.default isinf.default isfinite.default isposinf.default isneginf.default", FLOATS, results=BOOL),
    _rule("element-wise", "add.Tensor sub.Tensor rsub.Tensor mul.Tensor", NUMBERS | BOOL, checks.arithmetic, results=NUMBERS,
          ranks=HIGH_RANK),
    _rule("element-wise", "add.Scalar sub.Scalar rsub.Scalar mul.Scalar", NUMBERS | BOOL, checks.arithmetic, results=NUMBERS,
          ranks=HIGH_RANK),
    _rule("element-wise", "div.Tensor div.Scalar atan2.default", NUMBERS | BOOL, checks.arithmetic, results=FLOATS),
    _rule(
        "element-wise",
        "div.Tensor_mode div.Scalar_mode floor_divide.default floor_divide.Scalar remainder.Tensor remainder.Scalar fmod.Tensor "
        "fmod.Scalar",
        NUMBERS,
        checks.rounded_division,
        limit=bounds.FLOATED // 2,
    ),
    _rule("element-wise", "pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar", FLOATS, checks.arithmetic),
    _rule("element-wise", "maximum.default minimum.default max.other min.other", NUMBERS),
    _rule("element-wise", "clamp.default clamp_min.default clamp_max.default", NUMBERS, checks.clamped, limit=bounds.FLOATED),
    _rule("element-wise", "clamp.Tensor clamp_min.Tensor clamp_max.Tensor", NUMBERS, checks.arithmetic, limit=bounds.FLOATED),
    _rule("element-wise", "lerp.Scalar lerp.Tensor addcmul.default addcdiv.default logaddexp.default xlogy.Tensor", FLOATS),
    _rule("comparison", " ".join(f"{name}.Tensor" for name in ("eq", "ne", "lt", "le", "gt", "ge")), NUMBERS | BOOL, results=BOOL,
          limit=bounds.FLOATED),
    _rule("comparison", " ".join(f"{name}.Scalar" for name in ("eq", "ne", "lt", "le", "gt", "ge")), NUMBERS | BOOL, results=BOOL,
          limit=bounds.FLOATED),
    _rule("logical", "logical_and.default logical_or.default logical_xor.default logical_not.default", NUMBERS | BOOL, results=BOOL,
          limit=bounds.FLOATED),
    _rule("logical", "bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor bitwise_not.default", INTEGERS | BOOL, checks.same_dtype),
    _rule("logical", "__and__.Tensor __or__.Tensor __xor__.Tensor", INTEGERS | BOOL, checks.same_dtype),
    _rule("selection", "where.self", EVERYTHING),
    _rule("selection", "where.ScalarSelf where.ScalarOther where.Scalar", NUMBERS | BOOL),
    _rule("selection", "masked_fill.Scalar masked_fill.Tensor", NUMBERS | BOOL, checks.masked_fill),
    # -- reductions ------------------------------------------------------------------------------------------------------------------
    _rule("reduction", "sum.default sum.dim_IntList", NUMBERS | BOOL, checks.ranked, results=NUMBERS, limit=bounds.FLOATED),
    _rule("reduction", "mean.default mean.dim", FLOATS, checks.ranked),
    _rule("reduction", "prod.default prod.dim_int", FLOATS, checks.ranked),
    _rule("reduction", "amax.default amin.default max.default min.default", NUMBERS, checks.ranked, limit=bounds.FLOATED),
    _rule("reduction", "max.dim min.dim", NUMBERS, checks.ranked, limit=bounds.FLOATED),
    _rule("reduction", "argmax.default argmin.default", NUMBERS, checks.ranked, results=_INT64, limit=bounds.FLOATED),
    _rule("reduction", "any.default all.default any.dim all.dim any.dims all.dims", NUMBERS | BOOL, checks.reduced, results=BOOL,
          limit=bounds.FLOATED),
    _rule("reduction", "count_nonzero.default count_nonzero.dim_IntList", NUMBERS | BOOL, checks.ranked, results=_INT64,
          limit=bounds.FLOATED),
    _rule("reduction", "var.default var.dim var.correction std.default std.dim std.correction", FLOATS, checks.variance),
    _rule("reduction", "var_mean.default var_mean.dim var_mean.correction std_mean.default std_mean.dim std_mean.correction", FLOATS,
          checks.variance),
    _rule("reduction", "logsumexp.default", FLOATS, checks.reduced),
    _rule("reduction", "linalg_vector_norm.default", FLOATS, checks.vector_norm),
    _rule("reduction", "norm.ScalarOpt_dim norm.Scalar frobenius_norm.dim", FLOATS, checks.vector_norm),
    _rule("reduction", "cumsum.default", NUMBERS | BOOL, checks.ranked, results=NUMBERS),
    # -- sorting ---------------------------------------------------------------------------------------------------------------------
    _rule("sorting", "topk.default sort.default sort.stable", NUMBERS, checks.ranked, limit=bounds.FLOATED),
    _rule("sorting", "argsort.default argsort.stable", NUMBERS, checks.ranked, results=_INT64, limit=bounds.FLOATED),
    _rule("sorting", "bucketize.Tensor searchsorted.Tensor", NUMBERS, checks.search, results=_INT64, limit=bounds.FLOATED),
    # -- pooling and resampling --------------------------------------------------------------------------------------------------------
    _rule("pooling", "max_pool1d.default max_pool2d.default max_pool3d.default", FLOATS, checks.max_pool),
    _rule("pooling", "avg_pool1d.default avg_pool2d.default avg_pool3d.default", FLOATS, checks.avg_pool),
    _rule("pooling", "adaptive_avg_pool1d.default adaptive_avg_pool2d.default adaptive_avg_pool3d.default", FLOATS, checks.adaptive_pool),
    _rule("pooling", "adaptive_max_pool1d.default adaptive_max_pool2d.default adaptive_max_pool3d.default", FLOATS | _INT64,
          checks.adaptive_pool),
    _rule("pooling", "max_pool1d_with_indices.default max_pool2d_with_indices.default max_pool3d_with_indices.default",
          FLOATS - {torch.bfloat16}, checks.max_pool, results=FLOATS | _INT64),
    _rule(
        "resampling",
        "upsample_nearest1d.vec upsample_nearest2d.vec upsample_nearest3d.vec upsample_linear1d.vec upsample_bilinear2d.vec "
        "upsample_trilinear3d.vec upsample_bicubic2d.vec",
        FLOATS,
        checks.upsample,
        computed=["output_size"],
    ),
    _rule(
        "resampling",
        "upsample_nearest1d.default upsample_nearest2d.default upsample_nearest3d.default upsample_linear1d.default "
        "upsample_bilinear2d.default upsample_trilinear3d.default upsample_bicubic2d.default",
        FLOATS,
        checks.upsample,
        computed=["output_size"],
    ),
    _rule("resampling", "_upsample_nearest_exact1d.vec _upsample_nearest_exact2d.vec _upsample_nearest_exact3d.vec", FLOATS,
          checks.fixed_shapes),
    _rule("resampling", "grid_sampler.default grid_sampler_2d.default", _FLOAT32, checks.grid_sampler),
    _rule("resampling", "pixel_shuffle.default pixel_unshuffle.default channel_shuffle.default", EVERYTHING),
    _rule("resampling", "im2col.default", FLOATS, checks.im2col),
    _rule("resampling", "col2im.default", FLOATS, index_checks.col2im),
    # -- shapes ------------------------------------------------------------------------------------------------------------------------
    _rule("shape", "view.default", EVERYTHING, computed=["size"], ranks=HIGH_RANK),
    _rule("shape", "reshape.default", EVERYTHING, computed=["shape"], ranks=HIGH_RANK),
    _rule("shape", "view_as.default reshape_as.default flatten.using_ints ravel.default", EVERYTHING, ranks=HIGH_RANK),
    _rule("shape", "expand_as.default", EVERYTHING),
    _rule("shape", "unflatten.int", EVERYTHING, computed=["sizes"], ranks=HIGH_RANK),
    _rule("shape", "squeeze.default", EVERYTHING, checks.fixed_rank),
    _rule("shape", "squeeze.dim squeeze.dims unsqueeze.default", EVERYTHING, checks.squeezed, ranks=HIGH_RANK),
    _rule("shape", "permute.default transpose.int", EVERYTHING, checks.ranked, ranks=HIGH_RANK),
    _rule("shape", "t.default numpy_T.default mT.default mH.default adjoint.default", EVERYTHING, checks.ranked),
    _rule("shape", "movedim.intlist movedim.int swapaxes.default swapdims.default", EVERYTHING, checks.ranked),
    _rule("shape", "expand.default broadcast_to.default", EVERYTHING, computed=["size"]),
    _rule("shape", "repeat.default tile.default", EVERYTHING, computed=["repeats", "dims"]),
    _rule("shape", "repeat_interleave.self_int", EVERYTHING, checks.ranked),
    _rule("shape", "cat.default concat.default concatenate.default stack.default", EVERYTHING, checks.joined),
    _rule("shape", "hstack.default vstack.default dstack.default column_stack.default", EVERYTHING, checks.joined),
    _rule("shape", "split.Tensor split.sizes split_with_sizes.default chunk.default unbind.int unsafe_chunk.default", EVERYTHING,
          checks.splitting),
    _rule("shape", "unsafe_split.Tensor tensor_split.sections tensor_split.indices", EVERYTHING, checks.splitting),
    _rule("shape", "slice.Tensor", EVERYTHING, checks.ranked, computed=["start", "end"]),
    _rule("shape", "select.int", EVERYTHING, checks.ranked, computed=["index"]),
    _rule("shape", "narrow.default", EVERYTHING, checks.narrowed, computed=["start", "length"]),
    _rule("shape", "select_scatter.default slice_scatter.default", EVERYTHING, checks.placed),
    _rule("shape", "diff.default", NUMBERS, checks.diff),
    _rule("shape", "flip.default fliplr.default flipud.default roll.default rot90.default", EVERYTHING, checks.ranked),
    _rule("shape", "tril.default triu.default", NUMBERS | BOOL),
    _rule("shape", "unfold.default", EVERYTHING, checks.ranked),
    _rule("shape", "atleast_1d.default atleast_2d.default atleast_3d.default", EVERYTHING),
    _rule("shape", "meshgrid.default meshgrid.indexing broadcast_tensors.default", EVERYTHING, checks.joined),
    _rule("padding", "constant_pad_nd.default pad.default", NUMBERS | BOOL, checks.pad),
    _rule("padding", "reflection_pad1d.default reflection_pad2d.default reflection_pad3d.default", FLOATS, checks.pad),
    _rule("padding", "replication_pad1d.default replication_pad2d.default replication_pad3d.default", FLOATS, checks.pad),
    # -- indexing ----------------------------------------------------------------------------------------------------------------------
    _rule("indexing", "embedding.default", FLOATS),
    _rule("indexing", "index_select.default gather.default take_along_dim.default", NUMBERS | BOOL, index_checks.gathered),
    _rule("indexing", "index.Tensor", NUMBERS | BOOL, index_checks.indexed),
    _rule("indexing", "index_put.default", NUMBERS, index_checks.index_put),
    _rule("indexing", "as_strided.default", NUMBERS | BOOL, index_checks.strided),
    _rule("indexing", "scatter.src scatter.value scatter_add.default index_add.default", FLOATS, checks.ranked),
    _rule("indexing", "one_hot.default", INTEGERS, index_checks.one_hot),
    # -- making and converting ---------------------------------------------------------------------------------------------------------
    _rule("conversion", "to.dtype to.device to.other to.dtype_layout type_as.default _to_copy.default", EVERYTHING, checks.converted),
    _rule("conversion", "clone.default contiguous.default detach.default alias.default lift_fresh.default lift_fresh_copy.default",
          EVERYTHING),
    _rule("conversion", "resolve_conj.default resolve_neg.default", EVERYTHING),
    _rule("making", "zeros.default ones.default", NUMBERS | BOOL, checks.made, computed=["size"]),
    _rule("making", "full.default", NUMBERS | BOOL, checks.made, computed=["size"]),
    _rule("making", "zeros_like.default ones_like.default full_like.default", NUMBERS | BOOL, checks.made),
    _rule("making", "new_zeros.default new_ones.default new_full.default", NUMBERS | BOOL, checks.made, computed=["size"]),
    _rule("making", "empty.memory_format new_empty.default", NUMBERS | BOOL, checks.made, computed=["size"]),
    _rule("making", "empty_like.default fill.Scalar fill.Tensor", NUMBERS | BOOL, checks.made),
    _rule("making", "arange.default arange.start arange.start_step", NUMBERS, checks.made, computed=["start", "end"]),
    _rule("making", "scalar_tensor.default", NUMBERS | BOOL, checks.made),
)
"""Every rule, in the order of the support matrix."""

TABLE: dict[str, Rule] = {name: rule for rule in RULES for name in rule.names}
"""The rule of each operator."""

"""The models of ONNX's corpus on which the interpreter and ONNX differ, each with its cause, and the causes with their proof.

No cause is in the interpreter: it evaluates the network that NVIDIA's parser made, and either that network is not the model (the parser
of TensorRT-RTX 1.7.1 ignores some attributes and inputs, and says nothing), or TensorRT's layer is not ONNX's operator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.backends.tensorrt.onnx_corpus import Case, to_tensor, values_of

Proof = Callable[[Case, list[Tensor]], bool]


@dataclass(frozen=True)
class Cause:
    """Why a model and its network differ.

    Attributes:
        text: What is different.
        explains: Whether it accounts for the interpreter's outputs of a case to the last element.
    """

    text: str
    explains: Proof


def _is_close(have: Tensor, want: Tensor, tolerance: float = 1e-5) -> bool:
    same = have.shape == want.shape
    return same and torch.allclose(have.to(torch.float64), want.to(torch.float64), tolerance, tolerance, equal_nan=True)


def _as_if(change: Callable[[Case, Any], None]) -> Proof:
    """Prove that the network is the changed model: ONNX's own reference evaluates that to what the interpreter gives."""

    def explains(case: Case, have: list[Tensor]) -> bool:
        from onnx import ModelProto, TensorProto, numpy_helper
        from onnx.reference import ReferenceEvaluator

        model = ModelProto.FromString(case.model.SerializeToString())
        change(case, model)
        wanted = {value.name for value in model.graph.input}
        feeds = {
            name: numpy_helper.to_array(value) if isinstance(value, TensorProto) else value
            for name, value in values_of(case).items()
            if name in wanted
        }
        results = ReferenceEvaluator(model).run(None, feeds)
        return all(_is_close(one, to_tensor(other)) for one, other in zip(have, results, strict=True))

    return explains


def _with_attributes(**values: Any) -> Callable[[Case, Any], None]:
    """Set attributes of the model's first node, or remove those that are None."""

    def change(case: Case, model: Any) -> None:
        from onnx import helper

        node = model.graph.node[0]
        kept = [attribute for attribute in node.attribute if attribute.name not in values]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.attribute.extend(helper.make_attribute(name, value) for name, value in values.items() if value is not None)

    return change


def _without_input(place: int) -> Callable[[Case, Any], None]:
    def change(case: Case, model: Any) -> None:
        _remove_input(model, model.graph.node[0].input[place])
        model.graph.node[0].input[place] = ""

    return change


def _remove_input(model: Any, name: str) -> None:
    kept = [value for value in model.graph.input if value.name != name]
    del model.graph.input[:]
    model.graph.input.extend(kept)


def _sizes_for_scales(case: Case, model: Any) -> None:
    from onnx import numpy_helper

    sizes = np.floor(np.array(case.inputs[0].shape) * case.inputs[1]).astype(np.int64)
    node = model.graph.node[0]
    _remove_input(model, node.input[2])
    node.input[2] = ""
    node.input.append("sizes")
    model.graph.initializer.append(numpy_helper.from_array(sizes, "sizes"))


def _begins_with_expected(case: Case, have: list[Tensor]) -> bool:
    want = to_tensor(case.outputs[0])
    kept = have[0][tuple(slice(0, size) for size in want.shape)]
    return have[0].shape != want.shape and _is_close(kept, want, case.rtol)  # which has four digits


def _has_expected_rows(case: Case, have: list[Tensor]) -> bool:
    return sorted(have[0].tolist()) == sorted(case.outputs[0].tolist())


def _is_int8(case: Case, have: list[Tensor]) -> bool:
    x, scale, zero = (to_tensor(value) for value in case.inputs)
    by_channel = [-1 if axis == 1 and scale.dim() else 1 for axis in range(x.dim())]
    levels = torch.round(x / scale.reshape(by_channel)) + zero.reshape(by_channel)
    return torch.equal(have[0], levels.clamp(-128, 127).to(torch.int8))


def _is_expected_within_float32(case: Case, have: list[Tensor]) -> bool:
    want = to_tensor(case.outputs[0])
    return float((have[0] - want).abs().max()) < 3e-7 * float(want.abs().max())


def _is_zero_or_one(case: Case, have: list[Tensor]) -> bool:
    return bool(((have[0] == 0) | (have[0] == 1)).all())


def _is_lower_bound(case: Case, have: list[Tensor]) -> bool:
    x, low, high = (to_tensor(value) for value in case.inputs)
    return bool(low > high) and torch.equal(have[0], torch.maximum(low, torch.minimum(high, x)))


TRILU = Cause("parser: a Trilu without `upper` becomes a lower triangle, not an upper one", _as_if(_with_attributes(upper=0)))
LAYOUT = Cause("parser: ignores `layout` of RNN, GRU and LSTM", _as_if(_with_attributes(layout=0)))
SATURATE = Cause("parser: ignores `saturate=0` of Cast to FP8", _as_if(_with_attributes(saturate=1)))
CRD = Cause("parser: ignores `mode=CRD` of SpaceToDepth", _as_if(_with_attributes(mode="DCR")))
NO_WINDOW = _with_attributes(left_window_size=None, right_window_size=None)
WINDOW = Cause("parser: ignores the window of Attention", _as_if(NO_WINDOW))
NONPAD = Cause("parser: ignores the input nonpad_kv_seqlen of Attention", _as_if(_without_input(6)))
UINT8 = Cause("parser: makes QuantizeLinear to uint8 an INT8 layer", _is_int8)
STFT = Cause("parser: stores the Fourier matrix of STFT in float32, beyond the tolerance near 0", _is_expected_within_float32)
CEIL = Cause("TensorRT: rounding up keeps a pooling window that begins in the padding; ONNX drops it", _begins_with_expected)
ALIGN = Cause("TensorRT: aligned corners follow the sizes; ONNX's the scale, here not their ratio", _as_if(_sizes_for_scales))
NMS = Cause("TensorRT: rows of NMS are sorted by score within a batch; ONNX's by class first", _has_expected_rows)
CLIP = Cause("TensorRT: CLIP gives the lower bound where it is above the upper one; ONNX's gives the upper", _is_lower_bound)
RANDOM = Cause("random: Bernoulli's values depend on the generator", _is_zero_or_one)

DISAGREEMENTS: dict[str, Cause] = {
    "test_attention_4d_causal_nonpad_batch_prefill": NONPAD,
    "test_attention_4d_causal_nonpad_continued_prefill": NONPAD,
    "test_attention_4d_causal_nonpad_negative_offset_structural_empty": NONPAD,
    "test_attention_4d_gqa_causal_nonpad_decode": NONPAD,
    "test_attention_4d_gqa_causal_nonpad_decode_fp16": NONPAD,
    "test_attention_bidirectional_window": WINDOW,
    "test_attention_local_window": WINDOW,
    "test_averagepool_2d_ceil_last_window_starts_on_pad": CEIL,
    "test_bernoulli_double_expanded": RANDOM,
    "test_bernoulli_seed_expanded": RANDOM,
    "test_cast_no_saturate_FLOAT16_to_FLOAT8E4M3FN": SATURATE,
    "test_cast_no_saturate_FLOAT_to_FLOAT8E4M3FN": SATURATE,
    "test_castlike_no_saturate_FLOAT16_to_FLOAT8E4M3FN": SATURATE,
    "test_castlike_no_saturate_FLOAT16_to_FLOAT8E4M3FN_expanded": SATURATE,
    "test_castlike_no_saturate_FLOAT_to_FLOAT8E4M3FN": SATURATE,
    "test_castlike_no_saturate_FLOAT_to_FLOAT8E4M3FN_expanded": SATURATE,
    "test_clip_min_greater_than_max": CLIP,
    "test_gru_batchwise": LAYOUT,
    "test_lstm_batchwise": LAYOUT,
    "test_maxpool_2d_ceil_output_size_reduce_by_one": CEIL,
    "test_nonmaxsuppression_two_classes": NMS,
    "test_quantizelinear": UINT8,
    "test_quantizelinear_axis": UINT8,
    "test_resize_downsample_scales_cubic_align_corners": ALIGN,
    "test_resize_downsample_scales_linear_align_corners": ALIGN,
    "test_simple_rnn_batchwise": LAYOUT,
    "test_spacetodepth_crd_mode_example": CRD,
    "test_stft": STFT,
    "test_stft_with_window": STFT,
    "test_triu": TRILU,
    "test_triu_neg": TRILU,
    "test_triu_one_row": TRILU,
    "test_triu_out_neg_out": TRILU,
    "test_triu_out_pos": TRILU,
    "test_triu_pos": TRILU,
    "test_triu_square": TRILU,
    "test_triu_square_neg": TRILU,
}

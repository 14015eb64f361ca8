"""Layers between floating and quantised values. They compute in float32, or in the wider type of a float64 evaluation."""

from __future__ import annotations

import torch
from torch import Tensor

from tiacc.backends.tensorrt.interpreter.dtypes import FP4_VALUES, round_to_fp4
from tiacc.backends.tensorrt.interpreter.errors import InterpretationError
from tiacc.backends.tensorrt.interpreter.layers import LayerCall, evaluates, normal_axis

_INTEGER_RANGES = {"INT8": (-128, 127), "UINT8": (0, 255), "INT4": (-8, 7)}


@evaluates("QUANTIZE", arithmetic=False)
def quantize(call: LayerCall) -> Tensor:
    """Evaluate IQuantizeLayer: ``clamp(round(x / scale) + zero_point)``, ties to even; FP8 and FP4 round to their grid."""
    x = _as_float(call.input(0))
    scaled = x / _spread(call, x, call.input(1))
    name = call.layer.get_output(0).dtype.name
    if name == "FP8":
        return _to_fp8(scaled)
    if name == "FP4":
        return round_to_fp4(scaled)
    if name not in _INTEGER_RANGES:
        raise call.unsupported(f"quantisation to {name}")
    zero_point = call.optional(2)
    rounded = torch.round(scaled)
    if zero_point is not None:
        rounded = rounded + _spread(call, x, zero_point)
    return rounded.clamp(*_INTEGER_RANGES[name]).to(call.output_dtype)


@evaluates("DEQUANTIZE", arithmetic=False)
def dequantize(call: LayerCall) -> Tensor:
    """Evaluate IDequantizeLayer: ``(x - zero_point) * scale``."""
    x = _as_float(call.input(0))
    zero_point = call.optional(2)
    if zero_point is not None:
        x = x - _spread(call, x, zero_point)
    return (x * _spread(call, x, call.input(1))).to(call.output_dtype)


@evaluates("DYNAMIC_QUANTIZE", arithmetic=False)
def dynamic_quantize(call: LayerCall) -> list[Tensor]:
    """Evaluate IDynamicQuantizeLayer: a scale for each block, then the values in units of it.

    A block's scale is its largest magnitude over the largest number of the output type: in FP8, and in units of the
    second input, for FP4 values; rounded up to a power of two (E8M0) for FP8 values. Source: the block-scale-quantize
    operation of NVIDIA's cuDNN documentation; how a TensorRT kernel rounds the scale of an FP4 block is not documented,
    nearest is taken here.
    """
    x, layer = _as_float(call.input(0)), call.layer
    if len(getattr(layer, "block_shape", ())):  # which older releases do not have
        raise call.unsupported("blocks of more than one dimension")
    axis = normal_axis(layer.axis, x.dim())
    blocks = x.unflatten(axis, (-1, layer.block_size))
    largest = blocks.abs().amax(axis + 1, keepdim=True)
    target, scale_type = layer.to_type.name, layer.scale_type.name
    if (target, scale_type) == ("FP4", "FP8"):
        unit = _as_float(call.input(1))
        stored = _to_fp8(largest / FP4_VALUES[-1] / unit)
        scale = stored.to(x.dtype) * unit
        quantized = round_to_fp4(torch.where(scale > 0, blocks / scale, torch.zeros_like(blocks)))
    elif (target, scale_type) == ("FP8", "E8M0"):
        exponent = torch.ceil(torch.log2(largest / torch.finfo(torch.float8_e4m3fn).max)).clamp(-127, 127)
        scale = torch.exp2(exponent)
        stored = scale.to(torch.float32).to(torch.float8_e8m0fnu)
        quantized = _to_fp8(blocks / scale)
    else:
        raise call.unsupported(f"dynamic quantisation to {target} with scales in {scale_type}")
    return [quantized.flatten(axis, axis + 1), stored.squeeze(axis + 1)]


def _as_float(value: Tensor) -> Tensor:
    return value if value.dtype in (torch.float32, torch.float64) else value.to(torch.float32)


def _to_fp8(value: Tensor) -> Tensor:
    top = torch.finfo(torch.float8_e4m3fn).max
    return value.to(torch.float32).clamp(-top, top).to(torch.float8_e4m3fn)


def _spread(call: LayerCall, x: Tensor, scale: Tensor) -> Tensor:
    """Return scales or zero points so that they broadcast over the values: one in all, one a channel or one a block."""
    scale = _as_float(scale)
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.dim() == 1 and x.dim() != 1:
        axis = normal_axis(call.layer.axis, x.dim())
        return scale.reshape([-1 if d == axis else 1 for d in range(x.dim())])
    if scale.dim() != x.dim():
        raise InterpretationError(f"scales {tuple(scale.shape)} do not fit values {tuple(x.shape)}")
    for axis, (size, blocks) in enumerate(zip(x.shape, scale.shape, strict=True)):
        if blocks not in (1, size):
            scale = scale.repeat_interleave(-(-size // blocks), axis).narrow(axis, 0, size)
    return scale

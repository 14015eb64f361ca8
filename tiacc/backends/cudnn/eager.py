"""Steps computed by torch: the oracle of the kernels, and what runs a step that has no kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tiacc.backends.cudnn.body import evaluate
from tiacc.backends.cudnn.program import AttentionStep, ConvStep, PointwiseStep, PoolStep, ReduceStep, Ref, RowStep, Step, TorchStep

Read = Callable[[Ref], torch.Tensor]
"""Gives the tensor of a ref."""


def compute(step: Step, read: Read) -> None:
    """Compute a step with torch, into its place."""
    if isinstance(step, TorchStep):
        _call(step, read)
        return
    out = read(step.out)
    if isinstance(step, AttentionStep):
        out.copy_(_attended(step, read))
    elif isinstance(step, PointwiseStep):
        out.copy_(evaluate(step.body, [read(ref) for ref in step.operands]))
    else:
        out.copy_(evaluate(step.body, [anchor_value(step, read), *(read(ref) for ref in step.operands)]))


def anchor_value(step: ConvStep | PoolStep | ReduceStep | RowStep, read: Read) -> torch.Tensor:
    """Return what a step computes before its element-wise work."""
    if isinstance(step, ConvStep):
        value = convolution(step, read(step.x), read(step.weight))
        if step.addend is None:
            return value
        added = torch.nn.functional.conv2d(read(step.addend.x), read(step.addend.weight), None, step.addend.stride)
        return value.float() + added.float()
    if isinstance(step, PoolStep):
        return _pooled(step, read(step.x))
    value = evaluate(step.prologue, [read(ref) for ref in step.inputs])
    if isinstance(step, ReduceStep):
        return _reduced(step, value)
    if step.kind == "softmax":
        return torch.softmax(value, step.dims[0])
    if step.kind == "log_softmax":
        return torch.log_softmax(value, step.dims[0])
    centred = value - value.mean(step.dims, keepdim=True)
    return centred * (centred.square().mean(step.dims, keepdim=True) + step.eps).rsqrt()


def convolution(step: ConvStep, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the result of a convolution in the type of its input."""
    if not step.transposed:
        found = torch.nn.functional.conv2d(x, weight, None, step.stride, step.padding, step.dilation, step.groups)
        return found[:, :, : step.out.shape[2], : step.out.shape[3]]
    size = [
        (x.shape[2 + dim] - 1) * step.stride[dim] - 2 * step.padding[dim] + step.dilation[dim] * (weight.shape[2 + dim] - 1) + 1
        for dim in (0, 1)
    ]
    extra = (step.out.shape[2] - size[0], step.out.shape[3] - size[1])
    return torch.nn.functional.conv_transpose2d(x, weight, None, step.stride, step.padding, extra, step.groups, step.dilation)


def _attended(step: AttentionStep, read: Read) -> torch.Tensor:
    q, k, v = read(step.q), read(step.k), read(step.v)
    mask = None if step.mask is None else read(step.mask)
    if mask is not None and mask.is_floating_point():
        mask = mask.to(q.dtype)
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, mask, 0.0, step.is_causal, scale=step.scale, enable_gqa=k.shape[1] != q.shape[1]
    )


def _pooled(step: PoolStep, x: torch.Tensor) -> torch.Tensor:
    x = x.float()
    ceil = step.out.shape[2:] != tuple(
        (x.shape[2 + dim] + 2 * step.padding[dim] - step.dilation[dim] * (step.kernel[dim] - 1) - 1) // step.stride[dim] + 1
        for dim in (0, 1)
    )
    if step.kind == "max":
        return torch.nn.functional.max_pool2d(x, step.kernel, step.stride, step.padding, step.dilation, ceil)
    override = step.divisor if isinstance(step.divisor, int) else None
    return torch.nn.functional.avg_pool2d(x, step.kernel, step.stride, step.padding, ceil, step.divisor == "window", override)


def _reduced(step: ReduceStep, value: torch.Tensor) -> torch.Tensor:
    if step.kind == "max":
        return value.amax(step.dims, keepdim=True)
    if step.kind == "min":
        return value.amin(step.dims, keepdim=True)
    return value.mean(step.dims, keepdim=True) if step.kind == "mean" else value.sum(step.dims, keepdim=True)


def _call(step: TorchStep, read: Read) -> None:
    device = read(step.outs[0]).device

    def place(arg: Any) -> Any:
        if isinstance(arg, Ref):
            return read(arg)
        if isinstance(arg, torch.device):
            return device
        if isinstance(arg, (list, tuple)):
            return [place(item) for item in arg]
        return arg

    results = step.target(*place(step.args), **{key: place(arg) for key, arg in step.kwargs.items()})
    for out, result in zip(step.outs, results if isinstance(results, (list, tuple)) else [results]):
        read(out).copy_(result)

"""Layers that find, pick and place elements by index: gather, scatter, top-k, non-zero, one-hot, reversal, boxes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tiacc.backends.tensorrt.interpreter.errors import InterpretationError
from tiacc.backends.tensorrt.interpreter.layers import LayerCall, axes_of_mask, evaluates, normal_axis


def _wrapped(indices: Tensor, extent: int | Tensor) -> Tensor:
    """Return indices with the negative ones counted from the end.

    Raises:
        InterpretationError: One is out of range, where TensorRT's result is undefined.
    """
    indices = indices.to(torch.int64)
    wrapped = torch.where(indices < 0, indices + extent, indices)
    if bool(((wrapped < 0) | (wrapped >= extent)).any()):
        raise InterpretationError(f"an index between {indices.min()} and {indices.max()} is out of range for size {extent}")
    return wrapped


@evaluates("GATHER", arithmetic=False)
def gather(call: LayerCall) -> Tensor:
    """Evaluate IGatherLayer in its modes DEFAULT, ELEMENT and ND, each like the ONNX operator it is named after."""
    x, indices, layer = call.input(0), call.input(1), call.layer
    mode, batch = layer.mode.name, layer.num_elementwise_dims
    if mode == "ELEMENT":
        axis = normal_axis(layer.axis, x.dim())
        return torch.gather(x, axis, _wrapped(indices, x.shape[axis]))
    if mode == "ND":
        return _gather_nd(x, indices, batch)
    axis = normal_axis(layer.axis, x.dim())
    indices = _wrapped(indices, x.shape[axis])
    if not batch:
        return x.index_select(axis, indices.reshape(-1)).reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])
    rows = math.prod(x.shape[:batch])
    parts = zip(x.reshape(rows, *x.shape[batch:]), indices.reshape(rows, *indices.shape[batch:]), strict=True)
    picked = [part.index_select(axis - batch, index.reshape(-1)) for part, index in parts]
    return torch.stack(picked).reshape(x.shape[:axis] + indices.shape[batch:] + x.shape[axis + 1 :])


def _gather_nd(x: Tensor, indices: Tensor, batch: int) -> Tensor:
    """Pick slices by tuples of indices, the last axis of `indices`, after `batch` axes that both have."""
    depth = indices.shape[-1]
    rows = math.prod(x.shape[:batch])
    tuples = _wrapped(indices, torch.tensor(x.shape[batch : batch + depth], dtype=torch.int64)).reshape(rows, -1, depth)
    places = (torch.arange(rows).unsqueeze(1), *tuples.unbind(-1))
    picked = x.flatten(0, batch - 1)[places] if batch else x.unsqueeze(0)[places]
    return picked.reshape(indices.shape[:-1] + x.shape[batch + depth :])


@evaluates("SCATTER", arithmetic=False)
def scatter(call: LayerCall) -> Tensor:
    """Evaluate IScatterLayer; of several updates of one element the last counts, where TensorRT leaves it undefined."""
    x, indices, updates = call.input(0), call.input(1), call.input(2)
    if call.layer.mode.name == "ELEMENT":
        axis = normal_axis(call.layer.axis, x.dim())
        return x.scatter(axis, _wrapped(indices, x.shape[axis]), updates)
    depth = indices.shape[-1]
    tuples = _wrapped(indices, torch.tensor(x.shape[:depth], dtype=torch.int64)).reshape(-1, depth)
    result = x.clone()
    result[tuples.unbind(-1)] = updates.reshape(-1, *x.shape[depth:])
    return result


@evaluates("ONE_HOT", arithmetic=False)
def one_hot(call: LayerCall) -> Tensor:
    """Evaluate IOneHotLayer; an index outside the depth gives no hot element, a negative one counts from the end."""
    indices, values, depth = call.input(0).to(torch.int64), call.input(1), int(call.input(2))
    rank = indices.dim() + 1
    axis = normal_axis(call.layer.axis, rank)
    classes = torch.arange(depth).reshape([depth if d == axis else 1 for d in range(rank)])
    index = indices.unsqueeze(axis)
    return torch.where(torch.where(index < 0, index + depth, index) == classes, values[1], values[0])


@evaluates("NON_ZERO", arithmetic=False)
def non_zero(call: LayerCall) -> Tensor:
    """Evaluate INonZeroLayer: one column for each non-zero element, in lexical order."""
    return torch.nonzero(call.input()).T.contiguous().to(call.output_dtype)


@evaluates("TOPK", arithmetic=False)
def top_k(call: LayerCall) -> list[Tensor]:
    """Evaluate ITopKLayer; of equal elements the first comes first."""
    x, layer = call.input(0), call.layer
    axes = axes_of_mask(layer.axes, x.dim())
    if len(axes) != 1:
        raise call.unsupported(f"top-k over {len(axes)} axes")
    count = call.optional(1)
    k = layer.k if count is None else int(count)
    if k > x.shape[axes[0]]:
        raise InterpretationError(f"the top {k} of axis {axes[0]} of {tuple(x.shape)}")
    values, places = torch.sort(x, dim=axes[0], descending=layer.op.name == "MAX", stable=True)
    return [values.narrow(axes[0], 0, k), places.narrow(axes[0], 0, k).to(call.output_dtypes[1] or torch.int32)]


@evaluates("REVERSE_SEQUENCE", arithmetic=False)
def reverse_sequence(call: LayerCall) -> Tensor:
    """Evaluate IReverseSequenceLayer: the first ``lengths[b]`` elements of each sequence in reverse order."""
    x, lengths, layer = call.input(0), call.input(1), call.layer
    batch, axis = layer.batch_axis, layer.sequence_axis
    place = torch.arange(x.shape[axis]).reshape([-1 if d == axis else 1 for d in range(x.dim())])
    length = lengths.to(torch.int64).reshape([-1 if d == batch else 1 for d in range(x.dim())])
    return torch.gather(x, axis, torch.where(place < length, length - 1 - place, place).expand(x.shape))


@evaluates("NMS", arithmetic=False)
def non_maximum_suppression(call: LayerCall) -> list[Tensor]:
    """Evaluate INMSLayer: by batch and class, boxes in falling order of score that overlap no box kept before them too much.

    The rows (batch, class, box) come by batch, then by falling score. Source: ``nvinfer1::INMSLayer``.
    """
    boxes, scores, layer = call.input(0).to(torch.float32), call.input(1).to(torch.float32), call.layer
    limit, overlap, threshold = int(call.input(2)), call.optional(3), call.optional(4)
    most = 0.0 if overlap is None else float(overlap)
    least = 0.0 if threshold is None else float(threshold)
    if layer.bounding_box_format.name == "CENTER_SIZES":
        boxes = torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)
    boxes = torch.cat([torch.minimum(boxes[..., :2], boxes[..., 2:]), torch.maximum(boxes[..., :2], boxes[..., 2:])], -1)
    rows: list[tuple[int, int, int]] = []
    for batch in range(scores.shape[0]):
        order = torch.argsort(scores[batch].reshape(-1), descending=True, stable=True)[: layer.topk_box_limit]
        kept: dict[int, list[Tensor]] = {}
        for place in order.tolist():
            index, group = divmod(place, scores.shape[2])
            if not scores[batch, index, group] > least:
                break
            box = boxes[batch, index] if boxes.dim() == 3 else boxes[batch, index, group]
            others = kept.setdefault(group, [])
            if len(others) < limit and not (others and bool((_overlap(box, torch.stack(others)) > most).any())):
                others.append(box)
                rows.append((batch, group, index))
    selected = torch.tensor(rows, dtype=call.output_dtype).reshape(-1, 3)
    return [selected, torch.tensor(len(rows), dtype=call.output_dtypes[1] or torch.int32)]


def _overlap(box: Tensor, others: Tensor) -> Tensor:
    """Return the intersection over union of a box ``(4,)`` with each of ``(N, 4)``; 0 where both are empty."""
    common = (torch.minimum(box[2:], others[:, 2:]) - torch.maximum(box[:2], others[:, :2])).clamp(min=0).prod(-1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(-1) - common
    return torch.where(union > 0, common / union, torch.zeros_like(union))

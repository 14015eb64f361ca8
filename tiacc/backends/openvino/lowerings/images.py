"""Sums of parts of an image's channels.

OpenVINO keeps images channels-last, and brings them into torch's order for a reshape, which costs a pass over the image before it and
one behind; a part of the channels it takes as they lie.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import fx

from tiacc.backends.openvino.lowering import Emitter, is_number
from tiacc.backends.openvino.lowerings.common import value_of

aten = torch.ops.aten

MAX_PARTS = 4
"""The number of parts up to which their sum is written as additions."""


def sum_of_parts(emit: Emitter, x: fx.Node) -> fx.Node | None:
    """Write ``image.reshape(N, R, C, H, W).sum(1)`` without the reshape; None where `x` is nothing like it.

    The image may be multiplied by something on the way, as in the split attention of ResNeSt. A block of that takes 0.9 to 1.0 of its
    time so in float32, and 0.8 to 0.9 in bfloat16.

    Args:
        emit: Writes nodes in place of the sum.
        x: What is summed over its dimension 1.
    """
    count = value_of(x).shape[1]
    is_product = x.target is aten.mul.Tensor and len(emit.node.all_input_nodes[0].users) == 1
    factors: list[Any] = list(x.args) if is_product else [x]
    if not isinstance(count, int) or not 1 < count <= MAX_PARTS or not any(map(_image_cut_by, factors)):
        return None
    if any(is_number(factor) or value_of(factor).dim() != value_of(x).dim() for factor in factors):
        return None
    if any(value_of(factor).shape[:2] != value_of(x).shape[:2] for factor in factors):
        return None
    parts = [_parts(emit, factor, count) for factor in factors]
    terms: list[fx.Node] = [functools.reduce(functools.partial(emit, aten.mul.Tensor), term) for term in zip(*parts)]
    return functools.reduce(functools.partial(emit, aten.add.Tensor), terms)


def _image_cut_by(node: Any) -> fx.Node | None:
    """Return the image ``(N, R·C, H, W)`` that a reshape to ``(N, R, C, H, W)`` is of, or None."""
    if not isinstance(node, fx.Node) or node.target not in (aten.view.default, aten.reshape.default, aten._unsafe_view.default):
        return None
    image = node.args[0]
    assert isinstance(image, fx.Node)
    before, after = value_of(image).shape, value_of(node).shape
    if len(before) != 4 or len(after) != 5 or not all(isinstance(size, int) for size in (*before[1:], *after[1:])):
        return None
    return image if before[1] == after[1] * after[2] and before[2:] == after[3:] else None


def _parts(emit: Emitter, node: fx.Node, count: int) -> list[fx.Node]:
    """Write the parts of a tensor along dimension 1, without that dimension."""
    image = _image_cut_by(node)
    if image is None:
        return [emit(aten.select.int, node, 1, place) for place in range(count)]
    size = int(value_of(image).shape[1]) // count
    split = next((user for user in image.users if user.target is aten.split.Tensor and user.args[1:] == (size, 1)), None)
    split = split or emit(aten.split.Tensor, image, size, 1)
    return [emit.item(split, place) for place in range(count)]

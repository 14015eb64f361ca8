"""Images folded into fewer pixels of more channels, so that the first layer of a network reads memory as kernels like to.

A convolution of stride ``f`` over three channels reads short runs of numbers that begin anywhere. Folded by ``f``, the image has pixels
of ``3·f²`` numbers, and the convolution has stride 1 and fewer taps: row ``f·y + r - p`` of the image is row ``dy`` of the squares
``y + q``, where ``r - p = f·q + dy``.

Source: space-to-depth for the first layer, Ying et al., "Image Classification at Supercomputer Scale", 2018 (arXiv:1811.06992).
"""

from __future__ import annotations

import torch

CHANNELS = 4
"""Images of more channels are not folded."""

MULTIPLE = 8
"""Folded pixels have a multiple of so many channels: 16 bytes of half precision."""


def channels_of(channels: int, fold: int) -> int:
    """Return how many channels a folded image has."""
    return -(-channels * fold * fold // MULTIPLE) * MULTIPLE


def image(x: torch.Tensor, fold: int) -> torch.Tensor:
    """Return an image ``(N, C, H, W)`` as ``(N, C', H/fold, W/fold)``; channel ``(dy·fold + dx)·C + c``, then zeros."""
    images, channels, height, width = x.shape
    squares = x.reshape(images, channels, height // fold, fold, width // fold, fold).permute(0, 3, 5, 1, 2, 4)
    folded = squares.reshape(images, fold * fold * channels, height // fold, width // fold)
    missing = channels_of(channels, fold) - folded.shape[1]
    return torch.nn.functional.pad(folded, (0, 0, 0, 0, 0, missing))


def weight(kernel: torch.Tensor, fold: int, padding: tuple[int, int]) -> tuple[torch.Tensor, tuple[int, int]]:
    """Return the weight ``(K, C, R, S)`` of a convolution of stride `fold` for the folded image, and the padding that goes with it.

    The padding is that before the first row and column; the last ones may need less.
    """
    outputs, channels, rows, columns = kernel.shape
    before = (-(-padding[0] // fold), -(-padding[1] // fold))
    top, left = (fold * count - pad for count, pad in zip(before, padding))
    taps = (-(-(top + rows) // fold), -(-(left + columns) // fold))
    large = kernel.new_zeros(outputs, channels, taps[0] * fold, taps[1] * fold)
    large[:, :, top : top + rows, left : left + columns] = kernel
    return image(large, fold), before

"""One row of a batch, in place of all: what a model does to each row, where it does the same to all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tiacc import measure, models
from tiacc.errors import AccuracyError

SAME = 1e-4
"""Rows computed alone differ from the same rows of a batch by no more than this part: kernels add in another order."""


def rows_in(item: Sequence[Any], reference: Any) -> int:
    """Return how many rows the arguments and the results of a call have, all of them as many; 0 where they differ or there is one."""
    sizes = {tensor.shape[0] if tensor.ndim else 0 for tensor in (*models.tensors_of(item), *models.tensors_of(reference))}
    (size,) = sizes if len(sizes) == 1 else (0,)
    return size if size > 1 else 0


def row_of(value: Any, row: int) -> Any:
    """Return arguments or results with one row of each tensor in nested tuples, lists and dicts, as a batch of one."""
    return models.mapped(value, lambda tensor: tensor[row : row + 1])


def typical_row(reference: Any, found: Any, count: int) -> int:
    """Return the row whose error is most like that of the whole.

    Args:
        reference: What is right.
        found: What was computed in its place.
        count: How many rows both have.

    Raises:
        AccuracyError: They differ in more than their numbers.
    """
    whole = measure.largest(measure.compare(reference, found))
    errors = [measure.largest(measure.compare(row_of(reference, row), row_of(found, row))) for row in range(count)]
    if math.isinf(whole):
        return errors.index(max(errors))
    return min(range(count), key=lambda row: abs(errors[row] - whole))


def stands_alone(run: Callable[[Sequence[Any]], Any], item: Sequence[Any], reference: Any) -> bool:
    """Return whether a model gives for one row alone what it gave for it among others.

    Args:
        run: Calls the model.
        item: One row of the arguments.
        reference: The same row of the results for all rows.
    """
    try:
        with torch.no_grad():
            return measure.largest(measure.compare(reference, run(item))) <= SAME
    except (AccuracyError, RuntimeError):
        return False

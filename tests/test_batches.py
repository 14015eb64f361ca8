"""One row of a batch in place of all: when it may be, and which one."""

from __future__ import annotations

import pytest
import torch

from tiacc import batches


@pytest.mark.parametrize(
    ("item", "reference", "count"),
    [
        ((torch.zeros(3, 2), {"mask": torch.zeros(3)}), [torch.zeros(3, 1)], 3),
        ((torch.zeros(3, 2), 5), torch.zeros(3), 3),
        ((torch.zeros(1, 2),), torch.zeros(1), 0),
        ((torch.zeros(3, 2), torch.zeros(2)), torch.zeros(3), 0),
        ((torch.zeros(3, 2),), torch.zeros(()), 0),
        ((torch.zeros(3, 2),), torch.zeros(6), 0),
    ],
    ids=["nested", "a number beside it", "one row", "inputs of other sizes", "a scalar", "more results than rows"],
)
def test_rows_are_counted_where_all_have_as_many(item: tuple, reference: object, count: int) -> None:
    assert batches.rows_in(item, reference) == count


def test_a_row_keeps_the_structure() -> None:
    row = batches.row_of(({"x": torch.arange(6).reshape(3, 2)}, 7), 1)
    assert row[0]["x"].tolist() == [[2, 3]] and row[1] == 7


def test_the_row_is_taken_whose_error_is_most_like_that_of_all() -> None:
    reference = torch.ones(4, 100)
    found = reference + torch.tensor([0.0, 0.3, 0.14, 0.05]).unsqueeze(1)
    assert batches.typical_row(reference, found, 4) == 2  # that of all is 0.167
    found[1] = torch.inf
    assert batches.typical_row(reference, found, 4) == 1


@pytest.mark.parametrize(
    ("model", "alone"),
    [
        (lambda item: item[0] * 2, True),
        (lambda item: item[0] - item[0].mean(0), False),
        (lambda item: item[0].reshape(3, 4), False),
        (lambda item: (item[0], item[0]), False),
    ],
    ids=["row by row", "with the other rows", "a size of its own", "another structure"],
)
def test_what_a_row_gives_alone_tells(model, alone: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4)
    reference = model((x,)) if alone else x * 2
    assert batches.stands_alone(model, batches.row_of((x,), 1), batches.row_of(reference, 1)) is alone

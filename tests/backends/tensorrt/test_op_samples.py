"""The samples that torch ships for its own operators: each is refused with a reason, or builds and equals eager torch."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import torch

from tests.backends.tensorrt import samples
from tests.backends.tensorrt.harness import assert_close, compile_for, interpret, needs_rtx, network_of, rejection, spec_of
from tiacc.backends.tensorrt import converters
from tiacc.errors import ImportGraphError
from tiacc.graph import specs

pytestmark = needs_rtx


def run(info: Any, dtype: torch.dtype, most: int, *, compiles: bool = False) -> tuple[Counter[str], list[str]]:
    """Convert, interpret and compare the samples of one operator.

    Returns:
        How many were right, refused, or no graph of operators that have a converter; and the failures.
    """
    table = converters.all_converters()
    counts: Counter[str] = Counter()
    failures: list[str] = []
    for sample in samples.samples(info, dtype, most):
        if isinstance(sample, str):
            counts["not a graph"] += 1
            continue
        types = [spec_of(tensor) for tensor in sample.inputs]
        try:
            specs.propagate(sample.gm, types)
        except ImportGraphError:
            counts["not a graph"] += 1
            continue
        if not any(node.target in table for node in sample.gm.graph.nodes):
            counts["other operators"] += 1
            continue
        if rejection(sample.gm):
            counts["refused"] += 1
            continue
        try:
            definition = network_of(sample.gm, types)
            assert_close(interpret(definition, sample.inputs), sample.expected)
            if compiles and not counts["right"]:
                compile_for(definition, types)
            counts["right"] += 1
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is a failure of this sample; the others shall be seen too
            shapes = [tuple(tensor.shape) for tensor in sample.inputs]
            failures.append(f"{sample.name} {dtype} {shapes}: {type(error).__name__}: {error}"[:400])
    return counts, failures


_UNDETERMINED = frozenset({"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"})
"""Operators whose results have no values."""

_DTYPES = (torch.float32, torch.int64, torch.float16, torch.bool)


def _sweep(dtypes: tuple[torch.dtype, ...], most: int, *, compiles: bool) -> Counter[str]:
    total: Counter[str] = Counter()
    failures: list[str] = []
    names = {overload._schema.name.removeprefix("aten::") for overload in converters.all_converters()}
    for info in itertools.chain.from_iterable(samples.database().values()):
        if info.name in _UNDETERMINED or not {info.aten_name, info.name.rpartition(".")[2]} & names:
            continue
        for dtype in dtypes:
            counts, wrong = run(info, dtype, most, compiles=compiles)
            total += counts
            failures += wrong
    assert failures == []
    return total


def test_a_few_samples_of_each_operator() -> None:
    total = _sweep((torch.float32,), 2, compiles=False)
    assert total["right"] > 500


@pytest.mark.slow
def test_all_samples() -> None:
    total = _sweep(_DTYPES, 1000, compiles=True)
    assert total["right"] > 3000

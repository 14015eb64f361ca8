"""The samples that torch ships for its own operators: each is refused with a reason, or builds and equals eager torch."""

from __future__ import annotations

import itertools
import zlib
from collections import Counter
from typing import Any

import pytest
import torch

from tests.backends.tensorrt import samples
from tests.backends.tensorrt.harness import assert_close, compile_for, interpret, needs_rtx, network_of, rejection, spec_of
from tiacc.backends.tensorrt import converters
from tiacc.errors import ImportGraphError
from tiacc.graph import arguments, specs

pytestmark = needs_rtx
aten = torch.ops.aten


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
        if sample.name in _UNORDERED and any(bool(tensor.isnan().any()) for tensor in sample.inputs):
            counts["NaN"] += 1
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
            assert_right(sample, interpret(definition, sample.inputs))
            if compiles:
                compile_for(definition, types)
            counts["right"] += 1
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is a failure of this sample; the others shall be seen too
            shapes = [tuple(tensor.shape) for tensor in sample.inputs]
            failures.append(f"{sample.name} {dtype} {shapes}: {type(error).__name__}: {error}"[:400])
    return counts, failures


def assert_right(sample: samples.Sample, results: list[torch.Tensor]) -> None:
    """Compare the results of a sample with eager torch's.

    Where torch's kernels for half precision round between the steps of an operator, float32 rounded once is as right.
    """
    try:
        assert_close(at_indices(sample, results), at_indices(sample, sample.expected))
    except AssertionError:
        if not any(tensor.dtype == torch.float16 for tensor in sample.inputs):
            raise
        with torch.no_grad():
            exact = sample.gm(*(tensor.float() if tensor.dtype == torch.float16 else tensor for tensor in sample.inputs))
        rounded = [one.to(other.dtype) for one, other in zip(exact, sample.expected)]
        assert_close(results, rounded, _HALF_TOLERANCES.get(sample.name))


def at_indices(sample: samples.Sample, results: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the results of a sample with indices into its input replaced by what is there: of equal elements, each will do.

    But for a stable sort, for which it is the first.
    """
    given = arguments.bound(next(node for node in sample.gm.graph.nodes if node.op == "call_function")) if sample.name in _ORDERS else {}
    if not given or given.get("stable"):
        return results
    dim = given.get("dim", -1)
    place = min(1, len(results) - 1)
    found, source = results[place], sample.inputs[0]
    is_reduced = found.dim() < source.dim()
    elements = source.gather(dim, found.unsqueeze(dim) if is_reduced else found) if source.dim() else source
    return [*results[:place], elements.squeeze(dim) if is_reduced else elements, *results[place + 1 :]]


_HALF_TOLERANCES = {"nn.functional.scaled_dot_product_attention": 2e-2}
"""What float16 is allowed beyond `harness.TOLERANCE`: queries are scaled before the product, and products in the hundreds, which these
samples have, show their rounding."""

_ORDERS = frozenset({"topk", "kthvalue", "sort", "argsort"})
"""Operators that tell where elements are, as their last result."""

_UNORDERED = frozenset({"masked.argmin"})
"""Operators with samples that hold NaN, which torch takes for the smallest element; where TensorRT puts it is left open."""

_UNDETERMINED = frozenset({"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"})
"""Operators whose results have no values."""

_PARTS = 6
"""How many parts the operators are tested in, each in a minute or two."""


def _sweep(dtype: torch.dtype, most: int, *, part: int | None = None) -> Counter[str]:
    """Run the samples of all operators that have a converter, `most` of each.

    Args:
        dtype: That of the samples.
        most: How many of each operator.
        part: Which of `_PARTS` parts of the operators; all when None. Those of a part are built too, one sample each.
    """
    total: Counter[str] = Counter()
    failures: list[str] = []
    names = {overload._schema.name.removeprefix("aten::") for overload in converters.all_converters()}
    for info in itertools.chain.from_iterable(samples.database().values()):
        if info.name in _UNDETERMINED or not {info.aten_name, info.name.rpartition(".")[2]} & names:
            continue
        if part is None or zlib.crc32(info.name.encode()) % _PARTS == part:
            counts, wrong = run(info, dtype, most, compiles=part is not None)
            total += counts
            failures += wrong
    assert failures == []
    return total


def test_a_few_samples_of_each_operator() -> None:
    total = _sweep(torch.float32, 2)
    assert total["right"] > 500


@pytest.mark.slow
@pytest.mark.parametrize("part", range(_PARTS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.float16, torch.bool], ids=str)
def test_all_samples(dtype: torch.dtype, part: int) -> None:
    total = _sweep(dtype, 1000, part=part)
    assert total["right"] > 100

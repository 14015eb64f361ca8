"""The calls of all test modules, changed: negative dimensions, empty tensors, tensors without dimensions, other dtypes.

What torch takes and `supports` accepts is converted, computes what torch computes, and builds.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import fx

from tests.backends.tensorrt.cases import Case, all_cases
from tests.backends.tensorrt.harness import (
    assert_close,
    compile_for,
    interpret,
    needs_rtx,
    network_of,
    one_node,
    rejection,
    spec_of,
    words,
)
from tiacc.errors import ImportGraphError
from tiacc.graph import specs

pytestmark = needs_rtx

_DIMENSIONS = frozenset(words("dim dims dim0 dim1 dim2 axis axis0 axis1 start_dim end_dim source destination"))
"""The arguments that name dimensions."""

_ORDERS = frozenset(words("topk kthvalue"))
"""Operators that tell where elements are, as their last result."""

_TOLERANCES = {"erfc": 1e-3, "special_erfc": 1e-3}
"""The relative error allowed beyond that of the dtype: 1 - erf(x) has few digits where it is small."""

_PARTS = 8
"""How many parts the calls are tested in."""


def variants(case: Case) -> Iterator[tuple[str, Case]]:
    """Yield changed calls, each with what was changed."""
    tensors = list(_tensors((case.args, case.kwargs)))
    rank = max((tensor.dim() for tensor in tensors), default=0)
    yield "negative dimensions", _with_dimensions(case, lambda dim: dim - rank if dim >= 0 else dim)
    sizes = {size for tensor in tensors for size in tensor.shape} if str(case.op).rpartition(".")[2] != "input" else set()
    for size in sorted(sizes):  # torch's recurrent layers divide by zero without elements, and end the process
        yield f"no elements for {size}", _with_tensors(case, lambda tensor, size=size: _without(tensor, size))  # type: ignore[misc]
    yield "no dimensions", _with_tensors(case, lambda tensor: tensor.reshape(-1)[tensor.numel() // 2] if tensor.numel() else tensor)
    for dtype in (torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool):
        yield str(dtype), _with_tensors(case, lambda tensor, dtype=dtype: _cast(tensor, torch.float32, dtype))  # type: ignore[misc]
    yield "int32 for int64", _with_tensors(case, lambda tensor: _cast(tensor, torch.int64, torch.int32))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _with_tensors(case: Case, change: Callable[[torch.Tensor], torch.Tensor]) -> Case:
    def changed(value: Any) -> Any:
        if isinstance(value, torch.nn.Parameter):
            return torch.nn.Parameter(change(value.data), requires_grad=False)
        if isinstance(value, torch.Tensor):
            return change(value)
        return type(value)(map(changed, value)) if type(value) in (list, tuple) else value

    return Case(case.op, changed(case.args), {name: changed(value) for name, value in case.kwargs.items()})


def _with_dimensions(case: Case, change: Callable[[int], int]) -> Case:
    names = [argument.name for argument in case.op._schema.arguments]

    def changed(name: str, value: Any) -> Any:
        if name not in _DIMENSIONS or isinstance(value, bool):
            return value
        if isinstance(value, (list, tuple)):
            return [changed(name, item) for item in value]
        return change(value) if isinstance(value, int) else value

    return Case(case.op, tuple(map(changed, names, case.args)), {name: changed(name, value) for name, value in case.kwargs.items()})


def _without(tensor: torch.Tensor, size: int) -> torch.Tensor:
    return tensor[tuple(slice(0) if length == size else slice(None) for length in tensor.shape)]


def _cast(tensor: torch.Tensor, given: torch.dtype, wanted: torch.dtype) -> torch.Tensor:
    if tensor.dtype != given:
        return tensor
    return tensor > 0 if wanted == torch.bool else (4 * tensor).to(wanted) if not wanted.is_floating_point else tensor.to(wanted)


def check(case: Case) -> str:
    """Convert, interpret, compare and build a call; return what became of it, or how it failed."""
    try:
        gm, inputs = one_node(case.op, *case.args, **case.kwargs)
        types = [spec_of(tensor) for tensor in inputs]
        with torch.no_grad():
            want = gm(*(tensor.clone() for tensor in inputs))
        specs.propagate(gm, types)
        _require_same_types(gm, list(want))
        if "signbit" in str(case.op) and any(bool(tensor.isnan().any()) for tensor in inputs):
            raise ValueError("torch's NaNs have a sign in one dtype and none in another")
    except (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError, ImportGraphError):
        return "not for torch"
    if rejection(gm):
        return "refused"
    try:
        definition = network_of(gm, types)
        got, want = (_at_indices(case, inputs, list(results)) for results in (interpret(definition, inputs), want))
        _assert_right(gm, inputs, got, want, _TOLERANCES.get(_name(case)))
        if definition.network.num_outputs:
            compile_for(definition, types)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is a failure of this call; the others shall be seen too
        return f"{type(error).__name__}: {str(error)[:300]}"
    return "right"


def _name(case: Case) -> str:
    return str(case.op._schema.name).removeprefix("aten::")


def _at_indices(case: Case, inputs: list[torch.Tensor], results: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the results with indices into the input replaced by what is there: of equal elements, each will do."""
    if _name(case) not in _ORDERS or not inputs[0].dim():
        return results
    named = dict(zip((argument.name for argument in case.op._schema.arguments), case.args)) | case.kwargs
    dim, (*values, indices) = named.get("dim", -1), results
    is_reduced = indices.dim() < inputs[0].dim()
    found = inputs[0].gather(dim, indices.unsqueeze(dim) if is_reduced else indices)
    return [*values, found.squeeze(dim) if is_reduced else found]


def _require_same_types(gm: fx.GraphModule, want: list[torch.Tensor]) -> None:
    """Raise `ValueError` where torch's kernel and its own rule for shapes disagree, as some do on empty tensors."""
    known = [node.meta["val"] for node in gm.graph.find_nodes(op="output")[0].args[0]]
    pairs = list(zip(known, want, strict=True))
    if not all(isinstance(item, torch.Tensor) for pair in pairs for item in pair):
        raise ValueError("a result that is no tensor")
    if not all((one.dtype, tuple(one.shape)) == (other.dtype, tuple(other.shape)) for one, other in pairs):
        raise ValueError("another type than inferred")


def _assert_right(
    gm: fx.GraphModule, inputs: list[torch.Tensor], got: list[torch.Tensor], want: list[torch.Tensor], tolerance: float | None
) -> None:
    """Compare results; where torch rounds between the steps of an operator, the result in float32, rounded once, is as right."""
    try:
        assert_close(got, want, tolerance)
    except AssertionError:
        halves = (torch.float16, torch.bfloat16)
        if not any(tensor.dtype in halves for tensor in inputs):
            raise
        with torch.no_grad():
            exact = gm.float()(*(tensor.float() if tensor.dtype in halves else tensor for tensor in inputs))
        assert_close(got, [one.to(other.dtype) for one, other in zip(exact, want)])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(_PARTS))
def test_what_is_accepted_is_right_and_builds(part: int) -> None:
    counts: Counter[str] = Counter()
    failures: list[str] = []
    for case in itertools.islice(all_cases(), part, None, _PARTS):
        for what, variant in variants(case):
            result = check(variant)
            if result in ("right", "refused", "not for torch"):
                counts[result] += 1
            else:
                failures.append(f"{variant} with {what}: {result}")
    assert failures == []
    assert counts["right"] > 300

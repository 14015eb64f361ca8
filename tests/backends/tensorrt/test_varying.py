"""The calls of all test modules with their sizes varying: what is accepted is converted, computes the same, and builds."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.backends.tensorrt.cases import Case, all_cases
from tests.backends.tensorrt.harness import assert_close, compile_for, interpret, needs_rtx, network_of, rejection

pytestmark = needs_rtx

_PARTS = 8
"""How many parts the calls are tested in."""


def check(case: Case) -> str:
    """Return how a call fails with sizes that vary; an empty string where it does not, or is refused."""
    varying = case.varying()
    if varying is None or rejection(varying[0]):
        return ""
    gm, types, inputs = varying
    try:
        definition = network_of(gm, types)
        with torch.no_grad():
            assert_close(interpret(definition, inputs), gm(*inputs))
        compile_for(definition, types)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is a failure of this call; the others shall be seen too
        return f"{case}: {type(error).__name__}: {error}"
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("part", range(_PARTS))
def test_what_is_accepted_builds(part: int) -> None:
    failures = [check(case) for case in itertools.islice(all_cases(), part, None, _PARTS)]
    assert len(failures) > 100
    assert list(filter(None, failures)) == []

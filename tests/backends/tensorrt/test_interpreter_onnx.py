"""The interpreter against ONNX's backend test data, by way of NVIDIA's ONNX parser."""

from __future__ import annotations

import pytest

onnx = pytest.importorskip("onnx")
trt = pytest.importorskip("tensorrt_rtx")

from tests.backends.tensorrt.onnx_corpus import Sink, faulty_results, load_cases, run_case  # noqa: E402
from tests.backends.tensorrt.onnx_disagreements import DISAGREEMENTS  # noqa: E402

# Layer types that no model of the corpus leads to; the other tests of the interpreter have networks with them.
NOT_REACHED = {
    "ASSERTION",
    "DIST_COLLECTIVE",
    "DYNAMIC_QUANTIZE",
    "MOE",
    "NON_ZERO",
    "PADDING",
    "PLUGIN",
    "PLUGIN_V2",
    "PLUGIN_V3",
    "RAGGED_SOFTMAX",
}


def test_networks_compute_what_their_models_say() -> None:
    sink = Sink(trt)
    outcomes = [run_case(sink, case) for case in load_cases()]
    found = {outcome.name: outcome.faults for outcome in outcomes if outcome.faults}
    assert set(found) == set(DISAGREEMENTS), {name: found.get(name) for name in set(found) ^ set(DISAGREEMENTS)}
    assert sum(outcome.is_parsed for outcome in outcomes) >= 1260
    assert sum(outcome.agrees for outcome in outcomes) >= 1230
    reached = frozenset[str]().union(*(outcome.layers for outcome in outcomes))
    assert set(trt.LayerType.__members__) - reached == NOT_REACHED


@pytest.mark.parametrize("name", sorted(DISAGREEMENTS))
def test_each_disagreement_has_the_cause_that_is_named(name: str) -> None:
    case = next(case for case in load_cases() if case.name == name)
    results = list(faulty_results(Sink(trt), case))
    assert results
    for result in results:
        assert DISAGREEMENTS[name].explains(case, result)

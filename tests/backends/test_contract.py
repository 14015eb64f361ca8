"""Every registered backend is held to the contract; and each rule catches a backend that breaks it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import fx

from tiacc.backends.base import SUPPORTED, Backend, BuildSpec, Engine, Support, backends
from tiacc.backends.reference import ReferenceBackend, ReferenceEngine
from tiacc.errors import EngineFormatError
from tiacc.testing import BackendContract, ContractError, examples


def _device_of(name: str) -> torch.device:
    return torch.device(backends.get(name).device_types[0])


for _name in backends.names():
    _kind = f"Test{_name.title().replace('_', '')}"
    globals()[_kind] = type(_kind, (BackendContract,), {"backend_name": _name, "device": _device_of(_name)})


def test_the_backends_of_this_machine_are_held_to_it() -> None:
    assert {"reference", "openvino"} <= set(backends.names())
    assert backends.get("reference")().available()


# -- planted violations ------------------------------------------------------------------------------------------------------------


class PlantedEngine:
    """The reference engine with one fault."""

    def __init__(self, engine: Engine, run: Callable[..., list[torch.Tensor]] | None = None) -> None:
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self.engine = engine
        self.fault = run
        self.state: dict[str, Any] = {}

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if self.fault is None:
            return self.engine.run(inputs)
        return self.fault(self, inputs)

    def serialize(self) -> bytes:
        return self.engine.serialize()


class Planted(ReferenceBackend):
    """The reference backend, the engines of which have one fault."""

    name: ClassVar[str] = "planted"
    fault: ClassVar[Any] = None

    def build(self, subgraph: fx.GraphModule, spec: BuildSpec) -> Engine:
        return PlantedEngine(super().build(subgraph, spec), type(self).fault)

    def load(self, payload: bytes) -> Engine:
        return PlantedEngine(super().load(payload), type(self).fault)


def with_fault(run: Callable[..., list[torch.Tensor]]) -> type[Planted]:
    return type("Faulty", (Planted,), {"fault": staticmethod(run)})


def held(backend: Backend) -> BackendContract:
    contract = BackendContract()
    contract.make_backend = lambda: backend  # type: ignore[method-assign]
    return contract


def stale(self: PlantedEngine, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Write results into the memory of the first call's."""
    results = self.engine.run(inputs)
    kept = self.state.setdefault(str([tensor.shape for tensor in results]), results)
    for old, new in zip(kept, results):
        old.copy_(new)
    return list(kept)


def views(self: PlantedEngine, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    results = self.engine.run(inputs)
    same = [tensor for tensor in inputs if tensor.numel() == results[0].numel() and torch.equal(tensor.flatten(), results[0].flatten())]
    return [same[0].view(results[0].shape), *results[1:]] if same else results


def wrong_by_one_percent(self: PlantedEngine, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor * 1.01 if tensor.dtype.is_floating_point else tensor for tensor in self.engine.run(inputs)]


def swapped(self: PlantedEngine, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return self.engine.run(inputs)[::-1]


def widened(self: PlantedEngine, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.float() for tensor in self.engine.run(inputs)]


def remembers_a_size(self: PlantedEngine, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    size = self.state.setdefault("size", inputs[0].shape)
    if inputs[0].shape != size:
        raise RuntimeError(f"built for {size}")
    return self.engine.run(inputs)


def writes_into_an_input(self: PlantedEngine, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    results = self.engine.run(inputs)
    inputs[0].detach().flatten()[:1].zero_()
    return results


def needs_contiguous(self: PlantedEngine, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    base = [tensor.detach().as_strided(tensor.shape, torch.empty(tensor.shape).stride()) for tensor in inputs]
    return self.engine.run(base)


def keeps_an_input(self: PlantedEngine, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    self.state["inputs"] = list(inputs)
    return self.engine.run(inputs)


def random_noise(self: PlantedEngine, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    results = self.engine.run(inputs)
    return [tensor * (1 + 1e-6 * torch.rand(())) if tensor.dtype == torch.float32 else tensor for tensor in results]


def shares_a_buffer(self: PlantedEngine, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Compute from what the engine keeps, not from what this thread gave it."""
    self.state["now"] = [tensor.clone() for tensor in inputs]
    for _ in range(200):
        torch.randn(8).sum()  # lets another thread in
    return self.engine.run(self.state["now"])


class Shared(Planted):
    """One engine for all graphs that look alike."""

    engines: ClassVar[dict[str, Engine]] = {}

    def build(self, subgraph: fx.GraphModule, spec: BuildSpec) -> Engine:
        engine = self.engines.setdefault(str(subgraph.graph), super().build(subgraph, spec))
        engine.fault = stale  # type: ignore[attr-defined]
        return engine


class Immortal(Planted):
    engines: ClassVar[list[Engine]] = []

    def build(self, subgraph: fx.GraphModule, spec: BuildSpec) -> Engine:
        engine = super().build(subgraph, spec)
        self.engines.append(engine)
        return engine


class Boastful(Planted):
    """Says yes to what it cannot build."""

    def build(self, subgraph: fx.GraphModule, spec: BuildSpec) -> Engine:
        if any(node.target is torch.ops.aten.softmax.int for node in subgraph.graph.nodes):
            raise NotImplementedError("softmax")
        return super().build(subgraph, spec)


class Vague(Planted):
    def supports(self, node: fx.Node) -> Support:
        return Support(node.target is not torch.ops.aten.neg.default)


class Fickle(Planted):
    answers: ClassVar[list[Support]] = [SUPPORTED, Support(False, "not now")]

    def supports(self, node: fx.Node) -> Support:
        self.answers.reverse()
        return self.answers[0]


class Marking(Planted):
    def supports(self, node: fx.Node) -> Support:
        node.name = node.name if node.name.endswith("_mine") else f"{node.name}_mine"
        return super().supports(node)


class Rounding(Planted):
    """Rounds the weights that it is given, in place."""

    def build(self, subgraph: fx.GraphModule, spec: BuildSpec) -> Engine:
        for tensor in subgraph.buffers():
            tensor.copy_((tensor * 256).round() / 256)
        return super().build(subgraph, spec)


class Pickling(Planted):
    def load(self, payload: bytes) -> Engine:
        try:
            return super().load(payload)
        except EngineFormatError:
            return pickle.loads(payload)  # type: ignore[no-any-return]


class Trusting(Planted):
    def load(self, payload: bytes) -> Engine:
        class Empty:
            inputs = outputs = ()

            def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
                return list(inputs)

        return super().load(payload) if len(payload) > 2000 and payload.endswith(b"\x00\x00") else Empty()  # type: ignore[return-value]


class Forgetful(Planted):
    """Loads engines without what they were saved with."""

    def load(self, payload: bytes) -> Engine:
        return PlantedEngine(ReferenceEngine(lambda *inputs: inputs[0], payload))  # type: ignore[arg-type]


class Nameless(Planted):
    name: ClassVar[str] = ""


class Useless(Planted):
    def supports(self, node: fx.Node) -> Support:
        return Support(False, "never")


class Raising(Planted):
    def supports(self, node: fx.Node) -> Support:
        raise KeyError(str(node.target))


class Careless(Planted):
    """Raises what comes to hand for what it does not support."""

    def supports(self, node: fx.Node) -> Support:
        return Support(node.target is not torch.ops.aten.angle.default, "no complex numbers")

    def build(self, subgraph: fx.GraphModule, spec: BuildSpec) -> Engine:
        if any(node.target is torch.ops.aten.angle.default for node in subgraph.graph.nodes):
            raise KeyError("angle")
        return super().build(subgraph, spec)


VIOLATIONS: list[tuple[str, str, type[Planted]]] = [
    ("identity", "test_identity", Nameless),
    ("supports-something", "test_supports_something", Useless),
    ("supports-is-pure", "test_supports_is_pure", Vague),
    ("supports-is-pure", "test_supports_is_pure", Raising),
    ("supports-is-pure", "test_supports_is_pure", Fickle),
    ("supports-is-pure", "test_supports_is_pure", Marking),
    ("supported-is-built", "test_supported_is_built", Boastful),
    ("build-leaves-the-graph", "test_build_leaves_the_graph", Rounding),
    ("numerics", "test_numerics", with_fault(wrong_by_one_percent)),
    ("numerics", "test_numerics", with_fault(swapped)),
    ("numerics", "test_numerics", with_fault(widened)),
    ("varying-sizes", "test_varying_sizes", with_fault(remembers_a_size)),
    ("results-are-the-callers", "test_results_are_the_callers", with_fault(stale)),
    ("results-are-the-callers", "test_results_are_the_callers", with_fault(views)),
    ("inputs-are-only-read", "test_inputs_are_only_read", with_fault(writes_into_an_input)),
    ("inputs-are-only-read", "test_inputs_are_only_read", with_fault(needs_contiguous)),
    ("inputs-are-only-read", "test_inputs_are_only_read", with_fault(keeps_an_input)),
    ("determinism", "test_determinism", with_fault(random_noise)),
    ("threads", "test_threads", with_fault(shares_a_buffer)),
    ("engines-are-independent", "test_engines_are_independent", Shared),
    ("engines-are-freed", "test_engines_are_freed", Immortal),
    ("round-trip", "test_round_trip", Forgetful),
    ("fresh-process", "test_fresh_process", Planted),
    ("damage-is-refused", "test_damage_is_refused", Pickling),
    ("damage-is-refused", "test_damage_is_refused", Trusting),
    ("build-errors", "test_build_errors", Careless),
]


@pytest.mark.parametrize(("rule", "test", "backend"), VIOLATIONS, ids=[f"{rule}-{kind.__name__}" for rule, _, kind in VIOLATIONS])
def test_a_violation_is_caught_by_name(rule: str, test: str, backend: type[Planted]) -> None:
    with pytest.raises(ContractError, match=f"^{rule}: "):
        getattr(held(backend()), test)()


def test_every_rule_has_a_violation() -> None:
    rules = {name for name in vars(BackendContract) if name.startswith("test_")}
    assert rules == {test for _, test, _ in VIOLATIONS}


@pytest.mark.parametrize("test", sorted({test for _, test, _ in VIOLATIONS} - {"test_fresh_process"}))
def test_a_sound_backend_passes(test: str) -> None:
    getattr(held(Planted()), test)()


def test_the_examples_are_what_they_say() -> None:
    found = list(examples(torch.device("cpu")))
    assert len({example.name for example in found}) == len(found) >= 12
    assert any(spec.is_dynamic for example in found for spec in example.spec(torch.device("cpu")).inputs)

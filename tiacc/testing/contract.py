"""The rules, one test each."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import ClassVar

import torch

from tiacc.backends.base import Backend, Engine, Support, backends
from tiacc.errors import BackendUnavailableError, BuildError, EngineFormatError
from tiacc.testing.checking import (
    FORMS,
    ContractError,
    bits_equal,
    build,
    compare,
    expected_of,
    hold,
    is_same,
    memory_of,
    operators_of,
    picture_of,
    rule,
    run_in_fresh_process,
    run_in_threads,
    watch_engine,
    watch_inputs,
)
from tiacc.testing.examples import Example, complex_example, examples


class BackendContract:
    """The rules. Set `backend_name`, or override `make_backend`.

    Class attributes:
        backend_name: The name that the backend is registered under.
        device: Where its inputs live.
    """

    backend_name: ClassVar[str] = ""
    device: ClassVar[torch.device] = torch.device("cpu")

    def make_backend(self) -> Backend:
        """Return the backend; the test is skipped where it cannot be used."""
        backend = backends.get(self.backend_name)()
        support = backend.available()
        if not support:
            import pytest

            pytest.skip(f"{self.backend_name}: {support.reason}")
        return backend

    def examples(self) -> Iterator[Example]:
        """Yield the graphs that the backend supports; override it to add some of your own."""
        backend = self.make_backend()
        for example in examples(self.device):
            if all(backend.supports(node) for node in operators_of(example.graph)):
                yield example

    def built(self) -> Iterator[tuple[Example, Engine]]:
        """Yield each graph that the backend supports with an engine for it."""
        for example in self.examples():
            yield example, build(self.make_backend(), example, self.device)

    # -- the rules -----------------------------------------------------------------------------------------------------------------

    def test_identity(self) -> None:
        """It has a name, known device types and a version."""
        with rule("identity"):
            backend = self.make_backend()
            hold(isinstance(backend.name, str) and bool(backend.name), f"its name is {backend.name!r}")
            hold(not self.backend_name or backend.name == self.backend_name, f"{self.backend_name!r} calls itself {backend.name!r}")
            unknown = set(backend.device_types) - {"cpu", "cuda"}
            hold(bool(backend.device_types) and not unknown, f"its device_types are {backend.device_types!r}")
            hold(isinstance(backend.version(), str), f"its version is {backend.version()!r}")
            hold(isinstance(backend.available(), Support), f"available() returns {backend.available()!r}")

    def test_supports_something(self) -> None:
        """It supports at least one graph of the contract, or the other rules would be empty."""
        with rule("supports-something"):
            hold(bool(list(self.examples())), "it supports no graph of the contract; override examples() to give it some")

    def test_supports_is_pure(self) -> None:
        """`supports` answers the same each time, changes nothing, and gives a reason with every no."""
        with rule("supports-is-pure"):
            backend = self.make_backend()
            for example in examples(self.device):
                before = picture_of(example.graph)
                for node in operators_of(example.graph):
                    first, second = backend.supports(node), backend.supports(node)
                    hold(isinstance(first, Support), f"supports({node}) returns {first!r}, not a Support")
                    hold(first == second, f"supports({node}) says {first}, then {second}")
                    hold(first.ok or bool(first.reason), f"supports({node}) refuses without a reason")
                hold(is_same(picture_of(example.graph), before), f"supports() changed the graph {example.name!r}")

    def test_supported_is_built(self) -> None:
        """What `supports` accepts, `build` accepts."""
        with rule("supported-is-built"):
            for _ in self.built():
                pass

    def test_build_leaves_the_graph(self) -> None:
        """`build` changes neither the graph nor its constants."""
        with rule("build-leaves-the-graph"):
            backend = self.make_backend()
            for example in self.examples():
                before = picture_of(example.graph)
                build(backend, example, self.device)
                hold(is_same(picture_of(example.graph), before), f"build() changed the graph {example.name!r}")

    def test_numerics(self) -> None:
        """An engine computes what torch does, in the shapes and element types of the graph."""
        with rule("numerics"):
            for example, engine in self.built():
                for seed in (0, 1):
                    inputs = example.inputs(self.device, seed=seed)
                    compare(engine.run(inputs), expected_of(example, inputs), example.name)

    def test_varying_sizes(self) -> None:
        """An engine computes at the least and the greatest size, in between, and back again."""
        with rule("varying-sizes"):
            for example, engine in self.built():
                for which in ("min", "max", "between", "opt", "min"):
                    inputs = example.inputs(self.device, which)
                    compare(engine.run(inputs), expected_of(example, inputs), f"{example.name} at {which} sizes")

    def test_results_are_the_callers(self) -> None:
        """A result is not written to by a later call, and shares memory with neither input nor another result."""
        with rule("results-are-the-callers"):
            for example, engine in self.built():
                inputs = example.inputs(self.device)
                first = engine.run(inputs)
                kept = [tensor.clone() for tensor in first]
                second = engine.run(example.inputs(self.device, seed=1))
                for index, (tensor, copy) in enumerate(zip(first, kept)):
                    hold(bits_equal(tensor, copy), f"{example.name}: a second call changed result {index} of the first")
                memory = [memory_of(tensor) for tensor in (*inputs, *first, *second)]
                hold(len(set(memory)) == len(memory), f"{example.name}: a result shares memory with an input or another result")

    def test_inputs_are_only_read(self) -> None:
        """Inputs may be strided, expanded, offset or require gradients; they are not written to, and not kept."""
        with rule("inputs-are-only-read"):
            for example, engine in self.built():
                inputs = example.inputs(self.device)
                for kind, form in FORMS.items():
                    given = [form(tensor) for tensor in inputs]
                    expected = expected_of(example, given)
                    kept = [tensor.detach().clone() for tensor in given]
                    results = engine.run(given)
                    compare(results, expected, f"{example.name} with {kind} inputs")
                    same = all(bits_equal(tensor, copy) for tensor, copy in zip(given, kept))
                    hold(same, f"{example.name}: an input was written to")
                    hold(not any(tensor.requires_grad for tensor in results), f"{example.name}: a result requires gradients")
            engines = list(self.built())
            watched = [(example, reference) for example, engine in engines for reference in watch_inputs(example, engine, self.device)]
            gc.collect()
            for example, reference in watched:
                hold(reference() is None, f"{example.name}: the engine keeps an input")

    def test_determinism(self) -> None:
        """The same inputs give the same bits, whatever was computed in between."""
        with rule("determinism"):
            for example, engine in self.built():
                inputs = example.inputs(self.device)
                first = engine.run(inputs)
                engine.run(example.inputs(self.device, "max", seed=2))
                same = all(bits_equal(a, b) for a, b in zip(first, engine.run(inputs)))
                hold(same, f"{example.name}: the same inputs gave other results")

    def test_threads(self) -> None:
        """Several threads may call one engine at once."""
        with rule("threads"):
            for example, engine in self.built():
                sets = [example.inputs(self.device, which, seed) for seed, which in enumerate(["opt", "max", "min", "opt"])]
                expected = [expected_of(example, inputs) for inputs in sets]
                failures = run_in_threads(engine, sets, expected, example.name)
                hold(not failures, failures[0] if failures else "")

    def test_engines_are_independent(self) -> None:
        """Two engines of one graph do not disturb each other."""
        with rule("engines-are-independent"):
            for (example, first), (_, second) in zip(self.built(), self.built()):
                inputs, other = example.inputs(self.device), example.inputs(self.device, seed=1)
                results = first.run(inputs)
                compare(second.run(other), expected_of(example, other), f"{example.name} in a second engine")
                compare(results, expected_of(example, inputs), f"{example.name} in the first engine")

    def test_engines_are_freed(self) -> None:
        """An engine that nothing refers to is freed."""
        with rule("engines-are-freed"):
            watched = [(example, watch_engine(example, self.make_backend(), self.device)) for example in self.examples()]
            gc.collect()
            for example, reference in watched:
                hold(reference() is None, f"{example.name}: something keeps the engine")

    def test_round_trip(self) -> None:
        """An engine loaded from its bytes computes the same, and its bytes can be loaded in turn."""
        with rule("round-trip"):
            backend = self.make_backend()
            for example, engine in self.built():
                payload = engine.serialize()
                hold(isinstance(payload, bytes) and bool(payload), f"{example.name}: serialize() returns {type(payload).__name__}")
                again = backend.load(backend.load(payload).serialize())
                for which in ("opt", "max"):
                    inputs = example.inputs(self.device, which)
                    compare(again.run(inputs), expected_of(example, inputs), f"{example.name}, saved and loaded twice")

    def test_fresh_process(self) -> None:
        """A process that has imported tiacc and nothing else loads and runs an engine from its bytes."""
        with rule("fresh-process"):
            made = list(self.built())
            inputs = [example.inputs(self.device) for example, _ in made]
            payloads = [engine.serialize() for _, engine in made]
            results = run_in_fresh_process(self.make_backend().name, payloads, inputs)
            for (example, _), given, outputs in zip(made, inputs, results):
                compare(outputs, expected_of(example, given), f"{example.name}, elsewhere")

    def test_damage_is_refused(self) -> None:
        """Bytes that are no engine, or the beginning of one, are refused with an `EngineFormatError`."""
        with rule("damage-is-refused"):
            backend = self.make_backend()
            example, engine = next(self.built())
            payload = engine.serialize()
            half = payload[: len(payload) // 2]
            for kind, damaged in {"no bytes": b"", "text": b"not an engine at all", "half an engine": half}.items():
                try:
                    backend.load(damaged).run(example.inputs(self.device))
                except (EngineFormatError, BackendUnavailableError):
                    continue
                except Exception as error:  # any other error is what this rule forbids
                    raise ContractError(f"load() of {kind} raises {type(error).__name__}: {error}") from error
                raise ContractError(f"load() takes {kind} for an engine")

    def test_build_errors(self) -> None:
        """What `build` cannot do is a `BuildError`."""
        with rule("build-errors"):
            backend = self.make_backend()
            example = complex_example(self.device)
            if all(backend.supports(node) for node in operators_of(example.graph)):
                return
            try:
                engine = backend.build(example.graph, example.spec(self.device))
            except BuildError:
                return
            except Exception as error:  # any other error is what this rule forbids
                raise ContractError(f"build() of an operator that is not supported raises {type(error).__name__}: {error}") from error
            inputs = [torch.randn(2, 2, dtype=torch.complex64, device=self.device)]
            compare(engine.run(inputs), expected_of(example, inputs), "an operator that supports() refuses and build() accepts")

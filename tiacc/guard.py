"""The accuracy guard: what the input model gives on the test data and at every size it may have, and how far a candidate is from that."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch

from tiacc import measure, models, samples
from tiacc.errors import AccuracyError
from tiacc.graph import torch_compat
from tiacc.measure import Accuracy, Judge
from tiacc.options import Options
from tiacc.samples import Item, ModelInputs

SEEN = 3.0
"""An output of the input model that differs by so many times what arithmetic is usually off by differs in that arithmetic too."""


ROUNDS_ON_GPU = 3
"""How often a model is called with each item there: engines launch the kernels of the first call of a shape one by one, record those of the
second as a graph, and replay that from then on, and each of these is to be right."""


ROUNDS_OF_STATE = 2
"""How often a model that keeps state is called with each item: the second call tells what the first has left."""


class Guard:
    """Compares candidates with the input model.

    Where the model keeps state, all calls are of copies: each candidate begins where the input model began, and none is changed.

    Attributes:
        data: What both are called with: the test data, then, where these leave some out, items at the min, opt and max of the shapes.
        references: What the input model gives for each.
        judge: What says how far outputs are from them.
        warnings: What could not be compared, a sentence each.
        seconds: How long the input model takes for all data; infinity before it was called.
    """

    def __init__(self, model: torch.jit.ScriptModule, inputs: ModelInputs, device: torch.device, judge: Judge) -> None:
        """Prepare the data.

        Args:
            model: The input model, on the device.
            inputs: What it is called with.
            device: Where the data are to be.
            judge: What compares.
        """
        self.data: list[Item] = [models.moved(item, device) for item in inputs.data]
        self.references: list[Any] = []
        self.judge = judge
        self.warnings: list[str] = []
        self.seconds = math.inf
        self._model = model
        self._inputs = inputs
        self._device = device
        self._varied: Item | None = None
        self._varied_reference: Any = None
        self._later: list[Any] = []

    @cached_property
    def keeps_state(self) -> bool:
        """Whether calls of the model may change it."""
        return torch_compat.keeps_state(self._model)

    @cached_property
    def _rounds(self) -> int:
        return ROUNDS_ON_GPU if self._device.type == "cuda" else ROUNDS_OF_STATE if self.keeps_state else 1

    def fresh(self, module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
        """Return a module to be called, whose calls do not change `module`: a copy, where the input model keeps state."""
        return copy.deepcopy(module) if self.keeps_state else module

    def timed(self, module: torch.jit.ScriptModule, item: Item) -> Callable[[], Any]:
        """Return a call of a module that may be made any number of times: when its state takes no more, it is that of a new copy."""
        arguments, called = models.cloned(item), self.fresh(module)
        if not self.keeps_state:
            return lambda: called(*arguments)

        def call() -> Any:
            nonlocal called
            try:
                return called(*arguments)
            except Exception:  # noqa: BLE001 - a cache that is full, say; what else is wrong is so again
                called = self.fresh(module)
                return called(*arguments)

        return call

    @property
    def calls(self) -> list[Item]:
        """All that models are called with: the data, and what tells whether results are stale."""
        return [*self.data, *([] if self._varied is None else [self._varied])]

    @property
    def shapes(self) -> str:
        """The shapes that are compared, as `samples.describe` writes them."""
        return samples.describe(self.data)[0]

    def run_references(self) -> None:
        """Run the input model on all data.

        Raises:
            InvalidArgumentError: It fails on an item of the test data.
        """
        model = self.fresh(self._model)
        began = time.perf_counter()
        self.references = [models.run_checked(model, item, index) for index, item in enumerate(self.data)]
        self._add_other_shapes(model)
        self.seconds = time.perf_counter() - began
        self._run_later(model)
        first, *others = [samples.shapes_of(item) for item in self.data]
        if first not in others:
            self._vary(model)

    def _run_later(self, model: torch.jit.ScriptModule) -> None:
        """Run the input model on the data again, as long as its state takes that."""
        try:
            for _ in range(1, self._rounds):
                self._later.extend(models.call(model, item) for item in self.data)
        except Exception as error:  # noqa: BLE001 - the user's model may raise anything
            self.warnings.append(
                f"the input model fails when it is called with the test data again and again ({models.reason_of(error)}); its state was "
                f"compared over {len(self.references) + len(self._later)} calls"
            )

    @property
    def _called(self) -> list[Item]:
        """What the input model was called with, call by call: the data as often as it took them."""
        return (self.data * self._rounds)[: len(self.references) + len(self._later)]

    def calls_before(self, item: Item) -> tuple[int, int]:
        """Return how often the input model, and a candidate that was compared, have been called with the shapes of an item at least."""
        shapes = samples.shapes_of(item)
        count = sum(samples.shapes_of(other) == shapes for other in self._called)
        is_varied = self._varied is not None and samples.shapes_of(self.data[0]) == shapes
        return count + (is_varied and self._varied_reference is not None), count + is_varied

    def compare(self, candidate: torch.jit.ScriptModule, arithmetic: torch.dtype | str = torch.float32) -> Accuracy:
        """Return the largest error of each output over all data.

        Args:
            candidate: What is compared with the input model.
            arithmetic: The least precise type that it computes in, as `Options.tolerance_for` takes it.

        Raises:
            AccuracyError: The outputs differ in more than their numbers, or the candidate fails where the input model does not.
        """
        candidate = self.fresh(candidate)
        accuracy = Accuracy()
        first: Any = None
        for index, (item, reference) in enumerate(zip(self._called, self.references + self._later)):
            outputs = _call(candidate, item)
            accuracy = accuracy.worst(self.judge(reference, outputs))
            first = outputs if index == 0 else first
        if self._varied is not None:
            self._check_another_call(candidate, self._varied, first, SEEN * Options().tolerance_for(arithmetic))
        # The results of the first call are still what they were: later calls have not written over them.
        return accuracy.worst(self.judge(self.references[0], first))

    def _add_other_shapes(self, model: torch.jit.ScriptModule) -> None:
        """Add the test data cut or repeated to those min, opt and max shapes that they lack, where the input model takes that."""
        items = samples.at_other_shapes(self._inputs)
        if items and self._device.type == "cuda" and any(not spec.dtype.is_floating_point for spec in self._inputs.specs):
            # An index out of range is an error on a CPU, and the end of the process's work on a GPU.
            self.warnings.append("outputs were compared at the shapes of the test data alone; give test data of the min and max shapes too")
            return
        for item in items:
            moved = models.moved(item, self._device)
            try:
                self.references.append(models.call(model, moved))
            except Exception as error:  # noqa: BLE001 - the model need not take the data in another shape: indices, say
                shape = samples.describe([item])[0]
                self.warnings.append(
                    f"outputs were not compared at the shapes {shape}, which the test data lack: cut or repeated to them, the input "
                    f"model fails on the data ({models.reason_of(error)}); give test data of these shapes"
                )
                continue
            self.data.append(moved)

    def _vary(self, model: torch.jit.ScriptModule) -> None:
        """Prepare a second call of the first shapes, if the input model takes it: each tensor back to front.

        What the input model gives is seldom needed. It is called at once where it keeps state, and where an index that it refuses may be
        more to a candidate than an error.
        """
        # As above: indices are not changed on a GPU.
        self._varied = models.reversed_values(self.data[0], integers=self._device.type == "cpu")
        if self.keeps_state or any(not spec.dtype.is_floating_point for spec in self._inputs.specs):
            self._run_varied(model)

    def _run_varied(self, model: torch.jit.ScriptModule) -> bool:
        """Run the input model on the second call, unless that was done; return whether it takes it."""
        if self._varied is not None and self._varied_reference is None:
            try:
                self._varied_reference = models.call(model, self._varied)
            except Exception:  # noqa: BLE001 - the model need not take such values: indices out of order, say
                self._varied = None
        return self._varied is not None

    def _check_another_call(self, candidate: torch.jit.ScriptModule, item: Item, first: Any, seen: float) -> None:
        """Check that a model computes its outputs from the inputs of each call.

        The numbers are not those of the user, so that these are not held to the tolerance.

        Raises:
            AccuracyError: An output is that of the first call, where it should be another; or the model alone fails.
        """
        try:
            outputs = _call(candidate, item)
        except AccuracyError:
            if self._run_varied(self._model):
                raise
            return
        try:
            found = {error.name: error.rel_norm for error in measure.compare(first, outputs)}
            if (found and all(found.values())) or not self._run_varied(self._model):
                return
            changes = measure.compare(self.references[0], self._varied_reference)
        except AccuracyError:  # results whose very shape is another are not those of the first call
            return
        for change in changes:
            if change.rel_norm > seen and not found.get(change.name):
                raise AccuracyError(f"{change.name} is the same for other inputs, and the input model's is not")


def _call(candidate: torch.jit.ScriptModule, item: Sequence[Any]) -> Any:
    try:
        return models.call(candidate, item)
    except Exception as error:  # whatever an engine or torch may raise: the model is not used
        raise AccuracyError(f"the optimized model fails where the input model does not: {models.reason_of(error)}") from error

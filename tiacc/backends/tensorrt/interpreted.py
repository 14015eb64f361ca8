"""An engine that evaluates a TensorRT network on the CPU: what TensorRT was told to compute, on a machine that cannot run it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from tiacc.backends.base import BuildSpec
from tiacc.errors import BuildError
from tiacc.graph.types import TensorSpec


class InterpretedEngine:
    """A network and the reference interpreter. It checks, and cannot be saved."""

    def __init__(self, definition: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self._definition = definition
        self._lock = threading.Lock()

    @classmethod
    def of(cls, backend: Any, subgraph: fx.GraphModule, spec: BuildSpec) -> InterpretedEngine:
        """Convert a subgraph as a TensorRT backend would build it.

        Raises:
            BuildError: A node cannot be converted.
        """
        return cls(backend.build_network(subgraph, spec), spec.inputs, spec.outputs)

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the outputs, in the types that the network declares for them."""
        from tiacc.backends.tensorrt.interpreter import NetworkInterpreter

        definition = self._definition
        with self._lock:
            interpreter = NetworkInterpreter(definition.flavour.module, definition.network, definition.constants)
            results = interpreter.run({name: tensor.detach().contiguous() for name, tensor in zip(definition.inputs, inputs)})
        return [results[name].to(spec.dtype) for name, spec in zip(definition.outputs, self.outputs)]

    def serialize(self) -> bytes:
        """Refuse: what is saved is the engine, not its check."""
        raise BuildError("an interpreted network checks an engine, and is not one to save; save the engine itself")

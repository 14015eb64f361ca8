"""The backend that runs a subgraph as torch runs it: what the others are held against, and the template for a new one.

A backend needs four things: whether it can be used here (`available`), which nodes it takes (`supports`), how it compiles a subgraph
(`build`), and how it loads what it saved (`load`). The engine computes, and turns itself into bytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import fx

from tiacc.backends.base import SUPPORTED, BuildSpec, Engine, Support, register
from tiacc.errors import BuildError, EngineFormatError, ExportError
from tiacc.graph import exporter, torch_compat
from tiacc.graph.types import TensorSpec


class ReferenceEngine:
    """A subgraph as a TorchScript function."""

    def __init__(self, function: torch_compat.Function, payload: bytes) -> None:
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self._function = function
        self._payload = payload

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the outputs."""
        with torch.no_grad():
            results = self._function(*inputs)
            return own([results] if isinstance(results, torch.Tensor) else list(results), inputs)

    def serialize(self) -> bytes:
        """Return the function as TorchScript saves it."""
        return self._payload


@register
class ReferenceBackend:
    """Runs any functional aten operator, on any device, with torch."""

    name: ClassVar[str] = "reference"
    device_types: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    def available(self) -> Support:
        """Return that it is: it needs torch alone."""
        return SUPPORTED

    def version(self) -> str:
        """Return the version of torch."""
        return str(torch.__version__)

    def supports(self, node: fx.Node) -> Support:
        """Return whether a node is an operator with tensors for results."""
        if not isinstance(node.target, torch._ops.OpOverload):
            return Support(False, f"{node.target} is not an operator")
        value = node.meta.get("val")
        values = value if isinstance(value, (list, tuple)) else (value,)
        if not all(isinstance(item, torch.Tensor) for item in values):
            return Support(False, "its result is not a tensor")
        if torch_compat.written_arguments(node.target):
            return Support(False, "it writes into its input")
        return SUPPORTED

    def build(self, subgraph: fx.GraphModule, spec: BuildSpec) -> Engine:
        """Compile a subgraph to TorchScript.

        Raises:
            BuildError: A node has no TorchScript form.
        """
        try:
            function = exporter.to_function(subgraph)
        except ExportError as error:
            raise BuildError(f"the reference backend cannot build this subgraph: {error}") from error
        engine = ReferenceEngine(function, function.save_to_buffer())
        engine.inputs, engine.outputs = spec.inputs, spec.outputs
        return engine

    def load(self, payload: bytes) -> Engine:
        """Load a TorchScript function.

        Raises:
            EngineFormatError: The bytes are not TorchScript.
        """
        try:
            return ReferenceEngine(torch.jit.load(io.BytesIO(payload)), payload)
        except RuntimeError as error:
            raise EngineFormatError(f"these bytes are not an engine of the reference backend: {error}") from error


def own(outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return results that are the caller's own: a view of an input is copied."""
    return [
        output.clone() if any(torch_compat.shares_memory(output, tensor) for tensor in inputs) else output for output in outputs
    ]


def run_graph(gm: fx.GraphModule, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Compute the outputs of a graph node by node in eager torch: the oracle for every engine.

    Args:
        gm: A graph over aten overloads whose output is a tuple.
        inputs: One tensor a placeholder.
    """
    with torch.no_grad():
        return list(gm(*inputs))

"""The backends ``tensorrt`` and ``tensorrt_rtx``: one class, two libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import fx

from tiacc.backends.base import SUPPORTED, BuildSpec, Engine, Support, register
from tiacc.backends.tensorrt import flavours
from tiacc.backends.tensorrt.payload import EnginePayload

if TYPE_CHECKING:
    from tiacc.backends.tensorrt.builder import NetworkDefinition


@register
class TensorRTBackend:
    """Subgraphs as TensorRT networks, built layer by layer through the native API."""

    name: ClassVar[str] = "tensorrt"
    device_types: ClassVar[tuple[str, ...]] = ("cuda",)

    def available(self) -> Support:
        """Return whether the library is installed and a CUDA device is here."""
        installed = flavours.check_installed(self.name)
        if not installed:
            return installed
        if not torch.cuda.is_available():
            return Support(False, f"{self.name} needs a CUDA device to run engines, and torch finds none")
        return SUPPORTED

    def can_build(self, options: dict[str, Any]) -> Support:
        """Return whether engines can be built on this machine, which need not be able to run them.

        Args:
            options: The options of the build: with a ``target``, TensorRT-RTX builds without a GPU.
        """
        installed = flavours.check_installed(self.name)
        if not installed:
            return installed
        if torch.cuda.is_available() and not options.get("target"):
            return SUPPORTED
        if not flavours.load_flavour(self.name).has("compute_capabilities"):
            return Support(False, f"{self.name} builds on the GPU that it builds for; use 'tensorrt_rtx' with a target")
        if not options.get("target"):
            return Support(False, "there is no CUDA device; name the GPUs to build for: target=['sm86']")
        return SUPPORTED

    def version(self) -> str:
        """Return the version of the library, or an empty string where it is not installed."""
        return flavours.load_flavour(self.name).version_text if flavours.check_installed(self.name) else ""

    def supports(self, node: fx.Node) -> Support:
        """Return whether a node can be converted by this version of the library."""
        from tiacc.backends.tensorrt import converters

        installed = flavours.check_installed(self.name)
        return converters.supports(node, flavours.load_flavour(self.name).has) if installed else installed

    def build_network(self, subgraph: fx.GraphModule, spec: BuildSpec) -> NetworkDefinition:
        """Convert a subgraph to a network, without building it: to be interpreted, or looked at.

        Raises:
            BackendUnavailableError: The library is not installed.
            BuildError: A node cannot be converted.
        """
        from tiacc.backends.tensorrt import builder

        flavour = flavours.load_flavour(self.name)
        return builder.build_network(flavour, subgraph, spec.inputs, builder.BuildOptions.parse(spec.options))

    def build(self, subgraph: fx.GraphModule, spec: BuildSpec) -> Engine:
        """Build an engine from a subgraph.

        Raises:
            BackendUnavailableError: The library is not installed.
            InvalidArgumentError: An option is wrong.
            BuildError: A node cannot be converted, or TensorRT cannot build the network.
        """
        from tiacc.backends.tensorrt import builder
        from tiacc.backends.tensorrt.engine import TensorRTEngine

        options = builder.BuildOptions.parse(spec.options)
        definition = self.build_network(subgraph, spec)
        profiles = builder.profiles_of(spec)
        plan = builder.build_plan(definition, profiles, spec.workspace_bytes, options)
        return TensorRTEngine(
            EnginePayload(
                self.name,
                definition.flavour.version_text,
                options.target,
                definition.inputs,
                definition.outputs,
                spec.inputs,
                spec.outputs,
                profiles,
                plan.data,
            )
        )

    def load(self, payload: bytes) -> Engine:
        """Return the engine that is stored in `payload`.

        Raises:
            EngineFormatError: The bytes are not an engine of this backend and version.
            BackendUnavailableError: The library or a CUDA device is missing.
        """
        from tiacc.backends.tensorrt.engine import TensorRTEngine

        engine = TensorRTEngine(EnginePayload.from_bytes(payload))
        engine.prepare()
        return engine


@register
class TensorRTRTXBackend(TensorRTBackend):
    """Subgraphs as TensorRT-RTX networks; engines are built for named GPUs, on a machine that may have none."""

    name: ClassVar[str] = "tensorrt_rtx"

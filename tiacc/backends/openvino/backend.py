"""The backend that runs subgraphs on the CPU with OpenVINO."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import fx

from tiacc.backends.base import BuildSpec, Engine, Support, register
from tiacc.backends.openvino import library, payload
from tiacc.errors import BackendUnavailableError, BuildError, EngineFormatError


@register
class OpenVINOBackend:
    """Runs subgraphs on the CPU with OpenVINO, in the types of the graph.

    What it supports, and under which conditions, is the table `tiacc.backends.openvino.table`. It differs from torch in two ways
    that no check of a node can show. A NaN in the input of ``relu``, ``clamp``, ``exp`` or a maximum does not always come out as a
    NaN; what sorts it, or takes it for a bool, puts it elsewhere. And an index beyond the end of a tensor, where torch raises, reads
    zeros, if it is computed inside of an engine; those that are an input of it are checked in each call.

    Options (`BuildSpec.options`):
        num_threads: The threads that an engine uses; those of torch (`torch.get_num_threads`) when it is compiled, unless given.
    """

    name: ClassVar[str] = "openvino"
    device_types: ClassVar[tuple[str, ...]] = ("cpu",)
    call_us: ClassVar[float] = 20.0

    def available(self) -> Support:
        """Return whether OpenVINO is installed."""
        return library.availability()

    def version(self) -> str:
        """Return the version of OpenVINO, or an empty string where it is not installed."""
        return library.version()

    def native_float_types(self) -> frozenset[torch.dtype]:
        """Return the floating-point types that engines compute in on this CPU; values of other types are computed in float32."""
        return library.native_float_types()

    def supports(self, node: fx.Node) -> Support:
        """Return whether OpenVINO computes a node as torch does."""
        from tiacc.backends.openvino.rules import judge

        return judge(node)

    def build(self, subgraph: fx.GraphModule, spec: BuildSpec) -> Engine:
        """Convert and compile a subgraph.

        Raises:
            BuildError: OpenVINO fails; the message has its own, and the nodes with their source lines.
        """
        from tiacc.backends.openvino import bounds, indices
        from tiacc.backends.openvino.conversion import convert
        from tiacc.backends.openvino.engine import OpenVINOEngine

        conversion = convert(subgraph, spec.inputs, spec.outputs)
        header = payload.Header(
            openvino=library.version(),
            inputs=spec.inputs,
            outputs=spec.outputs,
            parameters=conversion.parameters,
            integer_limits=bounds.input_limits(subgraph),
            precision="f32",
            num_threads=int(spec.options.get("num_threads") or 0),
            static_shapes=_static_shapes(spec),
            index_ranges=indices.input_ranges(subgraph),
        )
        return OpenVINOEngine(conversion.model, header, keep=conversion.function)

    def load(self, payload_bytes: bytes) -> Engine:
        """Compile the model that an engine was saved with.

        Raises:
            EngineFormatError: The bytes are not an engine of this backend, or OpenVINO cannot read its model.
            BackendUnavailableError: OpenVINO is not installed.
        """
        header, xml, weights = payload.unpack(payload_bytes)
        support = self.available()
        if not support:
            raise BackendUnavailableError(f"this engine needs OpenVINO {header.openvino} or later: {support.reason}")
        from tiacc.backends.openvino.engine import OpenVINOEngine

        try:
            model, keep = payload.read_model(xml, weights)
            return OpenVINOEngine(model, header, keep=keep)
        except (RuntimeError, BuildError) as error:
            raise EngineFormatError(
                f"OpenVINO {library.version()} cannot read a model that {header.openvino} wrote "
                f"({' '.join(str(error).split())[-300:]}); optimize the model again"
            ) from error


def _static_shapes(spec: BuildSpec) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Return the shapes that get a model of their own: those of several static profiles.

    A model for every size computes convolutions as fast (0.94 to 0.99 of the time of a static one, MobileNetV3), and short sequences
    through attention in half as much again (1.49, four layers of width 256 at length 16; 1.00 at length 128).
    """
    if len(spec.profiles) < 2 or not all(profile.is_static for profile in spec.profiles):
        return ()
    return tuple(dict.fromkeys(profile.opt for profile in spec.profiles))

"""The backend that runs subgraphs on a GPU with fused cuDNN graphs and Triton kernels, as one CUDA graph for each shape."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import fx

from tiacc.backends.base import BuildSpec, Engine, Support, register
from tiacc.backends.cudnn import library
from tiacc.errors import BackendUnavailableError, BuildError, ExportError


@register
class CudnnBackend:
    """Runs subgraphs on a GPU; `tiacc.backends.cudnn.planner` says how they become steps.

    Options (`BuildSpec.options`):
        tuning_seconds: The time that choosing tactics may take; 0 takes the first of each step.
        cache_dir: Where the tactics that were found are kept.
    """

    name: ClassVar[str] = "cudnn"
    device_types: ClassVar[tuple[str, ...]] = ("cuda",)

    def available(self) -> Support:
        """Return whether there is a GPU, and the frontend of cuDNN is installed."""
        return library.availability()

    def version(self) -> str:
        """Return the versions of the frontend and of cuDNN, or an empty string where the frontend is not installed."""
        return library.version()

    def supports(self, node: fx.Node) -> Support:
        """Return whether a node can be a step: it is functional, and torch runs it without waiting for the GPU."""
        from tiacc.backends.cudnn import support

        return support.judge(node)

    def build(self, subgraph: fx.GraphModule, spec: BuildSpec) -> Engine:
        """Plan a subgraph, and choose the tactics of its steps at the optimum of each profile.

        Raises:
            BuildError: A node has no plan, or a step runs with no tactic.
        """
        from tiacc.backends.cudnn.engine import CudnnEngine
        from tiacc.backends.cudnn.merging import merge_siblings
        from tiacc.graph import archive

        flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        try:
            written = archive.to_bytes(subgraph)
        except ExportError as error:
            raise BuildError(f"the cudnn backend cannot save this subgraph: {error}") from error
        gm = archive.from_bytes(written)
        merge_siblings(gm)
        engine = CudnnEngine(gm, spec.inputs, spec.outputs, spec.profiles, flags)
        shapes = list(dict.fromkeys(profile.opt for profile in spec.profiles)) or [tuple(item.sizes() for item in spec.inputs)]
        seconds = float(spec.options.get("tuning_seconds", 60.0)) / len(shapes)
        for sizes in shapes:
            engine.tune(_made_up(spec, sizes), seconds, spec.options.get("cache_dir"))
        return engine

    def load(self, payload: bytes) -> Engine:
        """Load an engine.

        Raises:
            EngineFormatError: The bytes are no such engine.
            BackendUnavailableError: There is no GPU here, or the frontend of cuDNN is not installed.
        """
        from tiacc.backends.cudnn.engine import CudnnEngine

        engine = CudnnEngine.deserialize(payload)
        support = self.available()
        if not support:
            raise BackendUnavailableError(f"this engine runs on a GPU with cuDNN: {support.reason}")
        return engine


def _made_up(spec: BuildSpec, sizes: tuple[tuple[int, ...], ...]) -> list[torch.Tensor]:
    """Return inputs of given shapes: numbers around 0, and ones where they are integers or conditions."""
    index = torch.cuda.current_device() if spec.device.index is None else spec.device.index
    device = torch.device(spec.device.type, index)
    generator = torch.Generator(device).manual_seed(0)
    made = []
    for item, shape in zip(spec.inputs, sizes):
        if item.dtype.is_floating_point:
            made.append(torch.randn(shape, generator=generator, device=device).to(item.dtype))
        else:
            made.append(torch.ones(shape, dtype=item.dtype, device=device))
    return made


"""The steps of a program and its ways out as one CUDA graph.

The caller gets new tensors from each call, so the kernels that write them are pointed at others before each launch. What the next call
needs is made and pointed at when the graph is under way: the host has time then, and a call has one thing to do less until the GPU works.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from tiacc.backends.cudnn import driver
from tiacc.backends.cudnn.border import Exits, Launch
from tiacc.graph import torch_compat

SPARE_BYTES = 64 << 20
"""Outputs of up to so many bytes are made for the next call ahead of it."""


class CallGraph:
    """A graph of steps, and of what brings out their results.

    Args:
        steps: Launches the steps, which have run once, on the current stream.
        exits: The ways out.
        device: Where the program runs.
        with_exits: Whether the ways out can be in the graph: the driver launches them.
    """

    def __init__(self, steps: Callable[[], None], exits: Exits, device: torch.device, *, with_exits: bool) -> None:
        self._exits = exits
        self._nodes: list[tuple[driver.KernelNode, list[tuple[int, int]]]] = []
        self._ready: list[torch.Tensor] | None = None
        self._graph = self._with_exits(steps, device) if with_exits else torch_compat.recorded(steps, torch.cuda.Stream(device))

    def _with_exits(self, steps: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
        made = self._exits.make()

        def work() -> None:
            steps()
            self._exits.launch(made, torch_compat.current_stream(device.index or 0))

        kernels = [launch.call.loaded() for launch, _ in self._exits.launches]  # loaded before: no recording allows that
        graph = torch_compat.recorded(work, torch.cuda.Stream(device), keep=True)
        nodes = driver.kernel_nodes(graph, {kernel.function: len(kernel.arguments) for kernel in kernels})
        for launch, sources in self._exits.launches:
            node = _node_of(launch, [tensor for index, storage in sources for tensor in (made[index], storage)], nodes)
            self._nodes.append((node, [(2 * place, index) for place, (index, _) in enumerate(sources)]))
        return graph

    def __call__(self, stream: int) -> list[torch.Tensor]:
        """Compute the outputs on a stream, which is the current one and the same at each call."""
        made, self._ready = self._ready or self._outputs(), None
        self._graph.replay()
        if not self._nodes:
            self._exits.launch(made, stream)
        self._exits.copy(made)
        if self._exits.size_bytes <= SPARE_BYTES:
            self._ready = self._outputs()
        return made

    def _outputs(self) -> list[torch.Tensor]:
        """Return new tensors, at which the kernels of the next launch are pointed."""
        made = self._exits.make()
        for node, places in self._nodes:
            for place, index in places:
                node.arguments[place] = made[index].data_ptr()
            node.update()
        return made

    def launch(self) -> None:
        """Launch the graph alone, into outputs that nobody gets."""
        self._ready = self._ready or self._outputs()
        self._graph.replay()


def _node_of(launch: Launch, tensors: Sequence[torch.Tensor], nodes: Sequence[driver.KernelNode]) -> driver.KernelNode:
    """Return the node of a launch with some arguments.

    Raises:
        RuntimeError: It is not there.
    """
    wanted = [tensor.data_ptr() for tensor in tensors]
    for node in nodes:
        if node.function == launch.call.loaded().function and node.arguments[: len(wanted)] == wanted:
            return node
    raise RuntimeError(f"a kernel is not among the {len(nodes)} of its kind in the graph")

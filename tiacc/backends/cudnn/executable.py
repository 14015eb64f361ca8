"""A program in memory, ready to run: at first call by call, then as one CUDA graph."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import torch

from tiacc.backends.cudnn import border, eager, memory_plan
from tiacc.backends.cudnn.fused import FusedGraph
from tiacc.backends.cudnn.launch import Bench, Call, TritonCall, build_ahead, compile_ahead
from tiacc.backends.cudnn.naming import key_of
from tiacc.backends.cudnn.program import CONSTANT, Buffer, ConvStep, Program, Ref, Step, TorchStep
from tiacc.graph import torch_compat
from tiacc.runtime import buffers

Packed = dict[tuple[str, str], torch.Tensor]


class Executable:
    """A program bound to memory on one device.

    Args:
        program: The steps.
        constants: The numbers of constant buffers on the device, by name; those that are missing are added.
        packed: Weights in the layouts of kernels; shared by the executables of an engine.
        device: Where it runs.
        region: The memory of its buffers; None for memory of its own, from torch.
    """

    def __init__(
        self,
        program: Program,
        constants: dict[str, torch.Tensor],
        packed: Packed,
        device: torch.device,
        region: buffers.Region | None = None,
    ) -> None:
        self.program = program
        self.device = device
        self.region = region
        self.memory = memory_plan.assign(program)
        self.lock = region.lock if region is not None else threading.Lock()
        self.runs = 0
        self.last_run = time.monotonic()
        self._constants = constants
        self._bytes = (
            region.bytes if region is not None else torch.empty(max(self.memory.size_bytes, 1), dtype=torch.uint8, device=device)
        )
        self._storages: dict[Buffer, torch.Tensor] = {}
        self.bench = Bench(self.read, packed, device)
        self.calls: list[Call] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        self._entrances = [None if entry is None else border.Entrance(entry, self.read(entry.ref)) for entry in program.inputs]
        self._exits = border.Exits(program.outputs, [self.read(ref) for ref, _ in program.outputs])

    def read(self, ref: Ref) -> torch.Tensor:
        """Return the tensor of a ref."""
        storage = self._storages.get(ref.buffer)
        if storage is None:
            storage = self._storages[ref.buffer] = self._storage(ref.buffer)
        return ref.tensor(storage)

    def _storage(self, buffer: Buffer) -> torch.Tensor:
        if buffer.kind == CONSTANT:
            if buffer.name not in self._constants:
                assert buffer.data is not None
                self._constants[buffer.name] = buffer.data.to(self.device).reshape(-1)
            return self._constants[buffer.name]
        begin = self.memory.offsets[buffer]
        return self._bytes[begin : begin + buffer.size_bytes].view(buffer.dtype)

    def bind(self, tactics: dict[str, str]) -> None:
        """Bind each step with its tactic; one that has none gets its first."""
        chosen = [tactics.get(key_of(step)) or self.bench.tactics(step)[0] for step in self.program.steps]
        self._build_ahead(chosen)
        self.calls = [self.bench.bind(step, tactic) for step, tactic in zip(self.program.steps, chosen)]
        self.bench.forget()
        own = [isinstance(call, TritonCall) for call in self.calls]
        for place, call in enumerate(self.calls):
            if isinstance(call, TritonCall):
                # libraries launch their kernels by rules of their own
                call.overlap(waits=place > 0 and own[place - 1], triggers=place + 1 < len(own) and own[place + 1])
            elif place > 0 and not own[place - 1] and adds_result_of(self.program.steps[place - 1], self.program.steps[place]):
                self.calls[place] = self.bench.fenced(call)
        if self.device.type == "cuda":
            compile_ahead([call for call in self.calls if isinstance(call, TritonCall)])

    def _build_ahead(self, chosen: Sequence[str]) -> None:
        graphs: list[tuple[FusedGraph, list[int]]] = []
        for step, tactic in zip(self.program.steps, chosen):
            if tactic.startswith("cudnn:") and isinstance(step, ConvStep):
                graph = self.bench.graph(step)
                if graph is not None:
                    graphs.append((graph, [int(tactic[6:])]))
        build_ahead(graphs)

    def fill(self, inputs: Sequence[torch.Tensor], stream: int | None = None) -> None:
        """Bring the inputs into their buffers, converted and laid out.

        Args:
            inputs: The caller's tensors.
            stream: The handle of the current stream, if it is known.
        """
        stream = self._stream() if stream is None else stream
        for entrance, tensor in zip(self._entrances, inputs):
            if entrance is not None:
                entrance.bring_in(tensor, stream)

    def _stream(self) -> int:
        return torch_compat.current_stream(self.device.index or 0) if self.device.type == "cuda" else 0

    def steps(self, count: int | None = None) -> None:
        """Launch the steps one by one on the current stream: all, or the first `count`."""
        for call in self.calls[:count]:
            call()

    def capture(self) -> None:
        """Record the steps as a CUDA graph; they have run at least once."""
        self._graph = self.recorded(len(self.calls))

    def recorded(self, count: int) -> torch.cuda.CUDAGraph:
        """Return the first steps as a CUDA graph; they have run at least once."""
        return torch_compat.recorded(lambda: self.steps(count), torch.cuda.Stream(self.device))

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def poison(self) -> None:
        """Fill all buffers but the constants with what is no number."""
        self._bytes.fill_(0xFF)

    @property
    def is_captured(self) -> bool:
        """Whether the steps are recorded."""
        return self._graph is not None

    def launch(self) -> None:
        """Launch the graph that was recorded on the current stream."""
        assert self._graph is not None
        self._graph.replay()

    def replay(self, inputs: Sequence[torch.Tensor], stream: int) -> list[torch.Tensor]:
        """Compute the outputs by the graph that was recorded, on a stream, which is the current one."""
        self.fill(inputs, stream)
        self.launch()
        self.last_run = time.monotonic()
        return self.results(stream)

    def run(self, inputs: Sequence[torch.Tensor], *, with_graph: bool) -> list[torch.Tensor]:
        """Compute the outputs on the current stream.

        Args:
            inputs: The inputs, of the program's shapes.
            with_graph: Whether to record a graph when the steps have run once.
        """
        if with_graph and self.runs:
            self.capture()
            return self.replay(inputs, self._stream())
        self.fill(inputs)
        self.steps()
        self.runs += 1
        return self.results()

    def results(self, stream: int | None = None) -> list[torch.Tensor]:
        """Return copies of the outputs, in the types of the graph; `stream` as for `fill`."""
        stream = self._stream() if stream is None else stream
        return self._exits.bring_out(stream)


def adds_result_of(before: Step, step: Step) -> bool:
    """Return whether a convolution adds, to its sums, what the step before it has just written."""
    written = {ref.buffer for ref in (before.outs if isinstance(before, TorchStep) else (before.out,))}
    return isinstance(step, ConvStep) and any(ref.buffer in written for ref in step.operands)


def run_eagerly(program: Program, inputs: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Compute the outputs of a program by torch alone, on any device: the oracle of the kernels."""
    executable = Executable(program, {}, {}, device)
    executable.fill(inputs)
    for step in program.steps:
        eager.compute(step, executable.read)
    return executable.results()

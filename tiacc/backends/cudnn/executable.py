"""A program in memory, ready to run: at first call by call, then as one CUDA graph."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import torch

from tiacc.backends.cudnn import border, eager, kernels, memory_plan, together
from tiacc.backends.cudnn.binaries import Binaries, Binary
from tiacc.backends.cudnn.call_graph import CallGraph
from tiacc.backends.cudnn.fused import FusedGraph
from tiacc.backends.cudnn.launch import Bench, Call, build_ahead
from tiacc.backends.cudnn.naming import key_of
from tiacc.backends.cudnn.program import CONSTANT, Buffer, ConvStep, Program, Ref, Step, TorchStep, bytes_of
from tiacc.backends.cudnn.triton_call import TritonCall, compile_ahead
from tiacc.graph import torch_compat
from tiacc.runtime import buffers

Packed = dict[tuple[str, str], torch.Tensor]

LONG_BYTES = 8 << 20
"""A step that moves so many bytes takes longer than its launch: on an H100, 3 µs."""

ENOUGH_BYTES = 32 << 20
"""Steps that move so many bytes take as long as the launch of a graph: 12 µs."""


class Executable:
    """A program bound to memory on one device.

    Args:
        program: The steps.
        constants: The numbers of constant buffers on the device, by name; those that are missing are added.
        packed: Weights in the layouts of kernels; shared by the executables of an engine.
        device: Where it runs.
        region: The memory of its buffers; None for memory of its own, from torch.
        binaries: The kernels of the engine; None where Triton launches them.
    """

    def __init__(
        self,
        program: Program,
        constants: dict[str, torch.Tensor],
        packed: Packed,
        device: torch.device,
        region: buffers.Region | None = None,
        binaries: Binaries | None = None,
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
        self.bench = Bench(self.read, packed, device, binaries)
        self.calls: list[Call] = []
        self._kernels: list[TritonCall] = []
        self._first: list[TritonCall] = []
        self._graph: CallGraph | None = None
        self._binaries = binaries
        self._entrances = [None if entry is None else border.Entrance(entry, self.read(entry.ref), binaries) for entry in program.inputs]
        self._exits = border.Exits(program.outputs, [self.read(ref) for ref, _ in program.outputs], binaries)

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
        self.bench.kernels = []
        self.calls = [self.bench.bind(step, tactic) for step, tactic in zip(self.program.steps, chosen)]
        self._join()
        border_calls = [entrance.launch.call for entrance in self._entrances if entrance is not None and entrance.launch is not None]
        exit_calls = [launch.call for launch, _ in self._exits.launches]
        self._kernels = [*self.bench.kernels, *border_calls, *exit_calls]
        self.bench.forget()
        self._overlap([*self.calls, *exit_calls])
        if self.device.type == "cuda":
            compile_ahead(self._kernels)

    def _join(self) -> None:
        """Make one launch of those that do not depend on each other; it takes the place of the first, and the others do nothing."""
        for run in together.runs(self.program, self.memory):
            begin = run.start
            for place in range(run.start + 1, run.stop + 1):
                first, call = self.calls[begin], self.calls[place] if place < run.stop else None
                if isinstance(first, TritonCall) and isinstance(call, TritonCall) and call.is_like(first):
                    continue
                if isinstance(first, TritonCall) and place - begin > 1:
                    others = [call for call in self.calls[begin + 1 : place] if isinstance(call, TritonCall)]
                    self.bench.kernels = [call for call in self.bench.kernels if call is not first and call not in others]
                    joined = first.beside(others)
                    self.calls[begin:place] = [joined, *[_nothing] * len(others)]
                    self.bench.kernels.append(joined)
                begin = place

    def _overlap(self, calls: Sequence[Call]) -> None:
        """Have the kernels of ours that follow each other overlap, and keep those apart that would do so wrongly.

        Args:
            calls: The calls of the steps, then those that bring out the results.
        """
        real = [(place, call) for place, call in enumerate(calls) if call is not _nothing]
        own = [False, *(isinstance(call, TritonCall) for _, call in real), False]  # what is before the first and behind the last is not
        for index, (place, call) in enumerate(real):
            if isinstance(call, TritonCall):
                if kernels.may_overlap(self.device):  # libraries launch their kernels by rules of their own
                    call.overlap(waits=own[index], triggers=own[index + 2])
            elif place > 0 and not own[index] and adds_result_of(self.program.steps[place - 1], self.program.steps[place]):
                self.calls[place] = self.bench.fenced(call)

    def binaries(self) -> dict[str, Binary]:
        """Return the compiled kernels that it uses, by key; none where Triton launches them."""
        if self._binaries is None or not self.calls:
            return {}
        return {call.key(): call.binary() for call in self._kernels}

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

    def steps(self, end: int | None = None, begin: int = 0) -> None:
        """Launch the steps one by one on the current stream: all, or those from `begin` up to `end`."""
        for call in self.calls[begin:end]:
            call()

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
    def is_recorded(self) -> bool:
        """Whether the steps are recorded as a graph, which calls launch."""
        return self._graph is not None

    def replay(self, inputs: Sequence[torch.Tensor], stream: int) -> list[torch.Tensor]:
        """Compute the outputs by the graph that was recorded, on a stream, which is the current one."""
        assert self._graph is not None
        self.fill(inputs, stream)
        for call in self._first:
            call.loaded().launch(stream)
        results = self._graph(stream)
        self.last_run = time.monotonic()
        return results

    def launch(self) -> None:
        """Launch the graph that was recorded, on what the steps before it left."""
        assert self._graph is not None
        self._graph.launch()

    def run(self, inputs: Sequence[torch.Tensor], *, with_graph: bool) -> list[torch.Tensor]:
        """Compute the outputs on the current stream.

        Args:
            inputs: The inputs, of the program's shapes.
            with_graph: Whether to record a graph when the steps have run once.
        """
        if with_graph and self.runs:
            self._first = self._to_be_launched_alone()
            rest = len(self._first)
            with_exits = self._binaries is not None
            self._graph = CallGraph(lambda: self.steps(begin=rest), self._exits, self.device, with_exits=with_exits)
            return self.replay(inputs, self._stream())
        self.fill(inputs)
        self.steps()
        self.runs += 1
        return self.results()

    def _to_be_launched_alone(self) -> list[TritonCall]:
        """Return the launches of the first steps, if these keep the GPU busy while the host launches a graph of the rest."""
        found: list[TritonCall] = []
        total = 0
        for step, call in zip(self.program.steps, self.calls):
            size = bytes_of(step)
            if self._binaries is None or not isinstance(call, TritonCall) or size < LONG_BYTES or total > ENOUGH_BYTES:
                break
            found.append(call)
            total += size
        return found

    def results(self) -> list[torch.Tensor]:
        """Return copies of the outputs, in the types of the graph."""
        made = self._exits.make()
        self._exits.launch(made, self._stream())
        self._exits.copy(made)
        return made


def _nothing() -> None:
    """Take the place of a call that another does the work of."""


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

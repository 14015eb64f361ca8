"""The engine: executables by shape and stream, made when they are needed and kept while they are used."""

from __future__ import annotations

import json
import logging
import struct
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

from tiacc.backends.base import Profile
from tiacc.backends.cudnn import binaries, driver, kernels, library, racing, tactics, together
from tiacc.backends.cudnn.binaries import Binaries, Binary
from tiacc.backends.cudnn.executable import Executable, Packed
from tiacc.backends.cudnn.naming import key_of, title
from tiacc.backends.cudnn.planner import plan
from tiacc.backends.cudnn.program import Program
from tiacc.backends.cudnn.tactics import TacticCache, choose, microseconds, overlapping
from tiacc.errors import BackendUnavailableError, BuildError, EngineFormatError
from tiacc.graph import archive, specs, torch_compat
from tiacc.graph.types import TensorSpec
from tiacc.runtime import buffers
from tiacc.runtime.blob import spec_from_json, spec_to_json

_log = logging.getLogger(__name__)

MAGIC = b"TIACCDN\x00"
VERSION = 2
"""Engines of version 1 have no kernels with them."""

MAX_EXECUTABLES = 16
"""The most sets of shapes, on all streams, that an engine keeps memory and a graph for; the one not used longest goes first."""

_PREFIX = struct.Struct("<8sIQ")

Shapes = tuple[tuple[int, ...], ...]


class CudnnEngine:
    """A subgraph with the tactics of its steps; an `Engine`.

    Args:
        gm: The subgraph.
        inputs: The type of each input.
        outputs: The type of each output.
        profiles: The shapes it was built for.
        tf32: Whether float32 convolutions, and products, may use TensorFloat-32.
        tactics: The tactic of each step that was timed.
        kept: The kernels that it was saved with, by key.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        profiles: tuple[Profile, ...],
        tf32: tuple[bool, bool],
        tactics: dict[str, str] | None = None,
        kept: Mapping[str, Binary] | None = None,
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.profiles = profiles
        self.tactics = dict(tactics or {})
        self.tf32 = tf32
        self._gm = gm
        self._lock = threading.RLock()
        self._programs: OrderedDict[Shapes, Program] = OrderedDict()
        self._ready: dict[tuple[Shapes, int, int], Executable] = {}
        self._constants: dict[int, tuple[dict[str, torch.Tensor], Packed]] = {}
        self._binaries = Binaries(kept)

    def program(self, shapes: Shapes) -> Program:
        """Return the plan for a set of input shapes.

        Raises:
            BuildError: A node has no plan.
        """
        with self._lock:
            found = self._programs.get(shapes)
            if found is None:
                found = self._programs[shapes] = plan(static_graph(self._gm, self.inputs, shapes), self.tf32)
                if len(self._programs) > 2 * MAX_EXECUTABLES:
                    self._programs.popitem(last=False)
            return found

    def tune(self, inputs: Sequence[torch.Tensor], seconds: float, cache_dir: Path | None) -> None:
        """Choose the tactics of the steps at the shapes of some inputs, on the device that these are on.

        Raises:
            BuildError: A step runs with no tactic.
        """
        device = inputs[0].device
        with torch.cuda.device(device), torch.no_grad():
            executable = self.executable(inputs, torch.cuda.current_stream(device).cuda_stream)
            cache = TacticCache(cache_dir, library.environment_key(device))
            if self._takes_known(executable, inputs, cache):
                return
            executable.fill(inputs)
            chosen = choose(executable.program, executable.bench, cache, seconds)
            choices = [chosen, *(overlapping(executable.program, chosen, cache) if kernels.may_overlap(device) and seconds else ())]
            best = self._fastest(executable, choices, inputs)
            runs = together.runs(executable.program, executable.memory)
            alike = tactics.alike(executable.program, runs, best, cache)
            self.tactics.update(self._fastest(executable, [best, alike], inputs) if alike is not None and seconds else best)
            self._settle(executable, inputs, cache)
            self._binaries.forget()

    @staticmethod
    def _fastest(executable: Executable, choices: Sequence[dict[str, str]], inputs: Sequence[torch.Tensor]) -> dict[str, str]:
        return min(choices, key=lambda choice: _whole(executable, choice, inputs)) if len(choices) > 1 else choices[0]

    def _takes_known(self, executable: Executable, inputs: Sequence[torch.Tensor], cache: TacticCache) -> bool:
        """Take the tactics that this program was given before, if there are such and they still work."""
        known = cache.program(executable.program)
        if known is None:
            return False
        self.tactics.update(known)
        try:
            self._settle(executable, inputs, cache)
        except Exception as error:  # noqa: BLE001 - whatever cuDNN, Triton or torch raise: they are chosen anew
            _log.info("the tactics that were kept do not work: %s", error)
            return False
        return True

    def _settle(self, executable: Executable, inputs: Sequence[torch.Tensor], cache: TacticCache) -> None:
        """Bind a program, with other tactics for steps that do not wait for what they read.

        Raises:
            BuildError: A step has no other.
        """
        while True:
            executable.bind(self.tactics)
            wrong = racing.first_wrong(executable, inputs)
            if wrong is None:
                cache.add_program(executable.program, self.tactics)
                return cache.save()
            step = executable.program.steps[wrong]
            tactic = self.tactics[key_of(step)]
            _log.info("%s by %s does not wait for the step before it", title(step), tactic)
            other = cache.drop(step, tactic)
            if other is None:
                raise BuildError(f"{title(step)} gives other results in a graph than by itself, by whatever tactic")
            self.tactics[key_of(step)] = other

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the outputs on the caller's current stream, without waiting for the device.

        While the caller records a CUDA graph of its own, the steps are launched into that, with memory of its own.

        Raises:
            BackendUnavailableError: There is no CUDA device, or cuDNN's frontend is not installed.
        """
        device = inputs[0].get_device()
        if device < 0:
            support = library.availability()
            hint = "move the inputs there" if support else support.reason
            raise BackendUnavailableError(f"this engine runs on a GPU, and its input is on {inputs[0].device}; {hint}")
        stream = torch_compat.current_stream(device)
        if torch_compat.is_recording():
            with torch.cuda.device(device), torch.no_grad():
                return self._recorded(inputs)
        executable = self._ready.get((tuple([tensor.shape for tensor in inputs]), device, stream))
        if executable is not None and executable.is_recorded and torch_compat.current_device() == device:
            with executable.lock:
                return executable.replay(inputs, stream)
        with torch.cuda.device(device), torch.no_grad():
            executable = self.executable(inputs, stream)
            with executable.lock:
                if executable.is_recorded:
                    return executable.replay(inputs, stream)
                if not executable.calls:
                    executable.bind(self.tactics)
                return executable.run(inputs, with_graph=True)

    def serialize(self) -> bytes:
        """Return all that `CudnnBackend.load` needs."""
        with self._lock:
            used = {key: binary for executable in self._ready.values() for key, binary in executable.binaries().items()}
        rows, code = binaries.to_json({**self._binaries.kept, **used})
        header = {
            "kernels": rows,
            "kernel_bytes": len(code),
            "inputs": [spec_to_json(spec) for spec in self.inputs],
            "outputs": [spec_to_json(spec) for spec in self.outputs],
            "profiles": [[profile.min, profile.opt, profile.max] for profile in self.profiles],
            "tf32": list(self.tf32),
            "tactics": self.tactics,
            "cudnn": library.version(),
        }
        text = json.dumps(header, sort_keys=True).encode()
        return b"".join((_PREFIX.pack(MAGIC, VERSION, len(text)), text, code, archive.to_bytes(self._gm)))

    @classmethod
    def deserialize(cls, payload: bytes) -> CudnnEngine:
        """Return the engine that `serialize` wrote.

        Raises:
            EngineFormatError: The bytes are no such engine.
        """
        try:
            magic, version, length = _PREFIX.unpack_from(payload)
            if magic != MAGIC:
                raise EngineFormatError("these bytes are not an engine of the cudnn backend; optimize the model again")
            if version > VERSION:
                raise EngineFormatError(f"this engine has format {version}, and this tiacc reads up to {VERSION}; install a newer tiacc")
            begin = _PREFIX.size + length
            fields: dict[str, Any] = json.loads(payload[_PREFIX.size : begin])
            end = begin + int(fields["kernel_bytes"]) if version > 1 else begin
            return cls(
                archive.from_bytes(payload[end:]),
                tuple(map(spec_from_json, fields["inputs"])),
                tuple(map(spec_from_json, fields["outputs"])),
                tuple(Profile(*(tuple(map(tuple, part)) for part in profile)) for profile in fields["profiles"]),
                (bool(fields["tf32"][0]), bool(fields["tf32"][1])),
                dict(fields["tactics"]),
                binaries.from_json(fields["kernels"], payload[begin:end]) if version > 1 else None,
            )
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineFormatError(f"this cudnn engine is damaged ({error}); optimize the model again") from error

    def executable(self, inputs: Sequence[torch.Tensor], stream: int) -> Executable:
        """Return the executable for the shapes of some inputs on a stream, in memory that no other uses at the same time."""
        shapes = tuple(tuple(tensor.shape) for tensor in inputs)
        device = torch.device("cuda", inputs[0].device.index or 0)
        key = (shapes, device.index, stream)
        with self._lock:
            found = self._ready.get(key)
            if found is not None:
                return found
            program = self.program(shapes)
            constants, packed = self._constants.setdefault(device.index, ({}, {}))
            probe = buffers.region(device, stream, _size_of(program))
            found = self._ready[key] = Executable(program, constants, packed, device, probe, self._usable_binaries())
            while len(self._ready) > MAX_EXECUTABLES:
                del self._ready[min(self._ready, key=lambda item: self._ready[item].last_run)]
            return found

    def _usable_binaries(self) -> Binaries | None:
        return self._binaries if driver.is_usable() else None

    def _recorded(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        shapes = tuple(tuple(tensor.shape) for tensor in inputs)
        device = torch.device("cuda", inputs[0].device.index or 0)
        constants, packed = self._constants.setdefault(device.index, ({}, {}))
        executable = Executable(self.program(shapes), constants, packed, device, None, self._usable_binaries())
        executable.bind(self.tactics)
        return executable.run(inputs, with_graph=False)


def _whole(executable: Executable, tactics: dict[str, str], inputs: Sequence[torch.Tensor]) -> float:
    """Return the time of a program with some tactics, in microseconds."""

    def once() -> None:
        executable.fill(inputs)  # what is in their place is overwritten by later steps
        executable.steps()

    executable.bind(tactics)
    return microseconds(once, executable.device)


def _size_of(program: Program) -> int:
    from tiacc.backends.cudnn import memory_plan

    return memory_plan.assign(program).size_bytes


def static_graph(gm: fx.GraphModule, inputs: Sequence[TensorSpec], shapes: Shapes) -> fx.GraphModule:
    """Return a copy of a graph whose sizes are numbers; constants are shared.

    Its values are planned as if on the CPU, where an engine's constants are until it runs; steps run on the device of the inputs.
    """
    cpu = torch.device("cpu")
    graph = fx.Graph()
    graph.output(graph.graph_copy(gm.graph, {}))
    for node in graph.nodes:
        node.args = fx.node.map_aggregate(node.args, lambda arg: cpu if isinstance(arg, torch.device) else arg)
        node.kwargs = fx.node.map_aggregate(node.kwargs, lambda arg: cpu if isinstance(arg, torch.device) else arg)
    copy = fx.GraphModule(gm, graph)
    return specs.propagate(copy, [TensorSpec(shape, spec.dtype, cpu) for spec, shape in zip(inputs, shapes, strict=True)])

"""What each step of an engine takes on a GPU, beside the least that its bytes and its arithmetic would take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tiacc.backends.cudnn import eager
from tiacc.backends.cudnn.engine import CudnnEngine
from tiacc.backends.cudnn.naming import key_of, title
from tiacc.backends.cudnn.program import ConvStep, TorchStep, bytes_of
from tiacc.backends.cudnn.tactics import error_of, microseconds


@dataclass(frozen=True)
class StepTime:
    """The time of one step.

    Attributes:
        title: What it computes.
        shape: Of its first result.
        tactic: How it is run.
        microseconds: Its time in a CUDA graph that repeats it alone.
        bytes: What it reads and writes, each tensor once.
        flops: Its floating-point operations, where it is a convolution or a product; else 0.
        relative_error: Of its result, against torch's on the same operands.
    """

    title: str
    shape: tuple[int, ...]
    tactic: str
    microseconds: float
    bytes: int
    flops: int
    relative_error: float

    def floor(self, bytes_per_second: float, flops_per_second: float) -> float:
        """Return the least time it could take, in microseconds, at a bandwidth and a rate."""
        return 1e6 * max(self.bytes / bytes_per_second, self.flops / flops_per_second)


def profile(engine: CudnnEngine, inputs: Sequence[torch.Tensor]) -> list[StepTime]:
    """Time each step of an engine alone, in the order they run.

    Args:
        engine: The engine.
        inputs: What it is run on, on a GPU.
    """
    device = inputs[0].device
    with torch.cuda.device(device), torch.no_grad():
        executable = engine.executable(inputs, torch.cuda.current_stream(device).cuda_stream)
        executable.fill(inputs)
        bench = executable.bench
        found = []
        for step in executable.program.steps:
            tactic = engine.tactics.get(key_of(step)) or bench.tactics(step)[0]
            call = bench.bind(step, tactic)
            out = step.outs[0] if isinstance(step, TorchStep) else step.out
            eager.compute(step, bench.read)
            wanted = bench.read(out).to(torch.float32, copy=True)
            call()
            error = error_of(bench.read(out), wanted)
            flops = step.flops() if isinstance(step, ConvStep) else 0
            found.append(StepTime(title(step), out.shape, tactic, microseconds(call, device), bytes_of(step), flops, error))
        bench.forget()
    return found

"""Import, passes and partition grow with the nodes, not with their square."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from tiacc.backends.reference import ReferenceBackend
from tiacc.compiler import Plan, Proposal, propose
from tiacc.graph.specs import TensorSpec
from tiacc.passes.pipelines import pipeline

LARGEST_RATIO = 2.0
"""The most that a node of 20,000 may cost, against one of 2,000."""

STEPS = ("torch.relu({})", "{} + y", "torch.tanh({})", "{} * 0.5", "{}.transpose(0, 1)", "{}.sigmoid()")


def chain(size: int) -> torch.jit.ScriptModule:
    """A scripted module of about `size` nodes, a tenth of them writes in place."""
    steps = ["v.add_(y)" if index % 10 == 9 else f"v = {STEPS[index % len(STEPS)].format('v')}" for index in range(size)]
    lines = ["def forward(self, x, y):", *(f"    {step}" for step in ("v = x * 2", *steps, "return v"))]
    module = torch.jit.script(type(f"Chain{size}", (nn.Module,), {})())
    module.define("\n".join(lines) + "\n")
    return module


def work(module: torch.jit.ScriptModule) -> Proposal:
    spec = TensorSpec((4, 4), torch.float32)
    cpu = torch.device("cpu")
    return propose(module, Plan((spec, spec), ({},), pipeline(0, cpu), (ReferenceBackend(),), cpu))


@pytest.mark.parametrize("size", [2000, 20_000])
def test_propose(benchmark, size: int) -> None:
    module = chain(size)
    proposal = benchmark.pedantic(work, (module,), rounds=1, warmup_rounds=0)
    benchmark.extra_info["nodes"] = size
    assert len(proposal.regions) == 1


def test_a_node_costs_no_more_among_many() -> None:
    """Not asserted by absolute time: the machine may be busy, and is so for both."""

    def seconds_a_node(size: int) -> float:
        module = chain(size)
        begin = time.process_time()
        work(module)
        return (time.process_time() - begin) / size

    work(chain(200))
    assert seconds_a_node(20_000) < LARGEST_RATIO * seconds_a_node(2000)

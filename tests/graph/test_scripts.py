"""What a TorchScript node reads, gives and has inside: what torch's own iterators say."""

from __future__ import annotations

import pytest
import torch

from tests.graph.programs import PROGRAMS
from tests.graph.random_programs import random_program
from tiacc.graph import torch_compat

MODELS = {
    **{name: lambda program=program: torch.jit.script(program.make().eval()) for name, program in PROGRAMS.items()},
    **{f"random {seed}": lambda seed=seed: random_program(seed).make() for seed in range(8)},
}


@pytest.mark.parametrize("name", MODELS)
def test_inputs_outputs_and_blocks(name: str) -> None:
    module = MODELS[name]()
    for graph in (module.inlined_graph, torch_compat.forward_graph(torch_compat.frozen_copy(module)[0])):
        blocks = [graph.return_node().owningBlock()]
        for block in blocks:
            for node in block.nodes():
                assert [value.unique() for value in torch_compat.inputs_of(node)] == [value.unique() for value in node.inputs()]
                assert [value.unique() for value in torch_compat.outputs_of(node)] == [value.unique() for value in node.outputs()]
                inner = list(node.blocks())
                assert torch_compat.blocks_of(node) == inner
                blocks.extend(inner)
        assert len(torch_compat.nodes_of(graph)) == sum(len(list(block.nodes())) for block in blocks)

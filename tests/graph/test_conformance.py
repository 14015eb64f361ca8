"""torch's own operator samples, traced and scripted, through import and export: equal to the program, never a crash."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.jit_metaprogramming_utils import get_call, get_script_args
from torch.utils import _pytree as pytree

from tests.graph.test_importer import abstract, assert_same, write_back
from tiacc.graph.importer import import_module

SAMPLES = 2
"""How many samples of each operator are tried."""

PARTS = 4
"""The operators are traced in so many tests, which run side by side."""


class Sample(torch.nn.Module):
    """An operator and one sample of arguments; the tensors among them are its inputs."""

    def __init__(self, op: Any, sample: Any) -> None:
        super().__init__()
        self.op = op
        leaves, self.spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
        self.constants = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        self.places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        self.tensors = tuple(leaves[index].detach() for index in self.places)

    def forward(self, *tensors):
        leaves = list(self.constants)
        for place, tensor in zip(self.places, tensors):
            leaves[place] = tensor
        first, args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        result = self.op(first, *args, **kwargs)
        return tuple(leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor))


def _is_random(node: Any) -> bool:
    """Return whether an operator draws numbers, or gives memory as it finds it."""
    return node.isNondeterministic() or "empty" in node.kind()


def traced_samples(entry: Any) -> list[tuple[torch.jit.ScriptModule, tuple[torch.Tensor, ...]]]:
    """The first samples of an operator that can be traced and whose trace gives the same twice."""
    found = []
    for _, sample in zip(range(SAMPLES), entry.sample_inputs("cpu", torch.float32, requires_grad=False)):
        module = Sample(entry.op, sample)
        if not module.tensors or any(tensor.layout != torch.strided for tensor in module.tensors):
            continue
        try:
            traced = torch.jit.trace(module, module.tensors, check_trace=False, strict=False)
            if any(map(_is_random, traced.inlined_graph.nodes())):
                continue
            one, other = (traced(*[tensor.clone() for tensor in module.tensors]) for _ in range(2))
            assert_same(one, other)
        except Exception:  # noqa: BLE001 - what cannot be traced, or is random, is no program to keep
            continue
        found.append((traced, module.tensors))
    return found


def scripted_samples(entry: Any) -> list[tuple[torch.jit.ScriptModule, tuple[Any, ...]]]:
    """The same samples in TorchScript source, where torch can write that and it gives the same twice; an input is a tensor or a list."""
    found = []
    for _, sample in zip(range(SAMPLES), entry.sample_inputs("cpu", torch.float32, requires_grad=False)):
        try:
            formals, tensors, actuals = get_script_args((sample.input, *sample.args))
            module = torch.jit.script(type("Sample", (torch.nn.Module,), {})())
            call = get_call(entry.name, "function", actuals, sample.kwargs)
            module.define(f"def forward(self, {', '.join(formals)}):\n    return {call}\n")
            inputs = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.detach(), tuple(tensors))
            if any(map(_is_random, module.inlined_graph.nodes())):
                continue
            assert_same(*(module(*copied(inputs)) for _ in range(2)))
        except Exception:  # noqa: BLE001 - what cannot be scripted, or is random, is no program to keep
            continue
        if inputs and all(tensor.layout == torch.strided for tensor in pytree.tree_leaves(inputs)):
            found.append((module, inputs))
    return found


def copied(inputs: tuple[Any, ...]) -> Any:
    return pytree.tree_map_only(torch.Tensor, torch.clone, inputs)


def judge(samples_of: Any, entries_of: Sequence[Any] = op_db) -> tuple[set[str], set[str], list[str]]:
    """Import and export the samples of every operator; return which were tried, which imported, and what went wrong."""
    wrong: list[str] = []
    entries, imported = set(), set()
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        for entry in entries_of:
            if torch.float32 not in entry.dtypes:
                continue
            for module, inputs in samples_of(entry):
                entries.add(entry.full_name)
                try:
                    result = import_module(module, list(map(abstract, inputs)))
                    if result.regions:
                        imported.add(entry.full_name)
                    assert_same(module(*copied(inputs)), write_back(result)(*copied(inputs)))
                except Exception as error:  # noqa: BLE001 - each failure is told at the end
                    wrong.append(f"{entry.full_name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    return entries, imported, wrong


@pytest.mark.parametrize("part", range(PARTS))
def test_operators_of_torch_do_the_same_after_import_and_export(part: int) -> None:
    entries, imported, wrong = judge(traced_samples, op_db[part::PARTS])
    assert not wrong, f"{len(wrong)} wrong of {len(entries)}:\n" + "\n".join(sorted(set(wrong)))
    assert len(entries) >= 500 // PARTS
    assert len(imported) >= 0.9 * len(entries), sorted(entries - imported)


@pytest.mark.slow
def test_scripted_operators_of_torch_do_the_same_after_import_and_export() -> None:
    entries, imported, wrong = judge(scripted_samples)
    assert not wrong, f"{len(wrong)} wrong of {len(entries)}:\n" + "\n".join(sorted(set(wrong)))
    assert len(entries) >= 400
    assert len(imported) >= 0.9 * len(entries), sorted(entries - imported)

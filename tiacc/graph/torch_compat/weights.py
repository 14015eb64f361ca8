"""TorchScript modules apart from their weights: torch's private names for it."""

from __future__ import annotations

from collections.abc import Container
from typing import Any, TypeAlias

import torch

from tiacc.graph.torch_compat.scripts import Graph

Path: TypeAlias = tuple[str, ...]
"""The names of the modules that an attribute is in, outermost first, and its own."""

_C: Any = torch._C


def without_weights(module: torch.jit.ScriptModule) -> tuple[torch.jit.ScriptModule, dict[Path, torch.Tensor]]:
    """Return a module with the code of another whose parameters and buffers are a single element each, and these by their paths."""
    weights: dict[Path, torch.Tensor] = {}
    return torch.jit._recursive.wrap_cpp_module(_without_weights(module._c, (), weights)), weights


def _without_weights(module: Any, path: Path, weights: dict[Path, torch.Tensor]) -> Any:
    if module._has_method("__getstate__"):  # which may look at them
        return module
    shell = module._replicate_for_data_parallel()
    for name, child in _C.ModuleDict(module).items():
        shell.setattr(name, _without_weights(child, (*path, name), weights))
    for name, tensor in _C.ParameterDict(module).items() + _C.BufferDict(module).items():
        if tensor.layout == torch.strided and not tensor.is_quantized:
            place = (*path, name)
            weights[place] = tensor
            shell.setattr(name, tensor.detach().new_zeros(1).as_strided(tensor.shape, [0] * tensor.dim()))
    return shell


def give_weights(module: torch.jit.ScriptModule, weights: dict[Path, torch.Tensor]) -> None:
    """Put weights into a module, in the places that `without_weights` took them from in one with the same code."""
    for (*path, name), tensor in weights.items():
        owner = module._c
        for part in path:
            owner = owner.getattr(part)
        owner.setattr(name, tensor)


def reads_only(graph: Graph, weights: Container[Path]) -> bool:
    """Return whether the tensors of a module that its inlined code reads are all among weights."""
    paths: dict[int, Path] = {next(iter(graph.inputs())).unique(): ()}
    for node in graph.findAllNodes("prim::GetAttr"):
        owner, value = node.input().unique(), node.output()
        if owner not in paths:
            return False
        path = paths[value.unique()] = (*paths[owner], node.s("name"))
        if value.type().kind() != "ClassType" and "Tensor" in str(value.type()) and path not in weights:
            return False
    return True

"""Models as the backend gets them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import fx, nn

from tiacc.backends.reference import ReferenceBackend
from tiacc.compiler import propose
from tiacc.job import plan_of
from tiacc.options import Options
from tiacc.runtime import stitch
from tiacc.samples import resolve_inputs


def subgraph(model: nn.Module, inputs: Sequence[torch.Tensor], level: int) -> fx.GraphModule:
    """Return a model as one subgraph after the passes of a level, float16 at level 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.trace(model, tuple(inputs))
    resolved = resolve_inputs(None, [tuple(inputs)], 0)
    plan = plan_of(scripted, resolved, level, torch.device("cpu"), Options(half_dtype=torch.float16), (ReferenceBackend(),))
    (region,) = propose(scripted, plan).regions
    (found,) = stitch.extract(region.graph, region.partition)
    return found.graph

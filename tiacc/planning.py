"""What the user asks for → a plan for one attempt at the model."""

from __future__ import annotations

from typing import Any

import torch

from tiacc import models
from tiacc.backends.base import Backend
from tiacc.compiler import Plan
from tiacc.graph import torch_compat
from tiacc.graph.importer import Assumed
from tiacc.options import Options
from tiacc.passes import edits, pipelines
from tiacc.passes.base import Pass
from tiacc.passes.cast_half import CastHalf
from tiacc.passes.manager import PassManager
from tiacc.samples import ModelInputs
from tiacc.shapes import combined_profiles


def plan_of(
    model: torch.jit.ScriptModule,
    inputs: ModelInputs,
    level: int,
    device: torch.device,
    settings: Options,
    backends: tuple[Backend, ...],
) -> Plan:
    """Return the plan for an attempt.

    Args:
        model: The model.
        inputs: What it is called with.
        level: 0 or 1.
        device: Where it will run. A GPU that is not here is planned for with shapes on the CPU.
        settings: The user's options.
        backends: In order of priority.
    """
    half = half_of(device, settings) if level == 1 else None
    is_here = device.type == "cpu" or (torch.cuda.is_available() and not settings.target)
    host = device if is_here else torch.device("cpu")
    return Plan(
        inputs=_abstract_inputs(model, inputs, host),
        sizes=_dimension_sizes(inputs),
        pipeline=_pipeline(level, device, half, settings),
        backends=backends,
        device=host,
        built_for=None if is_here else device.type,
        min_segment_nodes=settings.min_segment_nodes,
        keep_methods=settings.keep_methods,
        examples=tuple(tuple(models.moved(item, host)) for item in inputs.data),
        fuel=settings.fuel,
        instruments=settings.instruments,
        workspace_bytes=settings.workspace_bytes,
        build_options={
            "num_threads": settings.num_threads or torch.get_num_threads(),
            "tuning_seconds": settings.tuning_seconds,
            **({"cache_dir": settings.cache_dir} if settings.cache_dir else {}),
            **({"tf32": _torch_uses_tf32()} if device.type == "cuda" else {}),
            **({"target": settings.target} if settings.target else {}),
            **({"neutral_names": True} if settings.neutral_names else {}),
        },
    )


def without_effect(level: int, device: torch.device, settings: Options) -> list[str]:
    """Return a sentence for each option of half precision that has been given and has no effect."""
    given = [name for name in ("keep_fp32", "half_dtype") if getattr(settings, name)]
    if level == 0:
        return [f"{name} has no effect at optimization_level=0" for name in given]
    pipeline = _pipeline(level, device, half_of(device, settings), settings)
    passes = pipeline.leaves() if isinstance(pipeline, PassManager) else (pipeline,)
    casts = [pass_ for pass_ in passes if isinstance(pass_, CastHalf)]
    kept = {pattern for cast in casts for pattern in cast.keep_fp32}
    lost = {"keep_fp32": not kept.issuperset(settings.keep_fp32), "half_dtype": settings.half_dtype not in {cast.dtype for cast in casts}}
    return [
        f"{name} has no effect on passes that you have chosen: give it to the pass, as in 'cast-half{{keep_fp32=softmax}}'"
        for name in given
        if lost[name]
    ]


def half_of(device: torch.device, settings: Options) -> torch.dtype:
    """Return the element type of half precision: the user's, or that of the device."""
    return settings.half_dtype or (torch.float16 if device.type == "cuda" else torch.bfloat16)


def _torch_uses_tf32() -> bool:
    """Return whether torch rounds the inputs of all its float32 products to TensorFloat-32: of convolutions and of matrices."""
    return bool(torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32)


def _pipeline(level: int, device: torch.device, half: torch.dtype | None, settings: Options) -> Pass:
    return edits.choose(settings.passes, lambda: pipelines.pipeline(level, device, half, settings.keep_fp32), settings.stop_after)


def _abstract_inputs(model: torch.jit.ScriptModule, inputs: ModelInputs, device: torch.device) -> tuple[Any, ...]:
    """Return what is known of each argument: the types of tensors, and the values that numbers and the like have in the test data.

    An argument that is not a tensor and not the same in all items is unknown.
    """
    specs = iter(enumerate(inputs.specs))

    def abstract(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            index, spec = next(specs)
            return spec.spec(f"input{index}", device)
        if isinstance(value, (list, tuple)) and models.tensors_of(value):
            return tuple(map(abstract, value))
        if isinstance(value, dict) and models.tensors_of(value):
            return {key: abstract(item) for key, item in value.items()}
        return ...

    known = list(map(abstract, inputs.data[0]))
    for place, argument in enumerate(torch_compat.forward_arguments(model)):
        values = [item[place] if place < len(item) else argument.default_value for item in inputs.data]
        if place >= len(known):
            known.append(...)
        if known[place] is ... and all(_is_assumable(value, argument.type, values[0]) for value in values):
            known[place] = Assumed(values[0])
    return tuple(known)


def _is_assumable(value: Any, declared: torch_compat.Type, first: Any) -> bool:
    """Return whether optimized code can ask if an argument of the declared type has this value, which is that of the first item."""
    if value is None:
        return first is None and declared.kind() == "OptionalType"
    kinds = {bool: "BoolType", int: "IntType", float: "FloatType", str: "StringType"}
    return type(value) is type(first) and kinds.get(type(value)) == declared.kind() and bool(value == first)


def _dimension_sizes(inputs: ModelInputs) -> tuple[dict[str, tuple[int, int, int]], ...]:
    """Return the sizes of each varying dimension, by name, in each profile of the inputs."""
    return tuple(
        {
            f"input{index}_{dim}": (profile.min[index][dim], profile.opt[index][dim], profile.max[index][dim])
            for index, spec in enumerate(inputs.specs)
            for dim in spec.dims
        }
        for profile in combined_profiles(inputs.specs)
    )

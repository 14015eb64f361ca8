"""Steps as text: for reading, and as the keys of what is known of their speed."""

from __future__ import annotations

import hashlib
from typing import Any

from tiacc.backends.cudnn.program import Addend, AttentionStep, ConvStep, PointwiseStep, PoolStep, Program, Ref, Step, TorchStep


def title(step: Step) -> str:
    """Return what a step computes, without its buffers."""
    if isinstance(step, TorchStep):
        return str(step.target)
    if isinstance(step, AttentionStep):
        return "attention" + ("+causal" if step.is_causal else "") + ("+mask" if step.mask is not None else "")
    tail = "".join(f"+{instruction.op}" for instruction in step.body.instructions)
    if isinstance(step, PointwiseStep):
        return tail[1:] or "copy"
    if isinstance(step, ConvStep):
        kernel = "x".join(map(str, step.weight.shape[2:]))
        kind = "deconv" if step.transposed else "depthwise" if step.is_depthwise else "conv"
        return f"{kind}{kernel}{'' if step.addend is None else '+conv1x1'}{tail}"
    if isinstance(step, PoolStep):
        return f"{step.kind}pool{'x'.join(map(str, step.kernel))}{tail}"
    return "".join(f"{instruction.op}+" for instruction in step.prologue.instructions) + step.kind + tail


def signature(step: Step) -> str:
    """Return what a step's speed depends on, as text: its operation, types, shapes and strides."""
    if isinstance(step, TorchStep):
        return f"{step.target}({', '.join(ref.layout() for ref in step.refs())}; {_plain(step.args)}; {_plain(step.kwargs)})"
    parts = [type(step).__name__]
    for name, value in vars(step).items():
        if value is None:
            continue
        if isinstance(value, Ref):
            value = value.layout()
        elif isinstance(value, Addend):
            value = f"{value.x.layout()} {value.weight.layout()} {value.stride}"
        elif isinstance(value, tuple) and any(isinstance(item, Ref) for item in value):
            value = [item.layout() for item in value]
        parts.append(f"{name}={value}")
    return " ".join(parts)


def key_of(step: Step) -> str:
    """Return a short name for `signature`."""
    return hashlib.sha256(signature(step).encode()).hexdigest()[:20]


def program_key(program: Program) -> str:
    """Return a short name for all steps of a program, in their order."""
    return hashlib.sha256(" ".join(map(key_of, program.steps)).encode()).hexdigest()[:20]


def _plain(value: Any) -> Any:
    if isinstance(value, Ref):
        return "_"
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value

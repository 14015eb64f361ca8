"""Operators that have no plan of their own: each is one call of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from tiacc.backends.cudnn.layouts import dense_strides
from tiacc.backends.cudnn.lazy import Lazy
from tiacc.backends.cudnn.program import Ref, TorchStep

if TYPE_CHECKING:
    from tiacc.backends.cudnn.planner import Planner


def call_torch(planner: Planner, node: fx.Node) -> Any:
    """Emit a call of torch; the results are laid out as torch would."""

    def place(arg: Any) -> Any:
        if isinstance(arg, fx.Node):
            value = planner.values[arg]
            return planner.realize(arg) if isinstance(value, (Ref, Lazy)) else value
        if isinstance(arg, (list, tuple)):
            return [place(item) for item in arg]
        return arg

    args = tuple(place(arg) for arg in node.args)
    kwargs = {key: place(arg) for key, arg in node.kwargs.items()}
    fake = node.meta["val"]
    fakes = list(fake) if isinstance(fake, (list, tuple)) else [fake]
    results = _meta_results(node, args, kwargs, fakes)
    outs = tuple(
        planner.new(item.shape, item.dtype, dense_strides(item), f"{node.name}_{index}" if index else node.name)
        for index, item in enumerate(results)
    )
    assert isinstance(node.target, torch._ops.OpOverload)
    planner.emit(TorchStep(outs, node.target, args, kwargs))
    return list(outs) if isinstance(fake, (list, tuple)) else outs[0]


def _meta_results(node: fx.Node, args: Any, kwargs: Any, fakes: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return tensors without data, of the strides that torch gives for operands laid out as ours are."""

    def to_meta(arg: Any) -> Any:
        if isinstance(arg, Ref):
            return arg.meta()
        if isinstance(arg, (list, tuple)):
            return [to_meta(item) for item in arg]
        return arg

    try:
        result = node.target(*to_meta(args), **{key: to_meta(arg) for key, arg in kwargs.items()})  # type: ignore[operator]
    except (RuntimeError, NotImplementedError):
        return fakes
    results = list(result) if isinstance(result, (list, tuple)) else [result]
    same = all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(results, fakes))
    return results if same and len(results) == len(fakes) else fakes

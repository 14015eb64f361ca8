"""The modes of torch that a caller may be in: what is made and computed here is the same in all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def is_any_on() -> bool:
    """Return whether this thread is in one of the modes."""
    # The stack holds the default device; torch.get_default_device takes a hundred times as long.
    return bool(torch.is_inference_mode_enabled() or torch._C._is_any_autocast_enabled() or torch._C._len_torch_function_stack())


def call_outside(function: Callable[..., Result], *args: Any) -> Result:
    """Call a function outside of the modes that this thread is in.

    Args:
        function: What is called.
        args: What it is called with.
    """
    if torch.is_inference_mode_enabled():  # as most callers are: `all_off` takes 6 µs more
        with torch._C._InferenceMode(False):  # restores the mode of gradients too
            torch._C._set_grad_enabled(False)
            return call_outside(function, *args)
    if is_any_on():
        with all_off():
            return function(*args)
    return function(*args)


@contextlib.contextmanager
def all_off() -> Iterator[None]:
    """Leave the caller's modes for a while: inference mode, autocast and the default device.

    What is made in inference mode cannot be written to outside of it; autocast has products of float32 computed in half precision; what
    is made without naming a device is on the default device.
    """
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        for device_type in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        if torch._C._len_torch_function_stack():
            stack.enter_context(torch.device("cpu"))
        yield

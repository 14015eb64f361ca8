"""The modes of torch that a caller may be in: what is made and computed here is the same in all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def any_is_on(device_type: str) -> bool:
    """Return whether this thread is in a mode that changes what torch makes or computes on a type of device."""
    # The stack holds the default device; torch.get_default_device takes a hundred times as long.
    return torch.is_inference_mode_enabled() or torch.is_autocast_enabled(device_type) or torch._C._len_torch_function_stack() > 0


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

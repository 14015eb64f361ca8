"""Memory that engines hold between calls; what they do with it is tested beside them."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from tiacc.runtime import buffers


def test_what_is_held_is_counted_by_device() -> None:
    device = torch.device("cuda", 5)
    block = SimpleNamespace(pointer=0, free=lambda: None)
    arenas = [buffers.shared(home, stream, lambda *_: block) for home, stream in ((device, 1), (device, 2), (torch.device("cuda", 6), 1))]
    for arena in arenas:
        arena.reserve(1000)
    assert buffers.held_bytes(device) == 2 * 1024
    del arenas, arena
    assert buffers.held_bytes(device) == 0

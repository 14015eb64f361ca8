"""What holds for all tests."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    # Kernels of Triton are then evaluated by its interpreter; Triton asks for this when it is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

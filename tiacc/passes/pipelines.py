"""The passes that a model goes through, by optimization level and device."""

from __future__ import annotations

import torch

from tiacc.errors import InvalidArgumentError
from tiacc.passes.base import Pass
from tiacc.passes.cast_half import CastHalf
from tiacc.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from tiacc.passes.eliminate_dead_code import EliminateDeadCode
from tiacc.passes.eliminate_identities import EliminateIdentities
from tiacc.passes.expand_attention import ExpandAttention
from tiacc.passes.expand_operators import ExpandOperators
from tiacc.passes.fold_batch_norm import FoldBatchNorm
from tiacc.passes.fold_constants import FoldConstants
from tiacc.passes.manager import PassManager
from tiacc.passes.remove_dropout import RemoveDropout

HALF_DTYPES = (torch.float16, torch.bfloat16)
"""The dtypes of half precision."""


def pipeline(
    level: int,
    device: torch.device,
    half: torch.dtype | None = None,
    keep_fp32: tuple[str, ...] = (),
) -> PassManager:
    """Return the default pipeline.

    Args:
        level: The optimization level: 0 keeps the arithmetic of the model, 1 computes in half precision.
        device: Where the model will run.
        half: The dtype of half precision at level 1; None for that of the device: float16 on a GPU, bfloat16 on a CPU.
        keep_fp32: What level 1 leaves in float32; see `tiacc.passes.cast_half.CastHalf`.

    Raises:
        InvalidArgumentError: There is no such level, or `half` is no dtype of half precision.
    """
    passes: tuple[Pass, ...] = (
        RemoveDropout(),
        ExpandAttention(),
        # Each of these makes work for the others: a size that becomes a number makes a reshape the identity, and so on.
        PassManager((FoldConstants(), EliminateIdentities(), EliminateCommonSubexpressions()), steps=3),
        # Nobody who is not read counts as a reader of a layer that could be folded into.
        EliminateDeadCode(),
        FoldBatchNorm(),
        # Layers that were equal but for their inputs have equal new weights.
        EliminateCommonSubexpressions(),
        EliminateDeadCode(),
    )
    if level == 1:
        dtype = half or (torch.float16 if device.type == "cuda" else torch.bfloat16)
        if dtype not in HALF_DTYPES:
            raise InvalidArgumentError(f"half={half} is no dtype of half precision; use one of {', '.join(map(str, HALF_DTYPES))}")
        passes = (*passes, CastHalf(dtype=dtype, keep_fp32=tuple(keep_fp32)), EliminateDeadCode())
    elif level != 0:
        raise InvalidArgumentError(f"optimization_level={level!r}: there are 0 (lossless) and 1 (half precision)")
    return PassManager((*passes, ExpandOperators()))

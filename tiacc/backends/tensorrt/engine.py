"""A built TensorRT engine: its bytes, and running them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tiacc.backends.tensorrt import flavours
from tiacc.backends.tensorrt.payload import EnginePayload
from tiacc.errors import BackendUnavailableError


class TensorRTEngine:
    """A TensorRT engine; an `Engine`.

    It can be made, described and serialised on a machine without a GPU. What loads it into TensorRT happens in `prepare`.

    Args:
        payload: The plan and its description.
    """

    def __init__(self, payload: EnginePayload) -> None:
        self.payload = payload
        self.inputs = payload.inputs
        self.outputs = payload.outputs

    def serialize(self) -> bytes:
        """Return all that `TensorRTBackend.load` needs."""
        return self.payload.to_bytes()

    def prepare(self) -> None:
        """Load the plan into TensorRT.

        Raises:
            BackendUnavailableError: The library is not installed, or this machine has no CUDA device.
        """
        if not torch.cuda.is_available():
            where = f" (built for {', '.join(self.payload.target)})" if self.payload.target else ""
            raise BackendUnavailableError(
                f"this engine of {self.payload.flavour} {self.payload.version}{where} needs a CUDA device, which torch finds not; "
                "run the model on a machine with a GPU, or optimize it again with device_type=1 for the CPU"
            )
        flavours.load_flavour(self.payload.flavour)

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the outputs on the caller's current stream."""
        self.prepare()
        raise BackendUnavailableError(f"{self.payload.flavour} engines are not run by this version of tiacc")

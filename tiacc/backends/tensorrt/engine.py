"""A built TensorRT engine: its bytes, and running them."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from tiacc.backends.tensorrt import flavours
from tiacc.backends.tensorrt.execution import Executor
from tiacc.backends.tensorrt.payload import EnginePayload
from tiacc.errors import BackendUnavailableError, EngineFormatError


class TensorRTEngine:
    """A TensorRT engine; an `Engine`.

    It can be made, described and serialised on a machine without a GPU. `prepare`, or the first run, loads it into TensorRT.

    Args:
        payload: The plan and its description.
    """

    def __init__(self, payload: EnginePayload) -> None:
        self.payload = payload
        self.inputs = payload.inputs
        self.outputs = payload.outputs
        self._executors: dict[int, Executor] = {}
        self._lock = threading.Lock()

    def serialize(self) -> bytes:
        """Return all that `TensorRTBackend.load` needs."""
        return self.payload.to_bytes()

    def prepare(self) -> None:
        """Load the plan into TensorRT, on the current device.

        Raises:
            BackendUnavailableError: The library is not installed, or this machine has no CUDA device.
            EngineFormatError: TensorRT refuses the plan: another version of it made the plan, or for other GPUs.
        """
        if not torch.cuda.is_available():
            where = f" (built for {', '.join(self.payload.target)})" if self.payload.target else ""
            raise BackendUnavailableError(
                f"this engine of {self.payload.flavour} {self.payload.version}{where} needs a CUDA device, which torch finds not; "
                "run the model on a machine with a GPU, or optimize it again with device_type=1 for the CPU"
            )
        self._executor(torch.device("cuda", torch.cuda.current_device()))

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the outputs on the caller's current stream, without waiting for the device.

        Raises:
            BackendUnavailableError: See `prepare`.
            EngineFormatError: See `prepare`.
            ShapeOutOfRangeError: No optimisation profile admits the shapes.
        """
        device = inputs[0].device if inputs else torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_available() else 0)
        if device.type != "cuda":
            self.prepare()
        with torch.cuda.device(device):
            return self._executor(device).run(inputs, torch.cuda.current_stream(device).cuda_stream)

    def _executor(self, device: torch.device) -> Executor:
        index = device.index or 0
        with self._lock:
            if index not in self._executors:
                flavour = flavours.load_flavour(self.payload.flavour)
                if flavour.name == "tensorrt_rtx" and flavour.version_text != self.payload.version:
                    raise EngineFormatError(
                        f"the engine was made by tensorrt_rtx {self.payload.version} and {flavour.version_text} is installed; "
                        f"engines of RTX run with their own version only: optimize the model again, or install that version"
                    )
                self._executors[index] = Executor(flavour, self.payload, torch.device("cuda", index))
            return self._executors[index]

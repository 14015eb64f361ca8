"""The bytes of a TensorRT engine as tiacc stores them: a JSON header, then the plan that TensorRT loads.

::

    b"TRTE"  header size (4 bytes, little-endian)  header (UTF-8 JSON)  plan

The header says what the plan itself does not tell without a GPU: which library and version made it, for which GPUs, the names
of its inputs and outputs and their types, and the shape range of each optimisation profile.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch

from tiacc.backends.base import Profile
from tiacc.errors import EngineFormatError
from tiacc.graph.types import Dim, TensorSpec

_MAGIC = b"TRTE"
_VERSION = 1


@dataclass(frozen=True)
class EnginePayload:
    """A plan and what is needed to run it.

    Attributes:
        flavour: The library that made it.
        version: Its version.
        target: The GPU generations that it was built for; empty for the GPU of the machine that built it, or with RTX for
            Ampere and later.
        input_names: The names of the inputs in the plan, in order.
        output_names: Those of the outputs.
        inputs: The types of the inputs.
        outputs: The types of the outputs.
        profiles: The shape range of each optimisation profile.
        plan: The bytes that TensorRT loads.
    """

    flavour: str
    version: str
    target: tuple[str, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]
    plan: bytes

    def to_bytes(self) -> bytes:
        """Return the payload as bytes."""
        header = {
            "format": _VERSION,
            "flavour": self.flavour,
            "version": self.version,
            "target": self.target,
            "input_names": self.input_names,
            "output_names": self.output_names,
            "inputs": [_spec_to_json(spec) for spec in self.inputs],
            "outputs": [_spec_to_json(spec) for spec in self.outputs],
            "profiles": [asdict(profile) for profile in self.profiles],
            "plan_bytes": len(self.plan),
        }
        text = json.dumps(header, sort_keys=True).encode()
        return b"".join((_MAGIC, len(text).to_bytes(4, "little"), text, self.plan))

    @classmethod
    def from_bytes(cls, data: bytes) -> EnginePayload:
        """Read what `to_bytes` wrote.

        Raises:
            EngineFormatError: The bytes are something else, of another format version, or cut short.
        """
        if data[:4] != _MAGIC:
            raise EngineFormatError(f"a TensorRT engine begins with {_MAGIC!r}, not with {bytes(data[:4])!r}")
        size = int.from_bytes(data[4:8], "little")
        try:
            header = json.loads(bytes(data[8 : 8 + size]))
            if header["format"] != _VERSION:
                raise EngineFormatError(f"the engine has format {header['format']}, not {_VERSION}: build it again")
            plan = bytes(data[8 + size :])
            if len(plan) != header["plan_bytes"]:
                raise EngineFormatError(f"the plan has {len(plan)} bytes of {header['plan_bytes']}: it is cut short")
            return cls(
                header["flavour"],
                header["version"],
                tuple(header["target"]),
                tuple(header["input_names"]),
                tuple(header["output_names"]),
                tuple(_spec_from_json(item) for item in header["inputs"]),
                tuple(_spec_from_json(item) for item in header["outputs"]),
                tuple(
                    Profile(*(tuple(tuple(shape) for shape in item[which]) for which in ("min", "opt", "max")))
                    for item in header["profiles"]
                ),
                plan,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineFormatError(f"the header of the TensorRT engine cannot be read: {error}") from error


def _spec_to_json(spec: TensorSpec) -> dict[str, Any]:
    sizes = [size if isinstance(size, int) else asdict(size) for size in spec.shape]
    return {"shape": sizes, "dtype": str(spec.dtype).removeprefix("torch."), "device": str(spec.device)}


def _spec_from_json(item: dict[str, Any]) -> TensorSpec:
    sizes = tuple(size if isinstance(size, int) else Dim(**size) for size in item["shape"])
    return TensorSpec(sizes, getattr(torch, item["dtype"]), torch.device(item["device"]))

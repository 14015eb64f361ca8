"""The envelope of an engine: what it is, for which inputs, made by what; then the backend's own bytes.

Layout, little-endian: 6 bytes magic, ``uint16`` version, ``uint32`` length of the header, the header as JSON, the payload. Nothing in
it is executed when it is read.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from typing import Any

import torch

from tiacc.errors import EngineFormatError
from tiacc.graph.types import Dim, Profile, TensorSpec

MAGIC = b"TIACC\x00"
VERSION = 1
_PREFIX = struct.Struct("<6sHI")


@dataclass(frozen=True)
class Header:
    """What an envelope says of the engine in it.

    Attributes:
        backend: The name of the backend that loads it.
        backend_version: The version of its library that built it.
        device: Where it runs: ``"cpu"``, ``"cuda"``.
        inputs: The type of each input.
        outputs: The type of each output.
        profiles: The shapes that it takes.
        sha256: The digest of the payload, in hexadecimal.
    """

    backend: str
    backend_version: str
    device: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]
    sha256: str


def pack(
    payload: bytes,
    *,
    backend: str,
    backend_version: str,
    device: torch.device,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    profiles: tuple[Profile, ...],
) -> torch.Tensor:
    """Return an envelope as a ``uint8`` tensor of shape ``(bytes,)``."""
    header = json.dumps(
        {
            "backend": backend,
            "backend_version": backend_version,
            "device": device.type,
            "inputs": [spec_to_json(spec) for spec in inputs],
            "outputs": [spec_to_json(spec) for spec in outputs],
            "profiles": [[profile.min, profile.opt, profile.max] for profile in profiles],
            "sha256": hashlib.sha256(payload).hexdigest(),
        },
        sort_keys=True,
    ).encode()
    blob = bytearray(_PREFIX.pack(MAGIC, VERSION, len(header)) + header + payload)
    return torch.frombuffer(blob, dtype=torch.uint8)


def key_of(blob: torch.Tensor) -> str:
    """Return the name of an engine in caches: the SHA-256 of its envelope, in hexadecimal."""
    return hashlib.sha256(blob.numpy().data).hexdigest()


def read_header(blob: torch.Tensor) -> tuple[Header, memoryview]:
    """Return the header and the payload of an envelope; the payload is not checked.

    Raises:
        EngineFormatError: It is not an envelope, or one of a later version.
    """
    if blob.dtype != torch.uint8 or blob.dim() != 1:
        raise EngineFormatError(f"an engine is a uint8 tensor of one dimension, not {blob.dtype} of shape {tuple(blob.shape)}")
    data: memoryview = blob.cpu().contiguous().numpy().data
    if len(data) < _PREFIX.size or bytes(data[:6]) != MAGIC:
        raise EngineFormatError("these bytes are not an engine of tiacc; optimize the model again")
    _, version, length = _PREFIX.unpack(data[: _PREFIX.size])
    if version > VERSION:
        raise EngineFormatError(f"this engine has format {version}, and this tiacc reads up to {VERSION}; install a newer tiacc")
    try:
        fields = json.loads(bytes(data[_PREFIX.size : _PREFIX.size + length]))
        header = Header(
            backend=fields["backend"],
            backend_version=fields["backend_version"],
            device=fields["device"],
            inputs=tuple(map(spec_from_json, fields["inputs"])),
            outputs=tuple(map(spec_from_json, fields["outputs"])),
            profiles=tuple(Profile(*(_shapes(part) for part in profile)) for profile in fields["profiles"]),
            sha256=fields["sha256"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineFormatError(f"the header of this engine is damaged ({error}); optimize the model again") from error
    return header, data[_PREFIX.size + length :]


def unpack(blob: torch.Tensor) -> tuple[Header, bytes]:
    """Return the header and the payload of an envelope, checked against its digest.

    Raises:
        EngineFormatError: It is not an envelope, or it is damaged.
    """
    header, view = read_header(blob)
    payload = bytes(view)
    if hashlib.sha256(payload).hexdigest() != header.sha256:
        raise EngineFormatError(f"this {header.backend} engine is damaged: its digest differs; optimize the model again")
    return header, payload


def spec_to_json(spec: TensorSpec) -> dict[str, Any]:
    """Return a spec as JSON has it; the device is not in it."""
    return {
        "shape": [[size.name, size.min, size.opt, size.max] if isinstance(size, Dim) else size for size in spec.shape],
        "dtype": str(spec.dtype).removeprefix("torch."),
    }


def spec_from_json(fields: dict[str, Any]) -> TensorSpec:
    """Return the spec that `spec_to_json` wrote."""
    shape = tuple(size if isinstance(size, int) else Dim(*size) for size in fields["shape"])
    dtype = getattr(torch, fields["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{fields['dtype']!r} is no dtype")
    return TensorSpec(shape, dtype)


def _shapes(part: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, part))

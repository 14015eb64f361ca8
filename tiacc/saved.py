"""What is in a saved model: its engines, for which shapes and devices, and the libraries it needs.

The file is read as the archive that it is. Nothing in it is executed, and neither the libraries that built its engines nor
the hardware they are for need be here.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from tiacc.errors import EngineFormatError, ImportGraphError
from tiacc.runtime import blob

_BUILT_IN = frozenset({"aten", "prim", "prims", "quantized", "quantized_decomposed", "mkldnn", "mkldnn_prepacked", "sparse",
"cuda"})


@dataclass(frozen=True)
class SavedEngine:
    """An engine in a saved model.

    Attributes:
        record: The name of its record in the archive.
        size_bytes: Its size.
        header: What it says of itself.
        is_intact: Whether its bytes still have the digest that the header names.
    """

    record: str
    size_bytes: int
    header: blob.Header
    is_intact: bool

    def to_dict(self) -> dict[str, Any]:
        """Return it in dicts, lists, strings and numbers; types are text such as ``"float32[1, 3]"``."""
        header = self.header
        return {
            "record": self.record,
            "backend": header.backend,
            "backend_version": header.backend_version,
            "device": header.device,
            "inputs": [str(spec) for spec in header.inputs],
            "outputs": [str(spec) for spec in header.outputs],
            "profiles": [{"min": profile.min, "opt": profile.opt, "max": profile.max} for profile in header.profiles],
            "size_bytes": self.size_bytes,
            "sha256": header.sha256,
            "is_intact": self.is_intact,
        }


@dataclass(frozen=True)
class SavedModel:
    """A TorchScript file.

    Attributes:
        path: Where it is.
        size_bytes: Its size.
        engines: The engines in it; none if it was not optimized, or nothing could be.
        operators: The namespaces of its operators that torch itself does not have, such as ``"tiacc"`` and ``"torchvision"``:
            the libraries to import before it is loaded.
    """

    path: Path
    size_bytes: int
    engines: tuple[SavedEngine, ...]
    operators: tuple[str, ...]

    @property
    def backends(self) -> tuple[str, ...]:
        """The backends whose libraries it needs when it is first called, each with the version that built its engines."""
        return tuple(sorted({f"{engine.header.backend} {engine.header.backend_version}".strip() for engine in self.engines}))

    def to_dict(self) -> dict[str, Any]:
        """Return it in dicts, lists, strings and numbers."""
        return {
            "path": str(self.path),
            "size_bytes": self.size_bytes,
            "operators": list(self.operators),
            "backends": list(self.backends),
            "engines": [engine.to_dict() for engine in self.engines],
        }


def inspect(path: str | PathLike[str]) -> SavedModel:
    """Read what is in a saved model.

    Args:
        path: A TorchScript file, ``.pt`` or ``.pth``.

    Raises:
        ImportGraphError: There is no such file, or it is none of TorchScript.
        EngineFormatError: An engine in it is of a later version of tiacc, or has a damaged header.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if not any(name.endswith("/constants.pkl") for name in names):
                raise ImportGraphError(f"{path} holds no TorchScript; save the model with torch.jit.save, not torch.save")
            return SavedModel(path, path.stat().st_size, tuple(_engines(archive, names)), tuple(_operators(archive, names)))
    except OSError as error:
        raise ImportGraphError(f"{path} cannot be read: {error.strerror or error}") from error
    except zipfile.BadZipFile as error:
        raise ImportGraphError(f"{path} is no TorchScript file, or a damaged one: {error}") from error


def _engines(archive: zipfile.ZipFile, names: list[str]) -> Iterator[SavedEngine]:
    for name in names:
        with archive.open(name) as record:
            if record.read(len(blob.MAGIC)) != blob.MAGIC:
                continue
        data = torch.frombuffer(bytearray(archive.read(name)), dtype=torch.uint8)
        header, _ = blob.read_header(data)
        yield SavedEngine(name.partition("/")[2], data.numel(), header, _is_intact(data))


def _is_intact(data: torch.Tensor) -> bool:
    try:
        blob.unpack(data)
    except EngineFormatError:
        return False
    return True


def _operators(archive: zipfile.ZipFile, names: list[str]) -> list[str]:
    found: set[str] = set()
    for name in names:
        if name.endswith(".py"):
            found.update(re.findall(r"\bops\.([A-Za-z_]\w*)\.", archive.read(name).decode(errors="replace")))
    return sorted(found - _BUILT_IN)

"""Files of what TensorRT measured or compiled, so that the next process need not.

::

    sha256 of what follows (32 bytes)  what TensorRT wrote

A file that is damaged, or cannot be written, costs the time to make it again, and a warning; never a build or a run.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

_DIGEST_BYTES = 32


@dataclass(frozen=True)
class KeptFile:
    """A file in the cache folder.

    Attributes:
        path: Where it is; neither it nor its folder need exist.
        what: What is in it, for warnings: ``"the kernel timings"``.
    """

    path: Path
    what: str

    def read(self) -> bytes:
        """Return what was written; nothing where there is no such file, or a damaged one."""
        try:
            stored = self.path.read_bytes() if self.path.is_file() else b""
        except OSError as error:
            self.warn(str(error))
            return b""
        digest, data = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
        if stored and hashlib.sha256(data).digest() != digest:
            self.warn("it is damaged")
            return b""
        return data

    def write(self, data: bytes) -> None:
        """Write the file, whole or not at all."""
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}-{threading.get_ident()}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(hashlib.sha256(data).digest() + data)
            part.replace(self.path)
        except OSError as error:
            warnings.warn(f"{self.what} cannot be kept in {self.path}: {error}", RuntimeWarning, stacklevel=3)

    def warn(self, problem: str) -> None:
        """Say that the file is not used."""
        warnings.warn(f"{self.what} in {self.path} are not used, and are made again: {problem}", RuntimeWarning, stacklevel=5)


def device_key() -> str:
    """Return the current GPU as part of a file name, ``"nvidia-h200-sm90"``; ``"no-gpu"`` where there is none."""
    if not torch.cuda.is_available():
        return "no-gpu"
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    name = re.sub("[^a-z0-9]+", "-", found.name.lower()).strip("-")
    return f"{name}-sm{found.major}{found.minor}"

"""What TensorRT measured of its kernels, kept between builds: one file for each version of the library and each kind of GPU.

::

    sha256 of what follows (32 bytes)  the cache as TensorRT wrote it

A file that is damaged, or that TensorRT does not take, costs the time of measuring again, and a warning; never the build.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import warnings
from pathlib import Path
from typing import Any

import torch

from tiacc.backends.tensorrt.flavours import Flavour

_DIGEST_BYTES = 32


class TimingCache:
    """The timings that one build begins with and adds to.

    Args:
        config: The ``IBuilderConfig`` of the build.
        file: Where they are kept.
    """

    def __init__(self, config: Any, file: Path) -> None:
        self._file = file
        if not self._is_filled(config, self._read()):
            self._warn("TensorRT does not take it")
            self._is_filled(config, b"")

    @classmethod
    def of(cls, flavour: Flavour, config: Any, folder: Path | None) -> TimingCache | None:
        """Return the cache for a build.

        Args:
            flavour: The library.
            config: The ``IBuilderConfig`` of the build.
            folder: The cache folder; need not exist.

        Returns:
            None without a folder, and for RTX, which measures when a model first runs.
        """
        if folder is None or not flavour.has("timing_cache"):
            return None
        return cls(config, folder / f"{flavour.name}-{flavour.version_text}-{device_key()}.timings")

    def save(self) -> None:
        """Write the file, whole or not at all."""
        data = bytes(self._native.serialize())
        part = self._file.with_name(f"{self._file.name}.{os.getpid()}-{threading.get_ident()}.part")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(hashlib.sha256(data).digest() + data)
            part.replace(self._file)
        except OSError as error:
            warnings.warn(f"the kernel timings cannot be kept in {self._file}: {error}", RuntimeWarning, stacklevel=2)

    def _read(self) -> bytes:
        """Return what the file holds; nothing where there is none, or a damaged one."""
        try:
            stored = self._file.read_bytes() if self._file.is_file() else b""
        except OSError as error:
            self._warn(str(error))
            return b""
        digest, data = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
        if stored and hashlib.sha256(data).digest() != digest:
            self._warn("it is damaged")
            return b""
        return data

    def _is_filled(self, config: Any, data: bytes) -> bool:
        """Give the build a cache that holds `data`; return whether TensorRT takes it."""
        self._native = config.create_timing_cache(data)
        return self._native is not None and bool(config.set_timing_cache(self._native, not data))

    def _warn(self, problem: str) -> None:
        text = f"the kernel timings in {self._file} are not used, and are measured again: {problem}"
        warnings.warn(text, RuntimeWarning, stacklevel=4)


def device_key() -> str:
    """Return the current GPU as part of a file name, ``"nvidia-h200-sm90"``; ``"no-gpu"`` where there is none."""
    if not torch.cuda.is_available():
        return "no-gpu"
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    name = re.sub("[^a-z0-9]+", "-", found.name.lower()).strip("-")
    return f"{name}-sm{found.major}{found.minor}"

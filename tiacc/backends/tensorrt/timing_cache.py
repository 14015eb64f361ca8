"""What TensorRT measured of its kernels, kept between builds: one file for each version of the library and each kind of GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiacc.backends.tensorrt.flavours import Flavour
from tiacc.backends.tensorrt.kept import KeptFile, device_key


class TimingCache:
    """The timings that one build begins with and adds to.

    Args:
        config: The ``IBuilderConfig`` of the build.
        file: Where they are kept.
    """

    def __init__(self, config: Any, file: Path) -> None:
        self._file = KeptFile(file, "the kernel timings")
        if not self._is_filled(config, self._file.read()):
            self._file.warn("TensorRT does not take it")
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
        self._file.write(bytes(self._native.serialize()))

    def _is_filled(self, config: Any, data: bytes) -> bool:
        """Give the build a cache that holds `data`; return whether TensorRT takes it."""
        self._native = config.create_timing_cache(data)
        return self._native is not None and bool(config.set_timing_cache(self._native, not data))

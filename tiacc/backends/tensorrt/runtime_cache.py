"""TensorRT-RTX compiles kernels when a model first runs; this keeps them between processes, in the cache folder.

The folder is that of the environment variable ``TIACC_CACHE_DIR``; without it nothing is kept.
"""

from __future__ import annotations

import hashlib
import os
import threading
import weakref
from pathlib import Path
from typing import Any

from tiacc.backends.tensorrt.flavours import Flavour
from tiacc.backends.tensorrt.payload import EnginePayload


class RuntimeCache:
    """The compiled kernels of one engine.

    Args:
        file: Where they are kept; RTX itself refuses those of another version, driver or GPU.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._native: Any = None
        self._lock = threading.Lock()

    @classmethod
    def of(cls, flavour: Flavour, payload: EnginePayload) -> RuntimeCache | None:
        """Return the cache of an engine; None where the library has no such thing."""
        if not flavour.has("runtime_cache"):
            return None
        folder = os.environ.get("TIACC_CACHE_DIR")
        name = f"{flavour.name}-{flavour.version_text}-{hashlib.sha256(payload.plan).hexdigest()[:24]}.kernels"
        return cls(Path(folder) / name if folder else None)

    def attach(self, config: Any) -> None:
        """Have the contexts made from a runtime configuration use the kernels, filled from the file the first time."""
        with self._lock:
            if self._native is None:
                self._native = config.create_runtime_cache()
                if self._file is not None:
                    if self._file.is_file():
                        self._native.deserialize(self._file.read_bytes())
                    weakref.finalize(self, _save, self._native, self._file)
            config.set_runtime_cache(self._native)


def _save(native: Any, file: Path) -> None:
    """Write the kernels to their file, whole or not at all."""
    data = bytes(native.serialize())
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(file)

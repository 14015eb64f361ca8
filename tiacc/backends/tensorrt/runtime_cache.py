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
from tiacc.backends.tensorrt.kept import KeptFile, device_key
from tiacc.backends.tensorrt.payload import EnginePayload


class RuntimeCache:
    """The compiled kernels of one engine.

    Args:
        file: Where they are kept; RTX itself refuses those of another driver.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = None if file is None else KeptFile(file, "the compiled kernels")
        self._native: Any = None
        self._lock = threading.Lock()

    @classmethod
    def of(cls, flavour: Flavour, payload: EnginePayload) -> RuntimeCache | None:
        """Return the cache of an engine; None where the library has no such thing."""
        if not flavour.has("runtime_cache"):
            return None
        folder = os.environ.get("TIACC_CACHE_DIR")
        name = f"{flavour.name}-{flavour.version_text}-{device_key()}-{hashlib.sha256(payload.plan).hexdigest()[:24]}.kernels"
        return cls(Path(folder) / name if folder else None)

    def attach(self, config: Any) -> None:
        """Have the contexts made from a runtime configuration use the kernels, filled from the file the first time."""
        with self._lock:
            if self._native is None:
                self._native = config.create_runtime_cache()
                if self._file is not None:
                    data = self._file.read()
                    if data:
                        self._native.deserialize(data)
                    weakref.finalize(self, _save, self._native, self._file)
            config.set_runtime_cache(self._native)


def _save(native: Any, file: KeptFile) -> None:
    file.write(bytes(native.serialize()))

"""The OpenVINO library: how it is imported, and what it can do on this machine."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
import threading
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch

from tiacc.backends.base import SUPPORTED, Support
from tiacc.errors import BackendUnavailableError

MINIMUM_VERSION = (2026, 0)
"""The first release whose PyTorch frontend this backend was tested with."""

_INSTALL = "pip install 'tiacc[cpu]'"
_TELEMETRY = "openvino_telemetry"
_lock = threading.RLock()


@lru_cache(maxsize=1)
def availability() -> Support:
    """Return whether OpenVINO is installed here, in a version that can be used; it is not imported."""
    if find_spec("openvino") is None:
        return Support(False, f"OpenVINO is not installed; {_INSTALL}")
    found = version()
    if release_of(found) < MINIMUM_VERSION:
        needed = ".".join(map(str, MINIMUM_VERSION))
        return Support(False, f"OpenVINO {found} is too old, {needed} or later is needed; {_INSTALL}")
    return SUPPORTED


def version() -> str:
    """Return the version of OpenVINO, ``"2026.4.1"``, or an empty string where it is not installed."""
    try:
        return importlib.metadata.version("openvino")
    except importlib.metadata.PackageNotFoundError:
        return ""


def release_of(text: str) -> tuple[int, int]:
    """Return year and release of a version; ``(0, 0)`` where it has none."""
    parts = text.split(".")
    return (int(parts[0]), int(parts[1])) if len(parts) > 1 and parts[0].isdigit() and parts[1].isdigit() else (0, 0)


def openvino() -> Any:
    """Import OpenVINO, without the message that it sends home when it is imported.

    ``import openvino`` imports its command line tools, and these report each import to a server through the package
    ``openvino_telemetry`` unless that is missing. So it is missing while they look for it; they then use the stub that they bring
    for that case. A process that imported OpenVINO before keeps what it has.

    Source: ``openvino/tools/ovc/__init__.py`` and ``telemetry_utils.py`` of OpenVINO 2026.4.
    """
    loaded = sys.modules.get("openvino")
    if loaded is not None:
        return loaded
    with _lock:
        hidden = _TELEMETRY not in sys.modules
        if hidden:
            sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
        try:
            return importlib.import_module("openvino")
        finally:
            if hidden:
                del sys.modules[_TELEMETRY]


@lru_cache(maxsize=1)
def _core() -> Any:
    return openvino().Core()


def core() -> Any:
    """Return the process's ``openvino.Core``.

    Raises:
        BackendUnavailableError: This process was forked from one that had used OpenVINO.
    """
    check_process()
    return _core()


_is_forked = False


def _note_fork() -> None:
    global _is_forked
    _is_forked = _is_forked or _core.cache_info().currsize > 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def check_process() -> None:
    """Check that OpenVINO's threads are in this process: a fork has none of them, and would wait for them for ever.

    Raises:
        BackendUnavailableError: This process was forked from one that had used OpenVINO.
    """
    if _is_forked:
        raise BackendUnavailableError(
            "this process was forked from one that had used OpenVINO, whose threads are not in it; call the model for the first time "
            "behind the fork, or start processes by spawn"
        )


@lru_cache(maxsize=1)
def native_float_types() -> frozenset[torch.dtype]:
    """Return the floating-point types that engines compute in on this CPU; values of other types are computed in float32.

    float16 is never among them: an engine is compiled with the precision hint ``f32``, under which OpenVINO keeps bfloat16 where
    the processor has it and turns float16 into float32.

    Source: ``OPTIMIZATION_CAPABILITIES`` of OpenVINO's CPU device, which asks the processor; ``Transformations::PreLpt`` in
    ``src/plugins/intel_cpu/src/transformations/transformation_pipeline.cpp``.
    """
    has_bfloat16 = "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return frozenset({torch.float32, torch.bfloat16} if has_bfloat16 else {torch.float32})

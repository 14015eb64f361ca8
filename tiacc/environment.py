"""What a model runs on: the software with versions, the hardware with what it can do. Cheap to ask, and asking never raises."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import torch


@dataclass(frozen=True)
class Software:
    """A library: its name, and its version or ``"not installed"``."""

    software: str
    version: str


@dataclass(frozen=True)
class HardwareEnvironment:
    """Where the model ran.

    Attributes:
        device_type: ``"CPU"`` or ``"GPU"``.
        microarchitecture: The name of the device and what it can do.
    """

    device_type: str
    microarchitecture: str


NOT_INSTALLED = "not installed"

LIBRARIES: dict[str, tuple[str, ...]] = {
    "TensorRT": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "TensorRT-RTX": ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
    "OpenVINO": ("openvino",),
    "cudnn-frontend": ("nvidia-cudnn-frontend",),
    "Triton": ("triton",),
    "PyCUDA": ("pycuda",),
    "tiacc": ("tiacc",),
}
"""The libraries that tiacc can use, by the names of the packages that bring them; the first that is installed counts."""

_CPUINFO = Path("/proc/cpuinfo")

_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16", "sve_bf16"})
_SHOWN_FLAGS = {"amx_tile": "AMX", "avx_vnni": "VNNI", "avx512_vnni": "VNNI", "sve": "SVE", "i8mm": "int8"}


def software_environment() -> list[Software]:
    """Return torch, CUDA and cuDNN as torch has them, and `LIBRARIES`; what is missing has the version ``"not installed"``."""
    versions = {"torch": torch.__version__, "CUDA": torch.version.cuda, "cuDNN": _cudnn_version()}
    for name, packages in LIBRARIES.items():
        versions[name] = next(filter(None, map(_package_version, packages)), None)
    return [Software(name, version or NOT_INSTALLED) for name, version in versions.items()]


def hardware_environment(device: torch.device | str = "cpu", target: Sequence[str] = ()) -> HardwareEnvironment:
    """Return what a device is.

    Args:
        device: Where the model runs.
        target: The GPUs that it was built for instead, as in `Options.target`.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return HardwareEnvironment("CPU", f"{_cpu_name()} ({', '.join(_cpu_levels())})")
    if target:
        return HardwareEnvironment("GPU", f"built for {', '.join(target)}, not run")
    return HardwareEnvironment("GPU", _gpu_name(device))


def cpu_has_bf16() -> bool:
    """Return whether this CPU multiplies in bfloat16 itself (AVX-512 BF16, AMX, or Arm's BF16); elsewhere bfloat16 is slow."""
    return not _BF16_FLAGS.isdisjoint(cpu_flags())


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """Return the instruction sets of this CPU, by torch's names and by Linux's. What cannot be found out is left out."""
    ask = getattr(torch.cpu, "get_capabilities", None)  # torch 2.11 lacks it
    known = {name for name, value in ask().items() if value is True} if ask is not None else set()
    return frozenset(known | set(_cpuinfo("flags", "Features").split()))


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine() or "unknown CPU"


def _cpu_levels() -> list[str]:
    """Return the vector instructions that torch uses, and what else matters for the speed of inference."""
    flags = cpu_flags()
    level = torch.backends.cpu.get_cpu_capability()
    extras = [shown for flag, shown in _SHOWN_FLAGS.items() if flag in flags]
    return [*dict.fromkeys([level, *extras, *(["bf16"] if cpu_has_bf16() else [])])]


def _gpu_name(device: torch.device) -> str:
    if not torch.cuda.is_available():
        return "no GPU"
    try:
        properties = torch.cuda.get_device_properties(device)
    except (RuntimeError, AssertionError):  # torch raises either for a device index that is not there
        return "unknown GPU"
    return f"{properties.name} (sm{properties.major}{properties.minor})"


def _cudnn_version() -> str | None:
    try:
        number = torch.backends.cudnn.version()
    except RuntimeError:  # the library that is loaded is not the one torch was built for
        return "incompatible"
    if number is None:
        return None
    # Source: cudnn_version.h; from version 9 on, MAJOR * 10000 + MINOR * 100 + PATCH, before it MAJOR * 1000 + ...
    major, rest = divmod(number, 10_000 if number >= 90_000 else 1_000)
    return f"{major}.{rest // 100}.{rest % 100}"


def _package_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@lru_cache(maxsize=8)
def _cpuinfo(*keys: str) -> str:
    """Return the value of the first line of the first CPU that has one of the keys; empty where there is none."""
    try:
        lines = _CPUINFO.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return ""

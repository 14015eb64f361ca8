"""The TensorRT libraries that one code path serves, and all that differs between them and between their versions.

TensorRT (`tensorrt`) and TensorRT-RTX (`tensorrt_rtx`) share an API; RTX 1 follows that of TensorRT 11. Code that needs
something that not all of them have asks `Flavour.has`; nothing else in the backend looks at a version.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
from dataclasses import dataclass
from typing import Any

import torch

from tiacc.backends.base import SUPPORTED, Support
from tiacc.errors import BackendUnavailableError, InvalidArgumentError

Version = tuple[int, ...]

OLDEST: dict[str, Version] = {"tensorrt": (10, 7), "tensorrt_rtx": (1, 7)}
"""The oldest version of each library that the backend works with."""

INSTALL: dict[str, str] = {"tensorrt": "pip install 'tiacc[tensorrt]'", "tensorrt_rtx": "pip install 'tiacc[rtx]'"}



@dataclass(frozen=True)
class Capability:
    """Something that not every library and version has.

    Attributes:
        since: The version of each library from which on it works; a library that is not named never has it.
        names: The names of the API that are used only where it is there.
    """

    since: dict[str, Version]
    names: tuple[str, ...] = ()


CAPABILITIES: dict[str, Capability] = {
    "attention": Capability({"tensorrt": (10, 14), "tensorrt_rtx": (1, 7)}, ("INetworkDefinition.add_attention",)),
    "attention_v2": Capability({"tensorrt": (11, 0), "tensorrt_rtx": (1, 7)}, ("INetworkDefinition.add_attention_v2",)),
    "cumulative": Capability({"tensorrt": (10, 8), "tensorrt_rtx": (1, 7)}, ("INetworkDefinition.add_cumulative",)),
    "normalization_v2": Capability({"tensorrt": (10, 15), "tensorrt_rtx": (1, 7)}, ("INetworkDefinition.add_normalization_v2",)),
    "rotary_embedding": Capability({"tensorrt": (10, 15), "tensorrt_rtx": (1, 7)}, ("INetworkDefinition.add_rotary_embedding",)),
    "compute_capabilities": Capability(
        {"tensorrt_rtx": (1, 7)},
        ("ComputeCapability", "IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability"),
    ),
    "runtime_cache": Capability({"tensorrt_rtx": (1, 7)}, ("IRuntimeConfig.create_runtime_cache", "IRuntimeConfig.set_runtime_cache")),
    "engine_validity": Capability({"tensorrt_rtx": (1, 7)}, ("Runtime.get_engine_validity",)),
    "timing_cache": Capability({"tensorrt": (10, 7)}),
    "nms": Capability({"tensorrt": (10, 7)}),
    "non_zero": Capability({"tensorrt": (10, 7)}),
}
"""What to ask `Flavour.has` for.

RTX has the calls for NMS, non-zero and the timing cache, but no kernels for the first two, and the cache stays empty.

Source: the names in the bindings of TensorRT 10.7 to 11.4 and RTX 1.7; builds with RTX 1.7.1; NVIDIA/TensorRT-RTX issue 32.
"""

TARGETS: dict[str, str] = {
    "sm75": "Turing",
    "sm80": "Ampere (A100)",
    "sm86": "Ampere (GeForce 30)",
    "sm89": "Ada",
    "sm120": "Blackwell (GeForce 50)",
    "sm121": "Blackwell (GB10)",
}
"""The GPU generations that RTX builds for by name."""

_DTYPE_NAMES: dict[torch.dtype, str] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.bool: "bool",
    torch.int8: "int8",
    torch.uint8: "uint8",
}


@dataclass(frozen=True)
class Flavour:
    """One TensorRT library, as installed.

    Attributes:
        name: ``"tensorrt"`` or ``"tensorrt_rtx"``; also the name of the Python module and of the backend.
        version: Its version, ``(10, 13, 3, 9)``.
        module: The Python module.
    """

    name: str
    version: Version
    module: Any

    def has(self, capability: str) -> bool:
        """Return whether this version of this library has a capability of the table.

        Raises:
            KeyError: The table has no such row.
        """
        since = CAPABILITIES[capability].since.get(self.name)
        return since is not None and self.version[: len(since)] >= since

    def dtype(self, dtype: torch.dtype) -> Any:
        """Return TensorRT's name for a dtype.

        Raises:
            KeyError: TensorRT has no such type (float64, int16, complex, ...).
        """
        return _dtypes(self)[0][dtype]

    def torch_dtype(self, dtype: Any) -> torch.dtype:
        """Return torch's name for a TensorRT dtype."""
        return _dtypes(self)[1][dtype]

    @property
    def version_text(self) -> str:
        """The version as text, ``"10.13.3.9"``."""
        return ".".join(map(str, self.version))


@functools.lru_cache(maxsize=8)
def _dtypes(flavour: Flavour) -> tuple[dict[torch.dtype, Any], dict[Any, torch.dtype]]:
    to_trt = {dtype: getattr(flavour.module, name) for dtype, name in _DTYPE_NAMES.items()}
    return to_trt, {value: key for key, value in to_trt.items()}


def parse_version(text: str) -> Version:
    """Return ``(10, 13, 3)`` for ``"10.13.3"``; anything after the numbers is dropped."""
    return tuple(int(part) for part in re.findall(r"\d+", text.split("+")[0])[:4])


def check_installed(name: str) -> Support:
    """Return whether a flavour is installed and new enough, importing it only when it is there."""
    if importlib.util.find_spec(name) is None:
        return Support(False, f"{name} is not installed: {INSTALL[name]}")
    try:
        load_flavour(name)
    except BackendUnavailableError as error:
        return Support(False, str(error))
    return SUPPORTED


@functools.cache
def load_flavour(name: str) -> Flavour:
    """Import a TensorRT library.

    Args:
        name: ``"tensorrt"`` or ``"tensorrt_rtx"``.

    Raises:
        InvalidArgumentError: There is no flavour of that name.
        BackendUnavailableError: It is not installed, does not load, or is too old.
    """
    if name not in OLDEST:
        raise InvalidArgumentError(f"no TensorRT flavour is named {name!r}; there are {', '.join(OLDEST)}")
    if importlib.util.find_spec(name) is None:
        raise BackendUnavailableError(f"{name} is not installed: {INSTALL[name]}")
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendUnavailableError(f"{name} is installed but does not load: {error}") from error
    version = parse_version(module.__version__)
    if version < OLDEST[name]:
        oldest = ".".join(map(str, OLDEST[name]))
        raise BackendUnavailableError(f"{name} {module.__version__} is too old; {oldest} or later is needed: {INSTALL[name]}")
    return Flavour(name, version, module)

"""The names of the TensorRT bindings by release, as data, and a way to see which of them are used."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def _data() -> dict[str, dict[str, Any]]:
    return json.loads((Path(__file__).parent / "data" / "trt_api.json").read_text())  # type: ignore[no-any-return]


RELEASES: tuple[str, ...] = tuple(_data())
"""``"tensorrt 10.7.0"`` and so on."""


def find(release: str, name: str) -> Any:
    """Return what a release says of ``"ActivationType.RELU"`` or ``"INetworkDefinition.add_identity"``; None when it has no such name."""
    owner, _, member = name.partition(".")
    entry = _data()[release].get(owner)
    if entry is None or not member:
        return entry
    if "enum" in entry:
        return entry["enum"].get(member)
    if member in entry.get("members", {}):
        return entry["members"][member]
    for base in entry.get("bases", ()):
        found = find(release, f"{base}.{member}")
        if found is not None:
            return found
    return None


def has(release: str, name: str) -> bool:
    """Return whether a release has a name."""
    return find(release, name) is not None


class Recorder:
    """Stands in for the Python module and notes the names that are read from it, those of enumerations with their members."""

    def __init__(self, module: Any, used: set[str], prefix: str = "") -> None:
        self.__dict__.update(_module=module, _used=used, _prefix=prefix)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if not name.startswith("__"):
            self._used.add(self._prefix + name)
        if isinstance(value, type) and hasattr(value, "__members__") and not self._prefix:
            return Recorder(value, self._used, f"{name}.")
        return value

    def __call__(self, *args: Any) -> Any:
        return self._module(*args)

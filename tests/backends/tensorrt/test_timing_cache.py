"""Kernel timings between builds. RTX has the calls and keeps nothing, so it stands in for TensorRT, with a cache that can be told apart."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.backends.tensorrt.harness import graph_of, needs_rtx
from tiacc.backends.tensorrt.builder import BuildOptions, build_network, build_plan
from tiacc.backends.tensorrt.flavours import Flavour, load_flavour
from tiacc.backends.tensorrt.kept import device_key
from tiacc.backends.tensorrt.timing_cache import TimingCache
from tiacc.graph import specs
from tiacc.graph.specs import TensorSpec

aten = torch.ops.aten
_TENSORRT = Flavour("tensorrt", (11, 0, 0), None)


class _Config:
    """An ``IBuilderConfig`` that notes the caches it is given, and takes those that begin with ``good`` or are empty."""

    def __init__(self, makes_none: bool = False) -> None:
        self.given: list[bytes] = []
        self._makes_none = makes_none

    def create_timing_cache(self, data: bytes) -> Any:
        return None if self._makes_none and data else SimpleNamespace(data=data, serialize=lambda: b"good, and more")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self.given.append(cache.data)
        return not cache.data or cache.data.startswith(b"good")


def _saved(folder: Path) -> Path:
    cache = TimingCache.of(_TENSORRT, _Config(), folder)
    assert cache is not None
    cache.save()
    (file,) = folder.iterdir()
    return file


def _found(folder: Path, **options: bool) -> list[bytes]:
    config = _Config(**options)
    TimingCache.of(_TENSORRT, config, folder)
    return config.given


def test_what_one_build_measured_the_next_one_begins_with(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "when needed"
    file = _saved(folder)
    assert file.name == f"tensorrt-11.0.0-{device_key()}.timings"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _found(folder) == [b"good, and more"]


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:7], lambda data: b"", lambda data: data[:-1] + b"!"])
def test_a_damaged_file_is_not_used(damage: Any, tmp_path: Path) -> None:
    file = _saved(tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    if file.stat().st_size:
        with pytest.warns(RuntimeWarning, match=r"timings are not used.*damaged"):
            assert _found(tmp_path) == [b""]
    else:
        assert _found(tmp_path) == [b""]


def test_what_tensorrt_does_not_take_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _saved(tmp_path)
    with pytest.warns(RuntimeWarning, match="does not take it"):
        assert _found(tmp_path, makes_none=True) == [b""]
    monkeypatch.setattr(_Config, "set_timing_cache", lambda self, cache, ignore: self.given.append(cache.data) or not cache.data)
    with pytest.warns(RuntimeWarning, match="does not take it"):
        assert _found(tmp_path) == [b"good, and more", b""]


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    cache = TimingCache.of(_TENSORRT, _Config(), blocked)
    assert cache is not None
    with pytest.warns(RuntimeWarning, match="cannot be kept"):
        cache.save()


def test_each_kind_of_gpu_has_its_own_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(name=f"NVIDIA L4 ({index})", major=8, minor=9)
    )
    assert device_key() == "nvidia-l4-1-sm89"


@needs_rtx
def test_builds_keep_timings_where_the_library_has_them(tmp_path: Path) -> None:
    gm, x = graph_of(lambda x: aten.relu.default(x), 1), TensorSpec((2, 3), torch.float32)
    specs.propagate(gm, [x])
    module = load_flavour("tensorrt_rtx").module
    for library, version, kept in (("tensorrt", (11, 0, 0), 1), ("tensorrt_rtx", (1, 7, 1), 0)):
        folder = tmp_path / library
        for _ in range(2):
            definition = build_network(Flavour(library, version, module), gm, [x])
            build_plan(definition, (), 1 << 28, BuildOptions(cache_dir=folder))
        assert len(list(folder.glob("*"))) == kept

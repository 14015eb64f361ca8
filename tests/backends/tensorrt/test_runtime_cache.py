"""The kernels that RTX compiles when a model first runs, kept between processes: against a stand-in of RTX's runtime."""

from __future__ import annotations

import gc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tiacc.backends.base import Profile
from tiacc.backends.tensorrt.execution import Executor
from tiacc.backends.tensorrt.flavours import Flavour
from tiacc.backends.tensorrt.payload import EnginePayload
from tiacc.graph.types import TensorSpec


class _Cache:
    """An ``IRuntimeCache``."""

    def __init__(self, takes: bool) -> None:
        self.takes = takes
        self.data = b""

    def deserialize(self, data: bytes) -> bool:
        self.data = data if self.takes else b""
        return self.takes

    def serialize(self) -> bytes:
        return self.data + b"kernels "


class _World:
    """RTX, and what was made with it: caches, and the runtime configurations of contexts."""

    def __init__(self, takes: bool = True) -> None:
        self.caches: list[_Cache] = []
        self.configs: list[Any] = []
        self.takes = takes
        runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: self)
        self.module = SimpleNamespace(
            ILogger=type("ILogger", (), {}),
            Runtime=lambda logger: runtime,
            ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
        )

    def create_runtime_config(self) -> Any:
        config = SimpleNamespace(create_runtime_cache=self._create, strategy=None, cache=None)
        config.set_execution_context_allocation_strategy = lambda strategy: setattr(config, "strategy", strategy)
        config.set_runtime_cache = lambda cache: setattr(config, "cache", cache)
        return config

    def _create(self) -> _Cache:
        self.caches.append(_Cache(self.takes))
        return self.caches[-1]

    def create_execution_context(self, config: Any) -> Any:
        assert config.strategy == "user managed"
        self.configs.append(config)
        return SimpleNamespace(
            set_input_shape=lambda name, shape: True,
            infer_shapes=list,
            get_tensor_shape=lambda name: (2,),
            update_device_memory_size_for_shapes=lambda: 256,
            set_tensor_address=lambda name, address: True,
            set_device_memory=lambda pointer, size: None,
            execute_async_v3=lambda stream: True,
        )

    def run(self, plan: bytes, *streams: int) -> None:
        """Load an engine, run it on some streams, and let it go, as a process does."""
        spec, profile = TensorSpec((2,), torch.float32), Profile(((2,),), ((2,),), ((2,),))
        payload = EnginePayload("tensorrt_rtx", "1.7.1", (), ("x",), ("y",), (spec,), (spec,), (profile,), plan)
        block = SimpleNamespace(pointer=4096, free=lambda: None)
        executor = Executor(Flavour("tensorrt_rtx", (1, 7, 1), self.module), payload, torch.device("cpu"), lambda *given: block)
        for stream in streams:
            executor.run([torch.zeros(2)], stream)
        del executor
        gc.collect()


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "made" / "when needed"
    monkeypatch.setenv("TIACC_CACHE_DIR", str(path))
    return path


def test_what_one_process_compiled_the_next_one_begins_with(folder: Path) -> None:
    _World().run(b"plan", 1)
    (file,) = folder.iterdir()
    assert file.name.startswith("tensorrt_rtx-1.7.1-") and file.suffix == ".kernels"
    world = _World()
    world.run(b"plan", 1)
    assert [cache.data for cache in world.caches] == [b"kernels "]
    third = _World()
    third.run(b"plan", 1)
    assert [cache.data for cache in third.caches] == [b"kernels kernels "]


def test_contexts_share_it_and_engines_do_not(folder: Path) -> None:
    world = _World()
    world.run(b"plan", 1, 2, 3)
    (cache,) = world.caches
    assert [config.cache for config in world.configs] == [cache] * 3
    world.run(b"other plan", 1)
    assert len(world.caches) == len(list(folder.iterdir())) == 2


def test_nothing_is_kept_without_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TIACC_CACHE_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    world = _World()
    world.run(b"plan", 1)
    assert len(world.caches) == 1 and list(tmp_path.iterdir()) == []


def test_nothing_is_kept_of_an_engine_that_never_ran(folder: Path) -> None:
    _World().run(b"plan")
    assert not folder.exists()


def test_what_rtx_does_not_take_is_compiled_again(folder: Path) -> None:
    _World().run(b"plan", 1)
    _World().run(b"plan", 1)
    _World(takes=False).run(b"plan", 1)
    world = _World()
    world.run(b"plan", 1)
    assert world.caches[0].data == b"kernels "


def test_a_damaged_file_is_not_used(folder: Path) -> None:
    _World().run(b"plan", 1)
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    world = _World()
    with pytest.warns(RuntimeWarning, match=r"compiled kernels in .* are not used.*damaged"):
        world.run(b"plan", 1)
    assert world.caches[0].data == b""


def test_a_folder_that_cannot_be_written_costs_a_warning(folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="compiled kernels cannot be kept"):
        _World().run(b"plan", 1)

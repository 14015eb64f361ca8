"""The table of capabilities, held against the names in the bindings of each version."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from tests.backends.tensorrt import api
from tests.backends.tensorrt.harness import needs_rtx
from tiacc.backends.tensorrt import flavours
from tiacc.backends.tensorrt.flavours import CAPABILITIES, Flavour, load_flavour, parse_version
from tiacc.errors import BackendUnavailableError, InvalidArgumentError


@pytest.mark.parametrize("release", api.RELEASES)
def test_capability_names_exist_where_the_table_says_so(release: str) -> None:
    library, version = release.split()
    flavour = Flavour(library, parse_version(version), None)
    for name, capability in CAPABILITIES.items():
        if capability.names:
            assert all(api.has(release, item) for item in capability.names) == flavour.has(name), (release, name)


def test_rtx_has_no_kernels_for_nms_and_non_zero() -> None:
    rtx, native = Flavour("tensorrt_rtx", (1, 7, 1), None), Flavour("tensorrt", (10, 7, 0), None)
    for name in ("nms", "non_zero", "timing_cache"):
        assert native.has(name) and not rtx.has(name)


def test_unknown_capability_is_a_mistake_in_the_code() -> None:
    with pytest.raises(KeyError):
        Flavour("tensorrt", (11, 0), None).has("telepathy")


@pytest.mark.parametrize(
    ("text", "version"), [("10.13.3.9", (10, 13, 3, 9)), ("11.0.0b1", (11, 0, 0, 1)), ("1.7.1+cu13", (1, 7, 1))]
)
def test_parse_version(text: str, version: tuple[int, ...]) -> None:
    assert parse_version(text) == version


def test_unknown_flavour() -> None:
    with pytest.raises(InvalidArgumentError, match="tensorrt_rtx"):
        load_flavour("tensorrt_lite")


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed")
def test_missing_library_says_what_to_install() -> None:
    answer = flavours.check_installed("tensorrt")
    assert not answer
    assert "pip install 'tiacc[tensorrt]'" in answer.reason
    with pytest.raises(BackendUnavailableError, match=r"pip install 'tiacc\[tensorrt\]'"):
        load_flavour("tensorrt")


@needs_rtx
def test_too_old_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(flavours.OLDEST, "tensorrt_rtx", (99, 1))
    load_flavour.cache_clear()
    try:
        with pytest.raises(BackendUnavailableError, match=r"too old; 99\.1 or later"):
            load_flavour("tensorrt_rtx")
    finally:
        load_flavour.cache_clear()


@needs_rtx
def test_dtypes_go_both_ways() -> None:
    flavour = load_flavour("tensorrt_rtx")
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.bool, torch.int8, torch.uint8):
        assert flavour.torch_dtype(flavour.dtype(dtype)) == dtype
    with pytest.raises(KeyError):
        flavour.dtype(torch.float64)

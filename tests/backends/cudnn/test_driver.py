"""What is told to the CUDA driver, in the layout of its header."""

from __future__ import annotations

import ctypes

import pytest
import torch

from tiacc.backends.cudnn import binaries, driver, triton_call


def test_structures_are_laid_out_as_in_cuda_h() -> None:
    config, attribute, params = driver._Config, driver._Attribute, driver._Params
    assert (config.gridDimX.offset, config.blockDimX.offset, config.sharedMemBytes.offset) == (0, 12, 24)
    assert (config.hStream.offset, config.attrs.offset, config.numAttrs.offset, ctypes.sizeof(config)) == (32, 40, 48, 56)
    assert (attribute.id.offset, attribute.value.offset, ctypes.sizeof(attribute)) == (0, 8, 72)
    assert (params.func.offset, params.gridDimX.offset, params.sharedMemBytes.offset) == (0, 8, 32)
    assert (params.kernelParams.offset, params.extra.offset, params.kern.offset, params.ctx.offset) == (40, 48, 56, 64)
    assert ctypes.sizeof(params) == 72


def test_arguments_are_read_where_they_are_changed() -> None:
    held = driver._Arguments([7, 8])
    held.values[1] = 2**40 + 5
    read = [ctypes.cast(pointer, ctypes.POINTER(ctypes.c_uint64)).contents.value for pointer in held.pointers]
    assert read == [7, 2**40 + 5]
    assert ctypes.cast(held.pointers[1], ctypes.POINTER(ctypes.c_int32)).contents.value == 5


def test_arguments_are_counted_in_the_assembly() -> None:
    ptx = """
.visible .entry kernel(
\t.param .u64 .ptr .global .align 1 kernel_param_0,
\t.param .u32 kernel_param_1,
\t.param .u64 .ptr .global .align 1 kernel_param_2
)
.reqntid 128
{ ld.param.b64 %rd1, [kernel_param_0]; }
"""
    assert binaries.arguments_of(ptx, "kernel") == 3
    with pytest.raises(RuntimeError, match="no entry other"):
        binaries.arguments_of(ptx, "other")


def test_a_kept_kernel_that_does_not_load_is_compiled_anew(monkeypatch) -> None:
    old, new = (binaries.Binary(name, name.encode(), 0, 128, (0,), 3) for name in ("old", "new"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(triton_call, "compile_kernel", lambda *args: new)
    launched = []

    def load(device: int, code: bytes, name: str, shared_bytes: int) -> int:
        if code == b"old":
            raise RuntimeError("the CUDA driver refuses: CUDA_ERROR_INVALID_IMAGE (200)")
        return 7

    monkeypatch.setattr(driver, "loaded", load)
    monkeypatch.setattr(driver, "Kernel", lambda *args, overlaps: launched.append((*args, overlaps)))
    x = torch.zeros(8)

    def call_with(kept: dict[str, binaries.Binary]) -> triton_call.TritonCall:
        return triton_call.TritonCall("text", (5,), [x, 1], {"BLOCK": 2}, 4, 2, binaries=binaries.Binaries(kept))

    call = call_with({call_with({}).key(): old})
    call.loaded()
    assert launched == [(7, [x.data_ptr(), 0, 0], (5,), 128, 0, False)]
    assert call.binary() == new
    monkeypatch.setattr(triton_call, "compile_kernel", lambda *args: old)
    with pytest.raises(RuntimeError, match="INVALID_IMAGE"):
        call_with({}).loaded()

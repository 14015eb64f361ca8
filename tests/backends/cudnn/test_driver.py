"""What is told to the CUDA driver, in the layout of its header."""

from __future__ import annotations

import ctypes

import pytest

from tiacc.backends.cudnn import binaries, driver


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

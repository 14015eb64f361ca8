"""TensorRT networks written by hand, and their evaluation: shared by the tests of the interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tiacc.backends.tensorrt.interpreter import NetworkInterpreter

trt: Any = pytest.importorskip("tensorrt_rtx")

DTYPES = {
    torch.float32: trt.float32,
    torch.float16: trt.float16,
    torch.bfloat16: trt.bfloat16,
    torch.int32: trt.int32,
    torch.int64: trt.int64,
    torch.int8: trt.int8,
    torch.uint8: trt.uint8,
    torch.bool: trt.bool,
}


class _Logger(trt.ILogger):  # type: ignore[misc]
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(message)


class Net:
    """A network under construction. Its methods that are not here are those of ``INetworkDefinition``."""

    def __init__(self) -> None:
        self.logger = _Logger()
        self.builder = trt.Builder(self.logger)
        self.network = self.builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self.kept: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def input(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Any:
        return self.network.add_input(name, DTYPES[dtype], shape)

    def constant(self, value: Any) -> Any:
        """Add a constant; Python numbers become int32 and float32."""
        if not isinstance(value, Tensor):
            value = np.asarray(value)
            narrow = {np.dtype(np.float64): np.float32, np.dtype(np.int64): np.int32}
            value = torch.from_numpy(np.ascontiguousarray(value.astype(narrow.get(value.dtype, value.dtype))).reshape(value.shape))
        value = value.contiguous()
        self.kept.append(value)
        weights = trt.Weights(DTYPES[value.dtype], value.data_ptr(), value.numel())
        return self.network.add_constant(tuple(value.shape), weights).get_output(0)

    def elementwise(self, operation: str, a: Any, b: Any) -> Any:
        return self.network.add_elementwise(a, b, getattr(trt.ElementWiseOperation, operation)).get_output(0)

    def identity(self, tensor: Any) -> Any:
        return self.network.add_identity(tensor).get_output(0)

    def output(self, *made: Any) -> Net:
        """Mark tensors, or the first outputs of layers, as outputs."""
        for item in made:
            self.network.mark_output(item if isinstance(item, trt.ITensor) else item.get_output(0))
        return self

    def interpreter(self, **options: Any) -> NetworkInterpreter:
        return NetworkInterpreter(trt, self.network, **options)

    def run(self, *feeds: Tensor, **options: Any) -> Tensor | list[Tensor]:
        """Evaluate on feeds in the order of the inputs; one output comes by itself."""
        names = [self.network.get_input(index).name for index in range(self.network.num_inputs)]
        results = list(self.interpreter(**options).run(dict(zip(names, feeds, strict=True))).values())
        return results[0] if len(results) == 1 else results


def evaluate(made: Any, net: Net, *feeds: Tensor, **options: Any) -> Any:
    """Mark one or several results as outputs and evaluate the network."""
    net.output(*(made if isinstance(made, list | tuple) else [made]))
    return net.run(*feeds, **options)


def assert_close(have: Tensor, want: Tensor, tolerance: float = 1e-5) -> None:
    """Hold shapes and dtypes to be equal, and values to be within a tolerance of the largest wanted one."""
    assert have.shape == want.shape, (have.shape, want.shape)
    assert have.dtype == want.dtype, (have.dtype, want.dtype)
    torch.testing.assert_close(
        have.to(torch.float64), want.to(torch.float64), rtol=tolerance, atol=tolerance * _largest(want), equal_nan=True
    )


def _largest(value: Tensor) -> float:
    finite = value.to(torch.float64)
    finite = finite[finite.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 1.0


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return reproducible normal values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)

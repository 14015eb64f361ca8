"""Launches of Triton kernels: compiled by Triton or kept with an engine, and launched by the driver."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from tiacc.backends.cudnn import driver, kernels
from tiacc.backends.cudnn.binaries import Binaries, Binary, compile_kernel, kernel_key
from tiacc.graph import torch_compat

WORKERS = min(16, os.cpu_count() or 2)
"""How many kernels are compiled at a time."""

ALIGNMENT = 16
"""Kernels are compiled for memory and numbers that are multiples of so much, where they are; so is torch's memory, unless it is a part
of a tensor."""


class TritonCall:
    """A launch of a Triton kernel.

    Args:
        text: The kernel.
        grid: How many programs it runs.
        arguments: Tensors and numbers; or types, of tensors that are given to a launch later.
        sizes: Its compile-time constants.
        warps: The warps of a program.
        stages: The stages of its pipelines.
        ahead: What it does before it waits for the kernel before it, where it overlaps with that.
        binaries: Where it is found compiled; None if Triton launches it.
    """

    def __init__(
        self,
        text: str,
        grid: tuple[int, ...],
        arguments: list[Any],
        sizes: dict[str, int],
        warps: int,
        stages: int,
        ahead: Sequence[str] = (),
        binaries: Binaries | None = None,
    ) -> None:
        self._source = self._text = text
        self._sizes = sizes
        self._ahead = ahead
        self._grid = grid
        self._arguments = arguments
        self._options: dict[str, Any] = {**sizes, "num_warps": warps, "num_stages": stages}
        self._binaries = binaries
        self._binary: Binary | None = None
        self._loaded: driver.Kernel | None = None

    def __call__(self) -> None:
        """Launch it on the current stream."""
        if self._binaries is None:
            self.launch_by_triton(self._arguments)
        else:
            self.loaded().launch(torch_compat.current_stream(self._arguments[0].get_device()))

    def launch_by_triton(self, arguments: Sequence[Any]) -> None:
        """Launch it with some arguments on the current stream, by Triton."""
        kernels.compiled(self._text)[self._grid](*arguments, **self._options)

    def overlap(self, *, waits: bool, triggers: bool) -> None:
        """Have it overlap with the kernels before and after it, which must be kernels of this class too; see `kernels.overlapped`."""
        self._text = self._source
        self._binary = self._loaded = None
        self._options.pop("launch_pdl", None)
        if waits or triggers:
            self._text = kernels.overlapped(self._source, waits=waits, triggers=triggers, ahead=self._ahead)
        if waits:
            self._options["launch_pdl"] = True

    def is_like(self, other: TritonCall) -> bool:
        """Return whether this and another launch could be one: by their warps and stages, and no sum is split."""
        is_alike = all(self._options[name] == other._options[name] for name in ("num_warps", "num_stages"))
        return is_alike and all(max(call._grid[2:], default=1) == 1 for call in (self, other))

    def beside(self, others: Sequence[TritonCall]) -> TritonCall:
        """Return one launch that does the work of this and of others that are like it, at the same time."""
        calls = [self, *others]
        grids = [(call._grid[0], call._grid[1] if len(call._grid) > 1 else 1) for call in calls]
        text = kernels.side_by_side([(call._source, grid, call._sizes) for call, grid in zip(calls, grids)])
        arguments = [argument for call in calls for argument in call._arguments]
        warps, stages = self._options["num_warps"], self._options["num_stages"]
        return TritonCall(text, (sum(map(math.prod, grids)), 1), arguments, {}, warps, stages, binaries=self._binaries)

    def variant(self) -> tuple[Any, ...]:
        """Return what tells one compilation from another."""
        return (self._text, tuple(map(_kind_of, self._arguments)), tuple(self._options.items()))

    def key(self) -> str:
        """Return the key of its kernel for the current device."""
        return kernel_key(self.variant())

    def binary(self) -> Binary:
        """Return the compiled kernel, for the current device."""
        if self._binary is None:
            assert self._binaries is not None
            make = functools.partial(compile_kernel, self._text, self._grid, self._arguments, self._options)
            self._binary = self._binaries.get(self.key(), make)
        return self._binary

    def loaded(self) -> driver.Kernel:
        """Return what launches it on the current device; tensors that are given later have no place yet.

        Raises:
            RuntimeError: The driver does not load it.
        """
        if self._loaded is None:
            binary, handle = self._handle()
            arguments = [_number_of(self._arguments[index]) for index in binary.taken]
            arguments += [0] * (binary.count - len(arguments))
            overlaps = bool(self._options.get("launch_pdl"))
            self._loaded = driver.Kernel(handle, arguments, self._grid, binary.threads, binary.shared_bytes, overlaps=overlaps)
        return self._loaded

    def _handle(self) -> tuple[Binary, int]:
        binary = self.binary()
        try:
            return binary, driver.loaded(torch.cuda.current_device(), binary.code, binary.name, binary.shared_bytes)
        except RuntimeError:
            # one that was saved where the driver is newer
            if self._binaries is None or not self._binaries.give_up(self.key()):
                raise
        self._binary = None
        return self._handle()

    def compile(self) -> None:
        """Compile it without a launch; what goes wrong shows when it is launched."""
        with contextlib.suppress(Exception):
            if self._binaries is None:
                kernels.compiled(self._text).warmup(*self._arguments, grid=self._grid, **self._options)
            else:
                self.binary()


def _kind_of(argument: Any) -> tuple[Any, ...]:
    """Return what of an argument a kernel is compiled for."""
    if isinstance(argument, torch.Tensor):
        return argument.dtype, argument.data_ptr() % ALIGNMENT
    if isinstance(argument, torch.dtype):
        return argument, 0
    return argument == 1, argument % ALIGNMENT == 0, argument > kernels.INT32_LIMIT


def _number_of(argument: Any) -> int:
    return argument.data_ptr() if isinstance(argument, torch.Tensor) else 0 if isinstance(argument, torch.dtype) else int(argument)


def compile_ahead(calls: Sequence[TritonCall]) -> None:
    """Compile kernels, several at a time: most of that is done outside of Python."""
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(lambda call: call.compile(), {call.variant(): call for call in calls}.values()))

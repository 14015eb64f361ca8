"""Kernels as a GPU runs them, kept with an engine: one that was loaded compiles nothing, and does without Triton."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tiacc.backends.cudnn import kernels

WARP = 32


@dataclass(frozen=True)
class Binary:
    """A compiled kernel.

    Attributes:
        name: What it is called in its code.
        code: A cubin.
        shared_bytes: The shared memory of a block.
        threads: The threads of a block.
        taken: Which of the arguments of a launch it takes; the others were known when it was compiled.
        count: How many arguments it has in all; those that Triton adds, for memory that it does not need, come last.
    """

    name: str
    code: bytes
    shared_bytes: int
    threads: int
    taken: tuple[int, ...]
    count: int


class Binaries:
    """The kernels of an engine, those tried while it is tuned among them.

    Args:
        kept: Those that the engine was saved with, by key.

    Attributes:
        kept: These.
    """

    def __init__(self, kept: Mapping[str, Binary] | None = None) -> None:
        self.kept = dict(kept or {})
        self._found = dict(self.kept)

    def get(self, key: str, make: Callable[[], Binary]) -> Binary:
        """Return a kernel, made if there is none."""
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = make()
        return found

    def give_up(self, key: str) -> bool:
        """Drop a kernel that does not load here; return whether the engine was saved with it, so that another may be made."""
        self._found.pop(key, None)
        return self.kept.pop(key, None) is not None

    def forget(self) -> None:
        """Drop all that the engine was not saved with; calls that use them have them."""
        self._found = dict(self.kept)


def kernel_key(variant: tuple[Any, ...]) -> str:
    """Return the key of a kernel for the current device.

    Args:
        variant: What tells one compilation from another.
    """
    capability = torch.cuda.get_device_capability()
    return hashlib.sha256(repr((capability, *variant)).encode()).hexdigest()[:32]


def compile_kernel(text: str, grid: tuple[int, ...], arguments: Sequence[Any], options: Mapping[str, Any]) -> Binary:
    """Compile a kernel.

    Args:
        text: Its text.
        grid: How many programs it runs.
        arguments: Tensors, or their types where they begin at a multiple of 16 bytes, and numbers.
        options: Its compile-time constants, and what Triton is told.

    Raises:
        RuntimeError: It wants memory that a launch by the driver does not give it.
    """
    kernel = kernels.compiled(text)
    compiled = kernel.warmup(*arguments, grid=grid, **options)
    metadata, signature = compiled.metadata, compiled.src.signature
    if any(getattr(metadata, f"{kind}_scratch_size", 0) for kind in ("global", "profile")):
        raise RuntimeError("a kernel wants scratch memory of Triton's")
    taken = tuple(index for index, name in enumerate(kernel.arg_names[: len(arguments)]) if signature[name] != "constexpr")
    count = arguments_of(compiled.asm["ptx"], metadata.name)
    return Binary(metadata.name, compiled.asm["cubin"], metadata.shared, WARP * metadata.num_warps, taken, count)


def arguments_of(assembly: str, name: str) -> int:
    """Return how many arguments a kernel has in PTX.

    Raises:
        RuntimeError: It is not there.
    """
    found = re.search(rf"\.entry\s+{re.escape(name)}\s*\(([^)]*)\)", assembly)
    if found is None:
        raise RuntimeError(f"the assembly of a kernel has no entry {name}")
    return found[1].count(".param")


def to_json(binaries: Mapping[str, Binary]) -> tuple[list[list[Any]], bytes]:
    """Return kernels as JSON, and their code, compressed."""
    items = sorted(binaries.items())
    rows = [[key, one.name, len(one.code), one.shared_bytes, one.threads, one.taken, one.count] for key, one in items]
    return rows, zlib.compress(b"".join(one.code for _, one in items))


def from_json(rows: Sequence[Sequence[Any]], packed: bytes) -> dict[str, Binary]:
    """Return the kernels that `to_json` wrote.

    Raises:
        ValueError: The code is damaged.
    """
    try:
        code = zlib.decompress(packed)
    except zlib.error as error:
        raise ValueError(f"the code of its kernels cannot be read: {error}") from error
    found, begin = {}, 0
    for key, name, size, shared_bytes, threads, taken, count in rows:
        part = code[begin : begin + size]
        found[str(key)] = Binary(str(name), part, int(shared_bytes), int(threads), tuple(map(int, taken)), int(count))
        begin += size
    if begin != len(code):
        raise ValueError(f"its kernels have {len(code)} bytes of code, and {begin} were written")
    return found

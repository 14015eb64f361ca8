"""A `torch.nn.Module` as TorchScript: it is traced, and the trace is compared with it."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tiacc import measure, models
from tiacc.errors import AccuracyError, ImportGraphError
from tiacc.graph import torch_compat

TOLERANCE = 1e-2
"""The largest relative error of what a trace gives: it runs the same operators, and what it has baked in shows as more."""


def trace(module: torch.nn.Module, data: Sequence[Sequence[Any]]) -> tuple[torch.jit.ScriptModule, list[str]]:
    """Return a trace of a copy of a module in evaluation mode, and what the user should know of it.

    Args:
        module: The module; it is not changed.
        data: The arguments of one call each. It is traced with the first, and compared with the module on all.

    Raises:
        ImportGraphError: It cannot be traced, or the trace gives something else than the module.
        InvalidArgumentError: The module itself fails.
    """
    try:
        duplicate = copy.deepcopy(module)
    except Exception as error:  # whatever its parts raise
        raise ImportGraphError(
            f"input_model cannot be copied: {models.reason_of(error)}. Remove from it what it computed (as `weight_norm` leaves it) and "
            f"what holds a file or a lock, or trace it yourself with torch.jit.trace"
        ) from error
    notes = ["input_model is a torch.nn.Module; it was traced with the first item of the test data"]
    if torch_compat.is_training(duplicate):
        duplicate.eval()
        notes.append("input_model is in training mode; its copy was optimized and measured in evaluation mode")
    home = next((tensor.device for tensor in (*duplicate.parameters(), *duplicate.buffers())), torch.device("cpu"))
    with _attention_in_operators():
        try:
            with torch.no_grad(), models.same_random_numbers(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                example = models.moved(models.cloned(tuple(data[0])), home)
                traced = torch.jit.trace(duplicate, example, check_trace=False, strict=False)
        except Exception as error:  # the user's own forward may raise anything
            raise ImportGraphError(
                f"input_model cannot be traced with inputs of these shapes: {type(error).__name__}: {models.reason_of(error).lstrip(':')}. "
                f"Correct the input_shapes, or script or trace the module yourself"
            ) from error
        for index, item in enumerate(data):
            _compare(module, duplicate, traced, models.moved(item, home), index)
    _restore(duplicate, module)
    return traced, notes


def _compare(module: torch.nn.Module, duplicate: torch.nn.Module, traced: torch.jit.ScriptModule, item: Sequence[Any], index: int) -> None:
    _restore(duplicate, module)
    wanted = models.run_checked(duplicate, item, index)
    _restore(duplicate, module)
    try:
        found = models.call(traced, item)
    except Exception:  # noqa: BLE001 - a size is baked in; the run of the trace on all test data tells where
        return
    try:
        error = measure.largest(measure.compare(models.tensors_of(wanted), models.tensors_of(found)))
    except AccuracyError:
        error = math.inf
    if not error <= TOLERANCE:
        raise ImportGraphError(
            f"a trace of input_model gives something else than input_model on item {index} of the test data (shapes "
            f"{models.shapes_text(item)}): its Python code depends on values, sizes or earlier calls, and a trace has them baked in. "
            f"Use torch.jit.script(input_model), or a trace of your own if what that gives is what you want"
        )


def _restore(duplicate: torch.nn.Module, module: torch.nn.Module) -> None:
    """Undo what calls have written into the buffers of a copy, which its trace has in common with it."""
    with torch.no_grad():
        for buffer, original in zip(duplicate.buffers(), module.buffers()):
            if buffer.shape == original.shape:
                buffer.copy_(original)


@contextlib.contextmanager
def _attention_in_operators() -> Iterator[None]:
    """Have torch's modules of attention call the operators that they consist of: no backend takes a whole layer that is one operator."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)

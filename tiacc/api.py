"""`optimize`: a trained TorchScript model in, a faster one and a report out."""

from __future__ import annotations

import contextlib
import operator
import threading
import time
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Any

import torch

from tiacc import measure, models, samples
from tiacc.ahead_of_time import AheadOfTimeJob
from tiacc.backends.base import Backend, asked, backends, made, require
from tiacc.errors import BackendUnavailableError, InvalidArgumentError
from tiacc.explanation import Explanation
from tiacc.job import PHASES, Job
from tiacc.options import Options
from tiacc.planning import plan_of
from tiacc.progress import progress
from tiacc.report import OptimizedReport
from tiacc.runtime import modes

AUTO_BACKENDS: dict[str, tuple[str, ...]] = {"cpu": ("openvino",), "cuda": ("tensorrt", "tensorrt_rtx", "cudnn")}
"""What ``backend="auto"`` means, by device: those of these that are available, in this order."""

LEAST_BYTES = 64 << 20
"""The size of the weights of a model made in this process from which on `explain` sees to it that torch does not keep a copy of them."""

_one_at_a_time = threading.RLock()
"""Random state, the number of threads and the filters of warnings are the process's: a call changes them, and puts them back."""

_DEVICES: dict[Any, str] = {0: "cuda", 1: "cpu", "cuda": "cuda", "gpu": "cuda", "cpu": "cpu"}


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Have calls from several threads follow each other."""
    with _one_at_a_time:
        yield


@_alone()
@modes.all_off()
def optimize(
    input_model: str | PathLike[str] | torch.jit.ScriptModule | torch.nn.Module,
    optimization_level: int = 0,
    device_type: int | str = 0,
    input_shapes: Any = None,
    test_data: Sequence[Any] | None = None,
    save_path: str | PathLike[str] | None = None,
    *,
    options: Options | None = None,
    **fields: Any,
) -> tuple[torch.jit.ScriptModule, OptimizedReport]:
    """Return a faster model that computes the same, and a report of what was done.

    The input model is not changed. The model that is returned is what a load of the saved file gives: its outputs were compared
    with the input model's, and its latency measured against the input model's, in that form. If it is not right, or not faster,
    less is done, and at last the input model's own arithmetic is returned; the report says so.

    Args:
        input_model: The path of a ``.pt`` or ``.pth`` TorchScript file, a scripted or traced module, or a module, which is traced.
        optimization_level: 0: lossless, the input model's own arithmetic. 1: half precision; float16 on a GPU, bfloat16 on a CPU
            that computes in it.
        device_type: 0 or ``"cuda"``: the GPU. 1 or ``"cpu"``: the CPU.
        input_shapes: The shapes and element types of the inputs; see `tiacc.shapes`. None: those of `test_data`.
        test_data: What to measure and check with: one tuple of arguments a call. None: made up to fit `input_shapes`.
        save_path: Where to save the optimized model, ``.pt`` or ``.pth``; it is loaded with ``import tiacc; torch.jit.load(path)``.
        options: Everything else.
        **fields: Fields of `Options` by name, which go before those of `options`.

    Returns:
        The optimized model and the report.

    Raises:
        InvalidArgumentError: An argument is wrong, or the input model itself fails on inputs of these shapes.
        ImportGraphError: The input model cannot be read.
        BackendUnavailableError: There is no GPU, or a backend asked for cannot be used here.
        AccuracyError: The outputs differ by more than the tolerance, and ``on_accuracy_failure="raise"``.
        SpeedupError: The model is not as much faster as `Options.require_speedup` asks for.
    """
    begin = time.perf_counter()
    settings = Options.from_fields(options, **fields)
    level = check_level(optimization_level)
    device = check_device(device_type, settings)
    path = models.check_save_path(save_path)
    candidates, notes = choose_backends(settings, device)
    with progress(PHASES, settings.verbose) as bar, measure.threads(settings.num_threads):
        bar.start("read")
        inputs = samples.resolve_inputs(input_shapes, test_data, settings.seed)
        model, model_notes = models.load_model(input_model, inputs.data)
        kind = AheadOfTimeJob if settings.target else Job
        job = kind(model, level, device, inputs, path, settings, candidates, bar)
        job.report.warnings.extend((*model_notes, *inputs.warnings, *notes))
        if settings.check_network and not settings.target:
            job.report.warnings.append("check_network has no effect without target: engines that run here are compared with the model")
        output_model = job.run()
    job.report.seconds = time.perf_counter() - begin
    return output_model, job.report


@_alone()
@modes.all_off()
def explain(
    input_model: str | PathLike[str] | torch.jit.ScriptModule | torch.nn.Module,
    input_shapes: Any = None,
    *,
    optimization_level: int = 0,
    device_type: int | str = 1,
    test_data: Sequence[Any] | None = None,
    options: Options | None = None,
    **fields: Any,
) -> Explanation:
    """Say what `optimize` would do with a model, and why not more, without building anything.

    The model runs only if it has shapes that depend on data.

    Args:
        input_model: As for `optimize`.
        input_shapes: As for `optimize`.
        optimization_level: As for `optimize`.
        device_type: As for `optimize`. The device, and the libraries of backends that are named, need not be here.
        test_data: As for `optimize`.
        options: As for `optimize`.
        **fields: As for `optimize`.

    Returns:
        The regions, the segments, and every operator that would stay in Torch, with the reasons: as text by ``str()``, as JSON by
        ``to_json()``.

    Raises:
        InvalidArgumentError: An argument is wrong.
        ImportGraphError: The input model cannot be read.
    """
    settings = Options.from_fields(options, **fields)
    level = check_level(optimization_level)
    device = torch.device(_device_name(device_type))
    names = settings.backends or AUTO_BACKENDS[device.type]
    candidates = tuple(made(name) for name in names if settings.backends or name in backends.names())
    inputs = samples.resolve_inputs(input_shapes, test_data, settings.seed)
    model, _ = models.load_model(input_model, inputs.data[:1], least_bytes=LEAST_BYTES)
    return Explanation.of(model, plan_of(model, inputs, level, device, settings, candidates))


def check_level(level: Any) -> int:
    """Return an optimization level.

    Raises:
        InvalidArgumentError: There is no such level.
    """
    try:
        number = -1 if isinstance(level, bool) else operator.index(level)
    except TypeError:
        number = -1
    if number not in (0, 1):
        raise InvalidArgumentError(f"optimization_level is {level!r}; give 0 (lossless) or 1 (half precision)")
    return number


def check_device(device_type: Any, settings: Options) -> torch.device:
    """Return the device that an argument means.

    Raises:
        InvalidArgumentError: It means none, or not one that the options fit.
        BackendUnavailableError: There is no GPU here.
    """
    name = _device_name(device_type)
    if name == "cpu" and settings.target:
        raise InvalidArgumentError(f"target {', '.join(settings.target)} names GPUs, and device_type asks for the CPU; give device_type=0")
    if name == "cuda" and not settings.target and not torch.cuda.is_available():
        raise BackendUnavailableError(
            "device_type asks for a GPU, and torch finds none here; give device_type=1 to optimize for the CPU, or target=['sm86'] "
            "(and the like) to build for a GPU elsewhere"
        )
    return torch.device(name)


def _device_name(device_type: Any) -> str:
    name = _DEVICES.get(device_type) if isinstance(device_type, (int, str)) and not isinstance(device_type, bool) else None
    if name is None:
        raise InvalidArgumentError(f"device_type is {device_type!r}; give 0 or 'cuda' for a GPU, 1 or 'cpu' for the CPU")
    return name


def choose_backends(settings: Options, device: torch.device) -> tuple[tuple[Backend, ...], list[str]]:
    """Return the backends to use, and what the user should know of those that cannot be."""
    if settings.target:
        return _choose_builders(settings), []
    if settings.backends is not None:
        for name in settings.backends:
            device_types = backends.get(name).device_types
            if device.type not in device_types:
                raise InvalidArgumentError(
                    f"the backend {name!r} runs on {' and '.join(device_types)}, and device_type asks for {device.type}"
                )
        return tuple(require(name) for name in settings.backends), []
    found: list[Backend] = []
    notes: list[str] = []
    for name in AUTO_BACKENDS[device.type]:
        if name not in backends.names():
            notes.append(f"the backend {name!r} is not registered: tiacc was not installed, but found on the path; install it with pip")
            continue
        backend = made(name)
        support = asked(backend, "available")
        if support:
            found.append(backend)
        else:
            notes.append(f"the backend {name!r} was not used: {support.reason}")
    return tuple(found), [] if found else notes


def _choose_builders(settings: Options) -> tuple[Backend, ...]:
    """Return the backends that can build for the GPUs named in the options, on this machine."""
    chosen = []
    for name in settings.backends or ("tensorrt_rtx",):
        backend = made(name)
        if not hasattr(backend, "can_build"):
            raise InvalidArgumentError(f"the backend {name!r} builds for the machine it is on; leave out target, or use 'tensorrt_rtx'")
        support = asked(backend, "can_build", {"target": settings.target})
        if not support:
            raise BackendUnavailableError(f"the backend {name!r} cannot build for {', '.join(settings.target)} here: {support.reason}")
        chosen.append(backend)
    return tuple(chosen)

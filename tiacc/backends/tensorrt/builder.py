"""From a subgraph to a network, and from a network to the bytes of an engine, for the GPU here or for GPUs named."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx

from tiacc.backends.base import BuildSpec, Profile
from tiacc.backends.tensorrt import converters
from tiacc.backends.tensorrt.call import Call
from tiacc.backends.tensorrt.conversion import Conversion
from tiacc.backends.tensorrt.flavours import TARGETS, Flavour
from tiacc.backends.tensorrt.layers import Messages
from tiacc.backends.tensorrt.timing_cache import TimingCache
from tiacc.errors import BuildError, InvalidArgumentError
from tiacc.graph import specs
from tiacc.graph.specs import TensorSpec
from tiacc.passes.base import PassContext
from tiacc.passes.eliminate_common_subexpressions import eliminate_common_subexpressions

Report = Callable[[str, float], None]
"""Is told the phase of a build and the seconds since it began."""


@dataclass(frozen=True)
class BuildOptions:
    """The options of a build, as ``BuildSpec.options`` gives them.

    Attributes:
        target: GPU generations to build for, such as ``("sm86", "sm89")``; none for the GPU of this machine, or with RTX for
            Ampere and later.
        neutral_names: Name layers by number. A plan holds the names of layers in clear text.
        tf32: Let float32 products be computed with TF32 inputs. TensorRT has one switch where torch has two, for convolutions and for
            matrices; `optimize` sets it where torch lets both.
        optimization_level: TensorRT's effort, 0 to 5; None for its default.
        cache_dir: Where timings are kept between builds (`timing_cache`); None: they are not kept.
        progress: Is told phases and seconds.
        cancel: Is asked whether to give up; it is called often.
    """

    target: tuple[str, ...] = ()
    neutral_names: bool = False
    tf32: bool = True
    optimization_level: int | None = None
    cache_dir: Path | None = None
    progress: Report | None = None
    cancel: Callable[[], bool] | None = None

    @classmethod
    def parse(cls, options: dict[str, Any]) -> BuildOptions:
        """Take the options that concern the build.

        Raises:
            InvalidArgumentError: A target does not exist.
        """
        known = {name: options[name] for name in cls.__dataclass_fields__ if options.get(name) is not None}
        target = known.get("target", ())
        names = tuple(item.strip().lower() for item in (target.split(",") if isinstance(target, str) else target))
        unknown = [name for name in names if name not in TARGETS]
        if unknown:
            raise InvalidArgumentError(f"target={unknown[0]!r}: no such GPU generation; there are {', '.join(TARGETS)}")
        return cls(**{**known, "target": names})


@dataclass(frozen=True)
class NetworkDefinition:
    """A network, ready to be built or interpreted.

    Attributes:
        flavour: The library it belongs to.
        network: The ``INetworkDefinition``.
        inputs: The names of its inputs, in the order of the subgraph's placeholders.
        outputs: The names of its outputs, in order.
        constants: The data of its weights by layer name; see `layers.Layers`.
        conversion: What made it; holds the memory of the weights, and the builder.
    """

    flavour: Flavour
    network: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: dict[str, torch.Tensor]
    conversion: Conversion
    builder: Any


@dataclass(frozen=True)
class Plan:
    """A built engine.

    Attributes:
        data: The bytes that TensorRT loads.
        seconds: How long the build took.
        warnings: What TensorRT warned of.
    """

    data: bytes
    seconds: float
    warnings: tuple[str, ...]


def build_network(
    flavour: Flavour, subgraph: fx.GraphModule, inputs: Sequence[TensorSpec], options: BuildOptions | None = None
) -> NetworkDefinition:
    """Convert a subgraph to a network, strongly typed: each value has the dtype that it has in the graph.

    Args:
        flavour: The library.
        subgraph: Each node of it is supported (`converters.supports`).
        inputs: The types of its placeholders.
        options: Those of the build.

    Raises:
        BuildError: A node cannot be converted.
    """
    options = options or BuildOptions()
    trt = flavour.module
    messages = Messages()
    builder = trt.Builder(messages.create(flavour))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    network.name = "tiacc"  # the default counts the networks of the process, and is stored in the plan
    conversion = Conversion(flavour, network, messages, has_neutral_names=options.neutral_names)
    merged = specs.copied(subgraph)
    eliminate_common_subexpressions(merged, PassContext())  # as TensorRT does: converters ask who else reads a value
    names = conversion.convert(merged, inputs, convert_node)
    return NetworkDefinition(flavour, network, tuple(names[0]), tuple(names[1]), conversion.constants, conversion, builder)


def convert_node(call: Call) -> Any:
    """Convert one node that calls an operator.

    Raises:
        BuildError: It has no converter.
    """
    converter = converters.converter_of(call.node.target)
    if converter is None:
        raise call.net.error(f"no converter for {call.node.target}; ask `supports` before building")
    return converter.convert(call)


def profiles_of(spec: BuildSpec) -> tuple[Profile, ...]:
    """Return the shape sets to build for; those of the inputs' own ranges when the spec names none."""
    if spec.profiles:
        return spec.profiles
    low, opt, high = (tuple(input_.sizes(which) for input_ in spec.inputs) for which in ("min", "opt", "max"))
    return (Profile(low, opt, high),)


def build_plan(definition: NetworkDefinition, profiles: Sequence[Profile], workspace_bytes: int, options: BuildOptions) -> Plan:
    """Build a network.

    Args:
        definition: The network.
        profiles: The shape sets; each becomes an optimisation profile where the network has dynamic dimensions.
        workspace_bytes: The most scratch memory that a layer may use.
        options: The options.

    Raises:
        BuildError: TensorRT cannot build it; with its message, which names the layer, that is the node.
        KeyboardInterrupt: Ctrl-C was pressed; the build has been cancelled.
    """
    flavour, trt, messages = definition.flavour, definition.flavour.module, definition.conversion.messages
    _check_targets(definition, options.target)
    config = definition.builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    (config.set_flag if options.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.target:
        config.num_compute_capabilities = len(options.target)
        for index, name in enumerate(options.target):
            config.set_compute_capability(getattr(trt.ComputeCapability, name.upper()), index)
    _add_profiles(definition, config, profiles)
    timings = TimingCache.of(flavour, config, options.cache_dir)
    start = time.perf_counter()
    with _interrupts() as is_interrupted:
        monitor = _monitor(flavour, options, is_interrupted, start)
        config.progress_monitor = monitor
        plan = definition.builder.build_serialized_network(definition.network, config)
    if is_interrupted():
        raise KeyboardInterrupt
    if plan is None:
        _contain_failure(flavour, options.target)
        if options.cancel is not None and options.cancel():
            raise BuildError("the build was cancelled")
        reason = messages.last_error or "it gives no reason"
        raise BuildError(f"{flavour.name} {flavour.version_text} cannot build the engine: {reason}")
    if timings is not None:
        timings.save()
    return Plan(bytes(plan), time.perf_counter() - start, tuple(messages.warnings))


def _add_profiles(definition: NetworkDefinition, config: Any, profiles: Sequence[Profile]) -> None:
    tensors = [definition.network.get_input(index) for index in range(definition.network.num_inputs)]
    if all(size >= 0 for tensor in tensors for size in tuple(tensor.shape)):
        return
    for profile in profiles:
        profile_item = definition.builder.create_optimization_profile()
        for tensor, low, opt, high in zip(tensors, profile.min, profile.opt, profile.max, strict=True):
            profile_item.set_shape(tensor.name, low, opt, high)
        if config.add_optimization_profile(profile_item) < 0:
            raise BuildError(f"TensorRT refuses the optimisation profile {profile}: each size must have min <= opt <= max")


def _check_targets(definition: NetworkDefinition, target: Sequence[str]) -> None:
    """Refuse what a target cannot do, before TensorRT does: a failed compilation for Turing spoils the next build.

    Source: builds with RTX 1.7.1, whose messages are "FP32 GEMM is not supported" and "HW-specific datatypes: b16".
    """
    if not target:
        return
    if not definition.flavour.has("compute_capabilities"):
        raise BuildError(
            f"{definition.flavour.name} builds for the GPU of this machine only; leave target={list(target)} out, "
            "or use backend='tensorrt_rtx'"
        )
    if "sm75" not in target:
        return
    kinds = definition.conversion.kinds
    if ("matrix_multiply", torch.float32) in kinds or ("einsum", torch.float32) in kinds:
        raise BuildError("target 'sm75' has no float32 matrix product; use optimization_level=1, or leave 'sm75' out")
    if any(dtype == torch.bfloat16 for _, dtype in kinds):
        raise BuildError("target 'sm75' has no bfloat16; use float16, or leave 'sm75' out")


def _contain_failure(flavour: Flavour, target: Sequence[str]) -> None:
    """Take the one build that RTX makes for the wrong GPU after a failed one for Turing, and throw it away."""
    if "sm75" not in target:
        return
    trt = flavour.module
    builder = trt.Builder(Messages().create(flavour))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    network.mark_output(network.add_identity(network.add_input("x", trt.float32, (1,))).get_output(0))
    builder.build_serialized_network(network, builder.create_builder_config())


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Note Ctrl-C instead of raising it; an exception inside TensorRT's callbacks would be printed and lost."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    before = signal.signal(signal.SIGINT, lambda *_: pressed.set())
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _monitor(flavour: Flavour, options: BuildOptions, is_interrupted: Callable[[], bool], start: float) -> Any:
    trt = flavour.module

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if options.progress is not None:
                options.progress(phase_name, time.perf_counter() - start)

        def phase_finish(self, phase_name: str) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            return not (is_interrupted() or (options.cancel is not None and options.cancel()))

    return Monitor()

"""What a backend is: it says which nodes it supports, builds an engine from a subgraph of them, and loads an engine from bytes.

`tiacc.backends.reference` is the template to copy. `tests/backends/test_contract.py` holds every registered backend to what is
written here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from torch import fx

from tiacc.errors import BackendUnavailableError
from tiacc.graph.types import Profile as Profile
from tiacc.graph.types import TensorSpec
from tiacc.registry import Registry

B = TypeVar("B", bound="type[Backend]")


@dataclass(frozen=True)
class Support:
    """An answer to "can you?": true or false, and when false the reason.

    Attributes:
        ok: The answer.
        reason: One phrase for the report, without a capital or a full stop: ``"no converter for aten.foo.default"``.
    """

    ok: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.ok


SUPPORTED = Support(True)


@dataclass(frozen=True)
class Fault(Support):
    """A no that a backend did not say: it raised, or answered with something else than a `Support`."""


@dataclass(frozen=True)
class BuildSpec:
    """What an engine is built for.

    Attributes:
        inputs: The type of each input, in the order of the subgraph's placeholders.
        outputs: The type of each output.
        device: Where it will run.
        profiles: The shape sets to build for. Each is a ``(min, opt, max)`` of one shape per input, in elements. One
            profile whose three are equal is a static engine; several static ones are a set of alternatives.
        workspace_bytes: The most scratch memory that the engine may use.
        options: The user's options, those that backends take: ``num_threads``, ``tuning_seconds``, ``cache_dir``, ``target`` and
            ``neutral_names`` where they are given, and on a GPU ``tf32``: whether torch's flags let the products of convolutions and
            of matrices both be computed with TensorFloat-32 inputs. ``progress`` may be told the phase of a build and the seconds
            since it began.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    device: torch.device
    profiles: tuple[Profile, ...] = ()
    workspace_bytes: int = 1 << 30
    options: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Engine(Protocol):
    """A compiled subgraph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the outputs on the caller's current stream, without waiting for the device.

        The inputs have been checked against the specs and may have any strides. They are not written to and not kept. Each call
        returns tensors of its own. Several threads may call at once.
        """
        ...

    def serialize(self) -> bytes:
        """Return all that `Backend.load` needs."""
        ...


@runtime_checkable
class Backend(Protocol):
    """A way to run subgraphs faster.

    Class attributes:
        name: The name it is registered under, and by which saved models find it.
        device_types: The devices it runs on: ``("cpu",)``, ``("cuda",)``.
        call_us: Optional: what a call of an engine takes beside its work, in microseconds. Small segments beside others, which take less
            in torch, are then left there.
    """

    name: ClassVar[str]
    device_types: ClassVar[tuple[str, ...]]

    def available(self) -> Support:
        """Return whether its library, driver and device are here; the reason says what to install. Must be cheap and not raise."""
        ...

    def version(self) -> str:
        """Return the version of its library, or an empty string where it is not installed."""
        ...

    def supports(self, node: fx.Node) -> Support:
        """Return whether `build` accepts `node` in any subgraph. Depends on the node, its arguments and their ``meta`` only."""
        ...

    def build(self, subgraph: fx.GraphModule, spec: BuildSpec) -> Engine:
        """Compile a subgraph, every ``call_function`` node of which is supported or a scalar function (`specs.is_scalar`).

        Its placeholders are tensors. It is not changed.

        Raises:
            BuildError: With the node, its source line and the library's own message.
        """
        ...

    def load(self, payload: bytes) -> Engine:
        """Return the engine that `Engine.serialize` wrote, from nothing but the bytes.

        Raises:
            EngineFormatError: The bytes are not such an engine.
            BackendUnavailableError: The engine cannot run on this machine.
        """
        ...


backends: Registry[type[Backend]] = Registry("backend", "tiacc.backends")
"""The registered backends by name."""


def register(cls: B) -> B:
    """Register a backend class under its ``name``."""
    backends.register(cls.name)(cls)
    return cls


def made(name: str) -> Backend:
    """Return a backend, whether it can be used on this machine or not.

    Raises:
        RegistryError: No backend has this name.
        BackendUnavailableError: It raises where it is made.
    """
    cls = backends.get(name)
    try:
        return cls()
    except Exception as error:
        raise BackendUnavailableError(f"the backend {name!r} cannot be used: its class {_raises(error)}") from error


def asked(backend: Backend, question: str, *arguments: Any) -> Support:
    """Return what a backend answers where it is asked by a method of its own, ``"supports"`` say; a `Fault` where it does not answer."""
    try:
        answer = getattr(backend, question)(*arguments)
    except Exception as error:  # noqa: BLE001 - whatever the backend of another package raises
        return Fault(False, f"its {question}() {_raises(error)}")
    return answer if isinstance(answer, Support) else Fault(False, f"its {question}() returns {answer!r} and no Support; {_ADVICE}")


_ADVICE = "tell its authors: tiacc.testing.BackendContract has a test for it"


def _raises(error: Exception) -> str:
    return f"raises {type(error).__name__}: {error}; {_ADVICE}"


def require(name: str) -> Backend:
    """Return a backend that can be used on this machine.

    Raises:
        RegistryError: No backend has this name.
        BackendUnavailableError: Its library, driver or device is missing.
    """
    backend = made(name)
    support = asked(backend, "available")
    if not support:
        raise BackendUnavailableError(f"the backend {name!r} cannot be used here: {support.reason}")
    return backend

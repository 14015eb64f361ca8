"""What the rules are checked with."""

from __future__ import annotations

import operator
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import fx

from tiacc.backends.base import Backend, Engine
from tiacc.graph import specs
from tiacc.testing.examples import Example

TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""The relative error that a result may have, by element type; an absolute one is a tenth of it times the largest magnitude."""

_FRESH_PROCESS = """
import sys, torch, tiacc
from tiacc.backends.base import require
name, folder, count = sys.argv[1:]
results = []
for index in range(int(count)):
    with open(f"{folder}/{index}.engine", "rb") as file:
        engine = require(name).load(file.read())
    results.append(list(engine.run(torch.load(f"{folder}/{index}.inputs", weights_only=True))))
torch.save(results, f"{folder}/results")
"""


class ContractError(AssertionError):
    """A backend breaks a rule; the message begins with the rule's name."""


FORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "plain": lambda tensor: tensor,
    "transposed": lambda tensor: tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor,
    "offset": lambda tensor: torch.cat([tensor.flatten()[:1], tensor.flatten()])[1:].view(tensor.shape),
    "expanded": lambda tensor: tensor[:1].expand_as(tensor) if tensor.dim() else tensor,
    "strided": lambda tensor: torch.stack([tensor, tensor], -1)[..., 0],
    "channels-last": lambda tensor: tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor,
    "gradient": lambda tensor: tensor.clone().requires_grad_() if tensor.dtype.is_floating_point else tensor.clone(),
}


@contextmanager
def rule(name: str) -> Iterator[None]:
    """Put the name of a rule before the message of what breaks it."""
    try:
        yield
    except ContractError as error:
        raise ContractError(f"{name}: {error}") from error
    except Exception as error:  # a backend may raise anything, and the rule is broken by it
        raise ContractError(f"{name}: {type(error).__name__}: {error}") from error


def hold(condition: bool, message: str) -> None:
    """Raise `ContractError` unless a condition holds."""
    if not condition:
        raise ContractError(message)


def operators_of(gm: fx.GraphModule) -> list[fx.Node]:
    """Return the operators of a graph: its nodes without inputs, constants, choices and arithmetic on sizes."""
    return [
        node
        for node in gm.graph.nodes
        if node.op == "call_function" and node.target is not operator.getitem and not specs.is_scalar(node)
    ]


def build(backend: Backend, example: Example, device: torch.device) -> Engine:
    """Build an engine; a failure is a `ContractError`."""
    try:
        return backend.build(example.graph, example.spec(device))
    except Exception as error:  # whatever it raises, it refuses
        raise ContractError(f"build() refuses {example.name!r}: {type(error).__name__}: {error}") from error


def expected_of(example: Example, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return what torch computes."""
    with torch.no_grad():
        return [tensor.detach().clone() for tensor in example.graph(*inputs)]


def compare(actual: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], what: str) -> None:
    """Raise `ContractError` where results differ in number, shape, element type or, beyond the tolerance, in value."""
    hold(len(actual) == len(expected), f"{what}: {len(actual)} results, not {len(expected)}")
    for index, (got, want) in enumerate(zip(actual, expected)):
        kinds = [f"{tensor.dtype}{list(tensor.shape)}" for tensor in (got, want)]
        hold(kinds[0] == kinds[1], f"{what}: result {index} is {kinds[0]}, not {kinds[1]}")
        if want.dtype.is_floating_point:
            rtol = TOLERANCES[want.dtype]
            atol = 0.1 * rtol * float(want.abs().max()) if want.numel() else 0.0
            right = torch.isclose(got.double(), want.double(), rtol=rtol, atol=atol, equal_nan=True)
        else:
            right = got == want
        hold(bool(right.all()), f"{what}: result {index} has {int((~right).sum())} wrong elements of {want.numel()}")


def watch_engine(example: Example, backend: Backend, device: torch.device) -> weakref.ref[Engine]:
    """Build an engine, use it, let it go; return a reference that tells whether it is gone."""
    engine = build(backend, example, device)
    engine.run(example.inputs(device))
    return weakref.ref(engine)


def watch_inputs(example: Example, engine: Engine, device: torch.device) -> list[weakref.ref[torch.Tensor]]:
    """Run an engine on inputs and let them go; return references that tell whether they are gone."""
    inputs = example.inputs(device)
    engine.run(inputs)
    return [weakref.ref(tensor) for tensor in inputs]


def bits_equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Return whether two tensors have the same type, shape and bits."""
    first, second = first.detach(), second.detach()
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return torch.equal(first.contiguous().view(-1).view(torch.uint8), second.contiguous().view(-1).view(torch.uint8))


def memory_of(tensor: torch.Tensor) -> int:
    """Return the address of the memory that a tensor is a view of."""
    return tensor.untyped_storage().data_ptr()


def picture_of(gm: fx.GraphModule) -> tuple[str, list[str], dict[str, torch.Tensor]]:
    """Return all of a graph that a backend might change."""
    values = [str(node.meta.get("val")) for node in gm.graph.nodes]
    return str(gm.graph), values, {name: tensor.clone() for name, tensor in gm.named_buffers()}


def is_same(first: tuple[str, list[str], dict[str, torch.Tensor]], second: tuple[str, list[str], dict[str, torch.Tensor]]) -> bool:
    """Return whether two pictures of a graph are equal."""
    if first[:2] != second[:2] or first[2].keys() != second[2].keys():
        return False
    return all(bits_equal(tensor, second[2][name]) for name, tensor in first[2].items())


def run_in_threads(
    engine: Engine, sets: Sequence[Sequence[torch.Tensor]], expected: Sequence[Sequence[torch.Tensor]], what: str
) -> list[str]:
    """Run an engine on several sets of inputs at once, ten times each; return what went wrong."""
    failures: list[str] = []
    barrier = threading.Barrier(len(sets))

    def work(inputs: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> None:
        try:
            barrier.wait(60)
            for _ in range(10):
                compare(engine.run(inputs), wanted, f"{what} in one of {len(sets)} threads")
        except Exception as error:  # noqa: BLE001 - handed to the main thread
            failures.append(str(error))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(sets, expected)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


def run_in_fresh_process(
    name: str, payloads: Sequence[bytes], inputs: Sequence[Sequence[torch.Tensor]]
) -> list[list[torch.Tensor]]:
    """Load engines of the backend `name` in a new process and return their results."""
    with tempfile.TemporaryDirectory(prefix="tiacc-") as folder:
        for index, (payload, given) in enumerate(zip(payloads, inputs)):
            Path(folder, f"{index}.engine").write_bytes(payload)
            torch.save(list(given), Path(folder, f"{index}.inputs"))
        command = [sys.executable, "-W", "ignore", "-c", _FRESH_PROCESS, name, folder, str(len(payloads))]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
        if done.returncode:
            raise ContractError(f"it fails there: {done.stderr.strip()[-400:]}")
        found: list[list[torch.Tensor]] = torch.load(Path(folder, "results"), weights_only=True)
        return found

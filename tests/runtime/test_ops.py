from __future__ import annotations

import gc
import io
import operator
import threading
import weakref

import pytest
import torch
from torch import fx

from tiacc.backends.base import BuildSpec
from tiacc.backends.reference import ReferenceBackend
from tiacc.graph import exporter, specs
from tiacc.graph.types import Dim, Profile, TensorSpec
from tiacc.runtime import blob, ops

aten = torch.ops.aten
SPEC = TensorSpec((Dim("rows", 1, 4, 8), 3), torch.float32)
PROFILES = (Profile(((1, 3),), ((4, 3),), ((8, 3),)),)


def engine_blob(profiles: tuple[Profile, ...] = PROFILES, factor: float = 2.0) -> torch.Tensor:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(aten.mul.Tensor, (x, factor)), graph.call_function(aten.t.default, (x,))))
    gm = specs.propagate(fx.GraphModule(torch.nn.Module(), graph), [SPEC])
    outputs = tuple(specs.spec_of(value) for value in next(n for n in gm.graph.nodes if n.op == "output").meta["val"])
    engine = ReferenceBackend().build(gm, BuildSpec((SPEC,), outputs, torch.device("cpu"), profiles))
    return blob.pack(
        engine.serialize(),
        backend="reference",
        backend_version="",
        device=torch.device("cpu"),
        inputs=(SPEC,),
        outputs=outputs,
        profiles=profiles,
    )


def model(engine: torch.Tensor) -> torch.jit.ScriptModule:
    """A TorchScript function that calls an engine, saved and loaded."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    root = torch.nn.Module()
    root.register_buffer("engine", engine)
    call = graph.call_function(
        torch.ops.tiacc.run_engine.default, ([x], graph.get_attr("engine"), "reference", blob.key_of(engine))
    )
    call.meta["val"] = [None, None]
    parts = [graph.call_function(operator.getitem, (call, i)) for i in (0, 1)]
    graph.output(tuple(parts))
    x.meta["val"] = torch.empty(1)
    buffer = io.BytesIO(exporter.to_function(fx.GraphModule(root, graph)).save_to_buffer())
    return torch.jit.load(buffer)


def test_a_loaded_model_runs_its_engine() -> None:
    loaded = model(engine_blob())
    x = torch.randn(5, 3)
    doubled, turned = loaded(x)
    torch.testing.assert_close(doubled, x * 2)
    torch.testing.assert_close(turned, x.t())
    turned.zero_()
    assert x.abs().min() > 0, "a result is the caller's own"


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.randn(9, 3), r"input 0 of an engine of reference is float32\[9, 3\].*takes float32\[1..8, 3\]"),
        (torch.randn(4, 2), r"float32\[4, 2\]"),
        (torch.randn(4), r"float32\[4\]"),
        (torch.randn(4, 3).double(), r"float64\[4, 3\]"),
        (torch.ones(4, 3, dtype=torch.int64), r"int64\[4, 3\]"),
    ],
)
def test_an_input_the_engine_was_not_built_for_is_refused(x: torch.Tensor, said: str) -> None:
    with pytest.raises(Exception, match="ShapeOutOfRangeError") as info:
        model(engine_blob())(x)
    assert info.match(said)
    assert info.match("optimize again with input_shapes")


def test_an_input_on_another_device_is_refused() -> None:
    with pytest.raises(Exception, match=r"float32\[4, 3\] on meta, and .* on cpu; move the input there"):
        model(engine_blob())(torch.ones(4, 3, device="meta"))


def test_separate_shapes_are_a_set_not_a_range() -> None:
    profiles = tuple(Profile(((rows, 3),), ((rows, 3),), ((rows, 3),)) for rows in (2, 6))
    loaded = model(engine_blob(profiles))
    for rows in (2, 6):
        assert loaded(torch.ones(rows, 3))[0].shape == (rows, 3)
    with pytest.raises(Exception, match="these sets of shapes"):
        loaded(torch.ones(4, 3))


def test_a_damaged_engine_is_refused_when_it_is_called() -> None:
    damaged = engine_blob()
    damaged[-5] ^= 1
    with pytest.raises(Exception, match="digest differs"):
        model(damaged)(torch.ones(4, 3))


def test_an_engine_lives_as_long_as_its_model_and_is_shared_by_loads() -> None:
    engine = engine_blob(factor=3.5)
    key = blob.key_of(engine)
    one, two = model(engine), model(engine)
    one(torch.ones(4, 3))
    two(torch.ones(4, 3))
    loaded = weakref.ref(ops._engines[key])
    del one
    gc.collect()
    assert loaded() is not None
    del two
    gc.collect()
    assert loaded() is None and key not in ops._engines


def test_threads_load_an_engine_once_and_run_it_at_once() -> None:
    loaded = model(engine_blob(factor=7.25))
    results: dict[int, torch.Tensor] = {}

    def work(index: int) -> None:
        for _ in range(20):
            results[index] = loaded(torch.full((4, 3), float(index)))[0]

    workers = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for index in range(8):
        torch.testing.assert_close(results[index], torch.full((4, 3), index * 7.25))

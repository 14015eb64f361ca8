"""The OpenVINO engine: its types, memory, integers, threads, bytes and errors."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tracemalloc
from typing import Any

import pytest
import torch
from torch import fx

from tests.helpers import Sketch
from tiacc.backends.base import BuildSpec, Engine, Profile, backends
from tiacc.backends.openvino import OpenVINOBackend, bounds, indices, payload
from tiacc.backends.openvino.engine import COPIED_BYTES
from tiacc.errors import BuildError, EngineFormatError, InvalidArgumentError
from tiacc.graph import specs
from tiacc.graph.specs import Dim, TensorSpec

aten = torch.ops.aten
backend = OpenVINOBackend()
pytestmark = pytest.mark.skipif(not backend.available(), reason=backend.available().reason)


def build(gm: fx.GraphModule, **options: Any) -> Engine:
    inputs = tuple(specs.spec_of(node.meta["val"]) for node in gm.graph.nodes if node.op == "placeholder")
    output = next(node for node in gm.graph.nodes if node.op == "output")
    outputs = tuple(specs.spec_of(node.meta["val"]) for node in output.args[0])
    return backend.build(gm, BuildSpec(inputs, outputs, torch.device("cpu"), options=options))


def unary(target: Any, *shape: int | Dim, dtype: torch.dtype = torch.float32, args: tuple[Any, ...] = ()) -> fx.GraphModule:
    sketch = Sketch()
    return sketch.output(sketch.call(target, sketch.input("x", *shape, dtype=dtype), *args))


def test_it_is_found_by_name() -> None:
    assert backends.get("openvino") is OpenVINOBackend


def test_importing_it_sends_nothing_home() -> None:
    code = (
        "import sys; from tiacc.backends.openvino import library; library.openvino();"
        "assert not any(name.startswith('openvino_telemetry') for name in sys.modules), 'imported'"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-300:]


FORK = """
import os, torch
from tests.helpers import Sketch
from tiacc.backends.base import BuildSpec
from tiacc.backends.openvino import OpenVINOBackend
from tiacc.errors import BackendUnavailableError

sketch, x = Sketch(), torch.ones(3)
gm = sketch.output(sketch.call(torch.ops.aten.relu.default, sketch.input("x", 3)))
spec = BuildSpec(tuple(sketch.inputs), tuple(sketch.inputs), torch.device("cpu"))
engine = OpenVINOBackend().build(gm, spec)
engine.run([x])
refused = 0
child = os.fork()
if not child:
    for call in (lambda: engine.run([x]), lambda: OpenVINOBackend().build(gm, spec)):
        try:
            call()
        except BackendUnavailableError as error:
            refused += "was forked" in str(error)
    os._exit(refused)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
assert torch.equal(engine.run([x])[0], x)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_of_a_process_that_used_it_is_told_so() -> None:
    """It would wait for ever for threads that it does not have."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-500:]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool, torch.uint8], ids=str
)
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (40, 1000)], ids=str)
def test_types_and_sizes_survive(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    engine = build(unary(aten.unsqueeze.default, *shape, dtype=dtype, args=(0,)))
    x = torch.randint(0, 2, shape).to(dtype) if dtype == torch.bool else (torch.rand(shape) * 100).to(dtype)
    (result,) = engine.run([x])
    assert result.dtype == dtype
    assert torch.equal(result, x.unsqueeze(0))
    assert result.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


def test_bools_are_zero_or_one_in_memory() -> None:
    (result,) = build(unary(aten.to.dtype, 64, args=(torch.bool,))).run([torch.randn(64) * 50])
    assert int(result.view(torch.uint8).max()) == 1


@pytest.mark.parametrize("size", [8, 4 * COPIED_BYTES])
def test_small_and_large_results_are_the_callers(size: int) -> None:
    engine = build(unary(aten.neg.default, size))
    first, second = engine.run([torch.ones(size)])[0], engine.run([torch.full((size,), 2.0)])[0]
    assert torch.equal(first, -torch.ones(size))
    assert torch.equal(second, torch.full((size,), -2.0))


@pytest.mark.parametrize("size", [8, 4 * COPIED_BYTES])
def test_an_input_that_is_handed_on_is_copied(size: int) -> None:
    sketch = Sketch()
    x = sketch.input("x", size)
    engine = build(sketch.output(sketch.call(aten.clone.default, x), sketch.call(aten.relu.default, x)))
    for _ in range(3):
        x = torch.randn(size)
        copy, positive = engine.run([x])
        assert torch.equal(copy, x) and torch.equal(positive, x.relu())
        assert copy.data_ptr() != x.data_ptr()


def test_sizes_may_alternate() -> None:
    engine = build(unary(aten.neg.default, Dim("n", 1, 4, 40000)))
    for size in (3, 40000, 3, 1, 40000):
        x = torch.randn(size)
        assert torch.equal(engine.run([x])[0], -x)


def test_integers_too_large_to_compute_with_are_refused_not_wrong() -> None:
    gm = unary(aten.eq.Scalar, 3, dtype=torch.int64, args=(5,))
    engine = build(gm)
    assert bounds.input_limits(gm) == (bounds.FLOATED,)
    assert engine.run([torch.tensor([5, -5, 2**24])])[0].tolist() == [True, False, False]
    with pytest.raises(InvalidArgumentError, match="magnitude 16777217"):
        engine.run([torch.tensor([5, 2**24 + 1, 0])])


def looked_up(size: int | Dim = 7) -> fx.GraphModule:
    """Return rows of a table, by an index that is laid out otherwise and converted first, and numbers that are no index."""
    sketch = Sketch()
    x, y = sketch.input("x", 2, 3, dtype=torch.int32), sketch.input("y", 3, dtype=torch.int64)
    table = sketch.input("table", size, 4)
    index = sketch.call(aten.to.dtype, sketch.call(aten.view.default, x, [6]), torch.int64)
    return sketch.output(sketch.call(aten.embedding.default, table, index), sketch.call(aten.add.Tensor, y, 1))


@pytest.mark.parametrize("wrong", [7, -1, 2**30])
def test_an_index_beyond_the_end_is_refused_as_torch_does(wrong: int) -> None:
    gm = looked_up()
    assert indices.input_ranges(gm) == ((0, 6), None, None)
    engine = build(gm)
    x, y, table = torch.randint(0, 7, (2, 3), dtype=torch.int32), torch.tensor([9, -9, 100]), torch.randn(7, 4)
    for one in (engine, OpenVINOBackend().load(engine.serialize())):
        assert torch.equal(one.run([x, y, table])[0], table[x.flatten().long()])
        bad = x.clone()
        bad[1, 2] = wrong
        with pytest.raises(IndexError):
            gm(bad, y, table)
        with pytest.raises(InvalidArgumentError, match=f"index out of range: input 0 .* holds {wrong}, .* entries 0 to 6"):
            one.run([bad, y, table])


@pytest.mark.parametrize(
    ("overload", "args", "allowed"),
    [
        (aten.index_select.default, lambda x, i: (x, 1, i), (0, 4)),
        (aten.index.Tensor, lambda x, i: (x, [None, i]), (-5, 4)),
        (aten.gather.default, lambda x, i: (x, 0, i), (0, 2)),
        (aten.one_hot.default, lambda x, i: (i, 9), (0, 8)),
    ],
)
def test_the_range_of_an_index(overload: Any, args: Any, allowed: tuple[int, int]) -> None:
    sketch = Sketch()
    shape = (2, 2) if overload is aten.gather.default else (2,)
    x, index = sketch.input("x", 3, 5), sketch.input("index", *shape, dtype=torch.int64)
    gm = sketch.output(sketch.call(overload, *args(x, index)))
    assert indices.input_ranges(gm) == (None, allowed)
    for value in allowed:
        gm(torch.randn(3, 5), torch.full(shape, value))
    for value in (allowed[0] - 1, allowed[1] + 1):
        with pytest.raises((IndexError, RuntimeError)):
            gm(torch.randn(3, 5), torch.full(shape, value))


def test_what_is_not_known_of_an_index() -> None:
    """A table of any size, and a part of the input, whose rest may be anything."""
    assert indices.input_ranges(looked_up(Dim("n", 2, 7, 9))) == (None, None, None)
    sketch = Sketch()
    x, table = sketch.input("x", 6, dtype=torch.int64), sketch.constant("table", torch.randn(7, 4))
    part = sketch.call(aten.slice.Tensor, x, 0, 0, 3)
    assert indices.input_ranges(sketch.output(sketch.call(aten.embedding.default, table, part))) == (None,)


def test_integers_that_are_only_moved_may_be_larger() -> None:
    gm = unary(aten.flip.default, 3, dtype=torch.int64, args=([0],))
    assert bounds.input_limits(gm) == (bounds.EXACT,)
    x = torch.tensor([2**31 - 1, -5, 2**24 + 1])
    assert torch.equal(build(gm).run([x])[0], x.flip(0))


@pytest.mark.parametrize(("rounding", "overload"), [("floor", aten.floor_divide.default), ("mod", aten.remainder.Tensor)])
def test_division_of_integers_is_exact(rounding: str, overload: Any) -> None:
    sketch = Sketch()
    x, y = (sketch.input(name, 4000, dtype=torch.int64) for name in "xy")
    engine = build(sketch.output(sketch.call(overload, x, y)))
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-(2**20), 2**20, (4000,), generator=generator)
    b = torch.randint(1, 500, (4000,), generator=generator) * torch.where(torch.rand(4000, generator=generator) < 0.5, -1, 1)
    assert torch.equal(engine.run([a, b])[0], overload(a, b))


def test_it_computes_in_the_types_of_the_graph() -> None:
    kinds = build(unary(aten.exp.default, 64)).precisions()  # type: ignore[attr-defined]
    assert set(kinds) == {"f32"}
    half = build(unary(aten.exp.default, 64, dtype=torch.bfloat16)).precisions()  # type: ignore[attr-defined]
    assert set(half) == {"bf16" if torch.bfloat16 in backend.native_float_types() else "f32"}


def test_the_bytes_hold_the_weights_once() -> None:
    sketch = Sketch()
    weight = sketch.constant("w", torch.randn(256, 512))
    gm = sketch.output(sketch.call(aten.linear.default, sketch.input("x", Dim("b", 1, 2, 8), 512), weight, None))
    assert 1.0 <= len(build(gm).serialize()) / (256 * 512 * 4) < 1.05


def test_weights_are_read_where_they_are_and_stay_there() -> None:
    sketch = Sketch()
    weight = torch.randn(256, 512)
    gm = sketch.output(sketch.call(aten.linear.default, sketch.input("x", 2, 512), sketch.constant("w", weight), None))
    engine = build(gm)
    whole = engine.serialize()
    tracemalloc.start()
    loaded = backend.load(whole)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < weight.nbytes / 2
    before = bytes(bytearray(whole))
    x = torch.randn(2, 512)
    torch.testing.assert_close(loaded.run([x])[0], x @ weight.T, atol=1e-3, rtol=1e-4)
    assert whole == before, "the weights were written into"
    del whole, before
    gc.collect()
    torch.testing.assert_close(loaded.run([x])[0], x @ weight.T, atol=1e-3, rtol=1e-4)


def test_threads_are_an_option_and_kept() -> None:
    engine = build(unary(aten.neg.default, 4), num_threads=1)
    header, _, _ = payload.unpack(engine.serialize())
    assert (header.num_threads, header.precision) == (1, "f32")
    assert backend.load(engine.serialize()).inputs == engine.inputs


def test_damaged_bytes_say_what_is_wrong() -> None:
    whole = build(unary(aten.neg.default, 4)).serialize()
    for damaged, message in [(b"", "not an engine"), (whole[:-1], "truncated"), (whole[:8] + b"\x09" + whole[9:], "format 9")]:
        with pytest.raises(EngineFormatError, match=message):
            backend.load(damaged)


def test_a_failure_to_build_names_the_node_and_its_line() -> None:
    sketch = Sketch()
    call = sketch.call(aten.digamma.default, sketch.input("x", 3), source="m.py:7")
    gm = sketch.output(call)
    with pytest.raises(BuildError, match=r"digamma.* at m\.py:7"):
        build(gm)


def test_several_static_shapes_get_a_model_each_and_the_file_one_set_of_weights() -> None:
    sketch = Sketch()
    weight = sketch.constant("w", torch.randn(256, 512))
    gm = sketch.output(sketch.call(aten.linear.default, sketch.input("x", Dim("b", 2, 4, 8), 512), weight, None))
    profiles = tuple(Profile(((size, 512),), ((size, 512),), ((size, 512),)) for size in (2, 8))
    inputs = tuple(specs.spec_of(node.meta["val"]) for node in gm.graph.nodes if node.op == "placeholder")
    outputs = (TensorSpec((Dim("b", 2, 4, 8), 256), torch.float32),)
    engine = backend.build(gm, BuildSpec(inputs, outputs, torch.device("cpu"), profiles))
    whole = engine.serialize()
    assert len(whole) < 1.05 * 256 * 512 * 4
    for tried in (engine, backend.load(whole)):
        assert len(tried._variants) == 1  # type: ignore[attr-defined]  # the second is compiled when it is needed
        for size in (8, 2, 8):
            x = torch.randn(size, 512)
            torch.testing.assert_close(tried.run([x])[0], gm(x)[0], rtol=1e-4, atol=1e-4)
        assert len(tried._variants) == 2  # type: ignore[attr-defined]


def attention(rows: int | Dim, transposed: str) -> fx.GraphModule:
    """Attention of 4 heads with its queries or its result transposed: ``(2, L, 4, 8)`` ↔ ``(2, 4, L, 8)``."""
    sketch = Sketch()
    shapes = dict.fromkeys("qkv", (2, 4, rows, 8)) | ({"q": (2, rows, 4, 8)} if transposed == "queries" else {})
    query, key, value = (sketch.call(aten.mul.Scalar, sketch.input(name, *shape), 2.0) for name, shape in shapes.items())
    if transposed == "queries":
        query = sketch.call(aten.transpose.int, query, 1, 2)
    scores = sketch.call(aten.softmax.int, sketch.call(aten.matmul.default, query, sketch.call(aten.transpose.int, key, -1, -2)), -1)
    result = sketch.call(aten.matmul.default, scores, value)
    return sketch.output(sketch.call(aten.transpose.int, result, 1, 2) if transposed == "result" else result)


@pytest.mark.parametrize("transposed", ["queries", "result"])
def test_attention_of_as_many_heads_as_rows_does_not_overwrite_what_it_reads(transposed: str) -> None:
    gm = attention(4, transposed)
    inputs = [torch.randn(2, 4, 4, 8) for _ in "qkv"]
    torch.testing.assert_close(build(gm).run(inputs), list(gm(*inputs)), rtol=1e-4, atol=1e-5)


def test_attention_of_varying_rows_is_right_at_as_many_as_heads() -> None:
    gm = attention(Dim("rows", 2, 3, 8), "result")
    inputs = [torch.randn(2, 4, 4, 8) for _ in "qkv"]
    sizes = tuple((2, 4, 4, 8) for _ in "qkv")
    specs_in = tuple(specs.spec_of(node.meta["val"]) for node in gm.graph.nodes if node.op == "placeholder")
    specs_out = (TensorSpec((2, Dim("rows", 2, 3, 8), 4, 8), torch.float32),)
    profiles = (Profile(sizes, sizes, sizes), Profile(*[tuple((2, 4, 2, 8) for _ in "qkv")] * 3))
    for engine in (build(gm), backend.build(gm, BuildSpec(specs_in, specs_out, torch.device("cpu"), profiles))):
        torch.testing.assert_close(engine.run(inputs), list(gm(*inputs)), rtol=1e-4, atol=1e-5)


def test_an_input_of_varying_size_that_is_handed_on_is_copied_whatever_came_before() -> None:
    sketch = Sketch()
    x = sketch.input("x", Dim("n", 1, 100, 400), 256, 14, 14)
    engine = build(sketch.output(sketch.call(aten.to.dtype, x, torch.float32)))
    for size in (100, 1, 100, 3, 100):
        value = torch.randn(size, 256, 14, 14)
        result = engine.run([value])[0]
        assert torch.equal(result, value) and result.data_ptr() != value.data_ptr()

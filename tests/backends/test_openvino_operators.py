"""What the OpenVINO backend claims, held to torch's own operator samples: none wrong, none that cannot be built."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import fx

from tests.backends import op_samples
from tests.backends.op_samples import Outcome
from tests.helpers import Sketch
from tiacc.backends.base import BuildSpec
from tiacc.backends.openvino import OpenVINOBackend, lowerings
from tiacc.backends.openvino.lowering import LOWERINGS, PROMOTED, lower, name_of
from tiacc.backends.openvino.table import RULES, TABLE
from tiacc.graph import specs
from tiacc.graph.specs import Dim

aten = torch.ops.aten
backend = OpenVINOBackend()
pytestmark = pytest.mark.skipif(not backend.available(), reason=backend.available().reason)

USUAL = (
    "add", "mul", "div", "floor_divide", "remainder", "eq", "clamp", "exp", "sqrt", "pow", "where", "masked_fill", "nn.functional.relu",
    "nn.functional.gelu", "nn.functional.silu", "nn.functional.softplus", "softmax", "sum", "mean", "amax", "argmax", "var", "cumsum",
    "matmul", "bmm", "addmm", "einsum", "nn.functional.linear", "nn.functional.conv2d", "nn.functional.conv_transpose2d",
    "nn.functional.batch_norm", "nn.functional.layer_norm", "nn.functional.group_norm", "nn.functional.max_pool2d",
    "nn.functional.avg_pool2d", "nn.functional.adaptive_avg_pool2d", "nn.functional.interpolate", "nn.functional.grid_sample",
    "nn.functional.scaled_dot_product_attention", "nn.functional.embedding", "nn.functional.pad", "cat", "stack", "split", "chunk",
    "reshape", "permute", "expand", "flip", "roll", "gather", "index_select", "__getitem__", "topk", "sort", "tril", "zeros", "arange",
)  # fmt: skip


def sweep(names: Any, dtypes: list[torch.dtype], limit: int, *, variants: bool) -> Outcome:
    outcome, seen = Outcome(), set[str]()
    for op in op_samples.operator_database():
        if (names is not None and op.name not in names) or op.name.startswith("jiterator"):
            continue
        for dtype in dtypes:
            if dtype in op.supported_dtypes("cpu"):
                for case in op_samples.cases_of(op, dtype, limit, seen):
                    supported = op_samples.try_case(backend, case, outcome)
                    if supported and variants:
                        for other in (op_samples.with_constant_weights(case), op_samples.with_varying_sizes(case)):
                            if other is not None:
                                op_samples.try_case(backend, other, outcome)
    return outcome


def test_the_usual_operators_are_right_or_refused() -> None:
    outcome = sweep(USUAL, [torch.float32, torch.int64], 1, variants=False)
    assert not outcome.failures, "\n".join(outcome.failures)
    assert outcome.counts["passed"] >= 60
    assert len(outcome.overloads) >= 50


def test_half_precision_of_the_usual_operators_is_right_or_refused() -> None:
    names = ("nn.functional.grid_sample", "nn.functional.conv2d", "softmax", "add", "sum")
    outcome = sweep(names, [torch.bfloat16, torch.float16], 1, variants=False)
    assert not outcome.failures, "\n".join(outcome.failures)
    assert outcome.counts["passed"] >= 8
    assert any("grid_sampler" in reason for reason in outcome.refusals)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool], ids=str)
def test_every_operator_is_right_or_refused(dtype: torch.dtype) -> None:
    outcome = sweep(None, [dtype], 16 if dtype == torch.float32 else 6, variants=dtype == torch.float32)
    assert not outcome.failures, "\n".join(outcome.failures[:40])
    assert outcome.counts["passed"] >= 200
    assert all(outcome.refusals)


def test_the_table_names_real_operators_once() -> None:
    names = [name for rule in RULES for name in rule.names]
    assert len(names) == len(set(names)) == len(TABLE) >= 300
    for name in names:
        packet, _, overload = name.partition(".")
        assert overload in getattr(aten, packet).overloads(), name


def test_what_is_lowered_is_in_the_table() -> None:
    assert lowerings.__doc__
    assert set(LOWERINGS) <= set(TABLE)
    assert set(PROMOTED) <= set(TABLE)


@pytest.mark.parametrize(
    ("target", "shapes", "args", "reason"),
    [
        (aten.avg_pool2d.default, [(1, 2, 8, 8)], ([3, 3], [2, 2], [1, 1], True, True), "ceil_mode"),
        (aten.round.decimals, [(3,)], (), ""),
        (aten.cdist.default, [(3, 4), (2, 4)], (1.0, None), "p=1"),
        (aten.pad.default, [(1, 3, 4, 4)], ([-1, 1, -2, 1], "circular"), "negative"),
        (aten.remainder.Scalar, [(4,)], (0.3,), "float32 rounds"),
        (aten.remainder.Scalar, [(4,)], (0.5,), ""),
        (aten.relu.default, [(0, 3)], (), "empty"),
        (aten.erfinv.default, [(3,)], (), "no converter for aten.erfinv.default"),
        (aten.sum.dim_IntList, [()], ([0],), "has none"),
        (aten.cdist.default, [(3, 4), (5, 2, 4)], (2.0, None), "two ranks"),
        (aten.pad.default, [(4, 4)], ([1, 1], "circular"), "all round"),
        (aten.upsample_bilinear2d.vec, [(1, 2, 6, 7)], ([1, 4], False, None), "single pixel"),
        (aten.upsample_bilinear2d.vec, [(1, 2, 6, 7)], ([1, 4], True, None), ""),
        (aten.upsample_nearest2d.vec, [(1, 2, 6, 7)], ([1, 4], None), ""),
        (aten.grid_sampler.default, [(1, 2, 6, 7), (1, 3, 3, 2)], (1, 2, False), "reflected"),
        (aten.im2col.default, [(3, 6, 6)], ([2, 2], [1, 1], [0, 0], [2, 2]), "no batch"),
        (aten.elu.default, [(3,)], (1.0, 2.0), "a scale"),
        (aten.narrow.default, [(5,)], (0, -3, 3), "from the end"),
        (aten.logsumexp.default, [(2, 3)], ([],), "no dimension"),
        (aten.var.dim, [(2, 3)], ([],), "no dimension"),
        (aten.linalg_vector_norm.default, [(2, 3)], (2, []), "no dimension"),
        (aten.any.dims, [(2, 3)], ([],), "no dimension"),
        (aten.batch_norm.default, [(2, 3, 4)], (None, None, None, None, True, 0.1, 1e-5, True), "training mode"),
    ],
    ids=lambda item: str(item).removeprefix("aten.") if isinstance(item, torch._ops.OpOverload) else "",
)
def test_near_misses(target: Any, shapes: list[tuple[int, ...]], args: tuple[Any, ...], reason: str) -> None:
    sketch = Sketch()
    inputs = [sketch.input(f"x{index}", *shape) for index, shape in enumerate(shapes)]
    keywords = {"decimals": 2} if target is aten.round.decimals else {}
    node = sketch.call(target, *inputs, *args, **keywords)
    sketch.output(node)
    support = backend.supports(node)
    assert bool(support) == (reason == "")
    assert reason in support.reason


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64], ids=str)
def test_types_that_openvino_lacks_are_refused(dtype: torch.dtype) -> None:
    sketch = Sketch()
    node = sketch.call(aten.add.Tensor, sketch.input("x", 3, dtype=dtype), 1)
    sketch.output(node)
    assert str(dtype).removeprefix("torch.") in backend.supports(node).reason


def test_a_varying_dimension_cannot_be_split() -> None:
    sketch = Sketch()
    x = sketch.input("x", Dim("n", 2, 4, 8), 6)
    along, across = sketch.call(aten.chunk.default, x, 2, 1), sketch.call(aten.unbind.int, sketch.input("y", 3, 4), 0)
    sketch.output(sketch.call(operator.getitem, along, 0), sketch.call(operator.getitem, across, 0))
    assert backend.supports(along)
    assert backend.supports(across)


LOWERED: list[tuple[Any, list[tuple[int, ...]], tuple[Any, ...], dict[str, Any]]] = [
    (aten.softplus.default, [(5, 7)], (3.0, 0.2), {}),
    (aten.threshold.default, [(5, 7)], (0.1, 9.0), {}),
    (aten.hardshrink.default, [(5, 7)], (0.4,), {}),
    (aten.softshrink.default, [(5, 7)], (0.4,), {}),
    (aten.trunc.default, [(5, 7)], (), {}),
    (aten.frac.default, [(5, 7)], (), {}),
    (aten.round.decimals, [(5, 7)], (), {"decimals": 2}),
    (aten.sinc.default, [(5, 7)], (), {}),
    (aten.nan_to_num.default, [(5, 7)], (), {}),
    (aten.addcdiv.default, [(5, 7), (5, 7), (5, 7)], (), {"value": 0.3}),
    (aten.std.correction, [(5, 7)], ([1],), {"correction": 3}),
    (aten.var_mean.correction, [(5, 7)], ([0],), {"correction": 2, "keepdim": True}),
    (aten.any.dims, [(5, 7)], ([0, 1],), {}),
    (aten.count_nonzero.dim_IntList, [(5, 7)], ([1],), {}),
    (aten.addbmm.default, [(3, 5), (2, 3, 4), (2, 4, 5)], (), {"beta": 0.5, "alpha": 2}),
    (aten.addmv.default, [(3,), (3, 4), (4,)], (), {"beta": 0, "alpha": 2}),
    (aten.addr.default, [(3, 4), (3,), (4,)], (), {"alpha": 3}),
    (aten.inner.default, [(3, 4), (5, 4)], (), {}),
    (aten.cosine_similarity.default, [(3, 4), (1, 4)], (1, 1e-8), {}),
    (aten.pairwise_distance.default, [(3, 4), (3, 4)], (2.0, 1e-6, False), {}),
    (aten.select_scatter.default, [(3, 4), (3,)], (1, -2), {}),
    (aten.slice_scatter.default, [(3, 6), (3, 2)], (1, 2, 4), {}),
    (aten.diff.default, [(3, 6)], (), {}),
    (aten.tile.default, [(3, 4)], ([2, 1, 2],), {}),
    (aten._upsample_nearest_exact2d.vec, [(1, 2, 5, 7)], ([8, 3], None), {}),
    (aten.col2im.default, [(2, 12, 6)], ([4, 9], [2, 3], [1, 1], [0, 0], [2, 3]), {}),
    (aten.softplus.default, [(5, 7)], (), {}),
    (aten.log_sigmoid.default, [(5, 7)], (), {}),
    (aten.logaddexp.default, [(5, 7), (1, 7)], (), {}),
    (aten.log1p.default, [(5, 7)], (), {}),
    (aten.expm1.default, [(5, 7)], (), {}),
    (aten.gt.Tensor, [(5, 7), (7,)], (), {}),
    (aten.ge.Scalar, [(5, 7)], (0.25,), {}),
    (aten.numpy_T.default, [(2, 3, 4)], (), {}),
    (aten.unfold.default, [(3, 9)], (-1, 4, 2), {}),
    (aten.fill.Scalar, [(3, 4)], (2.5,), {}),
    (aten.fill.Tensor, [(3, 4), ()], (), {}),
]


@pytest.mark.parametrize(("target", "shapes", "args", "keywords"), LOWERED, ids=[str(row[0]) for row in LOWERED])
def test_a_lowering_computes_the_same_in_torch_and_openvino(
    target: Any, shapes: list[tuple[int, ...]], args: tuple[Any, ...], keywords: dict[str, Any]
) -> None:
    sketch = Sketch()
    inputs = [sketch.input(f"x{index}", *shape) for index, shape in enumerate(shapes)]
    node = sketch.call(target, *inputs, *args, **keywords)
    expected = target(*(torch.zeros(shape) for shape in shapes), *args, **keywords)
    many = isinstance(expected, tuple)
    gm = sketch.output(*([sketch.call(operator.getitem, node, place) for place in range(len(expected))] if many else [node]))
    assert name_of(node) in LOWERINGS
    lowered = lower(gm)
    assert str(lowered.graph) != str(gm.graph)
    generator = torch.Generator().manual_seed(3)
    data = [torch.randn(shape, generator=generator) for shape in shapes]
    want = list(gm(*data))
    for got, right in zip(lowered(*data), want):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-6, equal_nan=True)
    spec = BuildSpec(tuple(sketch.inputs), tuple(specs.spec_of(item) for item in want), torch.device("cpu"))
    for got, right in zip(backend.build(gm, spec).run(data), want):
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-5, equal_nan=True)


def _agrees(sketch: Sketch, result: Any, data: list[torch.Tensor]) -> None:
    """Every call is supported, and the engine gives what torch does."""
    gm = sketch.output(result)
    for node in gm.graph.nodes:
        if node.op == "call_function" and not specs.is_scalar(node):
            assert backend.supports(node), backend.supports(node).reason
    want = gm(*data)[0]
    spec = BuildSpec(tuple(sketch.inputs), (specs.spec_of(specs.tensor_of(result)),), torch.device("cpu"))
    torch.testing.assert_close(backend.build(gm, spec).run(data)[0], want, rtol=1e-5, atol=1e-12, equal_nan=True)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("target", "columns", "rest"),
    [
        (aten.log_sigmoid.default, [[-1e4, -100.0, -20.0, 0.0, 3.0, 30.0]], ()),
        (aten.softplus.default, [[-80.0, -20.0, -14.0, 0.0, 3.0, 30.0]], ()),
        (aten.log1p.default, [[-1e-9, 1e-9, 1e-5, -1e-3, 0.019, 0.021, 7.0, -1.0]], ()),
        (aten.expm1.default, [[-1e-9, 1e-9, 1e-5, -1e-3, 0.019, 0.021, 7.0, -80.0]], ()),
        (aten.logaddexp.default, [[-INF, INF, -INF, 1.0, -3.0], [-INF, INF, INF, -INF, 4.0]], ()),
        (aten.gt.Scalar, [[NAN, 1.0, -1.0, 0.0]], (0,)),
        (aten.ge.Scalar, [[NAN, 1.0, -1.0, 0.0]], (0.0,)),
        (aten.gt.Tensor, [[NAN, NAN, 1.0, 2.0], [NAN, 1.0, NAN, 1.0]], ()),
        (aten.ge.Tensor, [[NAN, NAN, 1.0, 2.0], [NAN, 1.0, NAN, 2.0]], ()),
    ],
    ids=str,
)
def test_far_from_zero_near_it_and_no_number(target: Any, columns: list[list[float]], rest: tuple[Any, ...]) -> None:
    sketch = Sketch()
    data = [torch.tensor(column) for column in columns]
    inputs = [sketch.input(f"x{place}", len(column)) for place, column in enumerate(columns)]
    _agrees(sketch, sketch.call(target, *inputs, *rest), data)


def test_a_row_that_is_masked_wholly_is_zero() -> None:
    for mask in (torch.tensor([[False, False], [True, False]]), torch.tensor([[-INF, -INF], [0.5, -INF]])):
        sketch = Sketch()
        query = sketch.input("query", Dim("n", 1, 2, 4), 3, 2, 4)
        given = sketch.input("mask", 2, 2, dtype=mask.dtype)
        mixed = sketch.call(aten.scaled_dot_product_attention.default, query, query, query, given)
        _agrees(sketch, mixed, [torch.randn(2, 3, 2, 4), mask])


@pytest.mark.parametrize(
    ("shape", "places"),
    [
        ((Dim("n", 3, 4, 8), 4), [[-1, 1, 0], [1, -1, -4]]),
        ((2, 3, 4), [None, [-1, -1, 0], [1, -1, 2]]),
        ((3, 5, 4), [[-1, 0], None, [-1, -4]]),
        ((3, 4), [[-1, 1, 0], None]),
    ],
    ids=str,
)
def test_indices_count_from_the_end(shape: tuple[Any, ...], places: list[list[int] | None]) -> None:
    sketch = Sketch()
    x = sketch.input("x", *shape)
    indices = [None if place is None else sketch.input(f"i{dim}", len(place), dtype=torch.int64) for dim, place in enumerate(places)]
    data = [torch.randn([size if isinstance(size, int) else 5 for size in shape])]
    _agrees(sketch, sketch.call(aten.index.Tensor, x, indices), [*data, *(torch.tensor(place) for place in places if place is not None)])


@pytest.mark.parametrize(("first", "second"), [((3, 1, 4), (1, 5, 4)), ((3, 4), (5, 1, 4)), ((3, 4), (3, 1))])
def test_a_cosine_of_what_is_broadcast(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    sketch = Sketch()
    inputs = [
        sketch.input(name, *(Dim(f"n{size}", 2, size, 8) if size in (3, 5) else size for size in shape))
        for name, shape in (("x", first), ("y", second))
    ]
    node = sketch.call(aten.cosine_similarity.default, *inputs, -1, 1e-8)
    _agrees(sketch, node, [torch.randn(first), torch.randn(second)])


@pytest.mark.parametrize("dim", [1, -1])
def test_a_choice_along_a_dimension(dim: int) -> None:
    sketch = Sketch()
    n = Dim("n", 1, 3, 8)
    x, index = sketch.input("x", n, 6), sketch.input("index", n, 2, dtype=torch.int64)
    _agrees(sketch, sketch.call(aten.take_along_dim.default, x, index, dim), [torch.randn(4, 6), torch.randint(0, 6, (4, 2))])


def test_a_choice_by_an_index_of_other_sizes_is_refused() -> None:
    sketch = Sketch()
    node = sketch.call(aten.gather.default, sketch.input("x", 3, 4), 1, sketch.input("index", 2, 1, dtype=torch.int64))
    sketch.output(node)
    assert "of other sizes" in backend.supports(node).reason


def test_integers_beyond_int32_are_known_from_where_they_are_made() -> None:
    sketch = Sketch()
    large = sketch.call(aten.scalar_tensor.default, 2**40, dtype=torch.int64)
    turned = sketch.call(aten.type_as.default, sketch.input("x", 3), sketch.input("like", 1, dtype=torch.int64))
    doubled = sketch.call(aten.add.Tensor, turned, turned)
    sketch.output(large, doubled)
    assert "integers up to" in backend.supports(large).reason
    assert "integers up to" in backend.supports(doubled).reason


@pytest.mark.parametrize("rows", [2, 5])
def test_windows_of_eight_dimensions(rows: int) -> None:
    sketch = Sketch()
    x = sketch.input("x", Dim("n", 1, 2, 8), 4, 6, 6, 3)
    n = sketch.call(aten.sym_size.int, x, 0)
    cut = sketch.call(aten.reshape.default, x, [n, 2, 2, 3, 2, 2, 3, 3])
    moved = sketch.call(aten.permute.default, cut, [0, 1, 3, 5, 2, 4, 6, 7])
    swapped = sketch.call(aten.transpose.int, sketch.call(aten.add.Tensor, moved, sketch.call(aten.mul.Scalar, moved, 0.5)), 1, 6)
    wide = sketch.call(aten.unsqueeze.default, sketch.call(aten.flatten.using_ints, swapped, 0, 1), 2)
    summed = sketch.call(aten.add.Tensor, wide, sketch.call(aten.unsqueeze.default, sketch.call(aten.squeeze.dim, wide, 2), 1))
    _agrees(sketch, sketch.call(aten.flatten.using_ints, summed, 1, -1), [torch.randn(rows, 4, 6, 6, 3)])


def test_a_mask_says_where_one_value_goes() -> None:
    sketch = Sketch()
    x = sketch.input("x", Dim("n", 1, 3, 8), 4, 2)
    mask = sketch.call(aten.gt.Scalar, sketch.call(aten.amax.default, x, [-1]), 0.5)
    put = sketch.call(aten.index_put.default, x, [mask], sketch.constant("value", torch.tensor(7.0)))
    low = sketch.call(aten.where.ScalarOther, sketch.call(aten.lt.Scalar, put, 0), put, -1e30)
    both = sketch.call(aten.where.Scalar, mask, 1.0, -2.0)
    high = sketch.call(aten.where.ScalarSelf, sketch.call(aten.unsqueeze.default, mask, 2), 3.0, low)
    _agrees(sketch, sketch.call(aten.mul.Tensor, high, sketch.call(aten.unsqueeze.default, both, 2)), [torch.randn(5, 4, 2)])


def test_several_values_behind_a_mask_are_refused() -> None:
    sketch = Sketch()
    x, mask = sketch.input("x", 3, 4), sketch.input("mask", 3, dtype=torch.bool)
    node = sketch.call(aten.index_put.default, x, [mask], sketch.input("values", 4))
    sketch.output(node)
    assert "a mask and more than one value" in backend.supports(node).reason


def test_overlapping_windows_of_what_the_model_computes() -> None:
    sketch = Sketch()
    y = sketch.call(aten.exp.default, sketch.input("x", 2, 12))
    _agrees(sketch, sketch.call(aten.as_strided.default, y, [2, 5, 4], [12, 2, 1]), [torch.randn(2, 12)])


def test_strides_of_what_the_caller_gives_are_left_to_torch() -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 12)
    direct = sketch.call(aten.as_strided.default, sketch.call(aten.unsqueeze.default, x, 0), [2, 5, 4], [12, 2, 1])
    turned = sketch.call(aten.as_strided.default, sketch.call(aten.t.default, sketch.call(aten.exp.default, x)), [3], [1])
    sketch.output(direct, turned)
    assert "the caller lays out" in backend.supports(direct).reason
    assert "not laid out row by row" in backend.supports(turned).reason


def test_memory_that_is_written_later_comes_from_the_engine() -> None:
    sketch = Sketch()
    places = sketch.call(aten.argsort.default, sketch.input("x", 6))
    empty = sketch.call(aten.empty_like.default, places)
    put = sketch.call(aten.index_put.default, empty, [places], sketch.call(aten.arange.default, 6))
    _agrees(sketch, sketch.call(aten.mul.Scalar, put, 2), [torch.randn(6)])


def split_attention(shape: tuple[int | Dim, ...], parts: int) -> fx.GraphModule:
    """Return ``(image in parts · weights).sum(1)`` and the plain sum of the parts, of an image of the given shape."""
    sketch = Sketch()
    image, weights = sketch.input("image", *shape), sketch.input("weights", shape[0], parts, shape[1] // parts, 1, 1)
    cut = sketch.call(aten.reshape.default, image, [-1, parts, shape[1] // parts, *shape[2:]])
    weighted = sketch.call(aten.mul.Tensor, cut, weights)
    return sketch.output(sketch.call(aten.sum.dim_IntList, weighted, [1]), sketch.call(aten.sum.dim_IntList, cut, [1]))


@pytest.mark.parametrize("batch", [2, Dim("n", 1, 2, 4)], ids=["static", "varying"])
@pytest.mark.parametrize("parts", [2, 3])
def test_a_sum_of_parts_of_channels_needs_no_reshape(batch: int | Dim, parts: int) -> None:
    gm = split_attention((batch, 12, 5, 7), parts)
    lowered = lower(gm)
    lowered.graph.eliminate_dead_code()
    names = [name_of(node) for node in lowered.graph.nodes if node.op == "call_function"]
    assert names.count("split.Tensor") == 1
    assert not {"reshape.default", "sum.dim_IntList"} & set(names)
    generator = torch.Generator().manual_seed(3)
    shapes = ((2, 12, 5, 7), (2, parts, 12 // parts, 1, 1))
    data = [torch.randn(shape, generator=generator) for shape in shapes]
    spec = BuildSpec(
        tuple(specs.spec_of(node.meta["val"]) for node in gm.graph.nodes if node.op == "placeholder"),
        tuple(specs.spec_of(node.meta["val"]) for node in gm.graph.output_node().args[0]),
        torch.device("cpu"),
    )
    for got, right in zip(backend.build(gm, spec).run(data), gm(*data), strict=True):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("before", "after", "dim", "keepdim"),
    [
        ((2, 12, 5, 7), [2, 6, 2, 5, 7], 1, False),  # too many parts
        ((2, 12, 5, 7), [2, 2, 6, 5, 7], 2, False),  # summed within each part
        ((2, 12, 5, 7), [2, 2, 6, 5, 7], 1, True),
        ((2, 12, 5, 7), [2, 2, 6, 7, 5], 1, False),  # not the same image
        ((2, 12, 35), [2, 2, 6, 5, 7], 1, False),  # no image
    ],
)
def test_near_misses_of_a_sum_of_parts(before: tuple[int, ...], after: list[int], dim: int, keepdim: bool) -> None:
    sketch = Sketch()
    cut = sketch.call(aten.reshape.default, sketch.input("image", *before), after)
    lowered = lower(sketch.output(sketch.call(aten.sum.dim_IntList, cut, [dim], keepdim)))
    assert [name_of(node) for node in lowered.graph.nodes if node.op == "call_function"] == ["reshape.default", "sum.dim_IntList"]


def test_a_factor_of_fewer_dimensions_is_no_weight_of_parts() -> None:
    sketch = Sketch()
    cut = sketch.call(aten.reshape.default, sketch.input("image", 2, 4, 5, 6), [2, 2, 2, 5, 6])
    weighted = sketch.call(aten.mul.Tensor, cut, sketch.input("factor", 2, 2, 1, 1))
    _agrees(sketch, sketch.call(aten.sum.dim_IntList, weighted, [1]), [torch.randn(2, 4, 5, 6), torch.randn(2, 2, 1, 1)])


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("has_biases", [False, True])
def test_an_lstm_with_projected_outputs(layers: int, bidirectional: bool, batch_first: bool, has_biases: bool) -> None:
    """All three results, from a state that is not zero."""
    torch.manual_seed(0)
    sketch = Sketch()
    options = {"bidirectional": bidirectional, "batch_first": batch_first, "bias": has_biases}
    lstm = torch.nn.LSTM(5, 6, num_layers=layers, proj_size=3, **options)
    weights = [sketch.constant(f"w{place}", weight.detach()) for place, weight in enumerate(lstm._flat_weights)]
    count = layers * (2 if bidirectional else 1)
    shapes = {"x": (2, 4, 5), "h": (count, 2 if batch_first else 4, 3), "c": (count, 2 if batch_first else 4, 6)}
    x, *states = (sketch.input(name, *shape) for name, shape in shapes.items())
    node = sketch.call(aten.lstm.input, x, states, weights, has_biases, layers, 0.0, False, bidirectional, batch_first)
    gm = sketch.output(*(sketch.call(operator.getitem, node, place) for place in range(3)))
    assert backend.supports(node)
    data = [torch.randn(shape) for shape in shapes.values()]
    want = list(gm(*data))
    spec = BuildSpec(tuple(sketch.inputs), tuple(specs.spec_of(item) for item in want), torch.device("cpu"))
    torch.testing.assert_close(backend.build(gm, spec).run(data), want, rtol=1e-4, atol=1e-5)


def test_an_lstm_with_projected_outputs_needs_to_know_its_steps() -> None:
    sketch = Sketch()
    weights = [sketch.constant(f"w{place}", weight.detach()) for place, weight in enumerate(torch.nn.LSTM(5, 6, proj_size=3)._flat_weights)]
    x, *states = sketch.input("x", Dim("n", 2, 4, 8), 2, 5), sketch.input("h", 1, 2, 3), sketch.input("c", 1, 2, 6)
    node = sketch.call(aten.lstm.input, x, states, weights, True, 1, 0.0, False, False, False)
    sketch.output(sketch.call(operator.getitem, node, 0))
    assert "a number of steps that varies" in backend.supports(node).reason

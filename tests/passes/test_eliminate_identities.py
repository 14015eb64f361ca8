from __future__ import annotations

import pytest
import torch

from tests.helpers import Dim, Sketch, assert_same, assert_untouched, assert_values_hold, bits, copy_of, lines, random_inputs, run, state_of
from tiacc.passes import rewrite
from tiacc.passes.base import Fuel, PassContext
from tiacc.passes.eliminate_identities import EliminateIdentities

aten = torch.ops.aten
H = Dim("h", 2, 4, 6)


def build(make, *, shape=(2, 3, H, 4), dtype=torch.float32, before=True, after=True):
    """neg → what `make` makes → exp → tile, so that it is neither given nor returned, and the layout of what is does not tell of it."""
    sketch = Sketch()
    x = sketch.input("x", *shape, dtype=dtype)
    y = make(sketch, sketch.call(aten.neg.default, x) if before else x)
    if not after:
        return sketch.output(y)
    return sketch.output(sketch.call(aten.tile.default, sketch.call(aten.exp.default, y), [2]))


def ended(name):
    """The lines of a graph behind what is neither given nor returned."""
    return [f"exp_default = aten.exp.default({name})", "tile_default = aten.tile.default(exp_default, [2])", "return tile_default"]


def check(gm, changes, text=None):
    before, state, tensors = copy_of(gm), state_of(gm), dict(gm.named_buffers())
    was = lines(gm)
    assert EliminateIdentities()(gm).changes == changes
    assert lines(gm) == (was if text is None else text)
    assert_same(gm, before, which=("min", "opt", "max"), rtol=0, atol=0)
    assert_values_hold(gm)
    assert_untouched(state, tensors)
    assert EliminateIdentities()(gm).changes == 0


NOTHING_BETWEEN = ["neg_default = aten.neg.default(x)", *ended("neg_default")]

IDENTITIES = {
    "mul 1": lambda s, x: s.call(aten.mul.Tensor, x, 1),
    "mul 1.0": lambda s, x: s.call(aten.mul.Scalar, x, 1.0),
    "mul ones": lambda s, x: s.call(aten.mul.Tensor, x, s.constant("ones", torch.ones(1, 3, 1, 1))),
    "ones mul": lambda s, x: s.call(aten.mul.Tensor, s.constant("ones", torch.ones(())), x),
    "div 1": lambda s, x: s.call(aten.div.Tensor, x, 1),
    "pow 1": lambda s, x: s.call(aten.pow.Tensor_Scalar, x, 1),
    "sub 0": lambda s, x: s.call(aten.sub.Tensor, x, 0),
    "sub zeros": lambda s, x: s.call(aten.sub.Tensor, x, s.constant("zeros", torch.zeros(3, 1, 1))),
    "add -0.0": lambda s, x: s.call(aten.add.Tensor, x, -0.0),
    "to dtype": lambda s, x: s.call(aten.to.dtype, x, torch.float32),
    "to device": lambda s, x: s.call(aten.to.device, x, torch.device("cpu"), torch.float32),
    "_to_copy": lambda s, x: s.call(aten._to_copy.default, x, dtype=torch.float32),
    "type_as": lambda s, x: s.call(aten.type_as.default, x, s.constant("other", torch.ones(2))),
    "contiguous": lambda s, x: s.call(aten.contiguous.default, x),
    "clone": lambda s, x: s.call(aten.clone.default, x),
    "clone contiguous": lambda s, x: s.call(aten.clone.default, x, memory_format=torch.contiguous_format),
    "detach": lambda s, x: s.call(aten.detach.default, x),
    "alias": lambda s, x: s.call(aten.alias.default, x),
    "expand": lambda s, x: s.call(aten.expand.default, x, [-1, 3, -1, 4]),
    "repeat": lambda s, x: s.call(aten.repeat.default, x, [1, 1, 1, 1]),
    "reshape": lambda s, x: s.call(aten.reshape.default, x, [2, 3, -1, 4]),
    "reshape by size": lambda s, x: s.call(aten.reshape.default, x, [2, 3, s.call(aten.sym_size.int, x, 2), 4]),
    "flatten one": lambda s, x: s.call(aten.flatten.using_ints, x, 1, 1),
    "squeeze nothing": lambda s, x: s.call(aten.squeeze.dim, x, 1),
    "slice all": lambda s, x: s.call(aten.slice.Tensor, x, 2, 0, 2**63 - 1),
    "slice whole": lambda s, x: s.call(aten.slice.Tensor, x, 1, 0, 3),
    "permute": lambda s, x: s.call(aten.permute.default, x, [0, 1, -2, 3]),
    "transpose": lambda s, x: s.call(aten.transpose.int, x, 2, -2),
    "transpose twice": lambda s, x: s.call(aten.transpose.int, s.call(aten.transpose.int, x, 1, 3), 3, 1),
    "permute twice": lambda s, x: s.call(aten.permute.default, s.call(aten.permute.default, x, [0, 2, 3, 1]), [0, 3, 1, 2]),
    "cat of one": lambda s, x: s.call(aten.cat.default, [x], 1),
    "to wider and back": lambda s, x: s.call(aten.to.dtype, s.call(aten.to.dtype, x, torch.float64), torch.float32),
    "three in a row": lambda s, x: s.call(aten.mul.Tensor, s.call(aten.contiguous.default, s.call(aten.clone.default, x)), 1),
}


@pytest.mark.parametrize("make", IDENTITIES.values(), ids=IDENTITIES)
def test_an_identity_goes(make):
    gm = build(make)
    check(gm, 3 if make is IDENTITIES["three in a row"] else 1, NOTHING_BETWEEN)


NEAR_MISSES = {
    "add 0": lambda s, x: s.call(aten.add.Tensor, x, 0),
    "add 0.0": lambda s, x: s.call(aten.add.Tensor, x, 0.0),
    "add zeros": lambda s, x: s.call(aten.add.Tensor, x, s.constant("zeros", torch.zeros(()))),
    "sub -0.0": lambda s, x: s.call(aten.sub.Tensor, x, -0.0),
    "sub zeros, scaled": lambda s, x: s.call(aten.sub.Tensor, x, s.constant("zeros", torch.zeros(1)), alpha=-2),
    "mul nearly one": lambda s, x: s.call(aten.mul.Tensor, x, 1 + 1e-6),
    "mul ones and another": lambda s, x: s.call(aten.mul.Tensor, x, s.constant("ones", torch.tensor([1.0, 1.0, 1.0, 1.001]))),
    "mul ones, broadcast": lambda s, x: s.call(aten.mul.Tensor, x, s.constant("ones", torch.ones(2, 1, 1, 1, 1))),
    "mul ones, promoted": lambda s, x: s.call(aten.mul.Tensor, x, s.constant("ones", torch.ones(1, 1, 1, 4, dtype=torch.float64))),
    "mul input": lambda s, x: s.call(aten.mul.Tensor, x, s.input("ones", 1)),
    "1 over": lambda s, x: s.call(aten.div.Tensor, s.constant("one", torch.ones(())), x),
    "floor of div 1": lambda s, x: s.call(aten.div.Tensor_mode, x, 1, rounding_mode="floor"),
    "pow 2": lambda s, x: s.call(aten.pow.Tensor_Scalar, x, 2),
    "to other": lambda s, x: s.call(aten.to.dtype, x, torch.float64),
    "to narrower and back": lambda s, x: s.call(aten.to.dtype, s.call(aten.to.dtype, x, torch.bfloat16), torch.float32),
    "expand": lambda s, x: s.call(aten.expand.default, x, [5, -1, -1, -1, -1]),
    "repeat": lambda s, x: s.call(aten.repeat.default, x, [1, 2, 1, 1]),
    "reshape": lambda s, x: s.call(aten.reshape.default, x, [3, 2, -1, 4]),
    "squeeze": lambda s, x: s.call(aten.squeeze.dim, s.call(aten.unsqueeze.default, x, 0), 0),
    "slice a part": lambda s, x: s.call(aten.slice.Tensor, x, 1, 0, 2),
    "slice up to what it may be": lambda s, x: s.call(aten.slice.Tensor, x, 2, 0, 4),
    "slice every second": lambda s, x: s.call(aten.slice.Tensor, x, 3, 0, 4, 2),
    "transpose": lambda s, x: s.call(aten.transpose.int, x, 0, 1),
    "contiguous": lambda s, x: s.call(aten.contiguous.default, s.call(aten.transpose.int, x, 0, 1)),
    "channels last": lambda s, x: s.call(aten.contiguous.default, x, memory_format=torch.channels_last),
    "cat of two": lambda s, x: s.call(aten.cat.default, [x, x]),
    "abs of ceil": lambda s, x: s.call(aten.abs.default, s.call(aten.ceil.default, x)),
    "relu gelu": lambda s, x: s.call(aten.relu.default, s.call(aten.gelu.default, x)),
}


@pytest.mark.parametrize("make", NEAR_MISSES.values(), ids=NEAR_MISSES)
def test_a_near_miss_stays(make):
    check(build(make), 0)


def test_signed_zeros_and_nans_come_through():
    gm = build(lambda s, x: s.call(aten.sub.Tensor, s.call(aten.mul.Tensor, s.call(aten.div.Tensor, x, 1), 1), 0), shape=(5,), after=False)
    x = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -1.5])
    before = run(gm, [x])
    assert EliminateIdentities()(gm).changes == 3
    assert torch.equal(bits(run(gm, [x])[0]), bits(before[0]))


def test_integers():
    for make, changes in (
        (lambda s, x: s.call(aten.add.Tensor, x, 0), 1),
        (lambda s, x: s.call(aten.sub.Scalar, x, 0), 1),
        (lambda s, x: s.call(aten.mul.Tensor, x, 1), 1),
        (lambda s, x: s.call(aten.div.Tensor, x, 1), 0),
        (lambda s, x: s.call(aten.mul.Tensor, x, 1.0), 0),
        (lambda s, x: s.call(aten.to.dtype, s.call(aten.to.dtype, x, torch.float32), torch.int64), 0),
    ):
        gm = build(make, dtype=torch.int64, shape=(3, 4))
        before = copy_of(gm)
        assert EliminateIdentities()(gm).changes == changes
        assert_same(gm, before, rtol=0, atol=0)


def test_done_twice():
    for target in (aten.relu.default, aten.abs.default, aten.round.default):
        gm = build(lambda s, x, target=target: s.call(target, s.call(target, x)), before=False)
        name = str(target).replace("aten.", "").replace(".", "_")
        check(gm, 1, [f"{name} = {target}(x)", *ended(name)])
    gm = build(lambda s, x: s.call(aten.neg.default, s.call(aten.neg.default, x)), before=False)
    check(gm, 1, ended("x"))


def test_reshapes_become_one():
    def make(s, x):
        x = s.call(aten.flatten.using_ints, x, 1)
        x = s.call(aten.unsqueeze.default, x, 0)
        x = s.call(aten.view.default, x, [2, 3, -1])
        return s.call(aten.reshape.default, x, [6, -1])

    check(build(make), 3, [
        "neg_default = aten.neg.default(x)",
        "reshape_default = aten.reshape.default(neg_default, [6, -1])",
        *ended("reshape_default"),
    ])


def test_a_reshape_there_and_back_goes():
    def make(s, x):
        return s.call(aten.reshape.default, s.call(aten.flatten.using_ints, x, 2), [2, 3, s.call(aten.sym_size.int, x, 2), 4])

    check(build(make), 2, NOTHING_BETWEEN)


def test_permutations_become_one():
    def make(s, x):
        x = s.call(aten.permute.default, x, [0, 2, 3, 1])
        x = s.call(aten.transpose.int, x, 1, 2)
        return s.call(aten.permute.default, x, [3, 0, 1, 2])

    check(build(make), 2, [
        "neg_default = aten.neg.default(x)",
        "permute_default_1 = aten.permute.default(neg_default, [1, 0, 3, 2])",
        *ended("permute_default_1"),
    ])


def test_a_permutation_read_twice_stays_for_the_other_reader():
    sketch = Sketch()
    x = sketch.input("x", 2, 3, 4)
    first = sketch.call(aten.permute.default, x, [2, 0, 1])
    second = sketch.call(aten.permute.default, first, [2, 0, 1])
    gm = sketch.output(sketch.call(aten.exp.default, first), sketch.call(aten.exp.default, second))
    check(gm, 0)


def test_what_the_caller_gets_does_not_become_an_input_a_constant_or_another_result():
    for make in (IDENTITIES["clone"], IDENTITIES["mul 1"], IDENTITIES["cat of one"], IDENTITIES["_to_copy"]):
        check(build(make, before=False, after=False), 0)
    sketch = Sketch()
    gm = sketch.output(sketch.call(aten.clone.default, sketch.constant("w", torch.randn(3))))
    check(gm, 0)
    sketch = Sketch()
    y = sketch.call(aten.relu.default, sketch.input("x", 3))
    gm = sketch.output(sketch.call(aten.clone.default, y), sketch.call(aten.reshape.default, y, [3, 1]))
    check(gm, 0)


def test_a_conversion_there_and_back_of_what_is_returned_stays_a_copy():
    def there_and_back(sketch, x):
        return sketch.call(aten.to.dtype, sketch.call(aten.to.dtype, x, torch.float64), torch.float32)

    sketch = Sketch()
    y = sketch.call(aten.relu.default, sketch.input("x", 3))
    check(sketch.output(there_and_back(sketch, y), sketch.call(aten.reshape.default, y, [3, 1])), 0)
    sketch = Sketch()
    check(sketch.output(there_and_back(sketch, sketch.constant("w", torch.randn(3)))), 0)
    check(build(there_and_back), 1, NOTHING_BETWEEN)


def test_reshapes_of_which_one_copies_stay():
    """Without the copy there would be a view, of the input here, with strides that ``view`` and the caller do not expect."""

    def make(s, x):
        turned = s.call(aten.transpose.int, x, 2, 3)
        return s.call(aten.reshape.default, s.call(aten.flatten.using_ints, turned, 2), [2, 3, 4, s.call(aten.sym_size.int, x, 2)])

    for after in (False, True):
        check(build(make, before=False, after=after), 0)
    gm = build(make, before=False, after=False)
    EliminateIdentities()(gm)
    (x,) = random_inputs(gm)
    (y,) = run(gm, [x])
    assert y.is_contiguous() and y.data_ptr() != x.data_ptr()


def test_a_copy_of_something_new_may_be_returned_without():
    gm = build(IDENTITIES["clone"], after=False)
    check(gm, 1, ["neg_default = aten.neg.default(x)", "return neg_default"])


def test_an_input_is_not_returned_as_it_is():
    check(build(IDENTITIES["detach"], before=False, after=False), 0)
    check(build(IDENTITIES["detach"], after=False), 1, ["neg_default = aten.neg.default(x)", "return neg_default"])


def test_a_view_of_what_is_laid_out_otherwise_now_becomes_a_reshape():
    """The copy made the tensor dense; without it ``view`` would refuse."""

    def make(s, x):
        every_second = s.call(aten.slice.Tensor, x, 3, 0, 4, 2)
        return s.call(aten.view.default, s.call(aten.mul.Tensor, every_second, 1), [2, 3, -1])

    gm = build(make)
    check(gm, 1, [
        "neg_default = aten.neg.default(x)",
        "slice_tensor = aten.slice.Tensor(neg_default, 3, 0, 4, 2)",
        "view_default = aten.reshape.default(slice_tensor, [2, 3, -1])",
        *ended("view_default"),
    ])


def test_a_contiguous_that_fits_the_example_but_not_the_call():
    """Inputs may have any strides at run time."""
    gm = build(lambda s, x: s.call(aten.view.default, s.call(aten.contiguous.default, x), [2, -1]), before=False)
    assert EliminateIdentities()(gm).changes == 1
    x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    torch.testing.assert_close(run(gm, [x])[0], x.reshape(2, -1).exp().tile(2))


@pytest.mark.parametrize("name", ["contiguous", "clone contiguous", "repeat", "cat of one"])
def test_what_may_lay_out_a_result_stays(name):
    """Whoever optimizes gives a contiguous example; whoever calls may not, and a ``view`` behind the graph would refuse the result."""
    sketch = Sketch()
    laid_out = IDENTITIES[name](sketch, sketch.call(aten.neg.default, sketch.input("x", 2, 3, 4, 4)))
    gm = sketch.output(sketch.call(aten.exp.default, laid_out))
    check(gm, 0)
    (y,) = run(gm, [torch.randn(2, 3, 4, 4).transpose(2, 3)])
    assert y.is_contiguous()


@pytest.mark.parametrize("target", [aten.resolve_conj.default, aten.resolve_neg.default])
def test_what_is_resolved_may_be_a_view(target):
    check(build(lambda s, x: s.call(target, s.call(aten.conj.default, x)), dtype=torch.complex64, shape=(3, 4)), 0)


def test_a_copy_that_lays_out_as_it_is_given_goes():
    gm = build(IDENTITIES["mul 1"], before=False, after=False)
    check(gm, 0)  # the result would be the input
    gm = build(IDENTITIES["mul 1"], after=False)
    check(gm, 1, ["neg_default = aten.neg.default(x)", "return neg_default"])


def test_empty_parts_of_a_returned_image_stay():
    """One that is not channels last makes all of it contiguous."""
    sketch = Sketch()
    x = sketch.input("x", 2, 3, 4, 4)
    gm = sketch.output(sketch.call(aten.cat.default, [x, x, sketch.call(aten.slice.Tensor, x, 1, 0, 0)], 1))
    check(gm, 0)
    (y,) = run(gm, [torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)])
    assert y.is_contiguous()


def test_copies_stay_where_strides_are_read():
    def make(s, x):
        return s.call(aten.as_strided.default, s.call(aten.contiguous.default, x), [2, 2], [1, 2], 0)

    check(build(make, shape=(2, 3, 4, 4)), 0)


def test_a_returned_tensor_keeps_its_layout():
    def make(s, x):
        every_second = s.call(aten.slice.Tensor, s.call(aten.neg.default, x), 3, 0, 4, 2)
        return s.call(aten.mul.Tensor, every_second, 1)

    gm = build(make, shape=(2, 3, 4, 4), before=False, after=False)
    check(gm, 0)
    assert run(gm, random_inputs(gm))[0].is_contiguous()


def test_the_only_part_of_a_returned_image_is_copied():
    """As a cache is begun: what is empty and no image makes all of it contiguous."""
    sketch = Sketch()
    empty = sketch.constant("empty", torch.empty(0))
    turned = sketch.call(aten.transpose.int, sketch.input("x", 2, 3, 4, 4), 1, 2)
    gm = sketch.output(sketch.call(aten.cat.default, [empty, turned], -2))
    before, x = copy_of(gm), torch.randn(2, 3, 4, 4)
    assert EliminateIdentities()(gm).changes == 1
    assert lines(gm)[1] == "cat_default = aten.clone.default(transpose_int, memory_format=torch.contiguous_format)"
    (got,), (wanted,) = run(gm, [x]), run(before, [x])
    assert torch.equal(got, wanted) and got.stride() == wanted.stride()


def test_fuel_stops_it():
    def make(s, x):
        for _ in range(4):
            x = s.call(aten.mul.Tensor, x, 1)
        return x

    gm = build(make)
    assert EliminateIdentities()(gm, PassContext(fuel=Fuel(3))).changes == 3
    assert len(lines(gm)) == 5


@pytest.mark.parametrize(
    ("narrow", "wide", "is_lossless"),
    [
        (torch.float16, torch.float32, True),
        (torch.bfloat16, torch.float32, True),
        (torch.bfloat16, torch.float16, False),
        (torch.float16, torch.bfloat16, False),
        (torch.float32, torch.float64, True),
        (torch.int64, torch.float32, False),
        (torch.int32, torch.float32, False),
        (torch.int32, torch.float64, True),
        (torch.uint8, torch.float16, True),
        (torch.int8, torch.bfloat16, True),
        (torch.int16, torch.bfloat16, False),
        (torch.uint8, torch.int8, False),
        (torch.uint8, torch.int16, True),
        (torch.bool, torch.float16, True),
        (torch.float32, torch.bool, False),
        (torch.int8, torch.bool, False),
        (torch.float32, torch.int64, False),
        (torch.float32, torch.complex64, False),
    ],
)
def test_which_dtypes_hold_all_numbers_of_another(narrow, wide, is_lossless):
    assert rewrite.is_lossless(narrow, wide) == is_lossless
    if is_lossless and narrow != torch.bool:
        info = torch.finfo(narrow) if narrow.is_floating_point else torch.iinfo(narrow)
        extremes = [info.min, info.max, *([info.tiny, info.eps, 1 + info.eps] if narrow.is_floating_point else [info.max - 1])]
        values = torch.tensor(extremes, dtype=torch.float64 if narrow.is_floating_point else torch.int64).to(narrow)
        assert torch.equal(values.to(wide).to(narrow), values)


def test_what_is_empty_is_not_joined_or_scattered():
    def make(s, x):
        empty = s.call(aten.slice.Tensor, x, 2, 0, 0)
        return s.call(aten.slice_scatter.default, s.call(aten.cat.default, [empty, x, empty], 2), empty, 2, 1, 1)

    check(build(make), 3, NOTHING_BETWEEN)


def test_what_is_empty_stays_where_it_tells_the_type():
    def make(s, x):
        return s.call(aten.cat.default, [s.constant("empty", torch.empty(0, dtype=torch.float64)), x], 2)

    check(build(make, after=False), 0)

from __future__ import annotations

import operator

import pytest
import torch

from tests.helpers import Dim, Sketch, assert_same, copy_of, lines, random_inputs, run
from tiacc.passes.base import Fuel, PassContext
from tiacc.passes.remove_dropout import DROPOUTS, RemoveDropout

aten = torch.ops.aten


def graph(target, *args):
    sketch = Sketch()
    x = sketch.input("x", 2, 3, Dim("n", 2, 4, 8))
    y = sketch.call(target, sketch.call(aten.relu.default, x), *args, source="net.py:7")
    return sketch.output(sketch.call(aten.neg.default, y))


FUNCTIONAL = [target for target in DROPOUTS if not str(target).split(".")[1].endswith("_")]


@pytest.mark.parametrize("target", FUNCTIONAL, ids=str)
@pytest.mark.parametrize(("p", "train"), [(0.5, False), (0.0, True), (1.0, False)])
def test_a_dropout_that_is_off_goes(target, p, train):
    gm = graph(target, p, train)
    before = copy_of(gm)
    assert RemoveDropout()(gm).changes == 1
    assert lines(gm) == ["relu_default = aten.relu.default(x)", "neg_default = aten.neg.default(relu_default)", "return neg_default"]
    assert_same(gm, before, which=("min", "opt", "max"), rtol=0, atol=0)
    assert RemoveDropout()(gm).changes == 0


@pytest.mark.parametrize("target", FUNCTIONAL, ids=str)
def test_a_dropout_that_is_on_stays(target):
    gm = graph(target, 0.5, True)
    before = lines(gm)
    assert RemoveDropout()(gm).changes == 0
    assert lines(gm) == before


def native(p, train, pick):
    sketch = Sketch()
    x = sketch.input("x", 2, 3)
    both = sketch.call(aten.native_dropout.default, sketch.call(aten.relu.default, x), p, train)
    return sketch.output(*(sketch.call(aten.neg.default, sketch.call(operator.getitem, both, index)) for index in pick))


@pytest.mark.parametrize(("p", "train"), [(0.5, False), (0.0, True)])
def test_native_dropout_that_is_off_goes(p, train):
    gm = native(p, train, (0,))
    before = copy_of(gm)
    assert RemoveDropout()(gm).changes == 1
    assert lines(gm) == ["relu_default = aten.relu.default(x)", "neg_default = aten.neg.default(relu_default)", "return neg_default"]
    assert_same(gm, before, rtol=0, atol=0)


@pytest.mark.parametrize(("p", "train"), [(0.5, True), (0.5, None), (0.0, None)])
def test_native_dropout_that_may_be_on_stays(p, train):
    assert RemoveDropout()(native(p, train, (0,))).changes == 0


def test_native_dropout_whose_mask_is_read_stays():
    sketch = Sketch()
    both = sketch.call(aten.native_dropout.default, sketch.input("x", 2, 3), 0.5, False)
    mask = sketch.call(aten.logical_not.default, sketch.call(operator.getitem, both, 1))
    gm = sketch.output(sketch.call(operator.getitem, both, 0), mask)
    assert RemoveDropout()(gm).changes == 0


def test_native_dropout_does_not_make_the_caller_share_an_input():
    sketch = Sketch()
    both = sketch.call(aten.native_dropout.default, sketch.input("x", 2, 3), 0.5, False)
    gm = sketch.output(sketch.call(operator.getitem, both, 0))
    assert RemoveDropout()(gm).changes == 0
    (x,) = random_inputs(gm)
    assert run(gm, [x])[0].data_ptr() != x.data_ptr()


def test_fuel_stops_it():
    sketch = Sketch()
    x = sketch.input("x", 2, 3)
    for _ in range(3):
        x = sketch.call(aten.dropout.default, x, 0.1, False)
    gm = sketch.output(sketch.call(aten.neg.default, x))
    assert RemoveDropout()(gm, PassContext(fuel=Fuel(2))).changes == 2
    assert sum("aten.dropout" in line for line in lines(gm)) == 1

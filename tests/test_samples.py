import time

import numpy as np
import pytest
import torch

from tiacc.errors import InvalidArgumentError
from tiacc.samples import check_test_data, describe, make_test_data, oddities, resolve_inputs, specs_from_data
from tiacc.shapes import ELEMENT_TYPES, InputSpec, combined_profiles, parse_input_shapes


def made(input_shapes, seed=0):
    return make_test_data(parse_input_shapes(input_shapes), seed)


def shapes_of(data):
    return [tuple(tuple(tensor.shape) for tensor in item) for item in data]


def test_each_kind_of_shape_gives_its_items():
    assert shapes_of(made(["1*3", "2*4"])) == [((1, 3), (2, 4))]
    assert shapes_of(made({"separate": ["1*3", "5*3"]})) == [((1, 3),), ((5, 3),)]
    assert shapes_of(made({"range": ["1*3", "2*3", "8*3"]})) == [((1, 3),), ((2, 3),), ((8, 3),)]
    assert shapes_of(made({"range": ["1*3", "8*3"]})) == [((1, 3),), ((8, 3),)]
    assert shapes_of(made({"range": ["4", "4"]})) == [((4,),)]
    assert shapes_of(made([{"range": ["1*3", "8*3"]}, "7"])) == [((1, 3), (7,)), ((8, 3), (7,))]


def test_the_same_seed_gives_the_same_data_and_leaves_the_global_state_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = made(["2*3", {"long": "4*5"}], seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    for a, b in zip(first[0], made(["2*3", {"long": "4*5"}], seed=3)[0]):
        assert torch.equal(a, b)
    assert not torch.equal(first[0][0], made(["2*3", {"long": "4*5"}], seed=4)[0][0])


def test_two_inputs_and_two_items_differ():
    (a, b), (c, d) = made([{"separate": ["8*9", "9*9"]}, "8*9"])
    assert not torch.equal(a, b) and not torch.equal(a, c[:8]) and not torch.equal(b, d)


@pytest.mark.parametrize("dtype", ["float", "half", "double", "bfloat16"])
def test_numbers_are_normal(dtype):
    ((x,),) = made({dtype: "100*100"})
    assert x.dtype == ELEMENT_TYPES[dtype]
    x = x.double()
    assert abs(x.mean()) < 0.05 and abs(x.std() - 1) < 0.05 and (x != 0).sum() > 9_990


@pytest.mark.parametrize("dtype", ["int", "long", "bool", "int8", "int16", "uint8"])
@pytest.mark.parametrize("shape", ["scalar", "1", "2", "5*1", "4*7", "1*128", "2*3*4*5"])
def test_integers_fit_a_mask_and_any_vocabulary(dtype, shape):
    ((x,),) = made({dtype: shape})
    assert x.dtype == ELEMENT_TYPES[dtype]
    x = x.long()
    assert x.min() >= 0 and x.max() <= (255 if dtype == "uint8" else 1)
    rows = x.reshape(-1, x.shape[-1] if x.dim() else 1)
    assert rows.any(dim=1).all()
    if rows.shape[1] > 1:
        assert x.min() != x.max()


def test_bytes_cover_their_range():
    ((x,),) = made({"uint8": "64*64"})
    assert x.min() == 0 and x.max() > 250


@pytest.mark.parametrize(
    "input_shapes",
    [
        "1*3",
        ["1*3", "2*4"],
        {"range,half": ["1*3", "4*5"]},
        [{"separate": ["1*2", "3*4"]}, {"separate,long": ["5", "6"]}, "scalar"],
    ],
)
def test_made_data_pass_the_check_and_give_their_specs_back(input_shapes):
    specs = parse_input_shapes(input_shapes)
    data = make_test_data(specs)
    checked = check_test_data(data, specs)
    assert all(a is b for item, again in zip(data, checked) for a, b in zip(item, again))
    derived = specs_from_data(data)
    assert [spec.dtype for spec in derived] == [spec.dtype for spec in specs]
    assert {p.opt for p in combined_profiles(derived)} == set(shapes_of(data))


def test_items_may_be_lists_or_lone_tensors():
    x, y = torch.randn(1, 3), torch.randn(2, 4)
    specs = parse_input_shapes(["1*3", "2*4"])
    assert check_test_data([[x, y]], specs)[0][1] is y
    assert check_test_data([x], specs[:1]) == [(x,)]


def test_tensors_are_counted_through_structures_and_other_arguments_kept():
    x, y, z = torch.randn(1, 3), torch.randn(2, 4), torch.ones(5, dtype=torch.long)
    item = ({"a": x, "b": [y, None]}, 3, "mode", (z,))
    (checked,) = check_test_data([item], parse_input_shapes(["1*3", "2*4", {"long": "5"}]))
    assert checked == item and checked[0]["b"][0] is y
    assert [spec.entry for spec in specs_from_data([item])] == ["1*3", "2*4", {"long": "5"}]


def test_specs_from_data_take_different_shapes_as_separate_ones():
    data = [(torch.randn(1, 3), torch.randn(7)), (torch.randn(2, 3), torch.randn(7)), (torch.randn(1, 3), torch.randn(7))]
    assert specs_from_data(data) == (InputSpec("separate", ((1, 3), (2, 3))), InputSpec("fixed", ((7,),)))


def test_resolve_makes_data_where_there_are_none():
    inputs = resolve_inputs("2*3", seed=5)
    assert inputs.source == "tiacc provided" and inputs.warnings == ()
    assert torch.equal(inputs.data[0][0], made("2*3", seed=5)[0][0])


def test_resolve_takes_shapes_from_data_where_there_are_none():
    x = torch.randn(2, 3).half()
    inputs = resolve_inputs(None, [(x,)])
    assert inputs.source == "user provided"
    assert inputs.specs == (InputSpec("fixed", ((2, 3),), torch.float16),)
    assert inputs.data[0][0] is x


def test_odd_values_are_told():
    nan, zero = torch.tensor([1.0, float("nan")]), torch.zeros(2)
    infinite = torch.tensor([1.0, -float("inf")])
    inputs = resolve_inputs(None, [(torch.ones(2), torch.zeros(2, dtype=torch.long), nan, zero, infinite)])
    assert [text.split(" ")[0] for text in inputs.warnings] == ["test_data[0][2]", "test_data[0][3]", "test_data[0][4]"]
    assert "NaN or infinity" in inputs.warnings[0] and "all zeros" in inputs.warnings[1]
    assert oddities([(torch.ones(3),)]) == []


def test_describe():
    data = [(torch.zeros(1, 2), torch.zeros(3).long()), (torch.zeros(4, 2), torch.zeros(3).long())]
    assert describe(data) == ("(1, 2); (3,) | (4, 2); (3,)", "float32; int64")
    assert describe(data[:1]) == ("(1, 2); (3,)", "float32; int64")


X = torch.randn(1, 3)
BAD = {
    "a tensor": (X, "1*3", r"test_data is a tensor; write \[\(x,\)\]"),
    "a tuple": ((X,), "1*3", r"test_data is a tuple; write \[\(\.\.\.\)\]"),
    "a generator": ((x for x in [X]), "1*3", r"test_data is of type generator"),
    "a dict": ({"x": X}, "1*3", r"test_data is of type dict"),
    "an empty list": ([], "1*3", r"test_data is an empty list"),
    "a string item": (["x"], "1*3", r"test_data\[0\] is of type str\. test_data is a list"),
    "a dict item": ([{"x": X}], "1*3", r"test_data\[0\] is of type dict; for a model that takes a dict, write \(\{"),
    "an array": ([(np.zeros((1, 3)),)], "1*3", r"test_data\[0\]\[0\] is of type ndarray, .* torch\.from_numpy"),
    "an object": ([(X, object())], "1*3", r"test_data\[0\]\[1\] is of type object, which TorchScript models cannot take"),
    "too few tensors": ([(X,)], ["1*3", "1*3"], r"test_data\[0\] has 1 tensor, but input_shapes has 2 entries"),
    "too many tensors": ([(X,), (X, X)], ["1*3"], r"test_data\[1\] has 2 tensors, but input_shapes has 1 entry"),
    "inputs given as calls": ([X, X], ["1*3", "1*3"], r"A list of tensors is a call each; one call with all is "),
    "another size": ([(X,)], "1*4", r"test_data\[0\]\[0\] has the shape \(1, 3\), which is not in input_shapes, '1\*4'"),
    "beyond the range": ([(X,)], {"range": ["2*3", "4*3"]}, r"not in input_shapes, \{'range': \['2\*3', '4\*3', '4\*3'\]\}"),
    "between separate shapes": ([(X,)], {"separate": ["2*3", "4*3"]}, r"not in input_shapes, \{'separate': \['2\*3', '4\*3'\]\}"),
    "another rank": ([(X,)], "1*3*4", r"has 2 dimensions, shape \(1, 3\), but input_shapes says '1\*3\*4', which has 3"),
    "another dtype": ([(X.long(),)], "1*3", r"is torch\.int64, but input_shapes says '1\*3', .* write \{'long': \.\.\.\}"),
    "half for float": ([(X.half(),)], {"range": ["1*3", "2*3"]}, r"is torch\.float16, .* write \{'range,half': \.\.\.\}"),
    "a second item": ([(X,), (X[:, :2],)], "1*3", r"test_data\[1\]\[0\] has the shape \(1, 2\)"),
    "positions mixed up": (
        [(torch.randn(1), torch.randn(4))],
        [{"separate": ["1", "2"]}, {"separate": ["3", "4"]}],
        r"test_data\[0\] has the shapes \(1,\), \(4,\): .* not at the same position",
    ),
    "a meta tensor": ([(X.to("meta"),)], "1*3", r"test_data\[0\]\[0\] is a meta tensor"),
    "a sparse tensor": ([(X.to_sparse(),)], "1*3", r"test_data\[0\]\[0\] is torch\.sparse_coo; tiacc takes dense tensors"),
    "nothing at all": (None, None, r"input_shapes and test_data are both None"),
    "no tensor to take a shape of": ([(1, None)], None, r"test_data\[0\] has no tensor in it"),
    "calls that differ in number": ([(X,), (X, X)], None, r"test_data\[1\] has 2 tensors and test_data\[0\] has 1"),
    "calls that differ in dtype": ([(X,), (X.double(),)], None, r"\[1\]\[0\] is torch\.float64, but test_data\[0\]\[0\] is"),
    "calls that differ in rank": ([(X,), (X[0],)], None, r"test_data\[0\]\[0\] cannot be an input: .* 1\*3 has 2 and 3 has 1"),
    "an empty tensor": ([(X[:0],)], None, r"cannot be an input: the shape 0\*3 has the size 0"),
    "a complex tensor": ([(torch.complex(X, X),)], None, r"an input: inputs of type torch\.complex64 are not supported"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_are_refused_with_their_own_message(case):
    test_data, input_shapes, message = BAD[case]
    with pytest.raises(InvalidArgumentError, match=message):
        resolve_inputs(input_shapes, test_data)


def test_work_grows_with_the_number_of_calls_and_not_with_its_cube() -> None:
    data = [(torch.ones(size), torch.ones(size + 1)) for size in range(1, 401)]
    begin = time.perf_counter()
    assert len(resolve_inputs(None, data).specs[0].shapes) == 400
    assert time.perf_counter() - begin < 5  # it took half a minute

import re

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tiacc.errors import InvalidArgumentError, TiaccError
from tiacc.graph.types import Dim, Profile, TensorSpec
from tiacc.shapes import (
    ELEMENT_TYPES,
    GRAMMAR,
    MAX_SIZE,
    InputSpec,
    combined_profiles,
    element_type_name,
    parse_input_shapes,
)

IMAGE = InputSpec("fixed", ((1, 3, 224, 224),))
BATCHES = ((1, 3, 8, 8), (2, 3, 8, 8))


@pytest.mark.parametrize(
    "written",
    [
        "1*3*224*224",
        "1 * 3 * 224 * 224",
        " 1*3\t*224 *224 ",
        ["1*3*224*224"],
        ["1 * 3 * 224 * 224"],
        ("1*3*224*224",),
        [["1*3*224*224"]],
        [("1*3*224*224",)],
        (1, 3, 224, 224),
        [1, 3, 224, 224],
        [(1, 3, 224, 224)],
        [[1, 3, 224, 224]],
        [[(1, 3, 224, 224)]],
        torch.Size([1, 3, 224, 224]),
        [torch.Size([1, 3, 224, 224])],
        [tuple(np.array([1, 3, 224, 224]))],
        {"float": "1*3*224*224"},
        [{"float": ["1*3*224*224"]}],
        [{"float32": (1, 3, 224, 224)}],
    ],
)
def test_every_spelling_of_one_fixed_shape(written):
    assert parse_input_shapes(written) == (IMAGE,)


@pytest.mark.parametrize(
    ("written", "kind", "shapes", "dtype"),
    [
        ({"seperate": ["1*3*8*8", "2*3*8*8"]}, "separate", BATCHES, torch.float32),
        ({"separate": [(1, 3, 8, 8), "2 * 3*8*8"]}, "separate", BATCHES, torch.float32),
        ({"range": ["1*3*8*8", "2*3*8*8"]}, "range", (BATCHES[0], BATCHES[1], BATCHES[1]), torch.float32),
        ({"range": ["1*5", "3*5", "8*5"]}, "range", ((1, 5), (3, 5), (8, 5)), torch.float32),
        ({"range": ((1, 5), (3, 5), (8, 5))}, "range", ((1, 5), (3, 5), (8, 5)), torch.float32),
        ({"int": ["1*128"]}, "fixed", ((1, 128),), torch.int32),
        ({"int": "1*128"}, "fixed", ((1, 128),), torch.int32),
        ({"int": (1, 128)}, "fixed", ((1, 128),), torch.int32),
        ({"long": "1*128"}, "fixed", ((1, 128),), torch.int64),
        ({"bool": "1*128"}, "fixed", ((1, 128),), torch.bool),
        ({"half": "1*128"}, "fixed", ((1, 128),), torch.float16),
        ({"fp16": "1*128"}, "fixed", ((1, 128),), torch.float16),
        ({"range,int": ["1*1", "4*9"]}, "range", ((1, 1), (4, 9), (4, 9)), torch.int32),
        ({"int , range": ["1*1", "4*9"]}, "range", ((1, 1), (4, 9), (4, 9)), torch.int32),
        ({"half": {"range": ["1*1", "4*9"]}}, "range", ((1, 1), (4, 9), (4, 9)), torch.float16),
        ({"range": {"half": ["1*1", "4*9"]}}, "range", ((1, 1), (4, 9), (4, 9)), torch.float16),
        ({"long": {"seperate": ["1*1", "4*9"]}}, "separate", ((1, 1), (4, 9)), torch.int64),
        ({"seperate,bool": ["7"]}, "separate", ((7,),), torch.bool),
        ("scalar", "fixed", ((),), torch.float32),
        (torch.Size([]), "fixed", ((),), torch.float32),
        ({"long": "scalar"}, "fixed", ((),), torch.int64),
        ({"separate": ["scalar"]}, "separate", ((),), torch.float32),
    ],
)
def test_kinds_and_element_types(written, kind, shapes, dtype):
    expected = InputSpec(kind, shapes, dtype)
    assert parse_input_shapes([written]) == (expected,)
    assert parse_input_shapes(written) == (expected,)


def test_each_entry_is_an_input():
    written = [["1*3*224*224"], ["1*3*512*512"]]
    assert [spec.shapes for spec in parse_input_shapes(written)] == [((1, 3, 224, 224),), ((1, 3, 512, 512),)]
    mixed = ["1*3", (2, 4), {"long": {"range": ["1*1", "8*64"]}}, "scalar", ()]
    assert [spec.kind for spec in parse_input_shapes(mixed)] == ["fixed", "fixed", "range", "fixed", "fixed"]


shapes = st.lists(st.integers(1, 40), max_size=5).map(tuple)
dtypes = st.sampled_from(sorted(ELEMENT_TYPES.items())).map(lambda item: item[1])


@st.composite
def specs(draw, count=None):
    kind = draw(st.sampled_from(["fixed", "separate", "range"]))
    dtype = draw(dtypes)
    if kind == "fixed":
        return InputSpec(kind, (draw(shapes),), dtype)
    rank = draw(st.integers(0, 4))
    rows = st.lists(st.integers(1, 40), min_size=rank, max_size=rank)
    if kind == "separate":
        size = count or draw(st.integers(1, 4))
        return InputSpec(kind, tuple(tuple(draw(rows)) for _ in range(size)), dtype)
    columns = [sorted(draw(st.lists(st.integers(1, 40), min_size=3, max_size=3))) for _ in range(rank)]
    return InputSpec(kind, tuple(tuple(column[i] for column in columns) for i in range(3)), dtype)


@given(specs())
def test_a_spec_survives_writing_and_reading(spec):
    assert parse_input_shapes([spec.entry]) == (spec,)
    assert parse_input_shapes(spec.entry) == (spec,)
    assert str(spec) == repr(spec.entry)


@given(st.lists(specs(count=2), min_size=1, max_size=4))
def test_several_specs_survive_writing_and_reading(many):
    assert parse_input_shapes([spec.entry for spec in many]) == tuple(many)


@given(shapes.filter(bool), st.lists(st.sampled_from(["", " ", "\t", "  "]), min_size=12, max_size=12))
def test_blanks_and_leading_zeros_say_nothing(shape, blanks):
    parts = [f"{blanks[2 * i]}{'0' * (i % 3)}{size}{blanks[2 * i + 1]}" for i, size in enumerate(shape)]
    assert parse_input_shapes("*".join(parts)) == (InputSpec("fixed", (shape,)),)


@given(specs())
def test_profiles_dims_and_types_agree(spec):
    dims = spec.dims
    tensor_spec = spec.spec("x")
    assert tensor_spec.dtype == spec.dtype and len(tensor_spec.shape) == spec.rank
    for low, opt, high in spec.profiles:
        assert spec.admits(low) and spec.admits(opt) and spec.admits(high)
        for index, size in enumerate(tensor_spec.shape):
            if index in dims:
                assert size == Dim(f"x_{index}", *dims[index])
                assert size.min < size.max and size.min <= low[index] <= opt[index] <= high[index] <= size.max
            else:
                assert low[index] == opt[index] == high[index] == size


@given(specs(), st.data())
def test_admits_against_a_literal_reading_of_the_kinds(spec, data):
    shape = data.draw(st.one_of(shapes, st.sampled_from(spec.shapes)))
    if spec.kind == "range":
        low, _, high = spec.shapes
        expected = len(shape) == len(low) and not any(size not in range(a, b + 1) for a, size, b in zip(low, shape, high))
    else:
        expected = list(shape) in [list(each) for each in spec.shapes]
    assert spec.admits(shape) is expected
    assert spec.admits(torch.Size(shape)) is expected


def test_the_dims_of_separate_shapes_come_from_the_largest():
    (spec,) = parse_input_shapes({"separate": ["1*8*9", "4*8*2", "2*8*7"]})
    assert spec.dims == {0: (1, 2, 4), 2: (2, 7, 9)}
    assert spec.profiles == tuple((shape, shape, shape) for shape in spec.shapes)
    expected = TensorSpec((Dim("ids_0", 1, 2, 4), 8, Dim("ids_2", 2, 7, 9)), torch.float32, torch.device("cuda"))
    assert spec.spec("ids", "cuda") == expected


def test_a_range_that_varies_nowhere_is_static():
    (spec,) = parse_input_shapes({"range": ["2*3", "2*3"]})
    assert spec.dims == {}
    assert not spec.spec("x").is_dynamic


def test_separate_shapes_go_together_by_position():
    specs = parse_input_shapes([{"separate": ["1*4", "2*4"]}, "7", {"separate": ["1*9", "2*9"]}, {"range": ["1", "5"]}])
    assert combined_profiles(specs) == (
        Profile(((1, 4), (7,), (1, 9), (1,)), ((1, 4), (7,), (1, 9), (5,)), ((1, 4), (7,), (1, 9), (5,))),
        Profile(((2, 4), (7,), (2, 9), (1,)), ((2, 4), (7,), (2, 9), (5,)), ((2, 4), (7,), (2, 9), (5,))),
    )


def test_equal_profiles_are_given_once():
    specs = parse_input_shapes([{"separate": ["3", "3", "4"]}, {"separate": ["1", "1", "1"]}])
    assert [profile.min for profile in combined_profiles(specs)] == [((3,), (1,)), ((4,), (1,))]


def test_one_range_is_one_profile():
    (profile,) = combined_profiles(parse_input_shapes({"range": ["1*2", "3*2", "9*2"]}))
    assert profile == Profile(((1, 2),), ((3, 2),), ((9, 2),))


@pytest.mark.parametrize("word", ELEMENT_TYPES)
def test_every_element_type_can_be_written(word):
    (spec,) = parse_input_shapes({word: "2*3"})
    assert spec.dtype == ELEMENT_TYPES[word]
    assert ELEMENT_TYPES[element_type_name(spec.dtype)] == spec.dtype


def test_int_is_32_bits_and_long_is_64():
    assert [spec.dtype for spec in parse_input_shapes([{"int": "1"}, {"long": "1"}])] == [torch.int32, torch.int64]
    assert element_type_name(torch.int64) == "long" and element_type_name(torch.complex64) == "complex64"


BAD = {
    "none": (None, r"input_shapes is None, of type NoneType"),
    "a number": (224, r"input_shapes is 224, of type int"),
    "a set": ({"1*3"}, r"of type set"),
    "a tensor": (torch.zeros(2, 3), r"input_shapes is a tensor of shape \(2, 3\)"),
    "an array": ([np.array([1, 3])], r"a shape is a string such as .*, not array"),
    "an empty list": ([], r"at least one input tensor"),
    "an empty tuple": ((), r"at least one input tensor"),
    "an empty dict": ({}, r"a dict has one key, .* not 0"),
    "two keys": ({"range": ["1", "2"], "int": "1"}, r"a dict has one key, .* not 2"),
    "a key that is a number": ({1: "1"}, r"a key is a string .*, not 1"),
    "an unknown key": ({"dynamic": ["1", "2"]}, r"'dynamic' in the key 'dynamic' is neither"),
    "a slip in a key": ({"rnage": ["1", "2"]}, r"did you mean 'range'\?"),
    "upper case": ({"LONG": "1"}, r"did you mean 'long'\?"),
    "a slip in a joined key": ({"range,flaot": ["1", "2"]}, r"'flaot' in the key 'range,flaot' .* did you mean 'float'\?"),
    "an empty word": ({"range,": ["1", "2"]}, r"'' in the key 'range,'"),
    "two element types": ({"int,float": "1"}, r"the element type 'float' comes after 'int'"),
    "nested element types": ({"int": {"half": "1"}}, r"the element type 'half' comes after 'int'"),
    "two kinds": ({"range,separate": ["1", "2"]}, r"'separate' comes after 'range'"),
    "nested kinds": ({"separate": {"range": ["1", "2"]}}, r"'range' comes after 'separate'"),
    "an empty string": ("", r"the shape is empty; .* 'scalar'"),
    "blanks": (["  "], r"the shape is empty; .* 'scalar'"),
    "letters": ("batch*3", r"'batch' in 'batch\*3' is no size"),
    "joined by x": ("1x3x224", r"the sizes in '1x3x224' are to be joined by \*"),
    "joined by commas": ("1, 3, 224", r"the sizes in '1, 3, 224' are to be joined by \*"),
    "joined by blanks": ("1 3 224", r"the sizes in '1 3 224' are to be joined by \*"),
    "a star too many": ("1**3", r"'1\*\*3' lacks a number beside a \*"),
    "a trailing star": ("1*3*", r"'1\*3\*' lacks a number beside a \*"),
    "minus one": ("-1*3", r"'-1' is no size; a size that varies"),
    "a question mark": ("?*3", r"'\?' is no size; a size that varies"),
    "a fraction": ("1.5*3", r"'1\.5' in '1\.5\*3' is no size"),
    "another negative size": ("1*-3", r"'-3' in '1\*-3' is no size"),
    "zero": ("0*3", r"the shape 0\*3 has the size 0; sizes are at least 1"),
    "a negative integer": ((1, -3), r"the shape 1\*-3 has the size -3"),
    "a huge size": ("1*2147483648", r"has the size 2147483648; the largest is 2147483647"),
    "thousands of digits": ("9" * 5000, r"a size has 5000 digits"),
    "too many elements": ("224224*224224*3", r"has 150,829,206,528 elements; the most is"),
    "too many dimensions": ("*".join("1" * 65), r"65 dimensions; a tensor has at most 64"),
    "a boolean": ([True, 3], r"input_shapes\[0\] = True: a shape is a string .*, not True"),
    "a float": ([(1, 3.0)], r"a list of 2 is not one shape"),
    "two shapes in a list": ([["1*3", "2*3"]], r"a list of 2 is not one shape; several shapes of an input are \{'separate'"),
    "an empty entry": (["1*3", []], r"input_shapes\[1\] = \[\]: an empty list is not one shape"),
    "lists too deep": ([[["1*3"]]], r"a shape is a string .*, not \['1\*3'\]"),
    "an entry that is none": (["1*3", None], r"input_shapes\[1\] = None: a shape is a string"),
    "a tensor as entry": ([torch.zeros(2, 3)], r"a tensor is no shape; give example tensors as test_data"),
    "a range of one string": ({"range": "1*3"}, r"'range' takes a list of shapes, not '1\*3'"),
    "a range of integers": ({"range": [1, 3]}, r"'range' takes a list of shapes, not \[1, 3\]"),
    "a range of one": ({"range": ["1*3"]}, r"'range' takes \[min, max\] or \[min, opt, max\], not 1 shapes"),
    "a range of four": ({"range": ["1", "2", "3", "4"]}, r"not 4 shapes"),
    "a range of none": ({"range": []}, r"'range' takes \[min, max\] or \[min, opt, max\], not 0 shapes"),
    "a range of dicts": ({"range": [{"int": "1"}, "2"]}, r"a shape is a string .*, not \{'int': '1'\}"),
    "a range upside down": ({"range": ["4*3", "1*3"]}, r"smallest size of dimension 0 is 4, more than the largest, 1"),
    "an opt outside": ({"range": ["1*3", "9*3", "8*3"]}, r"the opt size of dimension 0 is 9, not between 1 and 8"),
    "ranks of a range": ({"range": ["1*3", "1*3*4"]}, r"1\*3 has 2 and 1\*3\*4 has 3"),
    "ranks of separate shapes": ({"separate": ["scalar", "1"]}, r"scalar has 0 and 1 has 1"),
    "no separate shapes": ({"separate": []}, r"'separate' takes at least one shape"),
    "separate of one string": ({"separate": "1*3"}, r"'separate' takes a list of shapes, not '1\*3'"),
    "separate shapes of different counts": (
        [{"separate": ["1", "2"]}, "3", {"separate": ["1", "2", "3"]}],
        r"as many of each, but input_shapes\[0\] has 2 and input_shapes\[2\] has 3",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_its_own_message(case):
    written, message = BAD[case]
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        parse_input_shapes(written)
    text = str(caught.value)
    assert text.startswith("input_shapes") or text.startswith("the k-th")
    assert text.endswith(GRAMMAR)
    assert caught.value.__cause__ is None and len(text) < 1500


def test_the_messages_are_distinct():
    texts = {}
    for case, (written, _) in BAD.items():
        with pytest.raises(TiaccError) as caught:
            parse_input_shapes(written)
        texts.setdefault(str(caught.value), []).append(case)
    assert {tuple(cases) for cases in texts.values() if len(cases) > 1} == set()


def test_the_entry_is_quoted_and_cut():
    with pytest.raises(InvalidArgumentError, match=re.escape("input_shapes[1] = {'range': ['1*3', ")):
        parse_input_shapes(["1*3", {"range": ["1*3", "9"]}])
    with pytest.raises(InvalidArgumentError) as caught:
        parse_input_shapes("z" * 10_000)
    assert "zzz..." in str(caught.value)


@settings(max_examples=300)
@given(st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.text(alphabet="1*3 x,-", max_size=6),
    lambda inner: st.lists(inner, max_size=3)
    | st.tuples(inner, inner)
    | st.dictionaries(st.sampled_from(["range", "int", "separate", "range,long", "half", "", "x"]), inner, max_size=2),
    max_leaves=8,
))
def test_whatever_comes_is_read_or_refused(written):
    try:
        specs = parse_input_shapes(written)
    except InvalidArgumentError:
        return
    assert specs and all(1 <= size <= MAX_SIZE for spec in specs for shape in spec.shapes for size in shape)
    assert parse_input_shapes([spec.entry for spec in specs]) == specs


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("dynamic", ((1,),)), r"'fixed', 'separate' or 'range', not 'dynamic'"),
        (("fixed", ((1,), (2,))), r"'fixed' takes 1 shape, not 2"),
        (("range", ((1,), (2,))), r"'range' takes 3 shapes, not 2"),
        (("separate", ()), r"'separate' takes 1 shape, not 0"),
        (("fixed", ((1,),), torch.complex64), r"inputs of type torch.complex64 are not supported"),
    ],
)
def test_a_spec_checks_itself(args, message):
    with pytest.raises(InvalidArgumentError, match=message):
        InputSpec(*args)

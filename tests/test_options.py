import dataclasses
import inspect
import pickle
from pathlib import Path

import pytest
import torch

from tiacc.errors import InvalidArgumentError
from tiacc.options import DEFAULT_TOLERANCE, Options
from tiacc.passes import RewriteRule, default
from tiacc.passes.instruments import TimingInstrument

EDITS, TIMER = default().without("cast-half"), TimingInstrument()
RULE = RewriteRule("negate-twice", lambda x: torch.ops.aten.neg(torch.ops.aten.neg(x)), lambda x: x)


def a_pass(gm, ctx):
    return 0


def test_the_defaults_are_valid_and_equal():
    assert Options() == Options() == Options.from_fields() == Options.from_fields(None)


def test_every_field_is_documented():
    documented = inspect.getdoc(Options)
    for field in dataclasses.fields(Options):
        assert f"\n    {field.name}: " in documented


@pytest.mark.parametrize(
    ("field", "given", "kept"),
    [
        ("backend", "auto", "auto"),
        ("backend", " openvino ", "openvino"),
        ("backend", "tensorrt, cudnn", ("tensorrt", "cudnn")),
        ("backend", ["tensorrt", "cudnn"], ("tensorrt", "cudnn")),
        ("backend", ("reference",), "reference"),
        ("half_dtype", None, None),
        ("half_dtype", "bf16", torch.bfloat16),
        ("half_dtype", "half", torch.float16),
        ("half_dtype", torch.float16, torch.float16),
        ("keep_fp32", "softmax", ("softmax",)),
        ("keep_fp32", "softmax, *norm*", ("softmax", "*norm*")),
        ("keep_fp32", ["softmax", "*norm*"], ("softmax", "*norm*")),
        ("passes", None, None),
        ("passes", "fold-batch-norm, cast-half", "fold-batch-norm, cast-half"),
        ("passes", ["fold-batch-norm", a_pass], ("fold-batch-norm", a_pass)),
        ("passes", a_pass, (a_pass,)),
        ("passes", [], ()),
        ("passes", EDITS, EDITS),
        ("passes", RULE, (RULE,)),
        ("stop_after", "cast-half", "cast-half"),
        ("fuel", 0, 0),
        ("fuel", None, None),
        ("instruments", TIMER, (TIMER,)),
        ("instruments", [TIMER], (TIMER,)),
        ("tolerance", 1, 1.0),
        ("tolerance", 0, 0.0),
        ("tolerance", {"float32": 1}, {"float32": 1.0}),
        ("on_accuracy_failure", "raise", "raise"),
        ("require_speedup", 2, 2.0),
        ("target", "sm89", ("sm89",)),
        ("target", "sm80,sm100a", ("sm80", "sm100a")),
        ("target", None, ()),
        ("target", "", ()),
        ("tuning_seconds", 0, 0.0),
        ("num_threads", 2, 2),
        ("cache_dir", "/tmp", Path("/tmp")),
        ("verbose", False, False),
    ],
)
def test_values_are_put_into_one_form(field, given, kept):
    options = Options(**{field: given})
    assert getattr(options, field) == kept and type(getattr(options, field)) is type(kept)
    assert Options.from_fields(**{field: given}) == options
    assert dataclasses.replace(options, seed=3) == Options(**{field: given}, seed=3)


def test_fields_are_merged_over_options():
    base = Options(seed=3, backend="reference")
    merged = Options.from_fields(base, seed=4, verbose=True)
    assert (merged.seed, merged.backend, merged.verbose) == (4, "reference", True)
    assert base.seed == 3


def test_options_do_not_change_and_can_be_pickled():
    options = Options(tolerance={"float32": 1e-3}, keep_fp32=("softmax",))
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.seed = 1
    assert pickle.loads(pickle.dumps(options)) == options


def test_a_table_given_is_not_shared():
    table = {"float32": 1e-3}
    options = Options(tolerance=table)
    table["float32"] = 1.0
    assert options.tolerance_for("float32") == 1e-3


def test_backends():
    assert Options().backends is None
    assert Options(backend="openvino").backends == ("openvino",)
    assert Options(backend="a,b").backends == ("a", "b")


def test_tolerance_by_arithmetic():
    assert Options().tolerance_for(torch.float32) == DEFAULT_TOLERANCE["float32"] == 1e-5
    assert Options().tolerance_for("tf32") == DEFAULT_TOLERANCE["tf32"]
    assert Options(tolerance={"bfloat16": 0.5}).tolerance_for(torch.bfloat16) == 0.5
    assert Options(tolerance={"bfloat16": 0.5}).tolerance_for(torch.float16) == DEFAULT_TOLERANCE["float16"]
    assert Options(tolerance=0.25).tolerance_for(torch.float64) == 0.25
    with pytest.raises(InvalidArgumentError, match=r"no tolerance is known for int8; known are float64, "):
        Options().tolerance_for(torch.int8)


BAD = [
    ({"backend": ""}, r"the option backend is ''; it must be a string or a sequence of strings, none empty"),
    ({"backend": ()}, r"backend is \(\); it must be the name of a backend"),
    ({"backend": 3}, r"backend is 3; it must be a string or a sequence of strings"),
    ({"backend": ["a", 3]}, r"backend is \['a', 3\]; .* none empty"),
    ({"backend": "auto,openvino"}, r"backend is 'auto,openvino'; .* not both"),
    ({"backend": "a,a"}, r"the names of different backends"),
    ({"half_dtype": "fp8"}, r"half_dtype is 'fp8'; it must be torch\.float16"),
    ({"half_dtype": torch.float32}, r"half_dtype is torch\.float32"),
    ({"half_dtype": 16}, r"half_dtype is 16"),
    ({"keep_fp32": 5}, r"keep_fp32 is 5"),
    ({"keep_fp32": [""]}, r"keep_fp32 is \[''\]; .* none empty"),
    ({"passes": ""}, r"passes is ''; it must be a text such as"),
    ({"passes": 7}, r"passes is 7"),
    ({"passes": ["fold", 7]}, r"passes is \['fold', 7\]; .* of which 7 is neither"),
    ({"stop_after": ""}, r"stop_after is ''; it must be the name of a pass"),
    ({"fuel": -1}, r"fuel is -1; it must be a whole number, at least 0"),
    ({"instruments": [len]}, r"instruments, which have the methods before and after, and <built-in function len> has not"),
    ({"tolerance": -1e-3}, r"tolerance is -0\.001; it must be a number, at least 0"),
    ({"tolerance": float("nan")}, r"tolerance is nan"),
    ({"tolerance": "tight"}, r"tolerance is 'tight'"),
    ({"tolerance": {"fp32": 1e-3}}, r"with the keys float64, float32, tf32, .* of which 'fp32' is none"),
    ({"tolerance": {"float32": "x"}}, r"the option tolerance\['float32'\] is 'x'"),
    ({"on_accuracy_failure": "ignore"}, r"on_accuracy_failure is 'ignore'; it must be 'repair' or 'raise'"),
    ({"require_speedup": 0}, r"require_speedup is 0; it must be a number greater than 0"),
    ({"require_speedup": True}, r"require_speedup is True"),
    ({"min_segment_nodes": 0}, r"min_segment_nodes is 0; it must be a whole number, at least 1"),
    ({"min_segment_nodes": 2.0}, r"min_segment_nodes is 2\.0"),
    ({"workspace_bytes": -1}, r"workspace_bytes is -1; it must be a whole number, at least 0"),
    ({"workspace_bytes": "1GB"}, r"workspace_bytes is '1GB'"),
    ({"target": "rtx4090"}, r"target is 'rtx4090'; it must be compute capabilities such as 'sm89', of which 'rtx4090' is none"),
    ({"target": [89]}, r"target is \[89\]"),
    ({"check_network": 1}, r"check_network is 1; it must be True or False"),
    ({"neutral_names": "yes"}, r"neutral_names is 'yes'; it must be True or False"),
    ({"tuning_seconds": -1}, r"tuning_seconds is -1"),
    ({"timing_seconds": 0}, r"timing_seconds is 0; it must be a number greater than 0"),
    ({"timing_seconds": float("inf")}, r"timing_seconds is inf"),
    ({"num_threads": 0}, r"num_threads is 0"),
    ({"seed": -1}, r"seed is -1"),
    ({"seed": 2**64}, r"seed is 18446744073709551616"),
    ({"cache_dir": 3}, r"cache_dir is 3; it must be the path of a directory, or None"),
    ({"cache_dir": __file__}, r"cache_dir is .*test_options\.py'; it must be the path of a directory, which this is not"),
    ({"verbose": "yes"}, r"verbose is 'yes'; it must be True or False"),
    ({"tolerence": 1e-3}, r"there is no option 'tolerence'; did you mean 'tolerance'\?"),
    ({"zzz": 1}, r"there is no option 'zzz'; the options are backend, half_dtype"),
    ({"options": {"seed": 1}}, r"options is of type dict; give tiacc\.Options or keyword arguments"),
]


@pytest.mark.parametrize(("fields", "message"), BAD, ids=[repr(fields)[:40] for fields, _ in BAD])
def test_bad_options_are_refused_with_their_own_message(fields, message):
    with pytest.raises(InvalidArgumentError, match=message):
        Options.from_fields(**fields)

import dataclasses
import html.parser
import json
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from tiacc.errors import InvalidArgumentError
from tiacc.report import (
    SCHEMA_VERSION,
    DataInfo,
    FallbackRow,
    HardwareEnvironment,
    Latency,
    OptimizationResult,
    OptimizedReport,
    OutputError,
    PassRow,
    SegmentRow,
    Software,
)
from tiacc.report_view import WIDTH

BASELINE = Latency(10.0, 10.4, 11.5, 10.1, 200, 0.012)
OPTIMIZED = Latency(4.38, 4.5, 5.1, 4.4, 400, 0.004)


def make_report(**fields):
    return OptimizedReport(
        **{
            "software_environment": [Software("torch", "2.14.1"), Software("TensorRT", "not installed")],
            "hardware_environment": HardwareEnvironment("CPU", "AMD EPYC (AVX2)"),
            "test_data_info": DataInfo("tiacc provided", "(1, 3, 224, 224)", "float32"),
            "optimization_result": OptimizationResult.of(BASELINE, OPTIMIZED),
            "tiacc_version": "0.1.0",
            "baseline_latency": BASELINE,
            "optimized_latency": OPTIMIZED,
            "baseline_peak_bytes": 123_400_000,
            "optimized_peak_bytes": 45_600_000,
            "outputs": [OutputError("output", 1.2e-6, 3e-5, 0.99999999, 2e-7)],
            "tolerance": 1e-5,
            "passes": [
                PassRow("fold-batch-norm", 50, 12.2),
                PassRow("cast-half", 1, 1.0),
                PassRow("fold-batch-norm", 3, 1.2, region=1),
            ],
            "segments": [
                SegmentRow(0, "openvino", 120, "float32", 2512.3, 97_500_000, ("float32[1, 3]",), ("int64[1]",), border_bytes=600_000)
            ],
            "fallbacks": [
                FallbackRow("aten.fft_fft.default", "fft", {"openvino": "no converter", "reference": "told not to"}),
                FallbackRow("aten.nonzero.default", "nonzero", {"openvino": "size depends on data"}, "model.py:12"),
                FallbackRow("aten.nonzero.default", "nonzero_1", {"openvino": "size depends on data"}, "model.py:14"),
                FallbackRow("aten.nonzero.default", "nonzero_2", {"openvino": "another reason"}, "model.py:16"),
            ],
            "actions": ["kept softmax in float32"],
            "warnings": ["the model was in training mode"],
            "seconds": 12.34,
            **fields,
        }
    )


def bare_report():
    return OptimizedReport([], HardwareEnvironment("GPU", "H200"), DataInfo("user provided", "(1,)", "float32"))


def test_the_originals_fields_come_first_with_the_originals_values():
    data = make_report().to_dict()
    assert list(data)[:4] == ["software_environment", "hardware_environment", "test_data_info", "optimization_result"]
    assert data["software_environment"][0] == {"software": "torch", "version": "2.14.1"}
    assert data["hardware_environment"] == {"device_type": "CPU", "microarchitecture": "AMD EPYC (AVX2)"}
    assert data["test_data_info"] == {
        "test_data_source": "tiacc provided",
        "test_data_shape": "(1, 3, 224, 224)",
        "test_data_type": "float32",
    }
    assert data["optimization_result"] == {
        "baseline_time": "10.00 ms",
        "optimized_time": "4.38 ms",
        "baseline_qps": "100.00",
        "optimized_qps": "228.31",
        "speedup": "2.28",
    }
    assert data["schema_version"] == SCHEMA_VERSION


def test_what_was_not_measured_says_so():
    assert set(dataclasses.asdict(OptimizationResult.of(None, None)).values()) == {"not measured"}
    half = OptimizationResult.of(BASELINE, None)
    assert (half.baseline_qps, half.optimized_time, half.speedup) == ("100.00", "not measured", "not measured")
    assert bare_report().speedup is None
    assert "speed not measured" in str(bare_report())


def test_fields_can_be_reached_as_items():
    report = make_report()
    assert report["optimization_result"]["speedup"] == "2.28"
    assert report["passes"][0]["changes"] == 50
    assert report.speedup == pytest.approx(10 / 4.38)
    with pytest.raises(KeyError):
        report["speed"]


@pytest.mark.parametrize("report", [make_report(), bare_report()])
def test_json_round_trip(report):
    assert OptimizedReport.from_dict(report.to_dict()) == report
    assert OptimizedReport.from_dict(json.loads(report.to_json())) == report
    assert report.to_json(indent=None).count("\n") == 0


words = st.text(max_size=12)
numbers = st.floats(allow_nan=False)


@given(
    st.lists(st.builds(OutputError, words, numbers, numbers, numbers, numbers), max_size=3),
    st.lists(st.builds(FallbackRow, words, words, st.dictionaries(words, words, max_size=2), words, st.integers()), max_size=3),
    st.lists(st.builds(SegmentRow, st.integers(), words, st.integers(), words, numbers, st.integers()), max_size=3),
    st.lists(words, max_size=2),
    st.none() | numbers,
)
def test_any_content_survives_json_and_has_a_text(outputs, fallbacks, segments, warnings, tolerance):
    report = make_report(outputs=outputs, fallbacks=fallbacks, segments=segments, warnings=warnings, tolerance=tolerance)
    assert OptimizedReport.from_dict(json.loads(report.to_json())) == report
    assert isinstance(str(report), str) and report._repr_html_()


def test_numbers_that_json_lacks_are_written_as_text_and_read_back():
    report = make_report(outputs=[OutputError("y", float("inf"), float("nan"), -float("inf"), 0.5)])
    parsed = json.loads(report.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert parsed["outputs"][0] == {"name": "y", "max_abs": "inf", "max_rel": "nan", "cosine": "-inf", "rel_norm": 0.5, "top1": None}
    again = OptimizedReport.from_dict(parsed).outputs[0]
    assert again.max_abs == float("inf") and again.max_rel != again.max_rel and again.cosine == -float("inf")


def test_an_integer_is_read_as_a_float_where_one_is_due():
    data = make_report().to_dict()
    data["seconds"] = 12
    assert type(OptimizedReport.from_dict(data).seconds) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(schema_version=99), r"schema version 99; this tiacc reads 1"),
        (lambda data: data.pop("schema_version"), r"schema version None"),
        (lambda data: data.update(more=1, even_more=2), r"report has the unknown fields even_more, more"),
        (lambda data: data.pop("test_data_info"), r"report lacks the fields test_data_info"),
        (lambda data: data["hardware_environment"].pop("device_type"), r"\.hardware_environment lacks the fields device_type"),
        (lambda data: data.update(passes={}), r"report\.passes is dict, not list"),
        (lambda data: data["passes"][2].update(changes="3"), r"report\.passes\[2\]\.changes is str, not int"),
        (lambda data: data["passes"][1].update(changes=True), r"report\.passes\[1\]\.changes is bool, not int"),
        (lambda data: data["outputs"][0].update(max_abs="much"), r"report\.outputs\[0\]\.max_abs is 'much', not a number"),
        (lambda data: data["fallbacks"][0].update(reasons={"openvino": 3}), r"reasons\['openvino'\] is int, not str"),
        (lambda data: data["segments"].append(None), r"report\.segments\[1\] is NoneType, not dict"),
    ],
)
def test_what_is_no_report_is_refused(change, message):
    data = make_report().to_dict()
    change(data)
    with pytest.raises(InvalidArgumentError, match=message):
        OptimizedReport.from_dict(data)


def test_a_report_is_a_dict():
    with pytest.raises(InvalidArgumentError, match="a report is a dict, not str"):
        OptimizedReport.from_dict("{}")


def test_save_json(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("older")
    make_report().save_json(path)
    make_report().save_json(str(path))
    assert OptimizedReport.from_dict(json.loads(path.read_text("utf-8"))) == make_report()
    assert [*tmp_path.iterdir()] == [path]


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    path.write_text("older")

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InvalidArgumentError, match=r"cannot be written to .*report\.json: No space left on device"):
        make_report().save_json(path)
    assert path.read_text() == "older" and [*tmp_path.iterdir()] == [path]


def test_a_folder_that_is_missing(tmp_path):
    with pytest.raises(InvalidArgumentError, match=r"report\.json: No such file or directory"):
        make_report().save_json(tmp_path / "missing" / "report.json")


TEXT = """\
tiacc 0.1.0: speed-up 2.28 at level 0, optimized in 12.3 s
  CPU: AMD EPYC (AVX2)
  test data, tiacc provided: (1, 3, 224, 224) float32

Latency              p50     ±        p90        p99       mean  calls/s  runs
  input model  10.000 ms  1.2%  10.400 ms  11.500 ms  10.100 ms   100.00   200
  optimized     4.380 ms  0.4%   4.500 ms   5.100 ms   4.400 ms   228.31   400

GPU memory of a call      peak
  input model         123.4 MB
  optimized            45.6 MB

Accuracy   max abs   max rel  rel norm      cosine
  output  1.20e-06  3.00e-05  2.00e-07  0.99999999
  accepted: a rel norm of 1e-05

Done about it
  kept softmax in float32

Passes             changes    ms
  fold-batch-norm       53  13.4
  cast-half              1   1.0

Segments      operators    dtype  build ms     size  in and out
  0 openvino        120  float32     2,512  97.5 MB      0.6 MB

Left in Torch: 4 operators
  2 × aten.nonzero.default: openvino: size depends on data (at model.py:12, model.py:14)
  1 × aten.fft_fft.default: openvino: no converter; reference: told not to
  1 × aten.nonzero.default: openvino: another reason (at model.py:16)

Software
  torch 2.14.1, TensorRT not installed

Warnings
  the model was in training mode"""


def test_the_text():
    assert str(make_report()) == TEXT


def test_a_level_that_did_not_happen_is_said_to_be_so():
    report = make_report(requested_level=1, achieved_level=0)
    assert "at level 0 (level 1 was asked for)" in str(report)
    assert "asked for" not in str(make_report(requested_level=1, achieved_level=1))


def test_sections_without_content_are_left_out():
    assert str(bare_report()).count("\n\n") == 0 or "Latency" not in str(bare_report())
    for title in ("Accuracy", "Passes", "Segments", "Left in Torch", "Warnings", "Done about it"):
        assert title not in str(bare_report())


def test_long_names_and_notes_stay_within_the_width():
    long = "block." * 60
    report = make_report(
        outputs=[OutputError(long, 1.0, 1.0, 1.0, 1.0)],
        passes=[PassRow(long, 10**9, 1e9)],
        segments=[SegmentRow(0, long, 10**6, "float32+bfloat16", 1e6, 10**11)],
        fallbacks=[FallbackRow(long, "x", {"openvino": "why " * 100}, f"file{i}.py:{i}") for i in range(9)],
        warnings=["word " * 100, "x" * 500],
    )
    lines = str(report).split("\n")
    assert max(map(len, lines)) <= WIDTH
    assert any("..." in line and line.startswith("  block.") for line in lines)
    assert "file0.py:0, file1.py:1, file2.py:2, ...)" in " ".join(line.strip() for line in lines)


def test_segments_of_several_regions_are_told_apart():
    rows = [SegmentRow(0, "openvino", 3, "float32", 1.0, 10), SegmentRow(0, "openvino", 4, "float32", 1.0, 10, region=1)]
    assert "\n  0.0 openvino " in str(make_report(segments=rows)) and "\n  1.0 openvino " in str(make_report(segments=rows))


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_html_is_well_formed_and_escaped():
    page = make_report(warnings=["<script>alert(1)</script> & more"])._repr_html_()
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == [] and "<script>" not in page
    assert "<script>alert(1)</script> & more" in tags.text
    assert {"fold-batch-norm", "53", "0 openvino", "228.31", "Left in Torch: 4 operators"} <= {*tags.text}

"""The two backends and the bytes of their engines."""

from __future__ import annotations

import json

import pytest
import torch

from tests.backends.tensorrt.harness import graph_of, needs_rtx
from tiacc.backends.base import Backend, BuildSpec, Engine, Profile, backends
from tiacc.backends.tensorrt.backend import TensorRTBackend, TensorRTRTXBackend
from tiacc.backends.tensorrt.payload import EnginePayload
from tiacc.errors import BackendUnavailableError, EngineFormatError
from tiacc.graph import specs
from tiacc.graph.specs import Dim, TensorSpec

aten = torch.ops.aten
no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")

_PAYLOAD = EnginePayload(
    "tensorrt_rtx",
    "1.7.1",
    ("sm86", "sm89"),
    ("input_0",),
    ("output_0", "output_1"),
    (TensorSpec((Dim("n", 1, 2, 4), 3), torch.float16),),
    (TensorSpec((2,), torch.int64), TensorSpec((), torch.bool)),
    (Profile(((1, 3),), ((2, 3),), ((4, 3),)),),
    b"plan bytes",
)


def test_names_and_protocol() -> None:
    for cls in (TensorRTBackend, TensorRTRTXBackend):
        assert backends.get(cls.name) is cls
        assert isinstance(cls(), Backend)
        assert cls.device_types == ("cuda",)


def test_payload_survives_a_round_trip() -> None:
    assert EnginePayload.from_bytes(_PAYLOAD.to_bytes()) == _PAYLOAD


def _with_header(**changes: object) -> bytes:
    data = _PAYLOAD.to_bytes()
    size = int.from_bytes(data[4:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.update(changes)
    text = json.dumps(header).encode()
    return data[:4] + len(text).to_bytes(4, "little") + text + data[8 + size :]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "begins with"),
        (b"PK\x03\x04 some other file", "begins with"),
        (_PAYLOAD.to_bytes()[:6], "header"),
        (_PAYLOAD.to_bytes()[:40], "header"),
        (_PAYLOAD.to_bytes()[:-3], "cut short"),
        (_with_header(format=99), "format 99"),
        (_with_header(inputs=[{"shape": [1]}]), "header"),
        (_with_header(inputs=3), "header"),
    ],
)
def test_damaged_payloads_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(EngineFormatError, match=message):
        EnginePayload.from_bytes(data)


@no_cuda
@needs_rtx
def test_available_says_what_is_missing() -> None:
    answer = TensorRTRTXBackend().available()
    assert not answer
    assert "CUDA device" in answer.reason
    assert TensorRTRTXBackend().version().startswith("1.")


@no_cuda
@needs_rtx
def test_builds_without_a_gpu_only_for_named_targets() -> None:
    backend = TensorRTRTXBackend()
    assert backend.can_build({"target": ["sm86"]})
    refusal = backend.can_build({})
    assert not refusal
    assert "target=" in refusal.reason


@no_cuda
@needs_rtx
def test_build_serialise_and_load() -> None:
    gm = graph_of(lambda x: aten.relu.default(x), 1)
    spec = BuildSpec(
        (TensorSpec((Dim("n", 1, 2, 4), 3), torch.float32),),
        (TensorSpec((Dim("n", 1, 2, 4), 3), torch.float32),),
        torch.device("cuda"),
        options={"target": ["sm86"]},
    )
    specs.propagate(gm, spec.inputs)
    backend = TensorRTRTXBackend()
    assert all(backend.supports(node) for node in gm.graph.nodes if node.op == "call_function")
    engine = backend.build(gm, spec)
    assert isinstance(engine, Engine)
    payload = EnginePayload.from_bytes(engine.serialize())
    assert payload.target == ("sm86",)
    assert payload.inputs == spec.inputs
    assert payload.profiles == (Profile(((1, 3),), ((2, 3),), ((4, 3),)),)
    assert payload.plan[:4] == b"vtrt"
    with pytest.raises(BackendUnavailableError, match=r"built for sm86.*device_type=1"):
        backend.load(engine.serialize())
    with pytest.raises(BackendUnavailableError, match="CUDA device"):
        engine.run([torch.randn(2, 3)])

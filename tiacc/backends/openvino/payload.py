"""The bytes of an engine: a JSON header, the model as OpenVINO's intermediate representation (IR), its weights.

Layout, little-endian: 8 bytes magic, ``uint32`` version, three ``uint64`` sizes in bytes (header, compressed XML, weights), the
header as JSON, the XML of the IR compressed with zlib, padding up to a multiple of 64, the weights.

The IR is what OpenVINO promises to read in later releases and on every processor. What it compiles from it (``export_model``) is
not: it belongs to one release and one instruction set, and saves about a quarter of the time of loading.
"""

from __future__ import annotations

import dataclasses
import json
import struct
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiacc.errors import EngineFormatError
from tiacc.graph.types import TensorSpec
from tiacc.runtime.blob import spec_from_json, spec_to_json

MAGIC = b"TIACCOV\x00"
VERSION = 2
"""Engines of version 1 say nothing of the range of indices."""

_PREFIX = struct.Struct("<8sIQQQ")
_ALIGNMENT = 64


@dataclass(frozen=True)
class Header:
    """What is known of an engine beside its model.

    Attributes:
        openvino: The version of OpenVINO that built it.
        inputs: The type of each input.
        outputs: The type of each output.
        parameters: For each input its place among the model's parameters, -1 for an input that the model does not read.
        integer_limits: For each input the largest magnitude of its values, 0 where there is no limit.
        precision: The precision hint that it is compiled with.
        num_threads: The threads that it was built for, 0 for as many as torch uses.
        static_shapes: The sets of input shapes, one shape an input, that get a model of fixed sizes each; none for one model
            that takes every size.
        index_ranges: For each input by which something is indexed the least and the greatest value that torch takes, None for others;
            none at all in engines of version 1.
    """

    openvino: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: tuple[int, ...]
    integer_limits: tuple[int, ...]
    precision: str
    num_threads: int
    static_shapes: tuple[tuple[tuple[int, ...], ...], ...] = ()
    index_ranges: tuple[tuple[int, int] | None, ...] = ()


def pack(header: Header, xml: bytes, weights: bytes) -> bytes:
    """Return the bytes of an engine."""
    fields = {field.name: getattr(header, field.name) for field in dataclasses.fields(header)}
    for name in ("inputs", "outputs"):
        fields[name] = [spec_to_json(spec) for spec in fields[name]]
    text = json.dumps(fields, sort_keys=True).encode()
    packed = zlib.compress(xml)
    prefix = _PREFIX.pack(MAGIC, VERSION, len(text), len(packed), len(weights))
    used = len(prefix) + len(text) + len(packed)
    return b"".join((prefix, text, packed, bytes(-used % _ALIGNMENT), weights))


def unpack(payload: bytes) -> tuple[Header, bytes, memoryview]:
    """Return the header, the XML and the weights that `pack` was given; the weights are not copied.

    Raises:
        EngineFormatError: The bytes are not those of an engine, or are damaged.
    """
    if len(payload) < _PREFIX.size or payload[: len(MAGIC)] != MAGIC:
        raise EngineFormatError("these bytes are not an engine of the openvino backend; optimize the model again")
    _, version, text_size, xml_size, weights_size = _PREFIX.unpack_from(payload)
    if version > VERSION:
        raise EngineFormatError(f"this openvino engine has format {version}, this tiacc reads up to {VERSION}; install a newer tiacc")
    text_end = _PREFIX.size + text_size
    xml_end = text_end + xml_size
    start = xml_end + -xml_end % _ALIGNMENT
    if len(payload) != start + weights_size:
        raise EngineFormatError(
            f"this openvino engine is truncated or damaged: it has {len(payload)} bytes, not {start + weights_size}; "
            "optimize the model again"
        )
    try:
        fields = json.loads(payload[_PREFIX.size : text_end])
        for name in ("inputs", "outputs"):
            fields[name] = map(spec_from_json, fields[name])
        for name in ("inputs", "outputs", "parameters", "integer_limits"):
            fields[name] = tuple(fields[name])
        fields["static_shapes"] = tuple(tuple(map(tuple, shapes)) for shapes in fields.get("static_shapes", ()))
        ranges = fields.get("index_ranges", ())
        fields["index_ranges"] = tuple(None if item is None else (int(item[0]), int(item[1])) for item in ranges)
        header = Header(**fields)
        xml = zlib.decompress(payload[text_end:xml_end])
    except (ValueError, TypeError, KeyError, AttributeError, zlib.error) as error:
        raise EngineFormatError(f"this openvino engine is damaged ({error}); optimize the model again") from error
    return header, xml, memoryview(payload)[start:]


def write_model(model: Any) -> tuple[bytes, bytes]:
    """Return an ``openvino.Model`` as XML and weights."""
    from tiacc.backends.openvino import library

    with tempfile.TemporaryDirectory(prefix="tiacc-") as folder:
        xml, weights = Path(folder, "model.xml"), Path(folder, "model.bin")
        library.openvino().serialize(model, str(xml), str(weights))
        return xml.read_bytes(), weights.read_bytes()


def read_model(xml: bytes, weights: memoryview) -> tuple[Any, Any]:
    """Return the ``openvino.Model`` of XML and weights, and what holds the weights, which it reads there and which must outlive it."""
    import ctypes

    import numpy as np

    from tiacc.backends.openvino import library

    ov = library.openvino()
    held = np.frombuffer(weights, dtype=np.uint8)
    # OpenVINO shares memory that is said to be writable only, and does not write into weights.
    shared = np.ctypeslib.as_array((ctypes.c_uint8 * held.size).from_address(held.ctypes.data))
    return library.core().read_model(xml, ov.Tensor(shared, shared_memory=True)), held

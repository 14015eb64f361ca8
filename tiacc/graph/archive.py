"""A graph as bytes, and back: nothing in them is executed when they are read.

Layout, little-endian: ``uint64`` length of the description, the description as JSON, padding up to a multiple of 64, the constants one
after the other, each padded likewise. Operators are written by their names (``"aten.relu.default"``), functions on sizes by theirs.
"""

from __future__ import annotations

import json
import math
import operator
import struct
from typing import Any

import torch
from torch import fx

from tiacc.errors import EngineFormatError, ExportError
from tiacc.graph import specs

_PREFIX = struct.Struct("<Q")
_ALIGNMENT = 64

_FUNCTIONS: dict[str, Any] = {
    **{f"{function.__module__}.{function.__name__}": function for function in specs.SCALAR_FUNCTIONS if hasattr(function, "__name__")},
    "operator.getitem": operator.getitem,
}
_NAMES = {function: name for name, function in _FUNCTIONS.items()}


def to_bytes(gm: fx.GraphModule) -> bytes:
    """Return a graph and its constants as bytes.

    Raises:
        ExportError: An argument of a node has no written form.
    """
    constants: list[torch.Tensor] = []
    nodes = [_written(gm, node, constants) for node in gm.graph.nodes]
    described = []
    parts: list[bytes] = []
    place = 0
    for data in constants:
        dense = data.detach().cpu().contiguous()
        raw = dense.flatten().view(torch.uint8).numpy().tobytes() if dense.numel() else b""
        described.append({"shape": list(dense.shape), "dtype": str(dense.dtype).removeprefix("torch."), "place": place, "size": len(raw)})
        padding = -len(raw) % _ALIGNMENT
        parts += [raw, bytes(padding)]
        place += len(raw) + padding
    text = json.dumps({"nodes": nodes, "constants": described}).encode()
    begin = _PREFIX.pack(len(text)) + text
    return b"".join((begin, bytes(-len(begin) % _ALIGNMENT), *parts))


def from_bytes(data: bytes) -> fx.GraphModule:
    """Return the graph that `to_bytes` wrote; its nodes have no values yet (`specs.propagate` gives them).

    Raises:
        EngineFormatError: The bytes are no graph, or an operator in it is unknown here.
    """
    try:
        (length,) = _PREFIX.unpack_from(data)
        described = json.loads(data[_PREFIX.size : _PREFIX.size + length])
        begin = _PREFIX.size + length
        begin += -begin % _ALIGNMENT
        tensors = [_constant(data, begin, item) for item in described["constants"]]
        return _read(described["nodes"], tensors)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise EngineFormatError(f"the graph of this engine cannot be read ({error}); optimize the model again") from error


def _written(gm: fx.GraphModule, node: fx.Node, constants: list[torch.Tensor]) -> dict[str, Any]:
    entry: dict[str, Any] = {"op": node.op, "name": node.name}
    if node.op == "get_attr":
        entry["constant"] = len(constants)
        constants.append(specs.fetch_attr(gm, str(node.target)))
    elif node.op == "call_function":
        target = node.target
        name = str(target) if isinstance(target, torch._ops.OpOverload) else _NAMES.get(target)
        if name is None:
            raise ExportError(f"{target}{specs.where(node)} has no name to be saved by")
        entry.update(target=name, args=_value(list(node.args), node), kwargs={key: _value(arg, node) for key, arg in node.kwargs.items()})
    elif node.op == "output":
        entry["args"] = _value(list(node.args), node)
    if "source" in node.meta:
        entry["source"] = str(node.meta["source"])
    return entry


def _value(value: Any, node: fx.Node) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, (list, tuple)):
        return [_value(item, node) for item in value]
    for kind in (torch.dtype, torch.memory_format, torch.layout):
        if isinstance(value, kind):
            return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": value.type}
    raise ExportError(f"the argument {value!r} of {node.target}{specs.where(node)} has no form to be saved in")


def _constant(data: bytes, begin: int, item: dict[str, Any]) -> torch.Tensor:
    dtype = getattr(torch, item["dtype"])
    raw = bytearray(data[begin + item["place"] : begin + item["place"] + item["size"]])
    if len(raw) != math.prod(item["shape"]) * dtype.itemsize:
        raise ValueError("a constant is cut short")
    return torch.frombuffer(raw, dtype=dtype).reshape(item["shape"]) if raw else torch.empty(item["shape"], dtype=dtype)


def _read(nodes: list[dict[str, Any]], constants: list[torch.Tensor]) -> fx.GraphModule:
    graph = fx.Graph()
    root = torch.nn.Module()
    known: dict[str, fx.Node] = {}
    for entry in nodes:
        name = entry["name"]
        if entry["op"] == "placeholder":
            node = graph.placeholder(name)
        elif entry["op"] == "get_attr":
            root.register_buffer(f"constant_{entry['constant']}", constants[entry["constant"]])
            node = graph.get_attr(f"constant_{entry['constant']}")
        elif entry["op"] == "call_function":
            kwargs = {key: _meant(arg, known) for key, arg in entry["kwargs"].items()}
            node = graph.create_node("call_function", _function(entry["target"]), tuple(_meant(entry["args"], known)), kwargs, name=name)
        else:
            node = graph.output(tuple(_meant(entry["args"], known)[0]))
        if "source" in entry:
            node.meta["source"] = entry["source"]
        known[name] = node
    return fx.GraphModule(root, graph)


def _function(name: str) -> Any:
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    namespace, op, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), op), overload)


def _meant(value: Any, known: dict[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_meant(item, known) for item in value]
    if isinstance(value, dict):
        ((kind, text),) = value.items()
        if kind == "node":
            return known[text]
        if kind == "float":
            return float(text)
        return torch.device(text) if kind == "device" else getattr(torch, text)
    return value

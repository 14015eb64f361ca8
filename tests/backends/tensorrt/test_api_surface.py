"""Every TensorRT name that the backend uses exists in each release that it supports.

Only one library can be run here. So the whole suite of converter cases is converted once for each release, with the backend told
that this release is installed, through a recorder that notes each name, each call of the network and each attribute of a layer.
What `builder` uses is found in its text.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from torch import fx

import tiacc.backends.tensorrt
from tests.backends.tensorrt import api, cases
from tests.backends.tensorrt.harness import needs_rtx
from tiacc.backends.tensorrt import builder, converters
from tiacc.backends.tensorrt.flavours import CAPABILITIES, Flavour, load_flavour, parse_version
from tiacc.backends.tensorrt.layers import Layers
from tiacc.graph.specs import TensorSpec

_BUILDING = {
    "config": "IBuilderConfig",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "tensor": "ITensor",
    "profile_item": "IOptimizationProfile",
}
_OWNERS: dict[str, dict[str, str]] = {
    "builder.py": _BUILDING,
    "conversion.py": _BUILDING,
    "execution.py": {"native": "IExecutionContext", "_engine": "ICudaEngine", "_runtime": "Runtime", "config": "IRuntimeConfig"},
    "runtime_cache.py": {"config": "IRuntimeConfig", "_native": "IRuntimeCache", "native": "IRuntimeCache"},
    "timing_cache.py": {"config": "IBuilderConfig", "_native": "ITimingCache"},
}
"""By file, the class of the objects that go by these names."""

_ONLY_WITH_A_RUNTIME_CACHE = {
    "ICudaEngine.create_runtime_config",
    "IRuntimeCache.deserialize",
    "IRuntimeCache.serialize",
    "IRuntimeConfig.set_execution_context_allocation_strategy",
}


@cache
def _a_few_of_each() -> list[tuple[Any, fx.GraphModule, list[TensorSpec]]]:
    """Return up to three cases of each operator, as graphs."""
    seen: Counter[Any] = Counter()
    chosen = []
    for case in cases.all_cases():
        seen[case.op] += 1
        if seen[case.op] <= 3:
            chosen.append((case.op, *case.graph()))
    return chosen


@needs_rtx
@pytest.mark.parametrize("release", api.RELEASES)
def test_names_used_by_converters_exist(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library, version = release.split()
    used: set[str] = set()
    calls: dict[str, set[int]] = defaultdict(set)
    flavour = Flavour(library, parse_version(version), api.Recorder(load_flavour("tensorrt_rtx").module, used))
    original = Layers.add_layer

    def add_layer(
        self: Layers, kind: str, *arguments: Any, inputs: Any = None, owner: Any = None, **attributes: Any
    ) -> Any:
        layer = original(self, kind, *arguments, inputs=inputs, owner=owner, **attributes)
        calls[f"{'INetworkDefinition' if owner is None else 'ILoop'}.add_{kind}"].add(len(arguments))
        used.update(f"{type(layer).__name__}.{name}" for name in (*attributes, *(["set_input"] if inputs else [])))
        return layer

    monkeypatch.setattr(Layers, "add_layer", add_layer)
    converted = set()
    for op, gm, types in _a_few_of_each():
        if all(converters.supports(node, flavour.has) for node in gm.graph.nodes if node.op == "call_function"):
            builder.build_network(flavour, gm, types)
            converted.add(op)
    assert len(converted) > 200
    assert len(calls) >= 19
    missing = sorted(name for name in {*used, *calls} if not api.has(release, name))
    assert missing == []
    wrong = [
        f"{name} with {count} arguments"
        for name, counts in calls.items()
        for count in counts
        if not any(count <= len(parameters) for parameters in api.find(release, name))
    ]
    assert wrong == []


def test_names_used_by_the_builder_and_at_run_time_exist() -> None:
    used: set[str] = set()
    calls: set[tuple[str, int, tuple[str, ...]]] = set()
    for file in Path(tiacc.backends.tensorrt.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            name = _name(node, _OWNERS.get(file.name, {}))
            if name:
                used.add(name)
            called = _name(node.func, _OWNERS.get(file.name, {})) if isinstance(node, ast.Call) else ""
            if called:
                calls.add((called, len(node.args), tuple(str(keyword.arg) for keyword in node.keywords)))
    expected = {"IBuilderConfig.set_compute_capability", "INetworkDefinition.mark_output", "IProgressMonitor"}
    assert expected | {"IExecutionContext.execute_async_v3", "ICudaEngine.create_execution_context"} <= used
    for release in api.RELEASES:
        library, version = release.split()
        flavour = Flavour(library, parse_version(version), None)
        guarded = {name for key, item in CAPABILITIES.items() if not flavour.has(key) for name in item.names}
        if not flavour.has("runtime_cache"):
            guarded |= _ONLY_WITH_A_RUNTIME_CACHE
        missing = {name for name in used - guarded if not api.has(release, name)}
        assert missing == set(), release
        methods = [(call, api.find(release, call[0])) for call in calls if "." in call[0] and call[0] not in guarded]
        assert len(methods) >= 20
        assert [call for call, found in methods if not _is_possible(found, *call[1:])] == [], release


def _name(node: ast.AST, owners: dict[str, str]) -> str:
    """Return what an expression names: ``"IBuilderConfig.set_flag"``, ``"IProgressMonitor"`` of the module; else an empty string."""
    if not isinstance(node, ast.Attribute):
        return ""
    owner = getattr(node.value, "id", getattr(node.value, "attr", ""))
    return node.attr if owner == "trt" else f"{owners[owner]}.{node.attr}" if owner in owners else ""


def _is_possible(overloads: Any, count: int, keywords: tuple[str, ...]) -> bool:
    """Return whether a method can be called with so many arguments and these keywords."""
    return any(count + len(keywords) <= len(names) and set(keywords) <= set(names[count:]) for names in overloads)

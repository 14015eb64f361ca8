"""How long TensorRT engines take to make: from a graph through tiacc's converters, and from ONNX through NVIDIA's parser."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("onnx")

from tests.backends.tensorrt.models import LARGE, imported
from tests.backends.tensorrt.test_interpreter_models import exported
from tiacc.backends.base import BuildSpec
from tiacc.backends.tensorrt import builder
from tiacc.backends.tensorrt.builder import BuildOptions, NetworkDefinition
from tiacc.backends.tensorrt.conversion import Conversion
from tiacc.backends.tensorrt.flavours import Flavour, load_flavour
from tiacc.backends.tensorrt.layers import Messages

ROUNDS = 3
"""How often each engine is made, in turn; the fastest counts."""

MOST = 1.1
"""The longest that making an engine may take, as a multiple of what it takes through the parser."""

OPTIONS = BuildOptions(target=("sm86",))


def parse(flavour: Flavour, data: bytes) -> NetworkDefinition:
    """Make a network of an ONNX model with NVIDIA's parser."""
    trt, messages = flavour.module, Messages()
    logger = messages.create(flavour)
    own = trt.Builder(logger)
    network = own.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    network.name = "tiacc"
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(data), messages.last_error
    return NetworkDefinition(flavour, network, (), (), {}, Conversion(flavour, network, messages), own)


def timed(make: Callable[[], NetworkDefinition], spec: BuildSpec) -> tuple[float, float, int]:
    """Make an engine; return the seconds for its network and for its plan, and the number of layers."""
    gc.collect()
    begin = time.perf_counter()
    definition = make()
    middle = time.perf_counter()
    builder.build_plan(definition, builder.profiles_of(spec), 1 << 30, OPTIONS)
    return middle - begin, time.perf_counter() - middle, definition.network.num_layers


@pytest.mark.parametrize("name", ["resnet50", "vit_b_16", "swin_t"])
def test_build(benchmark, name: str) -> None:
    """The two are made in turn, for one GPU generation, on the CPU."""
    flavour, model = load_flavour("tensorrt_rtx"), LARGE[name]
    torch.manual_seed(0)
    module = model.make()
    graph, data = imported(model, module, is_dynamic=False), exported(module, model.inputs(*model.sizes[1]))
    spec = BuildSpec(tuple(graph.types), (), torch.device("cpu"))
    makers: dict[str, Callable[[], NetworkDefinition]] = {
        "tiacc": lambda: builder.build_network(flavour, graph.gm, graph.types, OPTIONS),
        "parser": lambda: parse(flavour, data),
    }
    best: dict[str, tuple[float, float, int]] = {}
    for _ in range(ROUNDS):
        for key, make in makers.items():
            found = timed(make, spec)
            best[key] = min(best.get(key, found), found, key=lambda item: item[0] + item[1])
    ratio = sum(best["tiacc"][:2]) / sum(best["parser"][:2])
    figures: dict[str, Any] = {"model": name, "ratio": ratio}
    for key, (network_seconds, plan_seconds, layers) in best.items():
        figures.update({f"{key}_network_seconds": network_seconds, f"{key}_plan_seconds": plan_seconds, f"{key}_layers": layers})
    benchmark.extra_info.update(figures)
    benchmark.pedantic(timed, (makers["tiacc"], spec), rounds=1)
    assert ratio <= MOST

"""Networks are no larger than what NVIDIA's ONNX parser makes of the same models."""

from __future__ import annotations

import pytest
import torch

from tests.backends.tensorrt.harness import compile_for, needs_rtx, network_of
from tests.backends.tensorrt.models import FULL, LARGE, SMALL, Model, imported
from tests.backends.tensorrt.networks import trt
from tests.backends.tensorrt.onnx_corpus import Sink
from tests.backends.tensorrt.test_interpreter_models import exported

pytestmark = needs_rtx


def layer_counts(model: Model, *, is_dynamic: bool) -> tuple[int, int]:
    """Return the number of layers of tiacc's network of a model, and of the parser's."""
    torch.manual_seed(0)
    module = model.make()
    graph = imported(model, module, is_dynamic=is_dynamic)
    own = network_of(graph.gm, graph.types).network.num_layers
    inputs, types = model.inputs(*model.sizes[1]), model.types(is_dynamic=is_dynamic)
    names = [f"x{index}" for index in range(len(inputs))]
    varying = {
        name: {axis: size.name for axis, size in enumerate(spec.shape) if not isinstance(size, int)} for name, spec in zip(names, types)
    }
    sink = Sink(trt)
    network = sink.parse(exported(module, inputs, input_names=names, dynamic_axes=varying if is_dynamic else None))
    assert network is not None, sink.messages
    return own, network.num_layers


_DYNAMIC = pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])


def check(zoo: dict[str, Model], name: str, *, is_dynamic: bool) -> None:
    own, parser = layer_counts(zoo[name], is_dynamic=is_dynamic)
    assert own <= (parser / 5 if name.startswith("swin") else parser)


@_DYNAMIC
@pytest.mark.parametrize("name", SMALL)
def test_small_models(name: str, is_dynamic: bool) -> None:
    check(SMALL, name, is_dynamic=is_dynamic)


@pytest.mark.slow
@_DYNAMIC
@pytest.mark.parametrize("name", LARGE)
def test_large_models(name: str, is_dynamic: bool) -> None:
    check(LARGE, name, is_dynamic=is_dynamic)


@pytest.mark.slow
@_DYNAMIC
@pytest.mark.parametrize("name", FULL)
def test_full_size_models(name: str, is_dynamic: bool) -> None:
    check(FULL, name, is_dynamic=is_dynamic)


@pytest.mark.parametrize("name", SMALL)
def test_two_builds_are_identical(name: str) -> None:
    def plan() -> bytes:
        torch.manual_seed(0)
        graph = imported(SMALL[name], SMALL[name].make(), is_dynamic=False)
        return compile_for(network_of(graph.gm, graph.types), graph.types).data

    assert plan() == plan()

"""A reference interpreter for TensorRT networks: what an ``INetworkDefinition`` computes, evaluated with torch on the CPU.

    interpreter = NetworkInterpreter(tensorrt_rtx, network)
    outputs = interpreter.run({"x": torch.randn(1, 3, 224, 224)})

It needs no GPU, and is the oracle that converted networks are held to. All layer types of TensorRT 10.7 to 11 and of
TensorRT-RTX 1.7 are evaluated but for those that `refused_kinds` lists with their reasons.

One file an area: `network` reads the definition, `schedule` works out lifetimes, `evaluate` runs, and the others hold a
function a layer type, registered with `layers.evaluates`.
"""

from __future__ import annotations

from tiacc.backends.tensorrt.interpreter import (  # noqa: F401 - each registers its layer types
    attention,
    elementwise,
    indexing,
    linear,
    quantization,
    reduction,
    sampling,
    shaping,
)
from tiacc.backends.tensorrt.interpreter.errors import InterpretationError, UnsupportedLayerError
from tiacc.backends.tensorrt.interpreter.evaluate import NetworkInterpreter, interpret
from tiacc.backends.tensorrt.interpreter.layers import refused_kinds, refuses, supported_kinds

refuses(
    ("PLUGIN", "PLUGIN_V2", "PLUGIN_V3"),
    "what a plugin computes is in its library, not in the network",
)
refuses(
    ("DIST_COLLECTIVE",),
    "it exchanges values with other processes, and the bindings do not say which operation it does",
)

__all__ = [
    "InterpretationError",
    "NetworkInterpreter",
    "UnsupportedLayerError",
    "interpret",
    "refused_kinds",
    "supported_kinds",
]

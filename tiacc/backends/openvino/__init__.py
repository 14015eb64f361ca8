"""The OpenVINO backend: subgraphs as OpenVINO models on the CPU."""

from tiacc.backends.openvino.backend import OpenVINOBackend

__all__ = ["OpenVINOBackend"]

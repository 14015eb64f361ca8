"""The lowerings: what OpenVINO lacks, or gets wrong, in operators that it has. Importing this registers them."""

from tiacc.backends.openvino.lowerings import elementwise, indexing, products, recurrent, reductions, shapes

__all__ = ["elementwise", "indexing", "products", "recurrent", "reductions", "shapes"]
